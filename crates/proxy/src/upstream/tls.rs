//! TLS to endpoints: what is trusted, what name is demanded, what we show.

use cairn_router::cluster::ClusterState;
use cairn_router::spec::UpstreamTls;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::net::Ipv4Addr;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Compiled TLS settings of a cluster, made once and kept beside the cluster's state.
pub(crate) struct ClusterTls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    name: ServerName<'static>,
}

struct Compiled(Result<ClusterTls, String>);

impl ClusterTls {
    /// The settings of this cluster. `Err` says what is wrong with them: then nothing is dialled.
    pub(crate) fn of<'a>(
        state: &'a ClusterState,
        settings: &UpstreamTls,
    ) -> &'a Result<Self, String> {
        &state.extension(|| Compiled(ClusterTls::compile(settings))).0
    }

    fn compile(settings: &UpstreamTls) -> Result<Self, String> {
        let UpstreamTls { sni, ca_file, sans, cert_file, key_file } = settings;
        let roots = Arc::new(roots(ca_file.as_deref())?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| format!("tls.ca_file: {error}"))?;
        // Without a name nothing is sent as SNI: an address as server name has that effect.
        let name = match sni {
            Some(sni) => ServerName::try_from(sni.clone())
                .map_err(|_| format!("tls.sni: `{sni}` is no host name"))?,
            None => ServerName::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        if sni.is_none() && sans.is_empty() {
            return Err("tls: neither sni nor sans is set, so nothing could be verified".to_owned());
        }
        let verifier = Arc::new(SanVerifier {
            chain,
            roots,
            provider: Arc::clone(&provider),
            sans: sans.clone(),
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("tls: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (cert_file, key_file) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|error| format!("tls.cert_file {cert}: {error}"))?,
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(
                    "tls: cert_file and key_file belong together; set both or none".to_owned()
                );
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(ClusterTls { http1, http2: Arc::new(config), name })
    }

    /// For one of the two protocols.
    pub(crate) fn config(&self, http2: bool) -> Arc<ClientConfig> {
        Arc::clone(if http2 { &self.http2 } else { &self.http1 })
    }

    /// What is sent as SNI and, without SANs, demanded.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

fn roots(ca_file: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("tls.ca_file {path}: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err("tls: no CA is trusted; set ca_file, or install the system's CA certificates"
            .to_owned());
    }
    Ok(roots)
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| format!("{path}: {error}"))?.collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{path}: holds no PEM certificate")),
        found => found.map_err(|error| format!("{path}: {error}")),
    }
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| format!("{path}: {error}"))
}

/// Envoy's `match_typed_subject_alt_names`: with a list one of it must be in the certificate, else the SNI.
#[derive(Debug)]
struct SanVerifier {
    chain: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
    sans: Vec<String>,
}

impl ServerCertVerifier for SanVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.sans.is_empty() {
            return self.chain.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp,
                now,
            );
        }
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let (_, certificate) = X509Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let named = names.is_some_and(|names| {
            names.value.general_names.iter().any(|name| match name {
                GeneralName::DNSName(dns) => {
                    self.sans.iter().any(|san| san.eq_ignore_ascii_case(dns))
                }
                GeneralName::URI(uri) => self.sans.iter().any(|san| san == uri),
                _ => false,
            })
        });
        if named {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
