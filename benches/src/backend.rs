//! The backend: `benches backend`. All pods of the benchmark in one process and one thread: an HBONE
//! endpoint like ztunnel's, and the same applications on plain ports.
//!
//! What is spoken goes by the port: HTTP/1.1, HTTP/2 or bytes that come back. The answer's size is
//! what the request's query asks for: `?bytes=1024`.

mod http1;
mod http2;
mod pipe;

use crate::certs::Files;
use crate::world::{POD_ECHO, POD_HTTP1, POD_HTTP2};
use anyhow::{Context, Result};
use cairn_hbone::{Connect, Drain, Target, Terminator, TerminatorConfig, TerminatorCounters};
use clap::Args;
use http::StatusCode;
use pipe::{Pipe, TcpPipe};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Arguments of `backend`.
#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    /// Certificate chain of all pods, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Certificates of the CAs that are trusted, PEM
    #[arg(long, value_name = "FILE")]
    pub roots: PathBuf,
    /// Where HBONE is accepted
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub hbone: SocketAddr,
    /// Where HTTP/1.1 is spoken without a tunnel
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub http1: SocketAddr,
    /// Where HTTP/2 is spoken without a tunnel
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub http2: SocketAddr,
    /// Where bytes come back without a tunnel
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub echo: SocketAddr,
}

/// What the backend prints when it accepts: one JSON line.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Addresses {
    /// HBONE.
    pub hbone: SocketAddr,
    /// HTTP/1.1.
    pub http1: SocketAddr,
    /// HTTP/2.
    pub http2: SocketAddr,
    /// Echo.
    pub echo: SocketAddr,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Application {
    Http1,
    Http2,
    Echo,
}

/// Serves until it is ended.
pub fn run(args: &BackendArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &BackendArgs) -> Result<()> {
    let BackendArgs { cert, key, roots, hbone, http1, http2, echo } = args;
    let files = Files { cert: cert.clone(), key: key.clone(), roots: roots.clone() };
    let terminator = Terminator::new(
        files.identity()?,
        TerminatorConfig {
            initial_stream_window: 4 << 20,
            initial_connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            ..TerminatorConfig::default()
        },
        Arc::new(TerminatorCounters::default()),
    );
    let bind = async |address: &SocketAddr| {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))
    };
    let hbone = bind(hbone).await?;
    let plain = [
        (bind(http1).await?, Application::Http1),
        (bind(http2).await?, Application::Http2),
        (bind(echo).await?, Application::Echo),
    ];
    let [http1, http2, echo] = &plain;
    let addresses = Addresses {
        hbone: hbone.local_addr()?,
        http1: http1.0.local_addr()?,
        http2: http2.0.local_addr()?,
        echo: echo.0.local_addr()?,
    };
    println!("{}", serde_json::to_string(&addresses)?);
    for (listener, application) in plain {
        tokio::spawn(serve_plain(listener, application));
    }
    let drain = Drain::new();
    loop {
        let Some((tcp, peer)) = accept(&hbone).await else { continue };
        let (terminator, watch) = (terminator.clone(), drain.watch());
        tokio::spawn(async move {
            let _how_it_ended = terminator.serve(tcp, peer, watch, answer_connect).await;
        });
    }
}

fn answer_connect(connect: Connect) {
    let application = match &connect.target {
        Target::Addr(address) => application_at(address.port()),
        Target::Host { .. } => None,
    };
    let Some(application) = application else {
        connect.refuse(StatusCode::BAD_REQUEST, "no pod has this port");
        return;
    };
    let name = Arc::from(connect.target.to_string());
    if let Ok(tunnel) = connect.accept() {
        tokio::spawn(async move {
            match application {
                Application::Http1 => http1::serve(tunnel.stream, name).await,
                Application::Http2 => http2::serve(tunnel.stream).await,
                Application::Echo => echo(tunnel.stream).await,
            }
        });
    }
}

fn application_at(port: u16) -> Option<Application> {
    match port {
        POD_HTTP1 => Some(Application::Http1),
        POD_HTTP2 => Some(Application::Http2),
        POD_ECHO => Some(Application::Echo),
        _ => None,
    }
}

async fn serve_plain(listener: TcpListener, application: Application) {
    let name: Arc<str> =
        listener.local_addr().map(|address| address.to_string()).unwrap_or_default().into();
    loop {
        let Some((tcp, _)) = accept(&listener).await else { continue };
        let _without_it_is_slower = tcp.set_nodelay(true);
        let name = Arc::clone(&name);
        tokio::spawn(async move {
            match application {
                Application::Http1 => http1::serve(TcpPipe::new(tcp), name).await,
                Application::Http2 => http2::serve(tcp).await,
                Application::Echo => echo(TcpPipe::new(tcp)).await,
            }
        });
    }
}

async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(_) => {
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

async fn echo(mut pipe: impl Pipe) {
    while let Some(Ok(chunk)) = pipe.read().await {
        if pipe.write(chunk).await.is_err() {
            return;
        }
    }
    pipe.finish().await;
}
