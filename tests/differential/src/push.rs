//! A recorded push, as both proxies get it.
//!
//! What chance would decide is made certain: of weighted clusters the last one gets everything,
//! faults and mirrors concern every request, delays are short. Each cluster's endpoints get a port of
//! its own, so that a pod knows for which cluster it was chosen. Filters that need what is not there
//! (ext_authz a service, jwt_authn tokens) are taken out.

use crate::any::{edit, is, open, pack};
use cairn_proto::envoy::envoy as pb;
use cairn_proto::envoy::google::protobuf::value::Kind as ValueKind;
use cairn_proto::envoy::google::protobuf::{Any, Duration, UInt32Value};
use cairn_test_support::istiod::{capture, resource};
use cairn_xds::feed::Kind;
use pb::config::cluster::v3::Cluster;
use pb::config::core::v3::address::Address as Place;
use pb::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use pb::config::core::v3::socket_address::PortSpecifier;
use pb::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pb::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use pb::config::listener::v3::filter::ConfigType;
use pb::config::listener::v3::{Filter, Listener};
use pb::config::rbac::v3::Principal;
use pb::config::rbac::v3::principal::Identifier;
use pb::config::route::v3::route::Action;
use pb::config::route::v3::route_action::ClusterSpecifier;
use pb::config::route::v3::{Route, RouteAction};
use pb::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use pb::extensions::filters::http::ext_authz::v3::ExtAuthz as HttpExtAuthz;
use pb::extensions::filters::http::fault::v3::HttpFault;
use pb::extensions::filters::http::jwt_authn::v3::JwtAuthentication;
use pb::extensions::filters::http::rbac::v3::Rbac;
use pb::extensions::filters::network::ext_authz::v3::ExtAuthz as TcpExtAuthz;
use pb::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pb::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use pb::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use pb::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpClusters;
use pb::service::discovery::v3::Resource;
use pb::r#type::v3::FractionalPercent;
use pb::r#type::v3::fractional_percent::DenominatorType;
use prost::{Message, Name};
use std::collections::BTreeMap;
use std::path::Path;

/// Ports of clusters' endpoints count up from here.
const FIRST_PORT: u16 = 20_000;
/// The metadata that says where an endpoint is, in front of an internal listener.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// How delays are shortened.
const DELAY: Duration = Duration { seconds: 0, nanos: 20_000_000 };

/// What one istiod sent, edited.
pub struct Push {
    /// LDS.
    pub listeners: Vec<Listener>,
    /// CDS.
    pub clusters: Vec<Cluster>,
    /// EDS.
    pub endpoints: Vec<ClusterLoadAssignment>,
    /// Workloads, as sent.
    pub workloads: Vec<Resource>,
    /// Ports of the endpoints, by cluster.
    pub ports: BTreeMap<String, u16>,
}

/// What is done to a push beyond what is done to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    AsPushed,
    /// Conditions on `source.ip` become ones on `remote.ip`. Envoy never meets the former over HBONE,
    /// which hides all that such a rule says else.
    RemoteIp,
}

impl Push {
    /// Reads a directory of recorded answers.
    ///
    /// # Panics
    /// When it holds none.
    pub fn read(directory: &Path, how: Edit) -> Self {
        let mut push = Push {
            listeners: Vec::new(),
            clusters: Vec::new(),
            endpoints: Vec::new(),
            workloads: Vec::new(),
            ports: BTreeMap::new(),
        };
        for (kind, resources) in capture(directory) {
            match kind {
                Kind::Listener => push.listeners = decode(&resources),
                Kind::Cluster => push.clusters = decode(&resources),
                Kind::Endpoints => push.endpoints = decode(&resources),
                Kind::Workload => push.workloads = resources,
                _ => {}
            }
        }
        for listener in &mut push.listeners {
            for chain in &mut listener.filter_chains {
                chain.filters.retain(|filter| !config(filter).is_some_and(is::<TcpExtAuthz>));
                chain.filters.iter_mut().for_each(|filter| edit_filter(filter, how));
            }
        }
        push.endpoints.sort_by(|a, b| a.cluster_name.cmp(&b.cluster_name));
        for (assignment, port) in push.endpoints.iter_mut().zip(FIRST_PORT..) {
            push.ports.insert(assignment.cluster_name.clone(), port);
            let endpoints =
                assignment.endpoints.iter_mut().flat_map(|group| &mut group.lb_endpoints);
            endpoints.for_each(|endpoint| move_to(endpoint, port));
        }
        push
    }

    /// As istiod would send them.
    pub fn resources(&self) -> Vec<(Kind, Vec<Resource>)> {
        fn all<M: Message>(kind: Kind, from: &[M], name: fn(&M) -> &str) -> (Kind, Vec<Resource>) {
            let one = |message: &M| resource(kind, name(message), "", message.encode_to_vec());
            (kind, from.iter().map(one).collect())
        }
        vec![
            all(Kind::Cluster, &self.clusters, |cluster| &cluster.name),
            all(Kind::Listener, &self.listeners, |listener| &listener.name),
            all(Kind::Endpoints, &self.endpoints, |assignment| &assignment.cluster_name),
            (Kind::Workload, self.workloads.clone()),
        ]
    }

    /// The listener of this name.
    ///
    /// # Panics
    /// When there is none.
    pub fn listener(&self, name: &str) -> &Listener {
        self.listeners.iter().find(|listener| listener.name == name).unwrap()
    }
}

fn decode<M: Message + Name + Default>(resources: &[Resource]) -> Vec<M> {
    resources.iter().map(|one| open::<M>(one.resource.as_ref().unwrap()).unwrap()).collect()
}

/// The settings of a network filter.
pub fn config(filter: &Filter) -> Option<&Any> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Some(any),
        _ => None,
    }
}

/// The same, to be changed.
pub fn config_mut(filter: &mut Filter) -> Option<&mut Any> {
    match &mut filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Some(any),
        _ => None,
    }
}

/// Where an endpoint is: of its address, or of what stands for it.
pub fn socket(endpoint: &LbEndpoint) -> Option<std::net::SocketAddr> {
    let Some(HostIdentifier::Endpoint(one)) = &endpoint.host_identifier else { return None };
    match one.address.as_ref()?.address.as_ref()? {
        Place::SocketAddress(at) => match at.port_specifier {
            Some(PortSpecifier::PortValue(port)) => {
                Some((at.address.parse::<std::net::IpAddr>().ok()?, port as u16).into())
            }
            _ => None,
        },
        Place::EnvoyInternalAddress(at) => at.endpoint_id.parse().ok(),
        Place::Pipe(_) => None,
    }
}

/// It is reached through an internal listener, so by HBONE.
pub fn is_tunneled(endpoint: &LbEndpoint) -> bool {
    let Some(HostIdentifier::Endpoint(one)) = &endpoint.host_identifier else { return false };
    let place = one.address.as_ref().and_then(|address| address.address.as_ref());
    matches!(place, Some(Place::EnvoyInternalAddress(at))
        if matches!(&at.address_name_specifier, Some(AddressNameSpecifier::ServerListenerName(_))))
}

fn move_to(endpoint: &mut LbEndpoint, port: u16) {
    let Some(mut at) = socket(endpoint) else { return };
    at.set_port(port);
    if let Some(HostIdentifier::Endpoint(one)) = &mut endpoint.host_identifier {
        match one.address.as_mut().and_then(|address| address.address.as_mut()) {
            Some(Place::SocketAddress(place)) => {
                place.port_specifier = Some(PortSpecifier::PortValue(u32::from(port)));
            }
            Some(Place::EnvoyInternalAddress(place)) => place.endpoint_id = at.to_string(),
            _ => {}
        }
    }
    let metadata = endpoint.metadata.as_mut();
    let fields = metadata.and_then(|metadata| metadata.filter_metadata.get_mut(ORIGINAL_DST));
    if let Some(local) = fields.and_then(|fields| fields.fields.get_mut("local")) {
        local.kind = Some(ValueKind::StringValue(at.to_string()));
    }
}

fn edit_filter(filter: &mut Filter, how: Edit) {
    let Some(any) = config_mut(filter) else { return };
    edit(any, |proxy: &mut TcpProxy| {
        if let Some(TcpClusters::WeightedClusters(weighted)) = &mut proxy.cluster_specifier {
            weighted.clusters = weighted.clusters.last().cloned().into_iter().collect();
        }
    });
    edit(any, |manager: &mut HttpConnectionManager| {
        manager.http_filters.retain(|filter| match &filter.config_type {
            Some(HttpConfigType::TypedConfig(any)) => {
                !is::<HttpExtAuthz>(any) && !is::<JwtAuthentication>(any)
            }
            _ => true,
        });
        for filter in &mut manager.http_filters {
            if let Some(HttpConfigType::TypedConfig(any)) = &mut filter.config_type {
                edit(any, fault);
                if how == Edit::RemoteIp {
                    edit(any, remote_ip);
                }
            }
        }
        if let Some(RouteSpecifier::RouteConfig(table)) = &mut manager.route_specifier {
            let routes = table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes);
            routes.for_each(edit_route);
        }
    });
}

fn edit_route(route: &mut Route) {
    for any in route.typed_per_filter_config.values_mut() {
        edit(any, fault);
    }
    let Some(Action::Route(action)) = &mut route.action else { return };
    let RouteAction { request_mirror_policies, cluster_specifier, .. } = action;
    for mirror in request_mirror_policies {
        if let Some(fraction) = &mut mirror.runtime_fraction {
            fraction.default_value = Some(always());
        }
    }
    if let Some(ClusterSpecifier::WeightedClusters(weighted)) = cluster_specifier {
        let weight = |value| Some(UInt32Value { value });
        let heavy = |of: &Option<UInt32Value>| of.is_some_and(|weight| weight.value > 0);
        let last = weighted.clusters.iter().rposition(|cluster| heavy(&cluster.weight));
        for (index, cluster) in weighted.clusters.iter_mut().enumerate() {
            cluster.weight = weight(if Some(index) == last { 100 } else { 0 });
        }
    }
}

fn always() -> FractionalPercent {
    FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred as i32 }
}

fn fault(fault: &mut HttpFault) {
    if let Some(abort) = &mut fault.abort {
        abort.percentage = Some(always());
    }
    if let Some(delay) = &mut fault.delay {
        delay.percentage = Some(always());
        delay.fault_delay_secifier = Some(FaultDelaySecifier::FixedDelay(DELAY));
    }
}

fn remote_ip(rbac: &mut Rbac) {
    let policies = rbac.rules.iter_mut().flat_map(|rules| rules.policies.values_mut());
    policies.flat_map(|policy| &mut policy.principals).for_each(remote_ip_in);
}

fn remote_ip_in(principal: &mut Principal) {
    match &mut principal.identifier {
        Some(Identifier::AndIds(set) | Identifier::OrIds(set)) => {
            set.ids.iter_mut().for_each(remote_ip_in);
        }
        Some(Identifier::NotId(one)) => remote_ip_in(one),
        Some(Identifier::DirectRemoteIp(range)) => {
            principal.identifier = Some(Identifier::RemoteIp(range.clone()));
        }
        _ => {}
    }
}

/// Packs a message for a filter.
pub fn typed<M: Message + Name>(message: &M) -> Option<ConfigType> {
    Some(ConfigType::TypedConfig(pack(message)))
}
