//! A network namespace for one pod, so that the wildcard addresses and the loopback that a waypoint
//! listens on are its own; and, for a container of the image, its root.

use crate::image::Root;
use crate::namespace::{ISTIOD, Role, ip};
use crate::part::Part;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// Port of the pod's address that leads to [`ADMIN`], as `kubectl port-forward` would.
const FORWARD: u16 = 25000;
/// Envoy's administration pages.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

const PAUSE: Duration = Duration::from_millis(10);

/// A process in a network of its own.
pub struct Sandbox {
    /// The pod's address.
    pub ip: IpAddr,
    part: Part,
    state: PathBuf,
}

/// What runs in it.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// A path of this machine, or of the image where there is a root.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Exactly these variables, and a `PATH`.
    pub env: &'a BTreeMap<String, String>,
    /// Its root; without one it has this machine's files.
    pub root: Option<&'a Root>,
}

/// Runs what the arguments name: the address, a directory for notes, and a command.
///
/// # Panics
/// When the network cannot be set up.
pub fn run_pod() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, state, program, rest @ ..] = args.as_slice() else { return ExitCode::FAILURE };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let state = Path::new(state);
        std::fs::write(state.join("unshared"), "").unwrap();
        while !state.join("linked").exists() {
            tokio::time::sleep(PAUSE).await;
        }
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", &format!("{address}/32"), "dev", "eth0"]);
        ip(&["link", "set", "eth0", "up"]);
        ip(&["route", "add", "default", "dev", "eth0"]);
        let listener = TcpListener::bind((address.as_str(), FORWARD)).await.unwrap();
        tokio::spawn(forward(listener));
        let mut command = match Root::read(state) {
            Some(root) => Command::from(root.command(&root.make(state), program)),
            None => Command::new(program),
        };
        let mut child = command.args(rest).env_remove("CAIRN_MESH_ROLE").spawn().unwrap();
        std::fs::write(state.join("pid"), child.id().unwrap().to_string()).unwrap();
        child.wait().await.unwrap()
    });
    runtime.shutdown_background();
    ExitCode::from(status.code().map_or(255, |code| code as u8))
}

async fn forward(listener: TcpListener) {
    while let Ok((mut from, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut to) = TcpStream::connect(ADMIN).await {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
        });
    }
}

impl Sandbox {
    /// Starts it in a network with this address.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(
        name: &str,
        address: IpAddr,
        start: Start<'_>,
        state: &Path,
        logs: &Path,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Start { program, args, env, root } = start;
        let _ = std::fs::remove_dir_all(state);
        std::fs::create_dir_all(state).unwrap();
        let mut command = std::process::Command::new("unshare");
        command.arg("--net");
        if let Some(root) = root {
            root.write(state);
            command.arg("--mount");
        }
        command.arg(std::env::current_exe().unwrap());
        command.arg(address.to_string()).arg(state).arg(program).args(args);
        command.env_clear().envs(env).env("PATH", std::env::var_os("PATH").unwrap());
        Role::Pod.give(&mut command);
        let mut part = Part::start(name, command.into(), logs);
        while !state.join("unshared").exists() {
            part.must_run();
            tokio::time::sleep(PAUSE).await;
        }
        let link = format!("pod{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let pid = part.pid().to_string();
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &link, "up"]);
        let ours = ISTIOD.to_string();
        ip(&["route", "replace", &format!("{address}/32"), "dev", &link, "src", &ours]);
        std::fs::write(state.join("linked"), "").unwrap();
        Sandbox { ip: address, part, state: state.to_owned() }
    }

    /// Where its administration pages are for us.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.ip, FORWARD)
    }

    /// The process, and its log.
    pub fn part(&mut self) -> &mut Part {
        &mut self.part
    }

    /// Process id of the program itself, once it runs.
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.state.join("pid")).ok()?.parse().ok()
    }

    /// SIGTERM for the program.
    ///
    /// # Panics
    /// When it does not run.
    pub fn terminate(&self) {
        assert!(self.signal("-TERM"));
    }

    /// Such a signal for the program; whether there is one.
    pub fn signal(&self, signal: &str) -> bool {
        let Some(pid) = self.pid() else { return false };
        let mut kill = std::process::Command::new("kill");
        kill.args([signal, &pid.to_string()]).stderr(std::process::Stdio::null());
        kill.status().unwrap().success()
    }

    /// Waits until the program ends.
    pub async fn wait(&mut self) -> ExitStatus {
        self.part.wait().await
    }
}
