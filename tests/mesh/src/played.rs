//! A member of the pool as a test plays it: it registers by its stream as a member does, and answers tunnels by
//! itself. With it the lab is tested without the product.

use crate::ads::{Proxy, Stream};
use crate::control::ControlPlane;
use crate::grpc::Caller;
use crate::hbone::Server;
use crate::identity::PodIdentity;
use cairn_pool::{UserCluster, objects::member_labels};
use cairn_test_support::app::App;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The smallest subscription: istiod answers it with nothing.
const NOTHING: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// Before a stream is opened again.
const PAUSE: Duration = Duration::from_millis(200);

/// Registered in one cluster, and serving it; it dies when this is dropped.
pub struct Played {
    /// Where it serves.
    pub at: SocketAddr,
    server: Server,
    registration: JoinHandle<()>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.registration.abort();
    }
}

impl Played {
    /// Serves at `ip` and the cluster's port, and registers; a CONNECT to one of `apps` is answered by it.
    ///
    /// # Panics
    /// When istiod does not sign for it.
    pub async fn join(
        plane: &ControlPlane,
        cluster: &UserCluster,
        ip: IpAddr,
        apps: BTreeMap<SocketAddr, App>,
    ) -> Self {
        let UserCluster { namespace, service_account, port, .. } = cluster;
        let caller = plane.caller(namespace, service_account).await;
        let identity = PodIdentity::issue(&caller, namespace, service_account).await.unwrap();
        let at = SocketAddr::new(ip, *port);
        let server = Server::start(at, &identity, apps).await;
        let registration = tokio::spawn(register(caller, cluster.clone(), ip));
        Played { at, server, registration }
    }

    /// No longer registered; it goes on serving.
    pub fn deregister(&self) {
        self.registration.abort();
    }

    /// GOAWAY on all connections, and waits until nobody has a tunnel.
    pub async fn drain(&self) {
        self.server.leave();
        crate::control::eventually("all connections end", async || self.server.connections() == 0)
            .await;
    }

    /// CONNECTs so far.
    pub fn tunnels(&self) -> usize {
        self.server.seen().len()
    }
}

async fn register(caller: Caller, cluster: UserCluster, ip: IpAddr) {
    let labels = member_labels(&cluster);
    let labels: Vec<(&str, &str)> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    let (name, ip) = (format!("played-{ip}").replace('.', "-"), ip.to_string());
    let proxy = Proxy {
        kind: "waypoint",
        name: &name,
        namespace: &cluster.namespace,
        account: &cluster.service_account,
        ip: &ip,
        labels: &labels,
        group: Some(&cluster.name),
        locality: Some(("r1", "z1")),
    };
    loop {
        if let Ok(mut stream) = Stream::open(&caller, proxy.node(&caller), NOTHING, []).await {
            while stream.next().await.is_ok() {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}
