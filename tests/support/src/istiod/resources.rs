//! Small resources, and recorded ones.

use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;

use cairn_proto::envoy::envoy::config::cluster::v3::Cluster;
use cairn_proto::envoy::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use cairn_proto::envoy::envoy::config::core::v3::address::Address as Place;
use cairn_proto::envoy::envoy::config::core::v3::socket_address::PortSpecifier;
use cairn_proto::envoy::envoy::config::core::v3::{Address, Node, SocketAddress};
use cairn_proto::envoy::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use cairn_proto::envoy::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use cairn_proto::envoy::envoy::config::listener::v3::Listener;
use cairn_proto::envoy::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use cairn_proto::envoy::google::protobuf::value::Kind as ValueKind;
use cairn_proto::envoy::google::protobuf::{Any, Struct, Value};
use cairn_proto::prost::Message;
use cairn_proto::workload::Workload;
use cairn_xds::feed::Kind;

/// A resource with this body.
pub fn resource(kind: Kind, name: &str, version: &str, body: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value: body }),
        ..Resource::default()
    }
}

/// A resource whose body is no protobuf message.
pub fn garbage(kind: Kind, name: &str) -> Resource {
    resource(kind, name, "garbage", vec![0xff; 7])
}

/// A cluster that gets its endpoints by EDS, under its own name.
pub fn cluster(name: &str) -> Resource {
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig::default()),
        ..Cluster::default()
    };
    resource(Kind::Cluster, name, "", cluster.encode_to_vec())
}

/// The endpoints of a cluster, at ports of 127.0.0.1.
pub fn assignment(name: &str, ports: &[u16]) -> Resource {
    let endpoint = |port: &u16| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(Place::SocketAddress(SocketAddress {
                    address: "127.0.0.1".to_owned(),
                    port_specifier: Some(PortSpecifier::PortValue(u32::from(*port))),
                    ..SocketAddress::default()
                })),
            }),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: ports.iter().map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    resource(Kind::Endpoints, name, "", assignment.encode_to_vec())
}

/// A listener with this name; `padding` bytes make it larger.
pub fn listener(name: &str, padding: usize) -> Resource {
    let listener =
        Listener { name: name.to_owned(), stat_prefix: "x".repeat(padding), ..Listener::default() };
    resource(Kind::Listener, name, "", listener.encode_to_vec())
}

/// A pod `namespace/name` at an address, in the network of no name.
pub fn workload(namespace: &str, name: &str, address: Ipv4Addr, version: &str) -> Resource {
    let uid = format!("Kubernetes//Pod/{namespace}/{name}");
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: vec![address.octets().to_vec()],
        service_account: name.to_owned(),
        ..Workload::default()
    };
    resource(Kind::Workload, &uid, version, workload.encode_to_vec())
}

/// The node of a waypoint.
pub fn node(namespace: &str, account: &str) -> Node {
    let text = |value: &str| Value { kind: Some(ValueKind::StringValue(value.to_owned())) };
    let labels = Struct {
        fields: [("gateway.networking.k8s.io/gateway-name".to_owned(), text(account))].into(),
    };
    let fields = [
        ("NAMESPACE", text(namespace)),
        ("SERVICE_ACCOUNT", text(account)),
        ("CLUSTER_ID", text(super::CLUSTER)),
        ("LABELS", Value { kind: Some(ValueKind::StructValue(labels)) }),
    ];
    Node {
        id: format!("waypoint~127.0.0.1~{account}-1.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{account}.{namespace}"),
        metadata: Some(Struct {
            fields: fields.map(|(name, value)| (name.to_owned(), value)).into(),
        }),
        ..Node::default()
    }
}

/// What a directory with recorded answers holds, by kind.
///
/// # Panics
/// When there is none, or a file does not decode.
pub fn capture(directory: &Path) -> Vec<(Kind, Vec<Resource>)> {
    let mut kinds = Vec::new();
    for (kind, name) in [
        (Kind::Cluster, "cds"),
        (Kind::Listener, "lds"),
        (Kind::Endpoints, "eds"),
        (Kind::ExtensionConfig, "ecds"),
        (Kind::Workload, "workloads"),
    ] {
        let Some(bytes) = read(&directory.join(format!("{name}.pb"))) else { continue };
        let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        kinds.push((kind, response.resources));
    }
    assert!(!kinds.is_empty(), "{} holds no recorded answers", directory.display());
    kinds
}

fn read(path: &Path) -> Option<Vec<u8>> {
    if let Ok(bytes) = std::fs::read(path) {
        return Some(bytes);
    }
    let packed = std::fs::read(path.with_extension("pb.gz")).ok()?;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}
