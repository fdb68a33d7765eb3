//! New tunnels are refused before the kernel ends the process for its memory.
//!
//! The limit is the control group's, or what kubelet passes on in `GOMEMLIMIT`, whichever is lower; what
//! is used is the process' resident memory, because it is alone in its container. Tunnels that are open
//! go on: what they need is bounded by their buffers.

use crate::cgroup;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often memory is looked at.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// So many percent of the limit above refusing begins what gives memory back.
pub const NEXT_STEP: u64 = 5;
/// Refusing ends so many percent of the limit below where it began.
const HYSTERESIS_PERCENT: u64 = 5;

/// Bytes in use, for the metrics.
#[derive(Debug, Clone, Default)]
pub struct Used(Arc<AtomicU64>);

/// Decides whether tunnels are refused.
#[derive(Debug)]
pub struct MemoryGuard {
    limit: u64,
    begin: u64,
    end: u64,
    refusing: bool,
}

impl Used {
    /// At the last look.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks again.
    pub fn look(&self) -> Option<u64> {
        let used = resident(Path::new("/proc/self/statm"))?;
        self.0.store(used, Ordering::Relaxed);
        Some(used)
    }
}

impl MemoryGuard {
    /// Refuses above so many percent of `limit`; 100 or more: never.
    pub fn new(limit: u64, percent: u64) -> Option<Self> {
        if percent >= 100 || limit == 0 {
            return None;
        }
        let part = |percent: u64| limit / 100 * percent;
        Some(MemoryGuard {
            limit,
            begin: part(percent),
            end: part(percent.saturating_sub(HYSTERESIS_PERCENT)),
            refusing: false,
        })
    }

    /// What the decision is with so many bytes in use, when it changes.
    pub fn decide(&mut self, used: u64) -> Option<bool> {
        let refusing = if self.refusing { used > self.end } else { used > self.begin };
        let changed = refusing != self.refusing;
        self.refusing = refusing;
        changed.then_some(refusing)
    }

    /// The limit, bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Above so many bytes tunnels are refused.
    pub fn threshold(&self) -> u64 {
        self.begin
    }
}

/// The lowest limit that is known.
pub fn limit(told: Option<u64>) -> Option<u64> {
    let group = cgroup::memory_limit(Path::new("/"));
    group.into_iter().chain(told.filter(|told| *told > 0)).min()
}

/// Second number of `/proc/self/statm`, pages.
fn resident(statm: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(statm).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn refusing_begins_above_and_ends_well_below() {
        let mut guard = MemoryGuard::new(1000, 85).unwrap();
        let decisions = [800, 850, 851, 849, 801, 800, 850, 900].map(|used| guard.decide(used));
        let expected = [None, None, Some(true), None, None, Some(false), None, Some(true)];
        assert_eq!(decisions, expected);
        assert_eq!((guard.limit(), guard.threshold()), (1000, 850));
        assert!(MemoryGuard::new(1000, 100).is_none());
        assert!(MemoryGuard::new(0, 85).is_none());
    }

    #[test]
    fn the_lowest_limit_counts() {
        assert_eq!(limit(Some(1)), Some(1));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_in_use_is_found() {
        let used = Used::default();
        assert!(used.look().unwrap() > 1 << 20);
        assert!(used.get() > 1 << 20);
    }
}
