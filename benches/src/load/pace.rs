//! When the next request is due.

use anyhow::Result;
use parking_lot::Mutex;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
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
    /// `rate` requests per second; 0: closed loop. Needs a runtime.
    pub fn new(rate: u32) -> Result<Pace> {
        if rate == 0 {
            return Ok(Pace::Closed);
        }
        let period = Duration::from_secs_f64(1.0 / f64::from(rate));
        let schedule =
            Arc::new(Schedule { due: Mutex::new(VecDeque::new()), waiting: Semaphore::new(0) });
        let ticks = AsyncFd::register_with_interest(timer(period)?, Interest::READABLE)?;
        tokio::spawn(Arc::clone(&schedule).fill(ticks, period));
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
    /// Adds what became due. The timer only wakes; the times themselves are exact multiples of the
    /// period, so that a late wake-up counts as latency.
    async fn fill(self: Arc<Self>, ticks: AsyncFd<OwnedFd>, period: Duration) {
        let started = Instant::now();
        let mut next = started + period;
        while !self.waiting.is_closed() {
            let read = ticks.async_io(Interest::READABLE, |timer| {
                let mut expirations = [0; 8];
                Ok(rustix::io::read(timer, &mut expirations)?)
            });
            if read.await.is_err() {
                return;
            }
            let now = Instant::now();
            let mut added = 0;
            let mut due = self.due.lock();
            while next <= now {
                due.push_back(next);
                next += period;
                added += 1;
            }
            drop(due);
            self.waiting.add_permits(added);
        }
    }
}

fn timer(period: Duration) -> Result<OwnedFd> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    let period = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: period, it_value: period },
    )?;
    Ok(timer)
}
