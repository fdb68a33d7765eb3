//! What became of records, as metrics.

use crate::writer::Writer;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of the records of one kind.
#[derive(Debug, Default)]
pub struct Counts {
    made: AtomicU64,
    full: AtomicU64,
    undelivered: AtomicU64,
    exported: AtomicU64,
    failures: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Records that were made.
    pub made: u64,
    /// Of them: dropped because the queue was full.
    pub full: u64,
    /// Of them: dropped because they could not be delivered.
    pub undelivered: u64,
    /// Of them: delivered.
    pub exported: u64,
    /// Messages that were not taken; each is sent twice.
    pub failures: u64,
}

/// Names and words of the metrics of one kind of records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub made: (&'static str, &'static str),
    pub dropped: (&'static str, &'static str),
    pub exported: (&'static str, &'static str),
    pub failures: (&'static str, &'static str),
}

pub(crate) const SPANS: Names = Names {
    made: ("cairn_traces_spans_total", "Spans that were made."),
    dropped: (
        "cairn_traces_dropped_total",
        "Spans that were dropped, by reason: the queue was full, or they could not be delivered.",
    ),
    exported: ("cairn_traces_exported_total", "Spans that a collector took."),
    failures: (
        "cairn_traces_export_failures_total",
        "Messages with spans that a collector did not take; each is sent twice.",
    ),
};

impl Counts {
    pub(crate) fn make(&self) {
        self.made.fetch_add(1, Relaxed);
    }

    pub(crate) fn drop_full(&self) {
        self.full.fetch_add(1, Relaxed);
    }

    pub(crate) fn drop_undelivered(&self, count: usize) {
        self.undelivered.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn export(&self, count: usize) {
        self.exported.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn fail(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// As they are.
    pub fn get(&self) -> Counted {
        let Counts { made, full, undelivered, exported, failures } = self;
        Counted {
            made: made.load(Relaxed),
            full: full.load(Relaxed),
            undelivered: undelivered.load(Relaxed),
            exported: exported.load(Relaxed),
            failures: failures.load(Relaxed),
        }
    }

    /// Adds them to a scrape.
    pub(crate) fn write(&self, names: &Names, mesh: &str, writer: &mut Writer) {
        let Counted { made, full, undelivered, exported, failures } = self.get();
        let labels = [("mesh", mesh)];
        writer.counter(names.made.0, names.made.1, &labels, made);
        writer.counter(names.exported.0, names.exported.1, &labels, exported);
        writer.counter(names.failures.0, names.failures.1, &labels, failures);
        for (reason, count) in [("queue", full), ("delivery", undelivered)] {
            let labels = [("mesh", mesh), ("reason", reason)];
            writer.counter(names.dropped.0, names.dropped.1, &labels, count);
        }
    }
}
