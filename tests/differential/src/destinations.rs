//! What a push says that tunnels can name, and what is behind it.

use crate::any::open;
use crate::push::{Push, config};
use cairn_proto::envoy as pb;
use pb::envoy::config::listener::v3::FilterChain;
use pb::envoy::config::rbac::v3::{Policy, Rbac as Rules};
use pb::envoy::config::route::v3::Route;
use pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use pb::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use pb::google::protobuf::StringValue;
use pb::xds::core::v3::CidrRange;
use pb::xds::r#type::matcher::v3::Matcher;
use pb::xds::r#type::matcher::v3::matcher::matcher_tree::TreeType;
use pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Then;
use pb::xds::r#type::matcher::v3::matcher::{MatcherType, OnMatch};
use prost::Message;
use std::net::{IpAddr, SocketAddr};

/// `xds.type.matcher.v3.IPMatcher`, which is not among the published messages.
#[derive(Clone, PartialEq, Message)]
struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<IpRange>,
}

/// `IPRangeMatcher` in it.
#[derive(Clone, PartialEq, Message)]
struct IpRange {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<OnMatch>,
}

/// An address and port of a service.
#[derive(Debug, Clone)]
pub struct Destination {
    /// What CONNECT names.
    pub target: SocketAddr,
    /// Of the service.
    pub host: String,
    /// Its chain takes HTTP.
    pub is_http: bool,
    /// In order.
    pub routes: Vec<Route>,
    /// Of its policies, in order.
    pub policies: Vec<(String, Policy)>,
}

/// All of a push, by address.
///
/// # Panics
/// When the push is not shaped as istiod shapes it.
pub fn destinations(push: &Push) -> Vec<Destination> {
    let listener = push.listener("main_internal");
    let chain = |name: &str| listener.filter_chains.iter().find(|chain| chain.name == name);
    let mut leads = Vec::new();
    let Some(TreeType::CustomMatch(custom)) = tree(listener.filter_chain_matcher.as_ref()) else {
        panic!("main_internal does not tell addresses apart");
    };
    let matcher =
        IpMatcher::decode(custom.typed_config.as_ref().unwrap().value.as_slice()).unwrap();
    for IpRange { ranges, on_match } in &matcher.ranges {
        let ips = ranges.iter().filter_map(|range| range.address_prefix.parse::<IpAddr>().ok());
        for ip in ips.filter(|ip| !ip.is_unspecified()) {
            let Some(Then::Matcher(ports)) =
                on_match.as_ref().and_then(|then| then.on_match.as_ref())
            else {
                continue;
            };
            let Some(TreeType::ExactMatchMap(map)) = tree(Some(ports)) else { continue };
            for (port, then) in &map.map {
                let at = SocketAddr::new(ip, port.parse().unwrap());
                leads.extend(chains(then).into_iter().map(|name| (at, name)));
            }
        }
    }
    leads.sort();
    leads.dedup();
    let found = leads.iter().filter_map(|(at, name)| Some((at, chain(name)?)));
    found.map(|(at, chain)| destination(*at, chain)).collect()
}

fn tree(matcher: Option<&Matcher>) -> Option<&TreeType> {
    match &matcher?.matcher_type {
        Some(MatcherType::MatcherTree(tree)) => tree.tree_type.as_ref(),
        _ => None,
    }
}

/// Names of all chains that a match can lead to.
fn chains(then: &OnMatch) -> Vec<String> {
    match &then.on_match {
        Some(Then::Action(action)) => {
            let name = action.typed_config.as_ref().and_then(open::<StringValue>);
            name.map(|name| name.value).into_iter().collect()
        }
        Some(Then::Matcher(matcher)) => {
            let mut all = Vec::new();
            if let Some(TreeType::ExactMatchMap(map)) = tree(Some(matcher)) {
                all.extend(map.map.values().flat_map(chains));
            }
            all.extend(matcher.on_no_match.iter().flat_map(|then| chains(then)));
            all
        }
        None => Vec::new(),
    }
}

fn destination(target: SocketAddr, chain: &FilterChain) -> Destination {
    let host = chain.name.rsplit('|').next().unwrap_or_default().to_owned();
    let mut one =
        Destination { target, host, is_http: false, routes: Vec::new(), policies: Vec::new() };
    for any in chain.filters.iter().filter_map(config) {
        if let Some(rbac) = open::<TcpRbac>(any) {
            one.add(rbac.rules);
        }
        let Some(manager) = open::<HttpConnectionManager>(any) else { continue };
        one.is_http = true;
        if let Some(RouteSpecifier::RouteConfig(table)) = manager.route_specifier {
            one.routes.extend(table.virtual_hosts.into_iter().flat_map(|host| host.routes));
        }
        for filter in &manager.http_filters {
            if let Some(ConfigType::TypedConfig(any)) = &filter.config_type
                && let Some(rbac) = open::<Rbac>(any)
            {
                one.add(rbac.rules);
            }
        }
    }
    one
}

impl Destination {
    fn add(&mut self, rules: Option<Rules>) {
        let mut policies: Vec<_> = rules.into_iter().flat_map(|rules| rules.policies).collect();
        policies.sort_by(|a, b| a.0.cmp(&b.0));
        self.policies.extend(policies);
    }
}
