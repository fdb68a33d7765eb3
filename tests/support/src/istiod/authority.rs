//! The certificate authority of the mesh.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_proto::ca::istio_certificate_service_server::IstioCertificateService;
use cairn_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use cairn_proto::tonic::{Request, Response, Status, async_trait};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::NAME;
use super::record::Signed;
use super::world::{Caller, Shared};
use crate::pki;

/// istiod dates certificates back by so much.
const BACKDATED: Duration = Duration::from_secs(120);
/// istiod's own default.
const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// What goes wrong when a certificate is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CaFault {
    /// Nothing.
    #[default]
    None,
    /// The certificate is for somebody else.
    WrongIdentity(String),
    /// The certificate is for another key.
    WrongKey,
    /// The certificate leads to a root that is not handed out.
    WrongRoot,
    /// The certificate has ended already.
    Expired,
    /// Only the leaf is answered.
    NoRoot,
    /// The answer is no PEM.
    Garbage,
    /// `PermissionDenied`.
    Refused,
    /// `Unavailable`.
    Unavailable,
    /// No answer comes.
    Silent,
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Roots, the newest last, and what is below the newest.
pub(super) struct Authority {
    roots: Vec<Issuer>,
    below: Vec<Issuer>,
    /// Of the server itself, PKCS#8.
    own: (Vec<CertificateDer<'static>>, Vec<u8>),
    pub validity: Option<Duration>,
    pub fault: CaFault,
}

impl Authority {
    pub(super) fn new() -> Self {
        let roots = vec![root("root-0")];
        let own = own_certificate(&roots[0]);
        Authority { roots, below: Vec::new(), own, validity: None, fault: CaFault::None }
    }

    pub(super) fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| root.pem()).collect()
    }

    /// The server keeps its certificate, so that clients who know only the old root still come in.
    pub(super) fn rotate(&mut self) {
        self.roots.push(root(&format!("root-{}", self.roots.len())));
        self.set_intermediates(self.below.len());
    }

    pub(super) fn drop_old_roots(&mut self) {
        self.roots.drain(..self.roots.len() - 1);
        self.own = own_certificate(&self.roots[0]);
    }

    pub(super) fn set_intermediates(&mut self, count: usize) {
        self.below.clear();
        for n in 0..count {
            let next = {
                let above = self.issuer();
                let key = KeyPair::generate().unwrap();
                CertifiedIssuer::signed_by(ca_params(&format!("intermediate-{n}")), key, above)
                    .unwrap()
            };
            self.below.push(next);
        }
    }

    fn issuer(&self) -> &Issuer {
        self.below.last().unwrap_or_else(|| self.roots.last().unwrap())
    }

    /// What leads from a leaf to its root, nearest first.
    fn intermediates(&self) -> impl Iterator<Item = String> {
        self.below.iter().rev().map(|issuer| issuer.pem())
    }

    pub(super) fn issue(&self, identity: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        self.fill(&mut params, identity, DEFAULT_VALIDITY);
        let leaf = params.signed_by(&key, self.issuer()).unwrap();
        let chain = leaf.pem() + &self.intermediates().collect::<String>();
        (chain, key.serialize_pem())
    }

    pub(super) fn tls(&self, ask_for_certificate: bool) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(pki::provider())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .unwrap();
        let verifier = if ask_for_certificate {
            let mut roots = RootCertStore::empty();
            for root in &self.roots {
                roots.add(root.der().clone()).unwrap();
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), pki::provider())
        } else {
            let mut roots = RootCertStore::empty();
            roots.add(root("another mesh").der().clone()).unwrap();
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), pki::provider())
        };
        let (chain, key) = &self.own;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
        let mut config = builder
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain.clone(), key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    fn fill(&self, params: &mut CertificateParams, identity: &str, validity: Duration) {
        let now = SystemTime::now();
        // A short life is a test of renewal: it begins now, or it would be over half at once.
        let from = if self.validity.is_some() { now } else { now - BACKDATED };
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.is_ca = IsCa::NoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + from.duration_since(UNIX_EPOCH).unwrap();
        params.not_after = epoch + (now + validity).duration_since(UNIX_EPOCH).unwrap();
    }

    /// Leaf, intermediates and, last, all roots.
    fn sign(
        &self,
        request: &IstioCertificateRequest,
        identity: &str,
    ) -> Result<(Vec<String>, Certificate), Status> {
        let refused = |error| Status::invalid_argument(format!("CSR signing error ({error})"));
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).map_err(refused)?;
        let asked = u64::try_from(request.validity_duration).unwrap_or(0);
        let asked = Duration::from_secs(asked);
        let asked = if asked.is_zero() { DEFAULT_VALIDITY } else { asked };
        let identity = match &self.fault {
            CaFault::WrongIdentity(other) => other,
            _ => identity,
        };
        self.fill(&mut csr.params, identity, self.validity.unwrap_or(asked));
        if self.fault == CaFault::Expired {
            csr.params.not_before -= DEFAULT_VALIDITY;
            csr.params.not_after = csr.params.not_before + Duration::from_secs(3600);
        }
        let leaf = match &self.fault {
            CaFault::WrongKey => {
                csr.params.signed_by(&KeyPair::generate().unwrap(), self.issuer()).unwrap()
            }
            CaFault::WrongRoot => csr.signed_by(&root("unknown")).unwrap(),
            _ => csr.signed_by(self.issuer()).unwrap(),
        };
        let mut chain = vec![leaf.pem()];
        match &self.fault {
            CaFault::NoRoot => {}
            CaFault::Garbage => chain = vec!["no".to_owned(), "PEM".to_owned()],
            _ => {
                chain.extend(self.intermediates());
                chain.push(self.roots_pem());
            }
        }
        Ok((chain, leaf))
    }
}

fn root(name: &str) -> Issuer {
    CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "cluster.local");
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn own_certificate(issuer: &Issuer) -> (Vec<CertificateDer<'static>>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, issuer).unwrap();
    (vec![leaf.der().clone()], key.serialize_der())
}

/// The service.
pub(super) struct Certificates {
    pub shared: Arc<Shared>,
}

#[async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let fault = self.shared.authority.lock().unwrap().fault.clone();
        let answer = match fault {
            CaFault::Refused => Err(Status::permission_denied("caller is not authorized")),
            CaFault::Unavailable => Err(Status::unavailable("the CA is away")),
            CaFault::Silent => std::future::pending().await,
            _ => self.signed(&caller, &request),
        };
        if fault != CaFault::None || answer.is_err() {
            self.shared.record.lock().unwrap().unsigned += 1;
        }
        answer.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Certificates {
    fn signed(
        &self,
        caller: &Caller,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<Vec<String>, Status> {
        let failure = "request authenticate failure";
        let identity = self.shared.authenticate(caller, request.metadata(), failure)?;
        let authority = self.shared.authority.lock().unwrap();
        let (chain, leaf) = authority.sign(request.get_ref(), &identity)?;
        if authority.fault == CaFault::None {
            self.shared.record.lock().unwrap().signed.push(Signed {
                identity,
                serial: pki::serial(leaf.der()),
                asked_seconds: request.get_ref().validity_duration,
                by_certificate: caller.certificate.is_some(),
            });
        }
        Ok(chain)
    }
}
