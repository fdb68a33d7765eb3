//! Keeps the running meshes what the configuration says.
//!
//! At start a mesh that cannot listen or compile is the user's to repair: the process ends. One
//! whose certificate is not there yet is waited for. Later on nothing ends the process: what
//! cannot be done is logged, and tried again where time may help.

use super::identity;
use crate::check::broken;
use crate::failure::Failure;
use crate::fleet::{Fleet, NewMesh, StartError};
use crate::ready::{Readiness, Step};
use cairn_router::error::CompileError;
use cairn_xds::{
    AdminConfig, Config, FileError, FileSource, IdentityConfig, LoadConfig, MeshConfig, Placement,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Errors that are logged at most.
const MAX_LOGGED: usize = 20;

/// The meshes and those that are still to come.
pub struct Reconciler {
    fleet: Fleet,
    readiness: Arc<Readiness>,
    /// Reasons by name of the mesh.
    waiting: BTreeMap<String, String>,
    started: Started,
}

/// What the process was started with and cannot change.
struct Started {
    workers: usize,
    placement: Placement,
    admin: AdminConfig,
    load: LoadConfig,
}

/// Why a mesh does not run.
enum Obstacle {
    /// May pass by itself.
    Identity(identity::NoIdentity),
    /// Does not.
    Start(StartError),
}

/// What readiness calls a mesh.
pub fn mesh_label(name: &str) -> String {
    format!("mesh {name}")
}

/// One line for each error; the configuration in use stays.
pub fn log_errors(errors: &[FileError]) {
    for error in errors.iter().take(MAX_LOGGED) {
        tracing::error!("{error}");
    }
    tracing::error!(errors = errors.len(), "configuration refused, the last good one stays in use");
}

impl Reconciler {
    /// With a fleet that has no meshes yet.
    pub fn new(fleet: Fleet, readiness: Arc<Readiness>, config: &Config) -> Self {
        let started = Started::of(config);
        Reconciler { fleet, readiness, waiting: BTreeMap::new(), started }
    }

    /// Some mesh waits for its certificate, or for an address.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts all meshes. Those without a certificate are waited for.
    pub async fn start(&mut self, source: &FileSource, config: &Config) -> Result<(), Failure> {
        for mesh in &config.meshes {
            match self.try_start(mesh).await {
                Ok(()) => {}
                Err(Obstacle::Identity(error)) => self.wait(&mesh.name, error.to_string()),
                Err(Obstacle::Start(StartError::Resources(errors))) => {
                    return Err(broken(&explained(source, &mesh.name, &errors)));
                }
                Err(Obstacle::Start(error @ StartError::Listen(_))) => {
                    return Err(Failure::new(error)
                        .hint(format!("`listen` of mesh `{}` sets the address", mesh.name)));
                }
            }
        }
        Ok(())
    }

    /// Brings the meshes in line with a changed configuration.
    pub async fn follow(&mut self, source: &FileSource, config: &Config) {
        self.started.warn_of_change(config);
        let wanted = |name: &str| config.meshes.iter().any(|mesh| mesh.name == name);
        for name in self.fleet.names() {
            if !wanted(&name) {
                tracing::info!(mesh = name, "mesh is not configured any more, draining it");
                self.fleet.remove(&name, config.drain.limit);
            }
        }
        let gone: Vec<_> = self.waiting.keys().filter(|name| !wanted(name)).cloned().collect();
        for name in gone {
            self.waiting.remove(&name);
            self.readiness.arrived(&mesh_label(&name));
        }
        for mesh in &config.meshes {
            match self.fleet.config(&mesh.name) {
                Some(running) => {
                    warn_of_fixed(running, mesh);
                    self.update(source, mesh);
                }
                None => self.start_or_wait(source, mesh).await,
            }
        }
    }

    /// Tries again what did not start.
    pub async fn retry(&mut self, source: &FileSource, config: &Config) {
        for mesh in &config.meshes {
            if self.waiting.contains_key(&mesh.name) {
                self.start_or_wait(source, mesh).await;
            }
        }
    }

    /// Drains all meshes and counts what had to be cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.fleet.drain(limit).await
    }

    fn update(&mut self, source: &FileSource, mesh: &MeshConfig) {
        match self.fleet.update(&mesh.name, mesh.resources()) {
            Ok(true) => tracing::info!(mesh = mesh.name, "configuration published"),
            Ok(false) => {}
            Err(errors) => log_errors(&explained(source, &mesh.name, &errors)),
        }
    }

    async fn start_or_wait(&mut self, source: &FileSource, mesh: &MeshConfig) {
        let reason = match self.try_start(mesh).await {
            Ok(()) => return,
            Err(Obstacle::Identity(error)) => error.to_string(),
            Err(Obstacle::Start(StartError::Resources(errors))) => {
                let explained = explained(source, &mesh.name, &errors);
                explained.first().map(ToString::to_string).unwrap_or_default()
            }
            Err(Obstacle::Start(error @ StartError::Listen(_))) => error.to_string(),
        };
        self.wait(&mesh.name, reason);
    }

    async fn try_start(&mut self, config: &MeshConfig) -> Result<(), Obstacle> {
        let (identity, watch) = identity::of(config).await.map_err(Obstacle::Identity)?;
        self.readiness.reached(Step::Certificate);
        let id = identity.current().id.clone();
        let new = NewMesh {
            config: config.settings(),
            resources: config.resources().clone(),
            identity,
            watch,
        };
        let address = self.fleet.start(new).await.map_err(Obstacle::Start)?;
        self.readiness.reached(Step::Config);
        tracing::info!(%address, mesh = config.name, %id, "accepting HBONE");
        if let IdentityConfig::Dev(_) = config.identity {
            tracing::warn!(
                mesh = config.name,
                "throw-away identity: nobody outside this process trusts it; configure `files` for peers"
            );
        }
        self.waiting.remove(&config.name);
        self.readiness.arrived(&mesh_label(&config.name));
        Ok(())
    }

    /// Logs each reason once.
    fn wait(&mut self, mesh: &str, reason: String) {
        if self.waiting.get(mesh) != Some(&reason) {
            tracing::warn!(mesh, reason, "waiting");
            self.readiness.still_missing(&mesh_label(mesh), &reason);
            self.waiting.insert(mesh.to_owned(), reason);
        }
    }
}

impl Started {
    fn of(config: &Config) -> Self {
        let Config { workers, placement, drain: _, admin, load, meshes: _ } = config;
        Started {
            workers: *workers,
            placement: *placement,
            admin: admin.clone(),
            load: load.clone(),
        }
    }

    /// Says what the running process cannot change.
    fn warn_of_change(&self, wanted: &Config) {
        for (field, changed) in [
            ("workers", self.workers != wanted.workers),
            ("placement", self.placement != wanted.placement),
            ("admin", self.admin != wanted.admin),
            ("load", self.load != wanted.load),
        ] {
            if changed {
                tracing::warn!(
                    field,
                    "changed in the configuration; it takes effect after a restart"
                );
            }
        }
    }
}

/// With file and line.
fn explained(source: &FileSource, mesh: &str, errors: &[CompileError]) -> Vec<FileError> {
    errors.iter().map(|error| source.explain(mesh, &error.path, &error.message)).collect()
}

/// Says what a running mesh cannot change.
fn warn_of_fixed(running: &MeshConfig, wanted: &MeshConfig) {
    for (field, changed) in [
        ("listen", running.listen != wanted.listen),
        ("identity", running.identity != wanted.identity),
        ("trust_domains", running.trust_domains != wanted.trust_domains),
        ("limits", running.limits != wanted.limits),
    ] {
        if changed {
            tracing::warn!(
                mesh = wanted.name,
                field,
                "changed in the configuration; it takes effect after a restart"
            );
        }
    }
}
