//! What a member that starts learns from the others: a cluster's configuration as istiod has sent it, so that it serves
//! before istiod has found the time to answer.
//!
//! It is told over the cluster's own HBONE port, at an authority that no service has, to nobody but the pool's own
//! identity in that cluster, and is never more than what istiod sent: keys are not part of it. What is told is a
//! beginning: istiod's first answers take its place.

use crate::istiod::NEEDED;
use cairn_hbone::{ConnectHeaders, Originator, OriginatorConfig, Tunnel, TunnelStream};
use cairn_identity::{ExpectedPeers, Identity};
use cairn_proxy::MeshInstance;
use cairn_xds::store::{DEFAULT_MAX_FILE_BYTES, ImportLimits, Imported, Owner, Store};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Where it is told. `internal` is nobody's domain (ICANN, 2024).
pub const AUTHORITY: &str = "warm-start.cairn.internal:15008";
/// Tellings at once for each cluster; who comes then asks somebody else, or istiod.
const TELLINGS: usize = 4;
/// A telling takes no longer.
const TELLING: Duration = Duration::from_secs(30);
/// Asking all siblings takes no longer: a start without them is only slower.
const ASKING: Duration = Duration::from_secs(2);
/// Siblings that are asked at once.
const AT_ONCE: usize = 3;
/// Siblings that are asked at all.
const MOST: usize = 12;
/// Bytes that a sibling may tell.
const MOST_BYTES: u64 = DEFAULT_MAX_FILE_BYTES;

/// Whose configuration it is: the same for all members of the pool, and another for each cluster.
pub fn owner(cluster: &str, identity: &Identity) -> Owner {
    Owner {
        node: "pool member".to_owned(),
        cluster: cluster.to_owned(),
        identity: identity.current().id.to_string(),
    }
}

/// Tells siblings what `store` has, from here on.
pub fn tell(instance: &MeshInstance, store: Arc<Store>, owner: Owner) {
    let (own, mesh) = (instance.identity().clone(), instance.name().to_owned());
    let room = Arc::new(Semaphore::new(TELLINGS));
    let handler = move |mut tunnel: Tunnel| {
        if tunnel.peer.id != own.current().id {
            tracing::warn!(mesh, peer = %tunnel.peer.id, addr = %tunnel.peer.addr, "not a sibling: told nothing");
            // Dropping the tunnel resets it.
            return;
        }
        let whole = NEEDED.iter().all(|kind| store.answers().contains(kind));
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { return };
        if !whole {
            // An end without a word: there is nothing to tell yet.
            let _sibling_has_gone = tunnel.stream.writer().finish();
            return;
        }
        let (store, owner, mesh) = (Arc::clone(&store), owner.clone(), mesh.clone());
        tokio::spawn(async move {
            let told = timeout(TELLING, say(tunnel, store, owner)).await;
            let bytes = told.ok().and_then(Result::ok);
            tracing::info!(mesh, bytes, "a sibling was told the configuration");
            drop(place);
        });
    };
    instance.add_local(AUTHORITY, Arc::new(handler));
}

async fn say(tunnel: Tunnel, store: Arc<Store>, owner: Owner) -> std::io::Result<usize> {
    let bytes = tokio::task::spawn_blocking(move || store.to_bytes(&owner))
        .await
        .map_err(std::io::Error::other)?;
    let Tunnel { mut stream, .. } = tunnel;
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    Ok(bytes.len())
}

/// Whom to ask for what.
pub struct Question {
    /// Who we are: siblings have the same identity.
    pub identity: Identity,
    /// Addresses or names of siblings; our own is left out.
    pub siblings: Vec<String>,
    /// Our own address.
    pub own: IpAddr,
    /// Port of the cluster.
    pub port: u16,
    /// Whose configuration is wanted.
    pub owner: Owner,
    /// Older configuration is refused.
    pub max_age: Duration,
}

impl Question {
    /// What the first sibling that has something good tells; `None`: nobody has, or not in time.
    pub async fn ask(self) -> Option<(Arc<Store>, Imported)> {
        if self.siblings.is_empty() {
            return None;
        }
        timeout(ASKING, self.ask_all()).await.unwrap_or_else(|_| {
            tracing::info!(cluster = self.owner.cluster, "no sibling answered in time");
            None
        })
    }

    async fn ask_all(&self) -> Option<(Arc<Store>, Imported)> {
        let mut waiting = self.addresses().await.into_iter();
        let originator = Originator::new(
            self.identity.clone(),
            OriginatorConfig { connect_timeout: ASKING, ..OriginatorConfig::default() },
            Arc::default(),
        );
        let mut asked: FuturesUnordered<_> = waiting
            .by_ref()
            .take(AT_ONCE)
            .map(|address| self.ask_one(&originator, address))
            .collect();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(found) => return Some(found),
                Err(reason) => {
                    tracing::info!(cluster = self.owner.cluster, reason, "a sibling is of no help");
                }
            }
            if let Some(address) = waiting.next() {
                asked.push(self.ask_one(&originator, address));
            }
        }
        None
    }

    async fn addresses(&self) -> Vec<SocketAddr> {
        let mut found = BTreeSet::new();
        for sibling in &self.siblings {
            match sibling.parse::<IpAddr>() {
                Ok(ip) => {
                    found.insert(SocketAddr::new(ip, self.port));
                }
                Err(_) => match tokio::net::lookup_host((sibling.as_str(), self.port)).await {
                    Ok(addresses) => found.extend(addresses),
                    Err(error) => tracing::info!(sibling, %error, "no such sibling"),
                },
            }
        }
        found.retain(|address| address.ip() != self.own);
        // Not always the same ones first.
        let mut order: Vec<SocketAddr> = found.into_iter().collect();
        let turn = rand::random_range(0..order.len().max(1));
        order.rotate_left(turn);
        order.truncate(MOST);
        order
    }

    async fn ask_one(
        &self,
        originator: &Originator,
        sibling: SocketAddr,
    ) -> Result<(Arc<Store>, Imported), String> {
        let own = ExpectedPeers::one(self.identity.current().id.clone());
        let stream = originator
            .connect(sibling, &own, AUTHORITY, &ConnectHeaders::default())
            .await
            .map_err(|error| format!("{sibling}: {error}"))?;
        let bytes = read(stream).await.map_err(|reason| format!("{sibling}: {reason}"))?;
        if bytes.is_empty() {
            return Err(format!("{sibling}: has nothing to tell yet"));
        }
        let (owner, max_age) = (self.owner.clone(), self.max_age);
        let imported = tokio::task::spawn_blocking(move || {
            let store = Arc::new(Store::new());
            let limits = ImportLimits { max_age, max_bytes: MOST_BYTES };
            let from = format!("what {sibling} tells");
            store.import_bytes(bytes, &from, &owner, limits).map(|imported| (store, imported))
        });
        let (store, imported) = imported
            .await
            .map_err(|_| format!("{sibling}: what it tells cannot be read"))?
            .map_err(|error| error.to_string())?;
        if !NEEDED.iter().all(|kind| imported.answered.contains(kind)) {
            return Err(format!("{sibling}: what it tells is not whole"));
        }
        Ok((store, imported))
    }
}

async fn read(stream: TunnelStream) -> Result<Vec<u8>, String> {
    let (mut reader, _writer) = stream.split();
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.chunk().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if (bytes.len() + chunk.len()) as u64 > MOST_BYTES {
            return Err(format!("tells more than {MOST_BYTES} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
