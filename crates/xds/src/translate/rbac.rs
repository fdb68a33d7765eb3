//! Authorization policies. Envoy: `config.rbac.v3.RBAC`.
//!
//! A condition that is not understood becomes `undecidable`: an ALLOW policy that hangs on it does not match,
//! a DENY policy does.

use super::headers;
use super::unsupported::Subject;
use super::wire::{Undecodable, network, open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{Action, CidrRange, Permission, Policy, Principal, Rbac, StringMatch};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::rbac::v3 as rbac;
use pb::envoy::config::rbac::v3::permission::Rule;
use pb::envoy::config::rbac::v3::principal::Identifier;
use pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use pb::envoy::r#type::matcher::v3::filter_state_matcher;
use pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use std::collections::BTreeMap;

/// Filter state that holds the peer's SPIFFE id.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

/// Where a filter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In `connect_terminate`, where the client's certificate is at hand.
    Tunnel,
    /// Inside a tunnel, where it goes by the filter state that was set from it.
    Inner,
}

/// The rules of one filter; `None`: it has none that are enforced.
pub(super) fn rules(
    rules: Option<&rbac::Rbac>,
    place: Place,
    subject: &mut Subject<'_>,
) -> Result<Option<Rbac>, Undecodable> {
    let Some(rbac::Rbac { action, policies, audit_logging_options }) = rules else {
        return Ok(None);
    };
    subject.degrade_if(audit_logging_options.is_some(), "an audit logger of RBAC");
    let action = match rbac::rbac::Action::try_from(*action) {
        Ok(rbac::rbac::Action::Allow) => Action::Allow,
        Ok(rbac::rbac::Action::Deny) => Action::Deny,
        Ok(rbac::rbac::Action::Log) => Action::Log,
        Err(_) => {
            subject.refuse(format!("RBAC with the action {action} is not supported"));
            return Ok(None);
        }
    };
    let mut translated = BTreeMap::new();
    for (name, from) in policies {
        let mut conditions = Conditions { place, undecidable: Vec::new() };
        let policy = conditions.policy(from)?;
        for what in conditions.undecidable {
            let effect = match action {
                Action::Allow => "it lets nobody in",
                Action::Deny => "it refuses everybody whom its other conditions meet",
                Action::Log => "it records nothing",
            };
            let reason = format!("RBAC policy `{name}` hangs on {what}: {effect}");
            subject.part("policy", name, reason);
        }
        translated.insert(name.clone(), policy);
    }
    Ok(Some(Rbac { action, policies: translated }))
}

/// Some policy asks for `remote.ip`.
pub(super) fn asks_for_remote_ip(rbac: &Rbac) -> bool {
    fn asks(principal: &Principal) -> bool {
        match principal {
            Principal::RemoteIp(_) => true,
            Principal::And(of) | Principal::Or(of) => of.iter().any(asks),
            Principal::Not(of) => asks(of),
            _ => false,
        }
    }
    rbac.policies.values().any(|policy| policy.principals.iter().any(asks))
}

/// Translates the conditions of one policy.
struct Conditions {
    place: Place,
    undecidable: Vec<String>,
}

impl Conditions {
    fn policy(&mut self, policy: &rbac::Policy) -> Result<Policy, Undecodable> {
        let rbac::Policy { permissions, principals, condition, checked_condition, cel_config: _ } =
            policy;
        let mut permissions = self.permissions(permissions)?;
        if condition.is_some() || checked_condition.is_some() {
            let cel = self.permission_unknown("a CEL condition");
            if !permissions.is_empty() {
                permissions = vec![Permission::And(vec![Permission::Or(permissions), cel])];
            }
        }
        Ok(Policy { permissions, principals: self.principals(principals)? })
    }

    fn permissions(&mut self, of: &[rbac::Permission]) -> Result<Vec<Permission>, Undecodable> {
        of.iter().map(|permission| self.permission(permission)).collect()
    }

    fn principals(&mut self, of: &[rbac::Principal]) -> Result<Vec<Principal>, Undecodable> {
        of.iter().map(|principal| self.principal(principal)).collect()
    }

    #[allow(deprecated)]
    fn permission(&mut self, permission: &rbac::Permission) -> Result<Permission, Undecodable> {
        Ok(match &permission.rule {
            Some(Rule::Any(true)) => Permission::Any,
            Some(Rule::AndRules(set)) if !set.rules.is_empty() => {
                Permission::And(self.permissions(&set.rules)?)
            }
            Some(Rule::OrRules(set)) if !set.rules.is_empty() => {
                Permission::Or(self.permissions(&set.rules)?)
            }
            Some(Rule::NotRule(not)) => Permission::Not(Box::new(self.permission(not)?)),
            Some(Rule::Header(matcher)) => match headers::header(matcher) {
                Ok(header) => Permission::Header(header),
                Err(what) => self.permission_unknown(what),
            },
            Some(Rule::UrlPath(matcher)) => match path(matcher) {
                Ok(path) => Permission::Path(path),
                Err(what) => self.permission_unknown(what),
            },
            Some(Rule::UriTemplate(extension)) => self.template(extension)?,
            Some(Rule::DestinationIp(range)) => match cidr(range) {
                Some(range) => Permission::DestinationIp(range),
                None => self.permission_unknown("a destination network that is none"),
            },
            Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
                Ok(port) => Permission::DestinationPort(port),
                Err(_) => self.permission_unknown("a destination port above 65535"),
            },
            Some(Rule::DestinationPortRange(range)) => {
                match (u16::try_from(range.start), u32::try_from(range.end)) {
                    (Ok(start), Ok(end)) if u32::from(start) < end && end <= 65_536 => {
                        Permission::DestinationPortRange { start, end }
                    }
                    _ => self.permission_unknown("a range of ports that is none"),
                }
            }
            Some(Rule::Metadata(matcher)) => {
                self.permission_unknown(format!("dynamic metadata of `{}`", matcher.filter))
            }
            Some(Rule::SourcedMetadata(_)) => self.permission_unknown("metadata"),
            Some(Rule::RequestedServerName(_)) => {
                self.permission_unknown("the server name of a TLS handshake")
            }
            Some(Rule::Matcher(extension)) => {
                self.permission_unknown(format!("the matcher `{}`", extension.name))
            }
            Some(Rule::Any(false) | Rule::AndRules(_) | Rule::OrRules(_)) | None => {
                self.permission_unknown("an empty condition")
            }
        })
    }

    fn template(
        &mut self,
        extension: &core::TypedExtensionConfig,
    ) -> Result<Permission, Undecodable> {
        let Some(config) = &extension.typed_config else {
            return Ok(self.permission_unknown("a path template without a template"));
        };
        match type_name(config) {
            "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" => {
                let UriTemplateMatchConfig { path_template } = open(config)?.message;
                Ok(Permission::PathTemplate(path_template))
            }
            other => Ok(self.permission_unknown(format!("a path matcher of type {other}"))),
        }
    }

    #[allow(deprecated)]
    fn principal(&mut self, principal: &rbac::Principal) -> Result<Principal, Undecodable> {
        Ok(match &principal.identifier {
            Some(Identifier::Any(true)) => Principal::Any,
            Some(Identifier::AndIds(set)) if !set.ids.is_empty() => {
                Principal::And(self.principals(&set.ids)?)
            }
            Some(Identifier::OrIds(set)) if !set.ids.is_empty() => {
                Principal::Or(self.principals(&set.ids)?)
            }
            Some(Identifier::NotId(not)) => Principal::Not(Box::new(self.principal(not)?)),
            Some(Identifier::Authenticated(authenticated)) => self.authenticated(authenticated),
            Some(Identifier::FilterState(state)) => match (&*state.key, &state.matcher) {
                (PEER_PRINCIPAL, Some(filter_state_matcher::Matcher::StringMatch(matcher)))
                    if self.place == Place::Inner =>
                {
                    match headers::exact_case(matcher) {
                        Ok(matcher) => Principal::Authenticated(matcher),
                        Err(what) => self.principal_unknown(what),
                    }
                }
                (key, _) => self.principal_unknown(format!("the filter state `{key}`")),
            },
            Some(Identifier::SourceIp(range) | Identifier::DirectRemoteIp(range)) => {
                match cidr(range) {
                    Some(range) => Principal::SourceIp(range),
                    None => self.principal_unknown("a source network that is none"),
                }
            }
            Some(Identifier::RemoteIp(range)) => match cidr(range) {
                Some(range) => Principal::RemoteIp(range),
                None => self.principal_unknown("a remote network that is none"),
            },
            Some(Identifier::Header(matcher)) => match headers::header(matcher) {
                Ok(header) => Principal::Header(header),
                Err(what) => self.principal_unknown(what),
            },
            Some(Identifier::UrlPath(matcher)) => match path(matcher) {
                Ok(path) => Principal::Path(path),
                Err(what) => self.principal_unknown(what),
            },
            Some(Identifier::Metadata(matcher)) => {
                self.principal_unknown(format!("dynamic metadata of `{}`", matcher.filter))
            }
            Some(Identifier::SourcedMetadata(_)) => self.principal_unknown("metadata"),
            Some(Identifier::Custom(extension)) => {
                self.principal_unknown(format!("the principal `{}`", extension.name))
            }
            Some(Identifier::Any(false) | Identifier::AndIds(_) | Identifier::OrIds(_)) | None => {
                self.principal_unknown("an empty condition")
            }
        })
    }

    /// Who the certificate says; only where there is one.
    fn authenticated(&mut self, authenticated: &rbac::principal::Authenticated) -> Principal {
        let rbac::principal::Authenticated { principal_name } = authenticated;
        match (self.place, principal_name) {
            (Place::Inner, _) => {
                self.principal_unknown("a certificate, of which there is none inside a tunnel")
            }
            (Place::Tunnel, None) => {
                Principal::Authenticated(StringMatch::Prefix("spiffe://".to_owned()))
            }
            (Place::Tunnel, Some(matcher)) => match headers::exact_case(matcher) {
                Ok(matcher) => Principal::Authenticated(matcher),
                Err(what) => self.principal_unknown(what),
            },
        }
    }

    fn permission_unknown(&mut self, what: impl Into<String>) -> Permission {
        let what = what.into();
        self.undecidable.push(what.clone());
        Permission::Undecidable(what)
    }

    fn principal_unknown(&mut self, what: impl Into<String>) -> Principal {
        let what = what.into();
        self.undecidable.push(what.clone());
        Principal::Undecidable(what)
    }
}

fn path(matcher: &PathMatcher) -> Result<StringMatch, String> {
    match &matcher.rule {
        Some(path_matcher::Rule::Path(matcher)) => headers::exact_case(matcher),
        None => Err("a path matcher without a path".to_owned()),
    }
}

fn cidr(range: &core::CidrRange) -> Option<CidrRange> {
    let core::CidrRange { address_prefix, prefix_len } = range;
    // Envoy: an absent length is 0.
    let length = prefix_len.as_ref().map_or(0, |length| length.value);
    network(address_prefix, Some(length)).map(CidrRange)
}
