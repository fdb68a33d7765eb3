//! Throw-away keys of the kube-apiserver: its certificate, the administrator's, and the key that
//! signs the tokens of service accounts.

use cairn_test_support::pki::provider;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::PrivateKeyDer;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files for the server and for istiod, and a TLS configuration for ourselves.
pub struct Keys {
    dir: PathBuf,
    /// As the administrator.
    pub admin: Arc<ClientConfig>,
}

impl Keys {
    /// Makes them for a server at `address`, and writes them into `dir`.
    pub fn generate(dir: &Path, address: Ipv4Addr) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = name("lab", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, key).unwrap();
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();

        let write = |file: &str, text: String| fs::write(dir.join(file), text).unwrap();
        let names = [address.to_string(), "kubernetes.default.svc".to_owned()];
        let mut server = CertificateParams::new(names).unwrap();
        server.distinguished_name = name("kube-apiserver", None);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate().unwrap();
        write("server.pem", server.signed_by(&server_key, &ca).unwrap().pem());
        write("server-key.pem", server_key.serialize_pem());

        let mut admin = CertificateParams::default();
        admin.distinguished_name = name("lab", Some("system:masters"));
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let admin_key = KeyPair::generate().unwrap();
        let certificate = admin.signed_by(&admin_key, &ca).unwrap();
        write("admin.pem", certificate.pem());
        write("admin-key.pem", admin_key.serialize_pem());
        let tokens = KeyPair::generate().unwrap();
        write("tokens-key.pem", tokens.serialize_pem());
        write("tokens-public.pem", tokens.public_key_pem());

        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let admin = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(admin_key.serialize_der().into()),
            )
            .unwrap();
        Keys { dir: dir.to_owned(), admin: Arc::new(admin) }
    }

    /// Path of one file: `ca`, `server`, `server-key`, `admin`, `admin-key`, `tokens-key` or
    /// `tokens-public`.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(format!("{name}.pem")).display().to_string()
    }

    /// What istiod reads to find the API server at this address.
    pub fn kubeconfig(&self, server: &str) -> PathBuf {
        let file = self.dir.join("kubeconfig");
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": { "server": server, "certificate-authority": self.path("ca") },
            }],
            "users": [{
                "name": "lab",
                "user": {
                    "client-certificate": self.path("admin"),
                    "client-key": self.path("admin-key"),
                },
            }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            "current-context": "lab",
        });
        fs::write(&file, config.to_string()).unwrap();
        file
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}
