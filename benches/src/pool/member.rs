//! A member of the pool as a process, with an address of its own on loopback.

use super::{PATIENCE, POOL_TOKEN};
use anyhow::{Context, Result, bail, ensure};
use cairn_test_support::http1::Http1;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Ports of a member that are not a cluster's.
const PORTS: [u16; 4] = [15000, 15020, 15021, 15090];
/// Where people ask.
pub const ADMIN: u16 = 15000;
/// Where scaler and registrar ask.
pub const AGENT: u16 = 15020;
/// A member that has not ended after so long never will.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How a member is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Cairn.
    pub program: PathBuf,
    /// Further arguments of `pool member`.
    pub args: Vec<String>,
}

/// A running member; it is killed when this is dropped.
#[derive(Debug)]
pub struct Member {
    /// Its address.
    pub ip: IpAddr,
    dir: PathBuf,
    child: Child,
    pid: Pid,
}

impl Member {
    /// Starts one; its files go to a directory of `dir`.
    pub fn start(launch: &Launch, dir: &Path, ip: IpAddr, file: &str) -> Result<Member> {
        let dir = dir.join(format!("member-{ip}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(token_in(&dir), POOL_TOKEN)?;
        fs::write(dir.join("pool.yaml"), file)?;
        let mut ports = String::new();
        for port in PORTS {
            write!(ports, "{port}={ip}:{port},")?;
        }
        let mut command = Command::new(&launch.program);
        command.args(["pool", "member", "--workers", "1", "--config"]).arg(dir.join("pool.yaml"));
        command.args(&launch.args);
        command.env_clear().env("CAIRN_PORTS", ports).env("CAIRN_LOOPBACK_ENDPOINTS", "on");
        let log = File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn();
        let child =
            child.with_context(|| format!("{} does not start", launch.program.display()))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Member { ip, dir, child, pid: pid.context("the member has ended at once")? })
    }

    /// Puts another file in the place of its own.
    pub fn rewrite(&self, file: &str) -> Result<()> {
        let fresh = self.dir.join("pool.yaml.new");
        fs::write(&fresh, file)?;
        Ok(fs::rename(fresh, self.dir.join("pool.yaml"))?)
    }

    /// An error when it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("member {} has ended with {status}; {}", self.ip, self.log()),
        }
    }

    fn log(&self) -> String {
        let path = self.dir.join("log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("the end of {}:\n{last}", path.display())
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        kill_process(self.pid, Signal::TERM).context("the member cannot be ended")
    }

    /// A drain order that shows the pool's token.
    pub async fn order_drain(&self) -> Result<()> {
        let bearer = format!("Bearer {POOL_TOKEN}");
        let headers = [("Authorization", bearer.as_str())];
        let (status, body) = ask(self.at(AGENT), "POST", "/drain", &headers).await?;
        ensure!(status == 200, "POST /drain: status {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// Waits until it has ended, which it must do well.
    pub async fn ended(mut self) -> Result<()> {
        let status = timeout(END_LIMIT, self.child.wait()).await;
        let status = status
            .map_err(|_| anyhow::anyhow!("member {} has not ended; {}", self.ip, self.log()))??;
        ensure!(status.success(), "member {} has ended with {status}; {}", self.ip, self.log());
        Ok(())
    }

    /// The rows of its page `/clusters`; empty while there is none.
    pub async fn clusters(&mut self) -> Result<Vec<Value>> {
        self.check_alive()?;
        match ask(self.at(ADMIN), "GET", "/clusters", &[]).await {
            Ok((200, body)) => Ok(serde_json::from_slice(&body)?),
            Ok((status, _)) => bail!("/clusters of {}: status {status}", self.ip),
            // It is not there yet.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// What it says of its load.
    pub async fn load(&self) -> Result<Value> {
        let (status, body) = ask(self.at(AGENT), "GET", "/load", &[]).await?;
        ensure!(status == 200, "/load of {}: status {status}", self.ip);
        Ok(serde_json::from_slice(&body)?)
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

/// Where a member finds the pool's token.
fn token_in(dir: &Path) -> PathBuf {
    dir.join("token")
}

/// Where the member of this address finds the pool's token.
pub fn token_of(dir: &Path, ip: IpAddr) -> PathBuf {
    token_in(&dir.join(format!("member-{ip}")))
}

/// Status and body of a page.
pub async fn ask(
    at: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, Vec<u8>)> {
    let asking = async {
        let tcp = TcpStream::connect(at).await?;
        let answer = Http1::new(tcp).request(method, path, headers, b"").await?;
        std::io::Result::Ok((answer.status, answer.body.to_vec()))
    };
    let answer = timeout(PATIENCE, asking).await;
    let answer = answer.with_context(|| format!("{at}{path} does not answer"))?;
    answer.with_context(|| format!("{at}{path}"))
}
