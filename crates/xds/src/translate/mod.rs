//! From what istiod sends an Envoy waypoint to what Cairn serves.
//!
//! ```text
//! Listener connect_terminate ── Gate (policies of tunnels, or why nothing passes) ┐
//! Listener main_internal ─────── plan × chains ───────────────────────────────────┴→ Destination
//! Cluster ──────────────────────────────────────────────────────────────────────────→ Cluster
//! ClusterLoadAssignment × Cluster × Workload ───────────────────────────────────────→ EndpointSet
//! Workload ─────────────────────────────────────────────────────────────────────────→ Workload
//! ```
//!
//! Invariants:
//! * Pure: no clock, no chance, no I/O. The same updates in the same order yield equal resources.
//! * Bytes that do not decode are refused by name and keep their last good value; the rest is taken in.
//! * What decodes and is not understood never opens a door: the chain, cluster, endpoint or route that it
//!   concerns fails closed with a reason, and is listed.
//! * What did not change keeps its `Arc`: a filter chain, cluster, endpoint list or workload of the same bytes.

mod action;
mod chain;
mod cluster;
mod destinations;
mod endpoint;
mod facts;
mod filters;
mod headers;
mod http;
mod listener;
mod matcher;
mod observe;
mod overrides;
mod rbac;
mod route;
mod shallow;
mod tls;
mod unsupported;
mod wire;
mod workload;

pub use facts::{Facts, Originate, Terminate};
pub use unsupported::{MAX_FINDINGS, Unsupported};

use crate::feed::{Consumer, Kind, Rejected, Resource, Update, Wanted};
use cairn_proto::envoy as pb;
use cairn_router::spec::{AccessLog, EndpointTransport, Resources, TunnelLogs};
use cluster::Role;
use destinations::{Count, Destinations, Gate, Owners};
use endpoint::{Assignment, Built, World};
use pb::envoy::config::core::v3::TypedExtensionConfig;
use pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use shallow::Digest;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use unsupported::gather;
use wire::decode;
use workload::{Place, Workloads};

/// Names of the listeners that are looked at.
const TERMINATE: &str = "connect_terminate";
const MAIN: &str = "main_internal";
/// Names of listeners that begin tunnels, which Cairn does by itself.
const ORIGINATE: [&str; 3] =
    ["connect_originate", "inner_connect_originate", "outer_connect_originate"];
/// So many refused resources are named in a [`Rejected`].
const MAX_REJECTED: usize = 16;
/// A reason in a [`Rejected`] is cut after so many bytes.
const MAX_REASON: usize = 300;

/// What the translation hangs on besides istiod's resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of workloads that name none (MeshConfig.trustDomain; `cluster.local`).
    pub trust_domain: String,
    /// Network of this waypoint (node metadata `NETWORK`); empty in a mesh of one network.
    pub network: String,
    /// Whom the far end of a tunnel has to prove to be.
    pub endpoint_identity: EndpointIdentity,
    /// Endpoints may be on this machine's loopback, where the administration pages are. Envoy: they may.
    pub loopback_endpoints: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            trust_domain: "cluster.local".to_owned(),
            network: String::new(),
            endpoint_identity: EndpointIdentity::default(),
            loopback_endpoints: false,
        }
    }
}

/// Whom the far end of a tunnel has to prove to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EndpointIdentity {
    /// Exactly the Workload at its address. An endpoint without one is not used.
    #[default]
    Workload,
    /// Anybody of the trust domain, as Envoy: its identities are the beginnings `spiffe://<trust domain>/`
    /// that `connect_originate` accepts.
    TrustDomain,
}

/// What an update came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// [`Translator::resources`] or [`Translator::facts`] differ from before.
    pub changed: bool,
}

/// How much was read, and how much was known already, since the translator was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Filter chains that were decoded.
    pub chains_parsed: u64,
    /// Filter chains whose bytes were known.
    pub chains_reused: u64,
    /// Clusters that were decoded.
    pub clusters_parsed: u64,
    /// Clusters whose bytes were known.
    pub clusters_reused: u64,
    /// Endpoint lists that were decoded.
    pub assignments_parsed: u64,
    /// Endpoint lists whose bytes were known.
    pub assignments_reused: u64,
    /// Workloads that were decoded.
    pub workloads_parsed: u64,
    /// Workloads whose bytes were known.
    pub workloads_reused: u64,
    /// Endpoint sets that were made.
    pub sets_built: u64,
    /// Updates in which something did not decode.
    pub rejected: u64,
}

/// Takes updates in and holds what they come to.
#[derive(Debug)]
pub struct Translator {
    settings: Settings,
    terminate: Option<(Digest, listener::Translated)>,
    gate: Arc<Gate>,
    main: Option<Digest>,
    /// Access logs of listeners that begin tunnels.
    originated: BTreeMap<String, (Vec<AccessLog>, unsupported::Notes)>,
    tunnels: Option<Arc<TunnelLogs>>,
    destinations: Destinations,
    /// Names of listeners that nothing is done with.
    other_listeners: BTreeSet<String>,
    clusters: BTreeMap<String, cluster::Kept>,
    /// Clusters by the name of their EDS resource.
    by_service: HashMap<String, BTreeSet<String>>,
    assignments: HashMap<String, (Digest, Assignment)>,
    sets: BTreeMap<String, Made>,
    workloads: Workloads,
    workload_digests: HashMap<String, Digest>,
    counters: Counters,
}

/// The endpoints of a cluster, as they are handed out.
#[derive(Debug)]
struct Made {
    set: Arc<cairn_router::spec::EndpointSet>,
    missing: BTreeSet<IpAddr>,
    notes: unsupported::Notes,
}

/// What an update touched.
#[derive(Default)]
struct Touched {
    changed: bool,
    destinations: bool,
    /// Clusters whose endpoints have to be made anew.
    clusters: BTreeSet<String>,
    all_clusters: bool,
    addresses: HashSet<IpAddr>,
    rejected: Vec<String>,
}

impl Translator {
    /// Without any resource.
    pub fn new(settings: Settings) -> Self {
        Translator {
            settings,
            terminate: None,
            gate: Arc::new(closed()),
            main: None,
            originated: BTreeMap::new(),
            tunnels: None,
            destinations: Destinations::default(),
            other_listeners: BTreeSet::new(),
            clusters: BTreeMap::new(),
            by_service: HashMap::new(),
            assignments: HashMap::new(),
            sets: BTreeMap::new(),
            workloads: Workloads::default(),
            workload_digests: HashMap::new(),
            counters: Counters::default(),
        }
    }

    /// What it hangs on besides resources.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes an update in.
    ///
    /// # Errors
    /// Names what does not decode; it keeps its last good value, and the rest of the update holds.
    pub fn apply(&mut self, update: Update) -> Result<Applied, Rejected> {
        let Update { kind, changed, removed } = update;
        let mut touched = Touched::default();
        for resource in &changed {
            let expected = resource.type_url == kind.type_url()
                || (kind == Kind::Workload
                    && resource.type_url == cairn_proto::workload::ADDRESS_TYPE_URL);
            if !expected {
                let message = format!("`{}` is a {}", resource.name, resource.type_url);
                touched.rejected.push(message);
                continue;
            }
            match kind {
                Kind::Listener => self.listener(resource, &mut touched),
                Kind::Cluster => self.cluster(resource, &mut touched),
                Kind::Endpoints => self.assignment(resource, &mut touched),
                Kind::Workload => self.workload(resource, &mut touched),
                Kind::ExtensionConfig => {
                    let name = "envoy.config.core.v3.TypedExtensionConfig";
                    if let Err(error) = decode::<TypedExtensionConfig>(name, &resource.body) {
                        touched.rejected.push(format!("`{}`: {error}", resource.name));
                    }
                }
                // Nothing refers to secrets that come this way; see `tls`.
                Kind::Secret => {}
            }
        }
        for name in &removed {
            self.remove(kind, name, &mut touched);
        }
        self.settle(&mut touched);
        if touched.rejected.is_empty() {
            return Ok(Applied { changed: touched.changed });
        }
        self.counters.rejected += 1;
        Err(rejected(kind, &touched.rejected))
    }

    /// What is served. Values that did not change are in the same `Arc` as before.
    pub fn resources(&self) -> Resources {
        let clusters = self.clusters.values().filter_map(|kept| match &kept.role {
            Role::Served(served) => Some(Arc::clone(&served.spec)),
            _ => None,
        });
        Resources {
            destinations: self.destinations.specs().cloned().collect(),
            clusters: clusters.collect(),
            endpoints: self.sets.values().map(|made| Arc::clone(&made.set)).collect(),
            workloads: self.workloads.specs().cloned().collect(),
            tunnels: self.tunnels.clone(),
        }
    }

    /// What is needed by name.
    pub fn wanted(&self) -> Wanted {
        let missing = self.sets.values().flat_map(|made| &made.missing).copied();
        let direct = self.destinations.direct().filter(|address| {
            let place = (self.settings.network.clone(), address.to_canonical());
            self.workloads.at(&place, None).is_empty()
        });
        let network = &self.settings.network;
        Wanted {
            endpoints: self.by_service.keys().cloned().collect(),
            extension_configs: self.destinations.discovered().cloned().collect(),
            secrets: BTreeSet::new(),
            workloads: missing
                .chain(direct)
                .map(|address| format!("{network}/{address}"))
                .collect(),
        }
    }

    /// Endpoint lists that are wanted and have not come: their clusters would answer that nobody is healthy.
    pub fn awaited_endpoints(&self) -> BTreeSet<String> {
        let missing = self.by_service.keys().filter(|name| !self.assignments.contains_key(*name));
        missing.cloned().collect()
    }

    /// What fails closed because it is not understood; at most [`MAX_FINDINGS`].
    pub fn unsupported(&self) -> Vec<Unsupported> {
        let others: BTreeSet<Unsupported> = self
            .other_listeners
            .iter()
            .map(|name| Unsupported {
                kind: "listener",
                name: name.clone(),
                reason: "nothing listens for it".to_owned(),
            })
            .collect();
        let clusters = self.clusters.values().map(|kept| &kept.notes.unsupported);
        let assignments = self.assignments.values().map(|(_, kept)| &kept.notes.unsupported);
        let sets = self.sets.values().map(|made| &made.notes.unsupported);
        let terminate = self.terminate.iter().map(|(_, kept)| &kept.notes.unsupported);
        let all = self.destinations.unsupported().chain(clusters).chain(assignments);
        gather(all.chain(sets).chain(terminate).chain([&others]))
    }

    /// What is done in another way than asked for, or not at all, without letting anything through; at most
    /// [`MAX_FINDINGS`].
    pub fn degraded(&self) -> Vec<Unsupported> {
        let clusters = self.clusters.values().map(|kept| &kept.notes.degraded);
        let assignments = self.assignments.values().map(|(_, kept)| &kept.notes.degraded);
        let sets = self.sets.values().map(|made| &made.notes.degraded);
        let terminate = self.terminate.iter().map(|(_, kept)| &kept.notes.degraded);
        let originated = self.originated.values().map(|(_, notes)| &notes.degraded);
        let all = self.destinations.degraded().chain(clusters).chain(assignments);
        gather(all.chain(sets).chain(terminate).chain(originated))
    }

    /// How much was read and how much was known.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What holds for the whole waypoint.
    pub fn facts(&self) -> Facts {
        let terminate = self.terminate.as_ref().map(|(_, kept)| kept);
        Facts {
            terminate: terminate.map(|kept| kept.terminate.clone()),
            originate: self.originate().cloned(),
            trust_domains: terminate
                .map(|kept| kept.terminate.trust_domains.clone())
                .unwrap_or_default(),
            baggage: terminate.is_some_and(|kept| kept.baggage) || self.destinations.baggage(),
        }
    }

    fn originate(&self) -> Option<&Originate> {
        match &self.clusters.get("connect_originate")?.role {
            Role::Originate(originate) => Some(originate),
            _ => None,
        }
    }

    fn listener(&mut self, resource: &Resource, touched: &mut Touched) {
        let digest = Digest::of(&resource.body);
        match resource.name.as_str() {
            TERMINATE => {
                if self.terminate.as_ref().is_some_and(|(known, _)| *known == digest) {
                    return;
                }
                match listener::terminate(&resource.body) {
                    Ok(translated) => {
                        let gate = Gate {
                            policy: translated.policy.clone(),
                            broken: translated.terminate.broken.clone(),
                        };
                        if *self.gate != gate {
                            self.gate = Arc::new(gate);
                        }
                        self.terminate = Some((digest, translated));
                        touched.changed = true;
                        touched.destinations = true;
                    }
                    Err(error) => touched.rejected.push(format!("`{}`: {error}", resource.name)),
                }
            }
            MAIN => {
                if self.main == Some(digest) {
                    return;
                }
                // Known once it is taken in: what ends in the middle is taken in again.
                self.main = None;
                let mut count = Count::default();
                let updated = self.destinations.update(&resource.body, &mut count);
                self.counters.chains_parsed += count.parsed;
                self.counters.chains_reused += count.reused;
                if updated.is_ok() {
                    self.main = Some(digest);
                }
                if let Err(errors) = updated {
                    let named = errors.iter().map(|error| format!("`{MAIN}`: {error}"));
                    touched.rejected.extend(named);
                }
                touched.destinations = true;
            }
            name if ORIGINATE.contains(&name) => match listener::originate(&resource.body, name) {
                Ok(logs) => {
                    self.originated.insert(name.to_owned(), logs);
                }
                Err(error) => touched.rejected.push(format!("`{name}`: {error}")),
            },
            name => {
                touched.changed |= self.other_listeners.insert(name.to_owned());
            }
        }
    }

    fn cluster(&mut self, resource: &Resource, touched: &mut Touched) {
        let digest = Digest::of(&resource.body);
        let name = &resource.name;
        if self.clusters.get(name).is_some_and(|kept| kept.digest == digest) {
            self.counters.clusters_reused += 1;
            return;
        }
        self.counters.clusters_parsed += 1;
        let kept = match cluster::read(&resource.body, digest) {
            Ok(kept) => kept,
            Err(error) => {
                touched.rejected.push(format!("`{name}`: {error}"));
                return;
            }
        };
        if let Role::Served(served) = &kept.role
            && served.spec.name != *name
        {
            let other = &served.spec.name;
            touched.rejected.push(format!("`{name}` is named `{other}` inside"));
            return;
        }
        touched.all_clusters |= matches!(kept.role, Role::Originate(_));
        self.forget_service(name);
        if let Role::Served(served) = &kept.role
            && let Some(service) = &served.service
        {
            self.by_service.entry(service.clone()).or_default().insert(name.clone());
        }
        self.clusters.insert(name.clone(), kept);
        touched.clusters.insert(name.clone());
        touched.changed = true;
        touched.destinations = true;
    }

    fn forget_service(&mut self, cluster: &str) {
        let Some(kept) = self.clusters.get(cluster) else { return };
        let Role::Served(served) = &kept.role else { return };
        let Some(service) = &served.service else { return };
        if let Some(clusters) = self.by_service.get_mut(service) {
            clusters.remove(cluster);
            if clusters.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    fn assignment(&mut self, resource: &Resource, touched: &mut Touched) {
        let digest = Digest::of(&resource.body);
        let name = &resource.name;
        if self.assignments.get(name).is_some_and(|(known, _)| *known == digest) {
            self.counters.assignments_reused += 1;
            return;
        }
        self.counters.assignments_parsed += 1;
        let kind = "envoy.config.endpoint.v3.ClusterLoadAssignment";
        match decode::<ClusterLoadAssignment>(kind, &resource.body) {
            Ok(read) => {
                let listed = endpoint::assignment(&read.message, name);
                self.assignments.insert(name.clone(), (digest, listed));
                touched.clusters.extend(self.by_service.get(name).into_iter().flatten().cloned());
            }
            Err(error) => touched.rejected.push(format!("`{name}`: {error}")),
        }
    }

    fn workload(&mut self, resource: &Resource, touched: &mut Touched) {
        let digest = Digest::of(&resource.body);
        let name = &resource.name;
        if self.workload_digests.get(name) == Some(&digest) {
            self.counters.workloads_reused += 1;
            return;
        }
        self.counters.workloads_parsed += 1;
        match workload::read(&resource.type_url, &resource.body, &self.settings) {
            Ok(Some(kept)) => {
                let places = self.workloads.insert(name, kept);
                self.workload_digests.insert(name.clone(), digest);
                self.moved(places, touched);
                touched.changed = true;
            }
            // A service.
            Ok(None) => {}
            Err(error) => touched.rejected.push(format!("`{name}`: {error}")),
        }
    }

    /// Somebody came or went at these addresses.
    fn moved(&self, places: Vec<Place>, touched: &mut Touched) {
        let here = places.into_iter().filter(|(network, _)| *network == self.settings.network);
        touched.addresses.extend(here.map(|(_, address)| address));
    }

    fn remove(&mut self, kind: Kind, name: &str, touched: &mut Touched) {
        match kind {
            Kind::Listener => match name {
                TERMINATE => {
                    if self.terminate.take().is_some() {
                        self.gate = Arc::new(closed());
                        touched.changed = true;
                        touched.destinations = true;
                    }
                }
                MAIN => {
                    self.destinations.clear();
                    touched.changed |= self.main.take().is_some();
                    touched.destinations = true;
                }
                name => {
                    touched.changed |= self.originated.remove(name).is_some();
                    touched.changed |= self.other_listeners.remove(name);
                }
            },
            Kind::Cluster => {
                self.forget_service(name);
                if let Some(kept) = self.clusters.remove(name) {
                    touched.all_clusters |= matches!(kept.role, Role::Originate(_));
                    touched.clusters.insert(name.to_owned());
                    touched.changed = true;
                    touched.destinations = true;
                }
            }
            Kind::Endpoints => {
                if self.assignments.remove(name).is_some() {
                    let clusters = self.by_service.get(name).into_iter().flatten();
                    touched.clusters.extend(clusters.cloned());
                }
            }
            Kind::Workload => {
                self.workload_digests.remove(name);
                let before = self.workloads.len();
                let places = self.workloads.remove(name);
                touched.changed |= self.workloads.len() != before;
                self.moved(places, touched);
            }
            Kind::ExtensionConfig | Kind::Secret => {}
        }
    }

    /// What is logged of tunnels themselves; the same value as before if it is equal.
    fn tunnel_logs(&mut self) -> bool {
        let terminate = self.terminate.as_ref();
        let mut originated: Vec<AccessLog> = Vec::new();
        for log in self.originated.values().flat_map(|(logs, _)| logs) {
            // Inner and outer tunnels log alike, and ours fails once.
            if !originated.contains(log) {
                originated.push(log.clone());
            }
        }
        let logs = TunnelLogs {
            connects: terminate.map(|(_, kept)| kept.logs.clone()).unwrap_or_default(),
            unmatched: self.destinations.logs().to_vec(),
            originated,
        };
        let logs = (!logs.is_empty()).then_some(logs);
        if self.tunnels.as_deref() == logs.as_ref() {
            return false;
        }
        self.tunnels = logs.map(Arc::new);
        true
    }

    /// Makes what hangs on what was touched.
    fn settle(&mut self, touched: &mut Touched) {
        touched.changed |= self.tunnel_logs();
        self.endpoints(touched);
        let direct = !touched.addresses.is_empty() && self.destinations.direct().next().is_some();
        if touched.destinations || direct {
            let owners = Known {
                clusters: &self.clusters,
                workloads: &self.workloads,
                network: &self.settings.network,
            };
            touched.changed |= self.destinations.rebuild(&self.gate, &owners);
        }
    }

    fn endpoints(&mut self, touched: &mut Touched) {
        if touched.all_clusters {
            touched.clusters.extend(self.clusters.keys().cloned());
        } else if !touched.addresses.is_empty() {
            for (name, kept) in &self.clusters {
                let Role::Served(served) = &kept.role else { continue };
                let listed = self.listed(served);
                let meets = listed.is_some_and(|listed| {
                    listed.endpoints.iter().any(|endpoint| {
                        endpoint.transport == EndpointTransport::Hbone
                            && touched.addresses.contains(&endpoint.address.ip().to_canonical())
                    })
                });
                if meets {
                    touched.clusters.insert(name.clone());
                }
            }
        }
        for name in &touched.clusters {
            let built = self.clusters.get(name).and_then(|kept| match &kept.role {
                Role::Served(served) => self.listed(served).map(|listed| {
                    let world = World {
                        settings: &self.settings,
                        workloads: &self.workloads,
                        originate: self.originate(),
                    };
                    endpoint::build(served, listed, &world)
                }),
                _ => None,
            });
            let Some(Built { set, missing, notes }) = built else {
                touched.changed |= self.sets.remove(name).is_some();
                continue;
            };
            self.counters.sets_built += 1;
            match self.sets.get_mut(name) {
                Some(made) if *made.set == set => {
                    touched.changed |= made.notes != notes;
                    made.missing = missing;
                    made.notes = notes;
                }
                _ => {
                    touched.changed = true;
                    let set = Arc::new(set);
                    self.sets.insert(name.clone(), Made { set, missing, notes });
                }
            }
        }
    }

    /// What istiod lists for a cluster.
    fn listed<'a>(&'a self, served: &'a cluster::Served) -> Option<&'a Assignment> {
        match &served.service {
            Some(service) => self.assignments.get(service).map(|(_, listed)| listed),
            None => served.inline.as_ref(),
        }
    }
}

impl Consumer for Translator {
    fn apply(&mut self, update: Update) -> Result<(), Rejected> {
        Translator::apply(self, update).map(|_| ())
    }

    fn wanted(&self) -> Wanted {
        Translator::wanted(self)
    }
}

/// Whose something is, by the clusters and workloads that are known.
struct Known<'a> {
    clusters: &'a BTreeMap<String, cluster::Kept>,
    workloads: &'a Workloads,
    network: &'a str,
}

impl Owners for Known<'_> {
    fn of_cluster(&self, name: &str) -> Option<String> {
        match &self.clusters.get(name)?.role {
            Role::Served(served) => {
                let namespace = &served.spec.service_namespace;
                (!namespace.is_empty()).then(|| namespace.clone())
            }
            _ => None,
        }
    }

    fn of_address(&self, address: IpAddr) -> Option<String> {
        let place = (self.network.to_owned(), address.to_canonical());
        self.workloads.at(&place, None).first().map(|kept| kept.namespace.clone())
    }
}

/// As long as nothing is known about tunnels, nothing passes: there could be policies for them.
fn closed() -> Gate {
    Gate {
        broken: Some("the listener `connect_terminate` has not come".to_owned()),
        ..Gate::default()
    }
}

fn rejected(kind: Kind, reasons: &[String]) -> Rejected {
    let named = reasons.iter().take(MAX_REJECTED).map(|reason| {
        let end = reason.char_indices().map(|(at, _)| at).find(|at| *at > MAX_REASON);
        reason.get(..end.unwrap_or(reason.len())).unwrap_or(reason)
    });
    let mut detail = format!("{kind}: {}", named.collect::<Vec<_>>().join("; "));
    if reasons.len() > MAX_REJECTED {
        detail.push_str(&format!("; and {} more", reasons.len() - MAX_REJECTED));
    }
    Rejected { detail }
}
