//! From a controller to the directories of this process' groups.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Where groups usually are.
const USUAL: &str = "sys/fs/cgroup";
/// Bytes of a file that are read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    One,
    /// One for all.
    Two,
}

/// The groups that a controller bounds this process by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Which files they have.
    pub version: Version,
    /// The process' own group first, then those around it as far as they are mounted.
    pub groups: Vec<PathBuf>,
}

/// One line of `/proc/self/mountinfo` that mounts control groups.
struct Mount {
    version: Version,
    /// The group that is mounted.
    root: PathBuf,
    at: PathBuf,
    options: String,
}

impl Hierarchy {
    /// Of `controller`, as a process sees it whose root directory is `root`.
    pub fn of(controller: &str, root: &Path) -> Option<Hierarchy> {
        let groups = read(&root.join("proc/self/cgroup"));
        let mounts = read(&root.join("proc/self/mountinfo"));
        let (Some(groups), Some(mounts)) = (groups, mounts) else {
            return usual(controller, root);
        };
        let lines: Vec<(&str, &str)> = groups
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                Some((parts.next()?, parts.next()?))
            })
            .collect();
        let has = |list: &str| list.split(',').any(|one| one == controller);
        // A controller belongs to one version: where both are mounted, version 1 has it if it is named.
        let first = lines.iter().find(|(controllers, _)| has(controllers));
        let second = lines.iter().find(|(controllers, _)| controllers.is_empty());
        let (version, path) = match (first, second) {
            (Some((_, path)), _) => (Version::One, path),
            (None, Some((_, path))) => (Version::Two, path),
            (None, None) => return None,
        };
        let mount = mounts.lines().filter_map(Mount::parse).find(|mount| {
            mount.version == version && (version == Version::Two || has(&mount.options))
        })?;
        Some(Hierarchy { version, groups: mount.groups(path, root) })
    }
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (unescaped(fields.next()?), unescaped(fields.next()?));
        let mut fields = filesystem.split(' ');
        let version = match fields.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let options = fields.nth(1).unwrap_or_default().to_owned();
        Some(Mount { version, root: root.into(), at: at.into(), options })
    }

    /// The group `path` of this hierarchy and those around it.
    fn groups(&self, path: &str, root: &Path) -> Vec<PathBuf> {
        let at = root.join(self.at.strip_prefix("/").unwrap_or(&self.at));
        let inside = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        // A group outside of the namespace is written with `..`, and is not mounted.
        let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
        let own = at.join(if plain { inside } else { Path::new("") });
        // Without a namespace of its own a container may be told a path that it cannot see.
        let own = if own.is_dir() { own } else { at.clone() };
        own.ancestors().take_while(|group| group.starts_with(&at)).map(Path::to_owned).collect()
    }
}

fn usual(controller: &str, root: &Path) -> Option<Hierarchy> {
    let at = root.join(USUAL);
    if at.join("cgroup.controllers").is_file() {
        return Some(Hierarchy { version: Version::Two, groups: vec![at] });
    }
    let own = at.join(controller);
    own.is_dir().then(|| Hierarchy { version: Version::One, groups: vec![own] })
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// `None`: it is not there, or cannot be read.
pub fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::root;
    use super::*;

    fn groups(groups: &str, mounts: &str, directories: &[&str]) -> Option<(Version, Vec<String>)> {
        let root = root(&[("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)]);
        for directory in directories {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let Hierarchy { version, groups } = Hierarchy::of("cpu", root.path())?;
        let shown =
            |group: &PathBuf| group.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
        Some((version, groups.iter().map(shown).collect()))
    }

    #[test]
    fn groups_are_found_as_they_are_mounted() {
        let v2 = super::super::tests::V2_MOUNT;
        let at = "sys/fs/cgroup";
        let found = groups("0::/\n", v2, &[at]);
        assert_eq!(found, Some((Version::Two, vec![at.into()])), "a namespace of its own");
        let found = groups("0::/a/b\n", v2, &["sys/fs/cgroup/a/b"]);
        let nested = ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", at].map(str::to_owned);
        assert_eq!(found, Some((Version::Two, nested.to_vec())));
        let found = groups("0::/../../x\n", v2, &[at]);
        assert_eq!(found, Some((Version::Two, vec![at.into()])), "outside of the namespace");
        let found = groups("0::/kubepods/pod1\n", v2, &[at]);
        assert_eq!(found, Some((Version::Two, vec![at.into()])), "not to be seen");
    }

    #[test]
    fn version_one_has_a_controller_where_it_is_named() {
        let mounts = "35 30 0:30 /kubepods/p /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                      36 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n";
        let own = "sys/fs/cgroup/cpu,cpuacct";
        let hybrid = "4:cpu,cpuacct:/kubepods/p/c\n1:name=systemd:/x\n0::/x\n";
        let inner = format!("{own}/c");
        let found = groups(hybrid, mounts, &[&inner]);
        assert_eq!(found, Some((Version::One, vec![inner.clone(), own.into()])));
        let found = groups("0::/x\n", mounts, &["sys/fs/cgroup/unified/x"]);
        let unified = ["sys/fs/cgroup/unified/x", "sys/fs/cgroup/unified"].map(str::to_owned);
        assert_eq!(found, Some((Version::Two, unified.to_vec())));
        assert_eq!(groups("4:memory:/\n", mounts, &[own]), None);
        assert_eq!(groups("4:cpuset:/\n0::/\n", "", &[own]), None, "nothing is mounted");
    }

    #[test]
    fn odd_names_are_read() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\9\"), r"/a\9\");
        let mounts = r"31 23 0:27 / /cg\040roup rw - cgroup2 cgroup2 rw";
        let found = groups("0::/x:y\n", mounts, &["cg roup/x:y"]);
        assert_eq!(found, Some((Version::Two, vec!["cg roup/x:y".into(), "cg roup".into()])));
    }
}
