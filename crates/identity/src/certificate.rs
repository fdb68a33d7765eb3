//! What we read from an X.509 certificate: serial, validity, and the one URI SAN that names the workload.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::spiffe::{SpiffeError, SpiffeId};

/// Tag of a URI among the general names (RFC 5280, section 4.2.1.6).
const URI_TAG: u32 = 6;

/// Why a certificate names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SanError {
    /// The certificate, or its subject alternative name, cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// There is no URI among the subject alternative names.
    #[error("the certificate has no URI SAN")]
    Missing,
    /// There is more than one URI, so it is not clear who this is (X.509-SVID, section 2).
    #[error("the certificate has {0} URI SANs where exactly one is allowed")]
    Several(usize),
    /// The URI is not the id of a workload.
    #[error("the URI SAN {text:?} is not the id of a workload: {error}")]
    Malformed {
        /// The URI, cut to 256 characters.
        text: String,
        /// What is wrong with it.
        error: SpiffeError,
    },
}

/// The facts of one leaf certificate.
pub(crate) struct Leaf {
    pub(crate) id: Result<SpiffeId, SanError>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub(crate) serial: String,
}

impl Leaf {
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, SanError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| SanError::Unreadable)?;
        if !rest.is_empty() {
            return Err(SanError::Unreadable);
        }
        let validity = certificate.validity();
        Ok(Self {
            id: spiffe_id(&certificate),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SanError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| SanError::Unreadable)?
        .ok_or(SanError::Missing)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(text) => uris.push(*text),
            GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => return Err(SanError::Unreadable),
            _ => {}
        }
    }
    match uris.as_slice() {
        [] => Err(SanError::Missing),
        [text] => SpiffeId::parse(text)
            .map_err(|error| SanError::Malformed { text: text.chars().take(256).collect(), error }),
        several => Err(SanError::Several(several.len())),
    }
}

/// A time before 1970 counts as 1970: it is as expired as it can be.
fn system_time(seconds: i64) -> SystemTime {
    let since_epoch = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since_epoch).unwrap_or(SystemTime::UNIX_EPOCH)
}
