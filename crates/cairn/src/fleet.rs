//! The meshes that run: how a configuration becomes running meshes, and how they end.
//!
//! A mesh is started with its address, identity and limits, which stay what they are for its
//! life; its resources are compiled and published again whenever they change. Meshes come and go
//! while the others run.

mod limits;

use arc_swap::ArcSwap;
use cairn_identity::Identity;
use cairn_identity::files::FileWatch;
use cairn_proxy::{InstanceConfig, ListenError, MeshInstance, Running, Workers};
use cairn_router::compile::Compiler;
use cairn_router::error::CompileError;
use cairn_router::spec::Resources;
use cairn_telemetry::Telemetry;
use cairn_xds::MeshConfig;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// One running mesh, as the admin pages see it.
pub struct Entry {
    /// Name of the mesh.
    pub name: String,
    /// Where it accepts HBONE.
    pub address: SocketAddr,
    /// What it was started with.
    pub config: MeshConfig,
    /// What it serves.
    pub resources: Resources,
    /// What runs.
    pub instance: Arc<MeshInstance>,
}

/// The running meshes by name, for readers on any thread.
#[derive(Default)]
pub struct Roster(ArcSwap<Vec<Arc<Entry>>>);

impl Roster {
    /// What runs at this moment, in the order of names.
    pub fn entries(&self) -> Arc<Vec<Arc<Entry>>> {
        self.0.load_full()
    }
}

/// What a mesh is started with.
pub struct NewMesh {
    /// Address, identity and limits; its resources are not looked at.
    pub config: MeshConfig,
    /// What it serves.
    pub resources: Resources,
    /// Who it is.
    pub identity: Identity,
    /// Keeps the identity fresh; it ends with the mesh.
    pub watch: Option<FileWatch>,
}

/// Why a mesh does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its resources are wrong.
    #[error("{}", first(.0))]
    Resources(Vec<CompileError>),
    /// Its address cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Runs meshes.
pub struct Fleet {
    workers: Workers,
    telemetry: Arc<Telemetry>,
    roster: Arc<Roster>,
    members: BTreeMap<String, Member>,
}

struct Member {
    entry: Arc<Entry>,
    compiler: Compiler,
    running: Running,
    _watch: Option<FileWatch>,
}

impl Fleet {
    /// Without meshes.
    pub fn new(workers: Workers, telemetry: Arc<Telemetry>) -> Fleet {
        Fleet { workers, telemetry, roster: Arc::default(), members: BTreeMap::new() }
    }

    /// For readers.
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster)
    }

    /// Names of the meshes that run.
    pub fn names(&self) -> Vec<String> {
        self.members.keys().cloned().collect()
    }

    /// What the mesh was started with.
    pub fn config(&self, name: &str) -> Option<&MeshConfig> {
        self.members.get(name).map(|member| &member.entry.config)
    }

    /// Compiles, publishes and listens, in this order: the first tunnel finds everything in place.
    pub async fn start(&mut self, new: NewMesh) -> Result<SocketAddr, StartError> {
        let NewMesh { config, resources, identity, watch } = new;
        free(&config).await?;
        let mut compiler = Compiler::new(&config.name);
        let mesh = compiler.compile(&resources).map_err(StartError::Resources)?;
        warn(&config.name, mesh.warnings());
        let settings = InstanceConfig {
            name: config.name.clone(),
            listen: config.listen,
            limits: limits::of(&config.limits),
        };
        let instance = MeshInstance::new(settings, identity, Arc::clone(&self.telemetry));
        warn_of_tls(&config.name, instance.publish(mesh));
        let running = cairn_proxy::listen(Arc::clone(&instance), &self.workers).await?;
        let address = running.local_addr;
        let name = config.name.clone();
        let entry = Arc::new(Entry { name: name.clone(), address, config, resources, instance });
        let member = Member { entry, compiler, running, _watch: watch };
        self.members.insert(name, member);
        self.publish_roster();
        Ok(address)
    }

    /// Serves other resources from here on. `Ok(false)`: they are the same as before. With errors
    /// the old ones stay.
    pub fn update(&mut self, name: &str, resources: &Resources) -> Result<bool, Vec<CompileError>> {
        let Some(member) = self.members.get_mut(name) else { return Ok(false) };
        if member.entry.resources == *resources {
            return Ok(false);
        }
        let mesh = member.compiler.compile(resources)?;
        warn(name, mesh.warnings());
        warn_of_tls(name, member.entry.instance.publish(mesh));
        let Entry { name, address, config, resources: _, instance } = &*member.entry;
        member.entry = Arc::new(Entry {
            name: name.clone(),
            address: *address,
            config: config.clone(),
            resources: resources.clone(),
            instance: Arc::clone(instance),
        });
        self.publish_roster();
        Ok(true)
    }

    /// Takes a mesh out; it drains in the background.
    pub fn remove(&mut self, name: &str, limit: Duration) {
        let Some(member) = self.members.remove(name) else { return };
        self.publish_roster();
        let name = name.to_owned();
        tokio::spawn(async move {
            let cut = member.running.drain(limit).await.cut;
            tracing::info!(mesh = name, cut, "mesh removed");
        });
    }

    /// Drains all meshes at once and counts the tunnels that had to be cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        let drains = self.members.values().map(|member| member.running.drain(limit));
        futures::future::join_all(drains).await.into_iter().map(|drained| drained.cut).sum()
    }

    fn publish_roster(&self) {
        let entries = self.members.values().map(|member| Arc::clone(&member.entry)).collect();
        self.roster.0.store(Arc::new(entries));
    }
}

/// Whether the address can be had. An instance registers its metrics for good, so none is made
/// for an address that is taken.
async fn free(config: &MeshConfig) -> Result<(), ListenError> {
    let MeshConfig { name, listen, .. } = config;
    match TcpListener::bind(listen).await {
        Ok(_) => Ok(()),
        Err(source) => Err(ListenError { address: *listen, mesh: name.clone(), source }),
    }
}

fn warn(mesh: &str, warnings: &[String]) {
    /// More are on the admin page.
    const SHOWN: usize = 20;
    for warning in warnings.iter().take(SHOWN) {
        tracing::warn!(mesh, "{warning}");
    }
    if warnings.len() > SHOWN {
        tracing::warn!(
            mesh,
            "{} more warnings, see /config on the admin port",
            warnings.len() - SHOWN
        );
    }
}

fn warn_of_tls(mesh: &str, unusable: Vec<(Arc<str>, String)>) {
    for (cluster, reason) in unusable {
        tracing::warn!(mesh, %cluster, reason, "TLS settings cannot be used, the cluster is not dialled");
    }
}

fn first(errors: &[CompileError]) -> String {
    match errors {
        [] => "the resources are wrong".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more errors)", rest.len()),
    }
}
