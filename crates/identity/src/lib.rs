//! Who we are and whom we trust.
//!
//! The model:
//!
//! * A [`SpiffeId`] names one workload identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//! * [`Credentials`] are one issue of our certificate: chain, key and the roots that we trust, read together, immutable.
//! * An [`Identity`] is the live source of credentials. Every connection takes its TLS configuration from it at dial or
//!   accept time, so a rotation is a swap of one pointer: open connections stay, the next ones use the next issue.
//!   Issues come from istiod ([`ca`]), from files ([`files`]) or from a throw-away authority ([`dev`]).
//! * An [`istiod::Istiod`] is the way to istiod, for certificates and for configuration alike.
//! * A [`PeerRefusal`] says why a handshake failed, in words for a person and as a label for a counter.
//!
//! Invariants, kept by every configuration for connections of the mesh that leaves this crate:
//!
//! * TLS 1.3 only, ALPN `h2`, both sides present a certificate, no session is ever resumed.
//! * The peer is known by exactly one URI SAN; DNS names, IP SANs and the SNI mean nothing.
//! * As server the peer's trust domain must be accepted, as client its identity must be one of those expected. Both are
//!   decided within the handshake, so a refused peer never reaches HTTP/2.
//! * A bad certificate never replaces a good one.
#![forbid(unsafe_code)]

pub mod ca;
mod certificate;
mod credentials;
pub mod dev;
pub mod files;
mod identity;
pub mod istiod;
mod peer;
mod refusal;
mod spiffe;
mod tls;
mod verified;

pub use certificate::SanError;
pub use credentials::{Credentials, IdentityError, MaterialPart};
pub use identity::Identity;
pub use peer::{PeerIdentity, peer_identity};
pub use refusal::PeerRefusal;
pub use spiffe::{ExpectedPeers, SpiffeError, SpiffeId, TrustDomains};
