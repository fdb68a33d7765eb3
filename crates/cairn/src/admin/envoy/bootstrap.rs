//! Who this is, as Envoy's bootstrap would say it.

use super::view::AdminView;
use cairn_proto::envoy::envoy::config::bootstrap::v3::{Admin, Bootstrap, bootstrap};
use cairn_proto::envoy::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, BuildVersion, ConfigSource,
    GrpcService, Node, SocketAddress, address, api_config_source, config_source, grpc_service,
    node, socket_address,
};
use cairn_proto::envoy::envoy::r#type::v3::SemanticVersion;
use std::net::SocketAddr;

/// The bootstrap that an Envoy in this place would have, as far as Cairn has it too.
pub fn bootstrap(view: &AdminView) -> Bootstrap {
    let admin = view.listeners.iter().find(|bound| bound.name == "admin");
    Bootstrap {
        node: Some(node(view)),
        admin: admin
            .map(|bound| Admin { address: Some(socket(bound.address)), ..Admin::default() }),
        dynamic_resources: Some(bootstrap::DynamicResources {
            lds_config: Some(aggregated()),
            cds_config: Some(aggregated()),
            ads_config: Some(ApiConfigSource {
                api_type: api_config_source::ApiType::DeltaGrpc.into(),
                transport_api_version: ApiVersion::V3.into(),
                grpc_services: vec![GrpcService {
                    target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(
                        grpc_service::EnvoyGrpc {
                            cluster_name: "xds-grpc".to_owned(),
                            ..Default::default()
                        },
                    )),
                    ..GrpcService::default()
                }],
                ..ApiConfigSource::default()
            }),
            ..bootstrap::DynamicResources::default()
        }),
        ..Bootstrap::default()
    }
}

/// As istiod was told, with our version where none was.
pub fn node(view: &AdminView) -> Node {
    let mut node = view.node.clone();
    if node.user_agent_version_type.is_none() {
        let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        let version = SemanticVersion { major_number: part(), minor_number: part(), patch: part() };
        node.user_agent_version_type =
            Some(node::UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(version),
                ..BuildVersion::default()
            }));
    }
    node
}

fn aggregated() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource::default(),
        )),
        ..ConfigSource::default()
    }
}

/// An address of a socket.
pub fn socket(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(address.port().into())),
            ..SocketAddress::default()
        })),
    }
}
