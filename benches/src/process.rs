//! A proxy's process: its start, whether it is ready, what it uses, and its end.

use crate::machine::spawn_on;
use crate::procfs::Usage;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a proxy may take to start.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A proxy at work. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    log: PathBuf,
    doors: Doors,
    /// Process id.
    pub pid: u32,
}

/// Where a proxy is found.
#[derive(Debug, Clone, Copy)]
pub struct Doors {
    /// Where it accepts HBONE.
    pub hbone: SocketAddr,
    /// Where it says whether it is ready.
    pub health: SocketAddr,
    /// And on which page.
    pub ready: &'static str,
}

impl Process {
    /// Starts a program on some cores; what it prints goes to `log`. It is not ready yet.
    pub fn start(
        mut command: Command,
        cores: &[usize],
        log: PathBuf,
        doors: Doors,
    ) -> Result<Process> {
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let started = Instant::now();
        let child = spawn_on(cores, &mut command)
            .with_context(|| format!("{:?} does not start", command.as_std().get_program()))?;
        let pid = child.id().context("the proxy has ended at once")?;
        Ok(Process { child, started, log, doors, pid })
    }

    /// Where it accepts HBONE.
    pub fn hbone(&self) -> SocketAddr {
        self.doors.hbone
    }

    /// Waits until its own readiness page says so; tells how long it took from the start.
    ///
    /// It asks again and again without a pause, for the sake of precision.
    pub async fn until_ready(&mut self) -> Result<Duration> {
        self.until_ready_by(tokio::task::yield_now).await
    }

    /// The same with pauses: for a control plane that is in this process, and for the proxy's CPU time.
    pub async fn until_ready_by<P: Future>(&mut self, pause: impl Fn() -> P) -> Result<Duration> {
        while !is_ready(self.doors).await {
            self.check_alive()?;
            pause().await;
        }
        Ok(self.started.elapsed())
    }

    /// How long it has been running; an error when it has ended, or does not come up.
    pub fn check_alive(&mut self) -> Result<Duration> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(8).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            bail!("the proxy ended with {status}; the end of {}:\n{last}", self.log.display());
        }
        let running = self.started.elapsed();
        if running > START_LIMIT {
            bail!("the proxy is not ready after {START_LIMIT:?}; see {}", self.log.display());
        }
        Ok(running)
    }

    /// What it has used up to now.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid).with_context(|| format!("see {}", self.log.display()))
    }

    /// Asks it to end, and waits until it has.
    pub async fn finish(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the proxy has no process id")?, Signal::TERM)?;
        self.child.wait().await.map(drop).context("the proxy cannot be ended")
    }

    /// Ends it.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await.context("the proxy cannot be ended")
    }
}

async fn is_ready(doors: Doors) -> bool {
    let ask = async {
        let mut tcp = TcpStream::connect(doors.health).await?;
        let page = doors.ready;
        let request = format!("GET {page} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        tcp.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer.ends_with(b" 200"))
    };
    ask.await.unwrap_or(false)
}
