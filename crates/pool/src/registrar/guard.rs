//! How many members may be given up because nobody answers: the registrar may be the one that is cut off.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time over which members are counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Most members that may be given up in it, of a hundred.
pub const MOST_PERCENT: usize = 30;

/// What was given up lately.
#[derive(Debug, Default)]
pub struct Guard {
    given_up: VecDeque<Instant>,
}

impl Guard {
    /// Whether one more of so many members may be given up, of which so many answer. Of three and fewer one may, while
    /// another answers; where nobody answers nobody is given up.
    pub fn admits(&mut self, now: Instant, members: usize, answering: usize) -> bool {
        while self.given_up.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            self.given_up.pop_front();
        }
        let most = (members * MOST_PERCENT / 100).max(1);
        let admits = answering > 0 && self.given_up.len() < most;
        if admits {
            self.given_up.push_back(now);
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_members_within_a_minute() {
        // Members, answering, how many of them want to be given up at once, how many are.
        for (members, answering, asked, given_up) in [
            (1, 0, 1, 0),
            (2, 1, 1, 1),
            (3, 1, 2, 1),
            (4, 2, 2, 1),
            (10, 5, 5, 3),
            (10, 0, 10, 0),
            (100, 1, 99, 30),
        ] {
            let mut guard = Guard::default();
            let now = Instant::now();
            let admitted = (0..asked).filter(|_| guard.admits(now, members, answering)).count();
            assert_eq!(admitted, given_up, "{asked} of {members}");
            if given_up > 0 {
                assert!(!guard.admits(now + WINDOW - Duration::from_secs(1), members, answering));
                assert!(guard.admits(now + WINDOW, members, answering), "and later again");
            }
        }
    }
}
