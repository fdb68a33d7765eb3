#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::header_ops::tests::TestRequest;
use crate::spec::{HeaderAppend, HeaderOps, PathMatch, ValueMatch};
use http::{HeaderMap, Method};

mod random;

fn route(name: &str, path: PathMatch) -> spec::Route {
    spec::Route {
        name: name.to_owned(),
        matches: spec::RouteMatch {
            path,
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            never: None,
        },
        route: None,
        redirect: None,
        direct_response: Some(spec::DirectResponse { status: 200, body: String::new() }),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        fault: None,
        cors: None,
        decorator: None,
    }
}

fn host(name: &str, domains: &[&str], routes: Vec<spec::Route>) -> spec::VirtualHost {
    spec::VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    }
}

fn compile(virtual_hosts: Vec<spec::VirtualHost>) -> RouteTable {
    let mut at = Context::new();
    let table = RouteTable::compile(&spec::RouteTable { name: "t".into(), virtual_hosts }, &mut at);
    assert_eq!(at.into_errors(), []);
    table.unwrap()
}

fn set(name: &str, value: &str) -> HeaderOps {
    let value =
        spec::HeaderValue { name: name.into(), value: value.into(), action: HeaderAppend::Append };
    HeaderOps { add: vec![value], remove: vec![] }
}

#[test]
fn domains() {
    let table = compile(vec![
        host("any", &["*"], vec![]),
        host("exact", &["App.example", "app.example:80", "[::1]:80"], vec![]),
        host("suffix", &["*.example"], vec![]),
        host("longer suffix", &["*.b.example", "*-c.example"], vec![]),
        host("prefix", &["app.*", "app.x*"], vec![]),
        host("longer prefix", &["app.xy*"], vec![]),
    ]);
    for (authority, expected) in [
        ("app.example", "exact"),
        ("APP.Example", "exact"),
        ("app.example:80", "exact"),
        ("[::1]:80", "exact"),
        ("app.example:81", "prefix"),
        ("x.example", "suffix"),
        ("X.Example", "suffix"),
        (".example", "any"),
        ("x.b.example", "longer suffix"),
        (".b.example", "suffix"),
        ("x-c.example", "longer suffix"),
        ("x.example:80", "any"),
        ("app.org", "prefix"),
        ("app.", "any"),
        ("app.xz", "prefix"),
        ("app.xyz", "longer prefix"),
        ("app.xy.example", "suffix"),
        ("", "any"),
        ("other", "any"),
    ] {
        let found = table.virtual_host(authority).map(|host| &*host.name);
        assert_eq!(found, Some(expected), "{authority}");
    }
    let long = format!("{}.EXAMPLE", "x".repeat(FOLD_ON_STACK));
    assert_eq!(table.virtual_host(&long).map(|host| &*host.name), Some("suffix"));
}

#[test]
fn no_domain() {
    let table = compile(vec![host("a", &["a"], vec![])]);
    assert!(table.virtual_host("b").is_none());
    assert!(RouteTable::default().virtual_host("a").is_none());
    let only_any = compile(vec![host("any", &["*"], vec![])]);
    assert!(only_any.virtual_host("").is_some());
}

fn find(table: &RouteTable, method: &Method, target: &str, headers: &[(&str, &str)]) -> String {
    let request = TestRequest::new(headers);
    let (path, query) = crate::path::split(target);
    let view = RequestView {
        method,
        authority: "app",
        path,
        query,
        scheme: "http",
        headers: &request.headers,
    };
    table.find(&view).map(|matched| matched.route.name.to_string()).unwrap_or_default()
}

fn header(name: &str, value: ValueMatch) -> spec::HeaderMatch {
    spec::HeaderMatch {
        name: name.into(),
        value,
        invert: false,
        treat_missing_as_empty: false,
        ignore_case: false,
    }
}

#[test]
fn first_match() {
    let prefix = |text: &str| PathMatch::Prefix(text.into());
    let mut canary = route("canary", prefix("/"));
    canary.matches.headers = vec![header("x-canary", ValueMatch::Exact("true".into()))];
    let mut post = route("post", PathMatch::Exact("/a".into()));
    post.matches.headers = vec![header(":method", ValueMatch::Exact("POST".into()))];
    let mut query = route("query", PathMatch::PathSeparatedPrefix("/a".into()));
    query.matches.query =
        vec![spec::QueryMatch { name: "v".into(), value: ValueMatch::Exact("2".into()) }];
    let mut folded = route("folded", PathMatch::Exact("/Fold".into()));
    folded.matches.case_sensitive = false;
    let table = compile(vec![host(
        "v",
        &["*"],
        vec![
            canary,
            post,
            query,
            route("regex", PathMatch::Regex("/a/[0-9]+".into())),
            route("separated", PathMatch::PathSeparatedPrefix("/a".into())),
            folded,
            route("exact", PathMatch::Exact("/b".into())),
            route("prefix", prefix("/b")),
        ],
    )]);
    let get = |target: &str| find(&table, &Method::GET, target, &[]);
    assert_eq!(find(&table, &Method::GET, "/zzz", &[("x-canary", "true")]), "canary");
    assert_eq!(find(&table, &Method::POST, "/a", &[]), "post");
    assert_eq!(get("/a?v=2"), "query");
    assert_eq!(get("/a/x?v=2"), "query");
    assert_eq!(get("/a/12"), "regex");
    assert_eq!(get("/a"), "separated");
    assert_eq!(get("/a/"), "separated");
    assert_eq!(get("/a/12x"), "separated");
    assert_eq!(get("/ab"), "");
    assert_eq!(get("/fOLD"), "folded");
    assert_eq!(get("/b"), "exact");
    assert_eq!(get("/bc"), "prefix");
    assert_eq!(get("*"), "");
}

#[test]
fn errors() {
    let path = |path: PathMatch| route("r", path);
    let mut two_actions = path(PathMatch::Prefix("/".into()));
    two_actions.redirect = Some(spec::Redirect::default());
    let mut no_action = path(PathMatch::Exact("/a?b".into()));
    no_action.direct_response = None;
    let mut forward = path(PathMatch::Regex("(".into()));
    forward.direct_response = None;
    forward.route = Some(Box::default());
    let mut bad = path(PathMatch::PathSeparatedPrefix("/a/".into()));
    bad.matches.headers = vec![header("x a", ValueMatch::Present(true))];
    bad.request_headers = set("x", "%NOPE%");
    bad.response_headers = set(":path", "/");
    let long = path(PathMatch::Prefix(format!("/{}", "x".repeat(MAX_PATH))));
    let table = spec::RouteTable {
        name: String::new(),
        virtual_hosts: vec![
            host("a", &["a", "A", "a*b", "", "*"], vec![two_actions, no_action, forward]),
            host("a", &["*"], vec![bad, long]),
            host("b", &[], vec![]),
        ],
    };
    let mut at = Context::new();
    assert!(at.field("routes", |at| RouteTable::compile(&table, at)).is_none());
    let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
    let action = "needs exactly one of `route`, `redirect` and `direct_response`";
    assert_eq!(
        errors,
        [
            "routes.virtual_hosts[0].domains[1]: `A` is there already".to_owned(),
            "routes.virtual_hosts[0].domains[2]: `a*b`: a `*` can stand at the start or at the end \
             only"
                .to_owned(),
            "routes.virtual_hosts[0].domains[3]: is empty; `*` stands for every domain".to_owned(),
            format!("routes.virtual_hosts[0].routes[0]: {action}"),
            "routes.virtual_hosts[0].routes[1].match.path.exact: contains `?`; the path is compared \
             without its query"
                .to_owned(),
            format!("routes.virtual_hosts[0].routes[1]: {action}"),
            "routes.virtual_hosts[0].routes[2].match.path.regex: `(` has a `(` without `)`"
                .to_owned(),
            "routes.virtual_hosts[0].routes[2].route: needs `cluster` or `weighted_clusters`"
                .to_owned(),
            "routes.virtual_hosts[1].name: `a` is there already".to_owned(),
            "routes.virtual_hosts[1].domains[0]: `*` is there already".to_owned(),
            "routes.virtual_hosts[1].routes[0].match.path.path_separated_prefix: is empty or ends \
             with `/`"
                .to_owned(),
            "routes.virtual_hosts[1].routes[0].match.headers[0].name: `x a` is no header name"
                .to_owned(),
            "routes.virtual_hosts[1].routes[0].request_headers.add[0].value: `%NOPE%` is not known"
                .to_owned(),
            "routes.virtual_hosts[1].routes[0].response_headers.add[0].name: `:path` cannot be set \
             here"
                .to_owned(),
            "routes.virtual_hosts[1].routes[1].match.path.prefix: has 8193 bytes; 8192 are the most"
                .to_owned(),
            "routes.virtual_hosts[2].domains: is empty; `*` stands for every domain".to_owned(),
        ]
    );
}

/// A route with changes on all three levels.
fn layered(forward: spec::Forward) -> RouteTable {
    let mut layered = route("r", PathMatch::Prefix("/p".into()));
    layered.direct_response = None;
    layered.request_headers = set("x-route", "%REQ(:AUTHORITY)%");
    layered.response_headers = set("x-order", "route");
    let cluster = spec::WeightedCluster {
        name: "c".into(),
        weight: 1,
        request_headers: set("x-cluster", "%REQ(:AUTHORITY)% %REQ(x-route)%"),
        response_headers: set("x-order", "cluster"),
        host_rewrite: Some("of.cluster".into()),
    };
    layered.route = Some(Box::new(spec::Forward { weighted_clusters: vec![cluster], ..forward }));
    let mut host = host("v", &["*"], vec![layered]);
    host.request_headers = set("x-host", "%REQ(:AUTHORITY)% %REQ(x-route)%");
    host.response_headers = set("x-order", "host");
    compile(vec![host])
}

fn finalized(forward: spec::Forward, headers: &[(&str, &str)]) -> TestRequest {
    let table = layered(forward);
    let mut request = TestRequest::new(headers);
    let empty = HeaderMap::new();
    let view = RequestView {
        method: &Method::GET,
        authority: "app",
        path: "/p",
        query: Some("q=1"),
        scheme: "http",
        headers: &empty,
    };
    let matched = table.find(&view).unwrap();
    let RouteAction::Forward(forward) = &matched.route.action else { panic!("not forwarded") };
    let (_, cluster) = forward.pick_cluster(0);
    matched.finalize_request(cluster, &mut request, &FormatContext::default());
    let mut response = HeaderMap::new();
    matched.finalize_response(cluster, &mut response, &request, &FormatContext::default());
    let order: Vec<_> = response.get_all("x-order").iter().collect();
    assert_eq!(order, ["cluster", "route", "host"]);
    request
}

#[test]
fn levels_in_envoys_order() {
    let forward = spec::Forward {
        host_rewrite: Some("of.route".into()),
        prefix_rewrite: Some("/new".into()),
        append_x_forwarded_host: true,
        ..spec::Forward::default()
    };
    let request = finalized(forward, &[]);
    assert_eq!(request.values("x-cluster"), ["app "]);
    assert_eq!(request.values("x-route"), ["of.cluster"]);
    assert_eq!(request.values("x-host"), ["of.cluster of.cluster"]);
    assert_eq!(request.authority, "of.route");
    assert_eq!(request.values("x-forwarded-host"), ["of.cluster"]);
    assert_eq!(request.values("x-envoy-original-host"), ["of.cluster"]);
    assert_eq!(request.path, "/new?q=1");
    assert_eq!(request.values("x-envoy-original-path"), ["/p?q=1"]);
}

#[test]
fn without_rewrites() {
    let request = finalized(spec::Forward::default(), &[]);
    assert_eq!(request.authority, "of.cluster");
    assert_eq!(request.path, "/p?q=1");
    assert!(request.values("x-envoy-original-path").is_empty());
    assert!(request.values("x-envoy-original-host").is_empty());
    assert!(request.values("x-forwarded-host").is_empty());
}

#[test]
fn a_regex_rewrite_that_finds_nothing_is_noted() {
    let rewrite = spec::RegexRewrite { pattern: "zzz".into(), substitution: "y".into() };
    let forward = spec::Forward { regex_rewrite: Some(rewrite), ..spec::Forward::default() };
    let request = finalized(forward, &[]);
    assert_eq!(request.path, "/p?q=1");
    assert_eq!(request.values("x-envoy-original-path"), ["/p?q=1"]);
}

#[test]
fn forwarded_hosts_are_a_list() {
    let forward = || spec::Forward {
        host_rewrite: Some("of.route".into()),
        append_x_forwarded_host: true,
        ..spec::Forward::default()
    };
    let request = finalized(forward(), &[("x-forwarded-host", "first")]);
    assert_eq!(request.values("x-forwarded-host"), ["first,of.cluster"]);
    let request = finalized(forward(), &[("x-forwarded-host", "first, of.cluster")]);
    assert_eq!(request.values("x-forwarded-host"), ["first, of.cluster"]);
}
