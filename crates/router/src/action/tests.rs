#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::route::{RouteAction, RouteTable};
use crate::spec::{HeaderOps, PathMatch};
use http::{HeaderMap, Method};

fn route(path: PathMatch, forward: spec::Forward) -> spec::Route {
    spec::Route {
        name: String::new(),
        matches: spec::RouteMatch {
            path,
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            never: None,
        },
        route: Some(Box::new(forward)),
        redirect: None,
        direct_response: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        fault: None,
        cors: None,
        decorator: None,
    }
}

fn compile(route: spec::Route) -> Arc<Route> {
    let table = spec::RouteTable {
        name: String::new(),
        virtual_hosts: vec![spec::VirtualHost {
            name: "v".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
        }],
    };
    let mut at = Context::new();
    let table = RouteTable::compile(&table, &mut at);
    assert_eq!(at.into_errors(), []);
    table.unwrap().virtual_hosts()[0].routes()[0].clone()
}

fn errors<S, T>(spec: &S, compile: impl FnOnce(&S, &mut Context) -> Option<T>) -> Vec<String> {
    let mut at = Context::new();
    assert!(compile(spec, &mut at).is_none());
    at.into_errors().iter().map(ToString::to_string).collect()
}

fn to(cluster: &str) -> spec::Forward {
    spec::Forward { cluster: Some(cluster.to_owned()), ..spec::Forward::default() }
}

fn forward(spec: &spec::Forward) -> Forward {
    let mut at = Context::new();
    let forward = Forward::compile(spec, &mut at);
    assert_eq!(at.into_errors(), []);
    forward.unwrap()
}

fn rewritten(path: PathMatch, spec: spec::Forward, from: &str) -> Option<String> {
    let route = compile(route(path, spec));
    let RouteAction::Forward(forward) = &route.action else { panic!("not forwarded") };
    forward.rewrite_path(&route, from)
}

#[test]
fn prefix_rewrites() {
    let exact = |text: &str| PathMatch::Exact(text.into());
    let prefix = |text: &str| PathMatch::Prefix(text.into());
    let separated = |text: &str| PathMatch::PathSeparatedPrefix(text.into());
    for (path, rewrite, from, expected) in [
        (prefix("/api"), "/v2", "/api/x?q=1", "/v2/x?q=1"),
        (prefix("/api/"), "/", "/api/x", "/x"),
        (prefix("/api"), "/", "/api/x", "//x"),
        (prefix("/api"), "/", "/api", "/"),
        (prefix("/"), "/app/", "/x?y", "/app/x?y"),
        (exact("/a"), "/b", "/a?q=/a", "/b?q=/a"),
        (separated("/a"), "/b/c", "/a/d", "/b/c/d"),
        (separated("/a"), "/b/c", "/a", "/b/c"),
        (PathMatch::Regex("/a.*".into()), "/b", "/a/d/e?q", "/b?q"),
    ] {
        let spec = spec::Forward { prefix_rewrite: Some(rewrite.into()), ..to("c") };
        let label = format!("{path:?} {rewrite} {from}");
        assert_eq!(rewritten(path, spec, from).as_deref(), Some(expected), "{label}");
    }
    assert_eq!(rewritten(prefix("/"), to("c"), "/x"), None);
}

#[test]
fn regex_rewrites() {
    for (pattern, substitution, from, expected) in [
        ("^/rx/(.*)$", r"/\1", "/rx/a/b?q=/rx/", "/a/b?q=/rx/"),
        ("^/api(/?)(.*)", r"/\2", "/api/x", "/x"),
        ("^/api(/?)(.*)", r"/\2", "/api", "/"),
        ("/.*", "/full", "/a/b?q", "/full?q"),
        ("a", "b", "/a/a", "/b/b"),
        ("(a)|(x)", r"[\1\2\0]", "/ax", "/[aa][xx]"),
        ("a", r"\\", "/a", "/\\"),
        ("nope", "x", "/a?nope", "/a?nope"),
        ("b*", "-", "/abc", "-/-a-c-"),
    ] {
        let rewrite =
            spec::RegexRewrite { pattern: pattern.into(), substitution: substitution.into() };
        let spec = spec::Forward { regex_rewrite: Some(rewrite), ..to("c") };
        let result = rewritten(PathMatch::Prefix("/".into()), spec, from);
        assert_eq!(result.as_deref(), Some(expected), "{pattern} {from}");
    }
}

#[test]
fn a_rewrite_is_bounded() {
    let rewrite = spec::RegexRewrite { pattern: "a".into(), substitution: "b".repeat(1 << 16) };
    let spec = spec::Forward { regex_rewrite: Some(rewrite), ..to("c") };
    let path = format!("/{}", "a".repeat(1000));
    let result = rewritten(PathMatch::Prefix("/".into()), spec, &path).unwrap();
    assert!(result.len() <= MAX_REWRITTEN);
    assert!(!result.contains('a'));
}

fn weighted(weights: &[u32]) -> spec::Forward {
    let cluster = |(number, weight): (usize, &u32)| spec::WeightedCluster {
        name: format!("c{number}"),
        weight: *weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
    };
    let weighted_clusters = weights.iter().enumerate().map(cluster).collect();
    spec::Forward { weighted_clusters, ..spec::Forward::default() }
}

#[test]
fn clusters_by_weight() {
    let split = forward(&weighted(&[0, 90, 0, 10, 0]));
    let mut counts = [0_u32; 5];
    for step in 0..1000_u64 {
        let (name, cluster) = split.pick_cluster(step * (u64::MAX / 1000));
        assert_eq!(cluster.map(|cluster| &cluster.name), Some(name));
        let number: usize = name.trim_start_matches('c').parse().unwrap();
        counts[number] += 1;
    }
    assert!((899..=901).contains(&counts[1]), "{counts:?}");
    assert_eq!(counts[1] + counts[3], 1000, "{counts:?}");
    assert_eq!(&**split.pick_cluster(u64::MAX).0, "c3");
    assert_eq!(split.cluster_names().map(|name| &**name).collect::<Vec<_>>(), ["c1", "c3"]);
    let one = forward(&to("c"));
    assert!(matches!(one.pick_cluster(7), (name, None) if &**name == "c"));
}

#[test]
fn timeouts() {
    let seconds = Duration::from_secs;
    assert_eq!(forward(&to("c")).timeout, Some(seconds(15)));
    let none = spec::Forward {
        timeout: Some(Duration::ZERO),
        idle_timeout: Some(Duration::ZERO),
        ..to("c")
    };
    assert_eq!((forward(&none).timeout, forward(&none).idle_timeout), (None, None));
    for (max, requested, expected) in [
        (None, Some(1), Some(15)),
        (Some(0), Some(100), Some(100)),
        (Some(0), None, None),
        (Some(5), Some(100), Some(5)),
        (Some(5), Some(1), Some(1)),
        (Some(5), None, Some(5)),
        (Some(5), Some(0), Some(5)),
    ] {
        let forward = forward(&spec::Forward { max_grpc_timeout: max.map(seconds), ..to("c") });
        let bound = forward.grpc_timeout(requested.map(seconds));
        assert_eq!(bound, expected.map(seconds), "{max:?} {requested:?}");
    }
}

#[test]
fn mirrors() {
    let mirror = |percent| spec::Mirror { cluster: "m".into(), percent, shadow_suffix: true };
    let applies = |percent, random| {
        let forward = forward(&spec::Forward { mirrors: vec![mirror(percent)], ..to("c") });
        forward.mirrors[0].applies(random)
    };
    assert!(applies(100.0, 999_999) && applies(100.0, u64::MAX));
    assert!(!applies(0.0, 0));
    assert!(applies(0.5, 4999) && !applies(0.5, 5000));
    for percent in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
        let forward = spec::Forward { mirrors: vec![mirror(percent)], ..to("c") };
        assert_eq!(
            errors(&forward, Forward::compile),
            [format!("mirrors[0].percent: {percent} is not in 0 to 100")]
        );
    }
}

#[test]
fn forward_errors() {
    let rewrite = |pattern: &str, substitution: &str| spec::Forward {
        regex_rewrite: Some(spec::RegexRewrite {
            pattern: pattern.into(),
            substitution: substitution.into(),
        }),
        ..to("c")
    };
    let both = spec::Forward { prefix_rewrite: Some("/".into()), ..rewrite("a", "b") };
    let mut split = weighted(&[1]);
    split.weighted_clusters[0].name.clear();
    split.weighted_clusters[0].host_rewrite = Some("a b".into());
    for (forward, expected) in [
        (spec::Forward::default(), vec!["needs `cluster` or `weighted_clusters`"]),
        (to(""), vec!["cluster: is empty"]),
        (
            spec::Forward { cluster: Some("c".into()), ..weighted(&[1]) },
            vec!["has both `cluster` and `weighted_clusters`"],
        ),
        (
            weighted(&[0, 0]),
            vec![
                "weighted_clusters: has no weight above 0; use a direct response to refuse \
                 everything",
            ],
        ),
        (
            split,
            vec![
                "weighted_clusters[0].name: is empty",
                "weighted_clusters[0].host_rewrite: `a b` is no host, and no host and port",
            ],
        ),
        (
            spec::Forward { cluster_not_found_status: Some(502), ..to("c") },
            vec!["cluster_not_found_status: 502 is none of 404, 500 and 503"],
        ),
        (both, vec!["has both `prefix_rewrite` and `regex_rewrite`"]),
        (
            spec::Forward { prefix_rewrite: Some(String::new()), ..to("c") },
            vec!["prefix_rewrite: is empty; `/` is the shortest path"],
        ),
        (
            spec::Forward { prefix_rewrite: Some("/a b".into()), ..to("c") },
            vec!["prefix_rewrite: contains ' ', which no path can have"],
        ),
        (rewrite("(", "b"), vec!["regex_rewrite.pattern: `(` has a `(` without `)`"]),
        (
            rewrite("(a)", r"\2"),
            vec![r"regex_rewrite.substitution: `\2`: the pattern has 1 groups"],
        ),
        (
            rewrite("a", r"\x"),
            vec!["regex_rewrite.substitution: a backslash stands before a digit or a backslash"],
        ),
        (
            rewrite("a", "#"),
            vec!["regex_rewrite.substitution: contains '#', which no path can have"],
        ),
    ] {
        assert_eq!(errors(&forward, Forward::compile), expected);
    }
}

fn location(redirect: spec::Redirect, authority: &str, target: &str) -> String {
    let mut spec = route(PathMatch::Prefix("/old".into()), to("c"));
    spec.route = None;
    spec.redirect = Some(redirect);
    let route = compile(spec);
    let RouteAction::Redirect(redirect) = &route.action else { panic!("no redirect") };
    let (path, query) = path::split(target);
    let headers = HeaderMap::new();
    let method = Method::GET;
    let scheme = "http";
    let view = RequestView { method: &method, authority, path, query, scheme, headers: &headers };
    redirect.location(&route, &view)
}

#[test]
fn redirects() {
    let none = spec::Redirect::default;
    let text = |text: &str| Some(text.to_owned());
    let https = || spec::Redirect { scheme: text("https"), ..none() };
    for (redirect, authority, target, expected) in [
        (spec::Redirect { host: text("b"), ..none() }, "a", "/old?q=1", "http://b/old?q=1"),
        (https(), "a", "/old", "https://a/old"),
        (https(), "a:80", "/old", "https://a/old"),
        (https(), "a:8080", "/old", "https://a:8080/old"),
        (https(), "[::1]:80", "/old", "https://[::1]/old"),
        (https(), "[::1]", "/old", "https://[::1]/old"),
        (https(), "a:443", "/old", "https://a:443/old"),
        (none(), "a:80", "/old", "http://a:80/old"),
        (spec::Redirect { port: Some(8443), ..https() }, "a:80", "/old", "https://a:8443/old"),
        (spec::Redirect { port: Some(443), ..https() }, "a:80", "/old", "https://a/old"),
        (spec::Redirect { port: Some(80), ..none() }, "a:8080", "/old", "http://a/old"),
        (spec::Redirect { port: Some(80), ..https() }, "a", "/old", "https://a:80/old"),
        (spec::Redirect { path: text("/new"), ..none() }, "a", "/old/x?q=1", "http://a/new?q=1"),
        (spec::Redirect { path: text("/new?z"), ..none() }, "a", "/old?q=1", "http://a/new?z"),
        (spec::Redirect { path: text("new"), ..none() }, "a", "/old", "http://a/new"),
        (
            spec::Redirect { prefix_rewrite: text("/new"), ..none() },
            "a",
            "/old/x?q=1",
            "http://a/new/x?q=1",
        ),
        (
            spec::Redirect { prefix_rewrite: text("/new"), strip_query: true, ..none() },
            "a",
            "/old/x?q=1",
            "http://a/new/x",
        ),
        (
            spec::Redirect { path: text("/new?z"), strip_query: true, ..none() },
            "a",
            "/old?q=1",
            "http://a/new?z",
        ),
        (spec::Redirect { strip_query: true, ..none() }, "a", "/old?q=1", "http://a/old"),
    ] {
        let label = format!("{redirect:?} {authority} {target}");
        assert_eq!(location(redirect, authority, target), expected, "{label}");
    }
}

#[test]
fn redirect_statuses_and_errors() {
    let mut at = Context::new();
    for (status, expected) in [(None, 301), (Some(302), 302), (Some(308), 308)] {
        let redirect = spec::Redirect { status, ..spec::Redirect::default() };
        assert_eq!(Redirect::compile(&redirect, &mut at).unwrap().status, expected);
    }
    let redirect = spec::Redirect {
        scheme: Some("ftp".into()),
        host: Some("a/b".into()),
        port: Some(0),
        path: Some("/a".into()),
        prefix_rewrite: Some("/b".into()),
        status: Some(304),
        strip_query: false,
    };
    assert_eq!(
        errors(&redirect, Redirect::compile),
        [
            "scheme: `ftp` is neither `http` nor `https`",
            "host: `a/b` is no host, and no host and port",
            "has both `path` and `prefix_rewrite`",
            "status: 304 is none of 301, 302, 303, 307 and 308",
            "port: is 0",
        ]
    );
}

#[test]
fn direct_responses() {
    let response = |status, len| spec::DirectResponse { status, body: "x".repeat(len) };
    let mut at = Context::new();
    let compiled = DirectResponse::compile(&response(200, MAX_DIRECT_RESPONSE), &mut at).unwrap();
    assert_eq!((compiled.status, compiled.body.len()), (StatusCode::OK, MAX_DIRECT_RESPONSE));
    assert_eq!(
        errors(&response(199, MAX_DIRECT_RESPONSE + 1), DirectResponse::compile),
        ["status: 199 is not in 200 to 599", "body: has 1048577 bytes; 1048576 are the most",]
    );
}
