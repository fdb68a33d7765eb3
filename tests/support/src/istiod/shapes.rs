//! Messages of a small mesh, in the shapes that istiod gives them: those of the recording `plain`, with other names and
//! addresses.
//!
//! A service `app` is `app.plain.svc.cluster.local`, port 80, HTTP; `app.shop` is the one of the namespace `shop`. Its
//! pods are behind tunnels.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;

use cairn_proto::envoy::envoy::config::cluster::v3::Cluster;
use cairn_proto::envoy::envoy::config::cluster::v3::cluster::LbConfig;
use cairn_proto::envoy::envoy::config::core::v3::address::Address as Place;
use cairn_proto::envoy::envoy::config::endpoint::v3::ClusterLoadAssignment;
use cairn_proto::envoy::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use cairn_proto::envoy::envoy::config::listener::v3::filter::ConfigType;
use cairn_proto::envoy::envoy::config::listener::v3::{FilterChain, Listener};
use cairn_proto::envoy::envoy::config::route::v3::route::Action;
use cairn_proto::envoy::envoy::config::route::v3::route_action::ClusterSpecifier;
use cairn_proto::envoy::envoy::config::route::v3::{Route, RouteConfiguration};
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter, http_filter};
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use cairn_proto::envoy::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use cairn_proto::envoy::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpCluster;
use cairn_proto::envoy::envoy::config::core::v3::Http2ProtocolOptions;
use cairn_proto::envoy::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use cairn_proto::envoy::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use cairn_proto::envoy::envoy::service::discovery::v3::Resource;
use cairn_proto::envoy::google::protobuf::value::Kind as ValueKind;
use cairn_proto::envoy::google::protobuf::{Any, StringValue, Struct, UInt32Value, Value};
use cairn_proto::envoy::xds::core::v3::{CidrRange, TypedExtensionConfig};
use cairn_proto::envoy::xds::r#type::matcher::v3::Matcher;
use cairn_proto::envoy::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use cairn_proto::envoy::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch, on_match};
use cairn_proto::prost::{self, Message, Name};
use cairn_proto::stats::{PluginConfig, Reporter};
use cairn_proto::workload::Workload;
use cairn_xds::feed::Kind;

use super::resources::{capture, resource};

/// Namespace of everything that names none.
pub const NAMESPACE: &str = "plain";
/// The service of the recording that others are made of.
const MODEL: &str = "app";

/// Name and namespace of a service, or of an account: `app` or `app.shop`.
pub fn name_and_namespace(service: &str) -> (&str, &str) {
    service.split_once('.').unwrap_or((service, NAMESPACE))
}

/// The chain and the cluster of a service.
pub fn name(service: &str) -> String {
    let (name, namespace) = name_and_namespace(service);
    format!("inbound-vip|80|http|{name}.{namespace}.svc.cluster.local")
}

/// The identity of a service account.
pub fn identity(account: &str) -> String {
    let (name, namespace) = name_and_namespace(account);
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// Any message as `Any`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    let type_url = format!("type.googleapis.com/{}", M::full_name());
    Any { type_url, value: message.encode_to_vec() }
}

fn recorded<M: Message + Default>(kind: Kind, name: &str) -> M {
    static RECORDING: OnceLock<Vec<(Kind, Vec<Resource>)>> = OnceLock::new();
    let recording = RECORDING.get_or_init(|| capture(&captures().join("plain")));
    let resources = recording.iter().filter(|(of, _)| *of == kind).flat_map(|(_, all)| all);
    let found =
        resources.filter(|resource| resource.name == name).find_map(|one| one.resource.clone());
    M::decode(found.unwrap().value.as_slice()).unwrap()
}

/// Where the recordings are.
pub fn captures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/captures")
}

/// The cluster that begins tunnels, to this port of pods, and those that istiod has for every waypoint.
pub fn clusters_of_every_waypoint(tunnel_port: u16) -> Vec<Resource> {
    let mut originate: Cluster = recorded(Kind::Cluster, "connect_originate");
    let Some(LbConfig::OriginalDstLbConfig(config)) = &mut originate.lb_config else {
        panic!("{:?}", originate.lb_config)
    };
    config.upstream_port_override = Some(UInt32Value { value: tunnel_port.into() });
    let mut clusters = vec![cluster_of(&originate)];
    for name in ["encap", "main_internal"] {
        clusters.push(cluster_of(&recorded(Kind::Cluster, name)));
    }
    clusters
}

/// As it is.
pub fn cluster_of(cluster: &Cluster) -> Resource {
    resource(Kind::Cluster, &cluster.name, "", cluster.encode_to_vec())
}

/// The listener `connect_terminate`, to change.
pub fn terminate() -> Listener {
    recorded(Kind::Listener, "connect_terminate")
}

/// As it is.
pub fn listener_of(listener: &Listener) -> Resource {
    resource(Kind::Listener, &listener.name, "", listener.encode_to_vec())
}

/// The listeners that istiod has for every waypoint.
pub fn listeners_of_every_waypoint() -> Vec<Resource> {
    ["connect_terminate", "connect_originate", "inner_connect_originate", "outer_connect_originate"]
        .map(|name| listener_of(&recorded(Kind::Listener, name)))
        .to_vec()
}

/// What handles the requests to a service.
pub fn manager(service: &str) -> HttpConnectionManager {
    let listener: Listener = recorded(Kind::Listener, "main_internal");
    let model = name(MODEL);
    let chain = listener.filter_chains.into_iter().find(|chain| chain.name == model).unwrap();
    let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else {
        panic!("{chain:?}")
    };
    let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
    routes(&mut manager).name = name(service);
    route(&mut manager).action = Some(to(service));
    manager
}

/// The routes of a manager.
pub fn routes(manager: &mut HttpConnectionManager) -> &mut RouteConfiguration {
    match &mut manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => config,
        other => panic!("{other:?}"),
    }
}

/// Its first route, which takes everything.
pub fn route(manager: &mut HttpConnectionManager) -> &mut Route {
    &mut routes(manager).virtual_hosts[0].routes[0]
}

/// An action as istiod's for a service without policies.
pub fn to(service: &str) -> Action {
    let listener: Listener = recorded(Kind::Listener, "main_internal");
    let model = name(MODEL);
    let chain = listener.filter_chains.into_iter().find(|chain| chain.name == model).unwrap();
    let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else {
        panic!("{chain:?}")
    };
    let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
    match route(&mut manager).action.clone() {
        Some(Action::Route(mut action)) => {
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(name(service)));
            Action::Route(action)
        }
        other => panic!("{other:?}"),
    }
}

/// The chain of a service.
pub fn chain(service: &str, manager: &HttpConnectionManager) -> FilterChain {
    let listener: Listener = recorded(Kind::Listener, "main_internal");
    let model = name(MODEL);
    let mut chain = listener.filter_chains.into_iter().find(|chain| chain.name == model).unwrap();
    chain.name = name(service);
    chain.filters[0].config_type = Some(ConfigType::TypedConfig(pack(manager)));
    chain
}

/// The chain of a service whose bytes are nobody's business, with its metrics told so.
pub fn tcp_chain(service: &str, stats: &PluginConfig) -> FilterChain {
    let listener: Listener = recorded(Kind::Listener, "main_internal");
    let opaque = |chain: &FilterChain| {
        let names: Vec<&str> = chain.filters.iter().map(|filter| filter.name.as_str()).collect();
        chain.name.starts_with("inbound-vip|") && names.ends_with(&["istio.stats", TCP_PROXY])
    };
    let mut chain = listener.filter_chains.into_iter().find(opaque).unwrap();
    chain.name = name(service);
    for filter in &mut chain.filters {
        let Some(ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
        match filter.name.as_str() {
            "istio.stats" => *config = stats_of(stats),
            TCP_PROXY => {
                let mut proxy = TcpProxy::decode(config.value.as_slice()).unwrap();
                proxy.cluster_specifier = Some(TcpCluster::Cluster(name(service)));
                *config = pack(&proxy);
            }
            _ => {}
        }
    }
    chain
}

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";

/// Settings of Istio's metrics, as istiod gives them where nobody wishes anything.
pub fn stats() -> PluginConfig {
    PluginConfig {
        disable_host_header_fallback: true,
        reporter: Reporter::ServerGateway as i32,
        ..PluginConfig::default()
    }
}

fn stats_of(stats: &PluginConfig) -> Any {
    Any {
        type_url: "type.googleapis.com/stats.PluginConfig".to_owned(),
        value: stats.encode_to_vec(),
    }
}

/// Changes the settings of a manager's metrics.
pub fn set_stats(manager: &mut HttpConnectionManager, stats: &PluginConfig) {
    let mut filters = manager.http_filters.iter_mut();
    let filter = filters.find(|filter| filter.name == "istio.stats").unwrap();
    filter.config_type = Some(http_filter::ConfigType::TypedConfig(stats_of(stats)));
}

/// The settings of metrics that istiod made of the recorded Telemetry with changes.
pub fn recorded_stats() -> PluginConfig {
    let recording = capture(&captures().join("telemetry"));
    let listeners = recording.iter().filter(|(kind, _)| *kind == Kind::Listener);
    for resource in listeners.flat_map(|(_, all)| all) {
        let Some(body) = &resource.resource else { continue };
        let listener = Listener::decode(body.value.as_slice()).unwrap();
        for filter in listener.filter_chains.iter().flat_map(|chain| &chain.filters) {
            if let Some(ConfigType::TypedConfig(config)) = &filter.config_type
                && config.type_url.ends_with("stats.PluginConfig")
                && let Ok(stats) = PluginConfig::decode(config.value.as_slice())
                && !stats.metrics.is_empty()
            {
                return stats;
            }
        }
    }
    panic!("the recording has no changes of metrics")
}

/// The listener with all chains, each for port 80 of an address.
pub fn main_internal<'a>(chains: impl IntoIterator<Item = (IpAddr, &'a FilterChain)>) -> Resource {
    let mut listener: Listener = recorded(Kind::Listener, "main_internal");
    listener.filter_chains.clear();
    let mut range_matchers = Vec::new();
    for (vip, chain) in chains {
        let port = exact("DestinationPortInput", "80", action(&chain.name));
        let length = if vip.is_ipv4() { 32 } else { 128 };
        range_matchers.push(IpRangeMatcher {
            ranges: vec![CidrRange {
                address_prefix: vip.to_string(),
                prefix_len: Some(UInt32Value { value: length }),
            }],
            on_match: Some(OnMatch {
                on_match: Some(on_match::OnMatch::Matcher(Box::new(port))),
                ..OnMatch::default()
            }),
        });
        listener.filter_chains.push(chain.clone());
    }
    let matcher = IpMatcher { range_matchers };
    let custom = TreeType::CustomMatch(TypedExtensionConfig {
        name: "ip".to_owned(),
        typed_config: Some(Any {
            type_url: "type.googleapis.com/xds.type.matcher.v3.IPMatcher".to_owned(),
            value: matcher.encode_to_vec(),
        }),
    });
    listener.filter_chain_matcher = Some(tree("DestinationIPInput", custom));
    listener_of(&listener)
}

/// `envoy-types` does not have it.
#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "prost")]
struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    range_matchers: Vec<IpRangeMatcher>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "prost")]
struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<OnMatch>,
}

/// A matcher on one input of a connection.
pub fn exact(input: &str, value: &str, then: OnMatch) -> Matcher {
    tree(input, TreeType::ExactMatchMap(MatchMap { map: [(value.to_owned(), then)].into() }))
}

fn tree(input: &str, tree: TreeType) -> Matcher {
    let kind =
        format!("type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{input}");
    Matcher {
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(TypedExtensionConfig {
                name: input.to_owned(),
                typed_config: Some(Any { type_url: kind, value: Vec::new() }),
            }),
            tree_type: Some(tree),
        })),
        on_no_match: None,
    }
}

fn action(chain: &str) -> OnMatch {
    let value = pack(&StringValue { value: chain.to_owned() });
    OnMatch {
        on_match: Some(on_match::OnMatch::Action(TypedExtensionConfig {
            name: chain.to_owned(),
            typed_config: Some(value),
        })),
        ..OnMatch::default()
    }
}

/// The cluster of a service, to change.
pub fn cluster(service: &str) -> Cluster {
    let mut cluster: Cluster = recorded(Kind::Cluster, &name(MODEL));
    cluster.name = name(service);
    cluster.alt_stat_name = format!("{};", cluster.name);
    let metadata = cluster.metadata.as_mut().and_then(|all| all.filter_metadata.get_mut("istio"));
    if let Some(ValueKind::ListValue(services)) =
        metadata.and_then(|istio| istio.fields.get_mut("services")).and_then(|of| of.kind.as_mut())
        && let Some(ValueKind::StructValue(first)) =
            services.values.first_mut().and_then(|first| first.kind.as_mut())
    {
        let (name, namespace) = name_and_namespace(service);
        let host = format!("{name}.{namespace}.svc.cluster.local");
        first.fields.extend(one_text("host", &host).fields);
        first.fields.extend(one_text("name", name).fields);
        first.fields.extend(one_text("namespace", namespace).fields);
    }
    if let Some(eds) = &mut cluster.eds_cluster_config {
        eds.service_name.clone_from(&cluster.name);
    }
    cluster
}

/// A cluster whose endpoints are spoken to in this version of HTTP.
pub fn cluster_by(service: &str, protocol: UpstreamProtocolOptions) -> Cluster {
    let mut cluster = cluster(service);
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(protocol),
        ..HttpProtocolOptions::default()
    };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    cluster.typed_extension_protocol_options.insert(name, pack(&options));
    cluster
}

/// Endpoints speak HTTP/2.
pub fn http2() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(
            ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()),
        ),
    })
}

/// The endpoints of a service: pods, and where their applications are.
pub fn assignment(service: &str, pods: &[(&str, SocketAddr)]) -> Resource {
    let mut assignment: ClusterLoadAssignment = recorded(Kind::Endpoints, &name(MODEL));
    assignment.cluster_name = name(service);
    let mut locality = assignment.endpoints[0].clone();
    let model = locality.lb_endpoints.remove(0);
    for (pod, address) in pods {
        let mut endpoint = model.clone();
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier
            && let Some(Place::EnvoyInternalAddress(internal)) =
                endpoint.address.as_mut().and_then(|address| address.address.as_mut())
        {
            internal.endpoint_id = address.to_string();
        }
        let metadata = &mut endpoint.metadata.as_mut().unwrap().filter_metadata;
        let (name, namespace) = name_and_namespace(service);
        let workload = format!("{pod};{namespace};{name};v1;Kubernetes");
        metadata.insert("istio".to_owned(), one_text("workload", &workload));
        let local = one_text("local", &address.to_string());
        metadata.insert("envoy.filters.listener.original_dst".to_owned(), local);
        locality.lb_endpoints.push(endpoint);
    }
    assignment.endpoints = vec![locality];
    resource(Kind::Endpoints, &assignment.cluster_name, "", assignment.encode_to_vec())
}

fn one_text(name: &str, text: &str) -> Struct {
    let value = Value { kind: Some(ValueKind::StringValue(text.to_owned())) };
    Struct { fields: [(name.to_owned(), value)].into() }
}

/// A pod with a service account.
pub fn pod(name: &str, account: &str, address: IpAddr) -> Resource {
    let mut workload: Workload = recorded(Kind::Workload, "Kubernetes//Pod/plain/app-v1");
    let (account, namespace) = name_and_namespace(account);
    workload.uid = format!("Kubernetes//Pod/{namespace}/{name}");
    workload.name = name.to_owned();
    workload.namespace = namespace.to_owned();
    workload.workload_name = name.to_owned();
    workload.service_account = account.to_owned();
    workload.canonical_name = account.to_owned();
    workload.addresses = vec![match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }];
    let body = workload.encode_to_vec();
    let version = format!(
        "{:x}",
        body.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte))
    );
    resource(Kind::Workload, &workload.uid, &version, body)
}

/// The listener `connect_terminate` with one more filter in front of all tunnels.
pub fn with_filter_of_tunnels(filter: HttpFilter) -> Listener {
    let mut listener = terminate();
    let chain = &mut listener.filter_chains[0];
    let Some(ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else {
        panic!("{chain:?}")
    };
    let mut manager = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
    let last = manager.http_filters.len() - 1;
    manager.http_filters.insert(last, filter);
    chain.filters[0].config_type = Some(ConfigType::TypedConfig(pack(&manager)));
    listener
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_be_of_another_namespace() {
        assert_eq!(name("app"), "inbound-vip|80|http|app.plain.svc.cluster.local");
        assert_eq!(name("app.shop"), "inbound-vip|80|http|app.shop.svc.cluster.local");
        assert_eq!(identity("app.shop"), "spiffe://cluster.local/ns/shop/sa/app");
        let workload = pod("app-1", "app.shop", [127, 0, 0, 1].into());
        let workload = Workload::decode(workload.resource.unwrap().value.as_slice()).unwrap();
        assert_eq!(
            (workload.namespace.as_str(), workload.service_account.as_str()),
            ("shop", "app")
        );
    }
}
