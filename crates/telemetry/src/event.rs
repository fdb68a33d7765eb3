//! What happened, told once: one [`RequestEvent`] per HTTP request, one [`ConnectionEvent`] per TCP connection.
//!
//! The proxy builds the event when the request or connection is over, out of what it holds anyway: every text is
//! borrowed, and what describes a workload or a service is an `Arc` that was built when the configuration was compiled.
//! Every sink (metrics, access log, traces, topology) reads the same event.
//!
//! An empty text means that the value is not known; metrics print it as `unknown`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::flags::ResponseFlags;
use crate::rules::Rules;

/// Who a workload is, in the words of Istio's labels. Built once per workload and shared.
///
/// An empty value is printed as `unknown` (the source's canonical revision as `latest`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct WorkloadLabels {
    /// Name of the workload: the Deployment and the like, not the pod.
    pub workload: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// `service.istio.io/canonical-name`.
    pub canonical_service: Arc<str>,
    /// `service.istio.io/canonical-revision`.
    pub canonical_revision: Arc<str>,
    /// Name of the Kubernetes cluster.
    pub cluster: Arc<str>,
    /// Identity as a full URI, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    pub principal: Arc<str>,
    /// Label `app`; Envoy's waypoint uses the canonical name for a workload that it knows from WDS.
    pub app: Arc<str>,
    /// Label `version`; Envoy's waypoint uses the canonical revision for a workload that it knows from WDS.
    pub version: Arc<str>,
}

/// Which service a request or connection was for: `istio.services[0]` of the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServiceLabels {
    /// Full host name, `app.shop.svc.cluster.local`.
    pub host: Arc<str>,
    /// Short name, `app`.
    pub name: Arc<str>,
    /// Namespace, `shop`.
    pub namespace: Arc<str>,
}

/// What was spoken; the label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// HTTP that is not gRPC: `http`.
    #[default]
    Http,
    /// A request whose `content-type` is `application/grpc`, with or without a suffix: `grpc`.
    Grpc,
    /// Bytes: `tcp`.
    Tcp,
}

impl Protocol {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
        }
    }
}

/// How the client's side was secured; the label `connection_security_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecurityPolicy {
    /// Both ends of the client's connection proved who they are: `mutual_tls`.
    MutualTls,
    /// At least one end did not: `none`.
    None,
    /// Cannot be told: `unknown`.
    #[default]
    Unknown,
}

impl SecurityPolicy {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            SecurityPolicy::MutualTls => "mutual_tls",
            SecurityPolicy::None => "none",
            SecurityPolicy::Unknown => "unknown",
        }
    }

    /// What Envoy's waypoint reports for a tunnel: `mutual_tls` if the peer's and our own identity are both known.
    pub const fn of_tunnel(peer_principal: &str, local_principal: &str) -> SecurityPolicy {
        if peer_principal.is_empty() || local_principal.is_empty() {
            SecurityPolicy::None
        } else {
            SecurityPolicy::MutualTls
        }
    }
}

/// When a request reached which step. Everything but `start` counts from `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Wall-clock time at which the first byte of the request's head was read.
    pub start: SystemTime,
    /// Until the last byte of the reply was handed down, or the request was given up.
    pub duration: Duration,
    /// Until the request was read to its end; `None` if it never was.
    pub request_received: Option<Duration>,
    /// Until the upstream of the last attempt was connected; `None` if none was.
    pub upstream_connected: Option<Duration>,
    /// Until the upstream had been sent the whole request.
    pub upstream_request_sent: Option<Duration>,
    /// Until the first byte of the upstream's reply.
    pub upstream_response_started: Option<Duration>,
    /// Until the last byte of the upstream's reply.
    pub upstream_response_ended: Option<Duration>,
}

impl Default for Timings {
    /// Starts at the Unix epoch and takes no time.
    fn default() -> Self {
        Timings {
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            request_received: None,
            upstream_connected: None,
            upstream_request_sent: None,
            upstream_response_started: None,
            upstream_response_ended: None,
        }
    }
}

/// One HTTP request from head to end, also one that we refused or answered ourselves.
#[derive(Debug, Clone, Default)]
pub struct RequestEvent<'a> {
    /// Name of the mesh whose instance served it.
    pub mesh: &'a str,
    /// Namespace that the destination belongs to.
    pub tenant: &'a str,

    /// The client's workload; `None` if its address is not known.
    pub source: Option<&'a Arc<WorkloadLabels>>,
    /// Identity of the tunnel's client certificate, full URI.
    pub source_principal: &'a str,
    /// Address of the tunnel's peer.
    pub source_address: Option<SocketAddr>,
    /// How the client's side was secured.
    pub security: SecurityPolicy,

    /// What CONNECT named, `host:port`.
    pub target: &'a str,
    /// Workload of the chosen endpoint; `None` if none was chosen or it is not known.
    pub destination: Option<&'a Arc<WorkloadLabels>>,
    /// Service of the route's cluster, or of the destination if no route was found.
    pub service: Option<&'a Arc<ServiceLabels>>,
    /// Name of the matched route.
    pub route: &'a str,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Address of the endpoint of the last attempt.
    pub upstream: Option<SocketAddr>,
    /// Upstream attempts: 0 if none was made, 1 without a retry.
    pub attempts: u32,

    /// HTTP or gRPC, as Envoy's metrics tell: a gRPC request that was refused by a policy or a fault counts as HTTP.
    pub protocol: Protocol,
    /// HTTP method.
    pub method: &'a str,
    /// Path and query as the client sent them.
    pub path: &'a str,
    /// `:authority` or `Host`.
    pub authority: &'a str,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// `user-agent`.
    pub user_agent: &'a str,

    /// HTTP status sent to the client; 0 if none was sent (Envoy: `response_code="0"`).
    pub response_code: u16,
    /// Value of `grpc-status`; `None` if the request is not gRPC or had none.
    pub grpc_status: Option<u32>,
    /// Why it ended otherwise than the upstream meant it.
    pub flags: ResponseFlags,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`, such as `via_upstream` or `route_not_found`.
    pub details: &'a str,

    /// Body bytes read from the client.
    pub bytes_in: u64,
    /// Body bytes sent to the client.
    pub bytes_out: u64,
    /// Bytes of the request's head, as HTTP/1.1 writes it; 0 if none was read.
    pub head_bytes_in: u64,
    /// Bytes of the response's head, as HTTP/1.1 writes it; 0 if none was sent.
    pub head_bytes_out: u64,
    /// gRPC messages read from the client.
    pub messages_in: u64,
    /// gRPC messages sent to the client.
    pub messages_out: u64,
    /// When it reached which step.
    pub timings: Timings,

    /// What its chain changes of the standard metrics.
    pub rules: Option<&'a Arc<Rules>>,
    /// Values of the dimensions that `rules` name by their numbers; what is missing prints `unknown`.
    pub dimensions: &'a [String],
}

/// One TCP connection through the waypoint, told when it is over.
///
/// [`Telemetry::connection_opened`](crate::Telemetry::connection_opened) and
/// [`Telemetry::connection_moved`](crate::Telemetry::connection_moved) take the same event while the connection lives,
/// with what is known then; bytes and duration are still empty.
#[derive(Debug, Clone, Default)]
pub struct ConnectionEvent<'a> {
    /// Name of the mesh whose instance served it.
    pub mesh: &'a str,
    /// Namespace that the destination belongs to.
    pub tenant: &'a str,

    /// The client's workload; `None` if its address is not known.
    pub source: Option<&'a Arc<WorkloadLabels>>,
    /// Identity of the tunnel's client certificate, full URI.
    pub source_principal: &'a str,
    /// Address of the tunnel's peer.
    pub source_address: Option<SocketAddr>,
    /// How the client's side was secured.
    pub security: SecurityPolicy,

    /// What CONNECT named, `host:port`.
    pub target: &'a str,
    /// Workload of the chosen endpoint; `None` if none was chosen or it is not known.
    pub destination: Option<&'a Arc<WorkloadLabels>>,
    /// Service of the cluster, or of the destination if no cluster was chosen.
    pub service: Option<&'a Arc<ServiceLabels>>,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Address of the endpoint of the last attempt.
    pub upstream: Option<SocketAddr>,
    /// Connection attempts: 0 if none was made, 1 without a retry.
    pub attempts: u32,

    /// Why it ended otherwise than by both ends closing it.
    pub flags: ResponseFlags,
    /// Envoy's `%CONNECTION_TERMINATION_DETAILS%`, such as `rbac_access_denied_matched_policy[none]`.
    pub details: &'a str,

    /// Bytes read from the client.
    pub bytes_in: u64,
    /// Bytes sent to the client.
    pub bytes_out: u64,
    /// When it reached which step.
    pub timings: Timings,

    /// What its chain changes of the standard metrics.
    pub rules: Option<&'a Arc<Rules>>,
    /// Values of the dimensions that `rules` name by their numbers; what is missing prints `unknown`.
    pub dimensions: &'a [String],
}
