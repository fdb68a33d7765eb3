//! The scaler by its chart, as each of the two that it can be.

use crate::pool::{POOL, Pool, SCALER, SYSTEM, deployment, page, start, until, values};
use crate::world::{World, chart};
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::node::Pod;
use cairn_proto::externalscaler::external_scaler_client::ExternalScalerClient;
use cairn_proto::externalscaler::{GetMetricsRequest, ScaledObjectRef};
use cairn_proto::tonic::transport::{Channel, Endpoint};
use serde_json::{Value, json};

/// The scaler applies: it reads `/load`, holds its Lease and sets the Deployment's replicas.
pub async fn applies(world: &World, pool: &mut Pool) {
    let replicas = async || {
        let found = deployment(world, "members").await;
        found["spec"]["replicas"].as_u64()
    };
    assert_eq!(replicas().await, Some(1), "the chart leaves them to the scaler");
    let mut scaler = start(world, "scaler", "scaler", SCALER).await;
    scaler.ready().await;
    let wanted = |decision: &Value| {
        decision["counts"]["answering"] == 2 && decision["lease"]["held"] == true
    };
    until(&scaler, "/decision", "two members answer, and it holds the Lease", wanted).await;
    eventually("two are asked for", async || replicas().await == Some(2)).await;
    let decision = page(&scaler, "/decision").await;
    assert_eq!(decision["lease"]["problem"], Value::Null, "{decision}");
    assert_eq!(decision["target"]["problem"], Value::Null, "{decision}");
    for member in &mut pool.members {
        member.must_run();
    }
    pool.scaler = Some(scaler);
}

/// It only answers KEDA: no Lease, and nothing is set.
pub async fn answers_keda(world: &World) {
    let kube = &world.lab.plane.kube;
    let [chart, file] =
        [chart("cairn").display().to_string(), world.file("keda.json", &values("keda"))];
    let args = ["template", "cairn", &chart, "-n", SYSTEM, "-f", &file];
    let rendered = world.tools.helm(&args).await.done();
    assert!(rendered.contains("kind: ScaledObject"), "{rendered}");
    let applied = kube.apply_all(&rendered, |kind| ["Role", "Deployment"].contains(&kind)).await;
    assert_eq!(applied, 5, "two Roles, three Deployments");
    let role = kube.get("rbac.authorization.k8s.io/v1", "Role", SYSTEM, "cairn-scaler").await;
    let rules = role.unwrap()["rules"].clone();
    assert_eq!(rules.as_array().unwrap().len(), 2, "no Lease: {rules}");
    assert_eq!(rules[1]["verbs"], json!(["get"]), "nothing is set: {rules}");
    let mut scaler = start(world, "scaler", "scaler-keda", SCALER).await;
    scaler.ready().await;
    let calm = |decision: &Value| decision["counts"]["answering"] == 2 && decision["desired"] == 2;
    until(&scaler, "/decision", "two are enough", calm).await;
    let mut keda = keda(&scaler).await;
    eventually("KEDA is told so", async || {
        let trigger = ScaledObjectRef {
            name: "cairn-members".to_owned(),
            namespace: SYSTEM.to_owned(),
            scaler_metadata: [("pool".to_owned(), POOL.to_owned())].into(),
        };
        let request = GetMetricsRequest {
            scaled_object_ref: Some(trigger),
            metric_name: "waypoint_pool_desired_replicas".to_owned(),
        };
        let answer = keda.get_metrics(request).await.unwrap().into_inner();
        answer.metric_values.iter().any(|value| value.metric_value_float == 2.0)
    })
    .await;
    let decision = page(&scaler, "/decision").await;
    assert_eq!(decision["lease"], Value::Null, "{decision}");
    assert_eq!(decision["target"]["problem"], Value::Null, "{decision}");
    scaler.end().await;
}

/// A connection as KEDA has one.
async fn keda(scaler: &Pod) -> ExternalScalerClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}:9090", scaler.ip)).unwrap();
    ExternalScalerClient::new(endpoint.connect().await.unwrap())
}
