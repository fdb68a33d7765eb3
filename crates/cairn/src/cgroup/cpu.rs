//! How much CPU time there is, and how much of it is used.
//!
//! Where a group's quota is the bound, what the whole group uses counts: all of it is taken from the
//! same quota. Where there is none, the process counts alone, and may use every CPU that it may run on.

use super::paths::{Hierarchy, Version, read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// CPU time of this process.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpu {
    cores: f64,
    usage: Usage,
}

/// Where the CPU time that is used can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Usage {
    /// `usage_usec` of this `cpu.stat`.
    Second(PathBuf),
    /// This `cpuacct.usage`, nanoseconds.
    First(PathBuf),
    /// The process' own clock.
    Process,
}

impl Cpu {
    /// Of this process; `root` is `/` outside of tests.
    pub fn find(root: &Path) -> Cpu {
        Cpu::within(root, allowed())
    }

    /// With so many CPUs to run on.
    fn within(root: &Path, allowed: usize) -> Cpu {
        let all = Cpu { cores: allowed as f64, usage: Usage::Process };
        let Some(hierarchy) = Hierarchy::of("cpu", root) else { return all };
        let quotas = hierarchy.groups.iter().enumerate().filter_map(|(depth, group)| {
            let cores = match hierarchy.version {
                Version::One => quota_1(group),
                Version::Two => quota_2(group),
            };
            Some((cores?, depth, group))
        });
        let Some((cores, depth, group)) = quotas.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return all;
        };
        if cores >= all.cores {
            return all;
        }
        let usage = match hierarchy.version {
            Version::Two => Usage::Second(group.join("cpu.stat")),
            // Usually the same directory; the same group in any case.
            Version::One => Hierarchy::of("cpuacct", root)
                .and_then(|accounts| Some(accounts.groups.get(depth)?.join("cpuacct.usage")))
                .map_or(Usage::Process, Usage::First),
        };
        let cpu = Cpu { cores, usage };
        match cpu.read() {
            Some(_) => cpu,
            None => Cpu { usage: Usage::Process, ..cpu },
        }
    }

    /// CPU time per second at most, more than 0.
    pub fn cores(&self) -> f64 {
        self.cores
    }

    /// `cgroup2`, `cgroup1` or `process`: where [`Self::seconds`] comes from.
    pub fn source(&self) -> &'static str {
        match self.usage {
            Usage::Second(_) => "cgroup2",
            Usage::First(_) => "cgroup1",
            Usage::Process => "process",
        }
    }

    /// CPU time used, in seconds; only grows.
    pub fn seconds(&self) -> f64 {
        self.read().unwrap_or_default()
    }

    fn read(&self) -> Option<f64> {
        match &self.usage {
            Usage::Second(file) => {
                let text = read(file)?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                Some(usage.trim().parse::<u64>().ok()? as f64 / 1e6)
            }
            Usage::First(file) => Some(read(file)?.trim().parse::<u64>().ok()? as f64 / 1e9),
            Usage::Process => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
            }
        }
    }
}

/// CPUs that the process may run on.
fn allowed() -> usize {
    let set = rustix::thread::sched_getaffinity(None).map(|set| set.count() as usize);
    let all = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    set.ok().filter(|count| *count > 0).unwrap_or_else(all)
}

/// `max 100000`, or quota and period in microseconds.
fn quota_2(group: &Path) -> Option<f64> {
    let text = read(&group.join("cpu.max"))?;
    let mut fields = text.split_whitespace();
    let (quota, period) = (fields.next()?, fields.next()?);
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// -1: no bound.
fn quota_1(group: &Path) -> Option<f64> {
    let number = |file| read(&group.join(file))?.trim().parse::<i64>().ok();
    ratio(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn ratio(quota: i64, period: i64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{V2_MOUNT, root};
    use super::*;

    /// Cores, source and, for groups, seconds.
    fn found(files: &[(&str, &str)], allowed: usize) -> (f64, &'static str, f64) {
        let root = root(files);
        let cpu = Cpu::within(root.path(), allowed);
        let seconds = if cpu.source() == "process" { 0.0 } else { cpu.seconds() };
        (cpu.cores(), cpu.source(), seconds)
    }

    const PROC_V2: [(&str, &str); 2] =
        [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2_MOUNT)];

    fn v2(files: &[(&'static str, &'static str)]) -> (f64, &'static str, f64) {
        found(&[&PROC_V2, files].concat(), 8)
    }

    #[test]
    fn version_2() {
        let stat = ("sys/fs/cgroup/cpu.stat", "usage_usec 1500000\nuser_usec 1\n");
        let max = |text| ("sys/fs/cgroup/cpu.max", text);
        assert_eq!(v2(&[max("200000 100000\n"), stat]), (2.0, "cgroup2", 1.5));
        assert_eq!(v2(&[max("25000 50000\n"), stat]), (0.5, "cgroup2", 1.5));
        assert_eq!(v2(&[max("max 100000\n"), stat]), (8.0, "process", 0.0));
        assert_eq!(v2(&[stat]), (8.0, "process", 0.0), "the root group has no cpu.max");
        assert_eq!(
            v2(&[max("900000 100000\n"), stat]),
            (8.0, "process", 0.0),
            "more than there is"
        );
        assert_eq!(v2(&[max("200000 100000\n")]), (2.0, "process", 0.0), "usage cannot be read");
        for odd in ["", "x y", "0 100000", "100000 0", "-1 100000", "100000"] {
            assert_eq!(v2(&[max(odd), stat]).0, 8.0, "{odd}");
        }
    }

    #[test]
    fn the_smallest_quota_around_the_process_counts_with_its_own_usage() {
        let files = [
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/pod/box/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/pod/box/cpu.stat", "usage_usec 1000000\n"),
            ("sys/fs/cgroup/pod/cpu.max", "100000 100000\n"),
            ("sys/fs/cgroup/pod/cpu.stat", "nr_periods 3\nusage_usec 7000000\n"),
        ];
        assert_eq!(found(&files, 8), (1.0, "cgroup2", 7.0));
    }

    const MOUNTS_V1: &str = "35 30 0:30 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n\
                             36 30 0:31 /docker/x /sys/fs/cgroup/acct ro - cgroup cgroup rw,cpuacct\n\
                             37 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n";

    fn v1(quota: &str) -> (f64, &'static str, f64) {
        found(
            &[
                ("proc/self/cgroup", "5:cpu:/docker/x\n4:cpuacct:/docker/x\n0::/docker/x\n"),
                ("proc/self/mountinfo", MOUNTS_V1),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/acct/cpuacct.usage", "2500000000\n"),
                ("sys/fs/cgroup/unified/cpu.max", "100 100000\n"),
            ],
            8,
        )
    }

    #[test]
    fn version_1_and_both_at_once() {
        assert_eq!(v1("150000\n"), (1.5, "cgroup1", 2.5));
        assert_eq!(v1("-1\n"), (8.0, "process", 0.0));
    }

    #[test]
    fn without_groups_it_is_the_process() {
        assert_eq!(found(&[], 3), (3.0, "process", 0.0));
        let unreadable = [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", "nonsense\n")];
        assert_eq!(found(&unreadable, 3), (3.0, "process", 0.0));
        let hidden = [
            ("sys/fs/cgroup/cgroup.controllers", "cpu\n"),
            ("sys/fs/cgroup/cpu.max", "100000 100000\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 1\n"),
        ];
        assert_eq!(found(&hidden, 3), (1.0, "cgroup2", 1e-6));
    }

    #[test]
    fn a_file_that_is_a_directory_bounds_nothing() {
        let root = root(&[&PROC_V2[..], &[("sys/fs/cgroup/cpu.max/x", "")]].concat());
        assert_eq!(Cpu::within(root.path(), 2).cores(), 2.0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_some() {
        let cpu = Cpu { cores: 1.0, usage: Usage::Process };
        let before = cpu.seconds();
        while cpu.seconds() <= before {
            std::hint::black_box((0..1000).sum::<u64>());
        }
        assert!(Cpu::find(Path::new("/")).cores() > 0.0);
    }
}
