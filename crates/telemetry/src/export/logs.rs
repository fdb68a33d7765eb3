//! Records of access logs on their way to collectors of OpenTelemetry.
//!
//! The queues are [`OtelLogs`]'s: bounded, one per collector, dropped when no configuration names it and nothing waits.
//! One task per mesh looks after those that lead to its clusters; each is emptied on its own, so that a collector that
//! does not answer holds nobody up.

use super::{Content, Deliver, Target};
use crate::access_log::{LogQueue, LogRecord, LogTarget, LogTransport, LogValue, OtelLogs};
use crate::trace::otlp;
use crate::writer::Writer;
use cairn_proto::opentelemetry::proto::collector::logs::v1 as pb;
use cairn_proto::opentelemetry::proto::common::v1::{
    AnyValue, ArrayValue, KeyValue, KeyValueList, any_value,
};
use cairn_proto::prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Path of the gRPC method.
pub const GRPC_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Records of one message at most.
const BATCH: usize = 256;
/// Queues are looked at so often, whoever is told of their changes.
const LOOK: Duration = Duration::from_secs(1);
/// After the first record others are waited for.
const GATHER: Duration = Duration::from_millis(200);
/// Pause before a message is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// Bound of one message, where none is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What became of messages.
#[derive(Debug, Default)]
pub struct LogCounts {
    exported: AtomicU64,
    failures: AtomicU64,
}

impl LogCounts {
    /// Adds them to a scrape. What was dropped is among the access logs' own numbers.
    pub fn write(&self, mesh: &str, writer: &mut Writer) {
        let labels = [("mesh", mesh)];
        writer.counter(
            "cairn_logs_exported_total",
            "Records of access logs that a collector took.",
            &labels,
            self.exported.load(Relaxed),
        );
        writer.counter(
            "cairn_logs_export_failures_total",
            "Messages with records of access logs that a collector did not take; each is sent twice.",
            &labels,
            self.failures.load(Relaxed),
        );
    }
}

/// What a task needs.
struct Exporter<M> {
    logs: Arc<OtelLogs>,
    deliver: Arc<dyn Deliver>,
    /// Whether a collector is one of this mesh.
    mine: M,
    counts: Arc<LogCounts>,
}

/// The way to tell the task to send what waits.
#[derive(Debug)]
pub struct LogFlush(mpsc::Sender<oneshot::Sender<()>>);

impl LogFlush {
    /// Sends what waits, and returns when that is done.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            let _the_task_is_gone_otherwise = flushed.await;
        }
    }
}

/// A task that sends records to the collectors that are `mine`, until the other value is dropped.
pub fn exporter(
    logs: Arc<OtelLogs>,
    deliver: Arc<dyn Deliver>,
    mine: impl Fn(&LogTarget) -> bool + Send + Sync + 'static,
    counts: Arc<LogCounts>,
) -> (LogFlush, impl Future<Output = ()> + Send + 'static) {
    let (flushes, asked) = mpsc::channel(1);
    let exporter = Exporter { logs, deliver, mine, counts };
    (LogFlush(flushes), exporter.run(asked))
}

impl<M: Fn(&LogTarget) -> bool + Send + Sync + 'static> Exporter<M> {
    async fn run(self, mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut busy: HashMap<tokio::task::Id, usize> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                _told_or_not = timeout(LOOK, self.logs.changed()) => sleep(GATHER).await,
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => error.id(),
                    };
                    busy.remove(&id);
                    continue;
                }
                asked = flushes.recv() => {
                    let Some(done) = asked else { return };
                    while tasks.join_next().await.is_some() {}
                    busy.clear();
                    for queue in self.waiting() {
                        empty(queue, Arc::clone(&self.deliver), Arc::clone(&self.counts)).await;
                    }
                    let _nobody_waits_any_more = done.send(());
                    continue;
                }
            }
            for queue in self.waiting() {
                let place = Arc::as_ptr(&queue) as usize;
                if !busy.values().any(|known| *known == place) {
                    let task = empty(queue, Arc::clone(&self.deliver), Arc::clone(&self.counts));
                    busy.insert(tasks.spawn(task).id(), place);
                }
            }
        }
    }

    fn waiting(&self) -> Vec<Arc<LogQueue>> {
        let mut queues = self.logs.queues();
        queues.retain(|queue| !queue.is_empty() && (self.mine)(queue.target()));
        queues
    }
}

/// Sends what waits in one queue.
async fn empty(queue: Arc<LogQueue>, deliver: Arc<dyn Deliver>, counts: Arc<LogCounts>) {
    let target = target(queue.target());
    loop {
        let records = queue.take(BATCH);
        if records.is_empty() {
            return;
        }
        let message = encode(&queue.target().resource, &records);
        let mut delivered = deliver.deliver(&target, message.clone()).await;
        if delivered.is_err() {
            counts.failures.fetch_add(1, Relaxed);
            sleep(PAUSE).await;
            delivered = deliver.deliver(&target, message).await;
        }
        match delivered {
            Ok(()) => {
                counts.exported.fetch_add(records.len() as u64, Relaxed);
            }
            Err(reason) => {
                counts.failures.fetch_add(1, Relaxed);
                queue.lost(records.len());
                let cluster = target.cluster.as_str();
                tracing::debug!(cluster, %reason, "a collector does not take access logs");
            }
        }
    }
}

fn target(from: &LogTarget) -> Target {
    let LogTarget { mesh: _, cluster, transport, authority, timeout, headers, resource: _ } = from;
    let (path, content) = match transport {
        LogTransport::Grpc => (GRPC_PATH, Content::Grpc),
        LogTransport::Http(path) => (path.as_str(), Content::Protobuf),
    };
    Target {
        cluster: cluster.clone(),
        authority: authority.clone(),
        path: path.to_owned(),
        headers: headers.clone(),
        timeout: timeout.unwrap_or(TIMEOUT),
        content,
    }
}

/// `ExportLogsServiceRequest` of these records; `resource` tells who sends.
pub fn encode(resource: &[(String, String)], records: &[LogRecord]) -> Vec<u8> {
    let observed = otlp::nanos(SystemTime::now());
    let request = pb::ExportLogsServiceRequest {
        resource_logs: vec![pb::ResourceLogs {
            resource: Some(otlp::resource(resource)),
            scope_logs: vec![pb::ScopeLogs {
                scope: Some(otlp::scope()),
                log_records: records.iter().map(|record| of(record, observed)).collect(),
            }],
        }],
    };
    request.encode_to_vec()
}

fn of(from: &LogRecord, observed: u64) -> pb::LogRecord {
    let LogRecord { time, body, attributes, trace_id, span_id } = from;
    pb::LogRecord {
        time_unix_nano: otlp::nanos(*time),
        observed_time_unix_nano: observed,
        body: body.as_ref().map(any),
        attributes: pairs(attributes),
        trace_id: trace_id.map(Vec::from).unwrap_or_default(),
        span_id: span_id.map(Vec::from).unwrap_or_default(),
        ..pb::LogRecord::default()
    }
}

fn pairs(from: &[(Arc<str>, LogValue)]) -> Vec<KeyValue> {
    let pair = |(key, value): &(Arc<str>, LogValue)| KeyValue {
        key: key.to_string(),
        value: Some(any(value)),
    };
    from.iter().map(pair).collect()
}

fn any(from: &LogValue) -> AnyValue {
    use any_value::Value;
    AnyValue {
        value: Some(match from {
            LogValue::Text(text) => Value::StringValue(text.clone()),
            LogValue::Bool(value) => Value::BoolValue(*value),
            LogValue::Int(value) => Value::IntValue(*value),
            LogValue::Double(value) => Value::DoubleValue(*value),
            LogValue::List(list) => {
                Value::ArrayValue(ArrayValue { values: list.iter().map(any).collect() })
            }
            LogValue::Map(map) => Value::KvlistValue(KeyValueList { values: pairs(map) }),
        }),
    }
}

#[cfg(test)]
mod tests;
