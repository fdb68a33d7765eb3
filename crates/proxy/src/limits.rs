//! Every bound of the data plane, with its default. `docs/limits.md` is this file for users.

use cairn_hbone::{OriginatorConfig, TerminatorConfig};
use std::time::Duration;

/// Bounds of one mesh instance.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bounds of incoming HBONE connections.
    pub terminator: TerminatorConfig,
    /// Bounds of outgoing HBONE connections.
    pub originator: OriginatorConfig,
    /// HBONE connections open at once, per instance; further ones are closed before TLS.
    pub max_connections: usize,
    /// Requests whose response is not over, per instance; further ones get 503 `overflow`.
    pub max_requests_in_flight: u64,
    /// Bytes of a request's head, HTTP/1 and HTTP/2 (Envoy: `max_request_headers_kb` 60); more gets 431.
    pub max_request_head: usize,
    /// Header fields of a request (Envoy: `max_headers_count` 100); more gets 431.
    pub max_request_headers: usize,
    /// Bytes of a response's head from upstream; more is a protocol error, 502.
    pub max_response_head: usize,
    /// Header fields of a response from upstream.
    pub max_response_headers: usize,
    /// From the first byte of a request's head to its last; then 408.
    pub request_head_timeout: Duration,
    /// How long a client may stay silent on a port of unknown protocol before it becomes TCP
    /// (Envoy: `listener_filters_timeout` 15 s, which closes).
    pub detect_timeout: Duration,
    /// How long an HTTP/1 tunnel may be without a request (Envoy: `idle_timeout` 1 h).
    pub http_idle_timeout: Duration,
    /// Requests at once in one h2c tunnel.
    pub max_inner_streams: u32,
    /// Bytes of a request's body that are kept for a retry or a mirror (Envoy: 1 MiB buffer limit).
    pub max_replay: usize,
    /// Idle HTTP/1 connections kept per endpoint and worker.
    pub max_idle_per_endpoint: usize,
    /// Requests at once on one upstream HTTP/2 connection.
    pub max_upstream_streams: usize,
    /// How long a TCP splice may be silent (Envoy: `tcp_proxy.idle_timeout` 1 h).
    pub tcp_idle_timeout: Duration,
    /// Mirrored requests at once, per instance; further ones are not mirrored.
    pub max_mirrors: usize,
    /// How old a tunnel of requests becomes, more or less a fifth, before its client is told to open another one; `None`:
    /// as old as it likes. No request is lost, and neither TCP nor what a request was upgraded to has an age.
    pub max_connection_age: Option<Duration>,
    /// How old an HBONE connection becomes, more or less a fifth, before its client is told to open the next tunnel on
    /// another one; `None`: as old as it likes. Its tunnels live on.
    pub max_hbone_age: Option<Duration>,
}

impl Limits {
    /// The defaults of a member of a pool: connections have an age, so that clients come to members that are young.
    pub fn of_pool() -> Self {
        Limits {
            max_connection_age: Some(Duration::from_secs(600)),
            max_hbone_age: Some(Duration::from_secs(3600)),
            ..Limits::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            terminator: TerminatorConfig::default(),
            originator: OriginatorConfig::default(),
            max_connections: 50_000,
            max_requests_in_flight: 65_536,
            max_request_head: 60 * 1024,
            max_request_headers: 100,
            max_response_head: 60 * 1024,
            max_response_headers: 100,
            request_head_timeout: Duration::from_secs(10),
            detect_timeout: Duration::from_secs(15),
            http_idle_timeout: Duration::from_secs(3600),
            max_inner_streams: 200,
            max_replay: 1024 * 1024,
            max_idle_per_endpoint: 128,
            max_upstream_streams: 100,
            tcp_idle_timeout: Duration::from_secs(3600),
            max_mirrors: 256,
            max_connection_age: None,
            max_hbone_age: None,
        }
    }
}
