//! From a configuration to a snapshot, changing only what changed.
//!
//! What was compiled before is kept by name beside the value that it was compiled from; an equal
//! value gives the same `Arc` again. Clusters, their endpoints and destinations are kept apart:
//! routes name clusters by string, so that new endpoints touch one cluster and nothing else.
//! Values in the same `Arc` as before are not even compared.

use crate::cluster::{Cluster, EndpointSet};
use crate::destination::Destination;
use crate::destination_index::DestinationIndex;
use crate::error::{CompileError, Context, MAX_ERRORS};
use crate::model::Mesh;
use crate::registry::Registry;
use crate::spec;
use crate::workload::{Workload, WorkloadIndex};
use ahash::AHashMap;
use std::sync::Arc;

/// Compiles one mesh, again and again.
#[derive(Debug)]
pub struct Compiler {
    mesh: Arc<str>,
    registry: Registry,
    kept: Kept,
}

/// What the last snapshot was made of.
#[derive(Debug, Default)]
struct Kept {
    snapshot: Mesh,
    destinations: AHashMap<Arc<str>, KeptDestination>,
    /// Names that belong to two destinations.
    conflicts: Vec<CompileError>,
    clusters: AHashMap<Arc<str>, KeptCluster>,
    /// Changes when a cluster comes or goes.
    cluster_names: u64,
    workloads: Vec<(Arc<spec::Workload>, Arc<Workload>)>,
}

/// Paths of its errors begin below the destination, whose place in the list may change.
#[derive(Debug, Clone)]
struct KeptDestination {
    position: usize,
    spec: Arc<spec::Destination>,
    compiled: Arc<Destination>,
    errors: Vec<CompileError>,
    /// Warnings about clusters that were not there when `cluster_names` was this.
    missing: (u64, Vec<CompileError>),
}

/// Paths of its errors begin below the cluster or endpoint set.
#[derive(Debug, Clone)]
struct KeptCluster {
    position: usize,
    spec: Arc<spec::Cluster>,
    /// `None`: has errors.
    compiled: Option<Arc<Cluster>>,
    errors: Vec<CompileError>,
    endpoints: KeptEndpoints,
}

#[derive(Debug, Clone, Default)]
struct KeptEndpoints {
    spec: Option<Arc<spec::EndpointSet>>,
    errors: Vec<CompileError>,
    warnings: Vec<CompileError>,
}

/// Endpoint sets by the name of their cluster, with their place in the list.
type EndpointSets<'a> = AHashMap<&'a str, (usize, &'a Arc<spec::EndpointSet>)>;

/// What is wrong, and what is odd.
#[derive(Debug, Default)]
struct Findings {
    errors: Bounded,
    warnings: Bounded,
}

/// At most [`MAX_ERRORS`].
#[derive(Debug, Default)]
struct Bounded {
    list: Vec<CompileError>,
    dropped: usize,
}

impl Compiler {
    /// For the mesh of that name, which is part of every tenant.
    pub fn new(mesh_name: &str) -> Self {
        Compiler { mesh: mesh_name.into(), registry: Registry::default(), kept: Kept::default() }
    }

    /// Compiles everything or, with all errors, nothing.
    pub fn compile(&mut self, resources: &spec::Resources) -> Result<Mesh, Vec<CompileError>> {
        let (kept, findings) = self.build(resources);
        if !findings.errors.list.is_empty() {
            return Err(findings.errors.into_list());
        }
        Ok(self.keep(kept, findings))
    }

    /// Compiles what can be compiled. A destination with an error is there but
    /// [broken](field@Destination::broken), a cluster is missing, an endpoint is left out, and of two
    /// values that claim the same name the first has it. Errors are among the warnings.
    pub fn compile_lossy(&mut self, resources: &spec::Resources) -> Mesh {
        let (kept, findings) = self.build(resources);
        self.keep(kept, findings)
    }

    fn keep(&mut self, mut kept: Kept, findings: Findings) -> Mesh {
        let Findings { errors, warnings } = findings;
        kept.snapshot.warnings = errors
            .into_list()
            .into_iter()
            .chain(warnings.into_list())
            .map(|finding| finding.to_string())
            .collect();
        self.kept = kept;
        self.kept.snapshot.clone()
    }

    fn build(&mut self, resources: &spec::Resources) -> (Kept, Findings) {
        let spec::Resources { destinations, clusters, endpoints, workloads } = resources;
        let mut kept = Kept::default();
        let mut findings = Findings::default();
        self.clusters(clusters, endpoints, &mut kept, &mut findings);
        self.destinations(destinations, &mut kept, &mut findings);
        self.workloads(workloads, &mut kept, &mut findings);
        (kept, findings)
    }

    fn clusters(
        &mut self,
        clusters: &[Arc<spec::Cluster>],
        endpoints: &[Arc<spec::EndpointSet>],
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        let mut sets = EndpointSets::with_capacity(endpoints.len());
        for (position, set) in endpoints.iter().enumerate() {
            if let Some((first, _)) = sets.get(set.cluster.as_str()) {
                let message = format!("endpoints[{first}] is for `{}` already", set.cluster);
                findings.errors.add("endpoints", position, "cluster", &message);
            } else {
                sets.insert(&set.cluster, (position, set));
            }
        }
        kept.clusters.reserve(clusters.len());
        let (mut changed, mut renamed) = (false, false);
        for (position, spec) in clusters.iter().enumerate() {
            if let Some(first) = kept.clusters.get(spec.name.as_str()) {
                let message =
                    format!("clusters[{}] is named `{}` already", first.position, spec.name);
                findings.errors.add("clusters", position, "name", &message);
                continue;
            }
            let set = sets.remove(spec.name.as_str());
            let previous = self.kept.clusters.get_key_value(spec.name.as_str());
            let (name, previous) = match previous {
                Some((name, previous)) => (Arc::clone(name), Some(previous)),
                None => (spec.name.as_str().into(), None),
            };
            let cluster = KeptCluster::build(spec, position, set, previous, &mut self.registry);
            findings.errors.add_all("clusters", position, &cluster.errors);
            if let Some((position, _)) = set {
                findings.errors.add_all("endpoints", position, &cluster.endpoints.errors);
                findings.warnings.add_all("endpoints", position, &cluster.endpoints.warnings);
            }
            let before = previous.and_then(|previous| previous.compiled.as_ref());
            renamed |= before.is_some() != cluster.compiled.is_some();
            changed |= before.map(Arc::as_ptr) != cluster.compiled.as_ref().map(Arc::as_ptr);
            kept.clusters.insert(name, cluster);
        }
        let mut unused: Vec<_> = sets.into_values().collect();
        unused.sort_by_key(|(position, _)| *position);
        for (position, set) in unused {
            let message =
                format!("there is no cluster `{}`: its endpoints are not used", set.cluster);
            findings.warnings.add("endpoints", position, "cluster", &message);
        }
        renamed |= kept.clusters.len() != self.kept.clusters.len();
        kept.cluster_names = self.kept.cluster_names + u64::from(renamed);
        kept.snapshot.clusters = if changed || renamed {
            let compiled = kept.clusters.values().filter_map(|cluster| cluster.compiled.as_ref());
            Arc::new(
                compiled.map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster))).collect(),
            )
        } else {
            Arc::clone(&self.kept.snapshot.clusters)
        };
    }

    fn destinations(
        &self,
        destinations: &[Arc<spec::Destination>],
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        kept.destinations.reserve(destinations.len());
        let mut list = Vec::with_capacity(destinations.len());
        for (position, spec) in destinations.iter().enumerate() {
            if let Some(first) = kept.destinations.get(spec.name.as_str()) {
                let message =
                    format!("destinations[{}] is named `{}` already", first.position, spec.name);
                findings.errors.add("destinations", position, "name", &message);
                continue;
            }
            let previous = self.kept.destinations.get_key_value(spec.name.as_str());
            let (name, mut destination) = match previous {
                Some((name, previous)) if same(&previous.spec, spec) => {
                    let spec = Arc::clone(spec);
                    (Arc::clone(name), KeptDestination { position, spec, ..previous.clone() })
                }
                _ => {
                    (spec.name.as_str().into(), KeptDestination::build(spec, position, &self.mesh))
                }
            };
            if destination.missing.0 != kept.cluster_names {
                let missing = missing_clusters(spec, &kept.snapshot.clusters);
                destination.missing = (kept.cluster_names, missing);
            }
            findings.errors.add_all("destinations", position, &destination.errors);
            findings.warnings.add_all("destinations", position, &destination.missing.1);
            list.push((position, Arc::clone(&destination.compiled)));
            kept.destinations.insert(name, destination);
        }
        let before = &self.kept.snapshot;
        let compiled = list.iter().map(|(_, compiled)| compiled);
        if compiled.map(Arc::as_ptr).eq(before.destinations.iter().map(Arc::as_ptr)) {
            kept.snapshot.destinations = Arc::clone(&before.destinations);
            kept.snapshot.index = Arc::clone(&before.index);
            kept.conflicts = self.kept.conflicts.clone();
        } else {
            let (index, conflicts) = build_index(destinations, &list);
            kept.snapshot.destinations = list.into_iter().map(|(_, compiled)| compiled).collect();
            kept.snapshot.index = Arc::new(index);
            kept.conflicts = conflicts;
        }
        for conflict in &kept.conflicts {
            findings.errors.push(conflict.clone());
        }
    }

    fn workloads(
        &self,
        workloads: &[Arc<spec::Workload>],
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        let before = &self.kept.workloads;
        let unchanged = before.len() == workloads.len()
            && before.iter().zip(workloads).all(|((before, _), spec)| same(before, spec));
        if unchanged {
            kept.snapshot.workloads = Arc::clone(&self.kept.snapshot.workloads);
            kept.workloads = before.clone();
            return;
        }
        fn key(workload: &spec::Workload) -> (&str, &str, &str) {
            (&workload.cluster, &workload.namespace, &workload.name)
        }
        let previous: AHashMap<_, _> = before.iter().map(|entry| (key(&entry.0), entry)).collect();
        let mut seen = AHashMap::with_capacity(workloads.len());
        let mut index = WorkloadIndex::default();
        for (position, spec) in workloads.iter().enumerate() {
            if spec.name.is_empty() {
                findings.errors.add("workloads", position, "name", "is empty");
                continue;
            }
            if let Some(first) = seen.insert(key(spec), position) {
                let message = format!(
                    "workloads[{first}] is named `{}` in this namespace and cluster already",
                    spec.name
                );
                findings.errors.add("workloads", position, "name", &message);
                continue;
            }
            let compiled = match previous.get(&key(spec)) {
                Some((before, compiled)) if same(before, spec) => Arc::clone(compiled),
                _ => Arc::new(Workload::compile(spec)),
            };
            index.insert(&compiled);
            kept.workloads.push((Arc::clone(spec), compiled));
        }
        kept.snapshot.workloads = Arc::new(index);
    }
}

impl KeptDestination {
    fn build(spec: &Arc<spec::Destination>, position: usize, mesh: &Arc<str>) -> Self {
        let mut at = Context::new();
        let compiled = Destination::compile(spec, mesh, &mut at);
        let errors = at.into_errors();
        let compiled = compiled.unwrap_or_else(|| {
            let reason = match errors.as_slice() {
                [] => "cannot be compiled".to_owned(),
                [only] => only.to_string(),
                [first, others @ ..] => format!("{first} (and {} more)", others.len()),
            };
            Destination::broken(&spec.name, &spec.namespace, mesh, spec.port, reason.into())
        });
        KeptDestination {
            position,
            spec: Arc::clone(spec),
            compiled: Arc::new(compiled),
            errors,
            missing: (u64::MAX, Vec::new()),
        }
    }
}

impl KeptCluster {
    fn build(
        spec: &Arc<spec::Cluster>,
        position: usize,
        set: Option<(usize, &Arc<spec::EndpointSet>)>,
        previous: Option<&KeptCluster>,
        registry: &mut Registry,
    ) -> Self {
        let (settings, errors) = match previous {
            Some(previous) if same(&previous.spec, spec) => {
                (previous.compiled.clone(), previous.errors.clone())
            }
            _ => {
                let mut at = Context::new();
                let compiled = Cluster::compile(spec, registry, &mut at);
                (compiled.map(Arc::new), at.into_errors())
            }
        };
        let spec = Arc::clone(spec);
        let Some(settings) = settings else {
            let endpoints = KeptEndpoints::default();
            return KeptCluster { position, spec, compiled: None, errors, endpoints };
        };
        let set = set.map(|(_, set)| set);
        let reusable = previous.and_then(|previous| {
            let before = previous.compiled.as_ref()?;
            let same_set = match (&previous.endpoints.spec, set) {
                (Some(before), Some(set)) => same(before, set),
                (None, None) => true,
                _ => false,
            };
            let same_cluster =
                Arc::ptr_eq(&before.state, &settings.state) && before.lb == settings.lb;
            (same_set && same_cluster).then_some((&before.endpoints, &previous.endpoints))
        });
        let (compiled, mut endpoints) = match (reusable, set) {
            (Some((compiled, endpoints)), _) => (Arc::clone(compiled), endpoints.clone()),
            (None, None) => (Arc::new(EndpointSet::empty()), KeptEndpoints::default()),
            (None, Some(set)) => {
                let (mut at, mut warnings) = (Context::new(), Vec::new());
                let compiled =
                    EndpointSet::compile(set, &settings, registry, &mut at, &mut warnings);
                let errors = at.into_errors();
                (Arc::new(compiled), KeptEndpoints { spec: None, errors, warnings })
            }
        };
        endpoints.spec = set.cloned();
        let compiled = if Arc::ptr_eq(&settings.endpoints, &compiled) {
            settings
        } else {
            Arc::new(Cluster { endpoints: compiled, ..Cluster::clone(&settings) })
        };
        KeptCluster { position, spec, compiled: Some(compiled), errors, endpoints }
    }
}

impl Bounded {
    fn push(&mut self, finding: CompileError) {
        if self.list.len() < MAX_ERRORS {
            self.list.push(finding);
        } else {
            self.dropped += 1;
        }
    }

    fn add(&mut self, list: &str, position: usize, below: &str, message: &str) {
        let separator = if below.is_empty() || below.starts_with('[') { "" } else { "." };
        let path = format!("{list}[{position}]{separator}{below}");
        self.push(CompileError { path, message: message.to_owned() });
    }

    fn add_all(&mut self, list: &str, position: usize, findings: &[CompileError]) {
        for CompileError { path, message } in findings {
            self.add(list, position, path, message);
        }
    }

    fn into_list(mut self) -> Vec<CompileError> {
        if self.dropped > 0 {
            let message = format!("{} more are not listed", self.dropped);
            self.list.push(CompileError { path: "…".to_owned(), message });
        }
        self.list
    }
}

fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// The index, and the names that an earlier destination has already.
fn build_index(
    specs: &[Arc<spec::Destination>],
    compiled: &[(usize, Arc<Destination>)],
) -> (DestinationIndex, Vec<CompileError>) {
    let mut index = DestinationIndex::default();
    let mut conflicts = Bounded::default();
    for (position, destination) in compiled {
        let Some(spec) = specs.get(*position) else { continue };
        let with_port = match spec.port {
            Some(port) => format!("with port {port}"),
            None => "with every port".to_owned(),
        };
        for (number, network) in spec.addresses.iter().enumerate() {
            if let Err(owner) = index.add_network(network.0, destination) {
                let network = String::from(*network);
                let message = format!("{network} {with_port} belongs to `{}` already", owner.name);
                conflicts.add("destinations", *position, &format!("addresses[{number}]"), &message);
            }
        }
        for (number, host) in spec.hosts.iter().enumerate() {
            if let Err(owner) = index.add_host(host, destination) {
                let message = format!("`{host}` {with_port} belongs to `{}` already", owner.name);
                conflicts.add("destinations", *position, &format!("hosts[{number}]"), &message);
            }
        }
    }
    (index, conflicts.into_list())
}

/// A warning for each cluster that the destination names and that is not there (Envoy allows that
/// too: `validate_clusters` is false).
fn missing_clusters(
    destination: &spec::Destination,
    clusters: &AHashMap<Arc<str>, Arc<Cluster>>,
) -> Vec<CompileError> {
    let mut missing: Vec<(&str, String)> = Vec::new();
    let mut check = |name, path: &dyn Fn() -> String| {
        if !clusters.contains_key(name) && !missing.iter().any(|(known, _)| *known == name) {
            missing.push((name, path()));
        }
    };
    if let Some(http) = &destination.http {
        for (h, host) in http.routes.virtual_hosts.iter().enumerate() {
            for (r, route) in host.routes.iter().enumerate() {
                let Some(forward) = &route.route else { continue };
                let path = |tail: String| {
                    format!("http.routes.virtual_hosts[{h}].routes[{r}].route.{tail}")
                };
                if let Some(name) = &forward.cluster {
                    check(name, &|| path("cluster".to_owned()));
                }
                for (c, cluster) in forward.weighted_clusters.iter().enumerate() {
                    check(&cluster.name, &|| path(format!("weighted_clusters[{c}].name")));
                }
                for (m, mirror) in forward.mirrors.iter().enumerate() {
                    check(&mirror.cluster, &|| path(format!("mirrors[{m}].cluster")));
                }
            }
        }
    }
    if let Some(tcp) = &destination.tcp {
        for (c, cluster) in tcp.clusters.iter().enumerate() {
            check(&cluster.name, &|| format!("tcp.clusters[{c}].name"));
        }
    }
    missing
        .into_iter()
        .map(|(name, path)| CompileError {
            path,
            message: format!("there is no cluster `{name}`: what is sent there fails"),
        })
        .collect()
}
