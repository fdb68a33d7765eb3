//! `filter_chain_matcher`.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::Destination;
use cairn_xds::translate::Unsupported;
use pb::envoy::config::listener::v3 as listener;
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use pb::xds::r#type::matcher::v3::Matcher;
use pb::xds::r#type::matcher::v3::matcher::OnMatch;
use std::sync::Arc;

const TCP: &str = "inbound-vip|80|tcp|app.shop.svc.cluster.local";

fn made(matcher: Matcher) -> (Vec<Arc<Destination>>, Vec<Unsupported>) {
    let proxied = proxy::TcpProxy {
        cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::Cluster("c".to_owned())),
        ..proxy::TcpProxy::default()
    };
    let tcp = listener::FilterChain {
        name: TCP.to_owned(),
        ..chain(vec![network_filter("tcp", pack(&proxied))])
    };
    let mut translator = translator();
    listen(&mut translator, &main_internal(vec![http_chain(&manager()), tcp], matcher));
    let resources = translator.resources();
    compiles(&resources);
    (resources.destinations, translator.unsupported())
}

fn sniffed(http: &str, tcp: Option<&str>) -> OnMatch {
    let pairs = vec![("'h2c'", action(http)), ("'http/1.1'", action(http))];
    then(exact("ApplicationProtocolInput", pairs, tcp.map(action)))
}

fn one(matcher: Matcher) -> Arc<Destination> {
    let (destinations, unsupported) = made(matcher);
    assert_eq!(destinations.len(), 1, "{unsupported:?}");
    Arc::clone(&destinations[0])
}

fn is_open(destination: &Destination) -> bool {
    destination.http.as_ref().is_none_or(|chain| chain.broken.is_none())
        && destination.tcp.as_ref().is_none_or(|chain| chain.broken.is_none())
}

#[test]
fn addresses_ports_and_first_bytes() {
    let both = ports(vec![("80", sniffed(CHAIN, Some(TCP)))]);
    let destination = one(addresses(vec![
        range("10.0.0.1", 32, both.clone()),
        range("fd00::1", 128, both.clone()),
        range("10.1.0.0", 16, both),
    ]));
    assert!(is_open(&destination) && destination.http.is_some() && destination.tcp.is_some());
    assert_eq!((destination.name.as_str(), destination.port), (CHAIN, Some(80)));
    assert_eq!(destination.namespace, "shop");
    let addresses: Vec<String> =
        destination.addresses.iter().map(|range| String::from(*range)).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1", "10.1.0.0/16"]);
}

#[test]
fn pods_have_every_port() {
    let destination = one(addresses(vec![range("10.0.0.5", 32, sniffed(CHAIN, Some(TCP)))]));
    assert_eq!(destination.port, None);
    assert!(destination.http.is_some() && destination.tcp.is_some());
}

#[test]
fn one_chain_of_two_ports_is_two_destinations() {
    let (destinations, _) = made(addresses(vec![range(
        "10.0.0.1",
        32,
        ports(vec![("80", action(CHAIN)), ("81", action(CHAIN))]),
    )]));
    let names: Vec<&str> = destinations.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, [CHAIN, &format!("{CHAIN}|port 81")]);
    assert!(destinations.iter().all(|of| is_open(of)));
}

#[test]
fn what_has_no_address_is_not_reachable() {
    for address in ["0.0.0.0", "::"] {
        let length = if address == "::" { 128 } else { 32 };
        let (destinations, _) =
            made(addresses(vec![range(address, length, ports(vec![("80", action(CHAIN))]))]));
        assert!(destinations.is_empty());
    }
}

fn by_host(pairs: Vec<(&str, OnMatch)>, otherwise: Matcher) -> Matcher {
    use pb::envoy::extensions::matching::common_inputs::network::v3::FilterStateInput;
    use pb::xds::r#type::matcher::v3::matcher::MatcherType;
    let mut matcher = exact("FilterStateInput", pairs, Some(then(otherwise)));
    let Some(MatcherType::MatcherTree(tree)) = matcher.matcher_type.as_mut() else { panic!() };
    let state = FilterStateInput {
        key: "io.istio.connect_authority".to_owned(),
        ..FilterStateInput::default()
    };
    tree.input.as_mut().unwrap().typed_config.as_mut().unwrap().value = state.encode_to_vec();
    matcher
}

#[test]
fn hosts_in_front_of_addresses() {
    let destination =
        one(by_host(vec![("app.shop.svc.cluster.local:80", action(CHAIN))], at_app()));
    assert_eq!(destination.hosts, ["app.shop.svc.cluster.local"]);
    assert_eq!(destination.addresses.len(), 1);
    let (destinations, unsupported) =
        made(by_host(vec![("*.wild.example:80", action(CHAIN))], at_app()));
    assert!(destinations[0].hosts.is_empty() && is_open(&destinations[0]));
    assert_eq!(unsupported.len(), 1);
}

#[test]
fn what_is_not_understood_is_closed_or_not_reachable() {
    let goes_on = OnMatch { keep_matching: true, ..action(CHAIN) };
    let other_input = then(exact("SourceIPInput", vec![("1.2.3.4", action(CHAIN))], None));
    let other_protocol =
        then(exact("ApplicationProtocolInput", vec![("'istio'", action(CHAIN))], None));
    let only_h2 = then(exact("ApplicationProtocolInput", vec![("'h2c'", action(CHAIN))], None));
    for (what, leads) in [
        ("goes on", goes_on),
        ("other input", other_input),
        ("other protocol", other_protocol),
        ("only HTTP/2", only_h2),
        ("no such chain", action("gone")),
        ("another kind", sniffed(TCP, Some(CHAIN))),
        ("nothing", OnMatch::default()),
    ] {
        let destination = one(addresses(vec![range("10.0.0.1", 32, ports(vec![("80", leads)]))]));
        assert!(!is_open(&destination), "{what}: {destination:?}");
        assert_eq!(destination.port, Some(80), "{what}");
    }
    let mut exclusive = range("10.0.0.1", 32, ports(vec![("80", action(CHAIN))]));
    exclusive.exclusive = true;
    assert!(!is_open(&one(addresses(vec![exclusive]))));
    for matcher in [
        exact("SourceIPInput", vec![("1.2.3.4", action(CHAIN))], None),
        exact("FilterStateInput", vec![("x", action(CHAIN))], None),
        Matcher::default(),
    ] {
        let (destinations, unsupported) = made(matcher);
        assert_eq!((destinations.len(), unsupported.len()), (0, 1));
    }
}

#[test]
fn listener_filters_that_are_not_known_close_everything() {
    let mut listener = main_internal(vec![http_chain(&manager())], at_app());
    for (name, open) in [
        ("envoy.filters.listener.original_dst", true),
        ("envoy.filters.listener.http_inspector", true),
        ("envoy.filters.listener.other", false),
    ] {
        listener.listener_filters = vec![listener::ListenerFilter {
            name: name.to_owned(),
            ..listener::ListenerFilter::default()
        }];
        let mut translator = translator();
        listen(&mut translator, &listener);
        assert_eq!(is_open(&translator.resources().destinations[0]), open, "{name}");
    }
}
