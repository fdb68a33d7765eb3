//! What became of the requests.

use super::lane::Failure;
use super::report::{Latency, LoadReport, PhaseReport, Window};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Latencies are kept in nanoseconds with so many digits.
const DIGITS: u8 = 3;
/// Latencies above count as this.
const LONGEST: Duration = Duration::from_secs(60);

/// Counts requests that end within the window.
pub struct Recorder {
    measuring: AtomicBool,
    stopped: AtomicBool,
    /// How many requests may still be made.
    budget: AtomicU64,
    limit: Option<u64>,
    done: AtomicU64,
    failed: AtomicU64,
    phases: Mutex<Vec<Phase>>,
}

struct Phase {
    began: Instant,
    seconds: f64,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Phase {
    fn new() -> Phase {
        Phase {
            began: Instant::now(),
            seconds: 0.0,
            latency: Histogram::new_with_max(LONGEST.as_nanos() as u64, DIGITS)
                .expect("60 s with 3 digits are within the histogram's bounds"),
            errors: BTreeMap::new(),
        }
    }
}

impl Recorder {
    /// Counts nothing until [`Recorder::begin`]; admits so many requests.
    pub fn new(limit: Option<u64>) -> Recorder {
        Recorder {
            measuring: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            budget: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            limit,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            phases: Mutex::new(Vec::new()),
        }
    }

    /// The window begins.
    pub fn begin(&self) {
        self.next_phase();
        self.measuring.store(true, Ordering::Relaxed);
    }

    /// A part of the window ends, another begins.
    pub fn next_phase(&self) {
        let mut phases = self.phases.lock();
        if let Some(phase) = phases.last_mut() {
            phase.seconds = phase.began.elapsed().as_secs_f64();
        }
        phases.push(Phase::new());
    }

    /// The window ends.
    pub fn end(&self) {
        self.measuring.store(false, Ordering::Relaxed);
        if let Some(phase) = self.phases.lock().last_mut() {
            phase.seconds = phase.began.elapsed().as_secs_f64();
        }
    }

    /// No more requests shall be made.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether one more request may be made, which counts.
    pub fn admits(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        !self.stopped.load(Ordering::Relaxed)
            && self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Whether all requests that there may be have had their answers.
    pub fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.done() + self.failed() >= limit)
    }

    /// A request that was due at `due` has its answer.
    pub fn succeed(&self, due: Instant) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if self.measuring.load(Ordering::Relaxed) {
            let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
            if let Some(phase) = self.phases.lock().last_mut() {
                phase.latency.saturating_record(nanos);
            }
        }
    }

    /// A request has no good answer.
    pub fn fail(&self, failure: &Failure) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if self.measuring.load(Ordering::Relaxed)
            && let Some(phase) = self.phases.lock().last_mut()
        {
            *phase.errors.entry(failure.kind().to_owned()).or_default() += 1;
        }
    }

    /// Answers since the start.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Failures since the start.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// What was counted; `unanswered` requests had no answer in the end.
    pub fn report(&self, window: Window, unanswered: u64) -> LoadReport {
        let mut phases: Vec<PhaseReport> = self.phases.lock().iter().map(Phase::report).collect();
        if let Some(last) = phases.last_mut().filter(|_| unanswered > 0) {
            last.errors.insert("no answer".to_owned(), unanswered);
        }
        LoadReport { window, phases }
    }
}

impl Phase {
    fn report(&self) -> PhaseReport {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        PhaseReport {
            seconds: self.seconds,
            requests: self.latency.len(),
            errors: self.errors.clone(),
            latency: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: self.latency.max() as f64 / 1000.0,
            },
        }
    }
}
