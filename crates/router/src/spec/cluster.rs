//! Where requests go: clusters, their endpoints, and who runs where.

use super::duration;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How the endpoints of one name are used. Envoy: `config.cluster.v3.Cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Unique name; the endpoint set of the same name belongs to it.
    pub name: String,
    /// Host name of the service, for telemetry (`destination_service`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Short name of the service, for telemetry (`destination_service_name`). Default: the first
    /// label of `service` if that is `name.namespace.svc…`, else all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_name: String,
    /// Namespace of the service, for telemetry.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_namespace: String,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub lb: LbPolicy,
    /// What is spoken to endpoints.
    #[serde(default)]
    pub protocol: ClusterProtocol,
    /// Bound of a dial, TLS and CONNECT included. Default 10 s (MeshConfig.connectTimeout).
    #[serde(with = "duration", default = "ten_seconds")]
    pub connect_timeout: Duration,
    /// TLS to the endpoint, inside the tunnel if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// An idle connection is closed after so long. Default 1 h (Envoy).
    #[serde(with = "duration", default = "one_hour")]
    pub idle_timeout: Duration,
    /// Requests per connection; absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// How much may be under way at once.
    #[serde(default, skip_serializing_if = "CircuitBreakers::is_empty")]
    pub circuit_breakers: CircuitBreakers,
    /// Requests go to the very address that the client named, and the cluster has no endpoints of its
    /// own. Envoy: `ORIGINAL_DST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_destination: Option<OriginalDestination>,
    /// Why it cannot be honoured: what is sent there gets 503 with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// How the address that the client named is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginalDestination {
    /// With `hbone` the workload at the address must be known: its identity is expected (Istio: `encap`).
    pub transport: EndpointTransport,
    /// Port instead of the one that the client named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Clients may name this machine's loopback addresses, and with them its administration pages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
}

/// How much may be under way at once in this process; absent: no bound. Envoy:
/// `config.cluster.v3.CircuitBreakers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreakers {
    /// HTTP/1 requests and TCP connections that have a connection; what exceeds it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; what exceeds it gets 503 `overflow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Requests in flight; what exceeds it gets 503 `overflow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Retries in flight; what exceeds it is not retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

impl CircuitBreakers {
    /// Nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == CircuitBreakers::default()
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LbPolicy {
    /// The less busy of two drawn by weight (Envoy's default at a waypoint).
    #[default]
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Drawn by weight.
    Random,
}

/// What is spoken to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, or by ALPN with TLS.
    Http2,
    /// What the client speaks.
    Downstream,
}

/// TLS to endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// Server name that is sent. Without it and without `sans` the cluster is refused: nothing could be verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// PEM file with the CAs that are trusted; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Names (DNS or URI) of which the certificate must carry one; empty: `sni`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sans: Vec<String>,
    /// PEM file with the client certificate's chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<String>,
    /// PEM file with the client certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// TLS 1.3 alone; else TLS 1.2 as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tls13_only: bool,
}

/// The endpoints of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSet {
    /// Name of the cluster.
    pub cluster: String,
    /// None at all: 503 `no healthy upstream`.
    pub endpoints: Vec<Endpoint>,
}

/// One place where requests are answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Address and port of the application.
    pub address: SocketAddr,
    /// How it is reached.
    #[serde(default)]
    pub transport: EndpointTransport,
    /// Identities of which the endpoint must prove one. Needed with `hbone`: without it the endpoint is unusable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// HBONE address; default: the endpoint's IP and 15008.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_address: Option<SocketAddr>,
    /// Share of the traffic among its peers, from 1; default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// 0 is used first; others when none of the lower ones is healthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Only healthy endpoints get requests.
    #[serde(default)]
    pub health: Health,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Locality::is_empty")]
    pub locality: Locality,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointTransport {
    /// Through an HBONE tunnel (mTLS).
    #[default]
    Hbone,
    /// Plain TCP.
    Plain,
}

/// Health as the control plane sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Gets requests.
    #[default]
    Healthy,
    /// Gets none.
    Unhealthy,
    /// Finishes what it has and gets no new ones.
    Draining,
}

/// Region, zone and sub-zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// Region.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Sub-zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subzone: String,
}

impl Locality {
    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

/// Who is at some addresses. Istio: `istio.workload.Workload`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// Pod name, or another unique name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account; with trust domain and namespace the SPIFFE identity.
    pub service_account: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Deployment or other owner (`source_workload`).
    pub workload_name: String,
    /// Istio's canonical service.
    pub canonical_name: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
    /// Cluster that it runs in.
    pub cluster: String,
}

fn one() -> u32 {
    1
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn one_hour() -> Duration {
    Duration::from_secs(3600)
}
