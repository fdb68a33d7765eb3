//! Authorization policies, compiled. Envoy: `filters/common/rbac`.
//!
//! A policy matches when one of its permissions and one of its principals do. The first matching
//! policy, in the order of names, gives the verdict its name.
//!
//! On a byte stream there is no request to ask about. Such a condition is then neither true nor
//! false, and neither is its negation: an ALLOW policy that hangs on it does not match, a DENY
//! policy does. So a policy that was meant for HTTP never opens a TCP port. The same holds for a
//! condition that is not understood.

use crate::error::Context;
use crate::matching::{HeaderMatcher, StringMatcher};
use crate::path_template;
use crate::request::{ConnectionView, RequestView};
use crate::spec;
use ipnet::IpNet;
use regex::bytes::Regex;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

/// Conditions may be nested so deep.
pub const MAX_DEPTH: usize = 64;

/// One RBAC filter.
#[derive(Debug, Clone)]
pub struct CompiledRbac {
    action: spec::Action,
    /// In the order of their names.
    policies: Box<[Policy]>,
}

/// What a filter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Go on.
    Allowed,
    /// Go on; the LOG policy of that name matched.
    Logged {
        /// Its name.
        policy: &'a Arc<str>,
    },
    /// 403, `RBAC: access denied`.
    Denied {
        /// Name of the DENY policy that matched; `None`: no ALLOW policy did.
        policy: Option<&'a Arc<str>>,
    },
}

#[derive(Debug, Clone)]
struct Policy {
    name: Arc<str>,
    permissions: Box<[Permission]>,
    principals: Box<[Principal]>,
}

#[derive(Debug, Clone)]
enum Permission {
    Any,
    And(Box<[Permission]>),
    Or(Box<[Permission]>),
    Not(Box<Permission>),
    Header(HeaderMatcher),
    Path(StringMatcher),
    Method(StringMatcher),
    Host(StringMatcher),
    DestinationIp(IpNet),
    DestinationPort(u16),
    DestinationPortRange(Range<u32>),
    PathTemplate(Regex),
    Undecidable,
}

#[derive(Debug, Clone)]
enum Principal {
    Any,
    And(Box<[Principal]>),
    Or(Box<[Principal]>),
    Not(Box<Principal>),
    Authenticated(StringMatcher),
    /// Of the HBONE peer.
    SourceIp(IpNet),
    RemoteIp(IpNet),
    Header(HeaderMatcher),
    Path(StringMatcher),
    Undecidable,
}

/// Whether a condition holds. `Unknown`: it is about a request, and there is none; or it is not
/// understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    Unknown,
    Yes,
}

/// What conditions are asked about.
#[derive(Clone, Copy)]
struct Subject<'a> {
    connection: &'a ConnectionView<'a>,
    request: Option<&'a RequestView<'a>>,
}

impl CompiledRbac {
    /// Compiles a filter.
    pub fn compile(rbac: &spec::Rbac, at: &mut Context) -> Option<CompiledRbac> {
        let spec::Rbac { action, policies } = rbac;
        let policies = at.field("policies", |at| {
            let compile = |(name, policy): (&String, &spec::Policy)| {
                at.key(name, |at| Policy::compile(name, policy, at))
            };
            let compiled: Vec<Option<Policy>> = policies.iter().map(compile).collect();
            compiled.into_iter().collect::<Option<Box<[Policy]>>>()
        });
        Some(CompiledRbac { action: *action, policies: policies? })
    }

    /// Decides on a connection, before a byte passes.
    pub fn check_connection(&self, connection: &ConnectionView<'_>) -> Verdict<'_> {
        self.check(Subject { connection, request: None })
    }

    /// Decides on a request.
    pub fn check_request(
        &self,
        connection: &ConnectionView<'_>,
        request: &RequestView<'_>,
    ) -> Verdict<'_> {
        self.check(Subject { connection, request: Some(request) })
    }

    /// What a match does.
    pub fn action(&self) -> spec::Action {
        self.action
    }

    fn check(&self, subject: Subject<'_>) -> Verdict<'_> {
        let needed = match self.action {
            spec::Action::Deny => Truth::Unknown,
            spec::Action::Allow | spec::Action::Log => Truth::Yes,
        };
        let matched = self.policies.iter().find(|policy| policy.test(subject) >= needed);
        let matched = matched.map(|policy| &policy.name);
        match (self.action, matched) {
            (spec::Action::Allow, None) => Verdict::Denied { policy: None },
            (spec::Action::Deny, Some(policy)) => Verdict::Denied { policy: Some(policy) },
            (spec::Action::Log, Some(policy)) => Verdict::Logged { policy },
            (spec::Action::Allow, Some(_)) | (spec::Action::Deny | spec::Action::Log, None) => {
                Verdict::Allowed
            }
        }
    }
}

impl Verdict<'_> {
    /// The request or connection is refused.
    pub fn is_denied(&self) -> bool {
        matches!(self, Verdict::Denied { .. })
    }

    /// Envoy's response code details: `rbac_access_denied_matched_policy[NAME]`, or `[none]`. White
    /// space in the name becomes `_`, so that a line of an access log keeps its columns.
    pub fn details(&self) -> Option<String> {
        let Verdict::Denied { policy } = self else { return None };
        let name = policy.map_or("none", |name| name);
        let name = name.replace(char::is_whitespace, "_");
        Some(format!("rbac_access_denied_matched_policy[{name}]"))
    }
}

impl Policy {
    fn compile(name: &str, policy: &spec::Policy, at: &mut Context) -> Option<Policy> {
        let spec::Policy { permissions, principals } = policy;
        let permissions = at.each("permissions", permissions, |permission, at| {
            Permission::compile(permission, MAX_DEPTH, at)
        });
        let principals = at.each("principals", principals, |principal, at| {
            Principal::compile(principal, MAX_DEPTH, at)
        });
        Some(Policy {
            name: name.into(),
            permissions: permissions?.into(),
            principals: principals?.into(),
        })
    }

    fn test(&self, subject: Subject<'_>) -> Truth {
        let principal = any(self.principals.iter().map(|principal| principal.test(subject)));
        if principal == Truth::No {
            return Truth::No;
        }
        principal.min(any(self.permissions.iter().map(|permission| permission.test(subject))))
    }
}

impl Permission {
    fn compile(spec: &spec::Permission, depth: usize, at: &mut Context) -> Option<Permission> {
        let Some(depth) = depth.checked_sub(1) else { return too_deep(at) };
        Some(match spec {
            spec::Permission::Any => Permission::Any,
            spec::Permission::And(all) => Permission::And(list("and", all, at, |item, at| {
                Permission::compile(item, depth, at)
            })?),
            spec::Permission::Or(any) => Permission::Or(list("or", any, at, |item, at| {
                Permission::compile(item, depth, at)
            })?),
            spec::Permission::Not(inner) => Permission::Not(Box::new(
                at.field("not", |at| Permission::compile(inner, depth, at))?,
            )),
            spec::Permission::Header(header) => {
                Permission::Header(at.field("header", |at| HeaderMatcher::compile(header, at))?)
            }
            spec::Permission::Path(path) => Permission::Path(string("path", path, false, at)?),
            spec::Permission::Method(name) => {
                Permission::Method(string("method", name, false, at)?)
            }
            spec::Permission::Host(host) => Permission::Host(string("host", host, true, at)?),
            spec::Permission::DestinationIp(range) => Permission::DestinationIp(range.0),
            spec::Permission::DestinationPort(port) => Permission::DestinationPort(*port),
            spec::Permission::DestinationPortRange { start, end } => {
                Permission::DestinationPortRange((*start).into()..*end)
            }
            spec::Permission::PathTemplate(template) => {
                at.field("path_template", |at| match path_template::compile(template, at) {
                    Ok(regex) => Permission::PathTemplate(regex),
                    Err(reason) => {
                        undecidable(&reason, at);
                        Permission::Undecidable
                    }
                })
            }
            spec::Permission::Undecidable(reason) => {
                undecidable(reason, at);
                Permission::Undecidable
            }
        })
    }

    fn test(&self, subject: Subject<'_>) -> Truth {
        match self {
            Permission::Any => Truth::Yes,
            Permission::And(items) => all(items.iter().map(|item| item.test(subject))),
            Permission::Or(items) => any(items.iter().map(|item| item.test(subject))),
            Permission::Not(item) => item.test(subject).negated(),
            Permission::Header(header) => subject.ask(|request| header.matches(request)),
            Permission::Path(path) => subject.ask(|request| path.matches(request.path.as_bytes())),
            Permission::Method(name) => {
                subject.ask(|request| name.matches(request.method.as_str().as_bytes()))
            }
            Permission::Host(host) => {
                subject.ask(|request| host.matches(request.authority.as_bytes()))
            }
            Permission::DestinationIp(range) => {
                let address = subject.connection.destination_ip();
                address.is_some_and(|address| range.contains(&address)).into()
            }
            Permission::DestinationPort(port) => (subject.connection.port == *port).into(),
            Permission::DestinationPortRange(ports) => {
                ports.contains(&subject.connection.port.into()).into()
            }
            Permission::PathTemplate(template) => {
                subject.ask(|request| template.is_match(request.path.as_bytes()))
            }
            Permission::Undecidable => Truth::Unknown,
        }
    }
}

impl Principal {
    fn compile(spec: &spec::Principal, depth: usize, at: &mut Context) -> Option<Principal> {
        let Some(depth) = depth.checked_sub(1) else { return too_deep(at) };
        Some(match spec {
            spec::Principal::Any => Principal::Any,
            spec::Principal::And(all) => Principal::And(list("and", all, at, |item, at| {
                Principal::compile(item, depth, at)
            })?),
            spec::Principal::Or(any) => {
                Principal::Or(list("or", any, at, |item, at| Principal::compile(item, depth, at))?)
            }
            spec::Principal::Not(inner) => Principal::Not(Box::new(
                at.field("not", |at| Principal::compile(inner, depth, at))?,
            )),
            spec::Principal::Authenticated(id) => {
                Principal::Authenticated(string("authenticated", id, false, at)?)
            }
            spec::Principal::SourceIp(range) => Principal::SourceIp(range.0),
            spec::Principal::RemoteIp(range) => Principal::RemoteIp(range.0),
            spec::Principal::Header(header) => {
                Principal::Header(at.field("header", |at| HeaderMatcher::compile(header, at))?)
            }
            spec::Principal::Path(path) => Principal::Path(string("path", path, false, at)?),
            spec::Principal::Undecidable(reason) => {
                undecidable(reason, at);
                Principal::Undecidable
            }
        })
    }

    fn test(&self, subject: Subject<'_>) -> Truth {
        match self {
            Principal::Any => Truth::Yes,
            Principal::And(items) => all(items.iter().map(|item| item.test(subject))),
            Principal::Or(items) => any(items.iter().map(|item| item.test(subject))),
            Principal::Not(item) => item.test(subject).negated(),
            Principal::Authenticated(id) => {
                let peer = subject.connection.peer_id;
                peer.is_some_and(|peer| id.matches(peer.as_bytes())).into()
            }
            Principal::SourceIp(range) => range.contains(&subject.connection.source_ip()).into(),
            Principal::RemoteIp(range) => range.contains(&subject.remote_ip()).into(),
            Principal::Header(header) => subject.ask(|request| header.matches(request)),
            Principal::Path(path) => subject.ask(|request| path.matches(request.path.as_bytes())),
            Principal::Undecidable => Truth::Unknown,
        }
    }
}

impl Subject<'_> {
    fn ask(&self, condition: impl FnOnce(&RequestView<'_>) -> bool) -> Truth {
        self.request.map_or(Truth::Unknown, |request| condition(request).into())
    }

    /// The last address of `x-forwarded-for`, else that of the HBONE peer.
    fn remote_ip(&self) -> IpAddr {
        let forwarded = self.request.and_then(RequestView::forwarded_for);
        forwarded.unwrap_or_else(|| self.connection.source_ip())
    }
}

impl Truth {
    fn negated(self) -> Truth {
        match self {
            Truth::No => Truth::Yes,
            Truth::Unknown => Truth::Unknown,
            Truth::Yes => Truth::No,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Truth {
        if holds { Truth::Yes } else { Truth::No }
    }
}

fn any(truths: impl Iterator<Item = Truth>) -> Truth {
    let mut most = Truth::No;
    for truth in truths {
        most = most.max(truth);
        if most == Truth::Yes {
            break;
        }
    }
    most
}

fn all(truths: impl Iterator<Item = Truth>) -> Truth {
    let mut least = Truth::Yes;
    for truth in truths {
        least = least.min(truth);
        if least == Truth::No {
            break;
        }
    }
    least
}

fn list<'a, S, T>(
    field: &str,
    items: &'a [S],
    at: &mut Context,
    compile: impl FnMut(&'a S, &mut Context) -> Option<T>,
) -> Option<Box<[T]>> {
    if items.is_empty() {
        return at.field(field, |at| at.reject("is empty; at least one condition is needed"));
    }
    at.each(field, items, compile).map(Vec::into_boxed_slice)
}

fn string(
    field: &str,
    matcher: &spec::StringMatch,
    ignore_case: bool,
    at: &mut Context,
) -> Option<StringMatcher> {
    at.field(field, |at| StringMatcher::compile(matcher, ignore_case, at))
}

fn undecidable(reason: &str, at: &mut Context) {
    at.warn(format!(
        "cannot be decided ({reason}): an ALLOW policy that hangs on it does not match, a DENY policy does"
    ));
}

fn too_deep<T>(at: &mut Context) -> Option<T> {
    at.reject(format!("is nested deeper than {MAX_DEPTH} levels"))
}

#[cfg(test)]
mod tests;
