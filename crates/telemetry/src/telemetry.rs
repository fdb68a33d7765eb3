//! The door: events in, exposition out.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::access_log::AccessLogs;
use crate::event::{ConnectionEvent, RequestEvent};
use crate::exposition::{Exposition, Kind, number};
use crate::key::KeyRef;
use crate::labels::LabelSet;
use crate::series::{ConnectionCells, ConnectionTotals, RequestCells, RequestTotals};
use crate::store::{Budget, Series, Store};
use crate::writer::Writer;

/// What [`Telemetry`] is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Shards, one per thread that records; at least one. Default: the number of cores.
    pub shards: usize,
    /// Most series of Istio's metrics (label sets, over all families and shards). Default: 10,000.
    pub series_limit: usize,
    /// Label `tag` of `istio_build`: the version that we report. Default: this package's.
    pub build_tag: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            shards: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            series_limit: 10_000,
            build_tag: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

type Collector = dyn Fn(&mut Writer) + Send + Sync;

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
        let Settings { shards, series_limit, build_tag } = settings;
        let budget = Arc::new(Budget::new(series_limit));
        Arc::new(Telemetry {
            stores: Arc::new(Stores {
                requests: Store::new(LabelSet::Http, shards, Arc::clone(&budget)),
                connections: Store::new(LabelSet::Tcp, shards, Arc::clone(&budget)),
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

    /// Counts a request that is over, in the calling thread's shard.
    pub fn record_request(&self, event: &RequestEvent<'_>) {
        self.stores.request(thread_number(), event);
    }

    /// Counts a TCP connection that begins, in the calling thread's shard.
    ///
    /// Envoy reports the beginning with the labels known a few seconds later; so call this when the upstream is known
    /// or has failed, and with the same labels as far as they are known.
    pub fn connection_opened(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection_opened(thread_number(), event);
    }

    /// Counts a TCP connection that is over, with its bytes, in the calling thread's shard.
    pub fn record_connection(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection_closed(thread_number(), event);
    }

    /// Adds a collector, which is called at every scrape and writes what it has. It must not block.
    pub fn register(&self, collector: Box<dyn Fn(&mut Writer) + Send + Sync>) {
        self.collectors.lock().push(Arc::from(collector));
    }

    /// The content type of what [`Telemetry::render`] returns.
    pub const fn content_type(openmetrics: bool) -> &'static str {
        if openmetrics {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        }
    }

    /// Everything, as Prometheus' text format 0.0.4 or as OpenMetrics 1.0.
    ///
    /// Families without a sample are left out. A series keeps its place from scrape to scrape.
    pub fn render(&self, openmetrics: bool) -> String {
        let mut out = Exposition::new(openmetrics);
        render_requests(&mut out, &self.stores.requests.series());
        render_connections(&mut out, &self.stores.connections.series());
        self.collect().render(&mut out);
        out.finish()
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
        let Stores { budget, requests, connections } = &*self.stores;
        writer.gauge(
            "cairn_telemetry_series_limit",
            "Most series of Istio's metrics that may exist.",
            &[],
            budget.limit() as f64,
        );
        for (family, series, dropped) in [
            ("requests", requests.len(), requests.dropped()),
            ("connections", connections.len(), connections.dropped()),
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
        }
        self.access_logs.write(&mut writer);
        let collectors = self.collectors.lock().clone();
        for collector in &collectors {
            collector(&mut writer);
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
    /// Counts a request that is over.
    pub fn record_request(&self, event: &RequestEvent<'_>) {
        self.stores.request(self.shard, event);
    }

    /// Counts a TCP connection that begins; see [`Telemetry::connection_opened`].
    pub fn connection_opened(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection_opened(self.shard, event);
    }

    /// Counts a TCP connection that is over, with its bytes.
    pub fn record_connection(&self, event: &ConnectionEvent<'_>) {
        self.stores.connection_closed(self.shard, event);
    }
}

impl Stores {
    fn request(&self, shard: usize, event: &RequestEvent<'_>) {
        let duration = event.timings.duration;
        self.requests.record(shard, &KeyRef::of_request(event), |cells| cells.observe(duration));
    }

    fn connection_opened(&self, shard: usize, event: &ConnectionEvent<'_>) {
        self.connections.record(shard, &KeyRef::of_connection(event), ConnectionCells::open);
    }

    fn connection_closed(&self, shard: usize, event: &ConnectionEvent<'_>) {
        self.connections.record(shard, &KeyRef::of_connection(event), |cells| {
            cells.close(event.bytes_out, event.bytes_in);
        });
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

fn render_requests(out: &mut Exposition, all: &[Arc<Series<RequestCells>>]) {
    let totals = |series: &Series<RequestCells>| {
        let mut totals = RequestTotals::default();
        series.for_each(|cells| totals.add(cells));
        totals
    };
    if all.is_empty() {
        return;
    }
    let name = "istio_requests";
    out.family(name, Kind::Counter, "Requests that are over.");
    for series in all {
        out.sample(name, "_total", &series.labels, totals(series).count());
    }
    let name = "istio_request_duration_milliseconds";
    out.family(
        name,
        Kind::Histogram,
        "From the first byte of the request to the last of the reply.",
    );
    for series in all {
        let totals = totals(series);
        let count = totals.count();
        for (bucket, cumulative) in totals.cumulative() {
            let le = if out.openmetrics() { bucket.openmetrics } else { bucket.text };
            out.bucket(name, &series.labels, le, cumulative);
        }
        out.bucket(name, &series.labels, "+Inf", count);
        let sum = number(totals.sum_micros as f64 / 1000.0);
        out.sample(name, "_sum", &series.labels, sum);
        out.sample(name, "_count", &series.labels, count);
    }
}

fn render_connections(out: &mut Exposition, all: &[Arc<Series<ConnectionCells>>]) {
    type Field = fn(&ConnectionTotals) -> u64;
    let families: [(&str, &str, Field); 4] = [
        ("istio_tcp_connections_opened", "TCP connections that began.", |t| t.opened),
        ("istio_tcp_connections_closed", "TCP connections that are over.", |t| t.closed),
        ("istio_tcp_sent_bytes", "Bytes sent to clients of TCP connections.", |t| t.sent_bytes),
        ("istio_tcp_received_bytes", "Bytes read from clients of TCP connections.", |t| {
            t.received_bytes
        }),
    ];
    if all.is_empty() {
        return;
    }
    for (name, help, field) in families {
        out.family(name, Kind::Counter, help);
        for series in all {
            let mut totals = ConnectionTotals::default();
            series.for_each(|cells| totals.add(cells));
            out.sample(name, "_total", &series.labels, field(&totals));
        }
    }
}
