//! The roll of open tunnels, and who of them is to end.
//!
//! A tunnel is entered once, in the list of its worker, and struck off when it is over; of a request it only
//! learns that one is under way, or none. Whoever ends tunnels (a drain, their age, a rebalance, want of memory) walks
//! the lists and tells some of them. The tunnel does the rest: GOAWAY where it carries HTTP/2, `connection: close` on
//! the next response where it carries HTTP/1.1, and neither loses a request.

mod entry;

pub(crate) use entry::{Carries, Entry};

use crate::load::Clock;
use ahash::HashMap;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// By where the entry is in memory.
type List = Mutex<HashMap<usize, Arc<Entry>>>;

/// All open tunnels of an instance.
#[derive(Debug)]
pub(crate) struct Roll {
    clock: Clock,
    lists: OnceLock<Box<[List]>>,
    /// Those that are entered from here on are told at once.
    ending: AtomicBool,
    /// And cut at once.
    cutting: AtomicBool,
    /// HTTP/1.1 ends with each response, and what has no request under way ends.
    without_keep_alive: AtomicBool,
}

/// A tunnel that is on the roll until this is dropped.
#[derive(Debug)]
pub(crate) struct Enrolled {
    roll: Arc<Roll>,
    worker: usize,
    entry: Arc<Entry>,
}

impl Roll {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Roll {
            clock: Clock::start(),
            lists: OnceLock::new(),
            ending: AtomicBool::new(false),
            cutting: AtomicBool::new(false),
            without_keep_alive: AtomicBool::new(false),
        })
    }

    /// One list for each worker. Their number does not change afterwards.
    pub(crate) fn prepare(&self, workers: usize) {
        self.lists.get_or_init(|| (0..workers.max(1)).map(|_| List::default()).collect());
    }

    fn lists(&self) -> &[List] {
        self.lists.get_or_init(|| Box::new([List::default()]))
    }

    /// Microseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    pub(crate) fn enter(self: &Arc<Self>, worker: usize) -> Enrolled {
        let lists = self.lists();
        let worker = worker % lists.len();
        let entry = Arc::new(Entry::new(self.now(), rand::random()));
        lists[worker].lock().insert(Arc::as_ptr(&entry) as usize, Arc::clone(&entry));
        // Looked at when it is on the list already, so that either this or who walks the lists tells it.
        if self.ending.load(Ordering::SeqCst) {
            entry.tell();
        }
        if self.cutting.load(Ordering::SeqCst) {
            entry.cut();
        }
        Enrolled { roll: Arc::clone(self), worker, entry }
    }

    /// Calls `visit` with each tunnel.
    fn each(&self, mut visit: impl FnMut(&Arc<Entry>)) {
        for list in self.lists() {
            list.lock().values().for_each(&mut visit);
        }
    }

    /// Tells those whose time has come when `passed` of `spread` has: all of them, and those to come, at its end.
    pub(crate) fn tell_due(&self, passed: Duration, spread: Duration) {
        let over = passed >= spread;
        if over {
            self.ending.store(true, Ordering::SeqCst);
        }
        let part = passed.as_secs_f64() / spread.as_secs_f64();
        self.each(|entry| {
            if over || entry.draw() < part {
                entry.tell();
            }
        });
    }

    /// Cuts all of them and those to come. Returns how many carry requests, and how many anything else.
    pub(crate) fn cut(&self) -> (usize, usize) {
        self.cutting.store(true, Ordering::SeqCst);
        let (mut http, mut other) = (0, 0);
        self.each(|entry| {
            if entry.cut() {
                if entry.is_http() { http += 1 } else { other += 1 }
            }
        });
        (http, other)
    }

    /// Tells tunnels of requests that are as old as `age`. Returns how many.
    pub(crate) fn tell_aged(&self, age: Duration) -> usize {
        let now = self.now();
        let mut told = 0;
        self.each(|entry| {
            told += usize::from(entry.is_http() && entry.is_aged(now, age) && entry.tell());
        });
        told
    }

    /// Tells up to `count` tunnels of requests, the least recently used first. Returns how many.
    pub(crate) fn tell_some(&self, count: usize) -> usize {
        let mut found = Vec::new();
        self.each(|entry| {
            if entry.is_http() && !entry.is_told() {
                found.push((entry.quiet_since(), entry.born(), Arc::clone(entry)));
            }
        });
        // `None` is in use; of those the oldest first.
        found.sort_by_key(|(quiet, born, _)| (quiet.is_none(), *quiet, *born));
        found.iter().take(count).filter(|(.., entry)| entry.tell()).count()
    }

    /// Whether HTTP/1.1 is without keep-alive from here on.
    pub(crate) fn end_keep_alive(&self, end: bool) {
        self.without_keep_alive.store(end, Ordering::Relaxed);
        self.tell_quiet();
    }

    pub(crate) fn ends_keep_alive(&self) -> bool {
        self.without_keep_alive.load(Ordering::Relaxed)
    }

    /// Where keep-alive ends: tells the tunnels of requests in which none is under way.
    pub(crate) fn tell_quiet(&self) {
        if self.ends_keep_alive() {
            self.each(|entry| {
                if entry.is_http() && entry.quiet_since().is_some() {
                    entry.tell();
                }
            });
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lists().iter().map(|list| list.lock().len()).sum()
    }
}

impl Enrolled {
    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.roll.lists()[self.worker].lock().remove(&(Arc::as_ptr(&self.entry) as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(roll: &Arc<Roll>, worker: usize) -> Enrolled {
        let enrolled = roll.enter(worker);
        enrolled.entry().set_carries(Carries::Http);
        enrolled
    }

    fn told(of: &[Enrolled]) -> Vec<bool> {
        of.iter().map(|one| one.entry().is_told()).collect()
    }

    #[test]
    fn a_tunnel_is_on_the_roll_while_it_is_open() {
        let roll = Roll::new();
        roll.prepare(2);
        let (one, two) = (roll.enter(0), roll.enter(3));
        assert_eq!(roll.len(), 2);
        drop(one);
        assert_eq!(roll.len(), 1);
        drop(two);
        assert_eq!(roll.len(), 0);
    }

    #[test]
    fn a_spread_tells_each_in_its_time_and_all_at_the_end() {
        let roll = Roll::new();
        roll.prepare(3);
        let open: Vec<_> = (0..1000).map(|number| roll.enter(number)).collect();
        let spread = Duration::from_secs(20);
        let mut last = 0;
        for second in 0..20 {
            roll.tell_due(Duration::from_secs(second), spread);
            let count = told(&open).iter().filter(|told| **told).count();
            let due = 50 * second as usize;
            assert!(count >= last && count.abs_diff(due) < 100, "{count} after {second} s");
            last = count;
        }
        assert!(!roll.enter(0).entry().is_cut());
        roll.tell_due(spread, spread);
        assert!(told(&open).iter().all(|told| *told));
        assert!(roll.enter(0).entry().is_told(), "those that come later, too");
    }

    #[test]
    fn without_a_spread_all_are_told_at_once() {
        let roll = Roll::new();
        let open = [roll.enter(0), http(&roll, 0)];
        roll.tell_due(Duration::ZERO, Duration::ZERO);
        assert_eq!(told(&open), [true, true]);
    }

    #[test]
    fn the_least_recently_used_of_requests_go_first() {
        let roll = Roll::new();
        roll.prepare(2);
        let open: Vec<_> = (0..4).map(|number| http(&roll, number)).collect();
        let tcp = roll.enter(0);
        tcp.entry().set_carries(Carries::Opaque);
        open[0].entry().busy();
        for (number, quiet) in [(1, 300), (2, 100), (3, 200)] {
            open[number].entry().quiet(quiet);
        }
        assert_eq!(roll.tell_some(1), 1);
        assert_eq!(told(&open), [false, false, true, false]);
        assert_eq!(roll.tell_some(2), 2);
        assert_eq!(told(&open), [false, true, true, true]);
        assert_eq!(roll.tell_some(5), 1, "the one in use last");
        assert_eq!(roll.tell_some(5), 0);
        assert!(!tcp.entry().is_told());
    }

    #[test]
    fn only_tunnels_of_requests_grow_old() {
        let roll = Roll::new();
        let open = [http(&roll, 0), roll.enter(0)];
        assert_eq!(roll.tell_aged(Duration::from_secs(3600)), 0);
        assert_eq!(roll.tell_aged(Duration::ZERO), 1);
        assert_eq!(roll.tell_aged(Duration::ZERO), 0, "it knows");
        assert_eq!(told(&open), [true, false]);
    }

    #[test]
    fn without_keep_alive_what_is_quiet_ends() {
        let roll = Roll::new();
        let open = [http(&roll, 0), http(&roll, 0)];
        open[1].entry().busy();
        roll.tell_quiet();
        assert_eq!(told(&open), [false, false]);
        roll.end_keep_alive(true);
        assert_eq!(told(&open), [true, false]);
        open[1].entry().quiet(1);
        roll.tell_quiet();
        assert_eq!(told(&open), [true, true]);
        roll.end_keep_alive(false);
        assert!(!roll.ends_keep_alive());
    }

    #[test]
    fn a_cut_says_what_was_cut() {
        let roll = Roll::new();
        let open = [http(&roll, 0), http(&roll, 0), roll.enter(0)];
        assert_eq!(roll.cut(), (2, 1));
        assert_eq!(roll.cut(), (0, 0));
        assert!(open.iter().all(|one| one.entry().is_cut()));
        assert!(roll.enter(0).entry().is_cut());
    }
}
