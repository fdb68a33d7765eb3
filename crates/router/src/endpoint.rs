//! One place where requests are answered, and what is counted there.
//!
//! An [`Endpoint`] belongs to a snapshot; its [`EndpointState`] outlives snapshots, so that a push
//! neither forgets what is in flight nor empties a connection pool.

use crate::cluster::ClusterState;
use crate::error::Context;
use crate::extensions::Extensions;
use crate::registry::Registry;
use crate::spec::{self, EndpointTransport, Health, Locality};
use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// One place where requests are answered. Who runs there: `mesh.workload(endpoint.address.ip())`.
#[derive(Debug)]
pub struct Endpoint {
    /// Address and port of the application.
    pub address: SocketAddr,
    /// Absent: plain TCP (or TLS) straight to `address`.
    pub tunnel: Option<TunnelTo>,
    /// Share of the traffic among its peers, from 1.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u32,
    /// Unusable ones (a tunnel without identities) are unhealthy here, whatever was configured.
    pub health: Health,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// Counters and pools; the same one in every snapshot that has this endpoint.
    pub state: Arc<EndpointState>,
}

/// The HBONE tunnel that leads to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelTo {
    /// Where the outer connection goes.
    pub address: SocketAddr,
    /// SPIFFE ids of which the peer must prove one; sorted, never empty in a healthy endpoint.
    pub identities: Vec<String>,
    /// `:authority` of the CONNECT: the application's address and port.
    pub authority: Arc<str>,
}

/// What outlives a snapshot: the same cluster name, TLS, protocol, address, tunnel address and
/// identities have the same state for as long as a snapshot or a request holds it.
#[derive(Debug)]
pub struct EndpointState {
    id: u64,
    active: AtomicU32,
    total: AtomicU64,
    failures: AtomicU64,
    extensions: Extensions,
    cluster: Arc<ClusterState>,
}

/// A request or connection at an endpoint; counted as active until it is dropped.
#[derive(Debug)]
pub struct ActiveGuard(Arc<EndpointState>);

/// Port of HBONE.
const HBONE_PORT: u16 = 15008;

impl Endpoint {
    /// Checks and compiles; `None` after an error was recorded.
    pub(crate) fn compile(
        endpoint: &spec::Endpoint,
        cluster: &Arc<ClusterState>,
        registry: &mut Registry,
        at: &mut Context,
    ) -> Option<Self> {
        let spec::Endpoint {
            address,
            transport,
            identities,
            tunnel_address,
            weight,
            priority,
            health,
            locality,
        } = endpoint;
        let before = at.error_count();
        if address.ip().is_unspecified() || address.port() == 0 {
            at.field("address", |at| at.error(format!("nothing answers at `{address}`")));
        }
        if *weight == 0 {
            at.field("weight", |at| at.error("must be 1 or more; leave the endpoint out instead"));
        }
        at.each("identities", identities, |identity, at| {
            if identity.starts_with("spiffe://") {
                Some(())
            } else {
                at.reject(format!("`{identity}` does not begin with spiffe://"))
            }
        });
        if *transport == EndpointTransport::Plain {
            if !identities.is_empty() {
                at.field("identities", |at| at.error("cannot be verified with `transport: plain`"));
            }
            if tunnel_address.is_some() {
                at.field("tunnel_address", |at| at.error("is not used with `transport: plain`"));
            }
        }
        if at.error_count() > before {
            return None;
        }
        let tunnel = (*transport == EndpointTransport::Hbone).then(|| {
            let mut identities = identities.clone();
            identities.sort();
            identities.dedup();
            TunnelTo {
                address: tunnel_address.unwrap_or(SocketAddr::new(address.ip(), HBONE_PORT)),
                identities,
                authority: address.to_string().into(),
            }
        });
        let unusable = tunnel.as_ref().is_some_and(|tunnel| tunnel.identities.is_empty());
        let key = tunnel.as_ref().map(|tunnel| (tunnel.address, tunnel.identities.clone()));
        Some(Endpoint {
            address: *address,
            tunnel,
            weight: *weight,
            priority: *priority,
            health: if unusable { Health::Unhealthy } else { *health },
            locality: Arc::new(locality.clone()),
            state: registry.endpoint(cluster, *address, key),
        })
    }

    /// [`EndpointState::id`]: what `pick` takes as tried.
    pub fn id(&self) -> u64 {
        self.state.id
    }

    /// Counts a request or connection here.
    pub fn begin(&self) -> ActiveGuard {
        self.state.begin()
    }

    /// Gets requests.
    pub fn is_healthy(&self) -> bool {
        self.health == Health::Healthy
    }
}

impl EndpointState {
    pub(crate) fn new(id: u64, cluster: Arc<ClusterState>) -> Self {
        EndpointState {
            id,
            active: AtomicU32::new(0),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            extensions: Extensions::default(),
            cluster,
        }
    }

    /// Unique among all endpoints that one [`Compiler`](crate::compile::Compiler) has ever made, and
    /// in its cluster.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Requests and connections in flight.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Requests and connections ever begun.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Failures that callers recorded.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Records a failure: no connection, a reset, or whatever the caller counts as one.
    pub fn record_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// State of the cluster that the endpoint belongs to.
    pub fn cluster(&self) -> &Arc<ClusterState> {
        &self.cluster
    }

    /// The caller's own value beside this endpoint, one per type; `init` makes it when asked first.
    pub fn extension<T: Any + Send + Sync>(&self, init: impl FnOnce() -> T) -> &T {
        self.extensions.get_or_init(init)
    }

    /// The caller's own value beside this endpoint, if it was made.
    pub fn existing_extension<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// Counts a request or connection.
    pub fn begin(self: &Arc<Self>) -> ActiveGuard {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        ActiveGuard(Arc::clone(self))
    }
}

impl ActiveGuard {
    /// The endpoint's state.
    pub fn state(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_counts_while_it_lives() {
        let state = Arc::new(EndpointState::new(1, Arc::new(ClusterState::new(1))));
        let first = state.begin();
        let second = state.begin();
        assert_eq!((state.active(), state.total()), (2, 2));
        drop(first);
        second.state().record_failure();
        drop(second);
        assert_eq!((state.active(), state.total(), state.failures()), (0, 2, 1));
    }
}
