//! A small mesh: one service `app.shop` at 10.0.0.1:80, reached by one chain.

use cairn_proto::envoy as pb;
use cairn_proto::prost::{Message, Name};
use cairn_router::spec::{Destination, HttpChain, Resources, TcpChain};
use cairn_xds::feed::{Kind, Resource, Update};
use cairn_xds::translate::{Settings, Translator};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::listener::v3 as listener;
use pb::envoy::config::route::v3 as route;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pb::google::protobuf::{Any, StringValue};
use pb::xds::core::v3 as xds_core;
use pb::xds::r#type::matcher::v3 as matcher;
use pb::xds::r#type::matcher::v3::matcher::{
    MatcherTree, MatcherType, OnMatch, matcher_tree, on_match,
};
use std::sync::Arc;

pub const CHAIN: &str = "inbound-vip|80|http|app.shop.svc.cluster.local";
pub const CLUSTER: &str = CHAIN;

pub fn any(name: &str, value: Vec<u8>) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value }
}

pub fn pack<M: Message + Name>(message: &M) -> Any {
    any(&M::full_name(), message.encode_to_vec())
}

pub fn resource(kind: Kind, name: &str, body: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: String::new(),
        type_url: kind.type_url().to_owned(),
        body: body.into(),
        aliases: Vec::new(),
    }
}

pub fn update(kind: Kind, resources: Vec<Resource>) -> Update {
    Update { kind, changed: resources, removed: Vec::new() }
}

/// Number of field 2 of `udpa.type.v1.TypedStruct` is left out: only the type matters.
pub fn typed_struct(of: &str) -> Any {
    let mut value = vec![0x0a, u8::try_from(of.len() + 20).unwrap()];
    value.extend_from_slice(b"type.googleapis.com/");
    value.extend_from_slice(of.as_bytes());
    any("udpa.type.v1.TypedStruct", value)
}

pub fn network_filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

pub fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..hcm::HttpFilter::default()
    }
}

pub fn router() -> hcm::HttpFilter {
    http_filter("router", any("envoy.extensions.filters.http.router.v3.Router", Vec::new()))
}

pub fn fault_and_cors() -> Vec<hcm::HttpFilter> {
    let of = |name: &str, kind: &str| http_filter(name, any(kind, Vec::new()));
    vec![
        of("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
        of("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
        router(),
    ]
}

pub fn to_cluster() -> route::RouteAction {
    route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(CLUSTER.to_owned())),
        ..route::RouteAction::default()
    }
}

pub fn any_path() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..route::RouteMatch::default()
    }
}

pub fn plain_route() -> route::Route {
    route::Route {
        r#match: Some(any_path()),
        action: Some(route::route::Action::Route(to_cluster())),
        ..route::Route::default()
    }
}

pub fn table(routes: Vec<route::Route>) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: "t".to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..route::VirtualHost::default()
        }],
        ..route::RouteConfiguration::default()
    }
}

pub fn manager() -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(table(vec![plain_route()]))),
        stream_idle_timeout: Some(pb::google::protobuf::Duration::default()),
        ..hcm::HttpConnectionManager::default()
    }
}

pub fn http_chain(manager: &hcm::HttpConnectionManager) -> listener::FilterChain {
    chain(vec![network_filter("hcm", pack(manager))])
}

pub fn chain(filters: Vec<listener::Filter>) -> listener::FilterChain {
    listener::FilterChain { name: CHAIN.to_owned(), filters, ..listener::FilterChain::default() }
}

pub fn action(name: &str) -> OnMatch {
    OnMatch {
        on_match: Some(on_match::OnMatch::Action(xds_core::TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(pack(&StringValue { value: name.to_owned() })),
        })),
        ..OnMatch::default()
    }
}

pub fn then(matcher: matcher::Matcher) -> OnMatch {
    OnMatch { on_match: Some(on_match::OnMatch::Matcher(Box::new(matcher))), ..OnMatch::default() }
}

pub fn exact(input: &str, pairs: Vec<(&str, OnMatch)>, other: Option<OnMatch>) -> matcher::Matcher {
    let map = pairs.into_iter().map(|(key, then)| (key.to_owned(), then)).collect();
    let tree = matcher_tree::TreeType::ExactMatchMap(matcher_tree::MatchMap { map });
    of_tree(input, tree, other)
}

fn of_tree(input: &str, tree: matcher_tree::TreeType, other: Option<OnMatch>) -> matcher::Matcher {
    let kind = format!("envoy.extensions.matching.common_inputs.network.v3.{input}");
    matcher::Matcher {
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(xds_core::TypedExtensionConfig {
                name: input.to_owned(),
                typed_config: Some(any(&kind, Vec::new())),
            }),
            tree_type: Some(tree),
        })),
        on_no_match: other.map(Box::new),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    pub range_matchers: Vec<IpRangeMatcher>,
}

#[derive(Clone, PartialEq, Message)]
pub struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<xds_core::CidrRange>,
    #[prost(message, optional, tag = "2")]
    pub on_match: Option<OnMatch>,
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
}

pub fn range(address: &str, length: u32, then: OnMatch) -> IpRangeMatcher {
    let prefix_len = Some(pb::google::protobuf::UInt32Value { value: length });
    IpRangeMatcher {
        ranges: vec![xds_core::CidrRange { address_prefix: address.to_owned(), prefix_len }],
        on_match: Some(then),
        exclusive: false,
    }
}

pub fn addresses(ranges: Vec<IpRangeMatcher>) -> matcher::Matcher {
    let config =
        any("xds.type.matcher.v3.IPMatcher", IpMatcher { range_matchers: ranges }.encode_to_vec());
    let custom =
        xds_core::TypedExtensionConfig { name: "ip".to_owned(), typed_config: Some(config) };
    of_tree("DestinationIPInput", matcher_tree::TreeType::CustomMatch(custom), None)
}

pub fn ports(pairs: Vec<(&str, OnMatch)>) -> OnMatch {
    then(exact("DestinationPortInput", pairs, None))
}

pub fn at_app() -> matcher::Matcher {
    addresses(vec![range("10.0.0.1", 32, ports(vec![("80", action(CHAIN))]))])
}

pub fn main_internal(
    chains: Vec<listener::FilterChain>,
    matcher: matcher::Matcher,
) -> listener::Listener {
    listener::Listener {
        name: "main_internal".to_owned(),
        filter_chains: chains,
        filter_chain_matcher: Some(matcher),
        ..listener::Listener::default()
    }
}

/// A translator with tunnels that are open.
pub fn translator() -> Translator {
    let mut translator = Translator::new(Settings::default());
    let terminate = crate::tunnels::terminate();
    let resource = resource(Kind::Listener, "connect_terminate", terminate.encode_to_vec());
    translator.apply(update(Kind::Listener, vec![resource])).unwrap();
    translator
}

pub fn listen(translator: &mut Translator, listener: &listener::Listener) {
    let resource = resource(Kind::Listener, "main_internal", listener.encode_to_vec());
    translator.apply(update(Kind::Listener, vec![resource])).unwrap();
}

pub fn of_chain(chain: listener::FilterChain) -> (Translator, Arc<Destination>) {
    let mut translator = translator();
    listen(&mut translator, &main_internal(vec![chain], at_app()));
    let destination = Arc::clone(&translator.resources().destinations[0]);
    (translator, destination)
}

pub fn http(manager: &hcm::HttpConnectionManager) -> HttpChain {
    let (_, destination) = of_chain(http_chain(manager));
    destination.http.clone().unwrap()
}

pub fn tcp(filters: Vec<listener::Filter>) -> TcpChain {
    let (_, destination) = of_chain(chain(filters));
    destination.tcp.clone().unwrap()
}

pub fn routed(route: route::Route) -> (Translator, cairn_router::spec::Route) {
    let mut manager = manager();
    manager.http_filters = fault_and_cors();
    manager.route_specifier = Some(RouteSpecifier::RouteConfig(table(vec![route])));
    let (translator, destination) = of_chain(http_chain(&manager));
    let chain = destination.http.clone().unwrap();
    assert_eq!(chain.broken, None);
    (translator, chain.routes.virtual_hosts[0].routes[0].clone())
}

pub fn compiles(resources: &Resources) {
    if let Err(errors) = cairn_router::compile::Compiler::new("mesh").compile(resources) {
        panic!("{errors:#?}");
    }
}

pub fn socket_address(address: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..core::SocketAddress::default()
        })),
    }
}
