//! Random numbers that a seed repeats: SplitMix64.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A sequence of numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    /// A seed that nobody chose.
    pub fn any_seed() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Random(now.as_micros() as u64 ^ u64::from(std::process::id())).next() % 1_000_000
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A sequence of its own for somebody else.
    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }

    /// From 0 to `end` without it; 0 where that is empty.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    /// A duration of the range.
    pub fn between(&mut self, range: &Range<Duration>) -> Duration {
        let width = range.end.saturating_sub(range.start).as_micros() as u64;
        range.start + Duration::from_micros(self.next() % width.max(1))
    }

    /// One of those with a weight, as often as its weight says; `None`: all have none.
    pub fn weighted<T: Copy>(&mut self, all: &[(T, u32)]) -> Option<T> {
        let sum: u64 = all.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = if sum == 0 { return None } else { self.next() % sum };
        for (one, weight) in all {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Some(*one),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept() {
        let mut random = Random::seeded(1);
        let all = [("a", 1), ("b", 0), ("c", 3)];
        let mut counts = [0; 3];
        for _ in 0..4000 {
            let one = random.weighted(&all).unwrap();
            let place = all.iter().position(|(name, _)| *name == one).unwrap();
            counts[place] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
        assert_eq!(random.weighted(&[("a", 0)]), None);
        assert_eq!(random.weighted::<&str>(&[]), None);
    }

    #[test]
    fn a_seed_repeats_its_sequence() {
        let (mut one, mut other) = (Random::seeded(7), Random::seeded(7));
        let range = Duration::from_millis(5)..Duration::from_millis(9);
        for _ in 0..100 {
            assert_eq!(one.below(10), other.below(10));
            let pause = one.between(&range);
            assert!(range.contains(&pause));
            assert_eq!(pause, other.between(&range));
        }
        assert_ne!(one.fork().next(), one.fork().next());
    }
}
