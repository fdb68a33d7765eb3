//! One snapshot of a mesh.

use crate::cluster::Cluster;
use crate::destination::{Destination, TargetRef};
use crate::destination_index::DestinationIndex;
use crate::observe::TunnelLogs;
use crate::workload::{Workload, WorkloadIndex};
use ahash::AHashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// One immutable snapshot. Snapshots share what did not change between them; a clone shares
/// everything.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    pub(crate) destinations: Arc<[Arc<Destination>]>,
    pub(crate) index: Arc<DestinationIndex>,
    pub(crate) clusters: Arc<AHashMap<Arc<str>, Arc<Cluster>>>,
    pub(crate) workloads: Arc<WorkloadIndex>,
    pub(crate) warnings: Arc<[String]>,
    pub(crate) tunnels: Option<Arc<TunnelLogs>>,
}

impl Mesh {
    /// A mesh in which nothing is known.
    pub fn empty() -> Self {
        Mesh::default()
    }

    /// What CONNECT named. A host name is compared without regard to ASCII case; of networks the
    /// most specific one with the port, or with every port, wins. `0.0.0.0` and `::` name nothing.
    pub fn destination(&self, target: &TargetRef<'_>) -> Option<&Arc<Destination>> {
        self.index.get(target)
    }

    /// The cluster of that name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// Who is at an address; the first configured of several.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(address)
    }

    /// Who of those at an address has this SPIFFE id.
    pub fn workload_as(&self, address: IpAddr, principal: &str) -> Option<&Arc<Workload>> {
        self.workloads.get_as(address, principal)
    }

    /// All destinations, in the order of the configuration.
    pub fn destinations(&self) -> impl ExactSizeIterator<Item = &Arc<Destination>> {
        self.destinations.iter()
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl ExactSizeIterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// What is logged of tunnels themselves; `None`: nothing.
    pub fn tunnel_logs(&self) -> Option<&Arc<TunnelLogs>> {
        self.tunnels.as_ref()
    }

    /// What works, but hardly as it was meant: one line each, beginning with the place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
