//! The live source of our credentials.
//!
//! All that depends on one issue (server configuration, cache of client configurations) hangs on one pointer, so a
//! rotation replaces it as a whole and nothing of an old issue is handed out with a new one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::credentials::{Credentials, IdentityError};
use crate::spiffe::{ExpectedPeers, TrustDomains};
use crate::tls;

/// Most client configurations kept for one issue; beyond it the cache starts anew.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Who this instance is, at any moment. Clones share the same source.
///
/// There is always a certificate: a start without one has no `Identity`.
#[derive(Clone)]
pub struct Identity(Arc<Source>);

struct Source {
    issue: ArcSwap<Issue>,
    /// Held while one issue replaces another, so that generations are handed out in order.
    publishing: Mutex<()>,
    generation: watch::Sender<u64>,
    /// The generation that istiod did not take when it was last shown; 0: none.
    refused: AtomicU64,
}

/// One issue with all that is made of it.
struct Issue {
    credentials: Arc<Credentials>,
    trust_domains: TrustDomains,
    server: Arc<ServerConfig>,
    clients: RwLock<HashMap<ExpectedPeers, Arc<ClientConfig>>>,
}

impl Identity {
    /// An identity that accepts clients of its own trust domain. The credentials are generation 1 and are taken as they
    /// are: [`Credentials::check`] tells whether peers would accept them.
    pub fn fixed(credentials: Credentials) -> Self {
        let trust_domains = TrustDomains::of(&credentials.id);
        Self::new(credentials, trust_domains)
    }

    /// As [`Identity::fixed`], with the trust domains whose clients are accepted.
    pub fn new(credentials: Credentials, trust_domains: TrustDomains) -> Self {
        Self(Arc::new(Source {
            issue: ArcSwap::from_pointee(Issue::new(credentials, 1, trust_domains)),
            publishing: Mutex::new(()),
            generation: watch::Sender::new(1),
            refused: AtomicU64::new(0),
        }))
    }

    /// The credentials in use.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.issue.load().credentials)
    }

    /// The trust domains whose clients are accepted.
    pub fn trust_domains(&self) -> TrustDomains {
        self.0.issue.load().trust_domains.clone()
    }

    /// Accepts the clients of these trust domains from the next handshake on; open connections stay as they are. The
    /// credentials stay, so this is no new generation. Returns whether they are others than before.
    ///
    /// istiod names them in the listener that it pushes, as URI prefixes `spiffe://<trust domain>/`.
    pub fn set_trust_domains(&self, trust_domains: TrustDomains) -> bool {
        let _guard = self.0.publishing.lock();
        let issue = self.0.issue.load();
        if issue.trust_domains == trust_domains {
            return false;
        }
        self.0.issue.store(Arc::new(issue.with_trust_domains(trust_domains)));
        true
    }

    /// Tells of each new generation after it is in use. A slow receiver sees only the latest.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Puts new credentials in use for all connections from here on; open ones stay as they are. The same certificates
    /// and roots once more are no new generation.
    ///
    /// New roots for the same certificate are always taken, also when the certificate does not lead to them: a root that
    /// is to be distrusted must go at once.
    ///
    /// # Errors
    /// As [`Credentials::check`], when the certificate is another one than the one in use. The credentials in use stay.
    pub fn publish(&self, credentials: Credentials) -> Result<(), IdentityError> {
        let _guard = self.0.publishing.lock();
        let current = self.current();
        let same_chain = current.same_chain(&credentials);
        if same_chain && current.same_roots(&credentials) {
            return Ok(());
        }
        if !same_chain {
            credentials.check(SystemTime::now())?;
        }
        let generation = current.generation + 1;
        let issue = Issue::new(credentials, generation, self.trust_domains());
        self.0.issue.store(Arc::new(issue));
        self.0.generation.send_replace(generation);
        Ok(())
    }

    /// How we accept connections: TLS 1.3, ALPN `h2`, a client certificate required that leads to the current roots,
    /// allows clientAuth and names exactly one workload of an accepted trust domain. No tickets, the SNI is ignored.
    ///
    /// Take it anew for each connection; it is one pointer.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.issue.load().server)
    }

    /// How we dial a server that must be one of `expected`: TLS 1.3, ALPN `h2`, our certificate offered, no SNI, nothing
    /// resumed. The server's certificate must lead to the current roots, allow serverAuth and name exactly one workload.
    ///
    /// The server name given to rustls is not looked at; the address dialled will do. In TLS 1.3 the server verifies
    /// our certificate after our handshake is done, so its refusal is seen as an error of the first read.
    pub fn client_config(&self, expected: &ExpectedPeers) -> Arc<ClientConfig> {
        self.0.issue.load().client_config(expected)
    }

    /// istiod did not take the certificate of this generation.
    pub(crate) fn note_refusal(&self, generation: u64) {
        self.0.refused.store(generation, Ordering::Relaxed);
    }

    /// Whether istiod did not take the certificate of this generation. Asking forgets it.
    pub(crate) fn take_refusal(&self, generation: u64) -> bool {
        self.0.refused.swap(0, Ordering::Relaxed) == generation
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("credentials", &self.current())
            .field("trust_domains", &self.trust_domains())
            .finish()
    }
}

impl Issue {
    fn new(mut credentials: Credentials, generation: u64, trust_domains: TrustDomains) -> Self {
        credentials.generation = generation;
        Self {
            server: Arc::new(tls::server_config(&credentials, &trust_domains)),
            credentials: Arc::new(credentials),
            trust_domains,
            clients: RwLock::default(),
        }
    }

    /// The same credentials. What was made for dialling does not depend on the trust domains and is kept; what was
    /// verified of clients does, and starts anew with the new verifier.
    fn with_trust_domains(&self, trust_domains: TrustDomains) -> Self {
        Self {
            server: Arc::new(tls::server_config(&self.credentials, &trust_domains)),
            credentials: Arc::clone(&self.credentials),
            trust_domains,
            clients: RwLock::new(self.clients.read().clone()),
        }
    }

    fn client_config(&self, expected: &ExpectedPeers) -> Arc<ClientConfig> {
        if let Some(config) = self.clients.read().get(expected) {
            return Arc::clone(config);
        }
        let config = Arc::new(tls::client_config(&self.credentials, expected));
        let mut clients = self.clients.write();
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        Arc::clone(clients.entry(expected.clone()).or_insert(config))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::dev::DevCa;
    use crate::spiffe::SpiffeId;

    #[test]
    fn client_configurations_are_kept_and_bounded() {
        let ca = DevCa::new("td").unwrap();
        let id = ca.id("default", "waypoint").unwrap();
        let identity = Identity::fixed(ca.issue(&id, Duration::from_secs(60)).unwrap());
        let peer = |number: usize| {
            ExpectedPeers::one(SpiffeId::new("td", "default", &format!("peer-{number}")).unwrap())
        };
        let first = identity.client_config(&peer(0));
        assert!(Arc::ptr_eq(&first, &identity.client_config(&peer(0))));
        assert!(!Arc::ptr_eq(&first, &identity.client_config(&peer(1))));
        for number in 0..MAX_CLIENT_CONFIGS + 10 {
            identity.client_config(&peer(number));
        }
        assert!(identity.0.issue.load().clients.read().len() <= MAX_CLIENT_CONFIGS);

        identity.publish(ca.issue(&id, Duration::from_secs(60)).unwrap()).unwrap();
        assert!(identity.0.issue.load().clients.read().is_empty());
    }
}
