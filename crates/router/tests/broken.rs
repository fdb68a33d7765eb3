//! What cannot be honoured fails alone, and says why.
#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_router::compile::Compiler;
use cairn_router::destination::Destination;
use cairn_router::request::RequestView;
use cairn_router::spec::{CircuitBreakers, Resources};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use std::sync::Arc;

fn resources(value: Value) -> Resources {
    serde_json::from_value(value).unwrap()
}

fn http() -> Value {
    let route = json!({"match": {"path": {"prefix": "/"}}, "direct_response": {"status": 200}});
    json!({"routes": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}})
}

fn tcp() -> Value {
    json!({"clusters": [{"name": "app"}]})
}

fn destination(http: Option<Value>, tcp: Option<Value>) -> Value {
    let mut destination = json!({"name": "d", "hosts": ["d"], "port": 80});
    if let Some(http) = http {
        destination["http"] = http;
    }
    if let Some(tcp) = tcp {
        destination["tcp"] = tcp;
    }
    destination
}

/// Compiled without regard to errors, and the warnings.
fn lossy(destination: Value) -> (Arc<Destination>, Vec<String>) {
    let all = resources(json!({"destinations": [destination], "clusters": [{"name": "app"}]}));
    let mesh = Compiler::new("mesh").compile_lossy(&all);
    (Arc::clone(mesh.destinations().next().unwrap()), mesh.warnings().to_vec())
}

fn reasons(destination: &Destination) -> (Option<&str>, Option<&str>, Option<&str>) {
    (
        destination.http.as_ref().and_then(|chain| chain.broken.as_deref()),
        destination.tcp.as_ref().and_then(|chain| chain.broken.as_deref()),
        destination.refusal().map(AsRef::as_ref),
    )
}

#[test]
fn a_broken_chain_needs_nothing_else() {
    let empty =
        json!({"routes": {"virtual_hosts": []}, "server": "\n", "broken": "no such filter"});
    let none = json!({"clusters": [], "broken": "no such proxy"});
    let all = resources(json!({
        "destinations": [destination(Some(empty.clone()), Some(none.clone()))],
    }));
    let mesh = Compiler::new("mesh").compile(&all).unwrap();
    let both = mesh.destinations().next().unwrap();
    assert_eq!(reasons(both), (Some("no such filter"), Some("no such proxy"), None));
    assert_eq!(both.broken.as_deref(), Some("no such filter"));
    assert_eq!(
        mesh.warnings(),
        [
            "destinations[0].http: cannot be honoured, so requests get 503: no such filter",
            "destinations[0].tcp: cannot be honoured, so connections are refused: no such proxy",
        ]
    );
    let (only_tcp, _) = lossy(destination(None, Some(none)));
    assert_eq!(reasons(&only_tcp), (None, Some("no such proxy"), Some("no such proxy")));
    let (http_and_tcp, _) = lossy(destination(Some(empty), Some(tcp())));
    assert_eq!(reasons(&http_and_tcp), (Some("no such filter"), None, None));
    assert!(http_and_tcp.tcp.as_ref().unwrap().pick_cluster(0).is_some());
}

#[test]
fn an_error_breaks_its_chain_alone() {
    let mut bad = http();
    bad["filters"] = json!([{"rbac": {"policies": {"p": {
        "permissions": [{"path": {"regex": "("}}], "principals": ["any"]}}}}]);
    let (http_is_bad, warnings) = lossy(destination(Some(bad), Some(tcp())));
    let reason =
        "http.filters[0].rbac.policies[\"p\"].permissions[0].path.regex: `(` has a `(` without `)`";
    assert_eq!(reasons(&http_is_bad), (Some(reason), None, None));
    assert_eq!(warnings, [format!("destinations[0].{reason}")]);

    let (tcp_is_bad, _) = lossy(destination(Some(http()), Some(json!({"clusters": []}))));
    let reason = "tcp.clusters: need one with a weight of 1 or more";
    assert_eq!(reasons(&tcp_is_bad), (None, Some(reason), None));
    assert_eq!(tcp_is_bad.broken.as_deref(), Some(reason));
}

#[test]
fn an_error_in_the_connections_policies_breaks_all_chains() {
    let mut bad = destination(Some(http()), Some(tcp()));
    bad["connection"] = json!({"rbac": [{"policies": {"p": {
        "permissions": ["any"], "principals": [{"or": []}]}}}]});
    let (bad, _) = lossy(bad);
    let reason = "connection.rbac[0].policies[\"p\"].principals[0].or: is empty; at least one condition is needed";
    assert_eq!(reasons(&bad), (Some(reason), Some(reason), None));
    let (nothing, _) = lossy(destination(None, None));
    let reason = "needs `http` or `tcp`: nothing could be done with its bytes";
    assert_eq!(reasons(&nothing), (None, None, Some(reason)));
}

#[test]
fn a_route_that_is_not_understood_never_matches() {
    let response = |status: u16| json!({"status": status});
    let never = json!({"path": {"prefix": "/"}, "never": "metadata is not known"});
    let routes = json!([
        {"match": never},
        {"match": {"path": {"exact": "/x"}}, "direct_response": response(201)},
        {"match": {"path": {"regex": "("}, "never": "nor this"}},
        {"match": {"path": {"prefix": "/"}}, "direct_response": response(202)},
    ]);
    let mut chain = http();
    chain["routes"]["virtual_hosts"][0]["routes"] = routes;
    let (destination, warnings) = lossy(destination(Some(chain), None));
    let place = "destinations[0].http.routes.virtual_hosts[0].routes";
    assert_eq!(
        warnings,
        [
            format!("{place}[0].match: never matches: metadata is not known"),
            format!("{place}[2].match: never matches: nor this"),
        ]
    );
    let headers = HeaderMap::new();
    let status = |path: &str| {
        let request = RequestView {
            method: &Method::GET,
            authority: "d",
            path,
            query: None,
            scheme: "http",
            headers: &headers,
        };
        let chain = destination.http.as_ref().unwrap();
        let found = chain.routes.find(&request).unwrap();
        match &found.route.action {
            cairn_router::route::RouteAction::DirectResponse(direct) => direct.status.as_u16(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((status("/x"), status("/")), (201, 202));
}

#[test]
fn a_broken_cluster_is_there() {
    let all = resources(json!({
        "clusters": [
            {"name": "broken", "broken": "no such transport socket"},
            {"name": "plain", "circuit_breakers": {"max_retries": 4294967295_u32}},
            {"name": "bounded", "circuit_breakers": {"max_requests": 7, "max_retries": 4294967295_u32}},
        ],
    }));
    let mut compiler = Compiler::new("mesh");
    let mesh = compiler.compile(&all).unwrap();
    let broken = mesh.cluster("broken").unwrap();
    assert_eq!(broken.broken.as_deref(), Some("no such transport socket"));
    let warning = "clusters[0]: cannot be honoured, so requests get 503: no such transport socket";
    assert_eq!(mesh.warnings(), [warning]);
    assert_eq!(mesh.cluster("plain").unwrap().circuit_breakers, None);
    let bounded = mesh.cluster("bounded").unwrap();
    let expected = CircuitBreakers { max_requests: Some(7), ..CircuitBreakers::default() };
    assert_eq!(bounded.circuit_breakers, Some(expected));
    // Other bounds, the same state: what is under way stays counted.
    let mut changed = all.clone();
    Arc::make_mut(&mut changed.clusters[2]).circuit_breakers.max_requests = Some(8);
    let after = compiler.compile(&changed).unwrap();
    assert!(Arc::ptr_eq(&bounded.state, &after.cluster("bounded").unwrap().state));
    assert_eq!(after.warnings(), [warning], "said again without being compiled again");
}

#[test]
fn endpoints_without_identity_are_remembered() {
    let all = resources(json!({
        "clusters": [{"name": "app"}],
        "endpoints": [{"cluster": "app", "endpoints": [
            {"address": "10.0.0.1:80"},
            {"address": "10.0.0.2:80", "health": "unhealthy"},
            {"address": "10.0.0.3:80", "identities": ["spiffe://td/ns/a/sa/b"]},
            {"address": "10.0.0.4:80", "transport": "plain"},
        ]}],
    }));
    let mesh = Compiler::new("mesh").compile(&all).unwrap();
    let endpoints = &mesh.cluster("app").unwrap().endpoints;
    assert_eq!(endpoints.unidentified(), ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(endpoints.candidates().len(), 2);
}
