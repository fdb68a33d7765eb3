//! What the kernel knows of processes and of the machine.

use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// What a process has used up to now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Time on a CPU, in user mode and in the kernel, all threads, also those that have ended.
    pub cpu: Duration,
    /// Part of it in the kernel.
    pub kernel: Duration,
    /// The same by the scheduler's clock: finer than a tick, but without threads that have ended.
    pub precise: Duration,
    /// How long threads that could run waited for a CPU.
    pub waited: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// Time of all CPUs together since boot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpus {
    /// Doing something.
    pub busy: Duration,
    /// Taken by the hypervisor for others.
    pub stolen: Duration,
    /// All of it.
    pub total: Duration,
}

impl Usage {
    /// Of one process.
    pub fn of(pid: u32) -> Result<Usage> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The second field is a name in parentheses, which may hold anything.
        let fields: Vec<_> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks =
            |index: usize| fields.get(index).and_then(|text| text.parse().ok()).unwrap_or(0);
        // utime and stime are fields 14 and 15; the first of ours is field 3.
        let (user, kernel) = (tick_time(ticks(11)), tick_time(ticks(12)));
        let statm = read("statm")?;
        let pages: u64 =
            statm.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        let (mut precise, mut waited) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // A thread may end between the two calls; kernels may be built without the file.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().flat_map(str::parse::<u64>);
            precise += numbers.next().unwrap_or(0);
            waited += numbers.next().unwrap_or(0);
        }
        Ok(Usage {
            cpu: user + kernel,
            kernel,
            precise: Duration::from_nanos(precise),
            waited: Duration::from_nanos(waited),
            rss: pages * rustix::param::page_size() as u64,
        })
    }

    /// What was used since `before`; memory is as it is.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            kernel: self.kernel.saturating_sub(before.kernel),
            precise: self.precise.saturating_sub(before.precise),
            waited: self.waited.saturating_sub(before.waited),
            rss: self.rss,
        }
    }
}

impl Cpus {
    /// Of this machine.
    pub fn now() -> Cpus {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let numbers: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let sum = |fields: &[usize]| {
            tick_time(fields.iter().filter_map(|field| numbers.get(*field)).sum())
        };
        Cpus {
            busy: sum(&[0, 1, 2, 5, 6]),
            stolen: sum(&[7]),
            total: sum(&[0, 1, 2, 3, 4, 5, 6, 7]),
        }
    }

    /// What went by since `before`.
    pub fn since(self, before: Cpus) -> Cpus {
        Cpus {
            busy: self.busy.saturating_sub(before.busy),
            stolen: self.stolen.saturating_sub(before.stolen),
            total: self.total.saturating_sub(before.total),
        }
    }
}

fn tick_time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Usage::of(std::process::id()).unwrap().since(before).cpu < Duration::from_millis(20) {
            sum = std::hint::black_box(sum + 1);
        }
        let after = Usage::of(std::process::id()).unwrap().since(before);
        assert!(after.precise > Duration::from_millis(5), "{after:?}");
        assert!(after.rss > 100_000, "{after:?}");
        let cpus = Cpus::now();
        assert!(cpus.busy > Duration::ZERO && cpus.total > cpus.busy, "{cpus:?}");
    }
}
