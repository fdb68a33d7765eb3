//! The door: events in, exposition out.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::access_log::AccessLogs;
use crate::budget::Budget;
use crate::event::{ConnectionEvent, RequestEvent};
use crate::exposition::Exposition;
use crate::families;
use crate::key::KeyRef;
use crate::labels::LabelSet;
use crate::series::{ConnectionCells, MessageCells, RequestCells};
use crate::store::{Lifetimes, Store};
use crate::writer::Writer;

/// What [`Telemetry`] is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Shards, one per thread that records; at least one. Default: the number of cores.
    pub shards: usize,
    /// Most series of Istio's metrics (label sets, over all families and shards). Default: 10,000.
    pub series_limit: usize,
    /// Most of them that one tenant (a mesh and a namespace of destinations) may have. Default: half of them.
    ///
    /// Less than `series_limit`: the last quarter of all series is kept for tenants that have few.
    pub tenant_series_limit: usize,
    /// A series that nothing happened to for so long leaves. Default: an hour.
    pub series_idle: Duration,
    /// So long it is exposed as it is before it leaves; longer than Prometheus' scrape interval. Default: 5 minutes
    /// (Istio: `graceful_deletion_interval`).
    pub series_grace: Duration,
    /// Label `tag` of `istio_build`: the version that we report. Default: this package's.
    pub build_tag: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            shards: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            series_limit: 10_000,
            tenant_series_limit: 5_000,
            series_idle: Duration::from_secs(3600),
            series_grace: Duration::from_secs(300),
            build_tag: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// `false`: it has nothing to write any more, and is not asked again.
type Collector = dyn Fn(&mut Writer) -> bool + Send + Sync;

/// Counts what happened and renders it for a scrape.
///
/// A thread that records often takes a [`ShardHandle`] of its own; [`Telemetry::record_request`] and its siblings use
/// the shard of the calling thread.
pub struct Telemetry {
    stores: Arc<Stores>,
    build_tag: String,
    collectors: Mutex<Vec<Arc<Collector>>>,
    samples_rejected: AtomicU64,
    access_logs: Arc<AccessLogs>,
}

#[derive(Debug)]
struct Stores {
    budget: Arc<Budget>,
    requests: Store<RequestCells>,
    messages: Store<MessageCells>,
    connections: Store<ConnectionCells>,
}

/// The way of one worker into the store.
///
/// It may be cloned and sent; two threads that record through the same shard wait for each other, so each worker has
/// its own.
#[derive(Debug, Clone)]
pub struct ShardHandle {
    stores: Arc<Stores>,
    shard: usize,
}

impl Telemetry {
    /// A store with so many shards (at least one), otherwise by default.
    pub fn new(shards: usize) -> Arc<Self> {
        Self::with_settings(Settings { shards, ..Settings::default() })
    }

    /// A store made to measure.
    pub fn with_settings(settings: Settings) -> Arc<Self> {
        let Settings {
            shards,
            series_limit,
            tenant_series_limit,
            series_idle,
            series_grace,
            build_tag,
        } = settings;
        let budget = Arc::new(Budget::new(series_limit, tenant_series_limit));
        let lifetimes = Lifetimes { idle: series_idle, grace: series_grace };
        Arc::new(Telemetry {
            stores: Arc::new(Stores {
                requests: Store::new(LabelSet::Http, shards, Arc::clone(&budget), lifetimes),
                messages: Store::new(LabelSet::Messages, shards, Arc::clone(&budget), lifetimes),
                connections: Store::new(LabelSet::Tcp, shards, Arc::clone(&budget), lifetimes),
                budget,
            }),
            build_tag,
            collectors: Mutex::new(Vec::new()),
            samples_rejected: AtomicU64::new(0),
            access_logs: Arc::default(),
        })
    }

    /// Where access logs go out.
    pub fn access_logs(&self) -> &Arc<AccessLogs> {
        &self.access_logs
    }

    /// The handle of worker `index`; indices count modulo the number of shards.
    pub fn shard(&self, index: usize) -> ShardHandle {
        ShardHandle { stores: Arc::clone(&self.stores), shard: index }
    }

    /// Counts a request that is over, without its messages, in the calling thread's shard.
    pub fn record_request(&self, event: &RequestEvent<'_>) {
        self.stores.request(thread_number(), event);
    }

    /// Counts messages of a gRPC request, when it is over or in between, in the calling thread's shard.
    ///
    /// The outcome in the event does not matter: the metrics have no labels for it (Istio: the same).
    pub fn record_messages(&self, event: &RequestEvent<'_>, requests: u64, responses: u64) {
        self.stores.messages(thread_number(), event, requests, responses);
    }

    /// Counts a TCP connection that begins, when its upstream is known or has failed, in the calling thread's shard.
    pub fn connection_opened(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection(thread_number(), event, ConnectionCells::open);
    }

    /// Counts bytes of a TCP connection that were not counted before: sent to the client, and read from it.
    ///
    /// With the labels that it was opened with (Istio: the same). Also without a byte it says that the connection
    /// lives, which keeps its series.
    pub fn connection_moved(&self, event: &ConnectionEvent<'_>, sent: u64, received: u64) {
        self.stores.connection(thread_number(), event, |cells| cells.moved(sent, received));
    }

    /// Counts that a TCP connection is over, with the labels that it was opened with.
    pub fn connection_closed(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection(thread_number(), event, ConnectionCells::close);
    }

    /// Adds a collector, which is called at every scrape and writes what it has. It must not block.
    pub fn register(&self, collector: Box<dyn Fn(&mut Writer) + Send + Sync>) {
        self.collectors.lock().push(Arc::new(move |writer: &mut Writer| {
            collector(writer);
            true
        }));
    }

    /// Adds a collector for as long as `owner` lives, whom it does not keep alive. It must not block.
    pub fn register_of<T: Send + Sync + 'static>(
        &self,
        owner: &Arc<T>,
        collector: fn(&T, &mut Writer),
    ) {
        let owner = Arc::downgrade(owner);
        self.collectors.lock().push(Arc::new(move |writer: &mut Writer| {
            let owner = owner.upgrade();
            if let Some(owner) = &owner {
                collector(owner, writer);
            }
            owner.is_some()
        }));
    }

    /// The content type of what [`Telemetry::render`] returns.
    pub const fn content_type(openmetrics: bool) -> &'static str {
        if openmetrics {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        }
    }

    /// [`Telemetry::write`] as a text.
    pub fn render(&self, openmetrics: bool) -> String {
        let mut text = Vec::new();
        let _a_vector_takes_all = self.write(openmetrics, &mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    /// Everything, as Prometheus' text format 0.0.4 or as OpenMetrics 1.0, in pieces of about 64 KiB.
    ///
    /// Families without a sample are left out. A series keeps its place from scrape to scrape. The error is the
    /// writer's.
    pub fn write(&self, openmetrics: bool, to: &mut dyn io::Write) -> io::Result<()> {
        self.sweep(Instant::now());
        let mut out = Exposition::new(openmetrics, to);
        let Stores { budget: _, requests, messages, connections } = &*self.stores;
        families::requests(&mut out, &requests.series());
        families::messages(&mut out, &messages.series());
        families::connections(&mut out, &connections.series());
        self.collect().render(&mut out);
        out.finish()
    }

    /// Lets series go that nothing happened to for long. Each scrape does it, and seldom it is work.
    pub fn sweep(&self, now: Instant) {
        let Stores { budget: _, requests, messages, connections } = &*self.stores;
        requests.sweep(now);
        messages.sweep(now);
        connections.sweep(now);
    }

    /// Our own numbers and those of the collectors.
    fn collect(&self) -> Writer {
        let mut writer = Writer::default();
        writer.gauge(
            "istio_build",
            "Version of the proxy, in the label.",
            &[("component", "proxy"), ("tag", &self.build_tag)],
            1.0,
        );
        let Stores { budget, requests, messages, connections } = &*self.stores;
        writer.gauge(
            "cairn_telemetry_series_limit",
            "Most series of Istio's metrics that may exist.",
            &[],
            budget.limit() as f64,
        );
        writer.gauge(
            "cairn_telemetry_tenant_series_limit",
            "Most of them that one tenant may have.",
            &[],
            budget.tenant_limit() as f64,
        );
        for (family, series, dropped, removed) in [
            ("requests", requests.len(), requests.dropped(), requests.removed()),
            ("messages", messages.len(), messages.dropped(), messages.removed()),
            ("connections", connections.len(), connections.dropped(), connections.removed()),
        ] {
            let labels = [("family", family)];
            writer.gauge(
                "cairn_telemetry_series",
                "Series of Istio's metrics that exist.",
                &labels,
                series as f64,
            );
            writer.counter(
                "cairn_telemetry_series_dropped_total",
                "Times that a label set was refused a series of its own and was counted in the series other.",
                &labels,
                dropped,
            );
            writer.counter(
                "cairn_telemetry_series_removed_total",
                "Series that left because nothing happened to them for long.",
                &labels,
                removed,
            );
        }
        self.access_logs.write(&mut writer);
        let collectors = self.collectors.lock().clone();
        let over: Vec<&Arc<Collector>> =
            collectors.iter().filter(|collector| !collector(&mut writer)).collect();
        if !over.is_empty() {
            let mut collectors = self.collectors.lock();
            collectors.retain(|one| !over.iter().any(|over| Arc::ptr_eq(one, over)));
        }
        let rejected = writer.rejected();
        let rejected = self.samples_rejected.fetch_add(rejected, Relaxed) + rejected;
        writer.counter(
            "cairn_telemetry_samples_rejected_total",
            "Samples of collectors that were left out since their name or labels are not valid.",
            &[],
            rejected,
        );
        writer
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("request_series", &self.stores.requests.len())
            .field("connection_series", &self.stores.connections.len())
            .finish_non_exhaustive()
    }
}

impl ShardHandle {
    /// Counts a request that is over, without its messages.
    pub fn record_request(&self, event: &RequestEvent<'_>) {
        self.stores.request(self.shard, event);
    }

    /// Counts messages of a gRPC request, when it is over or in between.
    ///
    /// The outcome in the event does not matter: the metrics have no labels for it (Istio: the same).
    pub fn record_messages(&self, event: &RequestEvent<'_>, requests: u64, responses: u64) {
        self.stores.messages(self.shard, event, requests, responses);
    }

    /// Counts a TCP connection that begins, when its upstream is known or has failed.
    pub fn connection_opened(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection(self.shard, event, ConnectionCells::open);
    }

    /// Counts bytes of a TCP connection that were not counted before: sent to the client, and read from it.
    ///
    /// With the labels that it was opened with (Istio: the same). Also without a byte it says that the connection
    /// lives, which keeps its series.
    pub fn connection_moved(&self, event: &ConnectionEvent<'_>, sent: u64, received: u64) {
        self.stores.connection(self.shard, event, |cells| cells.moved(sent, received));
    }

    /// Counts that a TCP connection is over, with the labels that it was opened with.
    pub fn connection_closed(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection(self.shard, event, ConnectionCells::close);
    }
}

impl Stores {
    fn request(&self, shard: usize, event: &RequestEvent<'_>) {
        let duration = event.timings.duration;
        let request = event.head_bytes_in.saturating_add(event.bytes_in);
        let response = event.head_bytes_out.saturating_add(event.bytes_out);
        self.requests.record(shard, &KeyRef::of_request(event), |cells, metrics| {
            cells.observe(metrics, duration, request, response);
        });
    }

    fn messages(&self, shard: usize, event: &RequestEvent<'_>, requests: u64, responses: u64) {
        self.messages.record(shard, &KeyRef::of_messages(event), |cells, _| {
            cells.add(requests, responses);
        });
    }

    fn connection(
        &self,
        shard: usize,
        event: &ConnectionEvent<'_>,
        change: impl Fn(&ConnectionCells),
    ) {
        self.connections.record(shard, &KeyRef::of_connection(event), |cells, _| change(cells));
    }
}

/// A number of the calling thread, dense from 0 in the order in which threads record first: as its id is, no state.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.try_with(|number| *number).unwrap_or(0)
}
