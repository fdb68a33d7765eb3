//! A push as the configuration of an Envoy that has no istiod: everything in one file.
//!
//! What only Istio's build of Envoy has is taken out: filters that exchange and look up metadata of
//! peers, Istio's metrics, and its kind of strings in filter state. Endpoints become part of their
//! clusters, certificates part of the TLS settings.

use crate::any::{edit, pack};
use crate::push::{Push, config, config_mut};
use cairn_proto::envoy::envoy as pb;
use cairn_proto::envoy::google::protobuf::Any;
use pb::config::bootstrap::v3::bootstrap::StaticResources;
use pb::config::bootstrap::v3::{Admin, Bootstrap};
use pb::config::cluster::v3::Cluster;
use pb::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use pb::config::core::v3::address::Address as Place;
use pb::config::core::v3::data_source::Specifier;
use pb::config::core::v3::socket_address::PortSpecifier;
use pb::config::core::v3::transport_socket::ConfigType as SocketConfig;
use pb::config::core::v3::{
    Address, DataSource, Node, SocketAddress, TransportSocket, TypedExtensionConfig,
};
use pb::config::endpoint::v3::ClusterLoadAssignment;
use pb::config::listener::v3::Listener;
use pb::extensions::bootstrap::internal_listener::v3::InternalListener;
use pb::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use pb::extensions::filters::http::set_filter_state::v3::Config as HttpState;
use pb::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use pb::extensions::filters::network::set_filter_state::v3::Config as NetworkState;
use pb::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use pb::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use pb::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsCertificate,
    UpstreamTlsContext,
};
use prost::Message;
use std::net::{IpAddr, SocketAddr};

/// Strings in filter state: Istio's kind, and Envoy's own.
const ISTIO_STRING: &str = "istio.hashable_string";
const STRING: &str = "envoy.string";

/// Who Envoy is, PEM.
pub struct Credentials {
    /// Leaf first.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
    /// Whom it trusts.
    pub roots: String,
}

/// The file, in binary protobuf.
pub fn encode(push: &Push, who: &Credentials, listen: IpAddr, admin: SocketAddr) -> Vec<u8> {
    let mut listeners = push.listeners.clone();
    listeners.iter_mut().for_each(|listener| edit_listener(listener, who, listen));
    let mut clusters = push.clusters.clone();
    for cluster in &mut clusters {
        edit_cluster(cluster, who, &push.endpoints);
    }
    let internal = pack(&InternalListener::default());
    let bootstrap = Bootstrap {
        node: Some(Node { id: "waypoint".into(), cluster: "waypoint".into(), ..Node::default() }),
        admin: Some(Admin { address: Some(address(admin)), ..Admin::default() }),
        bootstrap_extensions: vec![TypedExtensionConfig {
            name: "envoy.bootstrap.internal_listener".into(),
            typed_config: Some(internal),
        }],
        static_resources: Some(StaticResources { listeners, clusters, secrets: Vec::new() }),
        ..Bootstrap::default()
    };
    bootstrap.encode_to_vec()
}

fn address(at: SocketAddr) -> Address {
    Address {
        address: Some(Place::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(at.port()))),
            ..SocketAddress::default()
        })),
    }
}

/// Upstream Envoy does not have it.
fn is_istios(any: &Any) -> bool {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    name == "stats.PluginConfig" || name.ends_with(".TypedStruct")
}

fn edit_listener(listener: &mut Listener, who: &Credentials, listen: IpAddr) {
    if let Some(Place::SocketAddress(at)) =
        listener.address.as_mut().and_then(|address| address.address.as_mut())
    {
        at.address = listen.to_string();
    }
    for chain in &mut listener.filter_chains {
        edit_socket(chain.transport_socket.as_mut(), who);
        chain.filters.retain(|filter| !config(filter).is_some_and(is_istios));
        for any in chain.filters.iter_mut().filter_map(config_mut) {
            edit(any, |state: &mut NetworkState| {
                state.on_new_connection.iter_mut().for_each(use_own_string);
            });
            edit(any, edit_manager);
        }
    }
}

fn edit_manager(manager: &mut HttpConnectionManager) {
    manager.http_filters.retain(|filter| match &filter.config_type {
        Some(HttpConfigType::TypedConfig(any)) => !is_istios(any),
        _ => true,
    });
    for filter in &mut manager.http_filters {
        if let Some(HttpConfigType::TypedConfig(any)) = &mut filter.config_type {
            edit(any, |state: &mut HttpState| {
                state.on_request_headers.iter_mut().for_each(use_own_string);
            });
        }
    }
}

fn use_own_string(state: &mut FilterStateValue) {
    if state.factory_key == ISTIO_STRING {
        state.factory_key = STRING.to_owned();
    }
}

fn edit_cluster(cluster: &mut Cluster, who: &Credentials, all: &[ClusterLoadAssignment]) {
    cluster.filters.retain(|filter| !filter.typed_config.as_ref().is_some_and(is_istios));
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds as i32);
    if cluster.cluster_discovery_type == Some(eds) {
        let service = cluster.eds_cluster_config.take().map(|config| config.service_name);
        let name = service.filter(|name| !name.is_empty()).unwrap_or(cluster.name.clone());
        let found = all.iter().find(|assignment| assignment.cluster_name == name);
        cluster.load_assignment = Some(found.cloned().unwrap_or_else(|| ClusterLoadAssignment {
            cluster_name: name,
            ..ClusterLoadAssignment::default()
        }));
        cluster.cluster_discovery_type =
            Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
    }
    edit_socket(cluster.transport_socket.as_mut(), who);
    for one in &mut cluster.transport_socket_matches {
        edit_socket(one.transport_socket.as_mut(), who);
    }
}

fn edit_socket(socket: Option<&mut TransportSocket>, who: &Credentials) {
    let Some(SocketConfig::TypedConfig(any)) =
        socket.and_then(|socket| socket.config_type.as_mut())
    else {
        return;
    };
    edit(any, |tls: &mut DownstreamTlsContext| edit_tls(tls.common_tls_context.as_mut(), who));
    edit(any, |tls: &mut UpstreamTlsContext| edit_tls(tls.common_tls_context.as_mut(), who));
    edit(any, |internal: &mut InternalUpstreamTransport| {
        edit_socket(internal.transport_socket.as_mut(), who);
    });
}

fn edit_tls(common: Option<&mut CommonTlsContext>, who: &Credentials) {
    let Some(common) = common else { return };
    let inline = |text: &str| {
        let specifier = Some(Specifier::InlineString(text.to_owned()));
        Some(DataSource { specifier, ..DataSource::default() })
    };
    if !common.tls_certificate_sds_secret_configs.is_empty() {
        common.tls_certificate_sds_secret_configs.clear();
        common.tls_certificates = vec![TlsCertificate {
            certificate_chain: inline(&who.chain),
            private_key: inline(&who.key),
            ..TlsCertificate::default()
        }];
    }
    let context = match common.validation_context_type.take() {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.default_validation_context.unwrap_or_default()
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) => {
            CertificateValidationContext::default()
        }
        other => {
            common.validation_context_type = other;
            return;
        }
    };
    let context = CertificateValidationContext { trusted_ca: inline(&who.roots), ..context };
    common.validation_context_type = Some(ValidationContextType::ValidationContext(context));
}
