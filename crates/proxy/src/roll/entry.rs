//! One open tunnel as those who end tunnels see it.
//!
//! A tunnel is open, then told to end, then perhaps cut; it never goes back. Its own task waits for that, and nobody
//! else does, so that no two workers meet at a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

const OPEN: u8 = 0;
const TOLD: u8 = 1;
const CUT: u8 = 2;

/// What `quiet` is while a request is under way.
const BUSY: u64 = u64::MAX;

/// By how much an age differs from the configured one at most, in parts of it.
const JITTER: f64 = 0.2;

/// What a tunnel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Carries {
    /// Not known yet.
    Unknown = 0,
    /// Requests, by HTTP/1.1 or HTTP/2.
    Http = 1,
    /// Bytes of which the proxy knows no beginning and no end: TCP, and what a request was upgraded to.
    Opaque = 2,
}

/// An open tunnel.
#[derive(Debug)]
pub(crate) struct Entry {
    state: AtomicU8,
    changed: Notify,
    carries: AtomicU8,
    /// Microseconds at which the last request ended; [`BUSY`]: one is under way.
    quiet: AtomicU64,
    /// Microseconds at which it was opened.
    born: u64,
    /// Its place in everything that is spread over time, below 1.
    draw: f64,
}

impl Entry {
    /// A tunnel that opens at `born`; `draw` is from 0 up to 1.
    pub(crate) fn new(born: u64, draw: f64) -> Self {
        Entry {
            state: AtomicU8::new(OPEN),
            changed: Notify::new(),
            carries: AtomicU8::new(Carries::Unknown as u8),
            quiet: AtomicU64::new(born),
            born,
            draw,
        }
    }

    pub(crate) fn set_carries(&self, carries: Carries) {
        self.carries.store(carries as u8, Ordering::Relaxed);
    }

    pub(crate) fn is_http(&self) -> bool {
        self.carries.load(Ordering::Relaxed) == Carries::Http as u8
    }

    /// A request is under way.
    pub(crate) fn busy(&self) {
        self.quiet.store(BUSY, Ordering::Relaxed);
    }

    /// None is under way since `at`.
    pub(crate) fn quiet(&self, at: u64) {
        self.quiet.store(at, Ordering::Relaxed);
    }

    /// Microseconds at which its last request ended; `None`: one is under way.
    pub(crate) fn quiet_since(&self) -> Option<u64> {
        Some(self.quiet.load(Ordering::Relaxed)).filter(|since| *since != BUSY)
    }

    pub(crate) fn draw(&self) -> f64 {
        self.draw
    }

    /// Microseconds at which it was opened.
    pub(crate) fn born(&self) -> u64 {
        self.born
    }

    /// Whether it is as old as `age`, more or less, at `now`.
    pub(crate) fn is_aged(&self, now: u64, age: Duration) -> bool {
        let age = age.as_micros() as f64 * (1.0 - JITTER + 2.0 * JITTER * self.draw);
        now.saturating_sub(self.born) as f64 >= age
    }

    fn advance(&self, to: u8) -> bool {
        let before = self.state.fetch_max(to, Ordering::AcqRel);
        if before < to {
            self.changed.notify_waiters();
        }
        before < to
    }

    /// It is to end when what is under way is over. `false`: it knew.
    pub(crate) fn tell(&self) -> bool {
        self.advance(TOLD)
    }

    /// It is to end at once.
    pub(crate) fn cut(&self) -> bool {
        self.advance(CUT)
    }

    fn has(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) >= state
    }

    pub(crate) fn is_told(&self) -> bool {
        self.has(TOLD)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.has(CUT)
    }

    async fn until(&self, state: u8) {
        loop {
            // Made first: it learns of every change from here on.
            let changed = self.changed.notified();
            if self.has(state) {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when it is to end.
    pub(crate) async fn told(&self) {
        self.until(TOLD).await;
    }

    /// Resolves when it is to end at once.
    pub(crate) async fn cut_short(&self) {
        self.until(CUT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::pin::pin;

    #[test]
    fn what_is_told_and_cut_is_learnt_in_any_order() {
        let entry = Entry::new(0, 0.5);
        let mut told = pin!(entry.told());
        let mut cut = pin!(entry.cut_short());
        assert!(told.as_mut().now_or_never().is_none() && cut.as_mut().now_or_never().is_none());
        assert!(entry.tell() && !entry.tell());
        assert!(told.now_or_never().is_some() && entry.told().now_or_never().is_some());
        assert!(cut.as_mut().now_or_never().is_none() && !entry.is_cut());
        assert!(entry.cut() && !entry.cut() && !entry.tell());
        assert!(cut.now_or_never().is_some() && entry.is_told());
        let late = Entry::new(0, 0.5);
        assert!(late.cut() && late.told().now_or_never().is_some(), "cut is told, too");
    }

    #[test]
    fn ages_lie_a_fifth_around_the_bound() {
        let age = Duration::from_micros(1000);
        for (draw, first) in [(0.0, 800), (0.5, 1000), (0.999, 1200)] {
            let entry = Entry::new(50, draw);
            assert!(!entry.is_aged(50 + first - 1, age), "{draw}");
            assert!(entry.is_aged(50 + first, age), "{draw}");
        }
    }

    #[test]
    fn a_tunnel_is_quiet_between_requests() {
        let entry = Entry::new(7, 0.0);
        assert_eq!(entry.quiet_since(), Some(7));
        entry.busy();
        assert_eq!(entry.quiet_since(), None);
        entry.quiet(9);
        assert_eq!(entry.quiet_since(), Some(9));
    }
}
