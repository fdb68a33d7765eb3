//! Who is at the other end of a connection, read once after the handshake.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::certificate::{Leaf, SanError};
use crate::refusal::PeerRefusal;
use crate::spiffe::SpiffeId;

/// The facts of a peer's certificate. It tells who the peer is only when the handshake verified the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The one URI SAN.
    pub id: SpiffeId,
    /// When the certificate ends. A connection may outlive it, as in ztunnel and Envoy.
    pub not_after: SystemTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
}

impl PeerIdentity {
    /// Reads the first certificate, as `rustls::CommonState::peer_certificates` has them.
    ///
    /// # Errors
    /// [`PeerRefusal::NoCertificate`] when there is none, [`PeerRefusal::NoSpiffeId`] when it does not name exactly one
    /// workload.
    pub fn from_certificates(certificates: &[CertificateDer<'_>]) -> Result<Self, PeerRefusal> {
        let leaf = certificates.first().ok_or(PeerRefusal::NoCertificate)?;
        let Leaf { id, not_before: _, not_after, serial } =
            Leaf::read(leaf).map_err(PeerRefusal::NoSpiffeId)?;
        Ok(Self { id: id.map_err(PeerRefusal::NoSpiffeId)?, not_after, serial })
    }
}

/// The identity in the certificates that the peer of a finished handshake sent.
///
/// # Errors
/// As [`PeerIdentity::from_certificates`].
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerRefusal> {
    let leaf = certificates.first().ok_or(PeerRefusal::NoCertificate)?;
    leaf_identity(leaf).map_err(PeerRefusal::NoSpiffeId)
}

pub(crate) fn leaf_identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, SanError> {
    Leaf::read(leaf)?.id
}
