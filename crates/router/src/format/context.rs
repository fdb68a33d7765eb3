//! What operators and attributes can say.

use crate::request::Headers;
use http::{HeaderMap, Version};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// What is known of a request or connection; what is not known is left out. Times count from its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct FormatContext<'a> {
    /// `%PROTOCOL%`: of the request.
    pub protocol: Option<Version>,
    /// `%START_TIME%`: when the request's first byte came.
    pub start_time: Option<SystemTime>,
    /// `%DURATION%`, in whole milliseconds: since the start.
    pub duration: Option<Duration>,
    /// `%REQUEST_DURATION%`: until the request was read to its end.
    pub request_received: Option<Duration>,
    /// Until the last try was begun.
    pub upstream_begun: Option<Duration>,
    /// Until the upstream had been sent the whole request.
    pub upstream_request_sent: Option<Duration>,
    /// `%RESPONSE_DURATION%`: until the first byte of the upstream's reply.
    pub response_started: Option<Duration>,
    /// Until the last byte of the upstream's reply.
    pub response_ended: Option<Duration>,
    /// `%DOWNSTREAM_REMOTE_ADDRESS%` and its kin: the HBONE peer's.
    pub downstream_remote: Option<SocketAddr>,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%` and its kin: what CONNECT named.
    pub downstream_local: Option<SocketAddr>,
    /// `%DOWNSTREAM_PEER_URI_SAN%`: the peer's SPIFFE id.
    pub peer_uri_san: Option<&'a str>,
    /// `%DOWNSTREAM_LOCAL_URI_SAN%`: ours.
    pub local_uri_san: Option<&'a str>,
    /// `%DOWNSTREAM_TLS_VERSION%`: of the tunnel.
    pub tls_version: Option<&'a str>,
    /// `%REQUESTED_SERVER_NAME%`
    pub requested_server_name: Option<&'a str>,
    /// `%UPSTREAM_HOST%`, `%UPSTREAM_REMOTE_ADDRESS%`: the endpoint's.
    pub upstream_host: Option<SocketAddr>,
    /// `%UPSTREAM_LOCAL_ADDRESS%`: ours towards the endpoint.
    pub upstream_local: Option<SocketAddr>,
    /// `%UPSTREAM_CLUSTER%`, `%UPSTREAM_CLUSTER_RAW%`
    pub upstream_cluster: Option<&'a str>,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`
    pub upstream_attempts: Option<u32>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`
    pub upstream_transport_failure: Option<&'a str>,
    /// `%ROUTE_NAME%`
    pub route_name: Option<&'a str>,
    /// `%VIRTUAL_HOST_NAME%`
    pub virtual_host_name: Option<&'a str>,
    /// `%HOSTNAME%`: of this machine.
    pub hostname: Option<&'a str>,
    /// `%RESPONSE_CODE%`
    pub response_code: Option<u16>,
    /// `%RESPONSE_CODE_DETAILS%`
    pub response_code_details: Option<&'a str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`
    pub connection_termination_details: Option<&'a str>,
    /// `%RESPONSE_FLAGS%`: Envoy's short codes, joined with `,`.
    pub response_flags: Option<&'a str>,
    /// `%GRPC_STATUS%`: the number.
    pub grpc_status: Option<u32>,
    /// `%BYTES_RECEIVED%`: of the request's body.
    pub bytes_received: Option<u64>,
    /// `%BYTES_SENT%`: of the response's body.
    pub bytes_sent: Option<u64>,
    /// Bytes of the request's head.
    pub request_header_bytes: Option<u64>,
    /// Bytes of the response's head.
    pub response_header_bytes: Option<u64>,
    /// `%TRACE_ID%`: hexadecimal.
    pub trace_id: Option<&'a str>,
    /// `%SPAN_ID%`: hexadecimal.
    pub span_id: Option<&'a str>,
    /// `%ACCESS_LOG_TYPE%`, such as `DownstreamEnd`.
    pub access_log_type: Option<&'a str>,
    /// Istio's `downstream_peer`: the client's workload.
    pub source: Option<Peer<'a>>,
    /// Istio's `upstream_peer`: the workload of the chosen endpoint.
    pub destination: Option<Peer<'a>>,
    /// What filters found out: (filter, key, value).
    pub metadata: &'a [(&'a str, &'a str, &'a str)],
    /// The response's trailers.
    pub trailers: Option<&'a HeaderMap>,
}

/// A workload as Istio's peer objects describe it; what is not known is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Kind of the workload in lower case, such as `deployment`.
    pub kind: &'a str,
    /// Name of the workload: the Deployment and the like.
    pub workload: &'a str,
    /// Name of the instance: the pod.
    pub name: &'a str,
    /// Name of the Kubernetes cluster.
    pub cluster: &'a str,
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// Canonical name.
    pub service: &'a str,
    /// Canonical revision.
    pub revision: &'a str,
    /// Label `app`.
    pub app: &'a str,
    /// Label `version`.
    pub version: &'a str,
    /// SPIFFE id.
    pub identity: &'a str,
}

impl<'a> Peer<'a> {
    /// Names and values, in the order in which Istio writes them.
    pub fn fields(&self) -> [(&'static str, &'a str); 10] {
        [
            ("type", self.kind),
            ("workload", self.workload),
            ("name", self.name),
            ("cluster", self.cluster),
            ("namespace", self.namespace),
            ("service", self.service),
            ("revision", self.revision),
            ("app", self.app),
            ("version", self.version),
            ("identity", self.identity),
        ]
    }

    /// A value that is known.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.fields().into_iter().find(|(known, _)| *known == name)?;
        Some(value).filter(|value| !value.is_empty())
    }
}

/// Everything that a text or an expression can be made from.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// What is known.
    pub context: &'a FormatContext<'a>,
    /// The request's head.
    pub request: Option<&'a dyn Headers>,
    /// The response's head.
    pub response: Option<&'a dyn Headers>,
}
