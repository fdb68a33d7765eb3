//! States that outlive snapshots, by what makes them the same. Only snapshots and requests keep a
//! state alive; the registry just finds it again, and forgets the dead before they outnumber the
//! living.

use crate::cluster::ClusterState;
use crate::endpoint::EndpointState;
use crate::spec::{ClusterProtocol, UpstreamTls};
use ahash::AHashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

/// What makes a cluster the same one.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClusterKey {
    pub name: Arc<str>,
    pub protocol: ClusterProtocol,
    pub tls: Option<Arc<UpstreamTls>>,
}

/// What makes an endpoint the same one.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointKey {
    /// [`ClusterState::id`].
    pub cluster: u64,
    pub address: SocketAddr,
    /// Outer address and sorted identities; absent: plain.
    pub tunnel: Option<(SocketAddr, Vec<String>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    clusters: AHashMap<ClusterKey, Weak<ClusterState>>,
    endpoints: AHashMap<EndpointKey, Weak<EndpointState>>,
    last_id: u64,
    /// Size at which the dead are looked for.
    sweep_at: usize,
}

/// Fewer entries are not worth a sweep.
const MIN_SWEEP: usize = 64;

impl Registry {
    pub(crate) fn cluster(&mut self, key: ClusterKey) -> Arc<ClusterState> {
        self.sweep_when_due();
        let last_id = &mut self.last_id;
        find_or_make(&mut self.clusters, key, || {
            *last_id += 1;
            ClusterState::new(*last_id).starting_at(rand::random::<u32>().into())
        })
    }

    pub(crate) fn endpoint(
        &mut self,
        cluster: &Arc<ClusterState>,
        address: SocketAddr,
        tunnel: Option<(SocketAddr, Vec<String>)>,
    ) -> Arc<EndpointState> {
        self.sweep_when_due();
        let key = EndpointKey { cluster: cluster.id(), address, tunnel };
        let last_id = &mut self.last_id;
        find_or_make(&mut self.endpoints, key, || {
            *last_id += 1;
            EndpointState::new(*last_id, Arc::clone(cluster))
        })
    }

    fn sweep_when_due(&mut self) {
        if self.len() >= self.sweep_at.max(MIN_SWEEP) {
            self.endpoints.retain(|_, state| state.strong_count() > 0);
            self.clusters.retain(|_, state| state.strong_count() > 0);
            self.sweep_at = 2 * self.len();
        }
    }

    fn len(&self) -> usize {
        self.clusters.len() + self.endpoints.len()
    }
}

fn find_or_make<K: Eq + Hash, V>(
    known: &mut AHashMap<K, Weak<V>>,
    key: K,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    let slot = known.entry(key).or_default();
    slot.upgrade().unwrap_or_else(|| {
        let made = Arc::new(make());
        *slot = Arc::downgrade(&made);
        made
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(registry: &mut Registry, name: &str) -> Arc<ClusterState> {
        let protocol = ClusterProtocol::Http1;
        registry.cluster(ClusterKey { name: name.into(), protocol, tls: None })
    }

    #[test]
    fn found_again_while_somebody_holds_it() {
        let mut registry = Registry::default();
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let a = cluster(&mut registry, "a");
        let first = registry.endpoint(&a, address, None);
        assert!(Arc::ptr_eq(&first, &registry.endpoint(&a, address, None)));
        let tunnel = Some((address, vec!["spiffe://a/ns/b/sa/c".to_owned()]));
        assert_ne!(first.id(), registry.endpoint(&a, address, tunnel).id());
        let b = cluster(&mut registry, "b");
        assert_ne!(first.id(), registry.endpoint(&b, address, None).id());
        // The endpoint keeps its cluster's state, so that both are found again.
        let id = first.id();
        drop(a);
        let a = cluster(&mut registry, "a");
        assert_eq!(registry.endpoint(&a, address, None).id(), id);
        drop(first);
        assert_ne!(registry.endpoint(&a, address, None).id(), id);
    }

    #[test]
    fn the_dead_are_forgotten() {
        let mut registry = Registry::default();
        let kept = cluster(&mut registry, "kept");
        let living: Vec<_> = (0..100)
            .map(|port| registry.endpoint(&kept, ([10, 0, 0, 1], port).into(), None))
            .collect();
        for port in 0..10_000 {
            registry.endpoint(&kept, ([10, 0, 0, 2], port).into(), None);
            assert!(registry.len() <= 2 * living.len() + 2 + MIN_SWEEP);
        }
    }
}
