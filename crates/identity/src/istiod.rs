//! The way to istiod: where it is, how it proves itself, and what we show it.
//!
//! The same values serve the certificate authority and the discovery service. Nothing of a file is kept: roots are read
//! again at each dial and the token at each call, because both are replaced under a running process. A channel dials
//! again by itself when its connection is lost, and does all of this again when it does.
//!
//! What istiod demands of a caller (Istio: `pilot/pkg/bootstrap`, `security/pkg/server/ca/authenticate`): a client
//! certificate of the mesh, or else a token of the service account with the audience `istio-ca`. The certificate is asked
//! first; the token is sent beside it.

mod dial;
mod offer;
mod overrides;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::identity::Identity;

pub use dial::DialError;
pub(crate) use dial::reasons;
pub use overrides::{OverrideError, Overrides};

/// How long resolving, connecting and the TLS handshake may take together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an open connection may be silent before it is asked whether it is there (Istio's agent: 30 s).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer to that may take (Istio's agent: 10 s).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that istiod may send ahead, per stream and per connection (Istio's agent: 1 MiB).
const WINDOW_BYTES: u32 = 1024 * 1024;
/// Largest token in bytes. Those of Kubernetes are about 1 KiB.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// Where the roots are that istiod's certificate must lead to. Read at each dial.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, such as `/var/run/secrets/istio/root-cert.pem`.
    File(PathBuf),
    /// The PEM itself.
    Pem(String),
}

/// How to reach istiod and what to show it.
#[derive(Clone)]
pub struct Istiod {
    /// `host:port`, with an IPv6 address in brackets. The host is the name that istiod's certificate must have.
    pub address: String,
    /// Another name that istiod's certificate must have.
    pub server_name: Option<String>,
    /// The roots that istiod's certificate must lead to.
    pub roots: Roots,
    /// Addresses that are used instead of what DNS says.
    pub resolve: Overrides,
    /// The file of the service account's token, read again for each call.
    pub token: Option<PathBuf>,
    /// The cluster whose API server can judge the token; empty: istiod's own.
    pub cluster_id: String,
    /// Our certificate, offered while it is valid.
    pub identity: Option<Identity>,
    /// Without TLS, as istiod's port 15010 wants it. Neither certificate nor token is sent then.
    pub plaintext: bool,
}

impl Istiod {
    /// Connects: TLS 1.2 or 1.3 with ALPN `h2`, istiod's certificate verified for its name.
    ///
    /// The channel's keepalive is 30 s with a timeout of 10 s, its windows are 1 MiB. A certificate of ours that istiod
    /// refuses shows in TLS 1.3 only as a connection that ends before the first answer; the dial after that one does
    /// without the certificate when there is a token, so calling again is all that a caller has to do.
    ///
    /// # Errors
    /// [`DialError`] of the first dial. Later ones are in the source chain of a call's status: see [`DialError::within`].
    pub async fn channel(&self) -> Result<Channel, DialError> {
        let endpoint = self.endpoint()?;
        let istiod = Arc::new(self.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let istiod = Arc::clone(&istiod);
            async move { istiod.dial().await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| {
            DialError::within(&error).cloned().unwrap_or_else(|| DialError::Http2 {
                address: self.address.clone(),
                reason: reasons(&error),
            })
        })
    }

    /// What goes along with each call: `authorization: Bearer <token>` and `clusterid`.
    ///
    /// # Errors
    /// [`DialError::Token`] when the token cannot be read and there is no valid certificate to show instead.
    pub async fn metadata(&self) -> Result<MetadataMap, DialError> {
        let mut metadata = MetadataMap::new();
        if let Some(token) = self.authorization().await? {
            metadata.insert("authorization", token);
        }
        if !self.cluster_id.is_empty() {
            let value = AsciiMetadataValue::try_from(&self.cluster_id).map_err(|_| {
                DialError::ClusterId { cluster_id: self.cluster_id.escape_debug().to_string() }
            })?;
            metadata.insert("clusterid", value);
        }
        Ok(metadata)
    }

    /// Whether a certificate of ours can be offered: there is one, and it is valid.
    pub fn has_certificate(&self) -> bool {
        !self.plaintext
            && self.identity.as_ref().is_some_and(|identity| {
                identity.current().check_validity(SystemTime::now()).is_ok()
            })
    }

    fn endpoint(&self) -> Result<Endpoint, DialError> {
        let bad = |reason: String| DialError::Address { address: self.address.clone(), reason };
        let (_, _) = dial::host_and_port(&self.address).map_err(|reason| bad(reason.to_owned()))?;
        // The connector does TLS itself, so the address to dial has the scheme http whatever the calls say.
        let uri = |scheme| {
            Uri::try_from(format!("{scheme}://{}", self.address))
                .map_err(|error| bad(error.to_string()))
        };
        let origin = uri(if self.plaintext { "http" } else { "https" })?;
        Ok(Endpoint::from(uri("http")?)
            .origin(origin)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES))
    }

    async fn authorization(&self) -> Result<Option<AsciiMetadataValue>, DialError> {
        let Some(path) = self.token.as_ref().filter(|_| !self.plaintext) else { return Ok(None) };
        let token = match dial::read_text(path, MAX_TOKEN_BYTES).await {
            Ok(text) if text.trim().is_empty() => Err("it is empty".to_owned()),
            Ok(text) => AsciiMetadataValue::try_from(format!("Bearer {}", text.trim()))
                .map_err(|_| "it is not a token: only visible ASCII is allowed".to_owned()),
            Err(reason) => Err(reason),
        };
        match token {
            Ok(mut token) => {
                token.set_sensitive(true);
                Ok(Some(token))
            }
            Err(reason) if self.has_certificate() => {
                tracing::debug!(path = %path.display(), reason, "no token, the certificate must do");
                Ok(None)
            }
            Err(reason) => Err(DialError::Token { path: path.clone(), reason }),
        }
    }
}

impl fmt::Debug for Istiod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Istiod")
            .field("address", &self.address)
            .field("server_name", &self.server_name)
            .field("roots", &self.roots)
            .field("resolve", &self.resolve)
            .field("token", &self.token)
            .field("cluster_id", &self.cluster_id)
            .field(
                "certificate",
                &self.identity.as_ref().map(|identity| identity.current().serial.clone()),
            )
            .field("plaintext", &self.plaintext)
            .finish()
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Pem(pem) => {
                f.debug_tuple("Pem").field(&format_args!("{} bytes", pem.len())).finish()
            }
        }
    }
}
