//! One mesh whose configuration changes: what did not change is neither read nor made again.

use crate::recording::{settings, translated, updates};
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
#[derive(Debug)]
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

fn only(names: &[&str]) -> Difference {
    let other = names.iter().map(|name| (*name).to_owned()).collect();
    Difference { other, ..Difference::default() }
}

#[test]
fn steps() {
    let mut walk = Walk::new();
    for number in 1..=9 {
        let step = walk.step(number);
        println!("{number}: {step:#?}");
    }
    let _ = (APP, only(&[]), settings("plain"));
}
