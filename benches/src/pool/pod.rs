//! A pod behind a ztunnel: it chooses a member for each connection of an application, and has one HBONE connection to
//! each member, until that says GOAWAY.
//!
//! ztunnel (`proxy/outbound.rs`, `proxy/pool.rs`): weighted random over what WDS shows, no health, no retry. A
//! connection that has heard GOAWAY is not used for new tunnels; the tunnels in it live on.

use super::ground::Cluster;
use super::random::Random;
use super::tally::Failure;
use super::{ID, PATIENCE};
use cairn_test_support::hbone_client::{ConnectFailure, HboneClient, OpenFailure};
use cairn_test_support::pki::Cert;
use cairn_test_support::stream::H2Stream;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The HBONE connection to one member.
type Slot = Arc<Mutex<Option<Arc<HboneClient>>>>;

/// A pod.
pub struct Pod {
    /// Its cluster.
    pub cluster: Arc<Cluster>,
    cert: Cert,
    slots: Mutex<HashMap<IpAddr, Slot>>,
}

impl Pod {
    /// Of this cluster, with this certificate.
    pub fn new(cluster: &Arc<Cluster>, cert: &Cert) -> Arc<Pod> {
        let (cluster, cert) = (Arc::clone(cluster), cert.clone());
        Arc::new(Pod { cluster, cert, slots: Mutex::default() })
    }

    /// A member for the next connection of an application.
    pub fn choose(&self, random: &mut Random) -> Option<IpAddr> {
        random.weighted(&self.cluster.view())
    }

    /// A tunnel to a service by way of a member.
    pub async fn open(&self, member: IpAddr, vip: &str) -> Result<H2Stream, Failure> {
        let slot = self.slot(member).await;
        let client = {
            let mut slot = slot.lock().await;
            match slot.as_ref() {
                // ztunnel: whether it is ready to use is looked at before each tunnel.
                Some(client) if !draining(client).await => Arc::clone(client),
                _ => Arc::clone(slot.insert(Arc::new(self.dial(member).await?))),
            }
        };
        match timeout(PATIENCE, client.open(vip)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(OpenFailure::Status(status, _))) => {
                Err(Failure(format!("CONNECT {}", status.as_u16())))
            }
            Ok(Err(OpenFailure::H2(error))) => Err(Failure(format!("CONNECT: {}", of_h2(&error)))),
            Err(_) => Err(Failure("CONNECT: no answer".to_owned())),
        }
    }

    /// Members that are not shown any more are forgotten.
    async fn slot(&self, member: IpAddr) -> Slot {
        let mut slots = self.slots.lock().await;
        if !slots.contains_key(&member) {
            let view = self.cluster.view();
            slots.retain(|ip, _| view.iter().any(|(shown, _)| shown == ip));
        }
        Arc::clone(slots.entry(member).or_default())
    }

    async fn dial(&self, member: IpAddr) -> Result<HboneClient, Failure> {
        let at = SocketAddr::new(member, self.cluster.port);
        match timeout(PATIENCE, HboneClient::connect(at, &self.cert, ID)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(ConnectFailure::Tcp(error))) => Err(Failure(format!("dial: {}", error.kind()))),
            Ok(Err(ConnectFailure::Tls(error))) => Err(Failure(format!("TLS: {}", error.kind()))),
            Ok(Err(ConnectFailure::Refused(_))) => Err(Failure("TLS: refused".to_owned())),
            Err(_) => Err(Failure("dial: no answer".to_owned())),
        }
    }
}

/// New tunnels are not taken. Whoever is full is not draining.
async fn draining(client: &HboneClient) -> bool {
    client.is_closed() || client.is_draining().await
}

/// An error of HTTP/2 in words that are equal for equal errors. A stream that a GOAWAY ends was not processed (RFC 9113
/// section 6.8): its request was on the way while the connection ended.
pub fn of_h2(error: &h2::Error) -> String {
    let how = match (error.is_go_away(), error.is_reset()) {
        (true, _) => "not processed, GOAWAY",
        (_, true) => "reset",
        _ => "broken",
    };
    match error.reason() {
        Some(reason) => format!("h2 {how} {reason:?}"),
        None => format!("h2 {how}"),
    }
}
