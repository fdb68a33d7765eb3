//! One mesh whose configuration changes: what did not change is neither read nor made again.

use crate::recording::{translated, updates};
use cairn_router::spec::Resources;
use cairn_xds::translate::{Counters, Translator};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a step changed: names that came, went, and those whose value is another one.
#[derive(Debug, Default, PartialEq)]
struct Difference {
    came: Vec<String>,
    went: Vec<String>,
    other: Vec<String>,
}

fn differ<T>(before: &[Arc<T>], after: &[Arc<T>], name: impl Fn(&T) -> String) -> Difference {
    let before: BTreeMap<String, &Arc<T>> = before.iter().map(|one| (name(one), one)).collect();
    let after: BTreeMap<String, &Arc<T>> = after.iter().map(|one| (name(one), one)).collect();
    let mut difference = Difference::default();
    for (name, value) in &after {
        match before.get(name) {
            None => difference.came.push(name.clone()),
            Some(known) if !Arc::ptr_eq(known, value) => difference.other.push(name.clone()),
            Some(_) => {}
        }
    }
    difference.went = before.into_keys().filter(|name| !after.contains_key(name)).collect();
    difference
}

/// Takes a step in and tells what it changed.
struct Walk {
    translator: Translator,
    resources: Resources,
    counters: Counters,
}

/// What a step came to.
#[derive(Debug, PartialEq)]
struct Step {
    destinations: Difference,
    clusters: Difference,
    sets: Difference,
    workloads: Difference,
    /// Chains, clusters and endpoint lists that were read.
    parsed: [u64; 3],
    /// Those that were known.
    reused: [u64; 3],
}

impl Walk {
    fn new() -> Self {
        let translator = translated("updates");
        Walk { resources: translator.resources(), counters: translator.counters(), translator }
    }

    fn step(&mut self, number: usize) -> Step {
        for update in updates(&format!("updates/step-{number}")) {
            self.translator.apply(update).unwrap();
        }
        let (after, counters) = (self.translator.resources(), self.translator.counters());
        let before = std::mem::replace(&mut self.resources, after);
        let counted = std::mem::replace(&mut self.counters, counters);
        let after = &self.resources;
        Step {
            destinations: differ(&before.destinations, &after.destinations, |of| of.name.clone()),
            clusters: differ(&before.clusters, &after.clusters, |of| of.name.clone()),
            sets: differ(&before.endpoints, &after.endpoints, |of| of.cluster.clone()),
            workloads: differ(&before.workloads, &after.workloads, |of| {
                format!("{}/{}", of.namespace, of.name)
            }),
            parsed: [
                counters.chains_parsed - counted.chains_parsed,
                counters.clusters_parsed - counted.clusters_parsed,
                counters.assignments_parsed - counted.assignments_parsed,
            ],
            reused: [
                counters.chains_reused - counted.chains_reused,
                counters.clusters_reused - counted.clusters_reused,
                counters.assignments_reused - counted.assignments_reused,
            ],
        }
    }
}

const APP: &str = "inbound-vip|80|http|app.plain.svc.cluster.local";
const FRESH: &str = "inbound-vip|80|http|fresh.plain.svc.cluster.local";
const LEGACY: &str = "inbound-vip|80|http|legacy.plain.svc.cluster.local";

fn none() -> Difference {
    Difference::default()
}

fn came(name: &str) -> Difference {
    Difference { came: vec![name.to_owned()], ..none() }
}

fn went(name: &str) -> Difference {
    Difference { went: vec![name.to_owned()], ..none() }
}

fn other(name: &str) -> Difference {
    Difference { other: vec![name.to_owned()], ..none() }
}

/// Nothing changed and nothing was read.
fn nothing() -> Step {
    Step {
        destinations: none(),
        clusters: none(),
        sets: none(),
        workloads: none(),
        parsed: [0, 0, 0],
        reused: [0, 0, 0],
    }
}

/// What each step changed in the mesh, as `README.md` of the recordings has it.
#[test]
fn steps() {
    let steps = [
        ("an endpoint is not ready", Step { sets: other(APP), parsed: [0, 0, 1], ..nothing() }),
        ("it is ready again", Step { sets: other(APP), parsed: [0, 0, 1], ..nothing() }),
        (
            // All listeners come again, and all clusters but those of other namespaces.
            "an HTTPRoute is added",
            Step { destinations: other(APP), parsed: [1, 0, 0], reused: [17, 21, 0], ..nothing() },
        ),
        (
            "a DENY policy is added",
            Step { destinations: other(APP), parsed: [1, 0, 0], reused: [17, 0, 0], ..nothing() },
        ),
        ("a client comes", Step { workloads: came("plain/client-2"), ..nothing() }),
        (
            // Everything comes again.
            "a service is added",
            Step {
                destinations: came(FRESH),
                clusters: came(FRESH),
                sets: came(FRESH),
                parsed: [1, 1, 1],
                reused: [18, 26, 20],
                ..nothing()
            },
        ),
        (
            // Its endpoints come once more, and are none.
            "the service is deleted",
            Step {
                destinations: went(FRESH),
                clusters: went(FRESH),
                sets: went(FRESH),
                parsed: [0, 0, 1],
                reused: [18, 26, 20],
                ..nothing()
            },
        ),
        ("the client goes", Step { workloads: went("plain/client-2"), ..nothing() }),
        (
            "a service leaves the waypoint",
            Step {
                destinations: went(LEGACY),
                clusters: went(LEGACY),
                sets: went(LEGACY),
                reused: [17, 25, 21],
                ..nothing()
            },
        ),
    ];
    let mut walk = Walk::new();
    for (number, (what, expected)) in steps.into_iter().enumerate() {
        assert_eq!(walk.step(number + 1), expected, "step {}: {what}", number + 1);
    }
}

/// Each step once more changes nothing: istiod repeats itself after every reconnect.
#[test]
fn a_step_that_comes_twice_changes_nothing() {
    let mut walk = Walk::new();
    for number in 1..=9 {
        walk.step(number);
        let Step { destinations, clusters, sets, workloads, parsed, reused: _ } = walk.step(number);
        assert_eq!([destinations, clusters, sets, workloads], [none(), none(), none(), none()]);
        assert_eq!(parsed, [0, 0, 0], "step {number}");
    }
}
