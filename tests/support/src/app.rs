//! What stands behind an endpoint: a scripted HTTP backend, or something that speaks plain TCP.

use crate::backend::Backend;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// An application; clones share their counters.
#[derive(Clone)]
pub enum App {
    /// HTTP/1.1 and h2c.
    Http(Backend),
    /// The same in TLS.
    Tls(Backend, Arc<ServerConfig>),
    /// Anything else.
    Tcp(TcpApp),
    /// What listens there, in plaintext.
    At(SocketAddr),
}

impl App {
    /// Serves one connection to its end.
    pub async fn serve<S>(&self, io: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self {
            App::Http(backend) => backend.serve(io).await,
            App::Tls(backend, config) => {
                if let Ok(io) = TlsAcceptor::from(config.clone()).accept(io).await {
                    backend.serve(io).await;
                }
            }
            App::Tcp(app) => app.serve(io).await,
            App::At(addr) => {
                let mut io = io;
                if let Ok(mut there) = TcpStream::connect(addr).await {
                    let _either_end_is_gone =
                        tokio::io::copy_bidirectional(&mut io, &mut there).await;
                }
            }
        }
    }
}

impl From<&Backend> for App {
    fn from(backend: &Backend) -> Self {
        App::Http(backend.clone())
    }
}

impl From<&TcpApp> for App {
    fn from(app: &TcpApp) -> Self {
        App::Tcp(app.clone())
    }
}

/// How a TCP application behaves.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Sends back what it gets, then ends its direction after the client has.
    Echo,
    /// Speaks first, then echoes.
    ServerFirst(&'static str),
    /// Says nothing until the client has ended its direction, then says how many bytes came.
    Count,
    /// Speaks, ends its direction at once, and goes on reading.
    SayThenRead(&'static str),
    /// Speaks after the first byte, then drops the connection without ending it in order.
    Abort(&'static str),
    /// Never reads and never writes.
    Silent,
}

/// A TCP application; clones share their counters.
#[derive(Clone)]
pub struct TcpApp {
    behaviour: Behaviour,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicU64,
    ended: AtomicU64,
    broken: AtomicU64,
    received: Mutex<Vec<u8>>,
}

impl TcpApp {
    /// With counters at zero.
    pub fn new(behaviour: Behaviour) -> Self {
        TcpApp { behaviour, state: Arc::default() }
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections that the client's side ended in order.
    pub fn ended(&self) -> u64 {
        self.state.ended.load(Ordering::SeqCst)
    }

    /// Connections that broke.
    pub fn broken(&self) -> u64 {
        self.state.broken.load(Ordering::SeqCst)
    }

    /// All bytes so far, of all connections.
    pub fn received(&self) -> Vec<u8> {
        self.state.received.lock().unwrap().clone()
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut io: S) {
        self.state.connections.fetch_add(1, Ordering::SeqCst);
        let counter = match self.converse(&mut io).await {
            Ok(()) => &self.state.ended,
            Err(_) => &self.state.broken,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&self, io: &mut S) -> io::Result<()> {
        match self.behaviour {
            Behaviour::Echo => {
                self.read_all(io, true).await?;
                io.shutdown().await
            }
            Behaviour::ServerFirst(greeting) => {
                io.write_all(greeting.as_bytes()).await?;
                io.flush().await?;
                self.read_all(io, true).await?;
                io.shutdown().await
            }
            Behaviour::Count => {
                let count = self.read_all(io, false).await?;
                io.write_all(format!("{count} bytes").as_bytes()).await?;
                io.shutdown().await
            }
            Behaviour::SayThenRead(text) => {
                io.write_all(text.as_bytes()).await?;
                io.shutdown().await?;
                self.read_all(io, false).await?;
                Ok(())
            }
            Behaviour::Abort(text) => {
                io.read_u8().await?;
                io.write_all(text.as_bytes()).await?;
                io.flush().await
            }
            Behaviour::Silent => std::future::pending().await,
        }
    }

    async fn read_all<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: &mut S,
        echo: bool,
    ) -> io::Result<u64> {
        let mut buf = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            let count = io.read(&mut buf).await?;
            if count == 0 {
                return Ok(total);
            }
            total += count as u64;
            {
                let mut received = self.state.received.lock().unwrap();
                if received.len() < 1 << 20 {
                    received.extend_from_slice(&buf[..count]);
                }
            }
            if echo {
                io.write_all(&buf[..count]).await?;
                io.flush().await?;
            }
        }
    }
}
