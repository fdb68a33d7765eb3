//! Cairn in place of Envoy, by the annotation of one Gateway and by the chart.

use crate::world::{GATEWAY, IMAGE, Tenant, World, chart, gateway};
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::hbone::{Client, Failure};
use cairn_mesh_tests::lab::Talk;
use cairn_mesh_tests::load::Target;
use cairn_mesh_tests::node::Pod;
use cairn_mesh_tests::objects;
use cairn_test_support::http1::Response;
use serde_json::{Value, json};

const ANNOTATION: &str = "sidecar.istio.io/proxyImage";
const CLASS: &str = "gateway.networking.k8s.io/v1";

pub async fn annotation(world: &mut World) {
    let image = format!("{ANNOTATION}={IMAGE}");
    world.tools.kubectl(&["annotate", "gateway", GATEWAY, "-n", "shop", &image], "").await.done();
    let deployment = world.rendered_with("shop", IMAGE).await;
    serves(world, &world.shop, &deployment, "waypoint-a").await;
}

pub async fn without_annotation(world: &mut World, envoy: &str) {
    let gone = format!("{ANNOTATION}-");
    world.tools.kubectl(&["annotate", "gateway", GATEWAY, "-n", "shop", &gone], "").await.done();
    world.rendered_with("shop", envoy).await;
}

pub async fn all_waypoints(world: &mut World, envoy: &str) {
    install(world, "swap.yaml").await;
    let deployment = world.rendered_with("shop", IMAGE).await;
    world.rendered_with("bank", IMAGE).await;
    serves(world, &world.shop, &deployment, "waypoint-c").await;
    uninstalled(world, envoy).await;
}

pub async fn own_class(world: &mut World, envoy: &str) {
    install(world, "swap-own-class.yaml").await;
    let kube = &world.lab.plane.kube;
    eventually("istiod takes the class", async || {
        let class = kube.get(CLASS, "GatewayClass", "", "cairn-waypoint").await;
        class.is_some_and(|class| is_true(&class, "Accepted"))
    })
    .await;
    kube.apply(&gateway("bank", "cairn-waypoint")).await;
    let deployment = world.rendered_with("bank", IMAGE).await;
    serves(world, &world.bank, &deployment, "waypoint-d").await;
    world.rendered_with("shop", envoy).await;
}

/// What the example has for ECI.
pub async fn overlay(world: &mut World) {
    let parameters = json!({ "group": "", "kind": "ConfigMap", "name": "waypoint-on-eci" });
    let change = json!({ "spec": { "infrastructure": { "parametersRef": parameters } } });
    let change = change.to_string();
    let patch = ["patch", "gateway", GATEWAY, "-n", "shop", "--type", "merge", "-p", &change];
    world.tools.kubectl(&patch, "").await.done();
    let deployment = world.rendered_with("shop", IMAGE).await;
    let template = &deployment["spec"]["template"];
    let spec = &template["spec"];
    assert_eq!(spec["terminationGracePeriodSeconds"], 150);
    let node = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0\
                /matchExpressions/0";
    let virtual_node = json!({ "key": "type", "operator": "In", "values": ["virtual-kubelet"] });
    assert_eq!(spec.pointer(node), Some(&virtual_node), "{spec}");
    let tolerated = json!({
        "key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule",
    });
    assert!(spec["tolerations"].as_array().unwrap().contains(&tolerated), "{spec}");
    let annotations = &template["metadata"]["annotations"];
    for (name, value) in [
        ("k8s.aliyun.com/eci-use-specs", "2-4Gi,4-8Gi"),
        ("k8s.aliyun.com/eci-spot-strategy", "SpotAsPriceGo"),
        ("k8s.aliyun.com/eci-spot-fallback", "true"),
    ] {
        assert_eq!(annotations[name], value, "{annotations}");
    }
    assert_eq!(template["metadata"]["labels"]["alibabacloud.com/eci"], "true");
    let container = &spec["containers"][0];
    let size = json!({ "cpu": "2", "memory": "2Gi" });
    assert_eq!(container["resources"], json!({ "requests": size, "limits": size }));
    let drain = json!({ "name": "TERMINATION_DRAIN_DURATION_SECONDS", "value": "145" });
    assert!(container["env"].as_array().unwrap().contains(&drain), "{container}");
    let kube = &world.lab.plane.kube;
    for (version, kind, field, value) in [
        ("autoscaling/v2", "HorizontalPodAutoscaler", "minReplicas", 2),
        ("autoscaling/v2", "HorizontalPodAutoscaler", "maxReplicas", 10),
        ("policy/v1", "PodDisruptionBudget", "minAvailable", 1),
    ] {
        eventually(&format!("istiod makes the {kind}"), async || {
            let found = kube.get(version, kind, "shop", GATEWAY).await;
            found.is_some_and(|found| found["spec"][field] == value)
        })
        .await;
    }
    serves(world, &world.shop, &deployment, "waypoint-e").await;
    let gone = json!([{ "op": "remove", "path": "/spec/infrastructure" }]).to_string();
    let patch = ["patch", "gateway", GATEWAY, "-n", "shop", "--type", "json", "-p", &gone];
    world.tools.kubectl(&patch, "").await.done();
}

pub async fn uninstalled(world: &mut World, envoy: &str) {
    world.lab.plane.kube.apply(&gateway("bank", "istio-waypoint")).await;
    world.tools.helm(&["uninstall", "cairn", "-n", "cairn-system", "--wait"]).await.done();
    for namespace in ["shop", "bank"] {
        world.rendered_with(namespace, envoy).await;
    }
    let kube = &world.lab.plane.kube;
    assert_eq!(kube.get(CLASS, "GatewayClass", "", "cairn-waypoint").await, None);
    let maps = "/api/v1/configmaps?labelSelector=app.kubernetes.io/name%3Dcairn";
    let (_, left) = kube.call("GET", maps, "", b"").await;
    assert_eq!(left["items"], json!([]));
}

/// The example, without what needs prometheus-operator.
async fn install(world: &World, example: &str) {
    let chart = chart("cairn");
    let values = chart.join("examples").join(example);
    let [chart, values] = [&chart, &values].map(|path| path.display().to_string());
    let monitoring = "monitoring.podMonitor=false,monitoring.prometheusRule=false";
    let args = ["install", "cairn", &chart, "-n", "cairn-system", "--create-namespace"];
    let more = ["-f", &values, "--set", monitoring];
    world.tools.helm(&[&args[..], &more[..]].concat()).await.done();
}

/// Runs that Deployment's pod: it becomes ready, answers, holds a policy, and ends in order.
async fn serves(world: &World, tenant: &Tenant, deployment: &Value, name: &str) {
    let Tenant { namespace, service, client, other } = tenant;
    let template = &deployment["spec"]["template"];
    let ip = "10.244.9.10";
    let mut pod = world.node.start(template, (namespace, name), ip).await;
    let kube = &world.lab.plane.kube;
    let ports = [("mesh", 15008), ("status-port", 15021)];
    let slice = objects::endpoint_slice(namespace, GATEWAY, &ports, &[(name, ip, true)]);
    kube.apply(&slice).await;
    pod.ready().await;
    let talk = |client| talk(client, &pod, tenant);
    let (mine, theirs) = (talk(client), talk(other));
    mine.until("requests are answered", "/", &[], |answer| status(answer, 200)).await;
    theirs.until("nothing forbids it", "/secret", &[], |answer| status(answer, 200)).await;
    let account = format!("cluster.local/ns/{namespace}/sa/other");
    let rules = json!([{
        "from": [{ "source": { "principals": [account] } }],
        "to": [{ "operation": { "paths": ["/secret*"] } }],
    }]);
    let policy = objects::authorization_policy(namespace, "secret", service.name, "DENY", rules);
    kube.apply(&policy).await;
    theirs.until("the policy denies", "/secret", &[], |answer| status(answer, 403)).await;
    assert_eq!(mine.status("/secret").await, "200", "another identity");
    let inside = pod.inside();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(inside.contains(line), "{inside}");
    }
    let output = pod.output();
    assert!(!output.contains(" WARN ") && !output.contains(" ERROR "), "{output}");
    pod.end().await;
    kube.delete(&policy).await;
    kube.delete(&slice).await;
    kube.delete(&objects::pod(namespace, name, "any", &[])).await;
}

/// Requests of that client through the pod.
fn talk<'a>(client: &'a Client, pod: &Pod, tenant: &Tenant) -> Talk<'a> {
    let Tenant { service, .. } = tenant;
    let target = Target {
        waypoint: pod.ip,
        id: pod.id.clone(),
        authority: service.authority(),
        host: service.host(),
    };
    Talk::to(client, target)
}

fn status(answer: &Result<Response, Failure>, wanted: u16) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.status == wanted)
}

fn is_true(object: &Value, condition: &str) -> bool {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().any(|found| found["type"] == condition && found["status"] == "True")
}
