//! When the process began: at exec, by the kernel, so that loading and what comes before `main`
//! count. Where it does not say, when it was asked.

use std::path::Path;
use std::time::{Duration, Instant};

/// A process older than this at its first question does not start, and is told wrongly.
const OLDEST: Duration = Duration::from_secs(600);

/// When the process began.
#[derive(Debug, Clone, Copy)]
pub struct Began(Instant);

impl Began {
    /// Of this process, to 10 ms.
    pub fn of_process() -> Began {
        let now = Instant::now();
        let age = age(Path::new("/proc/self/stat")).filter(|age| *age < OLDEST);
        Began(age.and_then(|age| now.checked_sub(age)).unwrap_or(now))
    }

    /// From then to `moment`.
    pub fn until(self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.0)
    }
}

/// Since the start in `stat`, field 22, in ticks since the system's start (proc(5)).
fn age(stat: &Path) -> Option<Duration> {
    let started = started(&std::fs::read_to_string(stat).ok()?)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9;
    let started = started as f64 / rustix::param::clock_ticks_per_second() as f64;
    Duration::try_from_secs_f64(now - started).ok()
}

fn started(stat: &str) -> Option<u64> {
    // The name may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let fields = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 1 2";
        assert_eq!(started(&format!("42 (a) b (c)) {fields}")), Some(123_456));
        assert_eq!(started("42 (a) S 1"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_young() {
        let age = age(Path::new("/proc/self/stat")).unwrap();
        assert!(age < Duration::from_secs(24 * 3600));
        assert!(Began::of_process().until(Instant::now()) < OLDEST);
    }
}
