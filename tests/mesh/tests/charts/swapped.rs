//! `mode: swap` with istiod: what the overlay says is in the Deployments that istiod renders, for those that it is for
//! and no others.

use crate::world::{World, directory, example, names};
use cairn_mesh_tests::admission::{Platform, Workload, refusals};
use cairn_mesh_tests::control::eventually;
use serde_json::{Value, json};

const OURS: &str = "registry.example/cairn:1.0";
const SHOP: &str = "shop";

/// istiod's template has directories for Envoy, which Cairn leaves empty.
const OF_ISTIOD: [&str; 1] = ["writes no files"];

pub async fn all(world: &World) {
    let (chart, system) = (directory("helm/cairn"), "istio-system");
    let chart = chart.to_str().unwrap();
    world.namespace(SHOP).await;
    let gateways = [
        gateway("usual", "istio-waypoint", None),
        gateway("own", "cairn-waypoint", None),
        gateway("on-eci", "istio-waypoint", Some("waypoint-on-eci")),
    ];
    // A class of its own, and one Gateway on ECI.
    let values = example("cairn", "swap-own-class.yaml");
    let line = ["install", "swap", chart, "--values", &values, "--namespace", system];
    world.clients.helm(&line).await.done();
    for gateway in &gateways {
        world.kube().apply(gateway).await;
    }
    let own = rendered_with(world, "own", OURS).await;
    let eci = rendered_with(world, "on-eci", OURS).await;
    let usual = deployment(world, "usual").await;
    assert_ne!(image(&usual), OURS, "those of Istio's class stay Envoy's");

    assert_eq!(refusals(Platform::Plain, Workload::of(&own).unwrap()), OF_ISTIOD);
    assert_eq!(refusals(Platform::Eci, Workload::of(&eci).unwrap()), OF_ISTIOD);
    let template = &eci["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["alibabacloud.com/eci"], "true");
    let annotations = &template["metadata"]["annotations"];
    assert_eq!(annotations["k8s.aliyun.com/eci-spot-strategy"], "SpotAsPriceGo");
    assert_eq!(template["spec"]["terminationGracePeriodSeconds"], 150);
    assert_eq!(template["spec"]["tolerations"][0]["key"], "virtual-kubelet.io/provider");
    let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
    let drain = env.iter().find(|one| one["name"] == "TERMINATION_DRAIN_DURATION_SECONDS").unwrap();
    assert_eq!(drain["value"], "145");
    let hpa = world.kube().get("autoscaling/v2", "HorizontalPodAutoscaler", SHOP, "on-eci").await;
    assert_eq!(hpa.unwrap()["spec"]["maxReplicas"], 10);
    let pdb = world.kube().get("policy/v1", "PodDisruptionBudget", SHOP, "on-eci").await;
    assert_eq!(pdb.unwrap()["spec"]["minAvailable"], 1);

    // All waypoints, and back.
    let values = example("cairn", "swap.yaml");
    let line = ["upgrade", "swap", chart, "--values", &values, "--namespace", system];
    world.clients.helm(&line).await.done();
    rendered_with(world, "usual", OURS).await;
    let line = ["uninstall", "swap", "--namespace", system];
    world.clients.helm(&line).await.done();
    let envoys = image(&usual).to_owned();
    rendered_with(world, "usual", &envoys).await;
    for gateway in &gateways {
        world.kube().delete(gateway).await;
    }
    each_is_rendered();
}

fn gateway(name: &str, class: &str, parameters: Option<&str>) -> Value {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "namespace": SHOP },
        "spec": {
            "gatewayClassName": class,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    if let Some(name) = parameters {
        let reference = json!({ "group": "", "kind": "ConfigMap", "name": name });
        gateway["spec"]["infrastructure"] = json!({ "parametersRef": reference });
    }
    gateway
}

fn image(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap()
}

async fn deployment(world: &World, name: &str) -> Value {
    let mut found = None;
    eventually(&format!("istiod deploys {name}"), async || {
        found = world.kube().get("apps/v1", "Deployment", SHOP, name).await;
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn rendered_with(world: &World, name: &str, wanted: &str) -> Value {
    let mut found = Value::Null;
    eventually(&format!("istiod deploys {name} with {wanted}"), async || {
        found = deployment(world, name).await;
        image(&found) == wanted
    })
    .await;
    found
}

/// Deployments that a real installation has rendered: tests/data/rendered.
fn each_is_rendered() {
    let place = directory("../tests/data/rendered");
    let files: Vec<String> =
        names(&place).into_iter().filter(|name| name.starts_with("deploy")).collect();
    for name in files {
        let text = std::fs::read(place.join(&name)).unwrap();
        let deployment: Value = serde_json::from_slice(&text).unwrap();
        let platform = if name.contains("eci") { Platform::Eci } else { Platform::Plain };
        assert_eq!(refusals(platform, Workload::of(&deployment).unwrap()), OF_ISTIOD, "{name}");
    }
}
