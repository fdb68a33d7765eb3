//! Questions to istiod as a proxy asks them: who it is, and a delta stream.

use crate::grpc::{Call, Caller};
use cairn_proto::envoy::envoy::config::core::v3::{Locality, Node};
use cairn_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use cairn_proto::envoy::google::protobuf::{Struct, Value, value::Kind};
use std::collections::HashMap;

const STREAM: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A proxy as it tells istiod who it is.
#[derive(Debug, Clone, Copy)]
pub struct Proxy<'a> {
    /// `waypoint` or `ztunnel`.
    pub kind: &'a str,
    /// Name and namespace of its pod.
    pub name: &'a str,
    /// Namespace, which the token must be of.
    pub namespace: &'a str,
    /// Service account; left out when empty.
    pub account: &'a str,
    /// Its address.
    pub ip: &'a str,
    /// Labels by which istiod finds services and policies.
    pub labels: &'a [(&'a str, &'a str)],
    /// The WorkloadGroup to register by.
    pub group: Option<&'a str>,
    /// Region and zone.
    pub locality: Option<(&'a str, &'a str)>,
}

impl Proxy<'_> {
    /// The node of a stream.
    pub fn node(&self, caller: &Caller) -> Node {
        let Proxy { kind, name, namespace, account, ip, labels, group, locality } = *self;
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
        let labels = Value { kind: Some(Kind::StructValue(Struct { fields: labels })) };
        let mut fields = HashMap::from([
            ("NAME".to_owned(), text(name)),
            ("NAMESPACE".to_owned(), text(namespace)),
            ("CLUSTER_ID".to_owned(), text(&caller.cluster_id)),
            ("INSTANCE_IPS".to_owned(), text(ip)),
            ("ISTIO_VERSION".to_owned(), text("1.32.0")),
            ("LABELS".to_owned(), labels),
        ]);
        if !account.is_empty() {
            fields.insert("SERVICE_ACCOUNT".to_owned(), text(account));
        }
        if let Some(group) = group {
            fields.insert("AUTO_REGISTER_GROUP".to_owned(), text(group));
        }
        Node {
            id: format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields }),
            locality: locality.map(|(region, zone)| Locality {
                region: region.to_owned(),
                zone: zone.to_owned(),
                ..Locality::default()
            }),
            ..Node::default()
        }
    }
}

/// A delta stream of one type; every answer is accepted.
pub struct Stream {
    call: Call,
    type_url: String,
}

impl Stream {
    /// Subscribes to all resources of that type, those in `held` being known from before.
    ///
    /// # Errors
    /// The connection's, or istiod's.
    pub async fn open(
        caller: &Caller,
        node: Node,
        type_url: &str,
        held: impl IntoIterator<Item = String>,
    ) -> Result<Self, String> {
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: held.into_iter().map(|name| (name, String::new())).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        let call = caller.start(STREAM, &request).await?;
        Ok(Stream { call, type_url: type_url.to_owned() })
    }

    /// The next answer.
    ///
    /// # Errors
    /// The stream's, when it has ended.
    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, String> {
        let answer: DeltaDiscoveryResponse = self.call.next().await?;
        let request = DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.call.say(&request)?;
        Ok(answer)
    }
}

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
    let labels = [
        ("gateway.networking.k8s.io/gateway-name", gateway),
        ("gateway.istio.io/managed", "istio.io-mesh-controller"),
    ];
    let proxy = Proxy {
        kind: "waypoint",
        name: pod,
        namespace,
        account: "",
        ip,
        labels: &labels,
        group: None,
        locality: None,
    };
    let mut stream = Stream::open(caller, proxy.node(caller), CLUSTER, []).await?;
    let answer = stream.next().await?;
    Ok(answer.resources.into_iter().map(|resource| resource.name).collect())
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}
