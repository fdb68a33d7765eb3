//! What ztunnel does for pods: HBONE from a pod's address, and HBONE to one.

use crate::identity::PodIdentity;
use bytes::Bytes;
use cairn_test_support::app::App;
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::pki::uris;
use cairn_test_support::stream::H2Stream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, StatusCode};
use rustls_pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Where every HBONE endpoint listens.
pub const PORT: u16 = 15008;

/// A CONNECT as a pod got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSeen {
    /// `:authority`: the pod's address and the application's port.
    pub authority: String,
    /// URI SAN of who opened it.
    pub client: String,
}

/// A pod of the mesh: its ztunnel, and applications behind it by port. It ends when this is dropped.
pub struct Pod {
    ip: IpAddr,
    identity: PodIdentity,
    seen: Arc<Mutex<Vec<ConnectSeen>>>,
    task: JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pod {
    /// Listens on the pod's address.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(ip: IpAddr, identity: PodIdentity, apps: BTreeMap<u16, App>) -> Self {
        let listener = TcpListener::bind((ip, PORT)).await.unwrap();
        let acceptor = TlsAcceptor::from(identity.server());
        let seen: Arc<Mutex<Vec<ConnectSeen>>> = Arc::default();
        let shared = (Arc::new(apps), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, (apps, seen)) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move { serve(ip, acceptor, tcp, apps, seen).await });
            }
        });
        Pod { ip, identity, seen, task }
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Who it is.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// CONNECTs so far.
    pub fn seen(&self) -> Vec<ConnectSeen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    ip: IpAddr,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    apps: Arc<BTreeMap<u16, App>>,
    seen: Arc<Mutex<Vec<ConnectSeen>>>,
) {
    let _ = tcp.set_nodelay(true);
    let Ok(tls) = acceptor.accept(tcp).await else { return };
    let client = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| uris(leaf).pop())
        .unwrap_or_default();
    let handshake = h2::server::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(tls)
        .await;
    let Ok(mut connection) = handshake else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let authority = request.uri().to_string();
        seen.lock().unwrap().push(ConnectSeen { authority, client: client.clone() });
        tokio::spawn(answer(ip, request, respond, apps.clone()));
    }
}

async fn answer(
    ip: IpAddr,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    apps: Arc<BTreeMap<u16, App>>,
) {
    let target = request.uri().to_string().parse::<SocketAddr>().ok();
    let app = target
        .filter(|target| target.ip() == ip && request.method() == Method::CONNECT)
        .and_then(|target| apps.get(&target.port()).cloned());
    let status = if app.is_some() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let response = http::Response::builder().status(status).body(()).unwrap();
    let Ok(send) = respond.send_response(response, app.is_none()) else { return };
    match app {
        Some(app) => app.serve(H2Stream::new(send, request.into_body())).await,
        None => respond.send_reset(Reason::NO_ERROR),
    }
}

/// A pod that calls others through a waypoint.
#[derive(Clone)]
pub struct Client {
    ip: IpAddr,
    identity: PodIdentity,
}

/// Why a request was not answered by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No connection to the waypoint.
    Connect(String),
    /// The CONNECT was refused with this status.
    Refused(u16),
    /// The tunnel broke, or did not speak HTTP.
    Broken(String),
}

impl Client {
    /// A pod with that address.
    pub fn new(ip: IpAddr, identity: PodIdentity) -> Self {
        Client { ip, identity }
    }

    /// Who it is.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// A connection to a waypoint, which must be `expected`.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub async fn connect(&self, waypoint: IpAddr, expected: &str) -> Result<Connection, Failure> {
        let connect = |error: String| Failure::Connect(error);
        let socket = TcpSocket::new_v4().map_err(|e| connect(e.to_string()))?;
        socket.bind(SocketAddr::new(self.ip, 0)).map_err(|e| connect(e.to_string()))?;
        let tcp = socket.connect(SocketAddr::new(waypoint, PORT)).await;
        let tcp = tcp.map_err(|e| connect(e.to_string()))?;
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(self.identity.client(expected))
            .connect(ServerName::IpAddress(waypoint.into()), tcp)
            .await
            .map_err(|error| connect(format!("TLS: {error}")))?;
        let certificate = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(cairn_test_support::pki::serial)
            .unwrap_or_default();
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .enable_push(false)
            .handshake(tls)
            .await
            .map_err(|e| connect(e.to_string()))?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Connection { send, certificate, driver })
    }
}

/// An HBONE connection to a waypoint.
pub struct Connection {
    send: SendRequest<Bytes>,
    /// Serial number of the waypoint's certificate.
    pub certificate: String,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// A tunnel to `authority`, a VIP and port.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn open(&self, authority: &str) -> Result<H2Stream, Failure> {
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap();
        let gone = |error: h2::Error| Failure::Broken(error.to_string());
        let mut send =
            self.send.clone().ready().await.map_err(|e| Failure::Connect(e.to_string()))?;
        let (response, stream) = send.send_request(request, false).map_err(gone)?;
        let (head, body) = response.await.map_err(gone)?.into_parts();
        match head.status {
            StatusCode::OK => Ok(H2Stream::new(stream, body)),
            status => Err(Failure::Refused(status.as_u16())),
        }
    }

    /// One `GET` in a tunnel of its own.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn get(
        &self,
        authority: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, Failure> {
        let stream = self.open(authority).await?;
        Http1::new(stream)
            .request("GET", path, headers, b"")
            .await
            .map_err(|error| Failure::Broken(error.to_string()))
    }
}
