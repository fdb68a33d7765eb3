//! A client as ztunnel is one: mTLS, HTTP/2, CONNECT.

use crate::pki::Cert;
use crate::stream::H2Stream;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One HBONE connection.
pub struct HboneClient {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    closed: Arc<AtomicBool>,
    /// The waypoint's certificate.
    pub server_cert: CertificateDer<'static>,
    /// Our end of the TCP connection: `source.ip` as the waypoint sees it.
    pub local_addr: SocketAddr,
}

/// What a client advertises.
#[derive(Debug, Clone, Copy)]
pub struct ClientOptions {
    /// SETTINGS_INITIAL_WINDOW_SIZE, bytes.
    pub stream_window: u32,
    /// Connection window, bytes.
    pub connection_window: u32,
    /// SETTINGS_MAX_FRAME_SIZE, bytes.
    pub max_frame_size: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, bytes.
    pub max_header_list_size: u32,
}

/// ztunnel's values (hbone.md §4).
impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            max_header_list_size: 16 << 10,
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectFailure {
    /// TCP.
    Tcp(io::Error),
    /// The TLS handshake failed at our end.
    Tls(io::Error),
    /// The server ended it after our end of the handshake: what it thinks of our certificate.
    Refused(String),
}

/// Why there is no tunnel.
#[derive(Debug)]
pub enum OpenFailure {
    /// CONNECT was answered with something else than 200.
    Status(StatusCode, HeaderMap),
    /// The stream or the connection failed.
    H2(h2::Error),
}

impl OpenFailure {
    /// The status, or 0.
    pub fn status(&self) -> u16 {
        match self {
            OpenFailure::Status(status, _) => status.as_u16(),
            OpenFailure::H2(_) => 0,
        }
    }
}

/// TLS to a waypoint; no SNI, as ztunnel.
pub async fn connect_tls(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectFailure> {
    let tcp = TcpStream::connect(addr).await.map_err(ConnectFailure::Tcp)?;
    tcp.set_nodelay(true).map_err(ConnectFailure::Tcp)?;
    TlsConnector::from(config)
        .connect(ServerName::IpAddress(addr.ip().into()), tcp)
        .await
        .map_err(ConnectFailure::Tls)
}

impl HboneClient {
    /// Connects as `cert` to a waypoint that must be `expected`, and waits until it has accepted us.
    pub async fn connect(
        addr: SocketAddr,
        cert: &Cert,
        expected: &str,
    ) -> Result<Self, ConnectFailure> {
        Self::connect_with(addr, cert.hbone_client(expected), ClientOptions::default()).await
    }

    /// As [`HboneClient::connect`], with anything different.
    pub async fn connect_with(
        addr: SocketAddr,
        config: Arc<ClientConfig>,
        options: ClientOptions,
    ) -> Result<Self, ConnectFailure> {
        let tls = connect_tls(addr, config).await?;
        let local_addr = tls.get_ref().0.local_addr().map_err(ConnectFailure::Tcp)?;
        let server_cert = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .unwrap()
            .clone()
            .into_owned();
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(options.stream_window)
            .initial_connection_window_size(options.connection_window)
            .max_frame_size(options.max_frame_size)
            .max_header_list_size(options.max_header_list_size)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(|error| ConnectFailure::Refused(error.to_string()))?;
        let mut ping = connection.ping_pong().unwrap();
        let closed = Arc::new(AtomicBool::new(false));
        let flag = closed.clone();
        let driver = tokio::spawn(async move {
            let result = connection.await;
            flag.store(true, Ordering::SeqCst);
            result
        });
        // TLS 1.3: the server's verdict on our certificate comes after our end is done.
        if let Err(error) = ping.ping(h2::Ping::opaque()).await {
            let error = match driver.await {
                Ok(Err(cause)) => cause,
                _ => error,
            };
            return Err(ConnectFailure::Refused(error.to_string()));
        }
        Ok(HboneClient { send, driver, closed, server_cert, local_addr })
    }

    /// Opens a tunnel with nothing but the authority.
    pub async fn open(&self, authority: &str) -> Result<H2Stream, OpenFailure> {
        self.open_with(authority, &[]).await.map(|(stream, _)| stream)
    }

    /// Opens a tunnel with more headers; also returns those of the response.
    pub async fn open_with(
        &self,
        authority: &str,
        headers: &[(&str, &str)],
    ) -> Result<(H2Stream, HeaderMap), OpenFailure> {
        let mut request = Request::builder().method(Method::CONNECT).uri(authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let mut send = self.send.clone().ready().await.map_err(OpenFailure::H2)?;
        let (response, stream) = send.send_request(request, false).map_err(OpenFailure::H2)?;
        let response = response.await.map_err(OpenFailure::H2)?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(OpenFailure::Status(head.status, head.headers));
        }
        Ok((H2Stream::new(stream, body), head.headers))
    }

    /// The h2 client itself.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// The connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// New streams are refused: a GOAWAY arrived, or the connection is gone.
    pub async fn is_draining(&self) -> bool {
        self.send.clone().ready().await.is_err()
    }

    /// Cuts the TCP connection without a word.
    pub fn abort(&self) {
        self.driver.abort();
    }
}
