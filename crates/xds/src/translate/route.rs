//! Route tables. Envoy: `config.route.v3.RouteConfiguration`.
//!
//! A condition that is not understood makes its route match nothing; an action that is not understood makes it
//! answer 503; what concerns a whole virtual host makes the chain fail closed.

use super::action::{self, Defaults};
use super::headers;
use super::overrides::{Filters, Overrides, Problem};
use super::shallow;
use super::unsupported::Subject;
use super::wire::{Undecodable, is_true, percent};
use cairn_proto::envoy as pb;
use cairn_router::route::MAX_PATH;
use cairn_router::spec::{
    DirectResponse, HeaderOps, PathMatch, QueryMatch, Route, RouteMatch, RouteTable, ValueMatch,
    VirtualHost,
};
use pb::envoy::config::route::v3 as route;
use pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use pb::envoy::config::route::v3::route_match::PathSpecifier;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a route is translated with.
pub(super) struct Scope<'a> {
    /// Filters of the chain.
    pub filters: &'a Filters,
    /// Neither side of a stream may be silent for so long; `None`: no bound.
    pub stream_idle: Option<Duration>,
    /// Routes with fields that are not known.
    pub unread: &'a Unread,
}

/// Positions (virtual host, route) of routes with fields that are not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    /// In their conditions.
    matches: BTreeSet<(usize, usize)>,
    /// Anywhere else.
    routes: BTreeSet<(usize, usize)>,
    /// In the table or its virtual hosts, apart from routes.
    pub table: bool,
}

impl Unread {
    /// Nothing is known of the whole table.
    pub(super) fn table() -> Self {
        Unread { table: true, ..Unread::default() }
    }

    /// Finds them in the bytes of a table. Called only where a message was not read as a whole.
    pub(super) fn find(table: &[u8]) -> Result<Self, Undecodable> {
        use super::wire::decode;
        let mut unread = Unread::default();
        let Ok(split) = shallow::split(table, 2) else {
            return Ok(Unread::table());
        };
        unread.table |=
            !decode::<route::RouteConfiguration>("RouteConfiguration", &split.rest)?.whole;
        for (host, bytes) in split.parts.iter().enumerate() {
            let Ok(split) = shallow::split(bytes, 3) else {
                unread.table = true;
                continue;
            };
            unread.table |= !decode::<route::VirtualHost>("VirtualHost", &split.rest)?.whole;
            for (number, bytes) in split.parts.iter().enumerate() {
                if decode::<route::Route>("Route", bytes)?.whole {
                    continue;
                }
                let matches = shallow::parts(bytes, 1);
                let known = matches.len() == 1
                    && matches.iter().all(|bytes| {
                        decode::<route::RouteMatch>("RouteMatch", bytes)
                            .is_ok_and(|read| read.whole)
                    });
                let list = if known { &mut unread.routes } else { &mut unread.matches };
                list.insert((host, number));
            }
        }
        Ok(unread)
    }
}

/// A table. What concerns all of it is refused on the chain.
pub(super) fn table(
    table: &route::RouteConfiguration,
    scope: &Scope<'_>,
    chain: &mut Subject<'_>,
) -> Result<RouteTable, Undecodable> {
    let route::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters: _,
        max_direct_response_body_size_bytes: _,
        cluster_specifier_plugins: _,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = table;
    chain.refuse_if(scope.unread.table, "a route table with fields that are not known");
    chain.refuse_if(vhds.is_some(), "discovery of virtual hosts (VHDS)");
    chain.refuse_if(!vhost_header.is_empty(), "a virtual host by another header than the host");
    chain.refuse_if(*ignore_path_parameters_in_path_matching, "matching without path parameters");
    chain.refuse_if(!route_specifiers.is_empty(), "a route specifier");
    chain.degrade_if(!internal_only_headers.is_empty(), "the list of internal headers");
    let own = headers_of(request_headers_to_add, request_headers_to_remove, chain);
    let own_response = headers_of(response_headers_to_add, response_headers_to_remove, chain);
    let base = match scope.filters.apply(typed_per_filter_config, &scope.filters.base()) {
        Ok(base) => base,
        Err(problem) => {
            refuse(chain, problem)?;
            Overrides::default()
        }
    };
    let above = Above { own, own_response, base, mirrors: request_mirror_policies };
    let mut hosts = Vec::with_capacity(virtual_hosts.len());
    for (number, host) in virtual_hosts.iter().enumerate() {
        chain.refuse_if(
            *ignore_port_in_host_matching && host.domains.iter().any(|domain| domain != "*"),
            "matching of domains without regard to ports",
        );
        let host = virtual_host((number, host), &above, scope, chain)?;
        chain.refuse_if(
            *most_specific_header_mutations_wins
                && !(host.request_headers.is_empty() && host.response_headers.is_empty()),
            "precedence of the most specific header changes",
        );
        hosts.push(host);
    }
    Ok(RouteTable { name: name.clone(), virtual_hosts: hosts })
}

/// What a table says for all its virtual hosts.
struct Above<'a> {
    own: HeaderOps,
    own_response: HeaderOps,
    base: Overrides,
    mirrors: &'a [route::route_action::RequestMirrorPolicy],
}

#[allow(deprecated)]
fn virtual_host(
    (position, host): (usize, &route::VirtualHost),
    above: &Above<'_>,
    scope: &Scope<'_>,
    chain: &mut Subject<'_>,
) -> Result<VirtualHost, Undecodable> {
    let route::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters: _,
        rate_limits: _,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = host;
    chain.refuse_if(matcher.is_some(), "a tree of routes");
    chain.refuse_if(*require_tls != 0, "a virtual host that requires TLS");
    chain.refuse_if(cors.is_some(), "CORS outside of filter settings");
    chain.refuse_if(!route_specifiers.is_empty(), "a route specifier");
    chain.degrade_if(
        *include_request_attempt_count || *include_attempt_count_in_response,
        "the header with the number of tries",
    );
    chain.degrade_if(hedge_policy.is_some(), "hedging");
    chain.degrade_if(retry_policy_typed_config.is_some(), "a retry extension");
    chain.degrade_if(*include_is_timeout_retry_header, "the header of retries after time-outs");
    chain.degrade_if(
        per_request_buffer_limit_bytes.is_some() || request_body_buffer_limit.is_some(),
        "a bound of a route's own on what is kept for retries",
    );
    let own = headers_of(request_headers_to_add, request_headers_to_remove, chain);
    let own_response = headers_of(response_headers_to_add, response_headers_to_remove, chain);
    let base = match scope.filters.apply(typed_per_filter_config, &above.base) {
        Ok(base) => base,
        Err(problem) => {
            refuse(chain, problem)?;
            Overrides::default()
        }
    };
    let mirrors = match request_mirror_policies.as_slice() {
        [] => above.mirrors,
        own => own,
    };
    let defaults =
        Defaults { retry: retry_policy.as_ref(), mirrors, stream_idle: scope.stream_idle };
    let mut translated = Vec::with_capacity(routes.len());
    for (number, from) in routes.iter().enumerate() {
        let place = Place { position: (position, number), base: &base, defaults: &defaults };
        translated.push(self::route(from, &place, scope, chain)?);
    }
    Ok(VirtualHost {
        name: name.clone(),
        domains: domains.clone(),
        routes: translated,
        request_headers: merge(own, &above.own, chain),
        response_headers: merge(own_response, &above.own_response, chain),
    })
}

/// Envoy applies the virtual host's changes, then the table's; one list has no such order.
fn merge(own: HeaderOps, above: &HeaderOps, chain: &mut Subject<'_>) -> HeaderOps {
    if own.is_empty() {
        return above.clone();
    }
    chain.refuse_if(!above.is_empty(), "header changes of both a virtual host and its route table");
    own
}

fn headers_of(
    add: &[pb::envoy::config::core::v3::HeaderValueOption],
    remove: &[String],
    chain: &mut Subject<'_>,
) -> HeaderOps {
    headers::ops(add, remove).unwrap_or_else(|what| {
        chain.refuse(format!("header change: {what}"));
        HeaderOps::default()
    })
}

fn refuse(chain: &mut Subject<'_>, problem: Problem) -> Result<(), Undecodable> {
    match problem {
        Problem::Unsupported(what) => {
            chain.refuse(format!("{what} is not supported"));
            Ok(())
        }
        Problem::Undecodable(undecodable) => Err(undecodable),
    }
}

/// Where a route stands.
struct Place<'a> {
    position: (usize, usize),
    base: &'a Overrides,
    defaults: &'a Defaults<'a>,
}

#[allow(deprecated)]
fn route(
    from: &route::Route,
    place: &Place<'_>,
    scope: &Scope<'_>,
    chain: &mut Subject<'_>,
) -> Result<Route, Undecodable> {
    let route::Route {
        name,
        r#match,
        metadata: _,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing: _,
        per_request_buffer_limit_bytes,
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = from;
    let called = if name.is_empty() { "(unnamed)" } else { name.as_str() };
    chain.degrade_if(
        per_request_buffer_limit_bytes.is_some() || request_body_buffer_limit.is_some(),
        "a bound of a route's own on what is kept for retries",
    );
    let mut matches = conditions(r#match.as_ref());
    if scope.unread.matches.contains(&place.position) {
        matches.never.get_or_insert_with(|| "it has fields that are not known".to_owned());
    }
    if let Some(why) = &matches.never {
        chain.part("route", called, format!("matches nothing: {why}"));
    }
    let overrides = scope.filters.apply(typed_per_filter_config, place.base);
    let mut broken = None;
    let overrides = match overrides {
        Ok(overrides) => overrides,
        Err(Problem::Undecodable(undecodable)) => return Err(undecodable),
        Err(Problem::Unsupported(what)) => {
            broken.get_or_insert(what);
            Overrides::default()
        }
    };
    if scope.unread.routes.contains(&place.position) {
        broken.get_or_insert("fields that are not known".to_owned());
    }
    if !route_specifiers.is_empty() {
        broken.get_or_insert("a route specifier".to_owned());
    }
    let mut ops = |add, remove| {
        headers::ops(add, remove).unwrap_or_else(|what| {
            broken.get_or_insert(format!("header change: {what}"));
            HeaderOps::default()
        })
    };
    let request_headers = ops(request_headers_to_add, request_headers_to_remove);
    let response_headers = ops(response_headers_to_add, response_headers_to_remove);
    let mut translated = Route {
        name: name.clone(),
        matches,
        route: None,
        redirect: None,
        direct_response: None,
        request_headers,
        response_headers,
        fault: overrides.fault,
        cors: overrides.cors,
        decorator: decorator
            .as_ref()
            .filter(|decorator| decorator.propagate.is_none() || is_true(&decorator.propagate))
            .map(|decorator| decorator.operation.clone())
            .filter(|operation| !operation.is_empty()),
    };
    use route::route::Action;
    let mut degraded = BTreeSet::new();
    let done = match action {
        Some(Action::Route(action)) => {
            action::forward(action, place.defaults, scope.filters, &mut degraded)
                .map(|forward| translated.route = Some(Box::new(forward)))
        }
        Some(Action::Redirect(action)) => {
            action::redirect(action).map(|redirect| translated.redirect = Some(redirect))
        }
        Some(Action::DirectResponse(action)) => action::direct_response(action)
            .map(|response| translated.direct_response = Some(response)),
        Some(Action::FilterAction(_)) => Err("an action of a filter".to_owned()),
        Some(Action::NonForwardingAction(_)) => Err("an action that forwards nothing".to_owned()),
        None => Err("no action that is known".to_owned()),
    };
    for what in degraded {
        chain.degrade(format!("route `{called}`: {what}"));
    }
    if let Err(what) = done {
        broken.get_or_insert(what);
    }
    if let Some(what) = broken {
        let reason = format!("{what} is not supported");
        chain.part("route", called, format!("answers 503: {reason}"));
        let body = format!("route `{called}` cannot be honoured: {reason}");
        let Route { name, matches, .. } = translated;
        return Ok(unavailable(name, matches, body));
    }
    Ok(translated)
}

/// A route that answers 503 with a reason.
fn unavailable(name: String, matches: RouteMatch, body: String) -> Route {
    Route {
        name,
        matches,
        route: None,
        redirect: None,
        direct_response: Some(DirectResponse { status: 503, body }),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        fault: None,
        cors: None,
        decorator: None,
    }
}

/// When a route applies.
fn conditions(from: Option<&route::RouteMatch>) -> RouteMatch {
    let mut never = None;
    let everything = || PathMatch::Prefix("/".to_owned());
    let Some(from) = from else {
        return RouteMatch {
            path: everything(),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            never: Some("it has no conditions".to_owned()),
        };
    };
    let route::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = from;
    let mut refuse = |what: String| {
        never.get_or_insert(format!("{what} is not supported"));
    };
    let path = path(path_specifier.as_ref()).unwrap_or_else(|what| {
        refuse(what);
        everything()
    });
    for (present, what) in [
        (!cookies.is_empty(), "a condition on cookies"),
        (grpc.is_some(), "a condition on gRPC"),
        (tls_context.is_some(), "a condition on TLS"),
        (!dynamic_metadata.is_empty(), "a condition on dynamic metadata (JWT claims)"),
        (!filter_state.is_empty(), "a condition on filter state"),
    ] {
        if present {
            refuse(what.to_owned());
        }
    }
    let share = runtime_fraction.as_ref().map(|fraction| {
        // Envoy: without a default nothing would be left to chance, and nothing matches.
        fraction.default_value.as_ref().map_or(0.0, percent)
    });
    if share.is_some_and(|share| share < 100.0) {
        refuse("a share of the requests".to_owned());
    }
    let mut translated = Vec::with_capacity(headers.len());
    for matcher in headers {
        match headers::header(matcher) {
            Ok(matcher) => translated.push(matcher),
            Err(what) => refuse(what),
        }
    }
    let mut query = Vec::with_capacity(query_parameters.len());
    for matcher in query_parameters {
        match query_parameter(matcher) {
            Ok(matcher) => query.push(matcher),
            Err(what) => refuse(what),
        }
    }
    RouteMatch {
        path,
        case_sensitive: case_sensitive.as_ref().is_none_or(|asked| asked.value),
        headers: translated,
        query,
        never,
    }
}

fn path(from: Option<&PathSpecifier>) -> Result<PathMatch, String> {
    let text = |text: &String, kind: fn(String) -> PathMatch| match text {
        text if text.contains(['?', '#']) || text.len() > MAX_PATH => {
            Err(format!("the path `{text}`"))
        }
        text => Ok(kind(text.clone())),
    };
    match from {
        Some(PathSpecifier::Path(path)) => text(path, PathMatch::Exact),
        Some(PathSpecifier::Prefix(prefix)) => text(prefix, PathMatch::Prefix),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => match prefix.as_str() {
            "" => Err("an empty separated prefix".to_owned()),
            prefix if prefix.ends_with('/') => Err(format!("the separated prefix `{prefix}`")),
            _ => text(prefix, PathMatch::PathSeparatedPrefix),
        },
        Some(PathSpecifier::SafeRegex(regex)) if regex.regex.is_empty() => {
            Err("an empty path pattern".to_owned())
        }
        Some(PathSpecifier::SafeRegex(regex)) => Ok(PathMatch::Regex(regex.regex.clone())),
        Some(PathSpecifier::ConnectMatcher(_)) => Err("CONNECT inside a tunnel".to_owned()),
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            Err(format!("the path matcher `{}`", policy.name))
        }
        None => Err("a path condition that is not known".to_owned()),
    }
}

fn query_parameter(from: &route::QueryParameterMatcher) -> Result<QueryMatch, String> {
    let route::QueryParameterMatcher { name, query_parameter_match_specifier } = from;
    if name.is_empty() {
        return Err("a query parameter without a name".to_owned());
    }
    let value = match query_parameter_match_specifier {
        None => ValueMatch::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => ValueMatch::Present(*present),
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            headers::value(headers::exact_case(matcher)?)
        }
    };
    Ok(QueryMatch { name: name.clone(), value })
}
