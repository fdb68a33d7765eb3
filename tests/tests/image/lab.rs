//! The root filesystem as a pod has it: mounted read-only, in namespaces of its own, without root.
//!
//! A step is this program again, as the first process of the namespaces. What it starts in the root is uid and gid
//! 1337 there and has no capability, as Kubernetes gives none to a container with `drop: [ALL]`. One id is mapped, so
//! files of root look like our own; that they are not for others to write is tested by their modes.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Number of the step that this process is to do.
const STEP: &str = "CAIRN_IMAGE_STEP";
/// The root filesystem.
const IMAGE: &str = "CAIRN_IMAGE";
/// An empty directory.
const PLACE: &str = "CAIRN_IMAGE_LAB";

/// What kubelet mounts into every container.
const FROM_KUBELET: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Devices that every runtime gives a container, as far as it could matter. A static program takes random numbers from
/// there: it does not look for the system call in a library.
const DEVICES: [&str; 4] = ["dev/null", "dev/zero", "dev/random", "dev/urandom"];

/// The mounted root.
pub struct Lab {
    place: PathBuf,
}

/// Which step this process is to do, if it was started for one.
pub fn asked() -> Option<usize> {
    std::env::var(STEP).ok().map(|step| step.parse().unwrap())
}

fn namespaces() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--mount-proc", "--net"]);
    command.args(["--pid", "--fork", "--kill-child"]);
    command
}

/// Why there is no lab here.
pub fn unavailable() -> Option<String> {
    let probe = namespaces().args(["ip", "link", "set", "lo", "up"]).output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Some(format!("no user, mount and network namespaces here: {}", complaint.trim()))
        }
        Err(error) => Some(format!("unshare does not start: {error}")),
    }
}

/// Does a step in namespaces of its own.
///
/// # Panics
/// When it fails.
pub fn run(step: usize, image: &Path) {
    let place = tempfile::tempdir().unwrap();
    let mut command = namespaces();
    command.arg(std::env::current_exe().unwrap());
    command.env(STEP, step.to_string()).env(IMAGE, image.canonicalize().unwrap());
    command.env(PLACE, place.path());
    // What the helpers of tests start as `cairn`.
    command.env("CAIRN_BINARY", place.path().join("container"));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let held = child.stdin.take(); // wait() would close it
    let status = child.wait().unwrap();
    drop(held);
    assert!(status.success(), "in the lab: {status}");
}

/// Mounts the root and runs the test.
///
/// # Panics
/// When the test does.
pub fn enter(test: fn(&Lab)) {
    end_with_parent();
    must("ip", &["link", "set", "lo", "up"]);
    let image = PathBuf::from(std::env::var_os(IMAGE).unwrap());
    let lab = Lab { place: std::env::var_os(PLACE).unwrap().into() };
    mount(&["-t", "tmpfs", "lab", path(&lab.place)]);
    fs::create_dir(lab.root()).unwrap();
    mount(&["-t", "tmpfs", "-o", "mode=755", "root", path(&lab.root())]);
    must("cp", &["-a", path(&image.join(".")), path(&lab.root())]);
    mount(&["-t", "proc", "proc", path(&lab.inside("proc"))]);
    for name in FROM_KUBELET {
        // containerd makes what it has to mount on, before the root becomes read-only.
        fs::write(lab.inside(name), "").unwrap();
        let file = lab.place.join(Path::new(name).file_name().unwrap());
        fs::write(&file, "").unwrap();
        lab.bind(&file, name);
    }
    for device in DEVICES {
        fs::write(lab.inside(device), "").unwrap();
        lab.bind(&Path::new("/").join(device), device);
    }
    mount(&["-o", "remount,ro", path(&lab.root())]);
    let container = lab.place.join("container");
    let words = lab.words();
    fs::write(&container, format!("#!/bin/sh\nexec {} /usr/local/bin/cairn \"$@\"\n", words))
        .unwrap();
    fs::set_permissions(&container, fs::Permissions::from_mode(0o755)).unwrap();
    test(&lab);
}

/// Ends this process, and so all of the namespace, when the one outside is gone.
#[expect(clippy::disallowed_methods, reason = "the kernel ends what this process has started")]
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}

impl Lab {
    fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    /// Where we find what is at this path in the root.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Mounts a file or a directory there, as kubelet does with a volume.
    pub fn bind(&self, from: &Path, to: &str) {
        mount(&["--bind", path(from), path(&self.inside(to))]);
    }

    /// A new volume, mounted there.
    pub fn volume(&self, to: &str) -> PathBuf {
        let volume = self.place.join(to.replace('/', "-"));
        fs::create_dir(&volume).unwrap();
        self.bind(&volume, to);
        volume
    }

    /// What is in a file that kubelet writes: `hosts` or `resolv.conf`.
    pub fn kubelet(&self, file: &str, content: &str) {
        fs::write(self.place.join(file), content).unwrap();
    }

    /// What stands before a program of the root, in a shell's words.
    fn words(&self) -> String {
        let unshare = cairn_test_support::debian::on_path("unshare").unwrap();
        let [unshare, root] = [unshare, self.root()].map(|word| path(&word).to_owned());
        format!("'{unshare}' --user --map-user=1337 --map-group=1337 --root='{root}'")
    }

    /// Runs a program of the root to its end, with an empty environment.
    pub fn output(&self, program: &str, args: &[&str]) -> Output {
        let line = format!("exec {} /usr/local/bin/{program} \"$@\"", self.words());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line, "sh"]).args(args).env_clear();
        command.stdin(Stdio::null()).output().unwrap()
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mount(args: &[&str]) {
    must("mount", args);
}

fn must(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", args.join(" "));
}
