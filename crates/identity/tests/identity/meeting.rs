//! Two ends of one TLS connection over loopback, and what each makes of the other.

use std::io;
use std::sync::Arc;

use cairn_identity::dev::PemBundle;
use cairn_identity::{ExpectedPeers, Identity, PeerIdentity, PeerRefusal};
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub struct Pair {
    pub server: server::TlsStream<TcpStream>,
    pub client: client::TlsStream<TcpStream>,
}

/// What each end says of the other when they do not come together.
#[derive(Debug)]
pub struct Failure {
    pub server: Option<PeerRefusal>,
    pub client: Option<PeerRefusal>,
}

/// Connects both ends; done when each has read a byte of the other, because a TLS 1.3 client learns only from its first
/// read what the server makes of its certificate.
pub async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Result<Pair, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(server).accept(tcp).await?;
        greet(&mut stream).await?;
        Ok(stream)
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let mut stream = TlsConnector::from(client).connect(name, tcp).await?;
        greet(&mut stream).await?;
        Ok(stream)
    };
    let (server, client): (io::Result<_>, io::Result<_>) = tokio::join!(accept, connect);
    match (server, client) {
        (Ok(server), Ok(client)) => Ok(Pair { server, client }),
        (server, client) => Err(Failure {
            server: server.err().map(|error| PeerRefusal::from_io(&error)),
            client: client.err().map(|error| PeerRefusal::from_io(&error)),
        }),
    }
}

/// Sends a byte and reads one.
pub async fn greet<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
) -> io::Result<()> {
    stream.write_all(b"x").await?;
    stream.flush().await?;
    stream.read_u8().await?;
    Ok(())
}

impl Pair {
    /// Whether both directions still carry bytes.
    pub async fn is_alive(&mut self) -> bool {
        let (server, client) = tokio::join!(greet(&mut self.server), greet(&mut self.client));
        server.is_ok() && client.is_ok()
    }

    /// Who the server says the client is.
    pub fn client_identity(&self) -> PeerIdentity {
        PeerIdentity::from_certificates(
            self.server.get_ref().1.peer_certificates().unwrap_or_default(),
        )
        .unwrap()
    }

    /// Who the client says the server is.
    pub fn server_identity(&self) -> PeerIdentity {
        PeerIdentity::from_certificates(
            self.client.get_ref().1.peer_certificates().unwrap_or_default(),
        )
        .unwrap()
    }
}

pub fn expecting(identity: &Identity) -> ExpectedPeers {
    ExpectedPeers::one(identity.current().id.clone())
}

/// The configuration of `identity`, with whatever certificate stands in `bundle`.
pub fn server_with(identity: &Identity, bundle: &PemBundle) -> Arc<ServerConfig> {
    let mut config = identity.server_config().as_ref().clone();
    config.cert_resolver = Arc::new(SingleCertAndKey::from(certified(bundle)));
    Arc::new(config)
}

/// The configuration of `identity`, with whatever certificate stands in `bundle`, or none.
pub fn client_with(
    identity: &Identity,
    expected: &ExpectedPeers,
    bundle: Option<&PemBundle>,
) -> Arc<ClientConfig> {
    let mut config = identity.client_config(expected).as_ref().clone();
    config.client_auth_cert_resolver = match bundle {
        Some(bundle) => Arc::new(SingleCertAndKey::from(certified(bundle))),
        None => Arc::new(NoCertificate),
    };
    Arc::new(config)
}

/// The key need not be the certificate's.
fn certified(bundle: &PemBundle) -> CertifiedKey {
    let chain = CertificateDer::pem_slice_iter(bundle.cert_chain.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::new(chain, provider.key_provider.load_private_key(key).unwrap())
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
