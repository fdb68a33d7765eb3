//! Who waits for room: a line for each tenant, served in turn.
//!
//! All requests cost the same, so that serving one of each line in turn is deficit round robin. A line of a tenant
//! that wants more than its share is kept short as CoDel keeps queues short: when its head has waited for longer than
//! the target all the time for an interval, whoever has is dropped. Time is in microseconds.

use ahash::HashMap;
use std::collections::VecDeque;

/// Bounds of waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Wait that is no sign of trouble, microseconds.
    pub(super) target: u64,
    /// For how long waits have to be above it, microseconds.
    pub(super) interval: u64,
    /// The longest wait of all, microseconds.
    pub(super) max_wait: u64,
    /// Those of one tenant that wait.
    pub(super) line: usize,
    /// All that wait.
    pub(super) all: usize,
}

/// Why one that waits is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait.
    Full,
    /// Those of its tenant, which wants more than its share, have waited for too long all the time.
    Delay,
    /// It has waited for the longest time.
    Timeout,
}

/// Lines of waiting `T`, by a tenant's number.
#[derive(Debug)]
pub(super) struct Queue<T> {
    bounds: Bounds,
    lines: HashMap<usize, Line<T>>,
    /// Whose turn it is; each line once.
    turn: VecDeque<usize>,
    len: usize,
}

#[derive(Debug)]
struct Line<T> {
    waiting: VecDeque<(u64, T)>,
    /// Since when heads have waited for longer than the target.
    above: Option<u64>,
}

impl<T> Queue<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Queue { bounds, lines: HashMap::default(), turn: VecDeque::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts one at the end of its line. `Err`: its line is full, or all of them are.
    pub(super) fn push(&mut self, tenant: usize, now: u64, one: T) -> Result<(), T> {
        let line = self.lines.get(&tenant).map_or(0, |line| line.waiting.len());
        if line >= self.bounds.line || self.len >= self.bounds.all {
            return Err(one);
        }
        let line = self.lines.entry(tenant).or_insert_with(|| {
            self.turn.push_back(tenant);
            Line { waiting: VecDeque::new(), above: None }
        });
        line.waiting.push_back((now, one));
        self.len += 1;
        Ok(())
    }

    /// The next one in turn of those lines whose first `may` go.
    pub(super) fn pop(&mut self, now: u64, may: impl Fn(&T) -> bool) -> Option<T> {
        for _ in 0..self.turn.len() {
            let tenant = self.turn.pop_front()?;
            self.turn.push_back(tenant);
            let Some(line) = self.lines.get_mut(&tenant) else { continue };
            if !line.waiting.front().is_some_and(|(_, one)| may(one)) {
                continue;
            }
            let (since, one) = line.waiting.pop_front()?;
            self.len -= 1;
            if now.saturating_sub(since) <= self.bounds.target {
                line.above = None;
            }
            self.forget_empty(tenant);
            return Some(one);
        }
        None
    }

    fn forget_empty(&mut self, tenant: usize) {
        if self.lines.get(&tenant).is_some_and(|line| line.waiting.is_empty()) {
            self.lines.remove(&tenant);
            self.turn.retain(|other| *other != tenant);
        }
    }

    /// Takes out who came last of the longest of those lines whose first is `over` its share.
    pub(super) fn evict(&mut self, over: impl Fn(&T) -> bool) -> Option<T> {
        let over = |line: &&mut Line<T>| line.waiting.front().is_some_and(|(_, one)| over(one));
        let longest = self.lines.values_mut().filter(over).max_by_key(|line| line.waiting.len())?;
        // Its first stays where it is.
        if longest.waiting.len() < 2 {
            return None;
        }
        let (_, one) = longest.waiting.pop_back()?;
        self.len -= 1;
        Some(one)
    }

    /// Takes out those that have waited for too long: of lines whose first is `over` its share by CoDel's rule, of all by
    /// the longest wait.
    pub(super) fn judge(&mut self, now: u64, over: impl Fn(&T) -> bool) -> Vec<(T, Refused)> {
        let Bounds { target, interval, max_wait, .. } = self.bounds;
        let mut out = Vec::new();
        let mut emptied = Vec::new();
        for (tenant, line) in &mut self.lines {
            let waits = |since: u64| now.saturating_sub(since);
            let head = line.waiting.front().map(|(since, one)| (*since, over(one)));
            line.above = match head {
                Some((since, true)) if waits(since) > target => {
                    Some(line.above.unwrap_or(since + target))
                }
                _ => None,
            };
            let standing = line.above.is_some_and(|above| waits(above) >= interval);
            while let Some((since, _)) = line.waiting.front() {
                let why = if waits(*since) >= max_wait {
                    Refused::Timeout
                } else if standing && waits(*since) > target {
                    Refused::Delay
                } else {
                    break;
                };
                if let Some((_, one)) = line.waiting.pop_front() {
                    self.len -= 1;
                    out.push((one, why));
                }
            }
            if line.waiting.is_empty() {
                emptied.push(*tenant);
            }
        }
        for tenant in emptied {
            self.forget_empty(tenant);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { target: 10, interval: 100, max_wait: 1000, line: 4, all: 6 };

    fn queue(of: &[(usize, u64, &'static str)]) -> Queue<&'static str> {
        let mut queue = Queue::new(BOUNDS);
        for (tenant, at, one) in of {
            queue.push(*tenant, *at, *one).unwrap();
        }
        queue
    }

    fn all(queue: &mut Queue<&'static str>, may: impl Fn(&&str) -> bool) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop(0, &may)).collect()
    }

    #[test]
    fn tenants_take_turns_and_nobody_overtakes_in_a_line() {
        let waiting =
            [(1, 0, "a1"), (1, 0, "a2"), (1, 0, "a3"), (2, 0, "b1"), (3, 0, "c1"), (2, 0, "b2")];
        let mut served = queue(&waiting);
        assert_eq!(all(&mut served, |_| true), ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!(served.len(), 0);
        let mut some = queue(&waiting);
        assert_eq!(all(&mut some, |one| !one.starts_with('a')), ["b1", "c1", "b2"]);
        assert_eq!(all(&mut some, |_| true), ["a1", "a2", "a3"]);
    }

    #[test]
    fn lines_are_bounded_one_by_one_and_together() {
        let mut queue =
            queue(&[(1, 0, "a"), (1, 0, "a"), (1, 0, "a"), (1, 0, "last"), (2, 0, "b")]);
        assert_eq!(queue.push(1, 0, "more"), Err("more"), "of one tenant");
        queue.push(3, 0, "c").unwrap();
        assert_eq!(queue.push(4, 0, "d"), Err("d"), "of all");
        assert_eq!(queue.evict(|one| *one != "a"), None, "lines of one stay");
        assert_eq!(queue.evict(|_| true), Some("last"));
        queue.push(4, 0, "d").unwrap();
        assert_eq!(queue.len(), 6);
    }

    #[test]
    fn a_standing_line_is_cut_to_the_target() {
        let over = |_: &&str| true;
        let mut queue = queue(&[(1, 0, "first"), (1, 60, "second"), (1, 105, "third")]);
        assert!(queue.judge(109, over).is_empty(), "above the target since 10, for less than 100");
        let dropped = queue.judge(110, over);
        assert_eq!(dropped, [("first", Refused::Delay), ("second", Refused::Delay)]);
        assert_eq!(queue.len(), 1);
        // It is still standing: who comes late waits for the target only.
        assert_eq!(queue.judge(116, over), [("third", Refused::Delay)]);
        queue.push(1, 200, "fourth").unwrap();
        assert!(queue.judge(300, over).is_empty(), "an empty line begins anew");
    }

    #[test]
    fn a_line_that_moves_is_left_alone() {
        let over = |_: &&str| true;
        let mut queue = queue(&[(1, 0, "first"), (1, 85, "second")]);
        assert!(queue.judge(90, over).is_empty());
        assert_eq!(queue.pop(90, |_| true), Some("first"));
        assert!(queue.judge(94, over).is_empty());
        assert_eq!(queue.pop(94, |_| true), Some("second"));
        queue.push(1, 100, "third").unwrap();
        assert!(queue.judge(115, over).is_empty());
    }

    #[test]
    fn within_its_share_a_tenant_waits_for_the_longest_time() {
        let mut queue = queue(&[(1, 0, "first"), (1, 500, "second")]);
        assert!(queue.judge(999, |_| false).is_empty());
        assert_eq!(queue.judge(1000, |_| false), [("first", Refused::Timeout)]);
        assert_eq!(queue.pop(1000, |_| true), Some("second"));
    }

    proptest! {
        /// However it is used: nothing is lost, nobody overtakes, and the turn has each line once.
        #[test]
        fn it_is_consistent(
            steps in prop::collection::vec((0_u8..4, 0_usize..4, 0_u64..60), 0..200),
        ) {
            let mut queue = Queue::new(BOUNDS);
            let (mut now, mut next) = (0, 0_u64);
            let mut inside: HashMap<usize, Vec<u64>> = HashMap::default();
            for (what, tenant, passed) in steps {
                now += passed;
                match what {
                    0 | 1 => if queue.push(tenant, now, (tenant, next)).is_ok() {
                        inside.entry(tenant).or_default().push(next);
                        next += 1;
                    },
                    2 => if let Some((tenant, one)) = queue.pop(now, |(of, _)| *of != 3) {
                        prop_assert_eq!(inside.get_mut(&tenant).unwrap().remove(0), one);
                    },
                    _ => for ((tenant, one), why) in queue.judge(now, |(of, _)| *of != 0) {
                        prop_assert!(tenant != 0 || why == Refused::Timeout);
                        prop_assert_eq!(inside.get_mut(&tenant).unwrap().remove(0), one);
                    },
                }
                prop_assert_eq!(queue.len(), inside.values().map(Vec::len).sum::<usize>());
                prop_assert!(queue.len() <= BOUNDS.all);
                let mut turn: Vec<_> = queue.turn.iter().copied().collect();
                turn.sort_unstable();
                let mut lines: Vec<_> = queue.lines.keys().copied().collect();
                lines.sort_unstable();
                prop_assert_eq!(turn, lines);
            }
        }
    }
}
