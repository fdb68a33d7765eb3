//! When to try again, and when to renew.

use std::time::{Duration, SystemTime};

/// The pause after the first failure that may pass (Istio's agent: 100 ms).
const FIRST: Duration = Duration::from_millis(100);
/// The pause after the first failure that needs somebody to change something.
const FIRST_SLOW: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(15);
/// How far a renewal moves at random, as a part of the certificate's life (Istio's agent: 0.01).
const RENEWAL_JITTER: f64 = 0.01;
/// Shortest time between two issues.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(100);

/// Pauses between tries: each about twice the one before, cut at random by up to a half so that many proxies that lost
/// the same istiod do not come back together.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure.
    pub(super) fn next(&mut self, may_pass: bool) -> Duration {
        let first = if may_pass { FIRST } else { FIRST_SLOW };
        let factor = 2u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        first.saturating_mul(factor).min(LONGEST).mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// When to renew a certificate that is valid from `not_before` to `not_after`: when `ratio` of its life is left, a little
/// earlier or later at random. One that is issued with less than that left is renewed after half of what it has.
pub(super) fn renewal(
    not_before: SystemTime,
    not_after: SystemTime,
    ratio: f64,
    now: SystemTime,
) -> SystemTime {
    let ratio = if ratio.is_nan() { super::DEFAULT_GRACE_RATIO } else { ratio };
    let ratio = ratio + rand::random_range(-RENEWAL_JITTER..=RENEWAL_JITTER);
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let grace = life.mul_f64(ratio.clamp(0.0, 1.0));
    let due = not_after.checked_sub(grace).unwrap_or(now);
    let left = not_after.duration_since(now).unwrap_or_default();
    let due = if due > now { due } else { now + left / 2 };
    due.max(now + SHORTEST_RENEWAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        for step in 0..40u32 {
            let full = FIRST.saturating_mul(2u32.saturating_pow(step)).min(LONGEST);
            let pause = backoff.next(true);
            assert!(pause >= full / 2 && pause <= full, "{step}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.next(true) <= FIRST);
        backoff.reset();
        assert!(backoff.next(false) >= FIRST_SLOW / 2);
    }

    #[test]
    fn renewed_when_a_part_of_its_life_is_left() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let end = begin + hours(100);
        for (ratio, from, to) in [(0.5, 49, 51), (0.2, 79, 81), (0.0, 99, 100), (f64::NAN, 49, 51)]
        {
            let due = renewal(begin, end, ratio, begin);
            assert!(due >= begin + hours(from) && due <= begin + hours(to), "{ratio}: {due:?}");
        }
        // Most of its life was over when it came, or the ratio is the whole life: no renewal without a pause.
        assert_eq!(renewal(begin, end, 0.5, begin + hours(80)), begin + hours(90));
        assert_eq!(renewal(begin, end, 2.0, begin), begin + hours(50));
        // It has ended.
        assert_eq!(renewal(begin, end, 0.5, end + hours(1)), end + hours(1) + SHORTEST_RENEWAL);
    }
}
