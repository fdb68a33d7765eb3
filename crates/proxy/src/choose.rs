//! Which endpoint a try goes to.
//!
//! Endpoints whose identity is not known get nothing. Where nothing else is wrong with them, whoever
//! can find out is asked ([`MeshInstance::set_identity_wait`]), and the try waits for a snapshot
//! that knows more, but not for long.

use crate::instance::MeshInstance;
use crate::link::Link;
use crate::resolve;
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use cairn_router::model::Mesh;
use cairn_router::original::NoOriginal;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a try waits for identities.
const PATIENCE: Duration = Duration::from_millis(250);
/// Addresses of one cluster that are asked for at once.
const MAX_ASKED: usize = 32;

/// Why there is no endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoEndpoint {
    /// None is healthy.
    Unhealthy,
    /// Nobody could be expected at these, which are otherwise healthy.
    Unidentified(Vec<IpAddr>),
    /// The cluster goes where the client wants, and that is a name.
    NoAddress,
    /// Nothing answers there, or we do.
    Nowhere,
}

impl NoEndpoint {
    /// For records, in Envoy's manner.
    pub(crate) fn details(&self) -> Cow<'static, str> {
        match self {
            NoEndpoint::Unhealthy => Cow::Borrowed("no_healthy_upstream"),
            NoEndpoint::Unidentified(addresses) => Cow::Owned(match addresses.first() {
                Some(address) => format!("no_healthy_upstream{{unknown_identity:{address}}}"),
                None => "no_healthy_upstream".to_owned(),
            }),
            NoEndpoint::NoAddress => {
                Cow::Borrowed("no_healthy_upstream{original_destination_is_a_name}")
            }
            NoEndpoint::Nowhere => {
                Cow::Borrowed("no_healthy_upstream{original_destination_is_nowhere}")
            }
        }
    }
}

/// Chooses an endpoint of `cluster`; `tried` and `draws` as for [`Cluster::pick`].
pub(crate) fn choose(
    link: &Link,
    mesh: &Mesh,
    cluster: &Cluster,
    tried: &[u64],
    draws: u32,
) -> Result<Arc<Endpoint>, NoEndpoint> {
    if cluster.original_destination.is_some() {
        return original(link, mesh, cluster);
    }
    cluster.pick(rand::random, tried, draws).cloned().ok_or_else(|| {
        let unidentified = cluster.endpoints.unidentified();
        match unidentified {
            [] => NoEndpoint::Unhealthy,
            some => NoEndpoint::Unidentified(some.iter().take(MAX_ASKED).copied().collect()),
        }
    })
}

/// The endpoint at the address that the client named.
fn original(link: &Link, mesh: &Mesh, cluster: &Cluster) -> Result<Arc<Endpoint>, NoEndpoint> {
    let how = cluster.original_destination.ok_or(NoEndpoint::Unhealthy)?;
    let named = resolve::address(&link.target).ok_or(NoEndpoint::NoAddress)?;
    let endpoint = cluster.original(how, named, mesh).map_err(|none| match none {
        NoOriginal::UnknownWorkload(address) => NoEndpoint::Unidentified(vec![address]),
        NoOriginal::Nowhere(_) => NoEndpoint::Nowhere,
    })?;
    let outer = endpoint.tunnel.as_ref().map_or(endpoint.address, |tunnel| tunnel.address);
    // We would come back to ourselves for ever.
    if outer == link.peer.local_addr { Err(NoEndpoint::Nowhere) } else { Ok(endpoint) }
}

/// Asks for the identities that are missing and waits; gives the cluster by a newer snapshot and an
/// endpoint of it, or `none` again.
pub(crate) async fn wait(
    link: &Link,
    cluster: &Cluster,
    none: NoEndpoint,
) -> Result<(Arc<Cluster>, Arc<Endpoint>), NoEndpoint> {
    let NoEndpoint::Unidentified(missing) = &none else { return Err(none) };
    let _waiting = link.instance.loads().waits.for_endpoint();
    let found = until(&link.instance, missing, |mesh| {
        let cluster = mesh.cluster(&cluster.name).filter(|cluster| cluster.broken.is_none())?;
        let endpoint = choose(link, mesh, cluster, &[], 1).ok()?;
        Some((Arc::clone(cluster), endpoint))
    });
    found.await.ok_or(none)
}

/// Waits for a snapshot in which `ready` finds something.
async fn until<T>(
    instance: &MeshInstance,
    missing: &[IpAddr],
    ready: impl Fn(&Mesh) -> Option<T>,
) -> Option<T> {
    let ask = instance.identity_wait()?;
    let deadline = Instant::now() + PATIENCE;
    missing.iter().for_each(|address| ask(*address));
    loop {
        let published = instance.published();
        let mut published = std::pin::pin!(published);
        published.as_mut().enable();
        let found = ready(&instance.mesh());
        if found.is_some() {
            return found;
        }
        timeout_at(deadline, published).await.ok()?;
    }
}
