//! When the next request is due.

use anyhow::Result;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Closed or open loop.
pub enum Pace {
    /// At once.
    Closed,
    /// At fixed times.
    Open(Arc<Schedule>),
}

/// Requests that are due and wait for a free tunnel.
pub struct Schedule {
    due: Mutex<VecDeque<Instant>>,
    waiting: Semaphore,
}

impl Pace {
    /// `rate` requests per second; 0: closed loop.
    pub fn new(rate: u32) -> Result<Pace> {
        if rate == 0 {
            return Ok(Pace::Closed);
        }
        let period = Duration::from_secs_f64(1.0 / f64::from(rate));
        let schedule =
            Arc::new(Schedule { due: Mutex::new(VecDeque::new()), waiting: Semaphore::new(0) });
        let filled = Arc::clone(&schedule);
        // A thread, since the runtime's timers are no finer than a millisecond.
        thread::Builder::new().name("schedule".to_owned()).spawn(move || filled.fill(period))?;
        Ok(Pace::Open(schedule))
    }

    /// Waits until a request is due; returns since when it is. `None`: there are no more.
    pub async fn next(&self) -> Option<Instant> {
        let Pace::Open(schedule) = self else { return Some(Instant::now()) };
        schedule.waiting.acquire().await.ok()?.forget();
        schedule.due.lock().pop_front()
    }

    /// No more requests.
    pub fn stop(&self) {
        if let Pace::Open(schedule) = self {
            schedule.waiting.close();
        }
    }

    /// Requests that were due long before the end and for which no tunnel was free.
    pub fn unserved(&self) -> u64 {
        let Pace::Open(schedule) = self else { return 0 };
        let late = |due: &&Instant| due.elapsed() > Duration::from_secs(1);
        schedule.due.lock().iter().filter(late).count() as u64
    }
}

impl Schedule {
    /// Adds what becomes due, at exact multiples of the period: waking up late counts as latency.
    fn fill(&self, period: Duration) {
        let mut next = Instant::now() + period;
        while !self.waiting.is_closed() {
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
            let now = Instant::now();
            let mut due = self.due.lock();
            let before = due.len();
            while next <= now {
                due.push_back(next);
                next += period;
            }
            let added = due.len() - before;
            drop(due);
            self.waiting.add_permits(added);
        }
    }
}
