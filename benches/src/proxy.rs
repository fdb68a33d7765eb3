//! The proxies that are compared, and one of them at work.

use crate::cairn_config::CairnConfig;
use crate::certs::Certs;
use crate::envoy_config::EnvoyConfig;
use crate::machine::spawn_on;
use crate::procfs::Usage;
use crate::world::World;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// How long a proxy may take to start.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A program that is measured.
#[derive(Debug, Clone)]
pub struct Contender {
    /// Name in reports.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its file.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    /// A program that runs it, with the words before its own.
    pub under: Vec<String>,
}

/// What a program is configured like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A build of Cairn.
    Cairn,
    /// Envoy.
    Envoy,
}

/// A proxy at work. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    config: Config,
    started: Instant,
    log: PathBuf,
    ready: (SocketAddr, &'static str),
    /// Process id.
    pub pid: u32,
    /// Where it accepts HBONE.
    pub listen: SocketAddr,
}

#[derive(Debug)]
enum Config {
    Cairn(CairnConfig),
    Envoy(EnvoyConfig),
}

/// How a proxy is started.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// What it is configured with.
    pub world: &'a World,
    /// Who it is.
    pub certs: &'a Certs,
    /// Where its files go.
    pub dir: &'a Path,
    /// Its cores; it has as many threads.
    pub cores: &'a [usize],
}

impl Contender {
    fn command(&self) -> Command {
        match self.under.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        }
    }

    /// Writes the configuration and starts the program. It is not ready yet.
    pub async fn start(&self, how: Start<'_>) -> Result<Proxy> {
        let Start { world, certs, dir, cores } = how;
        let (listen, admin) = (free_address().await?, free_address().await?);
        let dir = dir.join(&self.name);
        let log = dir.with_extension("log");
        let (config, mut command) = match self.kind {
            Kind::Cairn => {
                let config = CairnConfig::write(world, &dir, listen, &certs.waypoint)?;
                let metrics = free_address().await?;
                let mut command = self.command();
                command.arg("proxy").arg("--config").arg(config.path());
                command.args(["--log-level", "warn", "--admin", "off"]);
                command.arg("--workers").arg(cores.len().to_string());
                command.arg("--health").arg(admin.to_string());
                command.arg("--metrics").arg(metrics.to_string());
                (Config::Cairn(config), command)
            }
            Kind::Envoy => {
                let config = EnvoyConfig::write(world, &dir, listen, admin, &certs.waypoint)?;
                let mut command = self.command();
                command.arg("-c").arg(config.bootstrap());
                command.args(["--disable-hot-restart", "--log-level", "warning"]);
                // As in Istio: a warning for each deprecated field would be most of its start.
                command.args(["--component-log-level", "misc:error"]);
                command.arg("--concurrency").arg(cores.len().to_string());
                (Config::Envoy(config), command)
            }
        };
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let started = Instant::now();
        let child = spawn_on(cores, &mut command)
            .with_context(|| format!("{} does not start", self.program.display()))?;
        let pid = child.id().context("the proxy has ended at once")?;
        let ready = match self.kind {
            Kind::Cairn => (admin, "/healthz/ready"),
            Kind::Envoy => (admin, "/ready"),
        };
        Ok(Proxy { child, config, started, log, ready, pid, listen })
    }
}

impl Proxy {
    /// Waits until its own readiness page says so; tells how long it took from the start.
    ///
    /// It asks again and again without a pause, for the sake of precision.
    pub async fn until_ready(&mut self) -> Result<Duration> {
        loop {
            if is_ready(self.ready).await {
                return Ok(self.started.elapsed());
            }
            self.check_alive()?;
            tokio::task::yield_now().await;
        }
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

    /// Pushes the endpoints of the last service.
    pub fn push_endpoints(&self, world: &World) -> Result<()> {
        match &self.config {
            Config::Cairn(config) => {
                config.write_endpoints(world, world.services.len().saturating_sub(1))
            }
            Config::Envoy(config) => config.write_endpoints(world),
        }
    }

    /// Pushes the routes of the last service.
    pub fn push_routes(&self, world: &World) -> Result<()> {
        match &self.config {
            Config::Cairn(config) => {
                config.write_services(world, world.services.len().saturating_sub(1))
            }
            Config::Envoy(config) => config.write_listeners(world),
        }
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

async fn is_ready((address, path): (SocketAddr, &str)) -> bool {
    let ask = async {
        let mut tcp = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        tcp.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer.ends_with(b" 200"))
    };
    ask.await.unwrap_or(false)
}

/// An address of the loopback interface that nobody has.
async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(listener.local_addr()?)
}
