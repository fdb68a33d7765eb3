//! How late tasks run: a task is handed to each worker twenty times a second, and says how long it
//! took until it ran. That is what everything else on the worker waits for, too.

use crate::workers::Shared;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Measurements that are kept of each worker: those of the last 10 s, at [`Delays::INTERVAL`].
const KEPT: usize = 200;

/// Measures the workers' delays. Cheap to clone.
#[derive(Clone)]
pub struct Delays {
    shared: Arc<Shared>,
    lanes: Arc<[Lane]>,
    start: Instant,
}

/// One worker.
#[derive(Debug, Default)]
struct Lane {
    /// Microseconds since the start at which the task was handed over that has not run yet, plus 1; 0: none.
    posted: AtomicU64,
    delays: Mutex<Ring>,
}

/// The last measurements, in microseconds.
#[derive(Debug, Default)]
struct Ring {
    values: Vec<u64>,
    next: usize,
}

/// Delays of the last seconds, over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DelaySummary {
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Longest.
    pub max: Duration,
}

impl Delays {
    /// How often [`Self::measure`] should be called.
    pub const INTERVAL: Duration = Duration::from_millis(50);

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let lanes = (0..shared.len()).map(|_| Lane::default()).collect();
        Delays { shared, lanes, start: Instant::now() }
    }

    /// Hands a task to each worker. A worker that has not run the last one gets none: how long that
    /// one waits already is its measurement.
    pub fn measure(&self) {
        for (worker, lane) in self.lanes.iter().enumerate() {
            let now = self.micros();
            match lane.posted.load(Ordering::Acquire).checked_sub(1) {
                Some(posted) => lane.add(now.saturating_sub(posted)),
                None => {
                    lane.posted.store(now + 1, Ordering::Release);
                    let this = self.clone();
                    self.shared.spawn_on(worker, async move { this.ran(worker, now) });
                }
            }
        }
    }

    fn ran(&self, worker: usize, posted: u64) {
        if let Some(lane) = self.lanes.get(worker) {
            lane.add(self.micros().saturating_sub(posted));
            lane.posted.store(0, Ordering::Release);
        }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// The delays that are kept; all 0 before the first measurement.
    pub fn summary(&self) -> DelaySummary {
        let mut all = Vec::new();
        for lane in self.lanes.iter() {
            all.extend_from_slice(&lane.delays.lock().values);
        }
        summary_of(all)
    }
}

fn summary_of(mut micros: Vec<u64>) -> DelaySummary {
    micros.sort_unstable();
    let rank = |percent: usize| {
        let rank = (micros.len() * percent).div_ceil(100).saturating_sub(1);
        Duration::from_micros(micros.get(rank).copied().unwrap_or_default())
    };
    DelaySummary { p50: rank(50), p99: rank(99), max: rank(100) }
}

impl Lane {
    fn add(&self, micros: u64) {
        self.delays.lock().add(micros);
    }
}

impl Ring {
    fn add(&mut self, micros: u64) {
        match self.values.get_mut(self.next) {
            Some(oldest) => *oldest = micros,
            None => self.values.push(micros),
        }
        self.next = (self.next + 1) % KEPT;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)] // this thread is no worker
    use super::*;
    use crate::workers::{Placement, Workers};

    #[test]
    fn percentiles_are_those_of_what_is_kept() {
        let mut ring = Ring::default();
        for micros in 0..3 * KEPT as u64 {
            ring.add(micros);
        }
        assert_eq!(ring.values.len(), KEPT);
        let summary = summary_of(ring.values);
        assert_eq!(summary.p50, Duration::from_micros(499));
        assert_eq!(summary.p99, Duration::from_micros(597));
        assert_eq!(summary.max, Duration::from_micros(599));
        assert_eq!(summary_of(Vec::new()), DelaySummary::default());
    }

    #[test]
    fn a_worker_that_is_held_up_shows() {
        let workers = Workers::start(1, Placement::Local).unwrap();
        let delays = workers.delays();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        workers.shared().spawn_on(0, async move {
            let _let_go = held.recv();
        });
        let begun = Instant::now();
        delays.measure();
        while begun.elapsed() < Duration::from_millis(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It has not run yet and counts all the same.
        delays.measure();
        assert!(delays.summary().max >= Duration::from_millis(30), "{:?}", delays.summary());
        drop(hold);
        while delays.lanes[0].posted.load(Ordering::Acquire) != 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(delays.lanes[0].delays.lock().values.len(), 2);
    }
}
