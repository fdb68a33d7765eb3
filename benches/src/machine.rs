//! The machine: what it is, and who of us runs on which core.

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use tokio::process::{Child, Command};

/// Which cores the proxy has, and which the load generator and the backend share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Cores of the proxy.
    pub proxy: Vec<usize>,
    /// Cores of the others.
    pub others: Vec<usize>,
}

/// What is measured on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Description {
    /// Model of the processor.
    pub processor: String,
    /// Cores that we may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
}

/// Cores that this process may use, as it found them when it started.
#[derive(Debug, Clone)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// To be called before this process moves anywhere.
    pub fn usable() -> Result<Cores> {
        let set = sched_getaffinity(None).context("cannot tell which cores there are")?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
        ensure!(!cores.is_empty(), "there is no core to run on");
        Ok(Cores(cores))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The proxy on one core and the others on another one, if there are two.
    pub fn apart(&self) -> Placement {
        self.split(1, 1)
    }

    /// The proxy on one core and on two, the others on the same two others. `None`: there are too few.
    pub fn one_and_two(&self) -> Option<[Placement; 2]> {
        if self.0.len() < 4 {
            return None;
        }
        let two = self.split(2, 2);
        let one = Placement { proxy: two.proxy.iter().take(1).copied().collect(), ..two.clone() };
        Some([one, two])
    }

    fn split(&self, proxy: usize, others: usize) -> Placement {
        if self.0.len() < proxy + others {
            return Placement { proxy: self.0.clone(), others: self.0.clone() };
        }
        let cores = |skip, take| self.0.iter().skip(skip).take(take).copied().collect();
        Placement { proxy: cores(0, proxy), others: cores(proxy, others) }
    }
}

impl Placement {
    /// Whether the proxy has its cores for itself.
    pub fn is_apart(&self) -> bool {
        self.proxy != self.others
    }
}

/// Starts a process on some cores. A process inherits the cores of the thread that starts it, so
/// this thread moves there for a moment.
pub fn spawn_on(cores: &[usize], command: &mut Command) -> io::Result<Child> {
    let here = sched_getaffinity(None)?;
    run_on(cores)?;
    let spawned = command.spawn();
    sched_setaffinity(None, &here)?;
    spawned
}

/// Moves this thread to some cores.
pub fn run_on(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    Ok(sched_setaffinity(None::<Pid>, &set)?)
}

/// Lets this process, and those that it starts, open as many connections as the system admits.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What was there before is enough for all but the largest scenarios.
    let _stays_as_it_was = setrlimit(Resource::Nofile, limit);
}

impl Description {
    /// Of this machine.
    pub fn read(cores: &Cores) -> Description {
        let first_value = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let memory = first_value("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: u64 =
            memory.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Description {
            processor: first_value("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| "unknown".to_owned()),
            cores: cores.count(),
            memory_mib: kib / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let both = Cores(vec![0, 1]).apart();
        assert_eq!(both, Placement { proxy: vec![0], others: vec![1] });
        assert!(both.is_apart());
        assert!(!Cores(vec![3]).apart().is_apart());
        assert_eq!(Cores(vec![0, 1, 2]).one_and_two(), None);
        let [one, two] = Cores(vec![0, 1, 2, 3]).one_and_two().unwrap();
        assert_eq!(one, Placement { proxy: vec![0], others: vec![2, 3] });
        assert_eq!(two, Placement { proxy: vec![0, 1], others: vec![2, 3] });
    }
}
