//! The certificate authority's client: our certificate from istiod, and its renewal.
//!
//! The model:
//!
//! * [`CaConfig`] says whom to ask and for whom. [`fetch`] makes one key, asks once and checks the answer.
//! * [`CaClient::start`] asks until there is a certificate and hands out an [`crate::Identity`]; from then on a task renews
//!   it ([`RunningCa`]). There is no identity without a certificate.
//!
//! Invariants:
//!
//! * An answer comes into use only when its certificate is for the key that we made, names exactly our identity, is valid
//!   now and leads to the roots of the same answer. Anything else is an error and the certificate in use stays.
//! * Every try makes a new key and reads istiod's roots and the token again.
//! * Connections are never cut. The roots trusted are those of the last answer; while roots are replaced the authority
//!   answers with the old and the new ones, and both are trusted.
//! * A private key leaves this process only into a directory that is memory (tmpfs), when one is given.

mod answer;
mod backoff;
mod client;
mod error;
mod issue;
mod kept;
mod key;
mod status;

use std::path::PathBuf;
use std::time::Duration;

use crate::istiod::Istiod;
use crate::spiffe::{SpiffeId, TrustDomains};

pub use answer::AnswerError;
pub use client::{CaClient, RunningCa};
pub use error::CaError;
pub use issue::fetch;
pub use kept::KeptError;
pub use key::{KeyKind, KeyKindError};
pub use status::CaStatus;

/// How long a certificate is asked for unless told otherwise (Istio: `SECRET_TTL`, 24 h).
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// The part of a certificate's life that is left when it is renewed, unless told otherwise (Istio:
/// `SECRET_GRACE_PERIOD_RATIO`).
pub const DEFAULT_GRACE_RATIO: f64 = 0.5;

/// Whom to ask for a certificate, and for whom.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// The authority. Its `identity`, when set, may authenticate the first call; later calls show the certificate that
    /// was issued.
    pub istiod: Istiod,
    /// Who we are. istiod goes by the token, so another identity in its answer means that this one is wrong.
    pub id: SpiffeId,
    /// How long the certificate should be valid; sent in whole seconds. istiod refuses more than 90 days by default.
    pub ttl: Duration,
    /// The kind of key that is made for each certificate.
    pub key: KeyKind,
    /// The part of the certificate's life that is left when it is renewed, from 0 to 1; what is outside counts as the
    /// nearer end.
    pub grace_ratio: f64,
    /// The Kubernetes signer that istiod should use (`ISTIO_META_CERT_SIGNER`); sent as `CertSigner`.
    pub cert_signer: Option<String>,
    /// Trust domains whose clients are accepted; `None`: that of `id`.
    pub trust_domains: Option<TrustDomains>,
    /// A directory on a file system in memory where key, chain and roots are kept, readable for this user only, so that a
    /// restart needs no authority. `None`: they are kept nowhere.
    pub keep_in: Option<PathBuf>,
}

impl CaConfig {
    /// What Istio's agent asks for: 24 hours, renewed at half of it. The key is ECDSA P-256, nothing is kept.
    pub fn new(istiod: Istiod, id: SpiffeId) -> Self {
        Self {
            istiod,
            id,
            ttl: DEFAULT_TTL,
            key: KeyKind::default(),
            grace_ratio: DEFAULT_GRACE_RATIO,
            cert_signer: None,
            trust_domains: None,
            keep_in: None,
        }
    }

    pub(crate) fn accepted(&self) -> TrustDomains {
        self.trust_domains.clone().unwrap_or_else(|| TrustDomains::of(&self.id))
    }
}
