//! Both ends of HBONE on 127.0.0.1, with a throw-away CA.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_hbone::{
    Connect, ConnectHeaders, Drain, Originator, OriginatorConfig, OriginatorCounters, ServeError,
    Terminator, TerminatorConfig, TerminatorCounters, Tunnel, TunnelStream,
};
use cairn_identity::dev::DevCa;
use cairn_identity::{ExpectedPeers, Identity, SpiffeId};
use http::{Method, Request};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const HOUR: Duration = Duration::from_secs(3600);

/// What every client asks for, unless the test cares.
pub const TARGET: &str = "10.0.0.1:80";

pub fn ca() -> DevCa {
    DevCa::new("cluster.local").unwrap()
}

pub fn identity(ca: &DevCa, service_account: &str) -> Identity {
    let id = ca.id("default", service_account).unwrap();
    Identity::fixed(ca.issue(&id, HOUR).unwrap())
}

pub fn expect(identity: &Identity) -> ExpectedPeers {
    ExpectedPeers::one(identity.current().id.clone())
}

pub fn spiffe(service_account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "default", service_account).unwrap()
}

/// Fails a test that hangs.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("the test hangs")
}

/// Waits for a condition that other tasks make true.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never became true: {what}");
}

pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub fn failures(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<(&'static str, u64)> {
    counts.filter(|(_, count)| *count > 0).collect()
}

/// A listener in front of a [`Terminator`].
pub struct Server {
    pub addr: SocketAddr,
    pub identity: Identity,
    pub counters: Arc<TerminatorCounters>,
    pub drain: Arc<Mutex<Drain>>,
    /// TCP connections that were accepted.
    pub accepted: Arc<AtomicUsize>,
    /// How connections ended, in order.
    pub ended: mpsc::Receiver<Result<(), ServeError>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(
        identity: Identity,
        config: TerminatorConfig,
        on_connect: impl FnMut(Connect) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, identity, config, on_connect)
    }

    pub fn start_on(
        listener: TcpListener,
        identity: Identity,
        config: TerminatorConfig,
        on_connect: impl FnMut(Connect) + Clone + Send + 'static,
    ) -> Self {
        let addr = listener.local_addr().unwrap();
        let counters = Arc::new(TerminatorCounters::default());
        let terminator = Terminator::new(identity.clone(), config, Arc::clone(&counters));
        let drain = Arc::new(Mutex::new(Drain::new()));
        let current = Arc::clone(&drain);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let (ends, ended) = mpsc::channel(1000);
        let task = tokio::spawn(async move {
            // Aborting the accept loop cuts its connections.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, peer) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let watch = current.lock().unwrap().watch();
                let (terminator, ends) = (terminator.clone(), ends.clone());
                let on_connect = on_connect.clone();
                connections.spawn(async move {
                    let end = terminator.serve(tcp, peer, watch, on_connect).await;
                    let _ = ends.send(end).await;
                });
            }
        });
        Self { addr, identity, counters, drain, accepted, ended, task }
    }

    pub async fn echo(identity: Identity) -> Self {
        Self::start(identity, TerminatorConfig::default(), echo).await
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Drains the connections so far; those that come later are not drained.
    pub fn drain(&self) {
        std::mem::take(&mut *self.drain.lock().unwrap()).start();
    }

    /// Cuts everything, like a killed process.
    pub fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts and sends everything back, with the end and the reset.
pub fn echo(connect: Connect) {
    // A client may have reset it already.
    if let Ok(tunnel) = connect.accept() {
        tokio::spawn(echo_stream(tunnel.stream));
    }
}

pub async fn echo_stream(stream: TunnelStream) {
    let (mut reader, mut writer) = stream.split();
    while let Some(chunk) = reader.chunk().await {
        match chunk {
            Ok(chunk) => {
                if writer.write_chunk(chunk).await.is_err() {
                    return;
                }
            }
            Err(_) => return writer.reset(h2::Reason::CANCEL),
        }
    }
    let _ = writer.finish();
}

/// Hands every accepted tunnel to the test.
pub fn tunnels() -> (impl FnMut(Connect) + Clone + Send + 'static, mpsc::Receiver<Tunnel>) {
    let (sender, receiver) = mpsc::channel(1000);
    let on_connect = move |connect: Connect| {
        sender.try_send(connect.accept().unwrap()).unwrap();
    };
    (on_connect, receiver)
}

pub fn originator(identity: Identity, config: OriginatorConfig) -> Originator {
    Originator::new(identity, config, Arc::new(OriginatorCounters::default()))
}

pub async fn connect(originator: &Originator, server: &Server) -> TunnelStream {
    originator
        .connect(server.addr, &expect(&server.identity), TARGET, &ConnectHeaders::default())
        .await
        .unwrap()
}

pub async fn tls(client: &Identity, server: &Server) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let config = client.client_config(&expect(&server.identity));
    let name = ServerName::IpAddress(server.addr.ip().into());
    TlsConnector::from(config).connect(name, tcp).await
}

/// An h2 client that does as the test says.
pub struct RawClient {
    pub send: h2::client::SendRequest<Bytes>,
    pub driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl RawClient {
    pub async fn connect(client: &Identity, server: &Server) -> Self {
        Self::with(client, server, &h2::client::Builder::new()).await
    }

    pub async fn with(client: &Identity, server: &Server, builder: &h2::client::Builder) -> Self {
        let tls = tls(client, server).await.unwrap();
        let (send, connection) = builder.handshake(tls).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    /// Opens a stream; the answer comes with the future.
    pub fn open(
        &mut self,
        request: Request<()>,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        self.send.send_request(request, false)
    }

    /// A request and its status.
    pub async fn status(&mut self, request: Request<()>) -> Result<u16, h2::Error> {
        let (response, _body) = self.open(request)?;
        Ok(response.await?.status().as_u16())
    }
}

pub fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

/// Bytes that differ at every place.
pub fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
