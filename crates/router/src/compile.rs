//! From a configuration to a snapshot, changing only what changed.
//!
//! What was compiled before is kept by name beside the value that it was compiled from; an equal
//! value gives the same `Arc` again. Clusters, their endpoints and destinations are kept apart:
//! routes name clusters by string, so that new endpoints touch one cluster and nothing else.
//! Values in the same `Arc` as before are not even compared.

use crate::cluster::{Cluster, EndpointSet};
use crate::destination::Destination;
use crate::destination_index::DestinationIndex;
use crate::error::{CompileError, Context};
use crate::findings::{Bounded, Findings};
use crate::lineup::{Lineup, MadeOf};
use crate::matching::patterns::Patterns;
use crate::model::Mesh;
use crate::observe::{Known, TunnelLogs};
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
    patterns: Patterns,
    observed: Known,
    kept: Kept,
}

/// What the last snapshot was made of. Lists have `None` where a name was taken.
#[derive(Debug, Default)]
struct Kept {
    snapshot: Mesh,
    destinations: Vec<Option<Arc<KeptDestination>>>,
    /// Addresses and hosts that belong to two destinations.
    conflicts: Vec<CompileError>,
    clusters: Vec<Option<Arc<KeptCluster>>>,
    /// Changes when a cluster comes or goes.
    cluster_names: u64,
    sets: Arc<SetPlaces>,
    workloads: Vec<(Arc<spec::Workload>, Arc<Workload>)>,
    tunnels: Option<Arc<spec::TunnelLogs>>,
}

/// Paths of its errors begin below the destination, whose place in the list may change.
#[derive(Debug, Clone)]
struct KeptDestination {
    spec: Arc<spec::Destination>,
    compiled: Arc<Destination>,
    errors: Vec<CompileError>,
    warnings: Vec<CompileError>,
    /// Warnings about clusters that were not there when `cluster_names` was this.
    missing: (u64, Vec<CompileError>),
}

/// Paths of its errors begin below the cluster or endpoint set.
#[derive(Debug, Clone)]
struct KeptCluster {
    spec: Arc<spec::Cluster>,
    /// `None`: has errors.
    compiled: Option<Arc<Cluster>>,
    errors: Vec<CompileError>,
    warnings: Vec<CompileError>,
    endpoints: KeptEndpoints,
}

#[derive(Debug, Clone, Default)]
struct KeptEndpoints {
    spec: Option<Arc<spec::EndpointSet>>,
    errors: Vec<CompileError>,
    warnings: Vec<CompileError>,
}

/// Which endpoint set belongs to which cluster, by their places in the lists.
#[derive(Debug, Default)]
struct SetPlaces {
    set_of: Vec<Option<usize>>,
    cluster_of: Vec<Option<usize>>,
}

impl Compiler {
    /// For the mesh of that name, which is part of every tenant.
    pub fn new(mesh_name: &str) -> Self {
        Compiler {
            mesh: mesh_name.into(),
            registry: Registry::default(),
            patterns: Patterns::default(),
            observed: Known::default(),
            kept: Kept::default(),
        }
    }

    /// Compiles everything or, with all errors, nothing.
    pub fn compile(&mut self, resources: &spec::Resources) -> Result<Mesh, Vec<CompileError>> {
        let (kept, findings) = self.build(resources);
        if !findings.errors.is_empty() {
            return Err(findings.errors.into_list());
        }
        Ok(self.keep(kept, findings))
    }

    /// Compiles what can be compiled. A chain with an error is there but broken, and so are all chains
    /// of a [destination](Destination) with an error outside of them; a cluster is missing, an endpoint is left out, and of two
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
        let spec::Resources { destinations, clusters, endpoints, workloads, tunnels } = resources;
        let mut kept = Kept::default();
        let mut findings = Findings::default();
        self.clusters(clusters, endpoints, &mut kept, &mut findings);
        self.destinations(destinations, &mut kept, &mut findings);
        self.workloads(workloads, &mut kept, &mut findings);
        self.tunnels(tunnels.as_ref(), &mut kept, &mut findings);
        (kept, findings)
    }

    fn tunnels(
        &mut self,
        tunnels: Option<&Arc<spec::TunnelLogs>>,
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        kept.tunnels = tunnels.cloned();
        if let (Some(tunnels), Some(before)) = (tunnels, &self.kept.tunnels)
            && same(tunnels, before)
        {
            kept.snapshot.tunnels = self.kept.snapshot.tunnels.clone();
            return;
        }
        let Some(tunnels) = tunnels else { return };
        let mut at = Context::new();
        kept.snapshot.tunnels = TunnelLogs::compile(tunnels, &mut at).map(Arc::new);
        findings.warnings.add_all("tunnels", 0, &at.take_warnings());
        findings.errors.add_all("tunnels", 0, &at.into_errors());
    }

    fn clusters(
        &mut self,
        clusters: &[Arc<spec::Cluster>],
        endpoints: &[Arc<spec::EndpointSet>],
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        let lineup = Lineup::new(clusters, &self.kept.clusters);
        kept.sets = if lineup.in_place && self.kept.sets_stand(endpoints) {
            Arc::clone(&self.kept.sets)
        } else {
            Arc::new(SetPlaces::new(clusters, endpoints, findings))
        };
        kept.clusters.reserve(clusters.len());
        let mut changed = Vec::new();
        let mut renamed = self.kept.clusters.len() != clusters.len();
        for (position, (spec, place)) in clusters.iter().zip(&lineup.places).enumerate() {
            let previous = match place.known() {
                Ok(previous) => previous,
                Err(first) => {
                    let message = format!("clusters[{first}] is named `{}` already", spec.name);
                    findings.errors.add("clusters", position, "name", &message);
                    kept.clusters.push(None);
                    renamed = true;
                    continue;
                }
            };
            let set_position = kept.sets.set_of.get(position).copied().flatten();
            let set = set_position.and_then(|position| endpoints.get(position));
            let cluster = match previous {
                Some(previous) if previous.is_of(spec, set) => Arc::clone(previous),
                _ => {
                    let previous = previous.map(Arc::as_ref);
                    Arc::new(KeptCluster::build(spec, set, previous, &mut self.registry))
                }
            };
            findings.errors.add_all("clusters", position, &cluster.errors);
            findings.warnings.add_all("clusters", position, &cluster.warnings);
            if let Some(position) = set_position {
                findings.errors.add_all("endpoints", position, &cluster.endpoints.errors);
                findings.warnings.add_all("endpoints", position, &cluster.endpoints.warnings);
            }
            match (previous.and_then(|previous| previous.compiled.as_ref()), &cluster.compiled) {
                (Some(before), Some(compiled)) if Arc::ptr_eq(before, compiled) => {}
                (Some(_), Some(compiled)) => changed.push(Arc::clone(compiled)),
                // A new name in the place of another one, which is gone.
                (None, None) => renamed |= previous.is_none(),
                _ => renamed = true,
            }
            kept.clusters.push(Some(cluster));
        }
        kept.cluster_names = self.kept.cluster_names + u64::from(renamed);
        kept.snapshot.clusters = if renamed {
            let kept = kept.clusters.iter().flatten();
            let compiled = kept.filter_map(|cluster| cluster.compiled.as_ref());
            Arc::new(
                compiled.map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster))).collect(),
            )
        } else {
            let mut clusters = Arc::clone(&self.kept.snapshot.clusters);
            if !changed.is_empty() {
                Arc::make_mut(&mut clusters).extend(
                    changed.into_iter().map(|cluster| (Arc::clone(&cluster.name), cluster)),
                );
            }
            clusters
        };
    }

    fn destinations(
        &self,
        destinations: &[Arc<spec::Destination>],
        kept: &mut Kept,
        findings: &mut Findings,
    ) {
        kept.destinations.reserve(destinations.len());
        let lineup = Lineup::new(destinations, &self.kept.destinations);
        for (position, (spec, place)) in destinations.iter().zip(&lineup.places).enumerate() {
            let previous = match place.known() {
                Ok(previous) => previous,
                Err(first) => {
                    let message = format!("destinations[{first}] is named `{}` already", spec.name);
                    findings.errors.add("destinations", position, "name", &message);
                    kept.destinations.push(None);
                    continue;
                }
            };
            let mut destination = match previous {
                Some(previous) if Arc::ptr_eq(&previous.spec, spec) => Arc::clone(previous),
                Some(previous) if previous.spec == *spec => {
                    let spec = Arc::clone(spec);
                    Arc::new(KeptDestination { spec, ..KeptDestination::clone(previous) })
                }
                _ => {
                    let at = Context::knowing(&self.patterns, &self.observed);
                    Arc::new(KeptDestination::build(spec, &self.mesh, at))
                }
            };
            if destination.missing.0 != kept.cluster_names {
                let missing = missing_clusters(spec, &kept.snapshot.clusters);
                Arc::make_mut(&mut destination).missing = (kept.cluster_names, missing);
            }
            findings.errors.add_all("destinations", position, &destination.errors);
            findings.warnings.add_all("destinations", position, &destination.warnings);
            findings.warnings.add_all("destinations", position, &destination.missing.1);
            kept.destinations.push(Some(destination));
        }
        let before = &self.kept.snapshot;
        let compiled = || kept.destinations.iter().flatten().map(|kept| &kept.compiled);
        if compiled().map(Arc::as_ptr).eq(before.destinations.iter().map(Arc::as_ptr)) {
            kept.snapshot.destinations = Arc::clone(&before.destinations);
            kept.snapshot.index = Arc::clone(&before.index);
            kept.conflicts = self.kept.conflicts.clone();
        } else {
            let (index, conflicts) = build_index(&kept.destinations);
            kept.snapshot.destinations = compiled().cloned().collect();
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

impl Kept {
    /// Each endpoint set is for the same cluster as the one at its place was. Not known, and so not
    /// said, if one was for no cluster.
    fn sets_stand(&self, endpoints: &[Arc<spec::EndpointSet>]) -> bool {
        let stands = |(set, place): (&Arc<spec::EndpointSet>, &Option<usize>)| {
            let kept = place.and_then(|position| self.clusters.get(position)?.as_ref());
            kept.is_some_and(|kept| {
                kept.endpoints.spec.as_ref().is_some_and(|before| Arc::ptr_eq(before, set))
                    || kept.spec.name == set.cluster
            })
        };
        endpoints.len() == self.sets.cluster_of.len()
            && endpoints.iter().zip(&self.sets.cluster_of).all(stands)
    }
}

impl SetPlaces {
    fn new(
        clusters: &[Arc<spec::Cluster>],
        endpoints: &[Arc<spec::EndpointSet>],
        findings: &mut Findings,
    ) -> Self {
        let mut places = SetPlaces {
            set_of: vec![None; clusters.len()],
            cluster_of: vec![None; endpoints.len()],
        };
        let mut by_name = AHashMap::with_capacity(clusters.len());
        for (position, cluster) in clusters.iter().enumerate() {
            by_name.entry(cluster.name.as_str()).or_insert(position);
        }
        let pairs = endpoints.iter().zip(&mut places.cluster_of);
        for (position, (set, cluster_of)) in pairs.enumerate() {
            let Some(cluster) = by_name.get(set.cluster.as_str()) else {
                let message =
                    format!("there is no cluster `{}`: its endpoints are not used", set.cluster);
                findings.warnings.add("endpoints", position, "cluster", &message);
                continue;
            };
            match places.set_of.get_mut(*cluster) {
                Some(Some(first)) => {
                    let message = format!("endpoints[{first}] is for `{}` already", set.cluster);
                    findings.errors.add("endpoints", position, "cluster", &message);
                }
                Some(set_of) => {
                    *set_of = Some(position);
                    *cluster_of = Some(*cluster);
                }
                None => {}
            }
        }
        places
    }
}

impl MadeOf<spec::Destination> for KeptDestination {
    fn spec(&self) -> &Arc<spec::Destination> {
        &self.spec
    }
}

impl MadeOf<spec::Cluster> for KeptCluster {
    fn spec(&self) -> &Arc<spec::Cluster> {
        &self.spec
    }
}

impl KeptDestination {
    fn build(spec: &Arc<spec::Destination>, mesh: &Arc<str>, mut at: Context) -> Self {
        let compiled = Destination::compile(spec, mesh, &mut at);
        let warnings = at.take_warnings();
        KeptDestination {
            spec: Arc::clone(spec),
            compiled: Arc::new(compiled),
            errors: at.into_errors(),
            warnings,
            missing: (u64::MAX, Vec::new()),
        }
    }
}

impl KeptCluster {
    /// Was made of the very same values.
    fn is_of(&self, spec: &Arc<spec::Cluster>, set: Option<&Arc<spec::EndpointSet>>) -> bool {
        Arc::ptr_eq(&self.spec, spec)
            && self.endpoints.spec.as_ref().map(Arc::as_ptr) == set.map(Arc::as_ptr)
    }

    fn build(
        spec: &Arc<spec::Cluster>,
        set: Option<&Arc<spec::EndpointSet>>,
        previous: Option<&KeptCluster>,
        registry: &mut Registry,
    ) -> Self {
        let (settings, errors, warnings) = match previous {
            Some(previous) if same(&previous.spec, spec) => {
                (previous.compiled.clone(), previous.errors.clone(), previous.warnings.clone())
            }
            _ => {
                let mut at = Context::new();
                let compiled = Cluster::compile(spec, registry, &mut at);
                let warnings = at.take_warnings();
                (compiled.map(Arc::new), at.into_errors(), warnings)
            }
        };
        let spec = Arc::clone(spec);
        let Some(settings) = settings else {
            let endpoints = KeptEndpoints::default();
            return KeptCluster { spec, compiled: None, errors, warnings, endpoints };
        };
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
                let mut at = Context::new();
                let compiled = EndpointSet::compile(set, &settings, registry, &mut at);
                let warnings = at.take_warnings();
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
        KeptCluster { spec, compiled: Some(compiled), errors, warnings, endpoints }
    }
}

fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// The index, and the names that an earlier destination has already.
fn build_index(kept: &[Option<Arc<KeptDestination>>]) -> (DestinationIndex, Vec<CompileError>) {
    let mut index = DestinationIndex::with_capacity(kept.len());
    let mut conflicts = Bounded::default();
    for (position, kept) in kept.iter().enumerate() {
        let Some(KeptDestination { spec, compiled, .. }) = kept.as_deref() else { continue };
        let with_port = || match spec.port {
            Some(port) => format!("with port {port}"),
            None => "with every port".to_owned(),
        };
        for (number, network) in spec.addresses.iter().enumerate() {
            if let Err(owner) = index.add_network(network.0, compiled) {
                let network = String::from(*network);
                let message =
                    format!("{network} {} belongs to `{}` already", with_port(), owner.name);
                conflicts.add("destinations", position, &format!("addresses[{number}]"), &message);
            }
        }
        for (number, host) in spec.hosts.iter().enumerate() {
            if let Err(owner) = index.add_host(host, compiled) {
                let message =
                    format!("`{host}` {} belongs to `{}` already", with_port(), owner.name);
                conflicts.add("destinations", position, &format!("hosts[{number}]"), &message);
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
    if let Some(http) = destination.http.as_ref().filter(|chain| chain.broken.is_none()) {
        for (h, host) in http.routes.virtual_hosts.iter().enumerate() {
            for (r, route) in host.routes.iter().enumerate() {
                let Some(forward) = route.route.as_ref().filter(|_| route.matches.never.is_none())
                else {
                    continue;
                };
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
    if let Some(tcp) = destination.tcp.as_ref().filter(|chain| chain.broken.is_none()) {
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
