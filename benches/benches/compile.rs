//! How long it takes to compile a configuration, and to compile it again after one change.

#![allow(missing_docs, clippy::unwrap_used)] // made by Criterion's macros; a benchmark may panic

use benches::cairn_config::{cluster, destination, endpoints, workloads};
use benches::world::World;
use cairn_router::compile::Compiler;
use cairn_router::spec::Resources;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

fn world(services: u32) -> World {
    World::scale(services, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15008))
}

fn resources(world: &World) -> Resources {
    let services = || world.services.iter();
    Resources {
        destinations: services().map(|service| Arc::new(destination(service))).collect(),
        clusters: services().map(|service| Arc::new(cluster(service))).collect(),
        endpoints: services().map(|service| Arc::new(endpoints(world, service))).collect(),
        workloads: workloads(world).into_iter().map(Arc::new).collect(),
        tunnels: None,
    }
}

fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile everything");
    group.sample_size(10);
    for services in [1, 100, 1_000] {
        let resources = resources(&world(services));
        group.throughput(Throughput::Elements(services.into()));
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| Compiler::new("bench").compile(black_box(&resources)).unwrap());
        });
    }
    group.finish();
}

/// What a push of one endpoint set or one route costs: all other values are in the same `Arc`s.
fn one_change(criterion: &mut Criterion) {
    for (name, is_route) in [("compile one endpoint set", false), ("compile one route", true)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        for services in [100, 1_000, 10_000] {
            let mut world = world(services);
            let mut resources = resources(&world);
            let mut compiler = Compiler::new("bench");
            compiler.compile(&resources).unwrap();
            group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
                bencher.iter(|| {
                    let last = world.services.last_mut().unwrap();
                    if is_route {
                        last.revision += 1;
                        *resources.destinations.last_mut().unwrap() = Arc::new(destination(last));
                    } else {
                        last.move_pod();
                        let last = world.services.last().unwrap();
                        let set = endpoints(&world, last);
                        *resources.endpoints.last_mut().unwrap() = Arc::new(set);
                    }
                    compiler.compile(black_box(&resources)).unwrap()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, whole, one_change);
criterion_main!(benches);
