//! What an instance says of itself: `GET :15020/load`. `docs/autoscaling.md` shows one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the schema. A reader takes any report of its own version; fields may be added to one,
/// with a new [`SCHEMA_MINOR`].
pub const SCHEMA_VERSION: u32 = 1;
/// How often fields were added to the version.
pub const SCHEMA_MINOR: u32 = 1;
/// Largest report that is read, in bytes.
pub const MAX_REPORT_BYTES: usize = 1 << 20;

/// The load of one instance. Totals count from the instance's start and only grow; of two reports
/// their difference is exact, however far apart they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// [`SCHEMA_MINOR`]; a reader takes any.
    pub minor: u32,
    /// Version of the program, for people.
    pub build: String,
    /// Unique name; a new one after a restart.
    pub instance: String,
    /// Zone, empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// `region/zone/subzone`, empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Seconds since the instance's start, when this was written.
    pub uptime_seconds: f64,
    /// Takes traffic.
    pub ready: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// What it can do.
    pub capacity: Capacity,
    /// In flight now: requests, and a tenth for each opaque connection and each request that became one.
    pub in_flight: f64,
    /// Integral of `in_flight` over time, in seconds: the difference of two reports by the seconds
    /// between them is the exact average.
    pub in_flight_seconds_total: f64,
    /// CPU time used of what `capacity.cpu` bounds, in seconds.
    pub cpu_seconds_total: f64,
    /// Where that comes from: `cgroup2`, `cgroup1` or `process`.
    pub cpu_source: String,
    /// Bytes received from clients and endpoints, on the wire.
    pub received_bytes_total: u64,
    /// Bytes sent to clients and endpoints, on the wire.
    pub sent_bytes_total: u64,
    /// Requests ended.
    pub requests_total: u64,
    /// Connections, tunnels and requests that were refused for lack of room.
    pub shed_total: u64,
    /// The same by what was refused.
    pub shed: Shed,
    /// Requests and connections that a cluster's circuit breaker refused: not for lack of room here.
    pub overflows_total: u64,
    /// What waits inside.
    pub queues: Queues,
    /// What is open now.
    pub connections: Connections,
    /// TLS handshakes with clients, successful or not.
    pub handshakes_total: u64,
    /// Median of what `executor_delay_p99_milliseconds` is a percentile of.
    pub executor_delay_p50_milliseconds: f64,
    /// 99th percentile of the time from when a task could run to when it did, in milliseconds, over
    /// the last seconds.
    pub executor_delay_p99_milliseconds: f64,
    /// The longest of them.
    pub executor_delay_max_milliseconds: f64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// How long the steps of its start took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// Seconds since the configuration changed last.
    pub config_age_seconds: f64,
    /// Seconds since istiod's last answer, by type of resource.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config_answer_age_seconds: BTreeMap<String, f64>,
    /// The clusters of a pool's member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterLoad>,
    /// The busiest tenants, and the rest as `namespace` `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantLoad>,
}

/// What an instance can do. 0: unknown or unbounded, and not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Requests in flight.
    pub in_flight: f64,
    /// CPU time per second.
    pub cpu: f64,
    /// Bytes per second, both directions together.
    pub bytes_per_second: f64,
    /// HBONE connections.
    pub connections: f64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Size beside the pool's reference member; 0 counts as 1.
    pub units: f64,
}

/// What is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// HBONE connections of clients.
    pub hbone: u64,
    /// Tunnels in them.
    pub tunnels: u64,
    /// HTTP/2 streams in those.
    pub streams: u64,
    /// Connections to endpoints that are kept: HBONE, HTTP/2, and idle ones of HTTP/1.
    pub upstream: u64,
}

/// What was refused for lack of room, by what it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shed {
    /// Connections of clients, before TLS.
    pub connections: u64,
    /// Tunnels, because memory runs short.
    pub tunnels: u64,
    /// Requests, because too many are in flight.
    pub requests: u64,
}

/// What waits inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queues {
    /// For room in a cluster's connections (its circuit breaker).
    pub connection: Queue,
    /// For an endpoint whose identity is known.
    pub endpoint: Queue,
}

/// One queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// How many wait now.
    pub waiting: f64,
    /// Waits that are over.
    pub waits_total: u64,
    /// What all waits took so far, in seconds, those that are not over included.
    pub wait_seconds_total: f64,
}

/// How long the steps of a start took, in milliseconds from exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColdStart {
    /// Until there was a certificate.
    pub certificate_milliseconds: f64,
    /// Until there was a configuration.
    pub config_milliseconds: f64,
    /// Until the instance was ready.
    pub ready_milliseconds: f64,
}

/// One cluster of a pool's member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterLoad {
    /// Its name, which is the mesh of tenants and metrics.
    pub name: String,
    /// `starting`, `serving`, `deregistering`, `finishing` or `closed`.
    pub phase: String,
    /// The member serves it.
    pub ready: bool,
    /// Its istiod shows the member to its ztunnels.
    pub registered: bool,
    /// There is a stream to its istiod; without one the last configuration is served.
    pub istiod_connected: bool,
    /// Seconds since its istiod was heard last.
    pub config_age_seconds: f64,
    /// In flight now, as for the instance.
    pub in_flight: f64,
}

/// Namespace of the row for all others.
pub const OTHER: &str = "*";

/// The share of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantLoad {
    /// Mesh, which is a cluster of the pool.
    pub mesh: String,
    /// Namespace of the destinations; `*`: all others.
    pub namespace: String,
    /// In flight now, as for the instance.
    pub in_flight: f64,
    /// Integral of `in_flight` over time, in seconds. In the row of all others totals may shrink: a
    /// tenant that becomes busy leaves it.
    pub in_flight_seconds_total: f64,
    /// Requests ended.
    pub requests_total: u64,
    /// Requests that were refused for lack of room.
    pub shed_total: u64,
    /// Bytes both ways: bodies of requests that are over, and what opaque connections carry.
    pub bytes_total: u64,
}

impl Capacity {
    /// Size beside the reference member; more than 0.
    pub fn size(&self) -> f64 {
        if self.units.is_finite() && self.units > 0.0 { self.units } else { 1.0 }
    }
}

mod parse;
pub use parse::ReportError;
