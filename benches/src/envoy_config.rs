//! A [`World`] as Envoy's configuration, in the shape that istiod gives a waypoint: `connect_terminate`
//! → `main_internal` → the service's chain → its cluster → `connect_originate`.
//!
//! What differs from istiod's, because there is no istiod and no Istio build of Envoy here:
//! listeners and clusters come from files; so do the endpoints of the last service, the one that
//! changes, those of others are part of their clusters (Envoy watches 128 files at most on a usual
//! system); certificates are files; `istio.stats` and the peer metadata filters do not exist, so
//! Envoy's own counters and histograms of requests stand for Istio's metrics.

mod chains;
mod upstreams;

use crate::cairn_config::replace;
use crate::certs::Files;
use crate::world::{NAMESPACE, World};
use anyhow::Result;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The configuration on disk.
#[derive(Debug)]
pub struct EnvoyConfig {
    dir: PathBuf,
    listen: SocketAddr,
    certs: Files,
}

impl EnvoyConfig {
    /// Writes everything into `dir`, which is emptied first.
    pub fn write(
        world: &World,
        dir: &Path,
        listen: SocketAddr,
        admin: SocketAddr,
        certs: &Files,
    ) -> Result<EnvoyConfig> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let config = EnvoyConfig { dir: dir.to_owned(), listen, certs: certs.clone() };
        replace(&config.bootstrap(), &config.bootstrap_value(admin))?;
        config.write_listeners(world)?;
        replace(&config.clusters(), &response(upstreams::clusters(world, &config)))?;
        config.write_endpoints(world)?;
        Ok(config)
    }

    /// The file that Envoy is started with.
    pub fn bootstrap(&self) -> PathBuf {
        self.dir.join("bootstrap.json")
    }

    /// Writes all listeners again, as istiod pushes them for any change of a route.
    pub fn write_listeners(&self, world: &World) -> Result<()> {
        let listeners = vec![self.connect_terminate(), main_internal(world), connect_originate()];
        replace(&self.listeners(), &response(listeners))
    }

    /// Writes the endpoints of the last service again.
    pub fn write_endpoints(&self, world: &World) -> Result<()> {
        let Some(service) = world.services.last() else { return Ok(()) };
        let assignment = upstreams::endpoints(world, service);
        replace(&self.endpoints(), &response(vec![assignment]))
    }

    fn listeners(&self) -> PathBuf {
        self.dir.join("listeners.json")
    }

    fn clusters(&self) -> PathBuf {
        self.dir.join("clusters.json")
    }

    fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints.json")
    }

    fn bootstrap_value(&self, admin: SocketAddr) -> Value {
        json!({
            "node": {"id": format!("waypoint~127.0.0.1~waypoint.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
                     "cluster": format!("waypoint.{NAMESPACE}")},
            "admin": {"address": socket_address(admin)},
            "bootstrap_extensions": [typed(
                "envoy.bootstrap.internal_listener",
                "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                json!({}),
            )],
            "dynamic_resources": {
                "lds_config": from_file(&self.listeners()),
                "cds_config": from_file(&self.clusters()),
            },
            "stats_config": stats(),
            "layered_runtime": {"layers": [{"name": "static", "static_layer": {
                "re2.max_program_size.error_level": 32768,
            }}]},
        })
    }

    fn connect_terminate(&self) -> Value {
        let state = |key: &str, format: &str, text: bool| {
            let mut state = json!({
                "object_key": key,
                "format_string": {"text_format_source": {"inline_string": format}},
                "shared_with_upstream": "ONCE",
            });
            if text {
                // Istio's build has `istio.hashable_string` here.
                state["factory_key"] = json!("envoy.string");
            }
            state
        };
        let set_filter_state = typed(
            "connect_authority",
            "envoy.extensions.filters.http.set_filter_state.v3.Config",
            json!({"on_request_headers": [
                state("envoy.filters.listener.original_dst.local_ip", "%REQ(:AUTHORITY)%", false),
                state("io.istio.connect_authority", "%REQ(:AUTHORITY)%", true),
                state("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%", false),
                state("io.istio.peer_principal", "%DOWNSTREAM_PEER_URI_SAN%", true),
                state("io.istio.local_principal", "%DOWNSTREAM_LOCAL_URI_SAN%", true),
            ]}),
        );
        let manager = typed(
            "envoy.filters.network.http_connection_manager",
            HTTP_CONNECTION_MANAGER,
            json!({
                "stat_prefix": "connect_terminate",
                "route_config": {"name": "default", "virtual_hosts": [{
                    "name": "default",
                    "domains": ["*"],
                    "routes": [{"match": {"connect_matcher": {}}, "route": {
                        "cluster": "main_internal",
                        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                    }}],
                }]},
                "http_filters": [set_filter_state, router()],
                "forward_client_cert_details": "APPEND_FORWARD",
                "set_current_client_cert_details": {"subject": true, "uri": true, "dns": true},
                "server_name": "istio-envoy",
                "use_remote_address": false,
                "stream_idle_timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "CONNECT"}],
                "http2_protocol_options": {
                    "allow_connect": true,
                    "max_concurrent_streams": 100,
                    "connection_keepalive": {"interval": "10s", "timeout": "20s"},
                },
            }),
        );
        let mut common = upstreams::tls(&self.certs);
        common["validation_context"]["match_typed_subject_alt_names"] =
            json!([{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]);
        json!({
            "@type": LISTENER,
            "name": "connect_terminate",
            "address": socket_address(self.listen),
            "connection_balance_config": {"exact_balance": {}},
            "filter_chains": [{
                "name": "default",
                "transport_socket": typed(
                    "tls",
                    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    json!({"require_client_certificate": true, "common_tls_context": common}),
                ),
                "filters": [manager],
            }],
        })
    }
}

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn main_internal(world: &World) -> Value {
    let by_address: Vec<_> = world.services.iter().map(chains::matcher).collect();
    let ports = chains::known_ports(world);
    let known = |port: &u16| json!({"destination_port_range": {"start": port, "end": u32::from(*port) + 1}});
    let known = match ports.as_slice() {
        [port] => known(port),
        ports => json!({"or_match": {"rules": ports.iter().map(known).collect::<Vec<_>>()}}),
    };
    let mut inspector = typed(
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        json!({}),
    );
    inspector["filter_disabled"] = known;
    json!({
        "@type": LISTENER,
        "name": "main_internal",
        "internal_listener": {},
        "traffic_direction": "INBOUND",
        "listener_filters": [original_dst(), inspector],
        "filter_chain_matcher": {"matcher_tree": {
            "input": {"name": "ip", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput",
            }},
            "custom_match": {"name": "ip", "typed_config": {
                "@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher",
                "range_matchers": by_address,
            }},
        }},
        "filter_chains": world.services.iter().map(chains::chain).collect::<Vec<_>>(),
    })
}

fn connect_originate() -> Value {
    json!({
        "@type": LISTENER,
        "name": "connect_originate",
        "use_original_dst": false,
        "internal_listener": {},
        "listener_filters": [original_dst()],
        "filter_chains": [{"filters": [typed(
            "envoy.filters.network.tcp_proxy",
            TCP_PROXY,
            json!({
                "stat_prefix": "connect_originate",
                "cluster": "connect_originate",
                "tunneling_config": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
            }),
        )]}],
    })
}

const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn original_dst() -> Value {
    typed(
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        json!({}),
    )
}

fn router() -> Value {
    typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}))
}

/// An extension by its name, with a configuration of a type.
fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{kind}"));
    json!({"name": name, "typed_config": config})
}

fn response(resources: Vec<Value>) -> Value {
    json!({"version_info": "1", "resources": resources})
}

fn from_file(path: &Path) -> Value {
    json!({"resource_api_version": "V3", "path_config_source": {"path": path}})
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

/// Which statistics are kept. Istio's bootstrap admits a few of Envoy's own, since `istio.stats` has
/// those of requests; here the requests of each service are counted by code, and timed, by Envoy.
fn stats() -> Value {
    let requests = r"^http\.inbound_.*\.downstream_rq_(total|time|[1-5]xx)$";
    let clusters = r"^cluster\.inbound-vip.*\.upstream_rq_(total|time|[1-5]xx|[1-5][0-9][0-9])$";
    json!({
        "stats_tags": [
            {"tag_name": "cluster_name", "regex": r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)"},
            {"tag_name": "response_code", "regex": r"_rq(_(\d{3}))$"},
            {"tag_name": "http_conn_manager_prefix", "regex": r"^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"},
        ],
        "use_all_default_tags": false,
        "stats_matcher": {"inclusion_list": {"patterns": [
            {"prefix": "cluster_manager"},
            {"prefix": "listener_manager"},
            {"prefix": "server"},
            {"suffix": "rbac.allowed"},
            {"suffix": "rbac.denied"},
            {"suffix": "downstream_cx_active"},
            {"safe_regex": {"regex": requests}},
            {"safe_regex": {"regex": clusters}},
        ]}},
    })
}
