//! What is told of requests and connections: access logs, traces, and changes to Istio's metrics.

mod access_log;
mod metrics;
pub mod tracing;

pub use access_log::{AccessLog, Entry, Field, OtelLog, Stream, TunnelLogs};
pub use metrics::{METRICS, MetricOverride, Metrics, REPORT_INTERVAL, is_label_name};
pub use tracing::Tracing;

use crate::error::Context;
use crate::spec;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

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

/// What was compiled so far, by the value that it was compiled from: a thousand chains that tell the same
/// share one. Clones are the same cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Vec<Pair>>>);

type Pair = (Weak<spec::Observe>, Weak<Observe>);

impl Known {
    /// What the very same value was compiled to, else what `compile` makes of it.
    pub(crate) fn get(
        &self,
        from: &Arc<spec::Observe>,
        compile: impl FnOnce() -> Option<Observe>,
    ) -> Option<Arc<Observe>> {
        let mut pairs = self.0.lock();
        pairs.retain(|(from, made)| from.strong_count() > 0 && made.strong_count() > 0);
        let known = pairs.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(from)));
        if let Some(made) = known.and_then(|(_, made)| made.upgrade()) {
            return Some(made);
        }
        drop(pairs);
        let made = Arc::new(compile()?);
        self.0.lock().push((Arc::downgrade(from), Arc::downgrade(&made)));
        Some(made)
    }
}
