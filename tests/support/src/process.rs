//! The built binary, as a process of its own.

use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running `cairn`; it is killed when this is dropped.
pub struct Cairn {
    child: tokio::process::Child,
    lines: Arc<Mutex<Vec<String>>>,
    held: watch::Sender<bool>,
    readers: Vec<JoinHandle<()>>,
    pid: u32,
}

/// The binary: what `CAIRN_BINARY` names, else the one beside this test's own executable, built if it is not there
/// or older than its sources.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(given) = std::env::var_os("CAIRN_BINARY") {
                return given.into();
            }
            let executable = std::env::current_exe().unwrap();
            // <target>/<profile>/deps/<test>
            let profile = executable.parent().and_then(Path::parent).unwrap();
            let binary = profile.join("cairn");
            // `cargo test` has built it for the tests of its own crate; to build it for itself is to build all that it
            // depends on again, with other features.
            if is_current(&binary) {
                return binary;
            }
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--package", "cairn", "--bin", "cairn"]);
            build.arg("--target-dir").arg(profile.parent().unwrap());
            if profile.ends_with("release") {
                build.arg("--release");
            }
            let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
            assert!(status.success(), "cairn does not build");
            binary
        })
        .clone()
}

/// Whether it was built after the last change of anything that it is built from.
fn is_current(binary: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|found| found.modified());
    let Ok(built) = changed(binary) else { return false };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut open = ["Cargo.toml", "Cargo.lock", "crates"].map(|name| workspace.join(name)).to_vec();
    while let Some(path) = open.pop() {
        match path.read_dir() {
            Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) if changed(&path).is_ok_and(|at| at < built) => {}
            Err(_) => return false,
        }
    }
    true
}

/// As [`crate::wait::drive`], with the binary built before the clock runs.
///
/// # Panics
/// When the test does.
pub fn drive(test: impl Future<Output = ()>) {
    binary();
    crate::wait::drive(test);
}

impl Cairn {
    /// Starts it; what it prints is kept.
    pub fn start(args: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(binary());
        command.args(args);
        Self::spawn(command)
    }

    /// As [`Cairn::start`], with nothing but these variables.
    pub fn start_in<'a>(
        args: &[String],
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut command = tokio::process::Command::new(binary());
        command.args(args).env_clear().envs(variables);
        Self::spawn(command)
    }

    fn spawn(mut command: tokio::process::Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = Arc::default();
        let (held, hold) = watch::channel(false);
        let readers = vec![
            collect(child.stdout.take().unwrap(), &lines, hold),
            collect(child.stderr.take().unwrap(), &lines, watch::channel(false).1),
        ];
        let pid = child.id().unwrap();
        Cairn { child, lines, held, readers, pid }
    }

    /// `cairn proxy` with a configuration, one worker and ephemeral ports for its pages. Waits until
    /// it serves.
    pub async fn proxy(config: &Path, more: &[&str]) -> Self {
        let config = config.to_str().unwrap();
        let mut args = vec!["proxy", "--config", config, "--workers", "1", "--log-format", "json"];
        args.extend([
            "--admin",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
        ]);
        args.extend_from_slice(more);
        let mut cairn = Self::start(&args);
        crate::wait::eventually("cairn serves", || {
            assert!(cairn.is_running(), "{:#?}", cairn.output());
            cairn.listens("HBONE").is_some()
        })
        .await;
        cairn
    }

    fn listens(&self, on: &str) -> Option<SocketAddr> {
        let lines = self.lines.lock().unwrap();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["message"].as_str().is_some_and(|message| message.contains(on)))
            .find_map(|line| line["address"].as_str()?.parse().ok())
    }

    /// The address in the log line that speaks of `HBONE`, `admin pages`, `metrics pages` or `health pages`.
    ///
    /// # Panics
    /// When it has not been printed.
    pub fn address(&self, on: &str) -> SocketAddr {
        self.listens(on).unwrap_or_else(|| panic!("no `{on}` in {:#?}", self.output()))
    }

    /// From here on nobody reads its standard output (`true`), or somebody does again.
    pub fn hold_stdout(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// How many log lines contain this text.
    pub fn count(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Everything it has printed.
    pub fn output(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// A line with this text was printed.
    pub fn printed(&self, text: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = self.pid.to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(status.success());
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// It has not exited.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it exits, and until all that it has printed is read.
    pub async fn wait(&mut self) -> ExitStatus {
        let status = crate::wait::within("cairn exits", self.child.wait()).await.unwrap();
        let held = *self.held.borrow();
        if !held {
            for reader in self.readers.drain(..) {
                crate::wait::within("its output ends", reader).await.unwrap();
            }
        }
        status
    }

    /// Resident memory, KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn collect(
    pipe: impl AsyncRead + Unpin + Send + 'static,
    lines: &Arc<Mutex<Vec<String>>>,
    mut held: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let lines = lines.clone();
    tokio::spawn(async move {
        let mut reader = BufReader::new(pipe).lines();
        loop {
            // An error: nobody can hold it any more.
            let _goes_on = held.wait_for(|held| !held).await.map(drop);
            let Ok(Some(line)) = reader.next_line().await else { return };
            lines.lock().unwrap().push(line);
        }
    })
}
