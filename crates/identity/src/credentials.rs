//! One issue of our certificate: chain, key and roots, read together and checked against each other.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificate::{Leaf, SanError};
use crate::refusal::PeerRefusal;
use crate::spiffe::SpiffeId;
use crate::tls;

/// Most certificates in our own chain, the leaf included.
pub(crate) const MAX_CHAIN: usize = 16;
/// Most roots.
pub(crate) const MAX_ROOTS: usize = 512;

/// One issue of our identity. Immutable; an [`crate::Identity`] swaps one for the next.
#[derive(Clone)]
pub struct Credentials {
    /// Who we are.
    pub id: SpiffeId,
    /// End of the leaf certificate's validity.
    pub not_after: SystemTime,
    /// Begin of the leaf certificate's validity.
    pub not_before: SystemTime,
    /// Serial number of the leaf certificate in lower-case hexadecimal.
    pub serial: String,
    /// Counts the issues that an [`crate::Identity`] has had, from 1; 0 before it has one.
    pub generation: u64,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) root_certificates: Arc<[CertificateDer<'static>]>,
    pub(crate) client_verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) provider: Arc<CryptoProvider>,
}

/// Which of the three inputs an [`IdentityError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaterialPart {
    /// The certificate chain.
    Chain,
    /// The private key.
    Key,
    /// The roots.
    Roots,
}

/// Why a set of certificate, key and roots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The PEM text is damaged or cut off.
    #[error("the {part} is damaged PEM: {reason}")]
    Pem {
        /// Which input.
        part: MaterialPart,
        /// What the PEM reader found.
        reason: String,
    },
    /// There is nothing of the wanted kind in the input.
    #[error("there is no {} in it", .0.wanted())]
    Empty(MaterialPart),
    /// There are more certificates than we take.
    #[error("there are more than {limit} certificates in it")]
    TooMany {
        /// Which input.
        part: MaterialPart,
        /// How many are allowed.
        limit: usize,
    },
    /// The key is of a kind that TLS 1.3 or our cryptography does not know, or damaged.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key is another one than the certificate's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The first certificate does not name exactly one workload.
    #[error("{0}")]
    SpiffeId(SanError),
    /// A root cannot be read.
    #[error("root {number} cannot be read: {reason}")]
    Root {
        /// Its place in the input, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// The certificate has ended.
    #[error("the certificate ended at {}", rfc3339(.0))]
    Expired(SystemTime),
    /// The certificate has not begun.
    #[error("the certificate begins only at {}", rfc3339(.0))]
    NotYetValid(SystemTime),
    /// A peer that trusts the same roots would refuse the chain.
    #[error("a peer with the same roots would refuse the certificate: {}", untrusted(.0))]
    Untrusted(PeerRefusal),
}

impl MaterialPart {
    fn wanted(self) -> &'static str {
        match self {
            Self::Chain => "certificate",
            Self::Key => "private key",
            Self::Roots => "root certificate",
        }
    }
}

impl fmt::Display for MaterialPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "certificate chain",
            Self::Key => "private key",
            Self::Roots => "root bundle",
        })
    }
}

impl IdentityError {
    /// The input to look at first.
    pub fn part(&self) -> MaterialPart {
        match self {
            Self::Pem { part, .. } | Self::Empty(part) | Self::TooMany { part, .. } => *part,
            Self::Key(_) | Self::KeyMismatch => MaterialPart::Key,
            Self::Root { .. } => MaterialPart::Roots,
            Self::SpiffeId(_) | Self::Expired(_) | Self::NotYetValid(_) | Self::Untrusted(_) => {
                MaterialPart::Chain
            }
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Pem { .. } => {
                "write the file anew and complete, best by renaming a finished file into place"
            }
            Self::Empty(MaterialPart::Chain) => {
                "it needs PEM blocks BEGIN CERTIFICATE, the workload's certificate first, then its intermediates"
            }
            Self::Empty(MaterialPart::Key) => {
                "it needs a PEM block BEGIN PRIVATE KEY, BEGIN EC PRIVATE KEY or BEGIN RSA PRIVATE KEY"
            }
            Self::Empty(MaterialPart::Roots) => {
                "it needs a PEM block BEGIN CERTIFICATE for each root; without a root nobody could be trusted"
            }
            Self::TooMany { .. } => "drop the certificates that are not needed",
            Self::Key(_) => {
                "use an unencrypted ECDSA P-256, P-384, Ed25519 or RSA key of at least 2048 bits"
            }
            Self::KeyMismatch => "replace certificate and key together, of the same issue",
            Self::SpiffeId(_) => {
                "the first certificate must be the workload's, with exactly one URI SAN \
                 spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
            }
            Self::Root { .. } => "replace or drop that certificate",
            Self::Expired(_) => "issue a new certificate",
            Self::NotYetValid(_) => "check the clocks of this machine and of the issuer, or wait",
            Self::Untrusted(PeerRefusal::WrongPurpose) => {
                "issue a certificate with both clientAuth and serverAuth: a waypoint is server and client"
            }
            Self::Untrusted(_) => {
                "put the issuer's root into the roots, and the intermediates behind the certificate in its file"
            }
        }
    }

    /// Whether the same set may become good by waiting.
    pub(crate) fn passes_with_time(&self) -> bool {
        matches!(self, Self::NotYetValid(_) | Self::Untrusted(PeerRefusal::NotYetValid))
    }
}

impl Credentials {
    /// Reads PEM: the chain with the leaf first, one private key (PKCS#8, SEC1 or PKCS#1), one or more roots.
    ///
    /// Text and blocks of other kinds between the wanted ones are skipped. The validity is not looked at: see
    /// [`Credentials::check`].
    ///
    /// # Errors
    /// [`IdentityError`] when an input is damaged or empty, the key is not the certificate's, or the leaf does not name
    /// exactly one workload.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, IdentityError> {
        let chain = certificates(chain, MaterialPart::Chain, MAX_CHAIN)?;
        let roots = certificates(roots, MaterialPart::Roots, MAX_ROOTS)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| pem_error(MaterialPart::Key, &error))?;
        Self::from_der(chain, key, roots)
    }

    /// Takes what a certificate authority answered: the chain with the leaf first, the key, the roots.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`].
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::Empty(MaterialPart::Chain))?;
        bounded(&chain, MaterialPart::Chain, MAX_CHAIN)?;
        bounded(&roots, MaterialPart::Roots, MAX_ROOTS)?;
        let Leaf { id, not_before, not_after, serial } =
            Leaf::read(leaf).map_err(IdentityError::SpiffeId)?;
        let id = id.map_err(IdentityError::SpiffeId)?;

        let provider = tls::provider();
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| IdentityError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| IdentityError::KeyMismatch)?;

        let store = Arc::new(root_store(&roots)?);
        let client_verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(&provider))
                .build()
                .map_err(|_| IdentityError::Empty(MaterialPart::Roots))?;
        Ok(Self {
            id,
            not_after,
            not_before,
            serial,
            generation: 0,
            certified: Arc::new(certified),
            roots: store,
            root_certificates: roots.into(),
            client_verifier,
            provider,
        })
    }

    /// Whether peers would accept the certificate at the time `now`: it is valid, leads to one of the roots, and allows
    /// both clientAuth and serverAuth.
    ///
    /// # Errors
    /// [`IdentityError::Expired`], [`IdentityError::NotYetValid`] or [`IdentityError::Untrusted`].
    pub fn check(&self, now: SystemTime) -> Result<(), IdentityError> {
        self.check_validity(now)?;
        self.check_chain(now)
    }

    /// The certificate chain as it is sent, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The roots that peers must lead to.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.root_certificates
    }

    pub(crate) fn check_validity(&self, now: SystemTime) -> Result<(), IdentityError> {
        if now > self.not_after {
            return Err(IdentityError::Expired(self.not_after));
        }
        if now < self.not_before {
            return Err(IdentityError::NotYetValid(self.not_before));
        }
        Ok(())
    }

    /// Runs the verification of both directions on our own chain.
    pub(crate) fn check_chain(&self, now: SystemTime) -> Result<(), IdentityError> {
        let now = UnixTime::since_unix_epoch(
            now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        );
        let (leaf, intermediates) =
            self.chain().split_first().ok_or(IdentityError::Empty(MaterialPart::Chain))?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        ParsedCertificate::try_from(leaf)
            .and_then(|leaf| {
                verify_server_cert_signed_by_trust_anchor(
                    &leaf,
                    &self.roots,
                    intermediates,
                    now,
                    algorithms,
                )
            })
            .and_then(|()| self.client_verifier.verify_client_cert(leaf, intermediates, now))
            .map(drop)
            .map_err(tls::chain_error)
            .map_err(|error| IdentityError::Untrusted(PeerRefusal::from_rustls(&error)))
    }

    /// Whether `other` presents the same certificates, and so, both having passed the check of the key, the same key.
    pub(crate) fn same_chain(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }

    pub(crate) fn same_roots(&self, other: &Self) -> bool {
        self.root_certificates == other.root_certificates
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.id)
            .field("not_before", &rfc3339(&self.not_before))
            .field("not_after", &rfc3339(&self.not_after))
            .field("serial", &self.serial)
            .field("generation", &self.generation)
            .field("chain", &self.chain().len())
            .field("roots", &self.root_certificates.len())
            .finish_non_exhaustive()
    }
}

/// The certificates of a PEM text: at least one, at most `limit`.
pub(crate) fn certificates(
    pem: &[u8],
    part: MaterialPart,
    limit: usize,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    check_marker_lines(pem, part)?;
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(limit + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| pem_error(part, &error))?;
    bounded(&list, part, limit)?;
    if list.is_empty() {
        return Err(IdentityError::Empty(part));
    }
    Ok(list)
}

/// A file that ends within a BEGIN line would otherwise pass for one with a certificate less.
fn check_marker_lines(pem: &[u8], part: MaterialPart) -> Result<(), IdentityError> {
    const DASHES: &[u8] = b"-----";
    let damaged = pem
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
        .any(|line| line.strip_prefix(DASHES).is_some_and(|rest| !rest.ends_with(DASHES)));
    if damaged {
        let reason = "a BEGIN or END line is cut off".to_owned();
        return Err(IdentityError::Pem { part, reason });
    }
    Ok(())
}

fn bounded(
    list: &[CertificateDer<'static>],
    part: MaterialPart,
    limit: usize,
) -> Result<(), IdentityError> {
    if list.len() > limit {
        return Err(IdentityError::TooMany { part, limit });
    }
    Ok(())
}

pub(crate) fn root_store(
    roots: &[CertificateDer<'static>],
) -> Result<RootCertStore, IdentityError> {
    let mut store = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        store.add(root.clone()).map_err(|error| IdentityError::Root {
            number: index + 1,
            reason: error.to_string(),
        })?;
    }
    Ok(store)
}

fn pem_error(part: MaterialPart, error: &PemError) -> IdentityError {
    let reason = match error {
        PemError::NoItemsFound => return IdentityError::Empty(part),
        PemError::MissingSectionEnd { end_marker } => {
            format!("the line {} is missing", String::from_utf8_lossy(end_marker).trim_end())
        }
        PemError::IllegalSectionStart { .. } => "a BEGIN line is not complete".to_owned(),
        error => error.to_string(),
    };
    IdentityError::Pem { part, reason }
}

fn untrusted(refusal: &PeerRefusal) -> String {
    match refusal {
        PeerRefusal::UnknownIssuer => "no chain leads to a root".to_owned(),
        PeerRefusal::WrongPurpose => {
            "it must allow clientAuth and serverAuth (extended key usage)".to_owned()
        }
        PeerRefusal::Expired => "a certificate of the chain has expired".to_owned(),
        PeerRefusal::NotYetValid => "a certificate of the chain is not valid yet".to_owned(),
        refusal => refusal.to_string(),
    }
}

fn rfc3339(time: &SystemTime) -> String {
    OffsetDateTime::from(*time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "a time out of range".to_owned())
}
