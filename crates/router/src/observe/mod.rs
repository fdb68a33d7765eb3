//! What is told of requests and connections: access logs, traces, and changes to Istio's metrics.

mod access_log;
mod metrics;
mod tracing;

pub use access_log::AccessLog;
pub use metrics::Metrics;
pub use tracing::Tracing;

use crate::error::Context;
use crate::spec;

/// What one chain tells.
#[derive(Debug)]
pub struct Observe {
    /// In the order in which they are written.
    pub access_logs: Vec<AccessLog>,
    /// `None`: requests are not traced.
    pub tracing: Option<Tracing>,
    /// `None`: the standard metrics as they are.
    pub metrics: Option<Metrics>,
}

impl Observe {
    pub(crate) fn compile(from: &spec::Observe, at: &mut Context) -> Option<Self> {
        let spec::Observe { access_logs, tracing, metrics } = from;
        let access_logs = at.each("access_logs", access_logs, AccessLog::compile);
        let tracing = match tracing {
            Some(tracing) => Some(at.field("tracing", |at| Tracing::compile(tracing, at))?),
            None => None,
        };
        let metrics = match metrics {
            Some(metrics) => Some(at.field("metrics", |at| Metrics::compile(metrics, at))?),
            None => None,
        };
        Some(Observe { access_logs: access_logs?, tracing, metrics })
    }
}
