#![allow(clippy::unwrap_used)]
use super::*;
use crate::format::{FormatContext, Peer};
use crate::request::RequestView;
use http::{HeaderMap, HeaderValue, Method, Version};
use std::time::Duration;

fn with<T>(check: impl FnOnce(&Facts<'_>) -> T) -> T {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("one"));
    headers.insert("content-length", HeaderValue::from_static("12"));
    headers.insert("user-agent", HeaderValue::from_static("curl/8"));
    let mut response = HeaderMap::new();
    response.insert("x-r", HeaderValue::from_static("resp"));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("5"));
    let request = RequestView {
        method: &Method::GET,
        authority: "app:80",
        path: "/p/q",
        query: Some("q=1"),
        scheme: "http",
        headers: &headers,
    };
    let peer = Peer { workload: "web-v1", namespace: "shop", ..Peer::default() };
    let metadata = [("envoy.filters.http.rbac", "shadow_engine_result", "denied")];
    let context = FormatContext {
        protocol: Some(Version::HTTP_2),
        duration: Some(Duration::from_millis(1500)),
        downstream_remote: "10.0.0.1:1234".parse().ok(),
        peer_uri_san: Some("spiffe://td/ns/a/sa/b"),
        upstream_cluster: Some("c"),
        route_name: Some("default"),
        response_code: Some(503),
        response_flags: Some("UF,URX"),
        grpc_status: Some(5),
        bytes_sent: Some(7),
        source: Some(peer),
        metadata: &metadata,
        trailers: Some(&trailers),
        ..FormatContext::default()
    };
    check(&Facts { context: &context, request: Some(&request), response: Some(&response) })
}

fn text(expression: &str) -> Option<String> {
    let compiled = Expression::compile(expression).unwrap();
    with(|facts| compiled.text(facts).map(Cow::into_owned))
}

fn is_true(expression: &str) -> bool {
    let compiled = Expression::compile(expression).unwrap();
    with(|facts| compiled.is_true(facts))
}

#[test]
fn attributes_as_text() {
    for (expression, expected) in [
        ("request.host", Some("app:80")),
        ("request['host']", Some("app:80")),
        (" request.method ", Some("GET")),
        ("request.path", Some("/p/q?q=1")),
        ("request.url_path", Some("/p/q")),
        ("request.query", Some("q=1")),
        ("request.protocol", Some("HTTP/2")),
        ("request.size", Some("12")),
        ("request.duration", Some("1.5s")),
        ("request.useragent", Some("curl/8")),
        ("request.headers['x-a']", Some("one")),
        ("request.headers[\"X-A\"]", Some("one")),
        ("request.headers['x-b']", None),
        ("request.referer", None),
        ("response.headers['x-r']", Some("resp")),
        ("response.trailers['grpc-status']", Some("5")),
        ("response.code", Some("503")),
        ("response.flags", Some("32800")),
        ("response.grpc_status", Some("5")),
        ("connection.mtls", Some("true")),
        ("connection.uri_san_peer_certificate", Some("spiffe://td/ns/a/sa/b")),
        ("source.address", Some("10.0.0.1:1234")),
        ("source.port", Some("1234")),
        ("upstream.address", None),
        ("xds.route_name", Some("default")),
        ("xds.cluster_name", Some("c")),
        ("filter_state.downstream_peer.namespace", Some("shop")),
        ("filter_state['downstream_peer'].workload", Some("web-v1")),
        ("filter_state.downstream_peer.cluster", None),
        ("filter_state.upstream_peer.namespace", None),
        ("filter_state['io.istio.peer_principal']", Some("spiffe://td/ns/a/sa/b")),
        (
            "metadata.filter_metadata['envoy.filters.http.rbac']['shadow_engine_result']",
            Some("denied"),
        ),
        ("metadata.filter_metadata['other']['x']", None),
        ("'constant'", Some("constant")),
        ("1 + 2", Some("3")),
        ("response.code >= 500 ? 'bad' : 'good'", Some("bad")),
        ("request.nothing", None),
        ("nothing", None),
        ("nothing.at.all", None),
        ("size(request.host)", Some("6")),
    ] {
        assert_eq!(text(expression).as_deref(), expected, "{expression}");
    }
}

#[test]
fn conditions() {
    for (expression, expected) in [
        ("true", true),
        ("connection.mtls", true),
        ("response.code >= 400", true),
        ("response.code >= 400 && response.code < 500", false),
        ("request.headers['x-a'] == 'one'", true),
        ("request.headers['x-b'] == 'one'", false),
        // An error, which is absorbed.
        ("request.headers['x-b'] == 'one' || response.code == 503", true),
        ("'x-a' in request.headers", true),
        ("'x-b' in request.headers", false),
        ("!('x-b' in request.headers)", true),
        ("has(request.headers.x) || true", true),
        ("has(request.referer)", false),
        ("has(request.method) && request.method == 'GET'", true),
        ("request.url_path.startsWith('/p')", true),
        ("request.url_path.endsWith('q') && request.host.contains('app')", true),
        ("request.url_path.matches('^/p/.$')", true),
        ("matches(request.host, '^a+:')", false),
        ("request.method in ['GET', 'HEAD']", true),
        ("request.duration > duration('1s')", true),
        ("request.duration > duration('1m')", false),
        ("filter_state.downstream_peer.namespace != 'shop'", false),
        ("response.code", false),
        ("response.code == '503'", false),
        ("1 / 0 == 1", false),
        ("unknown_word", false),
        ("request.unknown == ''", false),
    ] {
        assert_eq!(is_true(expression), expected, "{expression}");
    }
}

#[test]
fn refused_with_a_reason() {
    for (expression, reason) in [
        ("", "is no CEL"),
        ("request.host ==", "is no CEL"),
        ("[1, 2].exists(x, x == 1)", "`all`, `exists`, `map` and `filter` are not allowed"),
        ("{'a': 1}", "maps and messages"),
        ("unknown(1)", "`unknown` is not known"),
        ("request.host.matches(request.path)", "`matches` takes a constant"),
        ("request.host.matches('(')", ""),
        ("duration(request.host) == 1", "`duration` takes a constant"),
        ("timestamp('2020-01-01T00:00:00Z') < request.time", "`timestamp` is not known"),
    ] {
        let error = Expression::compile(expression).unwrap_err();
        assert!(error.contains(reason), "{expression}: {error}");
    }
}

#[test]
fn unknown_attributes_are_named() {
    let unknown = |text: &str| {
        let compiled = Expression::compile(text).unwrap();
        compiled.unknown().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(unknown("request.nope"), ["request.nope"]);
    assert_eq!(unknown("connection.id == 1u && response.code == 1"), ["connection.id"]);
    assert!(unknown("request.headers['anything'] == ''").is_empty());
}

#[test]
fn hostile_texts_are_refused_or_compiled() {
    for (begin, middle, end) in [
        ("(", "1", ")"),
        ("[", "", "]"),
        ("!", "true", ""),
        ("-", "1", ""),
        ("a.", "a", ""),
        ("a + ", "a", ""),
        ("a ? b : ", "a", ""),
        ("a || ", "a", ""),
        ("a && b || ", "a", ""),
        ("size(", "a", ")"),
        ("a[", "0", "]"),
        ("'", "", ""),
        ("`", "", ""),
        ("{", "", "}"),
    ] {
        for count in [10, 90, 300, 1300, 5000] {
            let text = format!("{}{middle}{}", begin.repeat(count), end.repeat(count));
            if let Ok(compiled) = Expression::compile(&text) {
                with(|facts| compiled.is_true(facts));
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn any_text(text in ".{0,64}") {
        if let Ok(compiled) = Expression::compile(&text) {
            with(|facts| compiled.text(facts).map(Cow::into_owned));
        }
    }

    #[test]
    fn any_tokens(tokens in proptest::collection::vec(proptest::sample::select(vec![
        "request", ".host", ".headers", "['x-a']", "==", "!=", "'x'", "(", ")", "[", "]", "||", "&&",
        "!", "1", "1u", "2.5", "in", "size", ".matches('a')", "?", ":", "null", "has", "+", "-", "/", "%",
        "duration('1s')", "response.code", ",", "'", "\\", "int", "string", "dyn", "type",
    ]), 0..24)) {
        if let Ok(compiled) = Expression::compile(&tokens.join(" ")) {
            with(|facts| compiled.text(facts).map(Cow::into_owned));
        }
    }
}
