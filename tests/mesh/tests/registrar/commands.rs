//! The commands about a user's cluster: install, lint, status, uninstall.

use crate::world::{POOL, World, entry, ip};
use cairn_mesh_tests::objects;
use serde_json::{Value, json};

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": POOL },
        "spec": { "selector": { "a": "b" }, "ports": [{ "name": "x", "port": 80 }] },
    })
}

/// Objects of the pool's names that are somebody else's.
pub async fn foreign_objects(world: &World) {
    let kube = &world.api.kube;
    kube.apply(&objects::namespace(POOL, &[])).await;
    kube.apply(&service("waypoint-pool-s01")).await;
    let (code, text) = world.east("install", &["--apply"]).await;
    assert_eq!(code, 1, "{text}");
    for words in ["Namespace waypoint-pool", "Service waypoint-pool/waypoint-pool-s01", "--adopt"] {
        assert!(text.contains(words), "{text}");
    }
    let gateway = kube.get("gateway.networking.k8s.io/v1", "Gateway", POOL, POOL).await;
    assert!(gateway.is_none(), "nothing was applied");
    let (code, text) = world.east("install", &["--apply", "--adopt"]).await;
    assert_eq!(code, 0, "{text}");
    let adopted = kube.get("v1", "Service", POOL, "waypoint-pool-s01").await.unwrap();
    assert_eq!(adopted["spec"]["selector"], json!({ "waypoint-pool/s01": "true" }));
    // What istiod writes into each namespace.
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "istio-ca-root-cert", "namespace": POOL },
        "data": { "root-cert.pem": "the root" },
    }))
    .await;
}

/// A Gateway of the pool.
pub async fn gateway(world: &World, name: &str) -> Option<Value> {
    world.api.kube.get("gateway.networking.k8s.io/v1", "Gateway", POOL, name).await
}

/// The address of the Gateway of that name.
pub fn addresses(name: &str) -> Value {
    json!([{ "type": "Hostname", "value": format!("{name}.waypoint-pool.svc.cluster.local") }])
}

/// A second install.
pub async fn install_again(world: &World) {
    let (code, text) = world.east("install", &["--apply"]).await;
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 11, "five objects, and two for each of three shards: {text}");
    assert!(lines.iter().all(|line| line.ends_with(": as it was")), "{text}");
    for name in ["waypoint-pool", "waypoint-pool-s00", "waypoint-pool-s02"] {
        assert_eq!(gateway(world, name).await.unwrap()["status"]["addresses"], addresses(name));
    }
    let config = world.path("admin.yaml");
    let (code, text) = world.pool(&["install", "--config", &config]).await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("# Cluster west: members listen for it, and for no other, on port 21002.")
    );
    let (code, text) = world.pool(&["install", "--config", &config, "--cluster", "north"]).await;
    assert!(code == 1 && text.contains("the file has east, west"), "{text}");
}

/// What is wrong there.
pub async fn lints(world: &World) {
    let (code, text) = world.east("lint", &[]).await;
    assert!(code == 0 && text.contains("0 errors"), "{text}");
    let kube = &world.api.kube;
    let labels = [("istio.io/use-waypoint", POOL), ("istio.io/use-waypoint-namespace", POOL)];
    kube.apply(&objects::namespace("shop", &labels)).await;
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": { "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/web"] } }] }] },
    });
    kube.apply(&policy).await;
    let (code, text) = world.east("lint", &[]).await;
    assert_eq!(code, 3, "{text}");
    for words in ["policy-without-pool", "AuthorizationPolicy shop/p", "fix:", "1 errors"] {
        assert!(text.contains(words), "{text}");
    }
    kube.delete(&policy).await;
}

/// Members by clusters.
pub async fn status(world: &World) {
    let members = format!("{},{},10.244.1.77", ip(1), ip(5));
    let (code, text) = world.east("status", &["--members", &members, "--json"]).await;
    assert_eq!(code, 3, "one does not answer: {text}");
    let table: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(table["members"][0]["state"], "ready");
    assert_eq!(table["members"][0]["in_flight"], 40.0);
    assert_eq!(table["members"][0]["config_age_seconds"], 5.0);
    assert_eq!(table["members"][0]["clusters"]["east"]["entry"], entry(1));
    assert!(table["members"][0]["clusters"]["east"]["age_seconds"].is_f64(), "{table}");
    assert_eq!(table["members"][2]["state"], "silent");
    assert_eq!(table["members"][2]["clusters"]["east"], Value::Null);
    let (code, text) = world.east("status", &["--members", &ip(1)]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("MEMBER") && text.contains(&ip(1)), "{text}");
}

/// And away with it.
pub async fn uninstall(world: &World) {
    let kube = &world.api.kube;
    kube.apply(&service("bystander")).await;
    // A Service that a chart has, too.
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "waypoint-pool-s02", "namespace": POOL,
            "labels": { "app.kubernetes.io/managed-by": "Helm" },
            "annotations": { "meta.helm.sh/release-name": "east" },
        },
    }))
    .await;
    let (code, text) = world.east("install", &["--apply"]).await;
    assert!(code == 1 && text.contains("Helm keeps it"), "{text}");
    assert!(text.contains("--adopt takes its fields over"), "{text}");
    let (code, text) = world.east("uninstall", &[]).await;
    assert_eq!(code, 3, "{text}");
    for words in [
        "Namespace shop uses the pool: it falls back to plain L4",
        "would be removed",
        "s02: would be removed (Helm keeps it: `helm uninstall east` takes it away)",
        "--yes does it",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(gateway(world, POOL).await.is_some());
    let (code, text) = world.east("uninstall", &["--yes"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Namespace shop uses the pool"), "{text}");
    for name in [POOL, "waypoint-pool-s00"] {
        assert!(gateway(world, name).await.is_none());
        assert!(kube.get("v1", "Service", POOL, name).await.is_none());
    }
    assert!(kube.get("networking.istio.io/v1", "WorkloadGroup", POOL, POOL).await.is_none());
    assert!(kube.get("v1", "Service", POOL, "bystander").await.is_some());
    let (code, text) = world.east("uninstall", &["--yes"]).await;
    assert!(code == 0 && !text.contains("removed"), "a second time there is nothing: {text}");
}
