//! What Istio's Telemetry API asks for: access logs, changed metrics, traces.

use crate::routing::status;
use crate::world::World;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::lab::Service;
use serde_json::{Value, json};

/// What a mesh's operator adds to `MeshConfig`.
const PROVIDERS: &str = "
extensionProviders:
- name: traces
  opentelemetry:
    service: collector.shop.svc.cluster.local
    port: 80
    http:
      path: /v1/traces
      timeout: 5s
- name: lines
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat:
      text: \"line %REQ(:PATH)% %RESPONSE_CODE% %UPSTREAM_CLUSTER_RAW% %REQ(X-REQUEST-ID)%\\n\"
";

fn asked() -> Value {
    json!({
        "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": { "namespace": "shop", "name": "all" },
        "spec": {
            "accessLogging": [{
                "providers": [{ "name": "lines" }],
                "filter": { "expression": "request.headers['x-log'] == 'yes'" },
            }],
            "tracing": [{ "providers": [{ "name": "traces" }], "randomSamplingPercentage": 100 }],
            "metrics": [{
                "providers": [{ "name": "prometheus" }],
                "overrides": [{
                    "match": { "metric": "REQUEST_COUNT" },
                    "tagOverrides": {
                        "asked_host": { "value": "request.host" },
                        "source_version": { "operation": "REMOVE" },
                    },
                }],
            }],
        },
    })
}

/// Series of `istio_requests_total` for a service.
async fn counted(world: &World, service: &Service) -> Vec<String> {
    let text = world.waypoint.admin("/stats/prometheus").await.text().to_owned();
    let host = format!("destination_service=\"{}\"", service.host());
    text.lines()
        .filter(|line| line.starts_with("istio_requests_total{") && line.contains(&host))
        .map(str::to_owned)
        .collect()
}

pub async fn telemetry(world: &mut World) {
    let labels = [("app", "collector")];
    world.lab.add_pod("shop", "collector-1", "collector", "10.244.1.16", &labels).await;
    let collector = Service {
        namespace: "shop",
        name: "collector",
        vip: "10.96.0.140",
        selector: labels.to_vec(),
    };
    world.lab.serve(&collector, &[("collector-1", true)]).await;
    let kube = &world.lab.plane.kube;
    let mut config = kube.get("v1", "ConfigMap", "istio-system", "istio").await.unwrap();
    let mesh = config["data"]["mesh"].as_str().unwrap().to_owned();
    config["data"]["mesh"] = json!(mesh.clone() + PROVIDERS);
    let with_mesh = |mesh: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": "istio-system", "name": "istio" },
            "data": { "mesh": mesh },
        })
    };
    kube.apply(&with_mesh(&(mesh.clone() + PROVIDERS))).await;
    kube.apply(&asked()).await;

    let talk = world.talk(&world.cart);
    let host = world.cart.host();
    let custom = format!("asked_host=\"{host}\"");
    eventually("the metrics are as asked for", async || {
        talk.until("cart answers", "/", &[], |answer| status(answer, 200)).await;
        counted(world, &world.cart).await.iter().any(|line| {
            line.contains(&custom)
                && !line.contains("source_version=")
                && line.contains("source_app=")
        })
    })
    .await;
    let web = counted(world, &world.web).await;
    assert!(!web.is_empty(), "what was counted before stays");

    let id = "7d4e1c0a-1111-4222-8333-444455556666";
    let logged = [("x-log", "yes"), ("x-request-id", id)];
    assert!(status(&talk.get("/quiet", &[]).await, 200));
    assert!(status(&talk.get("/told", &logged).await, 200));
    // Envoy: a trace that was drawn is told in the id.
    let told = id.replacen("-4222-", "-9222-", 1);
    let line = format!("line /told 200 inbound-vip|80|http|{host} {told}");
    let mut output = String::new();
    eventually("the line is written", async || {
        output = world.waypoint.output();
        output.lines().any(|written| written == line)
    })
    .await;
    assert!(!output.contains("line /quiet"), "{output}");

    let (_, backend) = world.lab.pod("collector-1");
    eventually("spans come to the collector", async || {
        backend.log().iter().any(|seen| seen.target == "/v1/traces" && seen.method == "POST")
    })
    .await;
    let parent = world.lab.pod("cart-v1").1.log();
    let also = world.lab.pod("cart-v2").1.log();
    let told = parent.iter().chain(also.iter()).find(|seen| seen.target == "/told").unwrap();
    assert!(
        told.headers.get("traceparent").is_some_and(|parent| parent.ends_with("-01")),
        "{told:?}"
    );

    let kube = &world.lab.plane.kube;
    kube.delete(&asked()).await;
    kube.apply(&with_mesh(&mesh)).await;
    let talk = world.talk(&world.cart);
    eventually("the standard labels are back", async || {
        talk.until("cart answers", "/", &[], |answer| status(answer, 200)).await;
        counted(world, &world.cart).await.iter().any(|line| line.contains("source_version="))
    })
    .await;
    world.lab.withdraw(&collector).await;
}
