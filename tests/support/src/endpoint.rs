//! Listeners in front of an application: plain TCP and TLS.

use crate::app::App;
use crate::pki::uris;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;

/// A listener on an ephemeral port of 127.0.0.1; it ends when this is dropped.
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    connections: AtomicU64,
    seen: Mutex<Vec<TlsSeen>>,
    failures: Mutex<Vec<String>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What a TLS client showed.
#[derive(Debug, Clone, Default)]
pub struct TlsSeen {
    /// Server name.
    pub sni: Option<String>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// URI SANs of its certificate.
    pub client: Vec<String>,
}

impl Endpoint {
    /// Plain TCP.
    pub async fn plain(app: impl Into<App>) -> Self {
        Self::listen(app.into(), None).await
    }

    /// TLS.
    pub async fn tls(app: impl Into<App>, config: Arc<ServerConfig>) -> Self {
        Self::listen(app.into(), Some(config)).await
    }

    async fn listen(app: App, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state: Arc<State> = Arc::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let serving = tokio::spawn(serve(shared.clone(), app.clone(), tls.clone(), tcp));
                shared.tasks.lock().unwrap().push(serving.abort_handle());
            }
        });
        Endpoint { addr, state, task }
    }

    /// TCP connections so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// What TLS clients showed, in order.
    pub fn tls_seen(&self) -> Vec<TlsSeen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Handshakes that failed, and why.
    pub fn tls_failures(&self) -> Vec<String> {
        self.state.failures.lock().unwrap().clone()
    }

    /// Drops all connections.
    pub fn drop_connections(&self) {
        for task in self.state.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
        self.drop_connections();
    }
}

async fn serve(state: Arc<State>, app: App, tls: Option<Arc<ServerConfig>>, tcp: TcpStream) {
    let _ = tcp.set_nodelay(true);
    let Some(config) = tls else {
        return app.serve(tcp).await;
    };
    match TlsAcceptor::from(config).accept(tcp).await {
        Ok(stream) => {
            let session = stream.get_ref().1;
            state.seen.lock().unwrap().push(TlsSeen {
                sni: session.server_name().map(str::to_owned),
                alpn: session
                    .alpn_protocol()
                    .map(|name| String::from_utf8_lossy(name).into_owned()),
                client: session
                    .peer_certificates()
                    .and_then(|chain| chain.first())
                    .map(uris)
                    .unwrap_or_default(),
            });
            app.serve(stream).await;
        }
        Err(error) => state.failures.lock().unwrap().push(error.to_string()),
    }
}

/// A port on which every connection is refused, and which nobody else gets.
pub struct DeadPort {
    /// Where nobody listens.
    pub addr: SocketAddr,
    _socket: TcpSocket,
}

impl DeadPort {
    /// On 127.0.0.1.
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        DeadPort { addr: socket.local_addr().unwrap(), _socket: socket }
    }
}

impl Default for DeadPort {
    fn default() -> Self {
        Self::new()
    }
}

/// A port that accepts connections and never says anything.
pub struct SilentPort {
    /// Where it listens.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl SilentPort {
    /// On 127.0.0.1.
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((tcp, _)) = listener.accept().await {
                kept.push(tcp);
            }
        });
        SilentPort { addr, task }
    }
}

impl Drop for SilentPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}
