//! One dial: resolve, connect, TLS. Each step that fails says which it was and what to do.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;

use super::offer::{Offer, Offered};
use super::{CONNECT_TIMEOUT, Istiod, Roots};
use crate::credentials::{self, MaterialPart};
use crate::tls;

/// Largest file of roots in bytes.
const MAX_ROOTS_BYTES: u64 = 1024 * 1024;
/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// An open connection to istiod, on which HTTP/2 can begin.
pub(super) type Connection = Either<TcpStream, Offered>;

/// Why istiod cannot be called. `Display` names the address or file and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The address is not `host:port`.
    #[error(
        "the address of istiod {address:?} cannot be used: {reason}; write host:port, for example istiod.istio-system.svc:15012"
    )]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The name to verify is neither a DNS name nor an IP address.
    #[error(
        "istiod at {address} cannot be verified as {name:?}: it is neither a DNS name nor an IP address; correct the name"
    )]
    ServerName {
        /// The address.
        address: String,
        /// The name.
        name: String,
    },
    /// The host has no address.
    #[error(
        "istiod at {address}: the name cannot be resolved: {reason}; check that its Service exists and that DNS answers in this pod"
    )]
    Resolve {
        /// The address.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// No connection came about.
    #[error(
        "istiod at {address}: no connection to {tried}: {reason}; check that istiod runs and that no network policy is between"
    )]
    Connect {
        /// The address.
        address: String,
        /// The addresses that were tried.
        tried: String,
        /// What the system said of the last one.
        reason: String,
    },
    /// The roots cannot be read, or hold no root.
    #[error(
        "the roots for istiod {source_name} cannot be used: {reason}; they come from the ConfigMap istio-ca-root-cert, which istiod writes into each namespace"
    )]
    Roots {
        /// The file, or a word for PEM given directly.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
    /// The TLS handshake failed, or istiod is not who it should be.
    #[error("istiod at {address} ({at}): the TLS handshake failed: {reason}")]
    Tls {
        /// The address.
        address: String,
        /// The address that was dialled.
        at: SocketAddr,
        /// What is wrong and what to do.
        reason: String,
    },
    /// HTTP/2 did not begin.
    #[error(
        "istiod at {address}: HTTP/2 did not begin: {reason}; check that the port is istiod's gRPC port (15012)"
    )]
    Http2 {
        /// The address.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The token cannot be read, and there is no certificate to show instead.
    #[error("the token {} cannot be used: {reason}; mount a projected service account token with the audience istio-ca there", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cluster's id cannot stand in a header.
    #[error(
        "the cluster id {cluster_id:?} cannot be sent; CLUSTER_ID may have visible ASCII characters only"
    )]
    ClusterId {
        /// The id.
        cluster_id: String,
    },
}

impl DialError {
    /// The dial that failed behind another error, such as a `tonic::Status`: a channel dials again by itself, and the
    /// reason is in the source chain of the call that needed it.
    pub fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source())
            .find_map(|error| error.downcast_ref())
    }
}

impl Istiod {
    /// Opens one connection within [`CONNECT_TIMEOUT`].
    pub(super) async fn dial(&self) -> Result<Connection, DialError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        // Cheap and common mistakes first: with bad roots nobody needs to be dialled.
        let tls = match self.plaintext {
            true => None,
            false => Some((self.verified_name()?, self.roots.load().await?)),
        };
        let addresses = self.addresses(deadline).await?;
        let (stream, at) = self.connect(&addresses, deadline).await?;
        match tls {
            Some((name, roots)) => {
                self.handshake(stream, at, name, roots, deadline).await.map(Either::Right)
            }
            None => Ok(Either::Left(stream)),
        }
    }

    fn verified_name(&self) -> Result<ServerName<'static>, DialError> {
        let bad = |reason: &str| DialError::Address {
            address: self.address.clone(),
            reason: reason.to_owned(),
        };
        let (host, _) = host_and_port(&self.address).map_err(bad)?;
        let name = self.server_name.as_deref().unwrap_or(host);
        let absolute = name.strip_suffix('.').unwrap_or(name);
        ServerName::try_from(absolute.to_owned()).map_err(|_| DialError::ServerName {
            address: self.address.clone(),
            name: name.to_owned(),
        })
    }

    async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
        if let Some(address) = self.resolve.of(&self.address) {
            return Ok(vec![address]);
        }
        let failed = |reason: String| DialError::Resolve { address: self.address.clone(), reason };
        let (host, port) = host_and_port(&self.address).map_err(|reason| DialError::Address {
            address: self.address.clone(),
            reason: reason.to_owned(),
        })?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let found = timeout_at(deadline, tokio::net::lookup_host((host, port)))
            .await
            .map_err(|_| failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<_> = found.take(MAX_ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        Ok(addresses)
    }

    /// Tries one address after the other. Each has an equal share of the time that is left, so one that does not answer
    /// leaves time for the next.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        let mut reason = "there is no address".to_owned();
        for (index, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match timeout_at(Instant::now() + left / others, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Without it small messages wait for acknowledgements; the connection works all the same.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, *address));
                }
                Ok(Err(error)) => reason = error.to_string(),
                Err(_) => reason = format!("no answer within {}", seconds(left / others)),
            }
        }
        let tried: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        Err(DialError::Connect { address: self.address.clone(), tried: tried.join(", "), reason })
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        at: SocketAddr,
        name: ServerName<'static>,
        roots: RootCertStore,
        deadline: Instant,
    ) -> Result<Offered, DialError> {
        let offer = self.offer().await;
        let failed = |reason| DialError::Tls { address: self.address.clone(), at, reason };
        let config = client_config(roots, offer.as_ref());
        let wanted = name.to_str().into_owned();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = match timeout_at(deadline, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                if let Some(offer) = &offer
                    && refused_certificate(&error)
                {
                    offer.refused();
                }
                return Err(failed(handshake_reason(&error, &wanted, &self.roots)));
            }
            Err(_) => {
                return Err(failed(format!(
                    "no answer within {} s; check that the port speaks TLS",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
        };
        if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
            return Err(failed(
                "the server does not speak HTTP/2 (ALPN h2); check that the port is istiod's gRPC port (15012)"
                    .to_owned(),
            ));
        }
        Ok(Offered::new(stream, offer))
    }

    /// The certificate to show: none that has ended, because a server that looks at it would refuse the connection, and
    /// none in the dial after a refusal when there is a token.
    async fn offer(&self) -> Option<Offer> {
        let identity = self.identity.as_ref()?;
        let credentials = identity.current();
        credentials.check_validity(SystemTime::now()).ok()?;
        let offer = Offer::new(identity.clone(), credentials);
        if offer.take_refusal() && self.token_is_there().await {
            tracing::info!(
                address = self.address,
                "istiod ended the last connection that showed the certificate, this one shows the token alone"
            );
            return None;
        }
        Some(offer)
    }

    async fn token_is_there(&self) -> bool {
        match &self.token {
            Some(path) => tokio::fs::metadata(path).await.is_ok_and(|file| file.len() > 0),
            None => false,
        }
    }
}

impl Roots {
    async fn load(&self) -> Result<RootCertStore, DialError> {
        let failed = |reason| DialError::Roots { source_name: self.name(), reason };
        let pem = match self {
            Self::File(path) => read_text(path, MAX_ROOTS_BYTES).await.map_err(failed)?,
            Self::Pem(pem) => pem.clone(),
        };
        let roots =
            credentials::certificates(pem.as_bytes(), MaterialPart::Roots, credentials::MAX_ROOTS)
                .and_then(|roots| credentials::root_store(&roots))
                .map_err(|error| failed(error.to_string()))?;
        Ok(roots)
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Pem(_) => "(given as PEM)".to_owned(),
        }
    }
}

/// Splits `host:port`; the host of an IPv6 address comes without its brackets.
pub(super) fn host_and_port(text: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("no port")?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or("a port that is not between 1 and 65535")?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) => match bare.parse::<std::net::Ipv6Addr>() {
            Ok(_) => bare,
            Err(_) => return Err("no IPv6 address in its brackets"),
        },
        None if host.contains(':') => return Err("an IPv6 address without brackets"),
        None => host,
    };
    if host.is_empty() {
        return Err("no host");
    }
    if host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#')) {
        return Err("a character in its host that no host name has");
    }
    Ok((host, port))
}

/// Reads a text file of at most `limit` bytes; errors leave the path to the caller.
pub(super) async fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let read = async {
        let metadata = tokio::fs::metadata(path).await?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut text = String::new();
        File::open(path).await?.take(limit + 1).read_to_string(&mut text).await?;
        if text.len() as u64 > limit {
            return Err(io::Error::other(format!("it is larger than {limit} bytes")));
        }
        Ok(text)
    };
    read.await.map_err(|error| error.to_string())
}

/// The messages of an error and of what is behind it.
pub(crate) fn reasons(error: &(dyn Error + 'static)) -> String {
    let mut messages: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let message = error.to_string();
        if messages.last().is_none_or(|last| !last.contains(&message)) {
            messages.push(message);
        }
    }
    messages.join(": ")
}

fn client_config(roots: RootCertStore, offer: Option<&Offer>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("the provider has cipher suites and key exchange groups of TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let mut config = match offer {
        Some(offer) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(offer.certified())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    config
}

/// Whether istiod's alert is about our certificate.
fn refused_certificate(error: &io::Error) -> bool {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        alert,
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ))
    )
}

fn handshake_reason(error: &io::Error, wanted: &str, roots: &Roots) -> String {
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return format!(
            "{error}; check that the port speaks TLS and that istiod is not restarting"
        );
    };
    match inner {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => format!(
            "its certificate is not issued by a root of {}; the roots must be those of this istiod",
            roots.name()
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "its certificate is not for {wanted}; use a name that the certificate has: {inner}"
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => format!("its certificate has expired: {inner}; restart istiod, or check the clocks"),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => format!("its certificate is not valid yet: {inner}; check the clocks"),
        rustls::Error::AlertReceived(alert) => {
            format!("istiod refused us with the TLS alert {alert:?}; see istiod's log")
        }
        rustls::Error::InvalidMessage(_) => {
            format!("{inner}; check that the port speaks TLS (15012, not 15010)")
        }
        inner => format!("{inner}; check that the port is istiod's TLS port (15012)"),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hosts_and_ports() {
        assert_eq!(
            host_and_port("istiod.istio-system.svc:15012"),
            Ok(("istiod.istio-system.svc", 15012))
        );
        assert_eq!(host_and_port("[::1]:1"), Ok(("::1", 1)));
        assert_eq!(host_and_port("10.0.0.1:65535"), Ok(("10.0.0.1", 65535)));
        for bad in
            ["", "a", "a:", "a:x", "a:0", "::1:1", "[a]:1", "[]:1", "a b:1", "a/b:1", "u@a:1"]
        {
            assert!(host_and_port(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn found_behind_other_errors() {
        let error = DialError::ClusterId { cluster_id: "x".to_owned() };
        let wrapped = io::Error::other(io::Error::other(error.clone()));
        // io::Error's source is the source of what it wraps, so one layer of it stays invisible.
        let status = tonic::Status::from_error(Box::new(error.clone()));
        assert_eq!(DialError::within(&status), Some(&error));
        assert_eq!(DialError::within(&io::Error::other("x")), None);
        drop(wrapped);
    }
}
