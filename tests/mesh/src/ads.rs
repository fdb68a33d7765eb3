//! A waypoint's question to istiod, without a waypoint: what would it be given?

use crate::grpc::Caller;
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use cairn_proto::envoy::google::protobuf::{Struct, Value, value::Kind};

const STREAM: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Names of the clusters that istiod has for the waypoint of that pod.
///
/// # Errors
/// istiod's answer.
pub async fn clusters(
    caller: &Caller,
    namespace: &str,
    pod: &str,
    ip: &str,
    gateway: &str,
) -> Result<Vec<String>, String> {
    let labels = fields([
        ("gateway.networking.k8s.io/gateway-name", text(gateway)),
        ("gateway.istio.io/managed", text("istio.io-mesh-controller")),
    ]);
    let metadata = fields([
        ("NAME", text(pod)),
        ("NAMESPACE", text(namespace)),
        ("CLUSTER_ID", text("Kubernetes")),
        ("INSTANCE_IPS", text(ip)),
        ("ISTIO_VERSION", text("1.32.0")),
        ("LABELS", Value { kind: Some(Kind::StructValue(labels)) }),
    ]);
    let node = Node {
        id: format!("waypoint~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(metadata),
        ..Node::default()
    };
    let request = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: CLUSTER.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let answer: DeltaDiscoveryResponse = caller.start(STREAM, &request).await?.next().await?;
    Ok(answer.resources.into_iter().map(|resource| resource.name).collect())
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}
