//! The image's root filesystem, and the root of a container that is made of it.
//!
//! What a runtime does, by util-linux: the image below a layer for missing mount points, the pod's volumes and the
//! kernel's file systems in it, and then a user without any capability. All of it is in a mount namespace that ends with
//! the container.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says where the image's root filesystem is, if not where `deploy/image/rootfs.sh` puts it.
const VARIABLE: &str = "CAIRN_ROOTFS";
/// The image's entry point.
pub const ENTRY_POINT: &str = "/usr/local/bin/cairn";
/// What images have without a `PATH` of their own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In the root's description.
const FILE: &str = "root.json";
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Where the image's root filesystem is.
///
/// # Errors
/// Why there is none, and how to make it.
pub fn rootfs(target: &Path) -> Result<PathBuf, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let dir = match std::env::var_os(VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => target.join("image").join(arch).join("rootfs"),
    };
    let entry = dir.join(ENTRY_POINT.trim_start_matches('/'));
    if !entry.is_file() {
        return Err(format!(
            "no image at {}: deploy/image/rootfs.sh makes one, or {VARIABLE} says where it is",
            dir.display()
        ));
    }
    dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))
}

/// How a container sees files, and as whom it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The image's root filesystem.
    pub image: PathBuf,
    /// `runAsUser`.
    pub user: u64,
    /// `runAsGroup`.
    pub group: u64,
    /// `readOnlyRootFilesystem`.
    pub read_only: bool,
    /// Volumes, and files that kubelet makes.
    pub mounts: Vec<Mount>,
}

/// A file or directory of the host that a container has at another path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host; without it, memory that is the container's own.
    pub from: Option<PathBuf>,
    /// In the container.
    pub to: String,
    /// The container may write.
    pub writable: bool,
}

impl Root {
    /// Describes it for the process that makes it.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write(&self, state: &Path) {
        let Root { image, user, group, read_only, mounts } = self;
        let mounts: Vec<Value> = mounts
            .iter()
            .map(|Mount { from, to, writable }| json!({ "from": from, "to": to, "writable": writable }))
            .collect();
        let text = json!({
            "image": image, "user": user, "group": group, "read_only": read_only, "mounts": mounts,
        });
        fs::write(state.join(FILE), text.to_string()).unwrap();
    }

    /// As it was described.
    ///
    /// # Panics
    /// When the description is none.
    pub fn read(state: &Path) -> Option<Self> {
        let text = fs::read(state.join(FILE)).ok()?;
        let value: Value = serde_json::from_slice(&text).unwrap();
        let path = |value: &Value| PathBuf::from(value.as_str().unwrap());
        let mount = |mount: &Value| Mount {
            from: mount["from"].as_str().map(PathBuf::from),
            to: mount["to"].as_str().unwrap().to_owned(),
            writable: mount["writable"].as_bool().unwrap(),
        };
        Some(Root {
            image: path(&value["image"]),
            user: value["user"].as_u64().unwrap(),
            group: value["group"].as_u64().unwrap(),
            read_only: value["read_only"].as_bool().unwrap(),
            mounts: value["mounts"].as_array().unwrap().iter().map(mount).collect(),
        })
    }

    /// Makes it below `state`, in this process's own mount namespace; where it is.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn make(&self, state: &Path) -> PathBuf {
        let own = state.join("container");
        fs::create_dir_all(&own).unwrap();
        mount(&["-t", "tmpfs", "tmpfs"], &own);
        let [upper, work, root] = ["upper", "work", "root"].map(|name| own.join(name));
        for dir in [&upper, &work, &root] {
            fs::create_dir(dir).unwrap();
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={},userxattr",
            self.image.display(),
            upper.display(),
            work.display()
        );
        mount(&["-t", "overlay", "overlay", "-o", &layers], &root);
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        for dir in ["proc", "sys", "dev"] {
            fs::create_dir_all(inside(dir)).unwrap();
        }
        mount(&["--rbind", "/proc"], &inside("proc"));
        mount(&["--rbind", "/sys"], &inside("sys"));
        mount(&["-t", "tmpfs", "tmpfs"], &inside("dev"));
        for name in DEVICES {
            let (from, to) = (Path::new("/dev").join(name), inside("dev").join(name));
            bind(&from, &to, true);
        }
        for volume in &self.mounts {
            let to = inside(&volume.to);
            match &volume.from {
                Some(from) => bind(from, &to, volume.writable),
                None => {
                    fs::create_dir_all(&to).unwrap();
                    mount(&["-t", "tmpfs", "tmpfs"], &to);
                }
            }
        }
        if self.read_only {
            mount(&["-o", "remount,bind,ro"], &root);
        }
        root
    }

    /// `program` in it.
    pub fn command(&self, root: &Path, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", "unshare", "--user"]);
        command.arg(format!("--map-user={}", self.user));
        command.arg(format!("--map-group={}", self.group));
        command.arg("--root").arg(root).arg(program).env("PATH", PATH);
        command
    }
}

fn bind(from: &Path, to: &Path, writable: bool) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
    } else if !to.exists() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, "").unwrap();
    }
    mount(&["--bind", &from.display().to_string()], to);
    if !writable {
        mount(&["-o", "remount,bind,ro"], to);
    }
}

fn mount(args: &[&str], to: &Path) {
    let output = Command::new("mount").args(args).arg(to).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mount {} {}: {complaint}", args.join(" "), to.display());
}
