//! The requests of a theme: from every route and every policy of its push, as they are and changed.

use crate::destinations::{Destination, destinations};
use crate::draft::{Draft, Protocol};
use crate::meet;
use crate::mutate::{Material, mutate};
use crate::push::Push;
use crate::seed::Seed;
use cairn_mesh_tests::identity::spiffe;
use cairn_proto::envoy::envoy::config::rbac::v3::Policy;
use cairn_proto::envoy::envoy::config::route::v3::Route;
use prost::Message;

/// So many requests of a theme.
pub fn generate(push: &Push, count: usize, seed: u64) -> Vec<Draft> {
    let mut seed = Seed::new(seed);
    let all = destinations(push);
    let clusters: Vec<String> = push.ports.keys().cloned().collect();
    let hosts = hosts(&all);
    let paths = paths(&all, &mut seed);
    let starts: Vec<(&Destination, Start<'_>)> =
        all.iter().flat_map(|one| starts(one).map(move |start| (one, start))).collect();
    let mut drafts: Vec<Draft> = Vec::new();
    for (destination, start) in starts.iter().cycle() {
        if drafts.len() >= count {
            break;
        }
        let client = spiffe("authz", seed.word(&["client", "client", "admin", "other"]));
        let mut draft = Draft::new(destination.target, &destination.host, &client);
        let mut route = destination.routes.last();
        match start {
            Start::Route(one) => {
                draft.about = format!("route {}", one.name);
                if let Some(matcher) = &one.r#match {
                    meet::route(matcher, &mut draft, &mut seed);
                }
                route = Some(one);
            }
            Start::Policy(name, policy) => {
                draft.about = (*name).to_owned();
                meet::policy(policy, &mut draft, &mut seed);
            }
            Start::Tcp => draft.about = "TCP".to_owned(),
        }
        let from = Material { paths: &paths, hosts: &hosts, clusters: &clusters, route };
        for _ in 0..*seed.pick(&[0, 1, 1, 1, 2, 2, 3]) {
            mutate(&mut draft, &from, &mut seed);
        }
        possible(&mut draft);
        if !destination.is_http {
            leave_open(&mut draft);
        }
        if !drafts.contains(&draft) {
            drafts.push(draft);
        }
    }
    drafts
}

/// What a request is made from.
#[derive(Clone, Copy)]
enum Start<'a> {
    Route(&'a Route),
    Policy(&'a str, &'a Policy),
    Tcp,
}

/// Each route once, each policy the more often the longer it is; TCP twice.
fn starts(one: &Destination) -> impl Iterator<Item = Start<'_>> {
    let routes = one.routes.iter().map(Start::Route);
    let policies = one.policies.iter().flat_map(|(name, policy)| {
        let often = if one.is_http { 1 + policy.encoded_len() / 100 } else { 0 };
        std::iter::repeat_n(Start::Policy(name, policy), often)
    });
    let tcp = std::iter::repeat_n(Start::Tcp, if one.is_http { 0 } else { 2 });
    routes.chain(policies).chain(tcp)
}

/// What HTTP/2 cannot carry goes by HTTP/1.1.
fn possible(draft: &mut Draft) {
    let uri = format!("http://{}{}", draft.authority, draft.path_and_query());
    if draft.path.contains('#') || uri.parse::<http::Uri>().is_err() {
        draft.protocol = Protocol::Http1;
    }
}

/// Of TCP, Envoy loses what a pod sends right before it closes: whether it does is a matter of time.
fn leave_open(draft: &mut Draft) {
    draft.unset("connection");
    if draft.path.starts_with("/close") {
        draft.set_path("/chunked");
    }
}

fn hosts(all: &[Destination]) -> Vec<String> {
    let mut hosts: Vec<String> =
        ["app", "APP", "x.example", "app.example:8080", "192.0.2.1"].map(str::to_owned).to_vec();
    for one in all {
        hosts.extend([one.host.clone(), format!("{}:{}", one.host, one.target.port())]);
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

fn paths(all: &[Destination], seed: &mut Seed) -> Vec<String> {
    let mut paths = vec!["/".to_owned()];
    let mut draft = Draft::new(([0, 0, 0, 0], 0).into(), "", "");
    for one in all {
        for matcher in one.routes.iter().filter_map(|route| route.r#match.as_ref()) {
            meet::route(matcher, &mut draft, seed);
            paths.push(draft.path.clone());
        }
        for (_, policy) in &one.policies {
            meet::policy(policy, &mut draft, seed);
            paths.push(draft.path.clone());
        }
    }
    paths
}
