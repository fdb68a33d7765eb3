//! One request and its answer.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cairn_proto::ca::IstioCertificateRequest;
use cairn_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use cairn_proto::prost_types::value::Kind;
use cairn_proto::prost_types::{Struct, Value};
use rustls_pki_types::PrivateKeyDer;
use tonic::{Extensions, Request};

use super::CaConfig;
use super::answer;
use super::error::CaError;
use super::key::KeyRequest;
use crate::credentials::Credentials;

/// How long an answer may take once there is a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer in bytes: a chain and as many roots as are read.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// What was issued, with the key as it can be kept.
pub(super) struct Issued {
    pub(super) credentials: Credentials,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Makes a key, asks for one certificate and checks the answer.
///
/// # Errors
/// [`CaError`] says what failed and what to do. Nothing is tried again.
pub async fn fetch(config: &CaConfig) -> Result<Credentials, CaError> {
    issue(config).await.map(|issued| issued.credentials)
}

pub(super) async fn issue(config: &CaConfig) -> Result<Issued, CaError> {
    let CaConfig {
        istiod,
        id,
        ttl,
        key,
        cert_signer,
        grace_ratio: _,
        trust_domains: _,
        keep_in: _,
    } = config;
    let request = KeyRequest::new(*key, id)?;
    let message = IstioCertificateRequest {
        csr: request.csr.clone(),
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: cert_signer.as_deref().map(signer),
    };
    let metadata = istiod.metadata().await?;
    let channel = istiod.channel().await?;
    let mut client =
        IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let call =
        client.create_certificate(Request::from_parts(metadata, Extensions::default(), message));
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, call)
        .await
        .map_err(|_| CaError::Timeout { address: istiod.address.clone(), after: ANSWER_TIMEOUT })?
        .map_err(|status| CaError::refused(&istiod.address, &status))?
        .into_inner();
    let key = request.private();
    answer::read(&answer.cert_chain, key.clone_key(), id, SystemTime::now())
        .map(|credentials| Issued { credentials, key })
        .map_err(|error| CaError::Answer { address: istiod.address.clone(), error })
}

/// The metadata that chooses a Kubernetes signer (Istio: `security.CertSigner`).
fn signer(name: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(name.to_owned())) };
    Struct { fields: BTreeMap::from([("CertSigner".to_owned(), value)]) }
}
