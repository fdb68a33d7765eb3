//! The control groups of this process: where their files are, and what they bound.
//!
//! A group's own bound and those of the groups around it apply together: the smallest counts. What a
//! container sees of its groups depends on the version, on how they are mounted and on whether it has
//! a namespace of its own for them, so they are looked up in `/proc/self/cgroup` and
//! `/proc/self/mountinfo` (cgroups(7), proc(5)). A file that is missing bounds nothing.

mod cpu;
mod paths;

pub use cpu::Cpu;

use paths::{Hierarchy, Version, read};
use std::path::Path;

/// Version 1 writes a number near this where there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// Bytes that this process' groups may use; `root` is `/` outside of tests.
pub fn memory_limit(root: &Path) -> Option<u64> {
    let Hierarchy { version, groups } = Hierarchy::of("memory", root)?;
    let file = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    groups.iter().filter_map(|group| parse_limit(&read(&group.join(file))?)).min()
}

/// `max`, or bytes.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit > 0 && *limit < NO_LIMIT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A root directory with these files.
    pub(crate) fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    pub(crate) const V2_MOUNT: &str =
        "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_limit("1073741824\n"), Some(1 << 30));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
    }

    #[test]
    fn the_smallest_memory_limit_around_the_process_counts() {
        let nested = root(&[
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.max", "2000\n"),
        ]);
        assert_eq!(memory_limit(nested.path()), Some(1000));
        let first = root(&[
            ("proc/self/cgroup", "9:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n"),
            (
                "proc/self/mountinfo",
                "40 30 0:35 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
        ]);
        assert_eq!(memory_limit(first.path()), Some(4096));
        assert_eq!(memory_limit(root(&[]).path()), None);
        let mute =
            root(&[("sys/fs/cgroup/memory.max", "77\n"), ("sys/fs/cgroup/cgroup.controllers", "")]);
        assert_eq!(memory_limit(mute.path()), Some(77), "proc is hidden: where they usually are");
    }
}
