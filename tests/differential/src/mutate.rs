//! Changes a request that meets a route's or a policy's conditions: near misses, odd paths, other
//! clients, other protocols.

use crate::draft::{Draft, Protocol};
use crate::meet::clients;
use crate::sample;
use crate::seed::Seed;
use cairn_proto::envoy::envoy as pb;
use cairn_test_support::h2c::grpc_frame;
use pb::config::route::v3::Route;
use pb::config::route::v3::route::Action;
use pb::config::route::v3::route_action::ClusterSpecifier;
use pb::extensions::filters::http::cors::v3::CorsPolicy;

/// What is put behind a path.
const ENDS: [&str; 15] = [
    "x",
    "/",
    "/more",
    ".html",
    "/..",
    "/../x",
    "/..;v=1",
    "/./y",
    "//z",
    "%2Fq",
    "%61",
    ";v=1",
    "\\b",
    "/%2e%2e/w",
    "#f",
];
/// What is put before one.
const STARTS: [&str; 4] = ["/.", "/x/..", "/", "/../"];
const METHODS: [&str; 8] =
    ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"];
/// Paths at which the backend does something else than to say what it got.
const SCRIPTED: [&str; 10] = [
    "/status/204",
    "/status/304",
    "/status/404",
    "/status/503",
    "/chunked",
    "/chunked",
    "/close",
    "/close-delimited",
    "/bytes?n=70000",
    "/sink",
];
/// Headers that proxies read or write.
const TELLING: [(&str, &str); 20] = [
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-for", "198.51.100.3, 192.0.2.9"),
    ("x-forwarded-for", "nobody"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "front.example"),
    ("x-request-id", "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"),
    ("x-request-id", "mine"),
    ("x-envoy-attempt-count", "7"),
    ("x-envoy-original-path", "/before"),
    ("x-envoy-original-host", "before.example"),
    ("x-envoy-decorator-operation", ""),
    ("x-envoy-internal", "true"),
    ("x-envoy-retry-on", "5xx"),
    ("x-envoy-upstream-rq-timeout-ms", "9000"),
    ("x-envoy-decorator-operation", "mine"),
    ("x-envoy-expected-rq-timeout-ms", "11"),
    ("forwarded", "for=192.0.2.1"),
    ("te", "trailers"),
    ("via", "1.1 before"),
    ("server", "client"),
];

/// Headers that ask a proxy or a backend for something.
const ASKING: [(&str, &str); 10] = [
    ("connection", "close"),
    ("connection", "x-named"),
    ("expect", "100-continue"),
    ("grpc-timeout", "3S"),
    ("grpc-timeout", "soon"),
    ("content-type", "application/grpc+proto"),
    ("content-type", "application/grpc-web"),
    ("accept-encoding", "gzip"),
    ("range", "bytes=0-9"),
    ("cookie", "a=1; b=2"),
];

/// Everything that a change may draw from.
pub struct Material<'a> {
    /// Paths of the push.
    pub paths: &'a [String],
    /// Hosts of the push.
    pub hosts: &'a [String],
    /// Clusters of the push.
    pub clusters: &'a [String],
    /// What the request was made from.
    pub route: Option<&'a Route>,
}

/// One change.
pub fn mutate(draft: &mut Draft, from: &Material<'_>, seed: &mut Seed) {
    let name = match seed.below(23) {
        0..=2 => {
            draft.path.push_str(seed.word(&ENDS));
            "longer path"
        }
        3 => {
            draft.path.insert_str(0, seed.word(&STARTS));
            "path from elsewhere"
        }
        4 => {
            draft.path = draft.path.to_uppercase();
            "upper case"
        }
        5 => {
            draft.path.truncate(1.max(draft.path.len().saturating_sub(1 + seed.below(2))));
            "shorter path"
        }
        6 => {
            match seed.chance(50) {
                true => {
                    draft.set_path(seed.word(&SCRIPTED));
                    if seed.chance(40) {
                        draft.protocol = Protocol::H2c;
                    }
                }
                false => draft.path.clone_from(seed.pick(from.paths)),
            }
            "another path"
        }
        7 | 8 => header(draft, seed),
        9 => query(draft, seed),
        10 => {
            draft.set(":method", seed.word(&METHODS));
            "another method"
        }
        11 => {
            draft.set(":authority", seed.pick(from.hosts).as_str());
            "another host"
        }
        12 => {
            let all: Vec<_> = clients().collect();
            draft.client.clone_from(seed.pick(&all));
            "another client"
        }
        13 => {
            draft.protocol = Protocol::H2c;
            "h2c"
        }
        14 => grpc(draft, seed),
        15 | 16 => cors(draft, from.route, seed),
        17 => {
            let (name, value) = seed.pick(&TELLING);
            draft.set(name, value);
            "a telling header"
        }
        18 | 19 => header_operations(draft, from.route, seed),
        20 => {
            let (name, value) = seed.pick(&ASKING);
            draft.set(name, value);
            "a header that asks for something"
        }
        21 => {
            let kind = seed.word(&["x-fail-on", "x-fail-on", "x-reset-on"]);
            let cluster = match from.route.and_then(cluster) {
                Some(own) if seed.chance(70) => own,
                _ => seed.pick(from.clusters).as_str(),
            };
            draft.set(kind, cluster);
            "a failing backend"
        }
        _ => {
            draft.set(":method", seed.word(&["POST", "PUT"]));
            draft.body = vec![b'a'; *seed.pick(&[1, 100, 70_000])];
            "a body"
        }
    };
    draft.about = format!("{}, {name}", draft.about);
}

fn header(draft: &mut Draft, seed: &mut Seed) -> &'static str {
    if draft.headers.is_empty() {
        draft.set("x-bot", "1");
        return "an added header";
    }
    let at = seed.below(draft.headers.len());
    match seed.below(4) {
        0 => {
            draft.headers.remove(at);
            "a header less"
        }
        1 => {
            draft.headers[at].1.push('z');
            "another value"
        }
        2 => {
            draft.headers[at].1 = draft.headers[at].1.to_uppercase();
            "a value in upper case"
        }
        _ => {
            let (name, value) = draft.headers[at].clone();
            draft.headers.push((name, format!("{value}2")));
            "a header twice"
        }
    }
}

fn query(draft: &mut Draft, seed: &mut Seed) -> &'static str {
    match draft.query.len() {
        0 => {
            draft.query.push(("other".to_owned(), "1".to_owned()));
            "a query"
        }
        count => {
            let at = seed.below(count);
            match seed.below(3) {
                0 => draft.query.truncate(at),
                1 => draft.query[at].1.push('9'),
                _ => draft.query.insert(0, ("other".to_owned(), "a%20b".to_owned())),
            }
            "another query"
        }
    }
}

/// Where a route leads.
fn cluster(route: &Route) -> Option<&str> {
    let Some(Action::Route(action)) = &route.action else { return None };
    match action.cluster_specifier.as_ref()? {
        ClusterSpecifier::Cluster(name) => Some(name),
        ClusterSpecifier::WeightedClusters(weighted) => Some(&weighted.clusters.last()?.name),
        _ => None,
    }
}

/// gRPC, or what looks like it over HTTP/1.1.
fn grpc(draft: &mut Draft, seed: &mut Seed) -> &'static str {
    draft.protocol = if seed.chance(75) { Protocol::H2c } else { Protocol::Http1 };
    if draft.protocol == Protocol::Http1 && seed.chance(25) {
        draft.path.push_str("#f");
    }
    draft.set(":method", "POST");
    draft.set("content-type", "application/grpc");
    draft.set("te", "trailers");
    draft.body = grpc_frame(b"hello").to_vec();
    "gRPC"
}

/// A request across origins, or the preflight of one.
fn cors(draft: &mut Draft, route: Option<&Route>, seed: &mut Seed) -> &'static str {
    let mut origins = vec!["https://nowhere.example".to_owned(), "null".to_owned()];
    let configs = route.into_iter().flat_map(|route| route.typed_per_filter_config.values());
    for policy in configs.filter_map(crate::any::open::<CorsPolicy>) {
        for one in &policy.allow_origin_string_match {
            origins.extend([sample::text(one, seed), sample::text(one, seed)]);
        }
    }
    draft.set("origin", &seed.pick(&origins).clone());
    if seed.chance(60) {
        draft.set(":method", "OPTIONS");
        if seed.chance(85) {
            draft.set("access-control-request-method", seed.word(&["GET", "PUT", "DELETE"]));
        }
        if seed.chance(40) {
            draft.set("access-control-request-headers", seed.word(&["x-h", "x-other"]));
        }
        return "a preflight";
    }
    "an origin"
}

/// What the route adds or takes away is there already: in the request, or in the response.
fn header_operations(draft: &mut Draft, route: Option<&Route>, seed: &mut Seed) -> &'static str {
    let Some(route) = route else { return "nothing" };
    let added = route.request_headers_to_add.iter().filter_map(|one| one.header.as_ref());
    let added = added.map(|header| header.key.clone());
    for name in added.chain(route.request_headers_to_remove.iter().cloned()) {
        if seed.chance(70) {
            draft.set(&name, "before");
        }
    }
    let added = route.response_headers_to_add.iter().filter_map(|one| one.header.as_ref());
    let added = added.map(|header| header.key.clone());
    for name in added.chain(route.response_headers_to_remove.iter().cloned()) {
        if seed.chance(70) {
            draft.query.push(("h".to_owned(), format!("{name}:before")));
        }
    }
    "headers are there already"
}
