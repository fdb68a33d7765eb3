//! A pod of the demo: an HBONE endpoint, as a ztunnel in front of an application would be.

use super::backend::{self, Backend};
use cairn_hbone::{Connect, Drain, Target, Terminator, TerminatorConfig, TerminatorCounters};
use cairn_identity::{Identity, SpiffeId};
use http::StatusCode;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Ports of the applications in every pod.
mod port {
    pub const HTTP: u16 = 8080;
    pub const GRPC: u16 = 50051;
    pub const TCP: u16 = 9000;
}

/// A running pod. It lives as long as the process.
pub struct Pod {
    /// Where its HBONE is.
    pub tunnel: SocketAddr,
    /// Its application.
    pub backend: Arc<Backend>,
}

/// What a pod lets in.
#[derive(Clone)]
struct Door {
    /// Address that a CONNECT must name.
    ip: IpAddr,
    /// Whoever else asks has come around the waypoint.
    waypoint: SpiffeId,
    backend: Arc<Backend>,
}

impl Pod {
    /// Accepts tunnels from now on.
    pub fn start(
        listener: TcpListener,
        ip: IpAddr,
        identity: Identity,
        waypoint: SpiffeId,
        backend: Arc<Backend>,
    ) -> io::Result<Pod> {
        let tunnel = listener.local_addr()?;
        let door = Door { ip, waypoint, backend: Arc::clone(&backend) };
        let counters = Arc::new(TerminatorCounters::default());
        let terminator = Terminator::new(identity, TerminatorConfig::default(), counters);
        tokio::spawn(accept(listener, terminator, door));
        Ok(Pod { tunnel, backend })
    }
}

async fn accept(listener: TcpListener, terminator: Terminator, door: Door) {
    let drain = Drain::new();
    while let Ok((tcp, peer)) = listener.accept().await {
        let (terminator, door, watch) = (terminator.clone(), door.clone(), drain.watch());
        tokio::spawn(async move {
            let served = terminator.serve(tcp, peer, watch, |connect| door.open(connect)).await;
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "a connection to a pod failed");
            }
        });
    }
}

impl Door {
    /// Answers like a ztunnel: 401 by policy, 400 for another pod's address, 503 for a port where
    /// nothing runs.
    fn open(&self, connect: Connect) {
        if connect.peer.id != self.waypoint {
            return connect.refuse(StatusCode::UNAUTHORIZED, "only the waypoint may come in");
        }
        let port = match connect.target {
            Target::Addr(address) if address.ip() == self.ip => address.port(),
            _ => return connect.refuse(StatusCode::BAD_REQUEST, "another pod's address"),
        };
        if !matches!(port, port::HTTP | port::GRPC | port::TCP) {
            return connect.refuse(StatusCode::SERVICE_UNAVAILABLE, "nothing runs on this port");
        }
        let Ok(tunnel) = connect.accept() else { return };
        if port == port::TCP {
            tokio::spawn(backend::serve_tcp(tunnel.stream));
        } else {
            tokio::spawn(Arc::clone(&self.backend).serve_http(tunnel.stream));
        }
    }
}
