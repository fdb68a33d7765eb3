//! The wait before the next stream.

use std::time::Duration;

use super::config::Backoff;

/// Knows how the last streams went.
#[derive(Debug)]
pub(super) struct Waits {
    settings: Backoff,
    next: Duration,
}

impl Waits {
    pub(super) fn new(settings: Backoff) -> Self {
        Waits { settings, next: settings.first }
    }

    /// The wait after a stream. `lived` is how long one was there that was answered; `chance` is in `0.0..1.0`.
    pub(super) fn after(&mut self, lived: Option<Duration>, chance: f64) -> Duration {
        let Backoff { first, longest, healthy } = self.settings;
        if lived.is_some_and(|lived| lived >= healthy) {
            self.next = first;
        }
        let wait = self.next.min(longest);
        self.next = wait.saturating_mul(2).min(longest);
        wait.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn doubles_up_to_the_longest_and_begins_again_after_a_healthy_stream() {
        let mut waits = Waits::new(Backoff::default());
        let unlucky: Vec<Duration> = (0..10).map(|_| waits.after(None, 0.0)).collect();
        assert_eq!(unlucky.first(), Some(&(100 * MS)));
        assert_eq!(unlucky.get(3), Some(&(800 * MS)));
        assert_eq!(unlucky.last(), Some(&(30_000 * MS)));
        let short = waits.after(Some(Duration::from_secs(9)), 0.0);
        assert_eq!(short, 30_000 * MS, "a stream that lives shortly is not healthy");
        assert_eq!(waits.after(Some(Duration::from_secs(10)), 0.0), 100 * MS);
        assert_eq!(waits.after(None, 0.0), 200 * MS);
    }

    #[test]
    fn chance_cuts_up_to_half() {
        let wait = |chance| Waits::new(Backoff::default()).after(None, chance);
        assert_eq!(wait(0.0), 100 * MS);
        assert_eq!(wait(0.5), 75 * MS);
        assert!(wait(0.999) >= 50 * MS);
    }
}
