//! How long it takes to find the route of a request.

#![allow(missing_docs, clippy::unwrap_used)] // made by Criterion's macros; a benchmark may panic

use benches::cairn_config::destination;
use benches::world::{ROUTES, World};
use cairn_router::error::Context;
use cairn_router::path;
use cairn_router::request::RequestView;
use cairn_router::route::RouteTable;
use cairn_router::spec;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

fn view<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method: &Method::GET,
        authority: "app.shop.svc.cluster.local",
        path,
        query: None,
        scheme: "http",
        headers,
    }
}

fn table_of_the_scenarios() -> spec::RouteTable {
    let tunnel = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15008);
    let world = World::scale(1, tunnel);
    destination(&world.services[0]).http.unwrap().routes
}

/// The routes of the scenarios behind `count` others that do not match.
fn table(count: usize) -> RouteTable {
    let mut spec = table_of_the_scenarios();
    let routes = &mut spec.virtual_hosts[0].routes;
    let model = routes[1].clone();
    let others = (0..count).map(|number| {
        let mut route = model.clone();
        route.name = format!("other-{number}");
        route.matches.path =
            spec::PathMatch::PathSeparatedPrefix(format!("/team-{}/api-{number}", number % 37));
        route
    });
    let mut all: Vec<_> = others.collect();
    all.append(routes);
    *routes = all;
    RouteTable::compile(&spec, &mut Context::new()).unwrap()
}

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route lookup");
    let headers = HeaderMap::new();
    for others in [0, 100, 1_000, 10_000] {
        let table = table(others);
        let id = BenchmarkId::from_parameter(others + ROUTES.len());
        group.bench_function(id, |bencher| {
            let mut paths = ROUTES.iter().map(|route| route.sample).cycle();
            bencher.iter(|| {
                let request = view(paths.next().unwrap_or("/"), &headers);
                black_box(table.find(black_box(&request))).map(|found| found.route.matched_len())
            });
        });
    }
    group.finish();
}

fn normalize(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, path) in [("plain", "/api/users/17/address"), ("dotted", "/api/./x/../users/%41/17")]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| path::normalize(black_box(path), false).unwrap().len());
        });
    }
    group.finish();
}

criterion_group!(benches, find, normalize);
criterion_main!(benches);
