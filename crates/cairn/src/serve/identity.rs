//! Where a mesh's identity comes from.

use cairn_identity::dev::{DevCa, DevCaError};
use cairn_identity::files::{self, FileError, FileSource, FileWatch};
use cairn_identity::{Identity, SpiffeError, TrustDomains};
use cairn_xds::{DevIdentity, FileIdentity, IdentityConfig, MeshConfig};
use std::time::Duration;

/// How long a throw-away certificate is valid: longer than any trial.
const DEV_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// The files cannot be used, or are not there yet.
    #[error("certificate files: {0}")]
    Files(#[from] FileError),
    /// The throw-away authority refused.
    #[error("throw-away certificate: {0}")]
    Dev(#[from] DevCaError),
    /// An id or a trust domain is wrong.
    #[error("identity: {0}")]
    Spiffe(#[from] SpiffeError),
}

/// Loads the identity; for files also the watch that keeps it fresh.
pub async fn of(mesh: &MeshConfig) -> Result<(Identity, Option<FileWatch>), NoIdentity> {
    let trust_domains = match mesh.trust_domains.as_slice() {
        [] => None,
        domains => Some(TrustDomains::new(domains)?),
    };
    match &mesh.identity {
        IdentityConfig::Files(FileIdentity { cert, key, roots }) => {
            let source = FileSource {
                cert: cert.clone(),
                key: key.clone(),
                roots: roots.clone(),
                trust_domains,
            };
            let identity = files::load(&source).await?;
            let watch = files::watch(source, identity.clone(), files::DEFAULT_INTERVAL);
            Ok((identity, Some(watch)))
        }
        IdentityConfig::Dev(DevIdentity { id }) => {
            let credentials = DevCa::new(id.trust_domain())?.issue(id, DEV_TTL)?;
            let trust_domains = trust_domains.unwrap_or_else(|| TrustDomains::of(id));
            Ok((Identity::new(credentials, trust_domains), None))
        }
    }
}
