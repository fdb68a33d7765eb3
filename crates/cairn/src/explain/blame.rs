//! Why a policy or a route does not match: its conditions are compiled one by one and asked for
//! themselves, so that the answer is the engine's own.

use cairn_router::error::Context;
use cairn_router::rbac::{CompiledRbac, Verdict};
use cairn_router::request::{ConnectionView, RequestView};
use cairn_router::route::RouteTable;
use cairn_router::spec::{
    Action, DirectResponse, HeaderMatch, PathMatch, Permission, Policy, Principal, QueryMatch,
    Rbac, Route, RouteMatch, VirtualHost,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Characters of a condition that are shown.
const MAX_TEXT: usize = 300;

/// Whom a policy is asked about.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The tunnel.
    pub connection: &'a ConnectionView<'a>,
    /// The request, unless the connection itself is judged.
    pub request: Option<&'a RequestView<'a>>,
}

impl Subject<'_> {
    /// What a compiled filter says.
    pub fn ask<'r>(&self, rbac: &'r CompiledRbac) -> Verdict<'r> {
        match self.request {
            Some(request) => rbac.check_request(self.connection, request),
            None => rbac.check_connection(self.connection),
        }
    }

    /// Why `policy` does not match in a filter of this action; `None`: it does.
    pub fn blame(&self, action: Action, policy: &Policy) -> Option<String> {
        if self.matches(action, policy.permissions.clone(), policy.principals.clone()) {
            return None;
        }
        let reasons: Vec<String> = [
            self.first_failing("who", &policy.principals, |one| self.principal(action, one)),
            self.first_failing("what", &policy.permissions, |one| self.permission(action, one)),
        ]
        .into_iter()
        .flatten()
        .collect();
        Some(reasons.join("; "))
    }

    /// Of alternatives none of which holds: why not. `None`: one holds.
    fn first_failing<T>(
        &self,
        side: &str,
        alternatives: &[T],
        blame: impl Fn(&T) -> Option<String>,
    ) -> Option<String> {
        let reasons: Option<Vec<String>> = alternatives.iter().map(blame).collect();
        Some(match reasons?.as_slice() {
            [] => format!("{side}: nothing is listed"),
            [only] => format!("{side}: {only}"),
            several => format!("{side}: none of {}", short(&several.join(", "))),
        })
    }

    fn permission(&self, action: Action, permission: &Permission) -> Option<String> {
        if self.matches(action, vec![permission.clone()], vec![Principal::Any]) {
            return None;
        }
        let inner = |one: &Permission| self.permission(action, one);
        Some(match permission {
            Permission::And(all) => all.iter().find_map(inner).unwrap_or_else(|| text(permission)),
            Permission::Or(any) => alternatives(any.iter().filter_map(inner)),
            other => format!("not {}", text(other)),
        })
    }

    fn principal(&self, action: Action, principal: &Principal) -> Option<String> {
        if self.matches(action, vec![Permission::Any], vec![principal.clone()]) {
            return None;
        }
        let inner = |one: &Principal| self.principal(action, one);
        Some(match principal {
            Principal::And(all) => all.iter().find_map(inner).unwrap_or_else(|| text(principal)),
            Principal::Or(any) => alternatives(any.iter().filter_map(inner)),
            other => format!("not {}", text(other)),
        })
    }

    fn matches(
        &self,
        action: Action,
        permissions: Vec<Permission>,
        principals: Vec<Principal>,
    ) -> bool {
        let policies = BTreeMap::from([(String::new(), Policy { permissions, principals })]);
        let rbac = CompiledRbac::compile(&Rbac { action, policies }, &mut Context::new());
        rbac.is_some_and(|rbac| match (action, self.ask(&rbac)) {
            (Action::Allow, verdict) => !verdict.is_denied(),
            (Action::Deny, verdict) => verdict.is_denied(),
            (Action::Log, verdict) => matches!(verdict, Verdict::Logged { .. }),
        })
    }
}

fn alternatives(reasons: impl Iterator<Item = String>) -> String {
    let reasons: Vec<String> = reasons.collect();
    match reasons.as_slice() {
        [only] => only.clone(),
        several => short(&several.join(" and ")),
    }
}

/// Why a route does not match; `None`: it does.
pub fn blame_route(route: &Route, request: &RequestView<'_>) -> Option<String> {
    let RouteMatch { path, case_sensitive, headers, query, never } = &route.matches;
    if let Some(reason) = never {
        return Some(format!("never matches: {reason}"));
    }
    let alone = |path: &PathMatch, headers: &[HeaderMatch], query: &[QueryMatch]| RouteMatch {
        path: path.clone(),
        case_sensitive: *case_sensitive,
        headers: headers.to_vec(),
        query: query.to_vec(),
        never: None,
    };
    let any = PathMatch::Prefix(String::new());
    if !fits(alone(path, &[], &[]), request) {
        return Some(format!("the path is not {}", text(path)));
    }
    for header in headers {
        if !fits(alone(&any, std::slice::from_ref(header), &[]), request) {
            return Some(format!("no header as {}", text(header)));
        }
    }
    for parameter in query {
        if !fits(alone(&any, &[], std::slice::from_ref(parameter)), request) {
            return Some(format!("no query parameter as {}", text(parameter)));
        }
    }
    None
}

fn fits(matches: RouteMatch, request: &RequestView<'_>) -> bool {
    let route = Route {
        name: String::new(),
        matches,
        route: None,
        redirect: None,
        direct_response: Some(DirectResponse { status: 200, body: String::new() }),
        request_headers: Default::default(),
        response_headers: Default::default(),
        fault: None,
        cors: None,
        decorator: None,
    };
    let host = VirtualHost {
        name: String::new(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        request_headers: Default::default(),
        response_headers: Default::default(),
    };
    let table = cairn_router::spec::RouteTable { name: String::new(), virtual_hosts: vec![host] };
    let table = RouteTable::compile(&table, &mut Context::new());
    table.is_some_and(|table| table.find(request).is_some())
}

/// A condition as it is configured.
pub fn text(condition: &impl Serialize) -> String {
    short(&serde_json::to_string(condition).unwrap_or_default())
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
    }
}
