//! Where the waypoint's certificate comes from: files that somebody else provides, or the mesh's CA.

use super::paths::Paths;
use super::settings::Settings;
use crate::ready::Readiness;
use cairn_identity::Identity;
use cairn_identity::ca::{CaClient, CaConfig, CaStatus, RunningCa};
use cairn_identity::files::{self, FileSource, FileWatch};
use cairn_identity::istiod::{Istiod, Roots};
use std::time::Duration;
use tokio::sync::watch;

/// What readiness calls it.
pub const CERTIFICATE: &str = "certificate";

/// How often files that are not good yet are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the identity fresh for as long as it is held.
pub enum Keeper {
    /// Files that are watched.
    Files {
        /// Ends with it.
        _watch: FileWatch,
    },
    /// The CA, which is asked again and again.
    Ca(RunningCa),
}

impl Keeper {
    /// How the CA is doing.
    pub fn ca(&self) -> Option<watch::Receiver<CaStatus>> {
        match self {
            Keeper::Files { .. } => None,
            Keeper::Ca(running) => Some(running.subscribe()),
        }
    }
}

/// Waits until there is a certificate; why there is none is told to `readiness`.
pub async fn obtain(
    settings: &Settings,
    paths: &Paths,
    cluster_id: &str,
    readiness: &Readiness,
) -> (Identity, Keeper) {
    let directory = paths.credentials();
    let cert = directory.join("cert-chain.pem");
    let obtained = if cert.exists() {
        tracing::info!(path = %directory.display(), "the certificate comes from files");
        let source = FileSource {
            cert,
            key: directory.join("key.pem"),
            roots: directory.join("root-cert.pem"),
            trust_domains: None,
        };
        of_files(source, settings, readiness).await
    } else {
        tracing::info!(ca = settings.ca.address, id = %settings.id, "asking the CA for a certificate");
        of_ca(settings, paths, cluster_id, readiness).await
    };
    readiness.arrived(CERTIFICATE);
    obtained
}

async fn of_files(
    source: FileSource,
    settings: &Settings,
    readiness: &Readiness,
) -> (Identity, Keeper) {
    let identity = loop {
        match files::load(&source).await {
            Ok(identity) => break identity,
            Err(error) => readiness.still_missing(CERTIFICATE, &error.to_string()),
        }
        tokio::time::sleep(LOOK).await;
    };
    let found = identity.current().id.clone();
    if found != settings.id {
        tracing::warn!(
            %found, expected = %settings.id,
            "the certificate is another identity's than the pod's; istiod and peers go by the certificate"
        );
    }
    let watch = files::watch(source, identity.clone(), files::DEFAULT_INTERVAL);
    (identity, Keeper::Files { _watch: watch })
}

async fn of_ca(
    settings: &Settings,
    paths: &Paths,
    cluster_id: &str,
    readiness: &Readiness,
) -> (Identity, Keeper) {
    let istiod = Istiod {
        address: settings.ca.address.clone(),
        server_name: None,
        roots: Roots::File(settings.ca.roots.clone()),
        resolve: settings.resolve.clone(),
        token: Some(paths.token()),
        cluster_id: cluster_id.to_owned(),
        identity: None,
        plaintext: false,
    };
    let memory = paths.memory();
    let config = CaConfig {
        ttl: settings.ca.ttl,
        key: settings.ca.key,
        grace_ratio: settings.ca.grace_ratio,
        cert_signer: settings.ca.signer.clone(),
        keep_in: memory.is_dir().then_some(memory),
        ..CaConfig::new(istiod, settings.id.clone())
    };
    let wait = |reason: String| readiness.still_missing(CERTIFICATE, &reason);
    let (identity, running) = CaClient::start(config, wait).await;
    (identity, Keeper::Ca(running))
}
