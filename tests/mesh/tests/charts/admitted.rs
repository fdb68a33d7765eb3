//! Virtual nodes take the pods.

use crate::variants::Variant;
use crate::world::{Rendered, key};
use cairn_mesh_tests::admission::{Platform, Workload, needs_node_port, refusals};

const NOTHING: [&str; 0] = [];

pub fn charts(all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all {
        pods(variant.name, rendered, &|name| {
            if name == Variant::name_of("members") {
                variant.members
            } else if name == Variant::name_of("members-spot") {
                variant.spot.unwrap()
            } else {
                Platform::Plain
            }
        });
    }
}

/// Each pod is taken by the platform where it is to run.
pub fn pods(what: &str, rendered: &Rendered, on: &dyn Fn(&str) -> Platform) {
    for object in &rendered.objects {
        let (kind, name) = key(object);
        if let Some(workload) = Workload::of(object) {
            assert_eq!(refusals(on(name), workload), NOTHING, "{what}: {kind} {name}");
        }
        if kind == "Service" {
            assert!(!needs_node_port(object), "{what}: {name}");
        }
    }
}
