#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::path;
use crate::spec::{Permission as P, Principal as Q, StringMatch};
use http::{HeaderMap, Method};
use std::net::SocketAddr;

mod undecidable;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn rbac(action: spec::Action, policies: &[(&str, P, Q)]) -> CompiledRbac {
    let policies = policies.iter().map(|(name, permission, principal)| {
        let policy = spec::Policy {
            permissions: vec![permission.clone()],
            principals: vec![principal.clone()],
        };
        ((*name).to_owned(), policy)
    });
    compile(&spec::Rbac { action, policies: policies.collect() })
}

fn compile(rbac: &spec::Rbac) -> CompiledRbac {
    let mut at = Context::new();
    let compiled = CompiledRbac::compile(rbac, &mut at);
    assert_eq!(at.into_errors(), []);
    compiled.unwrap()
}

fn connection(peer_id: Option<&str>) -> ConnectionView<'_> {
    ConnectionView {
        peer_id,
        source: SocketAddr::from(([10, 1, 2, 3], 40000)),
        destination: Some(SocketAddr::from(([10, 96, 0, 7], 80))),
        port: 80,
    }
}

fn request<'a>(method: &'a Method, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    let (path, query) = path::split(path);
    RequestView { method, authority: "App.Shop:80", path, query, scheme: "http", headers }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.to_owned())
}

fn net(text: &str) -> spec::CidrRange {
    text.to_owned().try_into().unwrap()
}

fn header(name: &str, value: &str) -> spec::HeaderMatch {
    spec::HeaderMatch {
        name: name.to_owned(),
        value: spec::ValueMatch::Exact(value.to_owned()),
        invert: false,
        treat_missing_as_empty: false,
        ignore_case: false,
    }
}

/// `GET /admin/x?q=1` with `x-role: user` and `x-role: admin`, from `WEB`.
fn permitted(permission: P) -> bool {
    let mut headers = HeaderMap::new();
    headers.append("x-role", "user".parse().unwrap());
    headers.append("x-role", "admin".parse().unwrap());
    let filter = rbac(spec::Action::Allow, &[("p", permission, Q::Any)]);
    !filter
        .check_request(&connection(Some(WEB)), &request(&Method::GET, "/admin/x?q=1", &headers))
        .is_denied()
}

fn is_principal(principal: Q, peer_id: Option<&str>) -> bool {
    let filter = rbac(spec::Action::Allow, &[("p", P::Any, principal)]);
    !filter.check_connection(&connection(peer_id)).is_denied()
}

#[test]
fn permissions() {
    let not = |permission| P::Not(Box::new(permission));
    for (permission, expected) in [
        (P::Any, true),
        (P::Path(exact("/admin/x")), true),
        (P::Path(exact("/admin/x?q=1")), false),
        (P::Path(prefix("/admin/")), true),
        (P::Path(StringMatch::Suffix("/x".into())), true),
        (P::Path(StringMatch::Regex("/a.*/x".into())), true),
        (P::Path(StringMatch::Regex("/a".into())), false),
        (P::Path(prefix("/Admin")), false),
        (P::Method(exact("GET")), true),
        (P::Method(exact("get")), false),
        (P::Host(exact("app.shop:80")), true),
        (P::Host(prefix("APP.")), true),
        (P::Host(exact("app.shop")), false),
        (P::Header(header("x-role", "admin")), true),
        (P::Header(header("x-role", "user,admin")), false),
        (P::Header(header("x-none", "")), false),
        (P::DestinationPort(80), true),
        (P::DestinationPort(81), false),
        (P::DestinationIp(net("10.96.0.0/16")), true),
        (P::DestinationIp(net("10.97.0.0/16")), false),
        (P::DestinationPortRange { start: 80, end: 81 }, true),
        (P::DestinationPortRange { start: 81, end: 65536 }, false),
        (P::DestinationPortRange { start: 1, end: 80 }, false),
        (P::DestinationPortRange { start: 90, end: 70 }, false),
        (P::PathTemplate("/admin/*".into()), true),
        (P::PathTemplate("/*/x".into()), true),
        (P::PathTemplate("/**".into()), true),
        (P::PathTemplate("/*".into()), false),
        (P::PathTemplate("/admin/x/*".into()), false),
        (not(P::DestinationPort(80)), false),
        (not(P::Path(exact("/y"))), true),
        (P::And(vec![P::Any, P::Method(exact("GET"))]), true),
        (P::And(vec![P::Any, P::Method(exact("PUT"))]), false),
        (P::Or(vec![P::Method(exact("PUT")), P::DestinationPort(80)]), true),
        (P::Or(vec![P::Method(exact("PUT")), not(P::Any)]), false),
    ] {
        assert_eq!(permitted(permission.clone()), expected, "{permission:?}");
    }
}

#[test]
fn principals() {
    let not = |principal| Q::Not(Box::new(principal));
    let ns = || StringMatch::Regex(".*/ns/shop/.*".into());
    for (principal, peer, expected) in [
        (Q::Any, None, true),
        (Q::Authenticated(exact(WEB)), Some(WEB), true),
        (Q::Authenticated(exact(WEB)), None, false),
        (not(Q::Authenticated(exact(WEB))), None, true),
        (Q::Authenticated(prefix("spiffe://cluster.local/")), Some(WEB), true),
        (Q::Authenticated(StringMatch::Suffix("/sa/web".into())), Some(WEB), true),
        (Q::Authenticated(StringMatch::Regex(".+".into())), Some(WEB), true),
        (Q::Authenticated(StringMatch::Regex(".+".into())), None, false),
        (Q::Authenticated(ns()), Some("spiffe://td/ns/other/sa/a"), false),
        (Q::SourceIp(net("10.1.0.0/16")), None, true),
        (Q::SourceIp(net("10.1.2.4")), None, false),
        (Q::RemoteIp(net("10.1.2.3")), None, true),
        (not(Q::RemoteIp(net("10.1.2.3"))), None, false),
        (Q::And(vec![Q::Authenticated(ns()), Q::SourceIp(net("10.0.0.0/8"))]), Some(WEB), true),
        (Q::And(vec![Q::Authenticated(ns()), Q::SourceIp(net("11.0.0.0/8"))]), Some(WEB), false),
        (Q::Or(vec![Q::Authenticated(ns()), Q::SourceIp(net("10.0.0.0/8"))]), None, true),
    ] {
        assert_eq!(is_principal(principal.clone(), peer), expected, "{principal:?} {peer:?}");
    }
}

#[test]
fn the_remote_address_is_the_last_forwarded_one() {
    let from = |principal: Q, values: &[&str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let filter = rbac(spec::Action::Allow, &[("p", P::Any, principal)]);
        let view = request(&Method::GET, "/", &headers);
        !filter.check_request(&connection(None), &view).is_denied()
    };
    let remote = |text| Q::RemoteIp(net(text));
    for (principal, values, expected) in [
        (remote("192.0.2.1"), &["192.0.2.1"][..], true),
        (remote("192.0.2.1"), &["192.0.2.1, 192.0.2.9"], false),
        (remote("192.0.2.9"), &["192.0.2.1,192.0.2.9 "], true),
        (remote("192.0.2.9"), &["192.0.2.1", "192.0.2.9"], true),
        (remote("192.0.2.9"), &["::ffff:192.0.2.9"], true),
        (remote("2001:db8::/32"), &["2001:db8::1"], true),
        (remote("10.1.2.3"), &[], true),
        (remote("10.1.2.3"), &["192.0.2.1"], false),
        (remote("10.1.2.3"), &["unknown"], true),
        (remote("192.0.2.1"), &["192.0.2.1, unknown"], false),
        (Q::SourceIp(net("10.1.2.3")), &["192.0.2.1"], true),
        (Q::SourceIp(net("192.0.2.1")), &["192.0.2.1"], false),
    ] {
        assert_eq!(from(principal.clone(), values), expected, "{principal:?} {values:?}");
    }
}

#[test]
fn a_principal_can_be_a_path() {
    let headers = HeaderMap::new();
    let filter = rbac(spec::Action::Allow, &[("p", P::Any, Q::Path(prefix("/a")))]);
    let peer = connection(None);
    assert!(!filter.check_request(&peer, &request(&Method::GET, "/a?b", &headers)).is_denied());
    assert!(filter.check_request(&peer, &request(&Method::GET, "/b?/a", &headers)).is_denied());
    assert!(filter.check_connection(&peer).is_denied());
}

#[test]
fn an_ipv4_peer_on_an_ipv6_socket() {
    let filter = rbac(spec::Action::Allow, &[("p", P::Any, Q::SourceIp(net("10.1.0.0/16")))]);
    let mut connection = connection(None);
    connection.source = "[::ffff:10.1.2.3]:1".parse().unwrap();
    assert_eq!(filter.check_connection(&connection), Verdict::Allowed);
}

#[test]
fn a_host_has_no_address() {
    let filter = rbac(spec::Action::Allow, &[("p", P::DestinationIp(net("0.0.0.0/0")), Q::Any)]);
    let mut connection = connection(None);
    connection.destination = None;
    assert!(filter.check_connection(&connection).is_denied());
}

#[test]
fn actions_and_names() {
    let headers = HeaderMap::new();
    let get = request(&Method::GET, "/", &headers);
    let put = request(&Method::PUT, "/", &headers);
    let peer = connection(Some(WEB));
    let policies = [
        ("b get", P::Method(exact("GET")), Q::Any),
        ("a delete", P::Method(exact("DELETE")), Q::Any),
        ("c get", P::Method(exact("GET")), Q::Any),
    ];
    let name: Arc<str> = "b get".into();

    let allow = rbac(spec::Action::Allow, &policies);
    assert_eq!(allow.check_request(&peer, &get), Verdict::Allowed);
    let denied = allow.check_request(&peer, &put);
    assert_eq!(denied, Verdict::Denied { policy: None });
    assert_eq!(denied.details().unwrap(), "rbac_access_denied_matched_policy[none]");

    let deny = rbac(spec::Action::Deny, &policies);
    let denied = deny.check_request(&peer, &get);
    assert_eq!(denied, Verdict::Denied { policy: Some(&name) });
    assert_eq!(denied.details().unwrap(), "rbac_access_denied_matched_policy[b_get]");
    assert_eq!(deny.check_request(&peer, &put), Verdict::Allowed);

    let log = rbac(spec::Action::Log, &policies);
    let logged = log.check_request(&peer, &get);
    assert_eq!(logged, Verdict::Logged { policy: &name });
    assert!(!logged.is_denied() && logged.details().is_none());
    assert_eq!(log.check_request(&peer, &put), Verdict::Allowed);
    assert_eq!(log.action(), spec::Action::Log);
}

#[test]
fn no_policies() {
    let peer = connection(Some(WEB));
    let verdict = |action| rbac(action, &[]).check_connection(&peer).is_denied();
    assert!(verdict(spec::Action::Allow));
    assert!(!verdict(spec::Action::Deny));
    assert!(!verdict(spec::Action::Log));
}

#[test]
fn empty_lists_match_nothing() {
    let policy = spec::Policy { permissions: vec![], principals: vec![Q::Any] };
    let policies = [("p".to_owned(), policy)].into_iter().collect();
    let allow = compile(&spec::Rbac { action: spec::Action::Allow, policies });
    assert!(allow.check_connection(&connection(Some(WEB))).is_denied());
}

#[test]
fn http_conditions_on_a_connection_fail_closed() {
    let http = || {
        [
            P::Path(prefix("/")),
            P::Method(exact("GET")),
            P::Host(exact("a")),
            P::Header(header("x", "y")),
            P::Not(Box::new(P::Path(exact("/secret")))),
            P::Or(vec![P::Path(exact("/a")), P::DestinationPort(81)]),
            P::And(vec![P::Path(exact("/a")), P::DestinationPort(80)]),
        ]
    };
    let peer = connection(Some(WEB));
    for permission in http() {
        for action in [spec::Action::Allow, spec::Action::Deny] {
            let filter = rbac(action, &[("p", permission.clone(), Q::Any)]);
            assert!(filter.check_connection(&peer).is_denied(), "{action:?} {permission:?}");
        }
        let log = rbac(spec::Action::Log, &[("p", permission, Q::Any)]);
        assert_eq!(log.check_connection(&peer), Verdict::Allowed);
    }
    let not_header = Q::Not(Box::new(Q::Header(header("x", "y"))));
    let allow = rbac(spec::Action::Allow, &[("p", P::Any, not_header)]);
    assert!(allow.check_connection(&peer).is_denied());
    let certain = [
        (P::Or(vec![P::Path(exact("/a")), P::DestinationPort(80)]), true),
        (P::And(vec![P::Path(exact("/a")), P::DestinationPort(81)]), false),
    ];
    for (permission, matches) in certain {
        let allow = rbac(spec::Action::Allow, &[("p", permission.clone(), Q::Any)]);
        assert_eq!(!allow.check_connection(&peer).is_denied(), matches, "{permission:?}");
        let deny = rbac(spec::Action::Deny, &[("p", permission.clone(), Q::Any)]);
        assert_eq!(deny.check_connection(&peer).is_denied(), matches, "{permission:?}");
    }
}

#[test]
fn errors() {
    let mut deep = P::Any;
    for _ in 0..MAX_DEPTH {
        deep = P::Not(Box::new(deep));
    }
    let policies = [(
        "ns[shop]-policy[x]".to_owned(),
        spec::Policy {
            permissions: vec![
                P::And(vec![P::Any, P::Not(Box::new(P::Path(StringMatch::Regex("(".into()))))]),
                P::Or(vec![]),
                deep,
            ],
            principals: vec![Q::Header(header(":x", "")), Q::Authenticated(prefix(""))],
        },
    )];
    let mut at = Context::new();
    let filter =
        spec::Rbac { action: spec::Action::Allow, policies: policies.into_iter().collect() };
    assert!(CompiledRbac::compile(&filter, &mut at).is_none());
    let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
    let root = r#"policies["ns[shop]-policy[x]"]"#;
    let not = ".not".repeat(MAX_DEPTH);
    assert_eq!(
        errors,
        [
            format!("{root}.permissions[0].and[1].not.path.regex: `(` has a `(` without `)`"),
            format!("{root}.permissions[1].or: is empty; at least one condition is needed"),
            format!("{root}.permissions[2]{not}: is nested deeper than 64 levels"),
            format!(
                "{root}.principals[0].header.name: `:x` is not known; there are `:method`, \
                 `:authority`, `:path` and `:scheme`"
            ),
            format!(
                "{root}.principals[1].authenticated.prefix: is empty, and would match everything"
            ),
        ]
    );
}

#[test]
fn what_is_normalised_cannot_slip_by() {
    let deny = rbac(spec::Action::Deny, &[("p", P::Path(prefix("/admin")), Q::Any)]);
    let headers = HeaderMap::new();
    for raw in ["/admin", "/x/../admin/y", "/%61dmin", "/.\\admin", "/x/%2e%2e/admin", "/%2e/admin"]
    {
        let normal = path::normalize(raw, false).unwrap();
        let view = request(&Method::GET, &normal, &headers);
        assert!(deny.check_request(&connection(Some(WEB)), &view).is_denied(), "{raw}");
    }
}
