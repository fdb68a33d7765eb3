//! The TLS configurations and the two verifiers behind them.
//!
//! Chains are verified by webpki (path, validity, purpose, bounded work); what is ours is the name: the one URI SAN.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::credentials::Credentials;
use crate::peer::leaf_identity;
use crate::refusal::PeerRefusal;
use crate::spiffe::{ExpectedPeers, TrustDomains};
use crate::verified::VerifiedChains;

/// The one protocol that is spoken over these connections.
pub(crate) const ALPN: &[u8] = b"h2";

/// Verifies a client: chain and purpose by webpki, then the trust domain of its one URI SAN. What passed all of it is
/// not done again for the same certificates while they are valid; trust domains and roots are those of one verifier.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    verified: VerifiedChains,
    trust_domains: TrustDomains,
}

/// Verifies a server: chain and purpose by webpki, then that its one URI SAN is one of those expected.
#[derive(Debug)]
struct ServerVerifier {
    roots: Arc<RootCertStore>,
    expected: ExpectedPeers,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The cryptography of this crate, always named explicitly so that no process-wide default is needed.
///
/// AES-128 with SHA-256 stands first, as at Envoy (BoringSSL's order): it is as good here and the cheapest, above all
/// where SHA-256 is in hardware and SHA-384 is not.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

pub(crate) fn server_config(
    credentials: &Credentials,
    trust_domains: &TrustDomains,
) -> ServerConfig {
    let verifier = ClientVerifier {
        chain: Arc::clone(&credentials.client_verifier),
        verified: VerifiedChains::default(),
        trust_domains: trust_domains.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&credentials.provider))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has cipher suites and key exchange groups of TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&credentials.certified))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    config
}

pub(crate) fn client_config(credentials: &Credentials, expected: &ExpectedPeers) -> ClientConfig {
    let verifier = ServerVerifier {
        roots: Arc::clone(&credentials.roots),
        expected: expected.clone(),
        algorithms: credentials.provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&credentials.provider))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has cipher suites and key exchange groups of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            &credentials.certified,
        ))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// A certificate that names our root as its issuer but is not signed by it is of an unknown issuer, not a broken
/// handshake.
pub(crate) fn chain_error(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        error => error,
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.verified.contains(end_entity, intermediates, now) {
            return Ok(ClientCertVerified::assertion());
        }
        let verified =
            self.chain.verify_client_cert(end_entity, intermediates, now).map_err(chain_error)?;
        let id = leaf_identity(end_entity).map_err(PeerRefusal::NoSpiffeId)?;
        if !self.trust_domains.accepts(&id) {
            return Err(PeerRefusal::TrustDomain(id).into());
        }
        self.verified.keep(end_entity, intermediates);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
        .map_err(chain_error)?;
        let id = leaf_identity(end_entity).map_err(PeerRefusal::NoSpiffeId)?;
        if !self.expected.contains(&id) {
            return Err(PeerRefusal::UnexpectedIdentity(id).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn tls12_is_off() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not negotiated".to_owned())
}
