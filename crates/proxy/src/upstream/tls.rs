//! TLS to endpoints: what is trusted, what name is demanded, what we show.

use arc_swap::ArcSwap;
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How often files are looked at, by those who dial.
const LOOK: Duration = Duration::from_secs(5);

/// Compiled TLS settings of a cluster.
pub(crate) struct ClusterTls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Kept beside the cluster's state; made anew when a file is another one than before.
struct Kept {
    /// Milliseconds from `began` to the last look.
    looked: AtomicU64,
    began: Instant,
    current: ArcSwap<Current>,
}

struct Current {
    files: Files,
    compiled: Result<Arc<ClusterTls>, String>,
}

/// Length and time of change of each file; `None`: it is not there.
type Files = [Option<(u64, SystemTime)>; 3];

impl Kept {
    fn new(settings: &UpstreamTls) -> Self {
        let current = ArcSwap::from_pointee(Current::read(settings));
        Kept { looked: AtomicU64::new(0), began: Instant::now(), current }
    }

    /// At most one caller looks at the files in [`LOOK`].
    fn follow(&self, settings: &UpstreamTls) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let looked = self.looked.load(Ordering::Relaxed);
        let due = u128::from(now.saturating_sub(looked)) >= LOOK.as_millis();
        if !due
            || self
                .looked
                .compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let current = self.current.load();
        if current.files == files(settings) {
            return;
        }
        let fresh = Current::read(settings);
        match (&current.compiled, &fresh.compiled) {
            // A file that is being written is no reason to forget the good one.
            (Ok(_), Err(reason)) => {
                tracing::warn!(reason, "TLS files of a cluster cannot be used, those before stay")
            }
            _ => self.current.store(Arc::new(fresh)),
        }
    }
}

impl Current {
    fn read(settings: &UpstreamTls) -> Self {
        // Looked at first: what changes while it is read is read again.
        let files = files(settings);
        Current { files, compiled: ClusterTls::compile(settings).map(Arc::new) }
    }
}

fn files(settings: &UpstreamTls) -> Files {
    [&settings.ca_file, &settings.cert_file, &settings.key_file].map(|path| {
        let found = std::fs::metadata(path.as_ref()?).ok()?;
        Some((found.len(), found.modified().ok()?))
    })
}

impl ClusterTls {
    /// The settings of this cluster, by the files as they are at most some seconds ago. `Err` says what is wrong
    /// with them: then nothing is dialled.
    pub(crate) fn of(state: &ClusterState, settings: &UpstreamTls) -> Result<Arc<Self>, String> {
        let kept = state.extension(|| Kept::new(settings));
        kept.follow(settings);
        kept.current.load().compiled.clone()
    }

    fn compile(settings: &UpstreamTls) -> Result<Self, String> {
        let UpstreamTls { sni, ca_file, sans, cert_file, key_file, tls13_only } = settings;
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
        const NEW: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let versions = if *tls13_only { NEW } else { rustls::DEFAULT_VERSIONS };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
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
