//! What an instance says of itself: `GET :15020/load`.

use serde::{Deserialize, Serialize};

/// Version of the schema. A reader takes any report of its own version; fields may be added to one.
pub const SCHEMA_VERSION: u32 = 1;

/// The load of one instance. Totals count from the instance's start and only grow; of two reports
/// their difference is exact, however far apart they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// Unique name; a new one after a restart.
    pub instance: String,
    /// Zone, empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Seconds since the instance's start, when this was written.
    pub uptime_seconds: f64,
    /// Takes traffic.
    pub ready: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// What it can do.
    pub capacity: Capacity,
    /// Requests and opaque connections in flight now.
    pub in_flight: f64,
    /// Integral of `in_flight` over time, in seconds: the difference of two reports by the seconds
    /// between them is the exact average.
    pub in_flight_seconds_total: f64,
    /// CPU time used, in seconds.
    pub cpu_seconds_total: f64,
    /// Bytes received from clients and endpoints.
    pub received_bytes_total: u64,
    /// Bytes sent to clients and endpoints.
    pub sent_bytes_total: u64,
    /// Requests ended.
    pub requests_total: u64,
    /// Connections, tunnels and requests that were refused for lack of room.
    pub shed_total: u64,
    /// What is open now.
    pub connections: Connections,
    /// TLS handshakes with clients, successful or not.
    pub handshakes_total: u64,
    /// 99th percentile of the time from when a task could run to when it did, in milliseconds, over
    /// the last seconds.
    pub executor_delay_p99_milliseconds: f64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// How long the steps of its start took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// Seconds since the configuration changed last.
    pub config_age_seconds: f64,
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
    /// Connections to endpoints.
    pub upstream: u64,
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

/// The share of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantLoad {
    /// Mesh, which is a cluster of the pool.
    pub mesh: String,
    /// Namespace of the destinations; `*`: all others.
    pub namespace: String,
    /// Requests in flight now.
    pub in_flight: f64,
    /// Requests ended.
    pub requests_total: u64,
    /// What was refused for lack of room.
    pub shed_total: u64,
    /// Bytes both ways.
    pub bytes_total: u64,
}

impl Capacity {
    /// Size beside the reference member; more than 0.
    pub fn size(&self) -> f64 {
        if self.units.is_finite() && self.units > 0.0 { self.units } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_may_be_missing_and_unknown() {
        let report: LoadReport =
            serde_json::from_str(r#"{"version":1,"instance":"a","in_flight":3,"new":{"x":1}}"#)
                .unwrap();
        assert_eq!((report.in_flight, report.capacity.size()), (3.0, 1.0));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<LoadReport>(&text).unwrap(), report);
    }
}
