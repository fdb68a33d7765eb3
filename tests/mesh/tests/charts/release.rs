//! Releases: installed, upgraded, rolled back, and gone without a trace.

use crate::world::{Rendered, World, arg, directory, example, key};
use cairn_mesh_tests::manifest::path;
use serde_json::Value;

struct Release<'a> {
    world: &'a World,
    name: &'static str,
    namespace: &'static str,
    chart: String,
    values: String,
}

impl<'a> Release<'a> {
    fn new(world: &'a World, name: &'static str, chart: &str, values: &str) -> Self {
        let place = directory(&format!("helm/{chart}"));
        let chart_place = place.to_str().unwrap().to_owned();
        Release { world, name, namespace: name, chart: chart_place, values: example(chart, values) }
    }

    /// `helm install` and `upgrade`.
    async fn helm(&self, verb: &str, set: &[&str]) {
        let mut line = vec![verb, self.name, self.chart.as_str(), "--values", self.values.as_str()];
        line.extend(["--namespace", self.namespace]);
        if verb == "install" {
            line.push("--create-namespace");
        }
        for set in set {
            line.extend(["--set", *set]);
        }
        self.world.clients.helm(&line).await.done();
    }

    async fn manifest(&self) -> Rendered {
        let line = ["get", "manifest", self.name, "--namespace", self.namespace];
        Rendered::of(&self.world.clients.helm(&line).await.done())
    }

    async fn there(&self, object: &Value) -> Option<Value> {
        let version = object["apiVersion"].as_str().unwrap();
        let (kind, name) = key(object);
        self.world.kube().get(version, kind, self.namespace, name).await
    }

    async fn get(&self, version: &str, kind: &str, name: &str) -> Value {
        let found = self.world.kube().get(version, kind, self.namespace, name).await;
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    async fn must_be_there(&self, rendered: &Rendered) {
        for object in &rendered.objects {
            let found = self.there(object).await;
            let found = found.unwrap_or_else(|| panic!("{:?} is not there", key(object)));
            assert_eq!(found["metadata"]["labels"]["app.kubernetes.io/managed-by"], "Helm");
        }
    }

    /// Uninstalls it; nothing of all that was there must be left.
    async fn end(&self, of_all: &[&Rendered]) {
        let line = ["uninstall", self.name, "--namespace", self.namespace];
        self.world.clients.helm(&line).await.done();
        for object in of_all.iter().flat_map(|rendered| &rendered.objects) {
            let found = self.there(object).await;
            assert!(found.is_none(), "{:?} is left", key(object));
        }
        let place = path("v1", "Secret", self.namespace, "");
        let (_, answer) = self.world.kube().call("GET", &place, "", b"").await;
        let left: Vec<_> = answer["items"].as_array().unwrap().iter().map(key).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub async fn pool(world: &World) {
    let release = Release::new(world, "edge", "cairn", "pool.yaml");
    let scaler = "edge-cairn-scaler";
    release.helm("install", &[]).await;
    let first = release.manifest().await;
    release.must_be_there(&first).await;
    let secret = release.get("v1", "Secret", "edge-cairn-token").await;
    let token = secret["data"]["token"].as_str().unwrap().to_owned();
    assert!(token.len() > 50, "{token}");
    let selector = async || {
        let members = release.get("apps/v1", "Deployment", "edge-cairn-members").await;
        members["spec"]["selector"].clone()
    };
    let before = selector().await;

    // Another policy, another way to scale, a third cluster, and nothing that was made by hand is lost.
    let set = [
        "scaler.by=apply",
        "scaler.policy.max=150",
        "pool.clusters[2].name=north",
        "pool.clusters[2].istiod=istiod.north.example:15012",
        "pool.clusters[2].listen=0.0.0.0:21003",
    ];
    release.helm("upgrade", &set).await;
    let second = release.manifest().await;
    release.must_be_there(&second).await;
    assert_eq!(release.get("v1", "Secret", "edge-cairn-token").await["data"]["token"], token);
    let deployment = release.get("apps/v1", "Deployment", scaler).await;
    assert!(arg(&deployment, "--policy").unwrap().contains("max=150"));
    let scaled = first.all("ScaledObject").next().unwrap();
    assert!(release.there(scaled).await.is_none(), "two would scale");
    let config = release.get("v1", "ConfigMap", "edge-cairn-pool").await;
    assert!(config["data"]["pool.yaml"].as_str().unwrap().contains("0.0.0.0:21003"));
    assert_eq!(selector().await, before);

    let line = ["rollback", release.name, "1", "--namespace", release.namespace];
    world.clients.helm(&line).await.done();
    release.must_be_there(&first).await;
    assert_eq!(release.get("v1", "Secret", "edge-cairn-token").await["data"]["token"], token);
    let deployment = release.get("apps/v1", "Deployment", scaler).await;
    assert!(arg(&deployment, "--policy").unwrap().contains("max=200"));
    release.end(&[&first, &second]).await;
}

pub async fn join(world: &World) {
    let release = Release::new(world, "edge-users", "cairn-join", "labelled.yaml");
    release.helm("install", &[]).await;
    let first = release.manifest().await;
    release.must_be_there(&first).await;
    assert_eq!(first.all("Gateway").count(), 3);
    let port = async || {
        let group = release.get("networking.istio.io/v1", "WorkloadGroup", "edge").await;
        group["spec"]["template"]["ports"]["hbone"].clone()
    };
    assert_eq!(port().await, 21002);
    release.helm("upgrade", &["port=21003", "shards={s00}"]).await;
    let second = release.manifest().await;
    release.must_be_there(&second).await;
    assert_eq!(port().await, 21003);
    let gone = first.get("Gateway", "edge-s01");
    assert!(release.there(gone).await.is_none());
    let line = ["rollback", release.name, "1", "--namespace", release.namespace];
    world.clients.helm(&line).await.done();
    assert_eq!(port().await, 21002);
    release.must_be_there(&first).await;
    release.end(&[&first, &second]).await;
}
