//! What clients have seen: counts, the reasons of failures, latencies.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Reasons that are counted apart; what comes after them is `other`.
const MAX_REASONS: usize = 40;
/// Failures that are told in full, of each reason and of all.
const MAX_TOLD: (u64, usize) = (5, 20);
/// Latencies up to this, in microseconds.
const MAX_MICROS: u64 = 60_000_000;

/// Why a request, or a tunnel, failed. Equal words for equal reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

/// How an application's connection ended that was not ended by its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It was told to go: `connection: close`, GOAWAY, or an end in order while nothing was asked.
    Told,
    /// It was cut while nothing was asked.
    Cut,
}

/// Shared by all clients that are counted together.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    requests: AtomicU64,
    wrong: AtomicU64,
    connections: AtomicU64,
    told: AtomicU64,
    cut: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
    samples: Mutex<Vec<String>>,
    latency: Mutex<Histogram<u64>>,
}

/// All of it at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Requests that were answered as they should be.
    pub requests: u64,
    /// Answers of another mesh's backend.
    pub wrong: u64,
    /// Connections of applications.
    pub connections: u64,
    /// Those that were told to go.
    pub told: u64,
    /// Those that were cut while nothing was asked.
    pub cut: u64,
    /// Failures by reason.
    pub failures: BTreeMap<String, u64>,
    /// The first failures in full.
    pub samples: Vec<String>,
    /// Of the requests that were answered, in microseconds.
    pub latency: Histogram<u64>,
}

impl Tally {
    /// With nothing.
    pub fn new() -> anyhow::Result<Tally> {
        Ok(Tally {
            began: Instant::now(),
            requests: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            told: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            failures: Mutex::default(),
            samples: Mutex::default(),
            latency: Mutex::new(Histogram::new_with_bounds(1, MAX_MICROS, 3)?),
        })
    }

    /// A request was answered as it should be.
    pub fn succeed(&self, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency.lock().saturating_record(micros);
    }

    /// Somebody else's backend has answered.
    pub fn mistake(&self, member: IpAddr, who: &str) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        self.sample(Some(member), &format!("an answer of {who}"));
    }

    /// A request or a tunnel failed.
    pub fn fail(&self, member: Option<IpAddr>, failure: &Failure) {
        let count = {
            let mut failures = self.failures.lock();
            let known = failures.contains_key(&failure.0) || failures.len() < MAX_REASONS;
            let reason = if known { failure.0.as_str() } else { "other" };
            let count = failures.entry(reason.to_owned()).or_default();
            *count += 1;
            *count
        };
        if count <= MAX_TOLD.0 {
            self.sample(member, &failure.0);
        }
    }

    /// There is one connection more.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was ended by the other side.
    pub fn gone(&self, how: Gone) {
        let count = match how {
            Gone::Told => &self.told,
            Gone::Cut => &self.cut,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn sample(&self, member: Option<IpAddr>, what: &str) {
        let mut samples = self.samples.lock();
        if samples.len() < MAX_TOLD.1 {
            let at = self.began.elapsed().as_secs_f64();
            let member = member.map(|ip| format!(" by {ip}")).unwrap_or_default();
            samples.push(format!("{at:.2} s{member}: {what}"));
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            requests: count(&self.requests),
            wrong: count(&self.wrong),
            connections: count(&self.connections),
            told: count(&self.told),
            cut: count(&self.cut),
            failures: self.failures.lock().clone(),
            samples: self.samples.lock().clone(),
            latency: self.latency.lock().clone(),
        }
    }

    /// Counts answers, and failures of these reasons, from here on, as after a warm-up.
    pub fn forget(&self, reasons: &[&str]) {
        self.requests.store(0, Ordering::Relaxed);
        self.latency.lock().reset();
        self.failures.lock().retain(|reason, _| !reasons.contains(&reason.as_str()));
    }

    /// Answered requests and failures so far.
    pub fn brief(&self) -> (u64, u64) {
        let failed = self.failures.lock().values().sum();
        (self.requests.load(Ordering::Relaxed), failed)
    }
}

impl Seen {
    /// Failures of all reasons.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Failures of these reasons.
    pub fn failed_of(&self, reasons: &[&str]) -> u64 {
        reasons.iter().filter_map(|reason| self.failures.get(*reason)).sum()
    }

    /// Milliseconds within which that part of the requests was answered, from 0 to 1.
    pub fn milliseconds(&self, part: f64) -> f64 {
        self.latency.value_at_quantile(part) as f64 / 1e3
    }

    /// Prints failures by reason, and the first of them.
    pub fn print_failures(&self) {
        for (reason, count) in &self.failures {
            println!("  {count:>8}  {reason}");
        }
        for sample in &self.samples {
            println!("            {sample}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_samples_are_bounded() {
        let tally = Tally::new().unwrap();
        for number in 0..100 {
            tally.fail(None, &Failure(format!("reason {number}")));
        }
        tally.mistake([127, 8, 0, 1].into(), "b");
        tally.succeed(Duration::from_millis(3));
        let seen = tally.seen();
        assert_eq!((seen.failed(), seen.failures["other"]), (100, 60));
        assert_eq!(seen.failures.len(), MAX_REASONS + 1);
        assert_eq!(seen.samples.len(), MAX_TOLD.1);
        assert_eq!((seen.requests, seen.wrong), (1, 1));
        assert_eq!(seen.failed_of(&["reason 1", "reason 2", "reason 99"]), 2);
        assert!((2.9..3.1).contains(&seen.milliseconds(0.5)));
        tally.forget(&["reason 1", "other"]);
        let seen = tally.seen();
        assert_eq!((seen.requests, seen.failed()), (0, 39));
    }
}
