//! What the files say, taken together. `docs/config.md` describes every field.

use cairn_identity::SpiffeId;
use cairn_router::spec::{Resources, duration};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The whole configuration of a process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Threads that serve; 0: as many as there are cores.
    pub workers: usize,
    /// Which of the threads a tunnel runs on. Default `local`.
    pub placement: Placement,
    /// What SIGTERM does.
    pub drain: DrainConfig,
    /// Addresses for operators and probes.
    pub admin: AdminConfig,
    /// What the autoscaler is told.
    pub load: LoadConfig,
    /// One proxy each; at least one.
    pub meshes: Vec<MeshConfig>,
}

/// Which thread a tunnel runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// That of its connection: cheapest.
    #[default]
    Local,
    /// All threads in turn: one hot connection can use every core.
    Spread,
}

/// What SIGTERM does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainConfig {
    /// Not ready, but still accepting, for so long: time for others to stop sending. Default 0 s.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// What is in flight may go on for so long after that, then it is cut. Default 30 s.
    #[serde(with = "duration")]
    pub limit: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        DrainConfig { grace: Duration::ZERO, limit: Duration::from_secs(30) }
    }
}

/// What the autoscaler is told of the process. Absent: derived from the CPUs that it may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadConfig {
    /// Bandwidth, both directions together. Default: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Requests in flight, more than 0. Default: 400 for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<f64>,
    /// CPU time per second, more than 0. Default: the quota, no more than there are workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// HBONE connections, more than 0. Default: 4,000 for each core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<f64>,
    /// Size beside the pool's reference member, more than 0. Default: half of the cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<f64>,
    /// Tenants with a row of their own, 0 to 1,000. Default 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<usize>,
    /// Where the process is. Default: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// A bandwidth, both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Bandwidth {
    /// What Alibaba Cloud's ECI gives a pod of this size.
    Eci,
    /// So many bits per second.
    BitsPerSecond(f64),
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "eci" {
            return Ok(Bandwidth::Eci);
        }
        let units = [("Kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
        let bits = units.iter().find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            Some(number * factor)
        });
        bits.filter(|bits| bits.is_finite() && *bits > 0.0).map(Bandwidth::BitsPerSecond).ok_or_else(
            || format!("`{text}` is no bandwidth; write `eci`, or a rate in Kbit, Mbit or Gbit, for example 1.5Gbit"),
        )
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> String {
        match bandwidth {
            Bandwidth::Eci => "eci".to_owned(),
            Bandwidth::BitsPerSecond(bits) => format!("{}Mbit", bits / 1e6),
        }
    }
}

/// Addresses for operators and probes. Port 0 lets the system choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Admin pages, `/quitquitquit` among them: keep it on loopback. Default 127.0.0.1:15000.
    pub address: SocketAddr,
    /// `/stats/prometheus`. Default 0.0.0.0:15020.
    pub metrics: SocketAddr,
    /// `/healthz/ready`. Default 0.0.0.0:15021.
    pub health: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        AdminConfig {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000),
            metrics: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15020),
            health: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15021),
        }
    }
}

/// One mesh: its own address, identity, trust and resources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeshConfig {
    /// Unique; a DNS label.
    pub name: String,
    /// Where HBONE is accepted. Default 0.0.0.0:15008.
    pub listen: SocketAddr,
    /// Who this proxy is.
    pub identity: IdentityConfig,
    /// Trust domains whose clients are accepted; empty: the identity's own.
    pub trust_domains: Vec<String>,
    /// Bounds that differ from the defaults.
    pub limits: Limits,
    #[serde(flatten)]
    pub(super) resources: Resources,
}

impl MeshConfig {
    /// What CONNECT can name and where it leads: what the router's compiler takes.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Everything but the resources, of which there are none in it.
    pub fn settings(&self) -> MeshConfig {
        let MeshConfig { name, listen, identity, trust_domains, limits, resources: _ } = self;
        MeshConfig {
            name: name.clone(),
            listen: *listen,
            identity: identity.clone(),
            trust_domains: trust_domains.clone(),
            limits: limits.clone(),
            resources: Resources::default(),
        }
    }

    /// Default of [`MeshConfig::listen`]: ztunnel's and Istio's HBONE port.
    pub const DEFAULT_LISTEN: SocketAddr =
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15008);
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityConfig {
    /// PEM files, read again when they change.
    Files(FileIdentity),
    /// A throw-away authority in memory: for trials, nobody else trusts it.
    Dev(DevIdentity),
}

/// PEM files. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Certificate chain, the leaf with its SPIFFE URI first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// Authorities that sign the identities of peers.
    pub roots: PathBuf,
}

/// An identity of a throw-away authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevIdentity {
    /// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub id: SpiffeId,
}

/// Bounds that a user may set; absent: the default that `docs/limits.md` names. Sizes are bytes
/// unless the name says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// HBONE connections at once, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    /// TLS handshake of a client, 100 ms to 5 min. Default 10 s.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub handshake_timeout: Option<Duration>,
    /// Tunnels at once per HBONE connection: 200, and nothing else is accepted. ztunnel opens up
    /// to 100 before it has seen our SETTINGS and keeps its applications waiting behind a lower
    /// number; its own server admits 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2 window of one tunnel, 65,535 to 2^31 - 1. Default 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_stream_window: Option<u32>,
    /// HTTP/2 window of an HBONE connection, 65,535 to 2^31 - 1. Default 4 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_connection_window: Option<u32>,
    /// Largest HTTP/2 frame that is accepted, 16,384 to 16,777,215.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_frame_size: Option<u32>,
    /// Time between HTTP/2 PINGs, both to clients and to endpoints, 1 s to 1 h. Default 10 s.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub keepalive_interval: Option<Duration>,
    /// Wait for the answer to a PING, 1 s to 1 h; then the connection is dead. Default 20 s.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub keepalive_timeout: Option<Duration>,
    /// How long a client may be silent where the protocol is not known; then it is TCP. 10 ms to
    /// 1 h. Default 15 s.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub detection_timeout: Option<Duration>,
    /// Head of a request in KiB, 1 to 8,192; more gets 431. Default 60 (Envoy).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_headers_kib: Option<u32>,
    /// Header fields of a request, 1 to 256; more gets 431. Default 100 (Envoy).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_headers: Option<u32>,
    /// Head of a response in KiB, 1 to 8,192; more gets 502. Default 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_headers_kib: Option<u32>,
    /// Header fields of a response, 1 to 256; more gets 502. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_headers: Option<u32>,
    /// From the first to the last byte of a request's head, 100 ms to 1 h. Default 10 s.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub request_head_timeout: Option<Duration>,
    /// How long a tunnel may be without a request, 1 s to 24 h. Default 1 h (Envoy).
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub http_idle_timeout: Option<Duration>,
    /// How long a spliced TCP stream may be silent, 1 s to 24 h; a TCP chain's own `idle_timeout`
    /// wins. Default 1 h (Envoy).
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub tcp_idle_timeout: Option<Duration>,
    /// Requests at once in one h2c tunnel, 1 to 65,536. Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_inner_streams: Option<u32>,
    /// Requests whose response is not over, 1 to 10,000,000; further ones get 503. Default 65,536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_in_flight: Option<u64>,
    /// Bytes of a request's body kept for a retry or a mirror, 0 to 64 MiB. Default 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replay: Option<usize>,
    /// Mirrored requests at once, 0 to 65,536. Default 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mirrors: Option<usize>,
    /// Tunnels at once per outgoing HBONE connection, 1 to 200. Default 100 (ztunnel).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_max_streams: Option<u32>,
    /// Outgoing HBONE connections at once to one peer, 1 to 10,000; beyond it callers wait. Default
    /// 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_max_connections: Option<u32>,
    /// An outgoing HBONE connection without a tunnel is closed after so long, 1 s to 24 h. Default
    /// 5 min (ztunnel).
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub pool_idle_timeout: Option<Duration>,
    /// Idle HTTP/1 connections kept per endpoint and worker, 0 to 65,536. Default 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_idle_per_endpoint: Option<usize>,
    /// Requests at once on one upstream HTTP/2 connection, 1 to 65,536. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_upstream_streams: Option<u32>,
}
