//! Filter chains: what passes, and what closes them.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::Message;
use cairn_router::spec::{EscapedSlashes, ForwardedClientCert, HttpFilter, ServerMode};
use cairn_xds::feed::Kind;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::listener::v3 as listener;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as settings;
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use pb::google::protobuf::{BoolValue, Duration as Span};
use std::time::Duration;

fn with_filter(filter: hcm::HttpFilter) -> hcm::HttpConnectionManager {
    let mut manager = manager();
    manager.http_filters.insert(0, filter);
    manager
}

fn seconds(seconds: i64) -> Option<Span> {
    Some(Span { seconds, nanos: 0 })
}

#[test]
fn http_settings() {
    let yes = Some(BoolValue { value: true });
    let mut manager = hcm::HttpConnectionManager {
        normalize_path: yes,
        merge_slashes: true,
        server_name: "mine".to_owned(),
        server_header_transformation: settings::ServerHeaderTransformation::PassThrough as i32,
        forward_client_cert_details: settings::ForwardClientCertDetails::AlwaysForwardOnly as i32,
        generate_request_id: Some(BoolValue { value: false }),
        append_x_forwarded_port: true,
        path_with_escaped_slashes_action: settings::PathWithEscapedSlashesAction::UnescapeAndForward
            as i32,
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(33),
            ..core::HttpProtocolOptions::default()
        }),
        http_protocol_options: Some(core::Http1ProtocolOptions {
            accept_http_10: true,
            ..core::Http1ProtocolOptions::default()
        }),
        upgrade_configs: vec![settings::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..settings::UpgradeConfig::default()
        }],
        ..manager()
    };
    let chain = http(&manager);
    assert_eq!(chain.broken, None);
    assert!(chain.normalize_path && chain.merge_slashes && chain.accept_http_10);
    assert!(chain.append_x_forwarded_port && !chain.generate_request_id);
    assert_eq!((chain.server.as_str(), chain.server_mode), ("mine", ServerMode::PassThrough));
    assert_eq!(chain.forwarded_client_cert, ForwardedClientCert::AlwaysForwardOnly);
    assert_eq!(chain.escaped_slashes, EscapedSlashes::UnescapeAndForward);
    assert_eq!(chain.idle_timeout, Some(Duration::from_secs(33)));
    assert_eq!(chain.upgrades, ["websocket"]);
    // Inside a tunnel there is no certificate to put in.
    manager.forward_client_cert_details = settings::ForwardClientCertDetails::SanitizeSet as i32;
    assert_eq!(http(&manager).forwarded_client_cert, ForwardedClientCert::Sanitize);
}

#[test]
fn known_filters_are_facts() {
    for (name, config) in [
        ("grpc", any("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", vec![])),
        ("fault", any("envoy.extensions.filters.http.fault.v3.HTTPFault", vec![])),
        ("cors", any("envoy.extensions.filters.http.cors.v3.Cors", vec![])),
        ("peer", typed_struct("io.istio.http.peer_metadata.Config")),
        ("istio.stats", any("stats.PluginConfig", vec![])),
    ] {
        let chain = http(&with_filter(http_filter(name, config)));
        assert_eq!((chain.broken, chain.filters), (None, vec![]), "{name}");
    }
}

#[test]
fn unknown_filters_close_the_chain() {
    for kind in [
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "envoy.extensions.filters.http.lua.v3.Lua",
        "envoy.extensions.filters.http.wasm.v3.Wasm",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
        "example.Own",
    ] {
        let filter = http_filter("theirs", any(kind, vec![]));
        let (translator, destination) = of_chain(http_chain(&with_filter(filter.clone())));
        let broken = destination.http.as_ref().unwrap().broken.clone().unwrap();
        assert!(broken.contains("`theirs`") && broken.contains(kind), "{broken}");
        let listed = translator.unsupported();
        assert!(listed.iter().any(|of| of.kind == "chain" && of.reason == broken), "{listed:?}");
        let disabled = hcm::HttpFilter { disabled: true, ..filter.clone() };
        assert_eq!(http(&with_filter(disabled)).broken, None);
        // Envoy has its own filters, optional or not.
        let optional = hcm::HttpFilter { is_optional: true, ..filter };
        let closed = http(&with_filter(optional)).broken.is_some();
        assert_eq!(closed, kind.starts_with("envoy."), "{kind}");
    }
    // What is in a TypedStruct is not taken for what its filter would be.
    let hidden = typed_struct("envoy.extensions.filters.http.rbac.v3.RBAC");
    assert!(http(&with_filter(http_filter("hidden", hidden))).broken.is_some());
}

#[test]
fn wasm_that_comes_later_closes_the_chain() {
    let wasm = hcm::HttpFilter {
        name: "ext".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::ConfigDiscovery(
            core::ExtensionConfigSource::default(),
        )),
        ..hcm::HttpFilter::default()
    };
    let (translator, destination) = of_chain(http_chain(&with_filter(wasm)));
    assert!(destination.http.as_ref().unwrap().broken.is_some());
    assert!(translator.wanted().extension_configs.contains("ext"));
}

#[test]
fn a_chain_needs_its_router_at_the_end() {
    let mut without = manager();
    without.http_filters.clear();
    assert!(http(&without).broken.is_some());
    let mut behind = manager();
    let stats = any("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", vec![]);
    behind.http_filters.push(http_filter("late", stats));
    assert!(http(&behind).broken.is_some());
}

#[test]
fn settings_in_a_security_position_close_the_chain() {
    type Change = fn(&mut hcm::HttpConnectionManager);
    let changes: [(&str, Change); 6] = [
        ("strip_matching_host_port", |of| of.strip_matching_host_port = true),
        ("strip_trailing_host_dot", |of| of.strip_trailing_host_dot = true),
        ("early", |of| {
            of.early_header_mutation_extensions.push(core::TypedExtensionConfig::default());
        }),
        ("underscores", |of| {
            of.common_http_protocol_options = Some(core::HttpProtocolOptions {
                headers_with_underscores_action: 1,
                ..core::HttpProtocolOptions::default()
            });
        }),
        ("path", |of| {
            of.path_normalization_options = Some(settings::PathNormalizationOptions::default())
        }),
        ("rds", |of| {
            of.route_specifier = Some(settings::RouteSpecifier::Rds(hcm::Rds::default()));
        }),
    ];
    for (name, change) in changes {
        let mut manager = manager();
        change(&mut manager);
        assert!(http(&manager).broken.is_some(), "{name}");
    }
}

#[test]
fn xfcc_by_header_mutation() {
    use pb::envoy::config::common::mutation_rules::v3::{
        HeaderMutation as Change, header_mutation,
    };
    use pb::envoy::extensions::filters::http::header_mutation::v3::{HeaderMutation, Mutations};
    let value = "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%";
    let put = core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x-forwarded-client-cert".to_owned(),
            value: value.to_owned(),
            ..core::HeaderValue::default()
        }),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..core::HeaderValueOption::default()
    };
    let mut config = HeaderMutation {
        mutations: Some(Mutations {
            request_mutations: vec![
                Change { action: Some(header_mutation::Action::Remove("x-a".to_owned())) },
                Change { action: Some(header_mutation::Action::Append(put)) },
            ],
            ..Mutations::default()
        }),
        ..HeaderMutation::default()
    };
    let (translator, destination) =
        of_chain(http_chain(&with_filter(http_filter("xfcc", pack(&config)))));
    compiles(&translator.resources());
    let chain = destination.http.as_ref().unwrap();
    let [HttpFilter::RequestHeaders(first), HttpFilter::RequestHeaders(second)] =
        chain.filters.as_slice()
    else {
        panic!("{:?}", chain.filters)
    };
    assert_eq!(first.remove, ["x-a"]);
    assert_eq!(second.add[0].value, "By=%DOWNSTREAM_LOCAL_URI_SAN%;URI=%DOWNSTREAM_PEER_URI_SAN%");
    // What cannot be done here closes the chain.
    let mutations = config.mutations.as_mut().unwrap();
    mutations.response_mutations = mutations.request_mutations.clone();
    assert!(http(&with_filter(http_filter("xfcc", pack(&config)))).broken.is_some());
}

fn proxied() -> proxy::TcpProxy {
    proxy::TcpProxy {
        cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::Cluster("c".to_owned())),
        ..proxy::TcpProxy::default()
    }
}

#[test]
fn tcp_chains() {
    let config = proxy::TcpProxy {
        idle_timeout: seconds(30),
        max_downstream_connection_duration: seconds(600),
        cluster_specifier: Some(proxy::tcp_proxy::ClusterSpecifier::WeightedClusters(
            proxy::tcp_proxy::WeightedCluster {
                clusters: [("a", 80), ("b", 20)]
                    .map(|(name, weight)| proxy::tcp_proxy::weighted_cluster::ClusterWeight {
                        name: name.to_owned(),
                        weight,
                        ..Default::default()
                    })
                    .to_vec(),
            },
        )),
        ..proxied()
    };
    let exchange = typed_struct("envoy.tcp.metadataexchange.config.MetadataExchange");
    let chain = tcp(vec![
        network_filter("mx", exchange),
        network_filter("istio.stats", any("stats.PluginConfig", vec![])),
        network_filter("tcp", pack(&config)),
    ]);
    assert_eq!(chain.broken, None);
    assert_eq!(
        (chain.idle_timeout, chain.max_duration),
        (Some(Duration::from_secs(30)), Some(Duration::from_secs(600)))
    );
    let clusters: Vec<_> = chain.clusters.iter().map(|of| (of.name.as_str(), of.weight)).collect();
    assert_eq!(clusters, [("a", 80), ("b", 20)]);
}

#[test]
fn tcp_chains_that_are_closed() {
    let tcp_proxy = || network_filter("tcp", pack(&proxied()));
    let other = |kind: &str| network_filter("other", any(kind, vec![]));
    for (what, filters) in [
        ("unknown", vec![other("example.Own"), tcp_proxy()]),
        (
            "ext_authz",
            vec![other("envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"), tcp_proxy()],
        ),
        ("no end", vec![network_filter("istio.stats", any("stats.PluginConfig", vec![]))]),
        ("behind the end", vec![tcp_proxy(), tcp_proxy()]),
        ("nothing", vec![]),
        (
            "no settings",
            vec![listener::Filter { name: "x".to_owned(), config_type: None }, tcp_proxy()],
        ),
        (
            "tunnel",
            vec![network_filter(
                "tcp",
                pack(&proxy::TcpProxy {
                    tunneling_config: Some(proxy::tcp_proxy::TunnelingConfig::default()),
                    ..proxied()
                }),
            )],
        ),
    ] {
        assert!(tcp(filters).broken.is_some(), "{what}");
    }
}

#[test]
fn tls_and_conditions_of_a_chain_close_it() {
    let mut own = http_chain(&manager());
    own.transport_socket = Some(core::TransportSocket::default());
    assert!(of_chain(own).1.http.as_ref().unwrap().broken.is_some());
    let mut own = http_chain(&manager());
    own.filter_chain_match = Some(listener::FilterChainMatch {
        server_names: vec!["a".to_owned()],
        ..listener::FilterChainMatch::default()
    });
    assert!(of_chain(own).1.http.as_ref().unwrap().broken.is_some());
}

#[test]
fn fields_that_are_not_known() {
    // Field 900 of the connection manager, of an HTTP filter and of RBAC.
    const UNKNOWN: &[u8] = &[0xa0, 0x38, 1];
    let with_unknown = |mut bytes: Vec<u8>| {
        bytes.extend_from_slice(UNKNOWN);
        bytes
    };
    let of = |bytes: Vec<u8>| {
        let config = any(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            bytes,
        );
        let (translator, destination) = of_chain(chain(vec![network_filter("hcm", config)]));
        (translator.degraded(), destination.http.as_ref().unwrap().broken.clone())
    };
    let (degraded, broken) = of(with_unknown(manager().encode_to_vec()));
    assert_eq!((broken, degraded.len()), (None, 1), "{degraded:?}");
    let (_, broken) = of({
        let mut bytes = manager().encode_to_vec();
        let filter = with_unknown(router().encode_to_vec());
        bytes.extend_from_slice(&[0x2a, u8::try_from(filter.len()).unwrap()]);
        bytes.extend_from_slice(&filter);
        bytes
    });
    assert!(broken.unwrap().contains("HTTP filter"));
    let rbac = any("envoy.extensions.filters.http.rbac.v3.RBAC", UNKNOWN.to_vec());
    assert!(http(&with_filter(http_filter("rbac", rbac))).broken.is_some());
}

#[test]
fn chains_that_do_not_decode_keep_the_last_good_one() {
    let mut translator = translator();
    listen(&mut translator, &main_internal(vec![http_chain(&manager())], at_app()));
    let before = translator.resources();
    let hcm = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let bad = chain(vec![network_filter("hcm", any(hcm, vec![0x0a, 200]))]);
    let listener = main_internal(vec![bad], at_app());
    let bad = resource(Kind::Listener, "main_internal", listener.encode_to_vec());
    let rejected = translator.apply(update(Kind::Listener, vec![bad.clone()])).unwrap_err();
    assert!(rejected.detail.contains(CHAIN), "{rejected}");
    assert!(translator.resources() == before);
    // Refused each time it comes.
    translator.apply(update(Kind::Listener, vec![bad.clone()])).unwrap_err();
    // Without a last good one it is closed.
    let mut fresh = crate::world::translator();
    fresh.apply(update(Kind::Listener, vec![bad])).unwrap_err();
    let resources = fresh.resources();
    assert!(resources.destinations[0].tcp.as_ref().unwrap().broken.is_some());
}
