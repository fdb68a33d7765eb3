//! The numbers of one series, as one shard keeps them, and their sum over the shards.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One bound of the duration histogram.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Longest duration that belongs to it.
    pub(crate) bound: Duration,
    /// Value of `le` as Envoy prints it.
    pub(crate) text: &'static str,
    /// Value of `le` as OpenMetrics wants it ("Canonical Numbers").
    pub(crate) openmetrics: &'static str,
}

const fn bucket(micros: u64, text: &'static str, openmetrics: &'static str) -> Bucket {
    Bucket { bound: Duration::from_micros(micros), text, openmetrics }
}

const BUCKET_COUNT: usize = 19;

/// Envoy's default histogram bounds; texts in milliseconds.
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

/// Requests of one label set. Their number is the sum of the buckets.
///
/// Aligned so that two shards' numbers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct RequestCells {
    buckets: [AtomicU64; BUCKET_COUNT + 1],
    sum_micros: AtomicU64,
}

impl RequestCells {
    pub(crate) fn observe(&self, duration: Duration) {
        let i = BUCKETS.partition_point(|b| b.bound < duration);
        if let Some(bucket) = self.buckets.get(i) {
            bucket.fetch_add(1, Relaxed);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Relaxed);
    }
}

/// [`RequestCells`] of all shards together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestTotals {
    /// Requests per bucket, not cumulative; the last one is beyond every bound.
    pub(crate) buckets: [u64; BUCKET_COUNT + 1],
    pub(crate) sum_micros: u64,
}

impl RequestTotals {
    pub(crate) fn add(&mut self, cells: &RequestCells) {
        for (total, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *total += cell.load(Relaxed);
        }
        self.sum_micros = self.sum_micros.wrapping_add(cells.sum_micros.load(Relaxed));
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

/// TCP connections of one label set.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct ConnectionCells {
    opened: AtomicU64,
    closed: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl ConnectionCells {
    pub(crate) fn open(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn close(&self, sent_bytes: u64, received_bytes: u64) {
        self.closed.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(sent_bytes, Relaxed);
        self.received_bytes.fetch_add(received_bytes, Relaxed);
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
        let ConnectionCells { opened, closed, sent_bytes, received_bytes } = cells;
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
            let ms = b.bound.as_secs_f64() * 1000.0;
            assert_eq!(b.text.parse::<f64>().ok(), Some(ms));
            assert_eq!(b.openmetrics.parse::<f64>().ok(), Some(ms));
        }
        assert!(BUCKETS.is_sorted_by(|a, b| a.bound < b.bound));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for (i, b) in BUCKETS.iter().enumerate() {
            let cells = RequestCells::default();
            cells.observe(b.bound);
            cells.observe(b.bound + Duration::from_nanos(1));
            let mut totals = RequestTotals::default();
            totals.add(&cells);
            assert_eq!(totals.buckets.get(i), Some(&1));
            assert_eq!(totals.buckets.get(i + 1), Some(&1));
            assert_eq!(totals.count(), 2);
        }
    }

    #[test]
    fn cumulative_counts_and_sums_over_shards() {
        let (a, b) = (RequestCells::default(), RequestCells::default());
        a.observe(Duration::from_micros(300));
        a.observe(Duration::from_millis(3));
        b.observe(Duration::from_secs(7200));
        let mut totals = RequestTotals::default();
        totals.add(&a);
        totals.add(&b);
        let counts: Vec<u64> = totals.cumulative().map(|(_, n)| n).collect();
        assert_eq!(counts.first(), Some(&1));
        assert_eq!(counts.get(1), Some(&1));
        assert_eq!(counts.get(2), Some(&2));
        assert_eq!(counts.last(), Some(&2));
        assert_eq!(totals.count(), 3);
        assert_eq!(totals.sum_micros, 300 + 3_000 + 7_200_000_000);
    }
}
