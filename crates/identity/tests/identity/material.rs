//! What is read of PEM, and how it is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cairn_identity::dev::{DevCa, IssueOptions, PemBundle};
use cairn_identity::{Credentials, IdentityError, MaterialPart, SanError};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

fn bundle() -> PemBundle {
    let ca = DevCa::new("td").unwrap();
    let id = ca.id("default", "waypoint").unwrap();
    ca.intermediate().unwrap().issue_pem(&id, IssueOptions::default()).unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// The ECPrivateKey within a PKCS#8 key (RFC 5915): version 1, then the 32 bytes of a P-256 scalar.
fn sec1(key: &str) -> String {
    let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap().secret_der().to_vec();
    let at =
        der.windows(5).position(|window| window == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap() - 2;
    let end = at + 2 + usize::from(der[at + 1]);
    pem("EC PRIVATE KEY", &der[at..end])
}

#[test]
fn reads_keys_among_other_text() {
    let good = bundle();
    let read = |key: &str| {
        let mut bundle = good.clone();
        bundle.key = key.to_owned();
        bundle.credentials()
    };
    assert!(read(&good.key).is_ok());
    assert!(read(&sec1(&good.key)).is_ok());
    assert!(read(&format!("some text\n{}{}more\n", good.roots, good.key)).is_ok());
    assert!(read(&good.key.replace('\n', "\r\n")).is_ok());
}

#[test]
fn refuses_unusable_keys() {
    let good = bundle();
    let read = |key: &str| {
        let mut bundle = good.clone();
        bundle.key = key.to_owned();
        bundle.credentials().unwrap_err()
    };
    assert_eq!(read(""), IdentityError::Empty(MaterialPart::Key));
    assert_eq!(read(&good.cert_chain), IdentityError::Empty(MaterialPart::Key));
    assert_eq!(
        read(&pem("ENCRYPTED PRIVATE KEY", b"secret")),
        IdentityError::Empty(MaterialPart::Key)
    );
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
        assert!(matches!(read(&pem(label, b"nonsense")), IdentityError::Key(_)), "{label}");
    }
    assert_eq!(read(&bundle().key), IdentityError::KeyMismatch);
    assert!(matches!(
        read(&good.key[..good.key.len() / 2]),
        IdentityError::Pem { part: MaterialPart::Key, .. }
    ));
}

#[test]
fn refuses_damaged_certificates() {
    let good = bundle();
    let chain = |text: &str| {
        Credentials::from_pem(text.as_bytes(), good.key.as_bytes(), good.roots.as_bytes())
            .unwrap_err()
    };
    let roots = |text: &str| {
        Credentials::from_pem(good.cert_chain.as_bytes(), good.key.as_bytes(), text.as_bytes())
            .unwrap_err()
    };
    assert_eq!(chain(""), IdentityError::Empty(MaterialPart::Chain));
    assert_eq!(roots("no root here"), IdentityError::Empty(MaterialPart::Roots));
    for cut in [1, 2, 3] {
        let text = &good.cert_chain[..good.cert_chain.len() * cut / 4];
        let error = chain(text);
        assert!(matches!(error, IdentityError::Pem { part: MaterialPart::Chain, .. }), "{error}");
    }
    assert!(matches!(
        roots(&good.roots.replace("-----END", "-----FIN")),
        IdentityError::Pem { part: MaterialPart::Roots, .. }
    ));
    assert_eq!(
        chain(&pem("CERTIFICATE", b"nonsense")),
        IdentityError::SpiffeId(SanError::Unreadable)
    );
    assert_eq!(chain(&good.roots), IdentityError::SpiffeId(SanError::Missing));
    let two = good.roots.clone() + &pem("CERTIFICATE", b"nonsense");
    assert!(matches!(roots(&two), IdentityError::Root { number: 2, .. }));
    assert_eq!(
        chain(&good.cert_chain.repeat(100)),
        IdentityError::TooMany { part: MaterialPart::Chain, limit: 16 }
    );
}

#[test]
fn a_certificate_without_one_identity_is_not_ours() {
    let ca = DevCa::new("td").unwrap();
    let id = ca.id("default", "waypoint").unwrap();
    let read = |uris: &[&str]| {
        let options = IssueOptions {
            uri_sans: Some(uris.iter().map(|uri| (*uri).to_owned()).collect()),
            ..IssueOptions::default()
        };
        ca.issue_pem(&id, options).unwrap().credentials().unwrap_err()
    };
    assert_eq!(read(&[]), IdentityError::SpiffeId(SanError::Missing));
    assert_eq!(read(&[id.as_str(), "https://a/"]), IdentityError::SpiffeId(SanError::Several(2)));
    assert!(matches!(
        read(&["spiffe://td/x"]),
        IdentityError::SpiffeId(SanError::Malformed { .. })
    ));
}

#[test]
fn no_key_in_debug_output() {
    let bundle = bundle();
    let secret = bundle.key.lines().nth(1).unwrap();
    let credentials = bundle.credentials().unwrap();
    let shown = format!(
        "{bundle:?} {credentials:?} {:?}",
        cairn_identity::Identity::fixed(credentials.clone())
    );
    assert!(!shown.contains(secret));
    assert!(shown.contains(credentials.id.as_str()));
}
