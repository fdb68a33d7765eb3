//! Endpoints and the workloads that they have to be.

use crate::clusters::eds;
use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_proto::workload::{NetworkMode, Workload};
use cairn_router::spec::{EndpointSet, EndpointTransport, Health};
use cairn_xds::feed::Kind;
use cairn_xds::translate::{EndpointIdentity, Settings, Translator};
use pb::envoy::config::cluster::v3 as cluster;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::endpoint::v3 as endpoint;
use pb::google::protobuf::{Struct, UInt32Value, Value, value};
use std::sync::Arc;

fn texts(pairs: &[(&str, &str)]) -> Struct {
    let of = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    Struct { fields: pairs.iter().map(|(key, text)| ((*key).to_owned(), of(text))).collect() }
}

fn internal(listener: &str, local: &str) -> endpoint::LbEndpoint {
    let address = core::EnvoyInternalAddress {
        address_name_specifier: Some(
            core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                listener.to_owned(),
            ),
        ),
        endpoint_id: local.to_owned(),
    };
    let metadata = core::Metadata {
        filter_metadata: [(
            "envoy.filters.listener.original_dst".to_owned(),
            texts(&[("local", local)]),
        )]
        .into_iter()
        .collect(),
        ..Default::default()
    };
    let address =
        core::Address { address: Some(core::address::Address::EnvoyInternalAddress(address)) };
    endpoint::LbEndpoint { metadata: Some(metadata), ..at(address) }
}

fn at(address: core::Address) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint { address: Some(address), ..Default::default() },
        )),
        ..Default::default()
    }
}

fn tunnelled(local: &str) -> endpoint::LbEndpoint {
    internal("connect_originate", local)
}

fn plain(address: &str, port: u32) -> endpoint::LbEndpoint {
    at(socket_address(address, port))
}

fn locality(endpoints: Vec<endpoint::LbEndpoint>) -> endpoint::LocalityLbEndpoints {
    endpoint::LocalityLbEndpoints { lb_endpoints: endpoints, ..Default::default() }
}

fn listed(localities: Vec<endpoint::LocalityLbEndpoints>) -> Vec<u8> {
    endpoint::ClusterLoadAssignment {
        cluster_name: "c".to_owned(),
        endpoints: localities,
        ..Default::default()
    }
    .encode_to_vec()
}

fn pod(address: [u8; 4], service_account: &str) -> Workload {
    Workload {
        name: "pod".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![address.to_vec()],
        service_account: service_account.to_owned(),
        workload_name: "pod".to_owned(),
        ..Default::default()
    }
}

fn apply(translator: &mut Translator, kind: Kind, name: &str, body: Vec<u8>) {
    translator.apply(update(kind, vec![resource(kind, name, body)])).unwrap();
}

fn with(settings: Settings, cluster: &cluster::Cluster, body: Vec<u8>) -> Translator {
    let mut translator = Translator::new(settings);
    apply(&mut translator, Kind::Cluster, "c", cluster.encode_to_vec());
    apply(&mut translator, Kind::Endpoints, "c", body);
    translator
}

fn of(localities: Vec<endpoint::LocalityLbEndpoints>) -> Translator {
    with(Settings::default(), &eds("c"), listed(localities))
}

fn set(translator: &Translator) -> Arc<EndpointSet> {
    let resources = translator.resources();
    compiles(&resources);
    Arc::clone(&resources.endpoints[0])
}

#[test]
fn plain_and_tunnelled() {
    let mut translator =
        of(vec![locality(vec![tunnelled("10.0.0.5:8080"), plain("10.0.0.6", 8080)])]);
    assert!(translator.wanted().endpoints.contains("c"));
    assert_eq!(translator.wanted().workloads.into_iter().collect::<Vec<_>>(), ["/10.0.0.5"]);
    let before = set(&translator);
    assert!(before.endpoints[0].identities.is_empty());
    apply(&mut translator, Kind::Workload, "w", pod([10, 0, 0, 5], "app").encode_to_vec());
    let after = set(&translator);
    let [first, second] = after.endpoints.as_slice() else { panic!() };
    assert_eq!(first.identities, ["spiffe://cluster.local/ns/shop/sa/app"]);
    assert_eq!(first.transport, EndpointTransport::Hbone);
    assert_eq!((second.transport, second.identities.len()), (EndpointTransport::Plain, 0));
    assert!(translator.wanted().workloads.is_empty());
    // A workload elsewhere changes nothing here.
    let mut other = pod([10, 0, 0, 9], "other");
    other.name = "other".to_owned();
    apply(&mut translator, Kind::Workload, "o", other.encode_to_vec());
    assert!(Arc::ptr_eq(&set(&translator), &after));
    let gone = cairn_xds::feed::Update {
        kind: Kind::Workload,
        changed: vec![],
        removed: vec!["w".into()],
    };
    translator.apply(gone).unwrap();
    assert!(set(&translator).endpoints[0].identities.is_empty());
}

#[test]
fn who_is_at_an_address() {
    let identities = |workload: Workload, settings: Settings| {
        let body = listed(vec![locality(vec![tunnelled("10.0.0.5:8080")])]);
        let mut translator = with(settings, &eds("c"), body);
        apply(&mut translator, Kind::Workload, "w", workload.encode_to_vec());
        set(&translator).endpoints[0].identities.clone()
    };
    let here = Settings::default;
    let mut default = pod([10, 0, 0, 5], "");
    default.trust_domain = "other.example".to_owned();
    assert_eq!(identities(default, here()), ["spiffe://other.example/ns/shop/sa/default"]);
    let mut shared = pod([10, 0, 0, 5], "app");
    shared.network_mode = NetworkMode::HostNetwork as i32;
    assert!(identities(shared, here()).is_empty(), "an address of a node says nothing");
    let mut elsewhere = pod([10, 0, 0, 5], "app");
    elsewhere.network = "other".to_owned();
    assert!(identities(elsewhere.clone(), here()).is_empty());
    let there = Settings { network: "other".to_owned(), ..Settings::default() };
    assert_eq!(identities(elsewhere, there).len(), 1);
    let loose =
        Settings { endpoint_identity: EndpointIdentity::TrustDomain, ..Settings::default() };
    assert_eq!(identities(pod([10, 0, 0, 9], "x"), loose), ["spiffe://cluster.local/"]);
}

/// Where two workloads have one address, the one that the endpoint names is meant.
#[test]
fn two_workloads_at_one_address() {
    let mut named = tunnelled("10.0.0.5:8080");
    let metadata = named.metadata.as_mut().unwrap();
    metadata
        .filter_metadata
        .insert("istio".to_owned(), texts(&[("workload", "pod;shop;app;v1;Kubernetes")]));
    let mut translator = of(vec![locality(vec![named, tunnelled("10.0.0.5:9090")])]);
    apply(&mut translator, Kind::Workload, "a", pod([10, 0, 0, 5], "app").encode_to_vec());
    let mut entry = pod([10, 0, 0, 5], "vm");
    (entry.name, entry.workload_name) = ("vm".to_owned(), "vm".to_owned());
    apply(&mut translator, Kind::Workload, "b", entry.encode_to_vec());
    let set = set(&translator);
    assert_eq!(set.endpoints[0].identities, ["spiffe://cluster.local/ns/shop/sa/app"]);
    assert_eq!(set.endpoints[1].identities.len(), 2);
}

#[test]
fn what_is_left_out() {
    let mut behind = tunnelled("10.0.0.5:1");
    let metadata = behind.metadata.as_mut().unwrap();
    let original = metadata.filter_metadata.values_mut().next().unwrap();
    original.fields.extend(texts(&[("waypoint", "10.0.0.1:15008")]).fields);
    for (what, endpoint) in [
        ("double HBONE", internal("inner_connect_originate", "203.0.113.7:15008")),
        ("another listener", internal("other", "10.0.0.5:1")),
        ("no address", tunnelled("")),
        ("a name", plain("api.example.com", 80)),
        ("no port", plain("10.0.0.5", 0)),
        ("unspecified", plain("0.0.0.0", 80)),
        ("a waypoint", behind),
        ("nothing", endpoint::LbEndpoint::default()),
    ] {
        let translator = of(vec![locality(vec![endpoint, plain("10.0.0.6", 80)])]);
        assert_eq!(set(&translator).endpoints.len(), 1, "{what}");
        let listed = translator.unsupported();
        assert!(listed.len() == 1 && listed[0].kind == "endpoint", "{what}: {listed:?}");
    }
    let twice = of(vec![locality(vec![plain("10.0.0.6", 80), plain("10.0.0.6", 80)])]);
    assert_eq!((set(&twice).endpoints.len(), twice.degraded().len()), (1, 1));
}

#[test]
fn health_priority_and_weight() {
    let of_health = |health: core::HealthStatus| {
        let mut endpoint = plain("10.0.0.6", 80);
        endpoint.health_status = health as i32;
        set(&of(vec![locality(vec![endpoint])])).endpoints[0].health
    };
    assert_eq!(of_health(core::HealthStatus::Unknown), Health::Healthy);
    assert_eq!(of_health(core::HealthStatus::Healthy), Health::Healthy);
    assert_eq!(of_health(core::HealthStatus::Unhealthy), Health::Unhealthy);
    assert_eq!(of_health(core::HealthStatus::Timeout), Health::Unhealthy);
    assert_eq!(of_health(core::HealthStatus::Draining), Health::Draining);
    let weight = |value| Some(UInt32Value { value });
    let mut heavy = plain("10.0.0.6", 80);
    heavy.load_balancing_weight = weight(3);
    let mut first = locality(vec![heavy, plain("10.0.0.7", 80)]);
    first.load_balancing_weight = weight(80);
    first.locality = Some(core::Locality {
        region: "r1".to_owned(),
        zone: "z1".to_owned(),
        ..Default::default()
    });
    let mut second = locality(vec![plain("10.0.0.8", 80)]);
    second.load_balancing_weight = weight(20);
    second.priority = 0;
    let mut third = locality(vec![plain("10.0.0.9", 80)]);
    third.priority = 1;
    third.load_balancing_weight = weight(1);
    let localities = vec![first, second, third];
    let weights = |by_locality: bool| {
        let mut cluster = eds("c");
        use cluster::cluster::common_lb_config::LocalityConfigSpecifier as Localities;
        if by_locality {
            cluster.common_lb_config.as_mut().unwrap().locality_config_specifier =
                Some(Localities::LocalityWeightedLbConfig(Default::default()));
        }
        let translator = with(Settings::default(), &cluster, listed(localities.clone()));
        let set = set(&translator);
        set.endpoints.iter().map(|of| (of.priority, of.weight)).collect::<Vec<_>>()
    };
    assert_eq!(weights(false), [(0, 3), (0, 1), (0, 1), (1, 1)]);
    let weighted = weights(true);
    let share = |index: usize| f64::from(weighted[index].1);
    let sum = share(0) + share(1) + share(2);
    assert!((share(0) / sum - 0.6).abs() < 0.001, "{weighted:?}");
    assert!((share(1) / sum - 0.2).abs() < 0.001 && (share(2) / sum - 0.2).abs() < 0.001);
    assert_eq!(weighted[3].0, 1);
}

#[test]
fn ways_to_endpoints_by_labels() {
    let of_match = |labels: &[(&str, &str)], socket: &str| cluster::cluster::TransportSocketMatch {
        name: "m".to_owned(),
        r#match: Some(texts(labels)),
        transport_socket: Some(core::TransportSocket {
            name: "s".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(socket, vec![]))),
        }),
    };
    let raw = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    let tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let mut cluster = eds("c");
    cluster.transport_socket_matches = vec![
        of_match(&[("tunnel", "http")], raw),
        of_match(&[("tlsMode", "istio")], tls),
        of_match(&[], raw),
    ];
    let labelled = |mut endpoint: endpoint::LbEndpoint, labels: &[(&str, &str)]| {
        let metadata = endpoint.metadata.get_or_insert_default();
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), texts(labels));
        endpoint
    };
    let body = listed(vec![locality(vec![
        labelled(tunnelled("10.0.0.5:80"), &[("tunnel", "http")]),
        labelled(plain("10.0.0.6", 80), &[("tlsMode", "istio")]),
        plain("10.0.0.7", 80),
    ])]);
    let translator = with(Settings::default(), &cluster, body);
    let set = set(&translator);
    let addresses: Vec<String> =
        set.endpoints.iter().map(|of| of.address.ip().to_string()).collect();
    assert_eq!(addresses, ["10.0.0.5", "10.0.0.7"]);
    assert_eq!(translator.unsupported().len(), 1);
    assert_eq!(translator.resources().clusters[0].broken, None);
}

#[test]
fn the_port_and_names_of_tunnels() {
    use pb::envoy::config::cluster::v3::cluster::{LbConfig, OriginalDstLbConfig};
    let mut translator = of(vec![locality(vec![tunnelled("10.0.0.5:8080")])]);
    apply(&mut translator, Kind::Workload, "w", pod([10, 0, 0, 5], "app").encode_to_vec());
    let originate = cluster::Cluster {
        name: "connect_originate".to_owned(),
        lb_config: Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: Some(UInt32Value { value: 15009 }),
            ..Default::default()
        })),
        ..Default::default()
    };
    apply(&mut translator, Kind::Cluster, "connect_originate", originate.encode_to_vec());
    let endpoint = &set(&translator).endpoints[0];
    assert_eq!(endpoint.tunnel_address, Some("10.0.0.5:15009".parse().unwrap()));
    assert_eq!(translator.facts().originate.unwrap().port, 15009);
    assert_eq!(endpoint.identities.len(), 1);
}

#[test]
fn a_list_that_does_not_decode_keeps_the_last_one() {
    let mut translator = of(vec![locality(vec![plain("10.0.0.6", 80)])]);
    let before = set(&translator);
    let bad = resource(Kind::Endpoints, "c", vec![0x12, 200]);
    let rejected = translator.apply(update(Kind::Endpoints, vec![bad])).unwrap_err();
    assert!(rejected.detail.contains("`c`"));
    assert!(Arc::ptr_eq(&before, &set(&translator)));
    let other = resource(Kind::Cluster, "c", vec![]);
    let rejected = translator.apply(update(Kind::Endpoints, vec![other])).unwrap_err();
    assert!(rejected.detail.contains("Cluster"), "{rejected}");
}

/// The administration pages are at loopback: no endpoint of anybody's leads there.
#[test]
fn endpoints_at_loopback_are_left_out() {
    let ours = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"];
    let endpoints = || {
        let plain = ours.iter().map(|address| plain(address, 15000));
        plain.chain([tunnelled("127.0.0.1:80"), self::plain("10.1.1.1", 80)]).collect()
    };
    for (allowed, expected) in [(false, 1), (true, 6)] {
        let settings = Settings { loopback_endpoints: allowed, ..Settings::default() };
        let mut translator = Translator::new(settings);
        let cluster = resource(Kind::Cluster, "c", eds("c").encode_to_vec());
        translator.apply(update(Kind::Cluster, vec![cluster])).unwrap();
        let list = resource(Kind::Endpoints, "c", listed(vec![locality(endpoints())]));
        translator.apply(update(Kind::Endpoints, vec![list])).unwrap();
        let resources = translator.resources();
        assert_eq!(resources.endpoints[0].endpoints.len(), expected);
        assert_eq!(translator.unsupported().len(), 6 - expected);
    }
}
