//! Clusters and their endpoints.

use super::{EnvoyConfig, from_file, socket_address, typed};
use crate::certs::Files;
use crate::world::{NAMESPACE, Protocol, Service, Transport, World};
use serde_json::{Value, json};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

/// All clusters of the waypoint.
pub fn clusters(world: &World, config: &EnvoyConfig) -> Vec<Value> {
    let changing = world.services.len().saturating_sub(1);
    let services = world.services.iter().enumerate().map(|(index, service)| {
        let mut cluster = inbound(service);
        if index == changing {
            let endpoints = from_file(&config.endpoints());
            cluster["type"] = json!("EDS");
            cluster["eds_cluster_config"] =
                json!({"eds_config": endpoints, "service_name": service.inbound_name()});
        } else {
            let mut assignment = endpoints(world, service);
            assignment.as_object_mut().map(|assignment| assignment.remove("@type"));
            cluster["type"] = json!("STATIC");
            cluster["load_assignment"] = assignment;
        }
        cluster
    });
    [main_internal(), connect_originate(world, config)].into_iter().chain(services).collect()
}

/// What both ends of mTLS have in common.
pub fn tls(certs: &Files) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": certs.cert},
            "private_key": {"filename": certs.key},
        }],
        "validation_context": {"trusted_ca": {"filename": certs.roots}},
    })
}

fn main_internal() -> Value {
    json!({
        "@type": CLUSTER,
        "name": "main_internal",
        "alt_stat_name": "main_internal;",
        "type": "STATIC",
        "circuit_breakers": unlimited(),
        "load_assignment": {"cluster_name": "main_internal", "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": {"envoy_internal_address": {
                "server_listener_name": "main_internal",
            }}},
        }]}]},
        "transport_socket": internal_upstream(&[]),
        "typed_extension_protocol_options": {HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "common_http_protocol_options": {"idle_timeout": "300s"},
            "use_downstream_protocol_config": {
                "http_protocol_options": {},
                "http2_protocol_options": {},
            },
        }},
    })
}

fn connect_originate(world: &World, config: &EnvoyConfig) -> Value {
    let mut common = tls(&config.certs);
    common["validation_context"]["match_typed_subject_alt_names"] = json!([
        {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}},
        {"san_type": "URI", "matcher": {"prefix": format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/")}},
    ]);
    json!({
        "@type": CLUSTER,
        "name": "connect_originate",
        "alt_stat_name": "connect_originate;",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "cleanup_interval": "60s",
        "connect_timeout": "10s",
        "circuit_breakers": unlimited(),
        "original_dst_lb_config": {
            // All pods of the benchmark are behind one HBONE port: see `waypoint` in `endpoints`.
            "upstream_port_override": world.tunnel.port(),
            "metadata_key": {"key": ORIGINAL_DST, "path": [{"key": "waypoint"}]},
        },
        "transport_socket": typed(
            "tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            json!({"common_tls_context": common}),
        ),
        "typed_extension_protocol_options": {HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "common_http_protocol_options": {"idle_timeout": "3600s"},
            "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
        }},
    })
}

fn inbound(service: &Service) -> Value {
    let name = service.inbound_name();
    let mut cluster = json!({
        "@type": CLUSTER,
        "name": name,
        "alt_stat_name": format!("{name};"),
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {"healthy_panic_threshold": {}},
        "circuit_breakers": unlimited(),
        "metadata": {"filter_metadata": {"istio": {"services": [{
            "host": service.host(),
            "name": service.name,
            "namespace": NAMESPACE,
        }]}}},
        "transport_socket": internal_upstream(&[ORIGINAL_DST, "istio"]),
    });
    if service.protocol == Protocol::Http2 {
        cluster["typed_extension_protocol_options"] = json!({HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

/// The pods of one service.
pub fn endpoints(world: &World, service: &Service) -> Value {
    let endpoint = |pod: &std::net::SocketAddr| match service.transport {
        Transport::Hbone => json!({
            "health_status": "HEALTHY",
            "load_balancing_weight": 1,
            "endpoint": {"address": {"envoy_internal_address": {
                "server_listener_name": "connect_originate",
                "endpoint_id": pod.to_string(),
            }}},
            "metadata": {"filter_metadata": {
                // istiod gives `waypoint` to gateways whose endpoints are reached elsewhere.
                ORIGINAL_DST: {"local": pod.to_string(), "waypoint": world.tunnel.to_string()},
                "istio": {"workload": format!("{0}-v1;{NAMESPACE};{0};v1;Kubernetes", service.name)},
            }},
        }),
        Transport::Plain => json!({
            "health_status": "HEALTHY",
            "load_balancing_weight": 1,
            "endpoint": {"address": socket_address(*pod)},
        }),
    };
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": service.inbound_name(),
        "endpoints": [{
            "locality": {"region": "r1", "zone": "z1"},
            "load_balancing_weight": 1,
            "lb_endpoints": service.pods.iter().map(endpoint).collect::<Vec<_>>(),
        }],
    })
}

fn internal_upstream(metadata: &[&str]) -> Value {
    let pass = |name: &&str| json!({"kind": {"host": {}}, "name": name});
    typed(
        "internal_upstream",
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({
            "passthrough_metadata": metadata.iter().map(pass).collect::<Vec<_>>(),
            "transport_socket": typed(
                "raw_buffer",
                "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
                json!({}),
            ),
        }),
    )
}

fn unlimited() -> Value {
    json!({"thresholds": [{
        "max_connections": u32::MAX,
        "max_pending_requests": u32::MAX,
        "max_requests": u32::MAX,
        "max_retries": u32::MAX,
    }]})
}
