//! Who may have room, as a question of numbers.

use crate::load::REQUEST;

/// Parts of a hundred of the capacity up to which a tenant may have more than its share while others are active.
const SHARED: u64 = 80;
/// Parts of a hundred that it may have at most, then.
const MOST: u64 = 50;

/// The numbers by which something is let in, or not. Units are tenths of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Of the process.
    pub(super) capacity: u64,
    /// Under way of all tenants, with what is to be let in.
    pub(super) used: u64,
    /// Of that, its own tenant's.
    pub(super) own: u64,
    /// Tenants that are active.
    pub(super) active: u64,
}

impl Room {
    /// What each active tenant may always have; room for one request at least.
    pub(super) fn share(self) -> u64 {
        (self.capacity / self.active.max(1)).max(REQUEST)
    }

    pub(super) fn is_within_share(self) -> bool {
        self.own <= self.share()
    }

    /// Whether there is room. A tenant within its share has all of the capacity; one beyond leaves some of it to those
    /// that are not, if there are any.
    pub(super) fn fits(self) -> bool {
        let Room { capacity, used, own, active } = self;
        if used > capacity {
            return false;
        }
        let free = used * 100 <= capacity * SHARED && own * 100 <= capacity * MOST;
        self.is_within_share() || active <= 1 || free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_and_what_is_free_is_used() {
        // capacity of 10 requests; used and own are with the one that asks.
        for (what, active, used, own, expected) in [
            ("alone", 1, 100, 100, true),
            ("alone and beyond", 1, 110, 110, false),
            ("within its share of a half", 2, 100, 50, true),
            ("beyond half of all", 2, 60, 60, false),
            ("within its share, but full", 2, 110, 20, false),
            ("beyond its share of a quarter, free", 4, 80, 50, true),
            ("beyond its share, and the rest is for others", 4, 90, 30, false),
            ("within its share, in what is kept for it", 4, 100, 20, true),
            ("beyond half of all, free", 4, 60, 60, false),
            ("more tenants than requests: one each", 50, 100, 10, true),
            ("more tenants than requests: no second one", 50, 90, 20, false),
        ] {
            let room = Room { capacity: 100, used, own, active };
            assert_eq!(room.fits(), expected, "{what}");
        }
    }
}
