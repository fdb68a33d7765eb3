//! The certificate and the roots, as Envoy shows secrets. Keys are not read at all.

use super::view::AdminView;
use cairn_identity::Credentials;
use cairn_proto::envoy::envoy::admin::v3::{
    Certificate, CertificateDetails, Certificates, SubjectAlternateName, subject_alternate_name,
};
use cairn_proto::envoy::envoy::config::core::v3::{DataSource, data_source::Specifier};
use cairn_proto::envoy::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use cairn_proto::envoy::google::protobuf::Timestamp;
use rustls_pki_types::CertificateDer;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// In the place of the key, as Envoy has it.
const REDACTED: &str = "[redacted]";
/// Characters of base64 on a line of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// `default`, with the certificate's chain, and `ROOTCA`.
pub fn secrets(credentials: &Credentials) -> [Secret; 2] {
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(pem(credentials.chain()))),
        private_key: Some(inline(REDACTED.to_owned())),
        ..TlsCertificate::default()
    };
    let roots = CertificateValidationContext {
        trusted_ca: Some(inline(pem(credentials.roots()))),
        ..CertificateValidationContext::default()
    };
    [
        Secret {
            name: "default".to_owned(),
            r#type: Some(secret::Type::TlsCertificate(certificate)),
        },
        Secret { name: "ROOTCA".to_owned(), r#type: Some(secret::Type::ValidationContext(roots)) },
    ]
}

/// What `/certs` shows.
pub fn certificates(view: &AdminView) -> Certificates {
    let credentials = view.instance.identity().current();
    let details = |certificates: &[CertificateDer<'_>]| {
        certificates.iter().filter_map(|der| details(der, SystemTime::now())).collect()
    };
    let certificate = Certificate {
        ca_cert: details(credentials.roots()),
        cert_chain: details(credentials.chain()),
    };
    Certificates { certificates: vec![certificate] }
}

fn details(der: &CertificateDer<'_>, now: SystemTime) -> Option<CertificateDetails> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let left = u64::try_from(validity.not_after.timestamp()).unwrap_or(0).saturating_sub(now);
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.iter().filter_map(san).collect());
    Some(CertificateDetails {
        path: "<inline>".to_owned(),
        serial_number: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        subject_alt_names: names.unwrap_or_default(),
        days_until_expiration: left / (24 * 3600),
        valid_from: Some(timestamp(validity.not_before.timestamp())),
        expiration_time: Some(timestamp(validity.not_after.timestamp())),
        ocsp_details: None,
    })
}

fn san(name: &GeneralName<'_>) -> Option<SubjectAlternateName> {
    let name = match name {
        GeneralName::URI(uri) => subject_alternate_name::Name::Uri((*uri).to_owned()),
        GeneralName::DNSName(dns) => subject_alternate_name::Name::Dns((*dns).to_owned()),
        _ => return None,
    };
    Some(SubjectAlternateName { name: Some(name) })
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn inline(text: String) -> DataSource {
    let specifier = Some(Specifier::InlineBytes(text.into_bytes()));
    DataSource { specifier, ..DataSource::default() }
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::prelude::BASE64_STANDARD.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            // Base64 is ASCII: every place is between two characters.
            let (line, after) = rest.split_at(rest.len().min(PEM_LINE));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
