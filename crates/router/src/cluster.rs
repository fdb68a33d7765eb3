//! Where routes lead: a cluster is settings, the endpoints of the moment, and a state that
//! outlives both.

use crate::endpoint::Endpoint;
use crate::error::Context;
use crate::extensions::Extensions;
use crate::lb::Balancer;
use crate::registry::{ClusterKey, Registry};
use crate::spec::{
    self, CircuitBreakers, ClusterProtocol, Health, LbPolicy, OriginalDestination, UpstreamTls,
};
use ahash::AHashSet;
use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How the endpoints of one name are used.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Unique name.
    pub name: Arc<str>,
    /// Host name of the service; empty if unknown (`destination_service`).
    pub service: Arc<str>,
    /// Short name of the service; empty if unknown (`destination_service_name`).
    pub service_name: Arc<str>,
    /// Namespace of the service; empty if unknown.
    pub service_namespace: Arc<str>,
    /// How an endpoint is chosen.
    pub lb: LbPolicy,
    /// What is spoken to endpoints.
    pub protocol: ClusterProtocol,
    /// Bound of a dial, TLS and CONNECT included; more than 0.
    pub connect_timeout: Duration,
    /// An idle connection is closed after so long; more than 0.
    pub idle_timeout: Duration,
    /// Requests per connection; `None`: no bound.
    pub max_requests_per_connection: Option<u32>,
    /// TLS to the endpoint, inside the tunnel if there is one.
    pub tls: Option<Arc<UpstreamTls>>,
    /// How much may be under way at once; `None`: nothing is bounded.
    pub circuit_breakers: Option<CircuitBreakers>,
    /// Requests go to the address that the client named: [`Cluster::original`] gives the endpoint.
    pub original_destination: Option<OriginalDestination>,
    /// Why it cannot be honoured: what is sent there gets 503 with this reason.
    pub broken: Option<Arc<str>>,
    /// The endpoints of this snapshot.
    pub endpoints: Arc<EndpointSet>,
    /// What outlives snapshots.
    pub state: Arc<ClusterState>,
}

/// The endpoints of one cluster.
#[derive(Debug)]
pub struct EndpointSet {
    all: Box<[Arc<Endpoint>]>,
    balancer: Balancer,
    unidentified: Box<[IpAddr]>,
}

/// What outlives a snapshot: the same name, TLS and protocol have the same state for as long as a
/// snapshot or a request holds it.
#[derive(Debug)]
pub struct ClusterState {
    id: u64,
    cursor: AtomicU64,
    extensions: Extensions,
}

impl Cluster {
    /// Checks and compiles, without endpoints; `None` after an error was recorded.
    pub(crate) fn compile(
        cluster: &spec::Cluster,
        registry: &mut Registry,
        at: &mut Context,
    ) -> Option<Self> {
        let spec::Cluster {
            name,
            service,
            service_name,
            service_namespace,
            lb,
            protocol,
            connect_timeout,
            tls,
            idle_timeout,
            max_requests_per_connection,
            circuit_breakers,
            original_destination,
            broken,
        } = cluster;
        let before = at.error_count();
        if name.is_empty() {
            at.field("name", |at| at.error("is empty"));
        }
        for (field, value) in [("connect_timeout", connect_timeout), ("idle_timeout", idle_timeout)]
        {
            if value.is_zero() {
                at.field(field, |at| at.error("must be more than 0"));
            }
        }
        if let Some(reason) = broken {
            at.warn(format!("cannot be honoured, so requests get 503: {reason}"));
        }
        if let Some(tls) = tls {
            at.field("tls", |at| check_tls(tls, at));
        }
        if at.error_count() > before {
            return None;
        }
        let name: Arc<str> = name.as_str().into();
        let tls = tls.clone().map(Arc::new);
        let key = ClusterKey { name: Arc::clone(&name), protocol: *protocol, tls: tls.clone() };
        Some(Cluster {
            name,
            service: service.as_str().into(),
            service_name: match service_name.as_str() {
                "" => short_name(service).into(),
                name => name.into(),
            },
            service_namespace: service_namespace.as_str().into(),
            lb: *lb,
            protocol: *protocol,
            connect_timeout: *connect_timeout,
            idle_timeout: *idle_timeout,
            max_requests_per_connection: max_requests_per_connection.filter(|most| *most > 0),
            tls,
            circuit_breakers: bounded(circuit_breakers),
            original_destination: *original_destination,
            broken: broken.as_deref().map(Arc::from),
            endpoints: Arc::new(EndpointSet::empty()),
            state: registry.cluster(key),
        })
    }

    /// Chooses an endpoint: healthy ones only, of the lowest priority that has any.
    ///
    /// `random` yields uniform 64-bit numbers. `tried` are ids ([`Endpoint::id`]) to be avoided:
    /// up to `host_selection_attempts` further draws are made for another one (Envoy:
    /// `host_selection_retry_max_attempts`), then any that was not tried is taken, and one that was
    /// only if there is no other. `None`: no healthy endpoint.
    ///
    /// Takes no lock and allocates nothing.
    pub fn pick(
        &self,
        random: impl FnMut() -> u64,
        tried: &[u64],
        host_selection_attempts: u32,
    ) -> Option<&Arc<Endpoint>> {
        self.endpoints.balancer.pick(&self.state.cursor, random, tried, host_selection_attempts)
    }
}

/// `None`: nothing is bounded. The largest number is istiod's way to write "no bound".
fn bounded(breakers: &CircuitBreakers) -> Option<CircuitBreakers> {
    let CircuitBreakers { max_connections, max_pending_requests, max_requests, max_retries } =
        breakers;
    let bound = |most: &Option<u32>| most.filter(|most| *most < u32::MAX);
    let breakers = CircuitBreakers {
        max_connections: bound(max_connections),
        max_pending_requests: bound(max_pending_requests),
        max_requests: bound(max_requests),
        max_retries: bound(max_retries),
    };
    Some(breakers).filter(|breakers| !breakers.is_empty())
}

fn check_tls(tls: &UpstreamTls, at: &mut Context) {
    let UpstreamTls { sni, ca_file, sans, cert_file, key_file, tls13_only: _ } = tls;
    if sni.is_none() && sans.is_empty() {
        at.error("needs `sni` or `sans`: nothing could be verified");
    }
    let files =
        [("sni", sni), ("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)];
    for (field, value) in files {
        if value.as_ref().is_some_and(String::is_empty) {
            at.field(field, |at| at.error("is empty"));
        }
    }
    at.each("sans", sans, |san, at| if san.is_empty() { at.reject("is empty") } else { Some(()) });
    if cert_file.is_some() != key_file.is_some() {
        at.error("has only one of `cert_file` and `key_file`: a client certificate needs both");
    }
}

/// `app` of `app.shop.svc.cluster.local`; other hosts as they are (Istio: a ServiceEntry's name is its host).
fn short_name(service: &str) -> &str {
    let mut labels = service.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(_), Some("svc")) => name,
        _ => service,
    }
}

impl EndpointSet {
    /// Compiles the endpoints of `cluster`. One with an error is left out.
    pub(crate) fn compile(
        set: &spec::EndpointSet,
        cluster: &Cluster,
        registry: &mut Registry,
        at: &mut Context,
    ) -> Self {
        let spec::EndpointSet { cluster: _, endpoints } = set;
        let mut addresses = AHashSet::new();
        let mut all = Vec::with_capacity(endpoints.len());
        let mut unidentified = Vec::new();
        at.field("endpoints", |at| {
            for (index, endpoint) in endpoints.iter().enumerate() {
                at.index(index, |at| {
                    let health = endpoint.health;
                    let Some(endpoint) = Endpoint::compile(endpoint, &cluster.state, registry, at)
                    else {
                        return;
                    };
                    let tunnel = endpoint.tunnel.as_ref();
                    if !addresses.insert((endpoint.address, tunnel.map(|tunnel| tunnel.address))) {
                        at.error(format!("{} is there twice", endpoint.address));
                        return;
                    }
                    if tunnel.is_some_and(|tunnel| tunnel.identities.is_empty()) {
                        at.warn(format!(
                            "{} has no `identities`: nobody could be trusted there, so it gets no requests",
                            endpoint.address
                        ));
                        if health == Health::Healthy {
                            unidentified.push(endpoint.address.ip());
                        }
                    }
                    all.push(Arc::new(endpoint));
                });
            }
        });
        EndpointSet { unidentified: unidentified.into(), ..EndpointSet::new(all, cluster.lb) }
    }

    pub(crate) fn new(all: Vec<Arc<Endpoint>>, policy: LbPolicy) -> Self {
        EndpointSet {
            balancer: Balancer::new(&all, policy),
            all: all.into(),
            unidentified: [].into(),
        }
    }

    /// Without any endpoint.
    pub fn empty() -> Self {
        EndpointSet::new(Vec::new(), LbPolicy::default())
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// Those that get requests: healthy, and of the lowest priority that has healthy ones.
    pub fn candidates(&self) -> &[Arc<Endpoint>] {
        self.balancer.candidates()
    }

    /// Addresses of those that would be healthy if somebody could be expected there: a tunnel leads
    /// to them, and no identity is known.
    pub fn unidentified(&self) -> &[IpAddr] {
        &self.unidentified
    }
}

impl ClusterState {
    pub(crate) fn new(id: u64) -> Self {
        ClusterState { id, cursor: AtomicU64::new(0), extensions: Extensions::default() }
    }

    /// Instances that start together do not all begin at the same endpoint.
    pub(crate) fn starting_at(self, cursor: u64) -> Self {
        self.cursor.store(cursor, Ordering::Relaxed);
        self
    }

    /// Unique among all clusters that one [`Compiler`](crate::compile::Compiler) has ever made.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The caller's own value beside this cluster, one per type; `init` makes it when asked first.
    pub fn extension<T: Any + Send + Sync>(&self, init: impl FnOnce() -> T) -> &T {
        self.extensions.get_or_init(init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names() {
        for (service, name) in [
            ("app.shop.svc.cluster.local", "app"),
            ("app.shop.svc", "app"),
            ("api.example.com", "api.example.com"),
            ("app", "app"),
            ("", ""),
        ] {
            assert_eq!(short_name(service), name);
        }
    }
}
