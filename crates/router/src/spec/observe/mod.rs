//! What is told of requests and connections: access logs, traces, and changes to Istio's metrics.

mod access_log;
mod metrics;
mod tracing;

pub use access_log::{
    AccessLog, Comparison, ComparisonOp, Line, LogFilter, LogFormat, LogSink, LogTarget, LogValue,
    OtelLog, TunnelLogs,
};
pub use metrics::{MetricOverride, Metrics};
pub use tracing::{
    CustomTag, GrpcCollector, HttpCollector, Named, OpenTelemetry, OtlpCollector, TagValue,
    TraceProvider, Tracing, Zipkin,
};

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What one chain tells. Chains that tell the same share one value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// Lines that are written, or records that are sent, when a request or connection is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_logs: Vec<AccessLog>,
    /// Spans that are sent; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Arc<Tracing>>,
    /// What differs from Istio's standard metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

impl Observe {
    /// Nothing beyond the standard metrics.
    pub fn is_empty(&self) -> bool {
        *self == Observe::default()
    }
}
