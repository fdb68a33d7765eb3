//! Whatever was compiled before: the snapshot is that of a compiler that sees the configuration
//! for the first time, and what did not change is the same `Arc`.
#![allow(clippy::unwrap_used)]

use cairn_router::compile::Compiler;
use cairn_router::destination::TargetRef;
use cairn_router::model::Mesh;
use cairn_router::spec::{LbPolicy, Resources};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which value of a list, and in which variant; the last variants have errors.
type Items = Vec<(usize, usize)>;

fn items() -> impl Strategy<Value = Items> {
    prop::collection::vec((0_usize..5, 0_usize..4), 0..7)
}

#[derive(Debug, Clone)]
struct Lists {
    destinations: Items,
    clusters: Items,
    endpoints: Items,
    workloads: Items,
}

fn lists() -> impl Strategy<Value = Lists> {
    (items(), items(), items(), items()).prop_map(
        |(destinations, clusters, endpoints, workloads)| Lists {
            destinations,
            clusters,
            endpoints,
            workloads,
        },
    )
}

/// A list of `now`, or the one of `before`: most pushes change one thing.
fn pushes() -> impl Strategy<Value = Vec<Lists>> {
    prop::collection::vec((lists(), 0_usize..5), 1..8).prop_map(|drawn| {
        let mut pushes: Vec<Lists> = Vec::new();
        for (now, changes) in drawn {
            let mut next = pushes.last().unwrap_or(&now).clone();
            match changes {
                0 => next.destinations = now.destinations,
                1 => next.clusters = now.clusters,
                2 => next.endpoints = now.endpoints,
                3 => next.workloads = now.workloads,
                _ => next = now,
            }
            pushes.push(next);
        }
        pushes
    })
}

fn resources(lists: &Lists) -> Resources {
    let destination = |&(number, variant): &(usize, usize)| {
        json!({
            "name": format!("d{number}"),
            "addresses": [format!("10.0.0.{}", if variant == 2 { 0 } else { number })],
            "hosts": [format!("d{number}.example")],
            "port": if variant == 1 { 81 } else { 80 },
            "tcp": {"clusters": [{"name": format!("c{number}"), "weight": if variant == 3 { 0 } else { 1 }}]},
        })
    };
    let cluster = |&(number, variant): &(usize, usize)| {
        let mut cluster = json!({"name": format!("c{number}")});
        match variant {
            1 => cluster["lb"] = json!("round_robin"),
            2 => cluster["protocol"] = json!("http2"),
            3 => cluster["tls"] = json!({}),
            _ => {}
        }
        cluster
    };
    let endpoints = |&(number, variant): &(usize, usize)| {
        let address = |n: usize| format!("10.1.{number}.{n}:80");
        let endpoints: Vec<Value> = match variant {
            0 => vec![json!({"address": address(1), "transport": "plain"})],
            1 => vec![
                json!({"address": address(2), "transport": "plain"}),
                json!({"address": address(1), "transport": "plain"}),
            ],
            2 => vec![json!({"address": address(1)})],
            _ => vec![json!({"address": address(1), "weight": 0}), json!({"address": address(2)})],
        };
        json!({"cluster": format!("c{number}"), "endpoints": endpoints})
    };
    let workload = |&(number, variant): &(usize, usize)| {
        json!({
            "name": if variant == 3 { String::new() } else { format!("w{number}") },
            "workload_name": variant.to_string(),
            "addresses": [format!("10.1.{number}.1")],
        })
    };
    serde_json::from_value(json!({
        "destinations": lists.destinations.iter().map(destination).collect::<Vec<_>>(),
        "clusters": lists.clusters.iter().map(cluster).collect::<Vec<_>>(),
        "endpoints": lists.endpoints.iter().map(endpoints).collect::<Vec<_>>(),
        "workloads": lists.workloads.iter().map(workload).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// Everything that can be seen of a mesh, apart from ids.
fn summary(mesh: &Mesh) -> Vec<String> {
    let mut lines: Vec<String> = mesh
        .destinations()
        .map(|made| format!("{} {:?} {:?} {:?}", made.name, made.port, made.tcp, made.broken))
        .collect();
    for number in 0..5_u8 {
        for port in [80, 81] {
            let address = TargetRef::Addr(([10, 0, 0, number], port).into());
            let host = format!("d{number}.example");
            for target in [address, TargetRef::Host(&host, port)] {
                let found = mesh.destination(&target).map(|found| &found.name);
                lines.push(format!("{target:?} {found:?}"));
            }
        }
        let workload = mesh.workload([10, 1, number, 1].into());
        lines.push(format!("{:?}", workload.map(|found| (&found.name, &found.workload_name))));
        let name = format!("c{number}");
        lines.push(format!(
            "{name} {:?}",
            mesh.cluster(&name).map(|found| (found.lb, found.protocol))
        ));
    }
    let clusters: BTreeMap<_, _> = mesh
        .clusters()
        .map(|cluster| {
            let of = |list: &[Arc<cairn_router::endpoint::Endpoint>]| {
                list.iter().map(|one| (one.address, one.tunnel.clone())).collect::<Vec<_>>()
            };
            (&cluster.name, (of(cluster.endpoints.all()), of(cluster.endpoints.candidates())))
        })
        .collect();
    lines.push(format!("{clusters:?}"));
    lines.extend(mesh.warnings().iter().cloned());
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn as_if_for_the_first_time(pushes in pushes(), strict: bool) {
        let mut compiler = Compiler::new("mesh");
        let mut last: Option<(Resources, Mesh)> = None;
        for lists in pushes {
            let mut resources = resources(&lists);
            // Half of the values that are equal are the same, as from a source that keeps them.
            if let Some((before, _)) = &last {
                for (old, new) in before.destinations.iter().zip(&mut resources.destinations).step_by(2) {
                    if old == new {
                        *new = Arc::clone(old);
                    }
                }
                for (old, new) in before.clusters.iter().zip(&mut resources.clusters) {
                    if old == new {
                        *new = Arc::clone(old);
                    }
                }
                for (old, new) in before.endpoints.iter().zip(&mut resources.endpoints).skip(1) {
                    if old == new {
                        *new = Arc::clone(old);
                    }
                }
            }
            let mut fresh = Compiler::new("mesh");
            if strict {
                let refused = compiler.compile(&resources).err();
                prop_assert_eq!(&refused, &fresh.compile(&resources).err());
                if refused.is_some() {
                    continue;
                }
            }
            let mesh = compiler.compile_lossy(&resources);
            prop_assert_eq!(summary(&mesh), summary(&fresh.compile_lossy(&resources)));

            if let Some((before, old)) = &last {
                for made in mesh.destinations() {
                    let spec = |of: &Resources| {
                        of.destinations.iter().find(|spec| *spec.name == *made.name).cloned()
                    };
                    let was = old.destinations().find(|was| was.name == made.name);
                    let same = was.is_some_and(|was| Arc::ptr_eq(was, made));
                    prop_assert_eq!(same, spec(before) == spec(&resources), "{}", made.name);
                }
                for made in mesh.clusters() {
                    let spec = |of: &Resources| {
                        let cluster = of.clusters.iter().find(|spec| *spec.name == *made.name);
                        let set = of.endpoints.iter().find(|set| *set.cluster == *made.name);
                        (cluster.cloned(), set.cloned())
                    };
                    let same = old.cluster(&made.name).is_some_and(|was| Arc::ptr_eq(was, made));
                    prop_assert_eq!(same, spec(before) == spec(&resources), "{}", made.name);
                }
            }
            last = Some((resources, mesh));
        }
    }
}

#[test]
fn another_policy_is_followed() {
    let mut compiler = Compiler::new("mesh");
    let lists = Lists {
        destinations: vec![],
        clusters: vec![(0, 0)],
        endpoints: vec![(0, 1)],
        workloads: vec![],
    };
    let mut resources = resources(&lists);
    compiler.compile(&resources).unwrap();
    Arc::make_mut(&mut resources.clusters[0]).lb = LbPolicy::RoundRobin;
    let mesh = compiler.compile(&resources).unwrap();
    let cluster = mesh.cluster("c0").unwrap();
    let turn = [0; 4].map(|_| cluster.pick(|| 0, &[], 0).unwrap().id());
    assert_ne!(turn[0], turn[1]);
    assert_eq!(turn[..2], turn[2..]);
}
