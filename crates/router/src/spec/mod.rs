//! What a mesh is configured with, as plain data.
//!
//! YAML, JSON and xDS all produce these values; [`crate::compile`] turns them into
//! [`crate::model`]. One value describes one destination, cluster, endpoint set or
//! workload, so that a changed one is recompiled alone. Unknown fields are errors:
//! a misspelt field must not be silently without effect.

mod cluster;
mod destination;
mod matching;
mod observe;
mod rbac;
mod route;

pub use cluster::{
    CircuitBreakers, Cluster, ClusterProtocol, Endpoint, EndpointSet, EndpointTransport, Health,
    LbPolicy, Locality, OriginalDestination, UpstreamTls, Workload,
};
pub use destination::{
    ConnectionPolicy, Destination, EscapedSlashes, ForwardedClientCert, HttpChain, HttpFilter,
    ServerMode, TcpChain, WeightedTcp,
};
pub use matching::{CidrRange, HeaderMatch, QueryMatch, StringMatch, ValueMatch};
pub use observe::{
    AccessLog, Comparison, ComparisonOp, CustomTag, GrpcCollector, HttpCollector, Line, LogFilter,
    LogFormat, LogSink, LogTarget, LogValue, MetricOverride, Metrics, Named, Observe,
    OpenTelemetry, OtelLog, OtlpCollector, TagValue, TraceProvider, Tracing, TunnelLogs, Zipkin,
};
pub use rbac::{Action, Permission, Policy, Principal, Rbac};
pub use route::{
    Cors, DirectResponse, Fault, FaultAbort, FaultDelay, Forward, HashPolicy, HeaderAppend,
    HeaderOps, HeaderValue, Mirror, PathMatch, Redirect, RegexRewrite, Retry, RetryBackoff, Route,
    RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Everything that one mesh is configured with.
///
/// The values are shared: a source that hands in the same `Arc` again spares the compiler the
/// comparison.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// What CONNECT can name.
    pub destinations: Vec<Arc<Destination>>,
    /// Where routes lead.
    pub clusters: Vec<Arc<Cluster>>,
    /// Endpoints of clusters, apart from them because they change far more often.
    pub endpoints: Vec<Arc<EndpointSet>>,
    /// Who is at which address: source labels of telemetry.
    pub workloads: Vec<Arc<Workload>>,
    /// What is logged of tunnels themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<Arc<TunnelLogs>>,
}

/// Values in the same `Arc` are not looked into: thousands of them stay what they are at each change.
impl PartialEq for Resources {
    fn eq(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
            let same = |(one, other): (&Arc<T>, &Arc<T>)| Arc::ptr_eq(one, other) || one == other;
            one.len() == other.len() && one.iter().zip(other).all(same)
        }
        let Resources { destinations, clusters, endpoints, workloads, tunnels } = other;
        same(&self.destinations, destinations)
            && same(&self.clusters, clusters)
            && same(&self.endpoints, endpoints)
            && same(&self.workloads, workloads)
            && self.tunnels == *tunnels
    }
}

/// Durations as `1h2m3s4ms` strings: any sequence of number and unit (`h`, `m`, `s`, `ms`, `us`).
pub mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    /// Parses `1m30s`, `250ms`, `0s`. A bare `0` is zero; other bare numbers are errors.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let wrong =
            || format!("`{text}` is no duration; write for example `250ms`, `5s` or `1m30s`");
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Duration::ZERO);
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits =
                rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let unit_len =
                tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let value: f64 = number.parse().map_err(|_| wrong())?;
            let scale = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" => 1e-6,
                _ => return Err(wrong()),
            };
            let part = Duration::try_from_secs_f64(value * scale).map_err(|_| wrong())?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(total)
    }

    /// Prints in the largest unit that loses nothing.
    pub fn print(value: Duration) -> String {
        if !value.subsec_micros().is_multiple_of(1000) {
            format!("{}us", value.as_micros())
        } else if value.subsec_millis() != 0 {
            format!("{}ms", value.as_millis())
        } else {
            format!("{}s", value.as_secs())
        }
    }

    /// For `#[serde(with = "duration")]`.
    pub fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&print(*value))
    }

    /// For `#[serde(with = "duration")]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }

    /// For `#[serde(with = "duration::optional")]`.
    pub mod optional {
        use super::{Deserialize, Deserializer, Duration, Error, Serializer, parse, print};

        /// `None` is left out by the field's `skip_serializing_if`.
        pub fn serialize<S: Serializer>(value: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => s.serialize_str(&print(*value)),
                None => s.serialize_none(),
            }
        }

        /// Absent and `null` are both `None`.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
            Option::<String>::deserialize(d)?
                .map(|text| parse(&text).map_err(D::Error::custom))
                .transpose()
        }
    }
}
