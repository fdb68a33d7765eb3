//! Namespaces of our own, without root: users, network and processes.
//!
//! In them any pod's address can be listened on, fixed ports collide with nothing, and when the first
//! process ends the kernel ends all others: nothing outlives a test, however it ends.

use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Says which part of the test a process is.
const ROLE: &str = "CAIRN_MESH_ROLE";

/// Where istiod listens, and what we call pods from: an address that waypoints reach, too.
pub const ISTIOD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// Pods that are listeners of the test's own process: of the first cluster (those with a network of their
/// own are in 10.244.9.0/24), of a second one, and members of a pool, which are in neither.
const LOCAL_PODS: [&str; 5] =
    ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.245.0.0/16", "10.8.0.0/16"];

/// Which part of the test this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that was started by a person or by cargo.
    Outside,
    /// The first process of the namespaces: runs the lab and the steps.
    Lab,
    /// The network of one pod, in which a waypoint runs.
    Pod,
}

impl Role {
    /// Of this process.
    pub fn current() -> Self {
        match std::env::var(ROLE).as_deref() {
            Ok("lab") => Role::Lab,
            Ok("pod") => Role::Pod,
            _ => Role::Outside,
        }
    }

    /// Makes a child be this.
    pub fn give(self, command: &mut Command) {
        let name = match self {
            Role::Outside => "",
            Role::Lab => "lab",
            Role::Pod => "pod",
        };
        command.env(ROLE, name);
    }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]);
    command
}

/// Why namespaces cannot be had here.
pub fn unavailable() -> Option<String> {
    let probe = unshare().args(["ip", "link", "add", "probe", "type", "veth"]).output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Some(format!("no user and network namespaces here: {}", complaint.trim()))
        }
        Err(error) => Some(format!("no user and network namespaces here: unshare: {error}")),
    }
}

/// Runs this program again as [`Role::Lab`], with these variables; its verdict is ours.
pub fn run_lab(variables: &[(&str, &Path)]) -> ExitCode {
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1));
    command.envs(variables.iter().copied()).stdin(Stdio::piped());
    Role::Lab.give(&mut command);
    let mut child = command.spawn().unwrap();
    let held = child.stdin.take(); // wait() would close it
    let status = child.wait().unwrap();
    drop(held);
    match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Ends this process, and so all of the namespace, when the one outside is gone.
#[expect(clippy::disallowed_methods, reason = "the kernel ends what this process has started")]
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}

/// Loopback and the addresses of pods.
///
/// # Panics
/// When the kernel refuses.
pub fn prepare() {
    ip(&["link", "set", "lo", "up"]);
    for pods in LOCAL_PODS {
        ip(&["route", "add", "local", pods, "dev", "lo"]);
    }
}

/// Pods with networks of their own reach each other, too.
///
/// # Panics
/// When the kernel refuses.
pub fn join_pods() {
    for switch in ["ip_forward", "conf/all/proxy_arp", "conf/default/proxy_arp"] {
        let file = Path::new("/proc/sys/net/ipv4").join(switch);
        std::fs::write(&file, "1").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// `ip` with these arguments.
///
/// # Panics
/// When it fails.
pub fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {complaint}", args.join(" "));
}
