//! The test bed: certificates, the backend, and the cores that everybody runs on.

use crate::backend::Addresses;
use crate::certs::{Certs, Files};
use crate::load::{Line, LoadArgs, LoadReport};
use crate::machine::{Placement, run_on, spawn_on};
use crate::process::Process;
use crate::proxy::{Contender, Proxy, Start};
use crate::world::{WAYPOINT, World};
use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep_until};

/// What all measurements share. Dropping it ends the backend.
pub struct Bed {
    dir: PathBuf,
    program: PathBuf,
    certs: Certs,
    placement: Placement,
    backend: Backend,
}

/// The backend at work. Dropping it ends it.
pub struct Backend {
    child: Child,
    /// Where it is.
    pub addresses: Addresses,
}

/// A load generator at work.
pub struct Load {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: Option<ChildStdin>,
}

impl Bed {
    /// Issues certificates into `dir` and starts the backend. This thread moves to the backend's core,
    /// so that the proxy's is the proxy's alone.
    pub async fn start(dir: &Path, placement: Placement) -> Result<Bed> {
        let dir = dir.join("work");
        let certs = Certs::issue(&dir.join("certs"))?;
        let program = std::env::current_exe()?;
        run_on(&placement.others)?;
        let backend = Backend::start(&program, &certs.pod, Ipv4Addr::LOCALHOST, &placement).await?;
        Ok(Bed { dir, program, certs, placement, backend })
    }

    /// Another backend, with a certificate of another mesh, that accepts HBONE at all addresses.
    pub async fn backend(&self, files: &Files) -> Result<Backend> {
        Backend::start(&self.program, files, Ipv4Addr::UNSPECIFIED, &self.placement).await
    }

    /// Cores of proxies.
    pub fn cores(&self) -> &[usize] {
        &self.placement.proxy
    }

    /// Where the backend is.
    pub fn addresses(&self) -> Addresses {
        self.backend.addresses
    }

    /// The client's certificate.
    pub fn client(&self) -> &Files {
        &self.certs.client
    }

    /// Where files of a run go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a proxy.
    pub async fn proxy(&self, contender: &Contender, world: &World) -> Result<Proxy> {
        let start =
            Start { world, certs: &self.certs, dir: &self.dir, cores: &self.placement.proxy };
        contender.start(start).await.with_context(|| format!("{} does not start", contender.name))
    }

    /// Arguments of a load on `proxy`, with defaults for the rest.
    pub fn load_args(&self, proxy: &Process) -> LoadArgs {
        let Files { cert, key, roots } = self.certs.client.clone();
        LoadArgs {
            cert,
            key,
            roots,
            proxy_pid: Some(proxy.pid),
            backend_pid: self.backend.pid(),
            ..LoadArgs::new(proxy.hbone(), WAYPOINT.to_owned())
        }
    }

    /// Starts a load generator.
    pub fn load(&self, args: &LoadArgs) -> Result<Load> {
        self.start_load(args.to_words())
    }

    /// Starts a process of the load generator with other words.
    pub fn start_load(&self, words: Vec<String>) -> Result<Load> {
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = spawn_on(&self.placement.others, &mut command)?;
        let output = child.stdout.take().context("the load generator has no output")?;
        let input = child.stdin.take();
        Ok(Load { child, lines: BufReader::new(output).lines(), input })
    }
}

impl Backend {
    async fn start(
        program: &Path,
        files: &Files,
        hbone: Ipv4Addr,
        placement: &Placement,
    ) -> Result<Backend> {
        let mut command = Command::new(program);
        command.arg("backend").args(file_words(files)).arg(format!("--hbone={hbone}:0"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = spawn_on(&placement.others, &mut command)?;
        let output = child.stdout.take().context("the backend has no output")?;
        let line = BufReader::new(output).lines().next_line().await?;
        let line = line.context("the backend has ended")?;
        let addresses = serde_json::from_str(&line).context("the backend says something else")?;
        Ok(Backend { child, addresses })
    }

    /// Its process id, as long as it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

impl Load {
    /// What it says next.
    pub async fn line(&mut self) -> Result<Line> {
        match self.lines.next_line().await? {
            Some(line) => serde_json::from_str(&line)
                .with_context(|| format!("the load generator says `{line}`")),
            None => bail!("the load generator ended with {}", self.child.wait().await?),
        }
    }

    /// Tells it to go on to the next part.
    pub async fn mark(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("the load generator takes no more")?;
        input.write_all(b"\n").await?;
        Ok(input.flush().await?)
    }

    /// Hands on how it goes until then.
    pub async fn watch(&mut self, until: Instant, mut progress: impl FnMut(&Line)) -> Result<()> {
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                line = self.line() => match line? {
                    Line::Result(_) => bail!("the load is over too early"),
                    line => progress(&line),
                },
            }
        }
    }

    /// Waits for the result, and hands on how it goes.
    pub async fn result(&mut self, mut progress: impl FnMut(&Line)) -> Result<LoadReport> {
        loop {
            match self.line().await? {
                Line::Result(report) => {
                    self.input = None;
                    self.child.wait().await?;
                    return Ok(report);
                }
                line => progress(&line),
            }
        }
    }

    /// Lets it end.
    pub async fn end(mut self) -> Result<()> {
        self.input = None;
        match tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await {
            Ok(ended) => ended.map(drop).map_err(Into::into),
            Err(_) => Ok(self.child.kill().await?),
        }
    }
}

/// Certificate files as options of `load`, `hold` and `backend`.
pub fn file_words(files: &Files) -> Vec<String> {
    let Files { cert, key, roots } = files;
    let word = |option: &str, path: &Path| format!("--{option}={}", path.display());
    vec![word("cert", cert), word("key", key), word("roots", roots)]
}
