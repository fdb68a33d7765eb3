//! A throw-away certificate authority in memory, for the demo and for tests. Nothing of it is written anywhere.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;

use crate::credentials::{Credentials, IdentityError};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomains};

/// How long the authority's own certificate is valid.
const CA_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far certificates are dated back, for clocks that differ (Istio's authority does the same).
const BACKDATE: Duration = Duration::from_secs(120);

/// A certificate authority with an ECDSA P-256 key that lives and dies with this value. Clones are the same authority.
#[derive(Clone)]
pub struct DevCa {
    trust_domain: String,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    /// PEM of the intermediates from this authority up to, without, the root.
    intermediates: String,
    root: String,
}

/// What to put into a certificate. The default is a good one: a day, server and client, the id as the only SAN.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// From `not_before`, or where that is `None` from the time of issue, to the end of the validity.
    pub ttl: Duration,
    /// Begin of the validity; `None`: two minutes ago.
    pub not_before: Option<SystemTime>,
    /// Extended key usage serverAuth. With both off the certificate has no extended key usage, which allows everything.
    pub server_auth: bool,
    /// Extended key usage clientAuth.
    pub client_auth: bool,
    /// The URI SANs; `None`: the id alone. They are not checked.
    pub uri_sans: Option<Vec<String>>,
    /// DNS SANs beside it.
    pub dns_sans: Vec<String>,
}

/// A certificate as files have it. The key is PKCS#8.
#[derive(Clone)]
pub struct PemBundle {
    /// The leaf, then the intermediates.
    pub cert_chain: String,
    /// The private key.
    pub key: String,
    /// The root.
    pub roots: String,
}

/// Why the throw-away authority did not issue.
#[derive(Debug, thiserror::Error)]
pub enum DevCaError {
    /// The trust domain cannot stand in an id.
    #[error("the trust domain cannot be used: {0}")]
    TrustDomain(#[from] SpiffeError),
    /// The options cannot stand in a certificate.
    #[error("the certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate made cannot be our own.
    #[error("the certificate cannot be used: {0}")]
    Identity(#[from] IdentityError),
}

impl Default for IssueOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 3600),
            not_before: None,
            server_auth: true,
            client_auth: true,
            uri_sans: None,
            dns_sans: Vec::new(),
        }
    }
}

impl DevCa {
    /// Makes an authority with a key of its own; two of the same trust domain do not trust each other.
    ///
    /// # Errors
    /// [`DevCaError`] when the trust domain cannot stand in an id, or the key cannot be made.
    pub fn new(trust_domain: &str) -> Result<Self, DevCaError> {
        TrustDomains::new([trust_domain])?;
        let issuer = CertifiedIssuer::self_signed(ca_params("root", trust_domain), key_pair()?)?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            root: issuer.pem(),
            issuer: Arc::new(issuer),
            intermediates: String::new(),
        })
    }

    /// An authority below this one, with the same root. Its certificates carry the way up in their chain.
    ///
    /// # Errors
    /// [`DevCaError`] when the key cannot be made.
    pub fn intermediate(&self) -> Result<Self, DevCaError> {
        let params = ca_params("intermediate", &self.trust_domain);
        let issuer = CertifiedIssuer::signed_by(params, key_pair()?, &self.issuer)?;
        Ok(Self {
            trust_domain: self.trust_domain.clone(),
            root: self.root.clone(),
            intermediates: issuer.pem() + &self.intermediates,
            issuer: Arc::new(issuer),
        })
    }

    /// The trust domain it was made for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// An id in the authority's trust domain.
    ///
    /// # Errors
    /// [`SpiffeError`] when a part cannot stand in an id.
    pub fn id(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(&self.trust_domain, namespace, service_account)
    }

    /// The root certificate as PEM.
    pub fn root_pem(&self) -> &str {
        &self.root
    }

    /// Issues credentials for `id`, of whatever trust domain, valid for `ttl` from the time of the call.
    ///
    /// # Errors
    /// [`DevCaError`] when the key cannot be made or `ttl` does not fit into a certificate.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Credentials, DevCaError> {
        let options = IssueOptions { ttl, ..IssueOptions::default() };
        Ok(self.issue_pem(id, options)?.credentials()?)
    }

    /// Issues a certificate as PEM, also one that nobody should accept.
    ///
    /// # Errors
    /// [`DevCaError`] when a SAN is not ASCII, or the validity does not fit into a certificate.
    pub fn issue_pem(&self, id: &SpiffeId, options: IssueOptions) -> Result<PemBundle, DevCaError> {
        let key = key_pair()?;
        let leaf = options.params(id)?.signed_by(&key, &self.issuer)?;
        Ok(PemBundle {
            cert_chain: leaf.pem() + &self.intermediates,
            key: key.serialize_pem(),
            roots: self.root.clone(),
        })
    }

    /// Issues a certificate for the key of a PEM certificate signing request, as istiod does: whatever else the request
    /// asks for is not looked at. Returns one PEM per certificate, the leaf first, then the intermediates; the root is
    /// not among them.
    ///
    /// # Errors
    /// [`DevCaError`] when the request cannot be read or is not signed by its key, and as [`DevCa::issue_pem`].
    pub fn sign(
        &self,
        request: &str,
        id: &SpiffeId,
        options: IssueOptions,
    ) -> Result<Vec<String>, DevCaError> {
        const END: &str = "-----END CERTIFICATE-----\n";
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let leaf = options.params(id)?.signed_by(&request.public_key, &self.issuer)?;
        let mut chain = vec![leaf.pem()];
        chain.extend(self.intermediates.split_inclusive(END).map(str::to_owned));
        Ok(chain)
    }
}

impl IssueOptions {
    fn params(self, id: &SpiffeId) -> Result<CertificateParams, rcgen::Error> {
        let Self { ttl, not_before, server_auth, client_auth, uri_sans, dns_sans } = self;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = date(not_before.or_else(|| now.checked_sub(BACKDATE)))?;
        params.not_after = date(not_before.unwrap_or(now).checked_add(ttl))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if server_auth {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if client_auth {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        }
        for uri in uri_sans.unwrap_or_else(|| vec![id.to_string()]) {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
        }
        for name in dns_sans {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name)?));
        }
        Ok(params)
    }
}

impl fmt::Debug for DevCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevCa").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl PemBundle {
    /// Reads the bundle back.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`].
    pub fn credentials(&self) -> Result<Credentials, IdentityError> {
        Credentials::from_pem(
            self.cert_chain.as_bytes(),
            self.key.as_bytes(),
            self.roots.as_bytes(),
        )
    }
}

impl fmt::Debug for PemBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemBundle")
            .field("cert_chain", &self.cert_chain)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

fn key_pair() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn ca_params(kind: &str, trust_domain: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, format!("Cairn throw-away {kind}"));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_TTL;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn date(time: Option<SystemTime>) -> Result<OffsetDateTime, rcgen::Error> {
    // 9999-12-31, the last day that X.509 can say (RFC 5280, section 4.1.2.5).
    const LAST: u64 = 253_402_214_400;
    time.filter(|time| {
        time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.as_secs() < LAST)
    })
    .map(OffsetDateTime::from)
    .ok_or(rcgen::Error::Time)
}
