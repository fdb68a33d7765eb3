//! The exact integral over time of how much is under way.
//!
//! Kept are the weight of what is under way, and the sum of the moments at which things ended minus
//! the sum of those at which they began, each times its weight. At any moment `t` the integral is
//! `sum + weight × t`: what is still under way counts up to `t`, so the difference of two readings is
//! exact for requests that live through both. A tick is a microsecond; sums wrap, and their
//! differences do not care.
//!
//! `weight` and `sum` have to be read as a pair. A change counts itself before and after; a reader
//! takes a pair only if all changes that had begun by its end were over by its beginning, and looks
//! again otherwise. Who changes never waits for anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Weight of a request.
pub(crate) const REQUEST: u64 = 10;
/// Weight of an opaque connection, and of a request that became one: it is mostly idle.
pub(crate) const STREAM: u64 = 1;
/// Microseconds of a second.
const TICKS: f64 = 1e6;

/// Ticks since a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.ticks(Instant::now())
    }

    pub(crate) fn ticks(self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }
}

/// One worker's numbers. Aligned so that two workers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Cell {
    begun: AtomicU64,
    weight: AtomicU64,
    sum: AtomicU64,
    done: AtomicU64,
    ended: AtomicU64,
    shed: AtomicU64,
    bytes: AtomicU64,
}

impl Cell {
    pub(crate) fn begin(&self, at: u64, weight: u64) {
        self.change(weight, at.wrapping_mul(weight).wrapping_neg());
    }

    pub(crate) fn end(&self, at: u64, weight: u64) {
        self.change(weight.wrapping_neg(), at.wrapping_mul(weight));
    }

    /// Each step is visible to whoever sees the one after it.
    fn change(&self, weight: u64, sum: u64) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.weight.fetch_add(weight, Ordering::Release);
        self.sum.fetch_add(sum, Ordering::Release);
        self.done.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn count_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Reading {
        loop {
            let done = self.done.load(Ordering::Acquire);
            let weight = self.weight.load(Ordering::Acquire);
            let sum = self.sum.load(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) == done {
                return Reading {
                    weight,
                    sum,
                    requests: self.ended.load(Ordering::Relaxed),
                    shed: self.shed.load(Ordering::Relaxed),
                    bytes: self.bytes.load(Ordering::Relaxed),
                };
            }
            // A change takes nanoseconds, unless its thread was put aside.
            std::thread::yield_now();
        }
    }
}

/// Numbers of one or several cells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    weight: u64,
    sum: u64,
    requests: u64,
    shed: u64,
    bytes: u64,
}

/// What a [`Reading`] comes to at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Under way: requests, and a tenth for each opaque connection.
    pub in_flight: f64,
    /// Its integral over time, in seconds.
    pub in_flight_seconds: f64,
    /// Ended.
    pub requests: u64,
    /// Refused for lack of room.
    pub shed: u64,
    /// Bytes of bodies and of opaque connections, both ways.
    pub bytes: u64,
}

impl Reading {
    pub(crate) fn plus(self, other: &Reading) -> Reading {
        Reading {
            weight: self.weight.wrapping_add(other.weight),
            sum: self.sum.wrapping_add(other.sum),
            requests: self.requests.wrapping_add(other.requests),
            shed: self.shed.wrapping_add(other.shed),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.weight == 0
    }

    pub(crate) fn at(&self, ticks: u64) -> Totals {
        let integral = self.sum.wrapping_add(self.weight.wrapping_mul(ticks));
        Totals {
            in_flight: self.weight as f64 / REQUEST as f64,
            in_flight_seconds: integral as f64 / (REQUEST as f64 * TICKS),
            requests: self.requests,
            shed: self.shed,
            bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(cell: &Cell, at: u64) -> f64 {
        cell.read().at(at).in_flight_seconds
    }

    #[test]
    fn what_lives_through_two_readings_counts_for_the_time_between() {
        let cell = Cell::default();
        for _ in 0..5 {
            cell.begin(1_000_000, REQUEST);
        }
        assert_eq!(cell.read().at(1_000_000).in_flight, 5.0);
        assert_eq!(seconds(&cell, 3_000_000), 10.0);
        assert_eq!(seconds(&cell, 3_000_001), 10.000_005);
        cell.end(4_000_000, REQUEST);
        assert_eq!(seconds(&cell, 5_000_000), 3.0 + 4.0 * 4.0);
        for _ in 0..4 {
            cell.end(5_000_000, REQUEST);
        }
        assert_eq!(seconds(&cell, 5_000_000), 19.0);
        assert_eq!(seconds(&cell, 99_000_000), 19.0, "nothing is under way");
    }

    #[test]
    fn a_request_that_becomes_a_stream_weighs_a_tenth() {
        let cell = Cell::default();
        cell.begin(0, REQUEST);
        cell.end(1_000_000, REQUEST - STREAM);
        assert_eq!(cell.read().at(1_000_000).in_flight, 0.1);
        assert_eq!(seconds(&cell, 11_000_000), 2.0);
        cell.end(11_000_000, STREAM);
        assert!(cell.read().is_idle());
    }

    #[test]
    fn years_of_many_requests_do_not_overflow() {
        let cell = Cell::default();
        let ten_years = 10 * 365 * 24 * 3600 * 1_000_000_u64;
        for _ in 0..1000 {
            cell.begin(0, REQUEST);
        }
        let expected = 1000.0 * ten_years as f64 / TICKS;
        assert_eq!(seconds(&cell, ten_years), expected);
    }

    proptest! {
        /// The integral is that of the plain sum, at any moment.
        #[test]
        fn it_is_the_sum_of_what_each_took(
            spans in prop::collection::vec((0_u64..1000, 0_u64..1000), 0..50),
            at in 0_u64..3000,
        ) {
            let cell = Cell::default();
            let mut events: Vec<(u64, bool)> = Vec::new();
            let mut expected = 0;
            for (begin, length) in spans {
                events.push((begin, true));
                events.push((begin + length, false));
                expected += (begin + length).min(at).saturating_sub(begin);
            }
            // At one moment: begins first.
            events.sort_by_key(|(at, begins)| (*at, !begins));
            for (moment, begins) in events.into_iter().filter(|(moment, _)| *moment <= at) {
                if begins { cell.begin(moment, REQUEST) } else { cell.end(moment, REQUEST) }
            }
            let found = cell.read().at(at).in_flight_seconds;
            prop_assert!((found - expected as f64 / TICKS).abs() < 1e-9);
        }
    }

    /// With torn pairs the integral would be off by the clock itself.
    #[test]
    fn readers_never_see_half_a_change() {
        const THREADS: u64 = 3;
        let cell = Cell::default();
        let clock = Clock::start();
        // As after years, so that a pair that does not fit shows.
        let far = 1 << 48;
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        cell.begin(far + clock.now(), REQUEST);
                        cell.end(far + clock.now(), REQUEST);
                    }
                });
            }
            let mut before = 0.0;
            for _ in 0..2_000 {
                let reading = cell.read();
                let now = clock.now();
                let found = reading.at(far + now).in_flight_seconds;
                assert!(reading.weight <= THREADS * REQUEST);
                let most = (THREADS * now) as f64 / TICKS;
                assert!(found >= before - most && found <= most, "{found} of {most}");
                before = found;
            }
        });
        assert!(cell.read().is_idle());
    }
}
