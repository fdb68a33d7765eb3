//! `cairn-join` gives what `cairn pool install` and `cairn pool install --rbac` do, for the same values.

use crate::world::{Rendered, World, example, key};
use cairn_pool::{PoolConfig, objects, rbac};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Labels that say who has made an object.
const MADE_BY: [&str; 2] = ["app.kubernetes.io/managed-by", "helm.sh/chart"];

pub async fn all(world: &World) {
    let labelled = example("cairn-join", "labelled.yaml");
    let cases: [(&[&str], Value, Value); 5] = [
        (&[], json!({}), json!({ "listen": "0.0.0.0:21001" })),
        (
            &["--values", &labelled],
            json!({ "name": "edge" }),
            json!({
                "listen": "0.0.0.0:21002", "domain": "west.example", "prefer_close": true,
                "allow": "waypoint-pool/enabled=true", "shards": ["s00", "s01"],
            }),
        ),
        (
            &["--set", "serviceAccount=member,workloadGroup=members,port=31000"],
            json!({}),
            json!({ "listen": "0.0.0.0:31000", "service_account": "member", "workload_group": "members" }),
        ),
        (
            &["--set", "name=blue,shards={a}"],
            json!({}),
            json!({ "listen": "0.0.0.0:21001", "gateway": "blue", "service_account": "blue", "shards": ["a"] }),
        ),
        (&["--set", "registrar.create=false"], json!({}), json!({ "listen": "0.0.0.0:21001" })),
    ];
    for (args, pool, cluster) in cases {
        let namespace = "pool-of-waypoints";
        let rendered = world.template("cairn-join", "cairn-join", namespace, args).await;
        let with_rights = !args.contains(&"registrar.create=false");
        let expected = installed(namespace, pool, cluster, with_rights);
        compare(&format!("{args:?}"), &rendered, &expected);
    }
}

/// What `cairn pool install` gives, and the registrar's rights.
pub fn installed(namespace: &str, pool: Value, cluster: Value, with_rights: bool) -> Vec<Value> {
    let mut described = json!({
        "name": "east", "istiod": "istiod.east.example:15012", "root_file": "/r", "namespace": namespace,
    });
    described.as_object_mut().unwrap().extend(cluster.as_object().unwrap().clone());
    let config = PoolConfig::of(json!({ "pool": pool, "clusters": [described] })).unwrap();
    let (cluster, pool) = (&config.clusters[0], &config.pool);
    let mut all = objects::of(cluster, pool);
    all.retain(|object| object["kind"] != "Namespace");
    if with_rights {
        all.extend(rbac::user_cluster(cluster, pool));
    }
    all
}

/// The same objects, whoever has made them.
pub fn compare(what: &str, rendered: &Rendered, expected: &[Value]) {
    let found = by_name(&rendered.objects);
    let expected = by_name(expected);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, object) in &found {
        assert_eq!(object, &expected[name], "{what}: {name:?}");
    }
}

fn by_name(objects: &[Value]) -> BTreeMap<(String, String), Value> {
    let named = objects.iter().map(|object| {
        let (kind, name) = key(object);
        let mut plain = object.clone();
        let metadata = plain["metadata"].as_object_mut().unwrap();
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|label, _| !MADE_BY.contains(&label.as_str()));
            if labels.is_empty() {
                metadata.remove("labels");
            }
        }
        ((kind.to_owned(), name.to_owned()), plain)
    });
    named.collect()
}
