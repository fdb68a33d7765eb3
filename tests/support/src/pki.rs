//! A certificate authority for tests, and all the certificates that must be refused.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// The trust domain of most tests.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
pub fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

/// The provider that tests and product share.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A root that issues certificates of any kind.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct CertSpec {
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// IP SANs.
    pub ips: Vec<IpAddr>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// EKU clientAuth.
    pub client_auth: bool,
    /// EKU serverAuth.
    pub server_auth: bool,
}

impl CertSpec {
    /// A good workload certificate with this URI SAN.
    pub fn uri(uri: &str) -> Self {
        let now = SystemTime::now();
        CertSpec {
            uris: vec![uri.to_owned()],
            dns: Vec::new(),
            ips: Vec::new(),
            not_before: now - Duration::from_secs(3600),
            not_after: now + Duration::from_secs(24 * 3600),
            client_auth: true,
            server_auth: true,
        }
    }

    /// A good workload certificate of [`TRUST_DOMAIN`].
    pub fn workload(namespace: &str, account: &str) -> Self {
        Self::uri(&spiffe(namespace, account))
    }

    /// A server certificate with this DNS name and no SPIFFE id.
    pub fn dns(name: &str) -> Self {
        CertSpec { uris: Vec::new(), dns: vec![name.to_owned()], ..Self::uri("") }
    }

    /// Ended an hour ago.
    pub fn expired(mut self) -> Self {
        self.not_before = SystemTime::now() - Duration::from_secs(7200);
        self.not_after = SystemTime::now() - Duration::from_secs(3600);
        self
    }

    /// Starts in an hour.
    pub fn not_yet_valid(mut self) -> Self {
        self.not_before = SystemTime::now() + Duration::from_secs(3600);
        self
    }

    /// EKU serverAuth alone.
    pub fn without_client_auth(mut self) -> Self {
        self.client_auth = false;
        self
    }

    /// EKU clientAuth alone.
    pub fn without_server_auth(mut self) -> Self {
        self.server_auth = false;
        self
    }

    /// A DNS name instead of an identity.
    pub fn without_identity(mut self) -> Self {
        self.uris.clear();
        self.dns = vec!["client.example".to_owned()];
        self
    }

    /// One more URI SAN.
    pub fn and_uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }
}

/// A certificate, its key and the root that issued it.
#[derive(Debug, Clone)]
pub struct Cert {
    /// First URI SAN, or empty.
    pub id: String,
    /// Leaf, PEM.
    pub chain_pem: String,
    /// PKCS#8, PEM.
    pub key_pem: String,
    /// Root, PEM.
    pub root_pem: String,
    /// Leaf, DER.
    pub leaf: CertificateDer<'static>,
    key: Vec<u8>,
    /// What is between the leaf and its root.
    above: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Ca {
    /// A root of its own.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "test root");
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ca { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The root, DER.
    pub fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A good workload certificate of [`TRUST_DOMAIN`].
    pub fn workload(&self, namespace: &str, account: &str) -> Cert {
        self.issue(&CertSpec::workload(namespace, account))
    }

    /// A certificate as specified, with a new P-256 key.
    pub fn issue(&self, spec: &CertSpec) -> Cert {
        let CertSpec { uris, dns, ips, not_before, not_after, client_auth, server_auth } = spec;
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        }
        for name in dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().unwrap()));
        }
        for ip in ips {
            params.subject_alt_names.push(SanType::IpAddress(*ip));
        }
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + not_before.duration_since(UNIX_EPOCH).unwrap();
        params.not_after = epoch + not_after.duration_since(UNIX_EPOCH).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if *client_auth {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if *server_auth {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Cert {
            id: uris.first().cloned().unwrap_or_default(),
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            root_pem: self.root_pem(),
            leaf: leaf.der().clone(),
            key: key.serialize_der(),
            above: Vec::new(),
            roots: vec![self.root()],
        }
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Cert {
    /// A certificate that somebody else issued: leaf first, then what is between it and its root.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Self {
        let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
        };
        let mut above = certificates(chain);
        let leaf = above.remove(0);
        Cert {
            id: uris(&leaf).pop().unwrap_or_default(),
            chain_pem: chain.to_owned(),
            key_pem: key.to_owned(),
            root_pem: roots.to_owned(),
            leaf,
            key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap().secret_der().to_owned(),
            above,
            roots: certificates(roots),
        }
    }

    /// The same certificate, trusting `root` instead of its own issuer.
    pub fn trusting(mut self, ca: &Ca) -> Self {
        self.roots = vec![ca.root()];
        self.root_pem = ca.root_pem();
        self
    }

    /// The same certificate, trusting these roots.
    pub fn trusting_roots(self, roots: &str) -> Self {
        Self::from_pem(&self.chain_pem, &self.key_pem, roots)
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).unwrap();
        }
        Arc::new(store)
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.leaf).chain(&self.above).cloned().collect()
    }

    /// TLS 1.3 client as ztunnel: ALPN h2, this certificate, the server must prove `expected`.
    pub fn hbone_client(&self, expected: &str) -> Arc<ClientConfig> {
        let mut config = self
            .client_builder(expected)
            .with_client_auth_cert(self.chain(), self.private_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }

    /// As [`Cert::hbone_client`], without a client certificate.
    pub fn anonymous_client(&self, expected: &str) -> Arc<ClientConfig> {
        let mut config = self.client_builder(expected).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// As [`Cert::hbone_client`], with other ALPN names and perhaps TLS 1.2 alone.
    pub fn odd_client(&self, expected: &str, alpn: &[&str], tls12: bool) -> Arc<ClientConfig> {
        let version = if tls12 { &version::TLS12 } else { &version::TLS13 };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(expected))
            .with_client_auth_cert(self.chain(), self.private_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn client_builder(
        &self,
        expected: &str,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(expected))
    }

    fn verifier(&self, expected: &str) -> Arc<ExpectUri> {
        Arc::new(ExpectUri {
            roots: self.roots(),
            expected: expected.to_owned(),
            provider: provider(),
        })
    }

    /// TLS 1.3 server as ztunnel: ALPN h2, client certificate required and verified to the root.
    pub fn hbone_server(&self) -> Arc<ServerConfig> {
        self.server(&["h2"], true)
    }

    /// A TLS server with these ALPN names; a client certificate is required, or not asked for.
    pub fn server(&self, alpn: &[&str], client_certificate: bool) -> Arc<ServerConfig> {
        let verifier: Arc<dyn ClientCertVerifier> = if client_certificate {
            WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build().unwrap()
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.private_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

/// URI SANs of a certificate.
pub fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// Serial number of a certificate, hexadecimal.
pub fn serial(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    parsed.raw_serial_as_string()
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    match rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256 {
        rustls::SupportedCipherSuite::Tls13(suite) => {
            suite.common.hash_provider.hash(bytes).as_ref().to_vec()
        }
        rustls::SupportedCipherSuite::Tls12(_) => panic!("it is of TLS 1.3"),
    }
}

/// Curve of a certificate's key, as the number that names it (RFC 5480); empty: it has none.
pub fn curve(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let parameters = parsed.public_key().algorithm.parameters.as_ref();
    let curve = parameters.and_then(|parameters| parameters.as_oid().ok());
    curve.map(|curve| curve.to_id_string()).unwrap_or_default()
}

/// Chain, validity and purpose by webpki; the name is a URI SAN.
#[derive(Debug)]
struct ExpectUri {
    roots: Arc<RootCertStore>,
    expected: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExpectUri {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let seen = uris(end_entity);
        if seen.contains(&self.expected) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(format!(
                "expected {}, the server is {seen:?}",
                self.expected
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A directory with `cert-chain.pem`, `key.pem` and `root-cert.pem`.
pub struct CertDir {
    dir: TempDir,
    kubernetes: bool,
    version: u32,
}

impl CertDir {
    /// Ordinary files.
    pub fn plain(cert: &Cert) -> Self {
        let mut dir = CertDir { dir: tempfile::tempdir().unwrap(), kubernetes: false, version: 0 };
        dir.replace(cert);
        dir
    }

    /// The layout of a Kubernetes volume: the names are links through `..data`, which is a
    /// link to the directory of one version.
    pub fn kubernetes(cert: &Cert) -> Self {
        let mut dir = CertDir { dir: tempfile::tempdir().unwrap(), kubernetes: true, version: 0 };
        dir.replace(cert);
        for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
            let link = dir.path().join(name);
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
        dir
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The chain.
    pub fn cert(&self) -> PathBuf {
        self.path().join("cert-chain.pem")
    }

    /// The key.
    pub fn key(&self) -> PathBuf {
        self.path().join("key.pem")
    }

    /// The roots.
    pub fn roots(&self) -> PathBuf {
        self.path().join("root-cert.pem")
    }

    /// Puts other files there: by one atomic rename of `..data` in the Kubernetes layout, else by
    /// a rename for each file.
    pub fn replace(&mut self, cert: &Cert) {
        self.replace_raw(&cert.chain_pem, &cert.key_pem, &cert.root_pem);
    }

    /// As [`CertDir::replace`], with any content.
    pub fn replace_raw(&mut self, chain: &str, key: &str, roots: &str) {
        let files = [("cert-chain.pem", chain), ("key.pem", key), ("root-cert.pem", roots)];
        let root = self.dir.path().to_owned();
        if !self.kubernetes {
            for (name, content) in files {
                let fresh = root.join(format!(".{name}.new"));
                std::fs::write(&fresh, content).unwrap();
                std::fs::rename(&fresh, root.join(name)).unwrap();
            }
            return;
        }
        let old = self.version;
        self.version += 1;
        let name = format!("..version_{}", self.version);
        std::fs::create_dir(root.join(&name)).unwrap();
        for (file, content) in files {
            std::fs::write(root.join(&name).join(file), content).unwrap();
        }
        std::os::unix::fs::symlink(&name, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if old > 0 {
            std::fs::remove_dir_all(root.join(format!("..version_{old}"))).unwrap();
        }
    }
}
