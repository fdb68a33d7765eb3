//! Tunnels that stay open: `benches hold`. What one of them costs is what memory grows by.

use crate::certs::Files;
use crate::load::http1::get;
use crate::load::{Failure, Lane, Lanes, Line};
use anyhow::{Result, anyhow};
use cairn_hbone::TunnelStream;
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt, BufReader};

/// Arguments of `hold`.
#[derive(Debug, Clone, Args)]
pub struct HoldArgs {
    /// HBONE address of the proxy
    #[arg(long, value_name = "ADDR")]
    pub waypoint: SocketAddr,
    /// Identity that the proxy must prove
    #[arg(long, value_name = "SPIFFE-ID")]
    pub expect: String,
    /// Our certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// Our private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Certificates of the CAs that we trust, PEM
    #[arg(long, value_name = "FILE")]
    pub roots: PathBuf,
    /// Authority of CONNECT
    #[arg(long, value_name = "HOST:PORT")]
    pub to: String,
    /// HBONE connections
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub connections: usize,
    /// Tunnels in each connection
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub tunnels: usize,
    /// What the tunnels do
    #[arg(long, default_value = "parked")]
    pub state: State,
}

/// What an open tunnel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// It was closed again: only connections stay.
    None,
    /// It has had a request and waits for the next one.
    Parked,
    /// It waits for an answer.
    Busy,
}

/// Opens one connection with one tunnel and says so; after a line on standard input opens the rest
/// and says so; after another one, ends.
pub fn run(args: &HoldArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(args));
    // Somebody may still be waiting for a line on standard input.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &HoldArgs) -> Result<()> {
    let HoldArgs { waypoint, expect, cert, key, roots, to, connections, tunnels, state } = args;
    let files = Files { cert: cert.clone(), key: key.clone(), roots: roots.clone() };
    let lanes = Lanes::new(&files, *waypoint, expect)?;
    let first = lanes.lane();
    let mut held = vec![open(&first, to, State::Parked).await?];
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    Line::Held { tunnels: 1 }.print();
    lines.next_line().await?;
    let mut used = vec![first];
    for _ in 0..*connections {
        let lane = lanes.lane();
        for _ in 0..*tunnels {
            held.push(open(&lane, to, *state).await?);
        }
        used.push(lane);
    }
    Line::Held { tunnels: connections * tunnels }.print();
    lines.next_line().await?;
    Ok(())
}

/// A tunnel in the state that was asked for; `None` when it is not to stay.
async fn open(lane: &Lane, to: &str, state: State) -> Result<Option<TunnelStream>> {
    let failed = |failure: Failure| anyhow!("{}", failure.kind().to_owned());
    let mut stream = lane.open(to).await.map_err(failed)?;
    match state {
        State::None => {
            stream.writer().finish()?;
            while let Some(Ok(_)) = stream.reader().chunk().await {}
            return Ok(None);
        }
        State::Parked => {
            let reply = get(&mut stream, "/index.html?bytes=64", "").await.map_err(failed)?;
            anyhow::ensure!(reply.status == 200, "status {}", reply.status);
        }
        State::Busy => {
            let request =
                "GET /index.html?hold HTTP/1.1\r\nhost: app.shop.svc.cluster.local\r\n\r\n";
            stream.writer().write_chunk(request.into()).await?;
        }
    }
    Ok(Some(stream))
}
