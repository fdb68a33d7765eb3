//! The proxies that are compared, and one of them at work.

use crate::cairn_config::CairnConfig;
use crate::certs::Certs;
use crate::envoy_config::EnvoyConfig;
use crate::process::{Doors, Process};
use crate::world::World;
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;
use tokio::process::Command;

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

/// A proxy at work with the files that it reads. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    /// Its process.
    pub process: Process,
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
    /// Runs it, so far without words.
    pub fn command(&self) -> Command {
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
        let (config, command) = match self.kind {
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
        let ready = match self.kind {
            Kind::Cairn => "/healthz/ready",
            Kind::Envoy => "/ready",
        };
        let doors = Doors { hbone: listen, health: admin, ready };
        Ok(Proxy { config, process: Process::start(command, cores, log, doors)? })
    }
}

impl Proxy {
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
}

/// An address of the loopback interface that nobody has.
pub async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(listener.local_addr()?)
}
