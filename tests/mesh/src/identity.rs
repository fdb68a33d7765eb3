//! Identities of pods, signed by istiod as ztunnel has them signed: one per service account.

use crate::grpc::{Caller, certificates, roots};
use cairn_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use cairn_test_support::pki::{provider, uris};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;

const SIGN: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A certificate of the mesh with its key.
#[derive(Clone)]
pub struct PodIdentity {
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    pub id: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    roots: Arc<RootCertStore>,
}

/// The SPIFFE id of a service account in the usual trust domain.
pub fn spiffe(namespace: &str, account: &str) -> String {
    spiffe_in("cluster.local", namespace, account)
}

/// The SPIFFE id of a service account.
pub fn spiffe_in(trust_domain: &str, namespace: &str, account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
}

impl PodIdentity {
    /// Asks istiod for a certificate of the account whose token `caller` has.
    ///
    /// # Errors
    /// istiod's answer.
    pub async fn issue(caller: &Caller, namespace: &str, account: &str) -> Result<Self, String> {
        let id = spiffe_in(&caller.trust_domain, namespace, account);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = IstioCertificateRequest { csr, validity_duration: 24 * 3600, metadata: None };
        let answer: IstioCertificateResponse = caller.unary(SIGN, &request).await?;
        let mut chain: Vec<_> =
            answer.cert_chain.iter().flat_map(|pem| certificates(pem)).collect();
        chain.pop(); // the root
        let leaf = chain.first().ok_or("istiod's answer has no certificate")?;
        match uris(leaf) {
            names if names == [id.as_str()] => {}
            names => return Err(format!("asked for {id}, istiod signed for {names:?}")),
        }
        Ok(PodIdentity { id, chain, key: key.serialize_der(), roots: roots(&caller.root) })
    }

    /// A certificate that was had otherwise: chain with the leaf first, key, and roots, PEM.
    ///
    /// # Panics
    /// When the key is none.
    pub fn from_pem(id: &str, chain: &str, key: &str, trusted: &str) -> Self {
        let key = KeyPair::from_pem(key).unwrap();
        PodIdentity {
            id: id.to_owned(),
            chain: certificates(chain),
            key: key.serialize_der(),
            roots: roots(trusted),
        }
    }

    /// The same certificate, with other roots (PEM): it is shown to those of another mesh.
    pub fn trusting(&self, trusted: &str) -> Self {
        PodIdentity { roots: roots(trusted), ..self.clone() }
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone().into())
    }

    /// TLS 1.3 client as ztunnel: the server must prove `expected`.
    pub fn client(&self, expected: &str) -> Arc<ClientConfig> {
        let verifier = Exactly { roots: self.roots.clone(), expected: expected.to_owned() };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.private_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }

    /// TLS 1.3 server as ztunnel: clients must have a certificate of the mesh.
    pub fn server(&self) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.private_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// Chain and validity by webpki; the name is the one URI SAN.
#[derive(Debug)]
struct Exactly {
    roots: Arc<RootCertStore>,
    expected: String,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        let seen = uris(end_entity);
        if seen == [self.expected.as_str()] {
            return Ok(ServerCertVerified::assertion());
        }
        let Exactly { expected, .. } = self;
        Err(rustls::Error::General(format!("expected {expected}, the server is {seen:?}")))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
