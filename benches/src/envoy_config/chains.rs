//! What `main_internal` does with the connections of a service.

use super::{HTTP_CONNECTION_MANAGER, TCP_PROXY, router, typed};
use crate::world::{
    ADMITTED, FORBIDDEN_PREFIX, METHODS, NAMESPACE, PathShape, Protocol, REFUSED_NAMESPACE,
    REVISION_HEADER, ROUTES, RouteShape, Service, World,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Ports whose protocol need not be looked for.
pub fn known_ports(world: &World) -> Vec<u16> {
    let ports: BTreeSet<_> = world.services.iter().map(|service| service.port).collect();
    ports.into_iter().collect()
}

/// From the service's address and port to its chain.
pub fn matcher(service: &Service) -> Value {
    let name = service.inbound_name();
    json!({
        "ranges": [{"address_prefix": service.vip, "prefix_len": 32}],
        "on_match": {"matcher": {"matcher_tree": {
            "input": {"name": "port", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput",
            }},
            "exact_match_map": {"map": {service.port.to_string(): {"action": {
                "name": name,
                "typed_config": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": name,
                },
            }}}},
        }}},
    })
}

/// The service's chain.
pub fn chain(service: &Service) -> Value {
    let filters = match service.protocol {
        Protocol::Http1 | Protocol::Http2 => vec![http(service)],
        Protocol::Tcp => vec![tcp_policies(service), tcp(service)],
    };
    json!({"name": service.inbound_name(), "filters": filters})
}

fn http(service: &Service) -> Value {
    let name = service.inbound_name();
    let mut manager = json!({
        "stat_prefix": format!("inbound_0.0.0.0_{};", service.port),
        "route_config": {
            "name": name,
            "validate_clusters": false,
            "virtual_hosts": [{
                "name": format!("inbound|http|{}", service.port),
                "domains": ["*"],
                "routes": ROUTES.iter().map(|shape| route(service, shape)).collect::<Vec<_>>(),
            }],
        },
        "http_filters": [
            rbac("DENY", deny_policies()),
            rbac("ALLOW", allow_policies()),
            typed(
                "envoy.filters.http.grpc_stats",
                "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
                json!({"emit_filter_state": true, "stats_for_all_methods": false}),
            ),
            typed(
                "envoy.filters.http.fault",
                "envoy.extensions.filters.http.fault.v3.HTTPFault",
                json!({}),
            ),
            typed("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", json!({})),
            router(),
        ],
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "proxy_100_continue": true,
        "request_id_extension": {"typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
            "use_request_id_for_trace_sampling": true,
        }},
        "server_name": "istio-envoy",
        "use_remote_address": false,
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    });
    if service.protocol == Protocol::Http2 {
        manager["http2_protocol_options"] = json!({});
    }
    typed("envoy.filters.network.http_connection_manager", HTTP_CONNECTION_MANAGER, manager)
}

fn route(service: &Service, shape: &RouteShape) -> Value {
    let (kind, path) = match shape.path {
        PathShape::Exact(path) => ("path", json!(path)),
        PathShape::Prefix(path) => ("prefix", json!(path)),
        PathShape::Separated(path) => ("path_separated_prefix", json!(path)),
        PathShape::Regex(regex) => ("safe_regex", json!({"regex": regex})),
    };
    let mut matches = json!({"case_sensitive": true, kind: path});
    if let Some((name, value)) = shape.header {
        matches["headers"] = json!([{"name": name, "string_match": {"exact": value}}]);
    }
    let set = |name: &str, value: &str| {
        json!([{
            "header": {"key": name, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }])
    };
    let mut route = json!({
        "name": shape.name,
        "match": matches,
        "decorator": {"operation": format!("{}:{}/*", service.host(), service.port)},
        "metadata": {"filter_metadata": {"istio": {"config": format!(
            "/apis/networking.istio.io/v1/namespaces/{NAMESPACE}/virtual-service/{}", service.name,
        )}}},
        "route": {
            "cluster": service.inbound_name(),
            "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR",
            "timeout": "0s",
            "max_grpc_timeout": "0s",
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                "num_retries": 2,
                "host_selection_retry_max_attempts": "5",
                "retry_host_predicate": [typed(
                    "envoy.retry_host_predicates.previous_hosts",
                    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                    json!({}),
                )],
            },
        },
    });
    if let Some((name, value)) = shape.sets {
        route["request_headers_to_add"] = set(name, value);
    }
    if shape.shows_revision {
        route["response_headers_to_add"] = set(REVISION_HEADER, &service.revision.to_string());
    }
    route
}

fn rbac(action: &str, policies: Value) -> Value {
    typed(
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        json!({"rules": {"action": action, "policies": policies}}),
    )
}

fn deny_policies() -> Value {
    json!({
        policy_name("no-admin"): {
            "permissions": [all_of("rules", vec![any_of("rules", vec![
                json!({"url_path": {"path": {"prefix": FORBIDDEN_PREFIX}}}),
            ])])],
            "principals": [all_of("ids", vec![json!({"any": true})])],
        },
        policy_name("no-evil"): {
            "permissions": [all_of("rules", vec![json!({"any": true})])],
            "principals": [all_of("ids", vec![any_of("ids", vec![
                peer(json!({"safe_regex": {"regex": REFUSED_NAMESPACE}})),
            ])])],
        },
    })
}

fn allow_policies() -> Value {
    let methods = METHODS
        .iter()
        .map(|name| json!({"header": {"name": ":method", "string_match": {"exact": name}}}));
    json!({policy_name("clients"): {
        "permissions": [all_of("rules", vec![any_of("rules", methods.collect())])],
        "principals": [admitted()],
    }})
}

fn tcp_policies(service: &Service) -> Value {
    let port = json!({"destination_port": service.port});
    typed(
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        json!({"stat_prefix": "tcp.", "rules": {"action": "ALLOW", "policies": {
            policy_name("clients"): {
                "permissions": [all_of("rules", vec![any_of("rules", vec![port])])],
                "principals": [admitted()],
            },
        }}}),
    )
}

fn tcp(service: &Service) -> Value {
    let name = service.inbound_name();
    typed(
        "envoy.filters.network.tcp_proxy",
        TCP_PROXY,
        json!({"stat_prefix": name, "cluster": name}),
    )
}

fn admitted() -> Value {
    let ids = ADMITTED.iter().map(|id| peer(json!({"exact": id}))).collect();
    all_of("ids", vec![any_of("ids", ids)])
}

fn peer(matcher: Value) -> Value {
    json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": matcher}})
}

fn all_of(list: &str, rules: Vec<Value>) -> Value {
    json!({format!("and_{list}"): {list: rules}})
}

fn any_of(list: &str, rules: Vec<Value>) -> Value {
    json!({format!("or_{list}"): {list: rules}})
}

fn policy_name(policy: &str) -> String {
    format!("ns[{NAMESPACE}]-policy[{policy}]-rule[0]")
}
