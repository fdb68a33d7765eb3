//! New connections to an endpoint: through a tunnel or straight, with TLS inside or without.

use super::attempt::{Attempt, Failure};
use super::pool::EndpointPool;
use super::tls::ClusterTls;
use crate::access_log;
use crate::io::{ByteReader, ByteWriter, Duplex, from_socket, from_tunnel};
use cairn_hbone::{ConnectHeaders, Counted, TunnelStream};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a dial gives.
pub(crate) enum Dialled {
    /// A tunnel's stream, as it is.
    Tunnel(TunnelStream),
    /// A socket, or TLS.
    Socket(Box<dyn Duplex>),
}

impl Dialled {
    /// As two halves.
    pub(crate) fn split(self) -> (ByteReader, ByteWriter) {
        match self {
            Dialled::Tunnel(stream) => from_tunnel(stream),
            Dialled::Socket(io) => from_socket(io),
        }
    }
}

/// What is dialled.
pub(crate) struct Destination<'a> {
    pub(crate) attempt: &'a Attempt,
    pub(crate) pool: &'a EndpointPool,
    pub(crate) http2: bool,
}

/// Dials within the cluster's connect timeout.
pub(crate) async fn dial(to: Destination<'_>) -> Result<Dialled, Failure> {
    let timeout = to.attempt.cluster.connect_timeout;
    tokio::time::timeout(timeout, connect(to)).await.unwrap_or(Err(Failure::ConnectTimeout))
}

async fn connect(to: Destination<'_>) -> Result<Dialled, Failure> {
    let Destination { attempt, pool, http2 } = to;
    let link = &attempt.inbound.link;
    let raw = open(attempt, pool, &link.connect_headers).await?;
    let Some(settings) = attempt.cluster.tls.as_ref() else {
        return Ok(raw);
    };
    let tls = ClusterTls::of(&attempt.cluster.state, settings);
    let tls = tls.map_err(Failure::Connect)?;
    let connector = TlsConnector::from(tls.config(http2));
    let name = tls.server_name();
    let session: Box<dyn Duplex> = match raw {
        Dialled::Tunnel(io) => Box::new(connector.connect(name, io).await.map_err(tls_failed)?),
        Dialled::Socket(io) => Box::new(connector.connect(name, io).await.map_err(tls_failed)?),
    };
    Ok(Dialled::Socket(session))
}

async fn open(
    attempt: &Attempt,
    pool: &EndpointPool,
    headers: &ConnectHeaders,
) -> Result<Dialled, Failure> {
    let endpoint = &attempt.endpoint;
    let Some(tunnel) = endpoint.tunnel.as_ref() else {
        let tcp = TcpStream::connect(endpoint.address)
            .await
            .map_err(|error| Failure::Connect(format!("{}: {error}", endpoint.address)))?;
        let _only_latency = tcp.set_nodelay(true);
        let traffic = Arc::clone(attempt.inbound.link.instance.traffic());
        return Ok(Dialled::Socket(Box::new(Counted::new(tcp, traffic))));
    };
    let Some(expected) = pool.expected(tunnel) else {
        return Err(Failure::Connect(format!(
            "endpoint {} has no valid identity to expect",
            endpoint.address
        )));
    };
    let link = &attempt.inbound.link;
    let originator = link.instance.originator(link.worker);
    originator
        .connect(tunnel.address, expected, &tunnel.authority, headers)
        .await
        .map(Dialled::Tunnel)
        .map_err(|error| {
            let reason = format!("tunnel to {}: {error}", tunnel.address);
            access_log::no_tunnel(link, &attempt.inbound.resolved.mesh, tunnel.address, &reason);
            Failure::Connect(reason)
        })
}

fn tls_failed(error: io::Error) -> Failure {
    Failure::Connect(format!("TLS to the endpoint: {error}"))
}

/// The pool beside an endpoint's state.
pub(crate) fn pool_of(attempt: &Attempt) -> Arc<EndpointPool> {
    attempt.inbound.link.instance.pool(&attempt.endpoint)
}
