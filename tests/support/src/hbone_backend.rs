//! An HBONE endpoint as the ztunnel of a pod is one, in front of an application.

use crate::app::App;
use crate::pki::{Cert, uris};
use crate::stream::H2Stream;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The endpoint; it ends when this is dropped.
pub struct HboneBackend {
    /// Where it listens: the `tunnel_address` of endpoints.
    pub addr: SocketAddr,
    inner: Arc<Inner>,
    listener: Mutex<Listening>,
}

enum Listening {
    Yes(JoinHandle<()>),
    No(TcpSocket),
    Between,
}

struct Inner {
    app: App,
    tls: Mutex<Arc<ServerConfig>>,
    connections: AtomicU64,
    open: AtomicI64,
    failures: Mutex<Vec<String>>,
    connects: Mutex<Vec<ConnectSeen>>,
    tunnels: AtomicI64,
    refuse: AtomicU16,
    refuse_next: AtomicI64,
    reject_streams: AtomicI64,
    held: watch::Sender<bool>,
    commands: Mutex<Vec<mpsc::Sender<Command>>>,
}

#[derive(Clone, Copy)]
enum Command {
    Goaway,
    Drop,
}

/// A CONNECT as it arrived.
#[derive(Debug, Clone)]
pub struct ConnectSeen {
    /// `:authority`.
    pub authority: String,
    /// Other headers.
    pub headers: HeaderMap,
    /// URI SAN of the client.
    pub client: String,
    /// Connections are numbered from 1.
    pub connection: u64,
}

impl HboneBackend {
    /// Listens with `cert`; clients must have a certificate of the same root.
    pub async fn start(cert: &Cert, app: impl Into<App>) -> Self {
        Self::start_with(cert.hbone_server(), app).await
    }

    /// As [`HboneBackend::start`], at an address of one's own choice.
    pub async fn start_at(addr: SocketAddr, cert: &Cert, app: impl Into<App>) -> Self {
        Self::serve(TcpListener::bind(addr).await.unwrap(), cert.hbone_server(), app)
    }

    /// Listens with any TLS configuration.
    pub async fn start_with(tls: Arc<ServerConfig>, app: impl Into<App>) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), tls, app)
    }

    fn serve(listener: TcpListener, tls: Arc<ServerConfig>, app: impl Into<App>) -> Self {
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            app: app.into(),
            tls: Mutex::new(tls),
            connections: AtomicU64::new(0),
            open: AtomicI64::new(0),
            failures: Mutex::default(),
            connects: Mutex::default(),
            tunnels: AtomicI64::new(0),
            refuse: AtomicU16::new(0),
            refuse_next: AtomicI64::new(0),
            reject_streams: AtomicI64::new(0),
            held: watch::Sender::new(false),
            commands: Mutex::default(),
        });
        let task = tokio::spawn(accept(inner.clone(), listener));
        HboneBackend { addr, inner, listener: Mutex::new(Listening::Yes(task)) }
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open and past their handshake.
    pub fn open_connections(&self) -> i64 {
        self.inner.open.load(Ordering::SeqCst)
    }

    /// Tunnels that are open.
    pub fn open_tunnels(&self) -> i64 {
        self.inner.tunnels.load(Ordering::SeqCst)
    }

    /// All CONNECTs so far, the refused ones too.
    pub fn connects(&self) -> Vec<ConnectSeen> {
        self.inner.connects.lock().unwrap().clone()
    }

    /// Handshakes that failed, and why.
    pub fn tls_failures(&self) -> Vec<String> {
        self.inner.failures.lock().unwrap().clone()
    }

    /// Answers every CONNECT with this status; 200 ends it.
    pub fn refuse(&self, status: u16) {
        self.inner.refuse.store(status, Ordering::SeqCst);
        self.inner.refuse_next.store(i64::MAX, Ordering::SeqCst);
    }

    /// Answers the next `count` CONNECTs with this status.
    pub fn refuse_next(&self, status: u16, count: i64) {
        self.inner.refuse.store(status, Ordering::SeqCst);
        self.inner.refuse_next.store(count, Ordering::SeqCst);
    }

    /// Answers the next `count` CONNECTs with RST_STREAM(REFUSED_STREAM).
    pub fn reject_streams(&self, count: i64) {
        self.inner.reject_streams.store(count, Ordering::SeqCst);
    }

    /// CONNECTs wait for their answer until this is taken back.
    pub fn hold_connects(&self, held: bool) {
        self.inner.held.send_replace(held);
    }

    /// Presents another certificate to the connections that come.
    pub fn present(&self, tls: Arc<ServerConfig>) {
        *self.inner.tls.lock().unwrap() = tls;
    }

    /// GOAWAY in two steps on every connection.
    pub fn goaway(&self) {
        self.command(Command::Goaway);
    }

    /// Drops every connection without a word.
    pub fn drop_connections(&self) {
        self.command(Command::Drop);
    }

    fn command(&self, command: Command) {
        self.inner.commands.lock().unwrap().retain(|connection| {
            !matches!(connection.try_send(command), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    /// Refuses connections from here on; those that are open stay. The port stays ours.
    pub async fn stop_listening(&self) {
        let before = std::mem::replace(&mut *self.listener.lock().unwrap(), Listening::Between);
        if let Listening::Yes(task) = before {
            task.abort();
            let _ = task.await;
        }
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.addr).unwrap();
        *self.listener.lock().unwrap() = Listening::No(socket);
    }

    /// Listens again on the same port.
    pub fn listen_again(&self) {
        let mut listener = self.listener.lock().unwrap();
        if let Listening::No(socket) = std::mem::replace(&mut *listener, Listening::Between) {
            let accepting = socket.listen(1024).unwrap();
            *listener = Listening::Yes(tokio::spawn(accept(self.inner.clone(), accepting)));
        }
    }
}

impl Drop for HboneBackend {
    fn drop(&mut self) {
        if let Listening::Yes(task) = &*self.listener.lock().unwrap() {
            task.abort();
        }
        self.command(Command::Drop);
    }
}

async fn accept(inner: Arc<Inner>, listener: TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let connection = inner.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let (sender, commands) = mpsc::channel(64);
        inner.commands.lock().unwrap().push(sender);
        let inner = inner.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(&inner, tcp, connection, commands).await {
                inner.failures.lock().unwrap().push(error.to_string());
            }
        });
    }
}

async fn serve(
    inner: &Arc<Inner>,
    tcp: TcpStream,
    connection: u64,
    mut commands: mpsc::Receiver<Command>,
) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let config = inner.tls.lock().unwrap().clone();
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    let client = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| uris(leaf).pop())
        .unwrap_or_default();
    inner.open.fetch_add(1, Ordering::SeqCst);
    let _open = Decrement(inner.clone(), |inner| &inner.open);
    let handshake = h2::server::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .max_header_list_size(64 << 10)
        .max_concurrent_streams(200)
        .handshake(tls)
        .await;
    let Ok(mut h2) = handshake else {
        return Ok(());
    };
    loop {
        tokio::select! {
            request = h2.accept() => match request {
                Some(Ok((request, respond))) => {
                    let seen = ConnectSeen {
                        authority: request.uri().to_string(),
                        headers: request.headers().clone(),
                        client: client.clone(),
                        connection,
                    };
                    tokio::spawn(answer(inner.clone(), seen, request, respond));
                }
                _ => return Ok(()),
            },
            command = commands.recv() => match command {
                Some(Command::Goaway) => h2.graceful_shutdown(),
                Some(Command::Drop) | None => return Ok(()),
            },
        }
    }
}

/// Counts down when it is dropped, however the task ends.
struct Decrement(Arc<Inner>, fn(&Inner) -> &AtomicI64);

impl Drop for Decrement {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    inner: Arc<Inner>,
    seen: ConnectSeen,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let method = request.method().clone();
    inner.connects.lock().unwrap().push(seen);
    let take = |count: &AtomicI64| {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n > 0).then(|| n - 1)).is_ok()
    };
    if take(&inner.reject_streams) {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let _ = inner.held.subscribe().wait_for(|held| !held).await;
    let status = match inner.refuse.load(Ordering::SeqCst) {
        _ if method != Method::CONNECT => 400,
        0 | 200 => 200,
        status if take(&inner.refuse_next) => status,
        _ => 200,
    };
    let response = Response::builder().status(status).body(()).unwrap();
    if status != 200 {
        let _ = respond.send_response(response, true);
        return;
    }
    let Ok(send) = respond.send_response(response, false) else {
        return;
    };
    inner.tunnels.fetch_add(1, Ordering::SeqCst);
    let _open = Decrement(inner.clone(), |inner| &inner.tunnels);
    inner.app.serve(H2Stream::new(send, request.into_body())).await;
}
