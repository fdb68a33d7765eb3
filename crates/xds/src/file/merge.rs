//! Documents of several files → one [`Config`], and the way back from it to the files.
//!
//! Files may contribute to the same mesh. Its lists are concatenated in the order of the files;
//! everything else of a mesh, and of the process, stands in one file only.

use super::config::{
    AdminConfig, Config, DrainConfig, IdentityConfig, Limits, LoadConfig, MeshConfig, Placement,
};
use super::document::{Document, MeshPart};
use super::error::Problem;
use super::tree::split_index;
use cairn_router::spec::Resources;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A file and what it holds.
pub(super) struct Part {
    pub file: PathBuf,
    pub document: Arc<Document>,
}

/// A problem that only shows when the files are put together.
#[derive(Debug)]
pub(super) struct Conflict {
    /// Index of the file to blame.
    pub file: usize,
    pub problem: Problem,
}

/// From which file and entry each part of each mesh came.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    meshes: HashMap<String, Vec<Origin>>,
}

/// What one file has contributed to a mesh.
#[derive(Debug, Clone)]
struct Origin {
    file: usize,
    /// Index in the file's `meshes`.
    index: usize,
    /// Lengths of the lists, in the order of [`LISTS`].
    lengths: [usize; 4],
}

const LISTS: [&str; 4] = ["destinations", "clusters", "endpoints", "workloads"];

impl Origins {
    /// The file, by index, and the path in it of `path` in the merged resources of `mesh`.
    pub fn find(&self, mesh: &str, path: &str) -> Option<(usize, String)> {
        let origins = self.meshes.get(mesh)?;
        let first = origins.first()?;
        let whole = (first.file, format!("meshes[{}].{path}", first.index));
        let list = LISTS
            .iter()
            .position(|list| path.strip_prefix(list).is_some_and(|rest| rest.starts_with('[')));
        let Some((list, name)) = list.and_then(|list| Some((list, *LISTS.get(list)?))) else {
            return Some(whole);
        };
        let Some((mut entry, tail)) = path.strip_prefix(name).and_then(split_index) else {
            return Some(whole);
        };
        for Origin { file, index, lengths } in origins {
            let length = lengths.get(list).copied().unwrap_or(0);
            match entry.checked_sub(length) {
                None => return Some((*file, format!("meshes[{index}].{name}[{entry}]{tail}"))),
                Some(rest) => entry = rest,
            }
        }
        Some(whole)
    }
}

/// A value that one file only may set.
struct Once<T> {
    set: Option<(usize, T)>,
}

impl<T> Once<T> {
    const EMPTY: Self = Once { set: None };

    fn take(self) -> Option<T> {
        self.set.map(|(_, value)| value)
    }
}

/// A mesh while files are added to it.
struct Gathered {
    name: String,
    listen: Once<SocketAddr>,
    identity: Once<IdentityConfig>,
    trust_domains: Once<Vec<String>>,
    limits: Once<Limits>,
    resources: Resources,
    origins: Vec<Origin>,
}

/// Puts files together, in the order given.
pub(super) fn merge(parts: Vec<Part>) -> Result<(Config, Origins), Vec<Conflict>> {
    let files: Vec<PathBuf> = parts.iter().map(|part| part.file.clone()).collect();
    let mut merger = Merger {
        files,
        workers: Once::EMPTY,
        placement: Once::EMPTY,
        drain: Once::EMPTY,
        admin: Once::EMPTY,
        load: Once::EMPTY,
        meshes: Vec::new(),
        by_name: HashMap::new(),
        conflicts: Vec::new(),
    };
    for (file, part) in parts.into_iter().enumerate() {
        merger.add(file, &part.document);
    }
    merger.finish()
}

struct Merger {
    files: Vec<PathBuf>,
    workers: Once<usize>,
    placement: Once<Placement>,
    drain: Once<DrainConfig>,
    admin: Once<AdminConfig>,
    load: Once<LoadConfig>,
    meshes: Vec<Gathered>,
    by_name: HashMap<String, usize>,
    conflicts: Vec<Conflict>,
}

/// Sets a value, or says which file has set it before.
fn set<T>(
    slot: &mut Once<T>,
    value: Option<T>,
    at: (usize, String),
    files: &[PathBuf],
    conflicts: &mut Vec<Conflict>,
) {
    let (file, field) = at;
    match (value, &slot.set) {
        (None, _) => {}
        (Some(value), None) => slot.set = Some((file, value)),
        (Some(_), Some((other, _))) => {
            let other =
                files.get(*other).map(|path| path.display().to_string()).unwrap_or_default();
            let message = format!("{other} sets this as well; expected in one file only");
            conflicts.push(Conflict { file, problem: Problem::of_field(field, message) });
        }
    }
}

impl Merger {
    fn add(&mut self, file: usize, document: &Document) {
        let Document { workers, placement, drain, admin, load, meshes } = document;
        let Self { files, conflicts, .. } = self;
        set(&mut self.workers, *workers, (file, "workers".to_owned()), files, conflicts);
        set(&mut self.placement, *placement, (file, "placement".to_owned()), files, conflicts);
        set(&mut self.drain, drain.clone(), (file, "drain".to_owned()), files, conflicts);
        set(&mut self.admin, admin.clone(), (file, "admin".to_owned()), files, conflicts);
        set(&mut self.load, load.clone(), (file, "load".to_owned()), files, conflicts);
        for (index, mesh) in meshes.iter().enumerate() {
            self.add_mesh(file, index, mesh);
        }
    }

    fn add_mesh(&mut self, file: usize, index: usize, part: &MeshPart) {
        let MeshPart {
            name,
            listen,
            identity,
            trust_domains,
            limits,
            destinations,
            clusters,
            endpoints,
            workloads,
        } = part;
        let known = self.by_name.get(name).copied().unwrap_or(self.meshes.len());
        if known == self.meshes.len() {
            self.by_name.insert(name.clone(), known);
            self.meshes.push(Gathered {
                name: name.clone(),
                listen: Once::EMPTY,
                identity: Once::EMPTY,
                trust_domains: Once::EMPTY,
                limits: Once::EMPTY,
                resources: Resources::default(),
                origins: Vec::new(),
            });
        }
        let Self { files, conflicts, meshes, .. } = self;
        let mesh = meshes.get_mut(known).expect("it is there or has been pushed");
        let at = |field: &str| (file, format!("meshes[{index}].{field}"));
        if mesh.origins.last().is_some_and(|origin| origin.file == file) {
            let message = format!("this file has a mesh `{name}` already; write it once per file");
            conflicts.push(Conflict { file, problem: Problem::of_field(at("name").1, message) });
            return;
        }
        set(&mut mesh.listen, *listen, at("listen"), files, conflicts);
        set(&mut mesh.identity, identity.clone(), at("identity"), files, conflicts);
        set(&mut mesh.trust_domains, trust_domains.clone(), at("trust_domains"), files, conflicts);
        set(&mut mesh.limits, limits.clone(), at("limits"), files, conflicts);
        mesh.origins.push(Origin {
            file,
            index,
            lengths: [destinations.len(), clusters.len(), endpoints.len(), workloads.len()],
        });
        mesh.resources.destinations.extend_from_slice(destinations);
        mesh.resources.clusters.extend_from_slice(clusters);
        mesh.resources.endpoints.extend_from_slice(endpoints);
        mesh.resources.workloads.extend_from_slice(workloads);
    }

    fn finish(self) -> Result<(Config, Origins), Vec<Conflict>> {
        let Merger {
            files: _,
            workers,
            placement,
            drain,
            admin,
            load,
            meshes,
            by_name: _,
            mut conflicts,
        } = self;
        if meshes.is_empty() {
            let message = "no mesh: expected at least one entry with a `name` and an `identity`";
            conflicts.push(Conflict { file: 0, problem: Problem::of_field("meshes", message) });
        }
        let admin_file = admin.set.as_ref().map_or(0, |(file, _)| *file);
        let admin = admin.take().unwrap_or_default();
        let mut listeners = admin_listeners(admin_file, &admin);
        let mut origins = Origins::default();
        let mut configs = Vec::with_capacity(meshes.len());
        for mesh in meshes {
            let Gathered {
                name,
                listen,
                identity,
                trust_domains,
                limits,
                resources,
                origins: parts,
            } = mesh;
            let (file, index) = parts.first().map_or((0, 0), |origin| (origin.file, origin.index));
            let listen_file = listen.set.as_ref().map_or(file, |(file, _)| *file);
            let listen_index =
                parts.iter().find(|o| o.file == listen_file).map_or(index, |o| o.index);
            let listen = listen.take().unwrap_or(MeshConfig::DEFAULT_LISTEN);
            listeners.push(Listener {
                name: format!("the mesh `{name}`"),
                address: listen,
                file: listen_file,
                field: format!("meshes[{listen_index}].listen"),
            });
            let Some(identity) = identity.take() else {
                let message = "missing: expected `{files: {cert, key, roots}}` or `{dev: {id}}`";
                let field = format!("meshes[{index}].identity");
                conflicts.push(Conflict { file, problem: Problem::of_field(field, message) });
                continue;
            };
            origins.meshes.insert(name.clone(), parts);
            configs.push(MeshConfig {
                name,
                listen,
                identity,
                trust_domains: trust_domains.take().unwrap_or_default(),
                limits: limits.take().unwrap_or_default(),
                resources,
            });
        }
        conflicts.extend(overlaps(&listeners));
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let config = Config {
            workers: workers.take().unwrap_or(0),
            placement: placement.take().unwrap_or_default(),
            drain: drain.take().unwrap_or_default(),
            admin,
            load: load.take().unwrap_or_default(),
            meshes: configs,
        };
        Ok((config, origins))
    }
}

/// An address that the process will listen on, and what has asked for it.
struct Listener {
    name: String,
    address: SocketAddr,
    file: usize,
    field: String,
}

fn admin_listeners(file: usize, admin: &AdminConfig) -> Vec<Listener> {
    let AdminConfig { address, metrics, health } = admin;
    [("admin.address", address), ("admin.metrics", metrics), ("admin.health", health)]
        .into_iter()
        .map(|(field, address)| Listener {
            name: format!("`{field}`"),
            address: *address,
            file,
            field: field.to_owned(),
        })
        .collect()
}

/// Listeners that cannot stand beside an earlier one. Each is reported once.
fn overlaps(listeners: &[Listener]) -> Vec<Conflict> {
    let shared = |a: SocketAddr, b: SocketAddr| {
        let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() != 0 && a.port() == b.port() && same_ip
    };
    let conflict = |(index, listener): (usize, &Listener)| {
        let Listener { name: _, address, file, field } = listener;
        let other = listeners.iter().take(index).find(|other| shared(*address, other.address))?;
        let message = format!(
            "{address} is taken by {} ({}); expected an address of its own",
            other.name, other.address
        );
        Some(Conflict { file: *file, problem: Problem::of_field(field.clone(), message) })
    };
    listeners.iter().enumerate().filter_map(conflict).collect()
}
