//! What is rendered is what was asked for, and the API server takes it.

use crate::variants::Variant;
use crate::world::{CHARTS, Rendered, World, directory, example, examples, key};
use std::collections::BTreeMap;

pub async fn lint(world: &World) {
    for chart in CHARTS {
        let place = directory(&format!("helm/{chart}"));
        let place = place.to_str().unwrap();
        world.tools.helm(&["lint", "--strict", place]).await.done();
        for name in examples(chart) {
            let file = example(chart, &name);
            world.tools.helm(&["lint", "--strict", place, "--values", &file]).await.done();
        }
    }
}

pub fn counts(all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all {
        let expected: BTreeMap<String, usize> =
            variant.counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        assert_eq!(rendered.counts(), expected, "{}", variant.name);
        for object in &rendered.objects {
            let labels = &object["metadata"]["labels"];
            let name = key(object);
            assert_eq!(labels["app.kubernetes.io/name"], "cairn", "{}: {name:?}", variant.name);
            assert_eq!(labels["app.kubernetes.io/instance"], Variant::RELEASE, "{name:?}");
            if variant.is_pool() {
                let namespace = &object["metadata"]["namespace"];
                assert_eq!(*namespace, variant.namespace(), "{}: {name:?}", variant.name);
            }
        }
        let mut names: Vec<_> = rendered.objects.iter().map(key).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rendered.objects.len(), "{}: a name twice", variant.name);
    }
}

pub async fn taken(world: &World, all: &[(&'static Variant, Rendered)]) {
    world.namespace("shop").await;
    for (variant, rendered) in all {
        world.namespace(&variant.namespace()).await;
        world.take(variant.name, rendered).await;
    }
    // istiod must not go by them in later steps.
    for (variant, rendered) in all.iter().filter(|(variant, _)| !variant.is_pool()) {
        for object in &rendered.objects {
            assert!(variant.counts.iter().any(|(kind, _)| object["kind"] == *kind));
            world.kube().delete(object).await;
        }
    }
}
