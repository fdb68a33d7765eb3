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
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
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

/// Somebody who ends HBONE. Connections end when this is dropped.
pub struct Server {
    shared: Arc<Shared>,
    leave: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct Shared {
    apps: BTreeMap<SocketAddr, App>,
    seen: Mutex<Vec<ConnectSeen>>,
    connections: Mutex<JoinSet<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.connections.lock().unwrap().abort_all();
    }
}

impl Server {
    /// Listens at `at`; a CONNECT to one of the addresses in `apps` is answered by it.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(
        at: SocketAddr,
        identity: &PodIdentity,
        apps: BTreeMap<SocketAddr, App>,
    ) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let acceptor = TlsAcceptor::from(identity.server());
        let shared =
            Arc::new(Shared { apps, seen: Mutex::default(), connections: Mutex::default() });
        let (leave, leaving) = watch::channel(false);
        let accept = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let connection = serve(acceptor.clone(), tcp, accept.clone(), leaving.clone());
                let mut connections = accept.connections.lock().unwrap();
                connections.spawn(connection);
                while connections.try_join_next().is_some() {}
            }
        });
        Server { shared, leave, task }
    }

    /// Ends it, and waits until the port is free.
    pub async fn end(mut self) {
        self.task.abort();
        let _aborted = (&mut self.task).await;
    }

    /// GOAWAY on all connections; tunnels go on.
    pub fn leave(&self) {
        self.leave.send_replace(true);
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        let mut connections = self.shared.connections.lock().unwrap();
        while connections.try_join_next().is_some() {}
        connections.len()
    }

    /// CONNECTs so far.
    pub fn seen(&self) -> Vec<ConnectSeen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

/// A pod of the mesh: its ztunnel, and applications behind it by port. It ends when this is dropped.
pub struct Pod {
    ip: IpAddr,
    identity: PodIdentity,
    server: Server,
}

impl Pod {
    /// Listens on the pod's address.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(ip: IpAddr, identity: PodIdentity, apps: BTreeMap<u16, App>) -> Self {
        let apps = apps.into_iter().map(|(port, app)| (SocketAddr::new(ip, port), app)).collect();
        let server = Server::start(SocketAddr::new(ip, PORT), &identity, apps).await;
        Pod { ip, identity, server }
    }

    /// Ends it, and waits until the port is free.
    pub async fn end(self) {
        self.server.end().await;
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
        self.server.seen()
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    shared: Arc<Shared>,
    mut leaving: watch::Receiver<bool>,
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
    let mut tunnels = JoinSet::new(); // they end with the connection
    let mut told = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Ok(_) = leaving.wait_for(|leaving| *leaving), if !told => {
                connection.graceful_shutdown();
                told = true;
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let authority = request.uri().to_string();
        shared.seen.lock().unwrap().push(ConnectSeen { authority, client: client.clone() });
        tunnels.spawn(answer(request, respond, shared.clone()));
        while tunnels.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
) {
    let target = request.uri().to_string().parse::<SocketAddr>().ok();
    let app = target
        .filter(|_| request.method() == Method::CONNECT)
        .and_then(|target| shared.apps.get(&target).cloned());
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

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// A connection to a waypoint on the usual port, which must be `expected`.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub async fn connect(&self, waypoint: IpAddr, expected: &str) -> Result<Connection, Failure> {
        self.connect_to(SocketAddr::new(waypoint, PORT), expected).await
    }

    /// A connection to a waypoint that listens there, which must be `expected`.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub async fn connect_to(
        &self,
        waypoint: SocketAddr,
        expected: &str,
    ) -> Result<Connection, Failure> {
        let connect = |error: String| Failure::Connect(error);
        let socket = TcpSocket::new_v4().map_err(|e| connect(e.to_string()))?;
        socket.bind(SocketAddr::new(self.ip, 0)).map_err(|e| connect(e.to_string()))?;
        let tcp = socket.connect(waypoint).await;
        let tcp = tcp.map_err(|e| connect(e.to_string()))?;
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(self.identity.client(expected))
            .connect(ServerName::IpAddress(waypoint.ip().into()), tcp)
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
    /// It takes more tunnels: the waypoint has neither ended it nor announced that it will.
    pub async fn is_ready(&self) -> bool {
        self.send.clone().ready().await.is_ok()
    }

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
