//! How long policies take to decide on a request.

#![allow(missing_docs, clippy::unwrap_used)] // made by Criterion's macros; a benchmark may panic

use benches::cairn_config::http_policies;
use benches::world::CLIENT;
use cairn_router::error::Context;
use cairn_router::rbac::CompiledRbac;
use cairn_router::request::{ConnectionView, RequestView};
use cairn_router::spec::{Action, Permission, Policy, Principal, Rbac, StringMatch};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

fn compiled(policies: &[Rbac]) -> Vec<CompiledRbac> {
    let compile = |rbac| CompiledRbac::compile(rbac, &mut Context::new()).unwrap();
    policies.iter().map(compile).collect()
}

/// An ALLOW filter of so many policies, of which the last one matches.
fn many(count: usize) -> Rbac {
    let policy = |number: usize| {
        let name = format!("ns[shop]-policy[p-{number:05}]-rule[0]");
        let account = if number + 1 == count { "web".to_owned() } else { format!("sa-{number}") };
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let policy = Policy {
            permissions: vec![Permission::Path(StringMatch::Prefix("/api".to_owned()))],
            principals: vec![Principal::Authenticated(StringMatch::Exact(id))],
        };
        (name, policy)
    };
    Rbac { action: Action::Allow, policies: (0..count).map(policy).collect() }
}

fn check(criterion: &mut Criterion) {
    let headers = HeaderMap::new();
    let request = RequestView {
        method: &Method::GET,
        authority: "app.shop.svc.cluster.local",
        path: "/api/users/17/address",
        query: None,
        scheme: "http",
        headers: &headers,
    };
    let connection = ConnectionView {
        peer_id: Some(CLIENT),
        source: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 40000),
        destination: None,
        port: 80,
    };
    let mut group = criterion.benchmark_group("policies");
    let decide = |filters: &[CompiledRbac]| {
        filters.iter().all(|filter| {
            !filter.check_request(black_box(&connection), black_box(&request)).is_denied()
        })
    };
    let scenario = compiled(&http_policies());
    assert!(decide(&scenario));
    group.bench_function("of the scenarios", |bencher| bencher.iter(|| decide(&scenario)));
    for count in [10, 1_000] {
        let filters = compiled(&[many(count)]);
        assert!(decide(&filters));
        let id = BenchmarkId::new("last of", count);
        group.bench_function(id, |bencher| bencher.iter(|| decide(&filters)));
    }
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
