//! The numbers of one series, as one shard keeps them, and their sum over the shards.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::rules::{Metric, Metrics};

/// One bound of Envoy's histograms.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Largest value that belongs to it, in thousandths of the histogram's unit.
    pub(crate) thousandths: u64,
    /// Value of `le` as Envoy prints it.
    pub(crate) text: &'static str,
    /// Value of `le` as OpenMetrics wants it ("Canonical Numbers").
    pub(crate) openmetrics: &'static str,
}

const fn bucket(thousandths: u64, text: &'static str, openmetrics: &'static str) -> Bucket {
    Bucket { thousandths, text, openmetrics }
}

const BUCKET_COUNT: usize = 19;

/// Envoy's default histogram bounds, whatever the unit: milliseconds or bytes.
pub(crate) const BUCKETS: [Bucket; BUCKET_COUNT] = [
    bucket(500, "0.5", "0.5"),
    bucket(1_000, "1", "1.0"),
    bucket(5_000, "5", "5.0"),
    bucket(10_000, "10", "10.0"),
    bucket(25_000, "25", "25.0"),
    bucket(50_000, "50", "50.0"),
    bucket(100_000, "100", "100.0"),
    bucket(250_000, "250", "250.0"),
    bucket(500_000, "500", "500.0"),
    bucket(1_000_000, "1000", "1000.0"),
    bucket(2_500_000, "2500", "2500.0"),
    bucket(5_000_000, "5000", "5000.0"),
    bucket(10_000_000, "10000", "10000.0"),
    bucket(30_000_000, "30000", "30000.0"),
    bucket(60_000_000, "60000", "60000.0"),
    bucket(300_000_000, "300000", "300000.0"),
    bucket(600_000_000, "600000", "600000.0"),
    bucket(1_800_000_000, "1800000", "1.8e+06"),
    bucket(3_600_000_000, "3600000", "3.6e+06"),
];

/// What a series counts.
pub(crate) trait Cells: Default {
    /// Grows with every event.
    fn activity(&self) -> u64;
}

/// Aligned so that two shards' numbers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Histogram {
    /// Not cumulative; the last one is beyond every bound.
    buckets: [AtomicU64; BUCKET_COUNT + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// `value` is what `thousandths` is of in the unit of the sum.
    fn observe(&self, thousandths: u64, value: u64) {
        let i = BUCKETS.partition_point(|bucket| bucket.thousandths < thousandths);
        if let Some(bucket) = self.buckets.get(i) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }
}

/// A histogram that takes memory from its first value on.
#[derive(Debug, Default)]
struct Late(OnceLock<Box<Histogram>>);

impl Late {
    fn get(&self) -> &Histogram {
        self.0.get_or_init(Box::default)
    }
}

/// [`Histogram`] of all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistogramTotals {
    buckets: [u64; BUCKET_COUNT + 1],
    pub(crate) sum: u64,
}

impl HistogramTotals {
    fn add(&mut self, late: &Late) {
        let Some(histogram) = late.0.get() else { return };
        for (total, cell) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += cell.load(Relaxed);
        }
        self.sum = self.sum.wrapping_add(histogram.sum.load(Relaxed));
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Cumulative counts, one per entry of [`BUCKETS`].
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (&'static Bucket, u64)> {
        BUCKETS.iter().zip(self.buckets.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }))
    }
}

/// Requests of one label set.
#[derive(Debug, Default)]
pub(crate) struct RequestCells {
    requests: AtomicU64,
    /// Sum in microseconds.
    duration: Late,
    /// Sum in bytes.
    request_bytes: Late,
    /// Sum in bytes.
    response_bytes: Late,
}

impl RequestCells {
    /// One request, as far as it counts for `metrics`.
    pub(crate) fn observe(
        &self,
        metrics: Metrics,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        if metrics.has(Metric::Requests) {
            self.requests.fetch_add(1, Relaxed);
        }
        if metrics.has(Metric::RequestDuration) {
            // Rounded up: what is beyond a bound stays beyond it.
            let micros = u64::try_from(duration.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
            self.duration.get().observe(micros, micros);
        }
        if metrics.has(Metric::RequestBytes) {
            self.request_bytes.get().observe(request_bytes.saturating_mul(1_000), request_bytes);
        }
        if metrics.has(Metric::ResponseBytes) {
            self.response_bytes.get().observe(response_bytes.saturating_mul(1_000), response_bytes);
        }
    }
}

impl Cells for RequestCells {
    fn activity(&self) -> u64 {
        let mut totals = RequestTotals::default();
        totals.add(self);
        let RequestTotals { requests, duration, request_bytes, response_bytes } = totals;
        requests + duration.count() + request_bytes.count() + response_bytes.count()
    }
}

/// [`RequestCells`] of all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestTotals {
    pub(crate) requests: u64,
    /// Sum in microseconds.
    pub(crate) duration: HistogramTotals,
    /// Sum in bytes.
    pub(crate) request_bytes: HistogramTotals,
    /// Sum in bytes.
    pub(crate) response_bytes: HistogramTotals,
}

impl RequestTotals {
    pub(crate) fn add(&mut self, cells: &RequestCells) {
        let RequestCells { requests, duration, request_bytes, response_bytes } = cells;
        self.requests += requests.load(Relaxed);
        self.duration.add(duration);
        self.request_bytes.add(request_bytes);
        self.response_bytes.add(response_bytes);
    }
}

/// gRPC messages of one label set.
#[derive(Debug, Default)]
pub(crate) struct MessageCells {
    events: AtomicU64,
    requests: AtomicU64,
    responses: AtomicU64,
}

impl MessageCells {
    pub(crate) fn add(&self, requests: u64, responses: u64) {
        self.events.fetch_add(1, Relaxed);
        self.requests.fetch_add(requests, Relaxed);
        self.responses.fetch_add(responses, Relaxed);
    }
}

impl Cells for MessageCells {
    fn activity(&self) -> u64 {
        self.events.load(Relaxed)
    }
}

/// [`MessageCells`] of all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageTotals {
    pub(crate) requests: u64,
    pub(crate) responses: u64,
}

impl MessageTotals {
    pub(crate) fn add(&mut self, cells: &MessageCells) {
        let MessageCells { events: _, requests, responses } = cells;
        self.requests += requests.load(Relaxed);
        self.responses += responses.load(Relaxed);
    }
}

/// TCP connections of one label set.
#[derive(Debug, Default)]
pub(crate) struct ConnectionCells {
    events: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl ConnectionCells {
    pub(crate) fn open(&self) {
        self.events.fetch_add(1, Relaxed);
        self.opened.fetch_add(1, Relaxed);
    }

    /// Also without a byte: the connection lives.
    pub(crate) fn moved(&self, sent_bytes: u64, received_bytes: u64) {
        self.events.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(sent_bytes, Relaxed);
        self.received_bytes.fetch_add(received_bytes, Relaxed);
    }

    pub(crate) fn close(&self) {
        self.events.fetch_add(1, Relaxed);
        self.closed.fetch_add(1, Relaxed);
    }
}

impl Cells for ConnectionCells {
    fn activity(&self) -> u64 {
        self.events.load(Relaxed)
    }
}

/// [`ConnectionCells`] of all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionTotals {
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

impl ConnectionTotals {
    pub(crate) fn add(&mut self, cells: &ConnectionCells) {
        let ConnectionCells { events: _, opened, closed, sent_bytes, received_bytes } = cells;
        self.opened += opened.load(Relaxed);
        self.closed += closed.load(Relaxed);
        self.sent_bytes = self.sent_bytes.wrapping_add(sent_bytes.load(Relaxed));
        self.received_bytes = self.received_bytes.wrapping_add(received_bytes.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_what_the_bounds_are() {
        for b in &BUCKETS {
            let units = b.thousandths as f64 / 1000.0;
            assert_eq!(b.text.parse::<f64>().ok(), Some(units));
            assert_eq!(b.openmetrics.parse::<f64>().ok(), Some(units));
        }
        assert!(BUCKETS.is_sorted_by(|a, b| a.thousandths < b.thousandths));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for (i, b) in BUCKETS.iter().enumerate() {
            let cells = RequestCells::default();
            let bound = Duration::from_micros(b.thousandths);
            cells.observe(Metrics::ALL, bound, b.thousandths / 1_000, 0);
            let bytes = b.thousandths / 1_000 + 1;
            cells.observe(Metrics::ALL, bound + Duration::from_nanos(1), bytes, 0);
            let mut totals = RequestTotals::default();
            totals.add(&cells);
            for histogram in [totals.duration, totals.request_bytes] {
                assert_eq!(histogram.buckets.get(i), Some(&1), "{b:?}");
                assert_eq!(histogram.buckets.get(i + 1), Some(&1), "{b:?}");
                assert_eq!(histogram.count(), 2);
            }
            assert_eq!(totals.response_bytes.buckets.first(), Some(&2), "nothing is a size");
        }
    }

    #[test]
    fn cumulative_counts_and_sums_over_shards() {
        let (a, b) = (RequestCells::default(), RequestCells::default());
        a.observe(Metrics::ALL, Duration::from_micros(300), 1, 10);
        a.observe(Metrics::ALL, Duration::from_millis(3), 2, 20);
        b.observe(Metrics::ALL, Duration::from_secs(7200), 3, u64::MAX);
        let mut totals = RequestTotals::default();
        totals.add(&a);
        totals.add(&b);
        let counts: Vec<u64> = totals.duration.cumulative().map(|(_, n)| n).collect();
        assert_eq!(counts.first(), Some(&1));
        assert_eq!(counts.get(1), Some(&1));
        assert_eq!(counts.get(2), Some(&2));
        assert_eq!(counts.last(), Some(&2));
        assert_eq!(totals.requests, 3);
        assert_eq!(totals.duration.count(), 3);
        assert_eq!(totals.duration.sum, 300 + 3_000 + 7_200_000_000);
        assert_eq!(totals.request_bytes.sum, 6);
        assert_eq!(totals.response_bytes.count(), 3);
    }

    #[test]
    fn what_is_not_counted_takes_no_memory() {
        let cells = RequestCells::default();
        cells.observe(Metric::Requests.mask(), Duration::from_secs(1), 1, 1);
        assert!(cells.duration.0.get().is_none());
        assert!(cells.request_bytes.0.get().is_none());
        assert!(cells.response_bytes.0.get().is_none());
        cells.observe(Metric::ResponseBytes.mask(), Duration::from_secs(1), 1, 1);
        let mut totals = RequestTotals::default();
        totals.add(&cells);
        assert_eq!((totals.requests, totals.response_bytes.count()), (1, 1));
        assert_eq!(cells.activity(), 2);
        // docs/telemetry.md says so.
        assert_eq!(size_of::<Histogram>(), 192);
    }
}
