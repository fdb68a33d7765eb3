//! Transport sockets of clusters: what is between a connection and the endpoint's bytes.

use super::unsupported::Subject;
use super::wire::{Undecodable, open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::UpstreamTls;
use pb::envoy::config::core::v3::TransportSocket;
use pb::envoy::config::core::v3::data_source::Specifier;
use pb::envoy::config::core::v3::transport_socket::ConfigType;
use pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use pb::envoy::r#type::matcher::v3::StringMatcher;
use pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use pb::google::protobuf::Any;

/// Name of the message.
pub(super) const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

const INTERNAL: &str =
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";

/// What is between a connection and the endpoint's bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Socket {
    Plain,
    Tls(UpstreamTls),
    /// Nothing that is understood, and why.
    Broken(String),
}

/// Reads a transport socket; none is plain. `auto_sni`: the server name would be the request's host.
pub(super) fn socket(
    socket: Option<&TransportSocket>,
    auto_sni: bool,
    subject: &mut Subject<'_>,
) -> Result<Socket, Undecodable> {
    let Some(socket) = socket else { return Ok(Socket::Plain) };
    let Some(config) = typed(socket) else {
        return Ok(match socket.name.as_str() {
            "raw_buffer" | "envoy.transport_sockets.raw_buffer" => Socket::Plain,
            name => Socket::Broken(format!("the transport socket `{name}`")),
        });
    };
    match type_name(config) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(Socket::Plain),
        INTERNAL => {
            let InternalUpstreamTransport { passthrough_metadata: _, transport_socket } =
                open(config)?.message;
            // One level: what is nested deeper is nothing that istiod makes, and could be nested without end.
            match transport_socket.as_ref().and_then(typed) {
                Some(inner) if type_name(inner) == INTERNAL => {
                    Ok(Socket::Broken("an internal transport in another".to_owned()))
                }
                _ => self::socket(transport_socket.as_ref(), auto_sni, subject),
            }
        }
        UPSTREAM => upstream(config, auto_sni, subject),
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            Ok(Socket::Broken("PROXY protocol to endpoints".to_owned()))
        }
        other => Ok(Socket::Broken(format!("the transport socket {other}"))),
    }
}

fn typed(socket: &TransportSocket) -> Option<&Any> {
    match socket.config_type.as_ref()? {
        ConfigType::TypedConfig(config) => Some(config),
    }
}

fn upstream(
    config: &Any,
    auto_sni: bool,
    subject: &mut Subject<'_>,
) -> Result<Socket, Undecodable> {
    let read = open::<tls::UpstreamTlsContext>(config)?;
    if !read.whole {
        return Ok(Socket::Broken("TLS with fields that are not known".to_owned()));
    }
    Ok(match origination(&read.message, auto_sni, subject) {
        Ok(tls) => Socket::Tls(tls),
        Err(what) => Socket::Broken(what),
    })
}

/// The error says what is not supported.
#[allow(deprecated)]
fn origination(
    from: &tls::UpstreamTlsContext,
    auto_sni: bool,
    subject: &mut Subject<'_>,
) -> Result<UpstreamTls, String> {
    let tls::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation: _,
        allow_renegotiation: _,
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = from;
    let Some(tls::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log: _,
        validation_context_type,
    }) = common_tls_context
    else {
        return Err("TLS that verifies nobody".to_owned());
    };
    let provider = tls_certificate_provider_instance.is_some()
        || custom_tls_certificate_selector.is_some()
        || tls_certificate_certificate_provider.is_some()
        || tls_certificate_certificate_provider_instance.is_some();
    if provider || !tls_certificates.is_empty() || custom_handshaker.is_some() {
        return Err("TLS with certificates that are no files".to_owned());
    }
    let params = tls_params.clone().unwrap_or_default();
    let restricted = !params.cipher_suites.is_empty()
        || !params.ecdh_curves.is_empty()
        || !params.signature_algorithms.is_empty()
        || !params.compliance_policies.is_empty();
    if restricted {
        return Err("TLS with a list of ciphers, curves or signatures".to_owned());
    }
    use tls::tls_parameters::TlsProtocol;
    let old = [TlsProtocol::TlSv10 as i32, TlsProtocol::TlSv11 as i32];
    if old.contains(&params.tls_maximum_protocol_version) {
        return Err("TLS older than 1.2".to_owned());
    }
    let tls13_only = params.tls_minimum_protocol_version == TlsProtocol::TlSv13 as i32;
    if tls13_only && params.tls_maximum_protocol_version == TlsProtocol::TlSv12 as i32 {
        return Err("TLS of no version".to_owned());
    }
    subject.degrade_if(
        alpn_protocols.iter().any(|name| name != "h2" && name != "http/1.1"),
        "a list of ALPN protocols",
    );
    let (cert_file, key_file) = match tls_certificate_sds_secret_configs.as_slice() {
        [] => (None, None),
        [secret] => {
            let (cert, key) = client_certificate(&secret.name)?;
            (Some(cert), Some(key))
        }
        _ => return Err("TLS with several client certificates".to_owned()),
    };
    let (context, roots) = validation(validation_context_type.as_ref())?;
    let sans = names(&context)?;
    let ca_file = match (roots, &context.trusted_ca) {
        (Some(roots), None) => self::roots(&roots)?,
        (None, Some(ca)) => match &ca.specifier {
            Some(Specifier::Filename(file)) => Some(file.clone()),
            _ => return Err("CAs that are no file".to_owned()),
        },
        (None, None) if context.system_root_certs.is_some() => None,
        (None, None) => return Err("TLS that verifies no server (insecureSkipVerify)".to_owned()),
        (Some(_), Some(_)) => return Err("two lists of CAs".to_owned()),
    };
    let sni = (!sni.is_empty()).then(|| sni.clone());
    if sni.is_none() && (auto_sni || *auto_host_sni) {
        return Err("a TLS server name by request (auto_sni; set `sni`)".to_owned());
    }
    if sni.is_none() && sans.is_empty() {
        return Err("TLS without a name to verify (set `sni` or `subjectAltNames`)".to_owned());
    }
    Ok(UpstreamTls { sni, ca_file, sans, cert_file, key_file, tls13_only })
}

/// Files of a client certificate's SDS name.
fn client_certificate(name: &str) -> Result<(String, String), String> {
    let files = name.strip_prefix("file-cert:").and_then(|files| files.split_once('~'));
    match files {
        Some((cert, key)) if !cert.is_empty() && !key.is_empty() => {
            Ok((cert.to_owned(), key.to_owned()))
        }
        _ if name == "default" => Err("mesh TLS (ISTIO_MUTUAL) to endpoints".to_owned()),
        _ => Err(format!("the client certificate `{name}`, which is no file")),
    }
}

/// File of an SDS name of CAs; `None`: the system's.
fn roots(name: &str) -> Result<Option<String>, String> {
    match name.strip_prefix("file-root:") {
        Some("system") => Ok(None),
        Some(file) if !file.is_empty() => Ok(Some(file.to_owned())),
        _ if name == "ROOTCA" => Err("mesh TLS (ISTIO_MUTUAL) to endpoints".to_owned()),
        _ => Err(format!("the CAs `{name}`, which are no file")),
    }
}

/// What is verified, and the SDS name of the CAs.
#[allow(deprecated)]
fn validation(
    from: Option<&ValidationContextType>,
) -> Result<(tls::CertificateValidationContext, Option<String>), String> {
    match from {
        Some(ValidationContextType::ValidationContext(context)) => Ok((context.clone(), None)),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            Ok((tls::CertificateValidationContext::default(), Some(secret.name.clone())))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let tls::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider,
                validation_context_certificate_provider_instance,
            } = combined;
            if validation_context_certificate_provider.is_some()
                || validation_context_certificate_provider_instance.is_some()
            {
                return Err("CAs of a certificate provider".to_owned());
            }
            let roots = validation_context_sds_secret_config.as_ref();
            Ok((
                default_validation_context.clone().unwrap_or_default(),
                roots.map(|secret| secret.name.clone()),
            ))
        }
        Some(_) => Err("CAs of a certificate provider".to_owned()),
        None => Err("TLS that verifies no server".to_owned()),
    }
}

/// Names of which the certificate must have one. Everything else that a context could ask for is an error.
#[allow(deprecated)]
fn names(context: &tls::CertificateValidationContext) -> Result<Vec<String>, String> {
    only_names(context)?;
    if !context.match_typed_subject_alt_names.is_empty() {
        let typed = context.match_typed_subject_alt_names.iter();
        return typed
            .map(|san| match SanType::try_from(san.san_type) {
                Ok(SanType::Dns | SanType::Uri) => exact(san.matcher.as_ref()),
                _ => Err("a certificate's name that is neither DNS nor URI".to_owned()),
            })
            .collect();
    }
    context.match_subject_alt_names.iter().map(|matcher| exact(Some(matcher))).collect()
}

fn exact(matcher: Option<&StringMatcher>) -> Result<String, String> {
    match matcher.and_then(|matcher| matcher.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(name)) if !name.is_empty() => Ok(name.clone()),
        _ => Err("a pattern of certificates' names".to_owned()),
    }
}

/// Refuses what asks for more than roots and names.
#[allow(deprecated)]
pub(super) fn only_names(context: &tls::CertificateValidationContext) -> Result<(), String> {
    let tls::CertificateValidationContext {
        trusted_ca: _,
        ca_certificate_provider_instance,
        system_root_certs: _,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names: _,
        match_subject_alt_names: _,
        require_signed_certificate_timestamp,
        crl,
        // Cairn accepts neither expired certificates nor unknown CAs.
        allow_expired_certificate: _,
        trust_chain_verification: _,
        custom_validator_config,
        only_verify_leaf_cert_crl: _,
        max_verify_depth: _,
        suppress_client_ca_list: _,
    } = context;
    let asked = [
        (ca_certificate_provider_instance.is_some(), "CAs of a certificate provider"),
        (
            !verify_certificate_spki.is_empty() || !verify_certificate_hash.is_empty(),
            "pinned certificates",
        ),
        (
            require_signed_certificate_timestamp.as_ref().is_some_and(|asked| asked.value),
            "signed certificate timestamps",
        ),
        (crl.is_some(), "a list of revoked certificates"),
        (custom_validator_config.is_some(), "a certificate validator"),
    ];
    match asked.into_iter().find(|(present, _)| *present) {
        Some((_, what)) => Err(what.to_owned()),
        None => Ok(()),
    }
}
