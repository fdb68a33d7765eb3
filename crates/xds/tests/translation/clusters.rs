//! Clusters and their transport sockets.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::{Cluster, ClusterProtocol, EndpointTransport, LbPolicy};
use cairn_xds::feed::Kind;
use pb::envoy::config::cluster::v3 as cluster;
use pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, EdsClusterConfig, LbConfig,
    LbPolicy as Lb, OriginalDstLbConfig,
};
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::endpoint::v3 as endpoint;
use pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use pb::envoy::extensions::upstreams::http::v3 as upstream;
use pb::envoy::r#type::matcher::v3 as types;
use pb::google::protobuf::{Any, UInt32Value};
use std::time::Duration;

pub fn eds(name: &str) -> cluster::Cluster {
    let source = core::config_source::ConfigSourceSpecifier::Ads(Default::default());
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(core::ConfigSource {
                config_source_specifier: Some(source),
                ..Default::default()
            }),
            service_name: String::new(),
        }),
        common_lb_config: Some(cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Default::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn translated(from: cluster::Cluster) -> (Cluster, usize) {
    let mut translator = translator();
    let own = resource(Kind::Cluster, &from.name, from.encode_to_vec());
    translator.apply(update(Kind::Cluster, vec![own])).unwrap();
    let resources = translator.resources();
    compiles(&resources);
    let cluster = Cluster::clone(&resources.clusters[0]);
    assert_eq!(cluster.broken.is_some(), !translator.unsupported().is_empty());
    (cluster, translator.degraded().len())
}

fn of(change: impl FnOnce(&mut cluster::Cluster)) -> (Cluster, usize) {
    let mut from = eds("c");
    change(&mut from);
    translated(from)
}

fn broken(change: impl FnOnce(&mut cluster::Cluster)) -> String {
    of(change).0.broken.unwrap()
}

#[test]
fn defaults_are_envoys() {
    let (cluster, degraded) = of(|_| ());
    assert_eq!((cluster.broken, degraded), (None, 0));
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.circuit_breakers.max_requests, Some(1024));
    assert_eq!(cluster.circuit_breakers.max_retries, Some(3));
    assert_eq!(cluster.protocol, ClusterProtocol::Http1);
    assert_eq!(cluster.lb, LbPolicy::RoundRobin, "the first of the enum");
}

#[test]
fn balancing_degrades() {
    for (policy, expected, warns) in [
        (Lb::LeastRequest, LbPolicy::LeastRequest, 0),
        (Lb::Random, LbPolicy::Random, 0),
        (Lb::RingHash, LbPolicy::LeastRequest, 1),
        (Lb::Maglev, LbPolicy::LeastRequest, 1),
    ] {
        let (cluster, degraded) = of(|of| of.lb_policy = policy as i32);
        assert_eq!((cluster.lb, degraded, cluster.broken), (expected, warns, None));
    }
    let (cluster, degraded) = of(|of| of.outlier_detection = Some(Default::default()));
    assert_eq!((cluster.broken, degraded), (None, 1));
    let (_, degraded) = of(|of| of.common_lb_config = None);
    assert_eq!(degraded, 1, "Envoy's panic threshold of 50 %");
}

#[test]
fn circuit_breakers() {
    let (cluster, _) = of(|of| {
        let threshold = |value| Some(UInt32Value { value });
        of.circuit_breakers = Some(cluster::CircuitBreakers {
            thresholds: vec![cluster::circuit_breakers::Thresholds {
                max_connections: threshold(u32::MAX),
                max_pending_requests: threshold(11),
                max_requests: threshold(u32::MAX),
                max_retries: threshold(14),
                ..Default::default()
            }],
            ..Default::default()
        });
    });
    let breakers = cluster.circuit_breakers;
    assert_eq!((breakers.max_connections, breakers.max_pending_requests), (None, Some(11)));
    assert_eq!((breakers.max_requests, breakers.max_retries), (None, Some(14)));
}

fn with_options(options: upstream::HttpProtocolOptions) -> impl FnOnce(&mut cluster::Cluster) {
    move |of| {
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let options = any(kind, options.encode_to_vec());
        of.typed_extension_protocol_options.insert(kind.to_owned(), options);
    }
}

#[test]
fn protocols() {
    use upstream::http_protocol_options as http;
    use upstream::http_protocol_options::UpstreamProtocolOptions as Kind;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    let explicit = |config| {
        Kind::ExplicitHttpConfig(http::ExplicitHttpConfig { protocol_config: Some(config) })
    };
    let h2 = explicit(ProtocolConfig::Http2ProtocolOptions(Default::default()));
    let h1 = explicit(ProtocolConfig::HttpProtocolOptions(Default::default()));
    let h3 = explicit(ProtocolConfig::Http3ProtocolOptions(Default::default()));
    let down = Kind::UseDownstreamProtocolConfig(Default::default());
    let of_kind = |kind: Kind| {
        of(with_options(upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(kind),
            ..Default::default()
        }))
        .0
    };
    assert_eq!(of_kind(h2).protocol, ClusterProtocol::Http2);
    assert_eq!(of_kind(h1).protocol, ClusterProtocol::Http1);
    assert_eq!(of_kind(down).protocol, ClusterProtocol::Downstream);
    assert!(of_kind(h3).broken.is_some());
    let options = upstream::HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(Default::default()),
            max_requests_per_connection: Some(UInt32Value { value: 13 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let (cluster, _) = of(with_options(options));
    assert_eq!(cluster.max_requests_per_connection, Some(13));
    assert!(cluster.idle_timeout > Duration::from_secs(86_400), "0 is never");
}

#[test]
fn where_endpoints_come_from() {
    let dns = |kind: DiscoveryType| {
        broken(move |of| {
            of.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
        })
    };
    assert!(dns(DiscoveryType::StrictDns).contains("DNS"));
    assert!(dns(DiscoveryType::LogicalDns).contains("DNS"));
    let reason = broken(|of| {
        let name = "envoy.clusters.dynamic_forward_proxy".to_owned();
        let custom = CustomClusterType { name, typed_config: None };
        of.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
    });
    assert!(reason.contains("DNS"), "{reason}");
    broken(|of| of.eds_cluster_config = None);
    let original = |config: OriginalDstLbConfig| {
        of(move |of| {
            of.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
            of.lb_policy = Lb::ClusterProvided as i32;
            of.lb_config = Some(LbConfig::OriginalDstLbConfig(config));
        })
        .0
    };
    let port = Some(UInt32Value { value: 8080 });
    let plain =
        original(OriginalDstLbConfig { upstream_port_override: port, ..Default::default() });
    let to = plain.original_destination.unwrap();
    assert_eq!((to.transport, to.port), (EndpointTransport::Plain, Some(8080)));
    let named = OriginalDstLbConfig { use_http_header: true, ..Default::default() };
    assert!(original(named).broken.is_some());
}

fn socket(name: &str, config: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn wrapped(inner: core::TransportSocket) -> core::TransportSocket {
    let config = InternalUpstreamTransport { transport_socket: Some(inner), ..Default::default() };
    socket("internal_upstream", pack(&config))
}

/// TLS with CAs of this SDS name, this SNI and these names.
fn origination(roots: &str, sni: &str, names: &[&str]) -> tls::UpstreamTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let names = names.iter().map(|name| types::StringMatcher {
        match_pattern: Some(types::string_matcher::MatchPattern::Exact((*name).to_owned())),
        ignore_case: false,
    });
    tls::UpstreamTlsContext {
        sni: sni.to_owned(),
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_subject_alt_names: names.collect(),
                        ..Default::default()
                    }),
                    validation_context_sds_secret_config: Some(tls::SdsSecretConfig {
                        name: roots.to_owned(),
                        sds_config: None,
                    }),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn with_tls(context: tls::UpstreamTlsContext) -> Cluster {
    of(move |of| of.transport_socket = Some(wrapped(socket("tls", pack(&context))))).0
}

/// Each level is an `Any` of its own, which no bound on the depth of messages counts.
#[test]
fn transports_in_transports_do_not_exhaust_the_stack() {
    let mut inner =
        socket("raw", any("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", vec![]));
    let (cluster, _) = of(|of| of.transport_socket = Some(wrapped(inner.clone())));
    assert_eq!((cluster.broken, cluster.tls), (None, None));
    for _ in 0..1_000 {
        inner = wrapped(inner);
    }
    let reason = broken(move |of| of.transport_socket = Some(inner));
    assert!(reason.contains("an internal transport in another"), "{reason}");
}

#[test]
fn versions_of_tls() {
    use tls::tls_parameters::TlsProtocol;
    let with = |params: tls::TlsParameters| {
        let mut context = origination("file-root:/ca.pem", "app.example", &[]);
        context.common_tls_context.as_mut().unwrap().tls_params = Some(params);
        with_tls(context)
    };
    let minimum = |version: TlsProtocol| {
        with(tls::TlsParameters {
            tls_minimum_protocol_version: version as i32,
            ..Default::default()
        })
    };
    assert!(minimum(TlsProtocol::TlSv13).tls.unwrap().tls13_only);
    assert!(!minimum(TlsProtocol::TlSv12).tls.unwrap().tls13_only);
    let old = TlsProtocol::TlSv11 as i32;
    let params = tls::TlsParameters { tls_maximum_protocol_version: old, ..Default::default() };
    assert!(with(params).broken.is_some());
    let ciphers = vec!["ECDHE-RSA-AES128-GCM-SHA256".to_owned()];
    assert!(
        with(tls::TlsParameters { cipher_suites: ciphers, ..Default::default() }).broken.is_some()
    );
}

#[test]
fn tls_with_files_and_the_systems_cas() {
    let cluster = with_tls(origination("file-root:/ca.pem", "app.example", &["a.example"]));
    assert_eq!(cluster.broken, None);
    let tls = cluster.tls.unwrap();
    assert_eq!(
        (tls.sni.as_deref(), tls.ca_file.as_deref()),
        (Some("app.example"), Some("/ca.pem"))
    );
    assert_eq!(tls.sans, ["a.example"]);
    let mut mutual = origination("file-root:system", "app.example", &[]);
    mutual.common_tls_context.as_mut().unwrap().tls_certificate_sds_secret_configs =
        vec![tls::SdsSecretConfig { name: "file-cert:/c.pem~/k.pem".to_owned(), sds_config: None }];
    let tls = with_tls(mutual).tls.unwrap();
    assert_eq!((tls.ca_file, tls.cert_file.as_deref()), (None, Some("/c.pem")));
    assert_eq!(tls.key_file.as_deref(), Some("/k.pem"));
}

#[test]
fn tls_that_is_not_supported() {
    for (roots, sni, what) in [
        ("kubernetes://ca-cacert", "a", "kubernetes"),
        ("configmap://ns/ca", "a", "configmap"),
        ("ROOTCA", "a", "mesh TLS"),
        ("file-root:system", "", "name to verify"),
    ] {
        let reason = with_tls(origination(roots, sni, &[])).broken.unwrap();
        assert!(reason.contains(what), "{reason}");
    }
    let insecure = tls::UpstreamTlsContext {
        sni: "a".to_owned(),
        common_tls_context: Some(tls::CommonTlsContext {
            validation_context_type: Some(
                tls::common_tls_context::ValidationContextType::ValidationContext(
                    Default::default(),
                ),
            ),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(with_tls(insecure).broken.unwrap().contains("insecureSkipVerify"));
    let mut pinned = origination("file-root:system", "a", &[]);
    let context = pinned.common_tls_context.as_mut().unwrap();
    let Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(combined)) =
        context.validation_context_type.as_mut()
    else {
        panic!()
    };
    combined.default_validation_context.as_mut().unwrap().verify_certificate_hash =
        vec!["00".to_owned()];
    assert!(with_tls(pinned).broken.is_some());
    let by_host = upstream::HttpProtocolOptions {
        upstream_http_protocol_options: Some(core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let cluster = of(|of| {
        with_options(by_host)(of);
        let context = origination("file-root:system", "", &["a"]);
        of.transport_socket = Some(wrapped(socket("tls", pack(&context))));
    })
    .0;
    assert!(cluster.broken.unwrap().contains("auto_sni"));
}

#[test]
fn what_closes_a_cluster() {
    type Change = fn(&mut cluster::Cluster);
    let changes: [(&str, Change); 6] = [
        ("tree", |of| of.transport_socket_matcher = Some(Default::default())),
        ("subsets", |of| of.lb_subset_config = Some(Default::default())),
        ("extension", |of| of.upstream_config = Some(Default::default())),
        ("filter", |of| {
            of.filters.push(cluster::Filter { name: "x".to_owned(), ..Default::default() })
        }),
        ("proxy protocol", |of| {
            let kind = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
            of.transport_socket = Some(wrapped(socket("p", any(kind, vec![]))));
        }),
        ("unknown socket", |of| of.transport_socket = Some(socket("x", any("example.X", vec![])))),
    ];
    for (what, change) in changes {
        assert!(of(change).0.broken.is_some(), "{what}");
    }
}

#[test]
fn bytes_that_do_not_decode_keep_the_last_good_one() {
    let mut translator = translator();
    let own = resource(Kind::Cluster, "c", eds("c").encode_to_vec());
    let other = resource(Kind::Cluster, "d", eds("d").encode_to_vec());
    translator.apply(update(Kind::Cluster, vec![own])).unwrap();
    let bad = resource(Kind::Cluster, "c", vec![0x0a, 200]);
    let rejected = translator.apply(update(Kind::Cluster, vec![bad, other])).unwrap_err();
    assert!(rejected.detail.contains("`c`"), "{rejected}");
    let names: Vec<String> =
        translator.resources().clusters.iter().map(|of| of.name.clone()).collect();
    assert_eq!(names, ["c", "d"], "the rest holds");
    assert_eq!(translator.counters().rejected, 1);
}

#[test]
fn the_cluster_of_pods_by_address() {
    let internal = core::EnvoyInternalAddress {
        address_name_specifier: Some(
            core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                "connect_originate".to_owned(),
            ),
        ),
        endpoint_id: String::new(),
    };
    let only = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: Some(core::Address {
                    address: Some(core::address::Address::EnvoyInternalAddress(internal)),
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let (cluster, _) = of(|of| {
        of.cluster_discovery_type = None;
        of.load_assignment = Some(endpoint::ClusterLoadAssignment {
            endpoints: vec![endpoint::LocalityLbEndpoints {
                lb_endpoints: vec![only],
                ..Default::default()
            }],
            ..Default::default()
        });
    });
    let to = cluster.original_destination.unwrap();
    assert_eq!((to.transport, to.port), (EndpointTransport::Hbone, None));
}
