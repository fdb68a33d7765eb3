//! Records for collectors of OpenTelemetry, one bounded queue for each.
//!
//! The proxy asks [`OtelLogs::queue`] once per configured log and pushes; an exporter looks at
//! [`OtelLogs::queues`] whenever [`OtelLogs::changed`] resolves, and takes from each. A queue that no
//! configuration holds any more is forgotten once it is empty.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// Most records that wait in one queue.
pub const MAX_RECORDS: usize = 8192;
/// Most bytes of texts that wait in one queue.
pub const MAX_RECORD_BYTES: usize = 4 << 20;

/// A collector, and what every request to it carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogTarget {
    /// Name of the mesh that it belongs to: another's records never go there.
    pub mesh: String,
    /// Name of the cluster that leads to it.
    pub cluster: String,
    /// gRPC or HTTP.
    pub transport: LogTransport,
    /// `:authority`; empty: the cluster's name.
    pub authority: String,
    /// Of one request; `None`: the exporter's own.
    pub timeout: Option<Duration>,
    /// Headers or gRPC metadata.
    pub headers: Vec<(String, String)>,
    /// Attributes of the resource. `log_name` is among them, unless built-in labels are switched off.
    pub resource: Vec<(String, String)>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogTransport {
    /// `opentelemetry.proto.collector.logs.v1.LogsService/Export`
    Grpc,
    /// A POST of `ExportLogsServiceRequest` to that path.
    Http(String),
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    /// When the request or connection began (Envoy: `time_unix_nano`).
    pub time: SystemTime,
    /// What is said.
    pub body: Option<LogValue>,
    /// In the order of the configuration.
    pub attributes: Vec<(Arc<str>, LogValue)>,
    /// The trace that the request belongs to.
    pub trace_id: Option<[u8; 16]>,
    /// The span of the request.
    pub span_id: Option<[u8; 8]>,
}

/// A value in a record. OpenTelemetry: `AnyValue`.
#[derive(Debug, Clone, PartialEq)]
pub enum LogValue {
    /// A text.
    Text(String),
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
    /// Values in order.
    List(Vec<LogValue>),
    /// Values by name.
    Map(Vec<(Arc<str>, LogValue)>),
}

/// All queues of a process.
#[derive(Debug, Default)]
pub struct OtelLogs {
    queues: Mutex<Vec<Arc<LogQueue>>>,
    changed: Arc<Notify>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    taken: AtomicU64,
    dropped: AtomicU64,
}

/// Records for one collector.
#[derive(Debug)]
pub struct LogQueue {
    target: LogTarget,
    records: Mutex<Waiting>,
    changed: Arc<Notify>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<(LogRecord, usize)>,
    bytes: usize,
}

impl LogValue {
    fn bytes(&self) -> usize {
        size_of::<LogValue>()
            + match self {
                LogValue::Text(text) => text.len(),
                LogValue::List(list) => list.iter().map(LogValue::bytes).sum(),
                LogValue::Map(map) => map.iter().map(|(_, value)| value.bytes()).sum(),
                LogValue::Bool(_) | LogValue::Int(_) | LogValue::Double(_) => 0,
            }
    }
}

impl OtelLogs {
    /// The queue for a collector; equal targets share one.
    pub fn queue(&self, target: &LogTarget) -> Arc<LogQueue> {
        let mut queues = self.queues.lock();
        forget_unused(&mut queues);
        if let Some(known) = queues.iter().find(|queue| queue.target == *target) {
            return Arc::clone(known);
        }
        let queue = Arc::new(LogQueue {
            target: target.clone(),
            records: Mutex::default(),
            changed: Arc::clone(&self.changed),
            totals: Arc::clone(&self.totals),
        });
        queues.push(Arc::clone(&queue));
        queue
    }

    /// Those that somebody pushes into, or that hold something.
    pub fn queues(&self) -> Vec<Arc<LogQueue>> {
        let mut queues = self.queues.lock();
        forget_unused(&mut queues);
        queues.clone()
    }

    /// Resolves when a queue that was empty has a record; at once, if that was so since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Records that were taken, and that were dropped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.totals.taken.load(Relaxed), self.totals.dropped.load(Relaxed))
    }
}

fn forget_unused(queues: &mut Vec<Arc<LogQueue>>) {
    queues.retain(|queue| Arc::strong_count(queue) > 1 || !queue.records.lock().records.is_empty());
}

impl LogQueue {
    /// Where its records go.
    pub fn target(&self) -> &LogTarget {
        &self.target
    }

    /// Takes a record. `false`: dropped, and counted.
    pub fn push(&self, record: LogRecord) -> bool {
        let values = record.body.iter().chain(record.attributes.iter().map(|(_, value)| value));
        let bytes = values.map(LogValue::bytes).sum::<usize>();
        let mut waiting = self.records.lock();
        if waiting.records.len() >= MAX_RECORDS || waiting.bytes + bytes > MAX_RECORD_BYTES {
            drop(waiting);
            self.totals.dropped.fetch_add(1, Relaxed);
            return false;
        }
        waiting.bytes += bytes;
        waiting.records.push_back((record, bytes));
        let first = waiting.records.len() == 1;
        drop(waiting);
        if first {
            self.changed.notify_one();
        }
        true
    }

    /// Takes the oldest records, at most `most`. They count as written: see [`LogQueue::lost`].
    pub fn take(&self, most: usize) -> Vec<LogRecord> {
        let mut waiting = self.records.lock();
        let count = most.min(waiting.records.len());
        let taken: Vec<_> = waiting.records.drain(..count).collect();
        waiting.bytes -= taken.iter().map(|(_, bytes)| bytes).sum::<usize>();
        drop(waiting);
        self.totals.taken.fetch_add(count as u64, Relaxed);
        taken.into_iter().map(|(record, _)| record).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.records.lock().records.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts records that were taken and could not be delivered.
    pub fn lost(&self, records: usize) {
        self.totals.dropped.fetch_add(records as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(cluster: &str) -> LogTarget {
        LogTarget {
            mesh: "test".to_owned(),
            cluster: cluster.to_owned(),
            transport: LogTransport::Grpc,
            authority: String::new(),
            timeout: None,
            headers: Vec::new(),
            resource: Vec::new(),
        }
    }

    fn record(text: &str) -> LogRecord {
        LogRecord {
            time: SystemTime::UNIX_EPOCH,
            body: Some(LogValue::Text(text.to_owned())),
            attributes: Vec::new(),
            trace_id: None,
            span_id: None,
        }
    }

    #[tokio::test]
    async fn one_queue_per_target() {
        let logs = OtelLogs::default();
        let (a, b) = (logs.queue(&target("a")), logs.queue(&target("b")));
        assert!(Arc::ptr_eq(&a, &logs.queue(&target("a"))));
        assert!(a.push(record("1")) && a.push(record("2")) && b.push(record("3")));
        logs.changed().await;
        assert_eq!(a.take(1), [record("1")]);
        assert_eq!(a.take(9), [record("2")]);
        assert!(a.is_empty() && a.take(9).is_empty());
        drop((a, b));
        let left: Vec<String> =
            logs.queues().iter().map(|queue| queue.target().cluster.clone()).collect();
        assert_eq!(left, ["b"]);
        assert_eq!(logs.queues().iter().map(|queue| queue.take(9).len()).sum::<usize>(), 1);
        assert!(logs.queues().is_empty());
        assert_eq!(logs.counts(), (3, 0));
    }

    #[test]
    fn bounded_in_number_and_bytes() {
        let logs = OtelLogs::default();
        let queue = logs.queue(&target("a"));
        let taken = (0..MAX_RECORDS + 5).filter(|_| queue.push(record("x"))).count();
        assert_eq!((taken, queue.len()), (MAX_RECORDS, MAX_RECORDS));
        assert_eq!(queue.take(usize::MAX).len(), MAX_RECORDS);
        let large = "x".repeat(MAX_RECORD_BYTES / 4);
        assert_eq!((0..9).filter(|_| queue.push(record(&large))).count(), 3);
        queue.lost(3);
        assert_eq!(logs.counts(), (MAX_RECORDS as u64, 5 + 6 + 3));
    }
}
