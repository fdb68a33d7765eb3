//! Why a handshake failed.

use std::io;
use std::sync::Arc;

use rustls::{CertificateError, OtherError};

use crate::certificate::SanError;
use crate::spiffe::SpiffeId;

/// Why the peer of a handshake is not accepted. `Display` is for people, [`PeerRefusal::label`] for counters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// It sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// Its certificate, or one of the chain, has ended.
    #[error("the peer's certificate has expired")]
    Expired,
    /// Its certificate, or one of the chain, has not begun. Check the clocks.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// No chain leads from its certificate to one of our roots.
    #[error("the peer's certificate is not issued by one of our roots")]
    UnknownIssuer,
    /// Its certificate is for another purpose: a client's must allow clientAuth, a server's serverAuth. A certificate
    /// without an extended key usage allows everything (RFC 5280, section 4.2.1.12; ztunnel and Envoy do the same).
    #[error("the peer's certificate is not for this purpose (extended key usage)")]
    WrongPurpose,
    /// Its identity is of a trust domain that we do not accept.
    #[error("the trust domain of {0} is not accepted")]
    TrustDomain(SpiffeId),
    /// Its certificate does not name exactly one workload.
    #[error("{0}")]
    NoSpiffeId(SanError),
    /// It is a workload of the mesh, but not one that we expected at this address.
    #[error("{0} is not the expected peer")]
    UnexpectedIdentity(SpiffeId),
    /// Anything else: no common version or cipher suite, a TLS alert of the peer, a connection that ended.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
}

impl PeerRefusal {
    /// All labels, in the order of [`PeerRefusal::index`].
    pub const LABELS: [&'static str; 9] = [
        "no_certificate",
        "expired",
        "not_yet_valid",
        "unknown_issuer",
        "wrong_purpose",
        "trust_domain",
        "no_spiffe_id",
        "unexpected_identity",
        "handshake",
    ];

    /// The reason as a value for a metric's label.
    pub fn label(&self) -> &'static str {
        Self::LABELS.get(self.index()).copied().unwrap_or("handshake")
    }

    /// Where the label stands in [`PeerRefusal::LABELS`], for an array of counters.
    pub fn index(&self) -> usize {
        match self {
            Self::NoCertificate => 0,
            Self::Expired => 1,
            Self::NotYetValid => 2,
            Self::UnknownIssuer => 3,
            Self::WrongPurpose => 4,
            Self::TrustDomain(_) => 5,
            Self::NoSpiffeId(_) => 6,
            Self::UnexpectedIdentity(_) => 7,
            Self::Handshake(_) => 8,
        }
    }

    /// The reason within a rustls error, our own verifiers' included.
    ///
    /// A TLS alert of the peer is its refusal of us, so `certificate_expired` from there is [`PeerRefusal::Handshake`].
    pub fn from_rustls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(error) => Self::from_certificate_error(error),
            rustls::Error::Other(other) => Self::from_other(other),
            rustls::Error::AlertReceived(alert) => {
                Self::Handshake(format!("the peer refused us with the TLS alert {alert:?}"))
            }
            error => Self::Handshake(error.to_string()),
        }
    }

    /// The reason within the error of a TLS stream over async I/O, which wraps the rustls error.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::from_rustls(inner),
            None => Self::Handshake(error.to_string()),
        }
    }

    fn from_certificate_error(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            CertificateError::Other(other) => Self::from_other(other),
            error => Self::Handshake(error.to_string()),
        }
    }

    fn from_other(error: &OtherError) -> Self {
        match error.0.downcast_ref::<Self>() {
            Some(refusal) => refusal.clone(),
            None => Self::Handshake(error.to_string()),
        }
    }
}

/// How a verifier hands a refusal to rustls: the peer sees the alert `certificate_unknown`, and
/// [`PeerRefusal::from_rustls`] finds the refusal again.
impl From<PeerRefusal> for rustls::Error {
    fn from(refusal: PeerRefusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn labels_are_distinct() {
        let mut labels = PeerRefusal::LABELS.to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), PeerRefusal::LABELS.len());
        assert_eq!(PeerRefusal::Handshake(String::new()).label(), "handshake");
        assert_eq!(PeerRefusal::NoCertificate.label(), "no_certificate");
    }

    #[test]
    fn survives_rustls_and_io() {
        let refusal = PeerRefusal::NoSpiffeId(SanError::Several(2));
        let error = rustls::Error::from(refusal.clone());
        assert_eq!(PeerRefusal::from_rustls(&error), refusal);
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        assert_eq!(PeerRefusal::from_io(&error), refusal);
        let direct = rustls::Error::Other(OtherError(Arc::new(refusal.clone())));
        assert_eq!(PeerRefusal::from_rustls(&direct), refusal);
    }

    #[test]
    fn foreign_errors_are_handshake_failures() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        assert_eq!(PeerRefusal::from_rustls(&alert).label(), "handshake");
        let other = rustls::Error::Other(OtherError(Arc::new(io::Error::other("x"))));
        assert_eq!(PeerRefusal::from_rustls(&other).label(), "handshake");
        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(PeerRefusal::from_io(&end).label(), "handshake");
    }
}
