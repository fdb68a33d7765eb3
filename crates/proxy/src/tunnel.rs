//! A CONNECT from the door to its end: resolve → authorize → admit → detect → serve.

use crate::access_log::Refused;
use crate::counters::Raised;
use crate::detect::{self, Protocol, Question};
use crate::downstream;
use crate::engine::Engine;
use crate::instance::MeshInstance;
use crate::link::{Link, LinkParts};
use crate::resolve::{self, Resolved};
use crate::roll::{Carries, Entry};
use crate::splice;
use cairn_hbone::{Connect, Tunnel};
use cairn_router::request::ConnectionView;
use cairn_telemetry::ResponseFlags;
use http::StatusCode;
use std::sync::Arc;

/// Where CONNECTs of one connection come in.
pub(crate) struct Door<'a> {
    pub(crate) instance: &'a Arc<MeshInstance>,
    pub(crate) engine: &'a Arc<Engine>,
    /// Worker that the tunnel will run on.
    pub(crate) worker: usize,
}

impl Door<'_> {
    /// Answers a CONNECT at once; with 200 there is a tunnel to be served.
    ///
    /// ztunnel waits for the answer without a bound and shows none of it, so whatever takes time or
    /// deserves words happens inside the tunnel (contract: ztunnel as our client).
    pub(crate) fn open(
        &self,
        connect: Connect,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let counters = self.instance.counters();
        if self.instance.refuses_tunnels() {
            counters.tunnels_shed.add_one();
            let why = (StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::OVERLOAD_MANAGER);
            self.told(&connect, why, "overload_manager_tunnels");
            connect.refuse(StatusCode::SERVICE_UNAVAILABLE, "the waypoint takes no new tunnels");
            return None;
        }
        if let Some(handler) = self.instance.local(&connect.target.to_string()) {
            if let Ok(tunnel) = connect.accept() {
                handler(tunnel);
            }
            return None;
        }
        let mesh = self.instance.mesh();
        let Some(resolved) = Resolved::find(self.instance, &mesh, &connect.target) else {
            counters.unknown_destinations.add_one();
            let why = (StatusCode::NOT_FOUND, ResponseFlags::NO_ROUTE_FOUND);
            self.told(&connect, why, "filter_chain_not_found");
            connect.refuse(StatusCode::NOT_FOUND, "no destination has this address or name");
            return None;
        };
        if let Some(reason) = resolved.destination.refusal() {
            tracing::debug!(
                mesh = self.instance.name(), target = %connect.target, %reason, "tunnel refused"
            );
            let why = (StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::NONE);
            self.told(&connect, why, "unsupported_config");
            connect.refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the destination's configuration cannot be honoured",
            );
            return None;
        }
        if let Err(details) = authorize(&resolved, &connect) {
            counters.denied_tunnels.add_one();
            tracing::debug!(
                mesh = self.instance.name(), peer = %connect.peer.id, target = %connect.target, details, "tunnel refused"
            );
            self.told(&connect, (StatusCode::FORBIDDEN, ResponseFlags::NONE), &details);
            connect.refuse(StatusCode::FORBIDDEN, &details);
            return None;
        }
        let tunnel = connect.accept().ok()?;
        let open = Raised::new(Arc::clone(counters), |counters| &counters.tunnels);
        let enrolled = self.instance.roll().enter(self.worker);
        let entry = Arc::clone(enrolled.entry());
        let (link, stream) = self.link(tunnel, Arc::new(resolved), entry);
        let engine = Arc::clone(self.engine);
        Some(async move {
            serve(engine, link, stream).await;
            drop((open, enrolled));
        })
    }

    /// Logs a CONNECT that is refused.
    fn told(&self, connect: &Connect, (status, flags): (StatusCode, ResponseFlags), details: &str) {
        let Connect { peer, target, .. } = connect;
        Refused { instance: self.instance, peer, target, status, flags, details }
            .write(&self.instance.mesh_guard());
    }

    fn link(
        &self,
        tunnel: Tunnel,
        resolved: Arc<Resolved>,
        entry: Arc<Entry>,
    ) -> (Arc<Link>, cairn_hbone::TunnelStream) {
        let Tunnel { peer, target, headers, stream } = tunnel;
        let link = Link::new(LinkParts {
            instance: Arc::clone(self.instance),
            worker: self.worker,
            peer,
            target,
            connect_headers: headers,
            entry,
            resolved,
        });
        (Arc::new(link), stream)
    }
}

/// The destination's policies for connections, and those of its TCP chain where it can only become that.
fn authorize(resolved: &Resolved, connect: &Connect) -> Result<(), String> {
    let connection = ConnectionView {
        peer_id: Some(connect.peer.id.as_str()),
        source: connect.peer.addr,
        destination: resolve::address(&connect.target),
        port: connect.target.port(),
    };
    let destination = &resolved.destination;
    resolve::allowed(&destination.connection, &connection)?;
    match (&destination.http, &destination.tcp) {
        (None, Some(tcp)) => resolve::allowed(&tcp.rbac, &connection),
        _ => Ok(()),
    }
}

/// Resolves when the tunnel is to end and has had time for its first bytes.
async fn silent_to_the_end(link: &Link) {
    link.entry.told().await;
    tokio::time::sleep(downstream::DRAIN_SILENCE).await;
}

async fn serve(engine: Arc<Engine>, link: Arc<Link>, mut stream: cairn_hbone::TunnelStream) {
    let Some(resolved) = link.resolve() else {
        return;
    };
    let destination = &resolved.destination;
    let counters = link.instance.counters();
    let Some(chain) = destination.http.as_ref() else {
        counters.tunnels_tcp.add_one();
        link.entry.set_carries(Carries::Opaque);
        return Box::pin(splice::serve(link, resolved, stream, bytes::Bytes::new())).await;
    };
    let question = Question {
        http_only: destination.tcp.is_none(),
        http_10: chain.accept_http_10,
        patience: link.instance.limits().detect_timeout,
    };
    let detected = tokio::select! {
        detected = detect::detect(&mut stream, question) => detected,
        () = silent_to_the_end(&link), if question.http_only => None,
        () = link.entry.cut_short() => return,
    };
    let Some((protocol, first)) = detected else {
        let _peer_is_gone = stream.writer().finish();
        return;
    };
    match protocol {
        Protocol::Http1 => {
            counters.tunnels_http1.add_one();
            link.entry.set_carries(Carries::Http);
            let entry = Arc::clone(&link.entry);
            tokio::select! {
                () = downstream::serve_h1(engine, link, stream, first) => {}
                () = entry.cut_short() => {}
            }
        }
        Protocol::Http2 => {
            counters.tunnels_http2.add_one();
            link.entry.set_carries(Carries::Http);
            Box::pin(downstream::serve_h2(engine, link, stream, first)).await;
        }
        Protocol::Other => {
            counters.tunnels_tcp.add_one();
            link.entry.set_carries(Carries::Opaque);
            Box::pin(splice::serve(link, resolved, stream, first)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the future that a function gives.
    fn size<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What a tunnel costs for as long as it is open. The rare branches are boxed.
    #[test]
    fn a_tunnel_is_small() {
        assert!(size(serve) <= 2048, "{}", size(serve));
    }
}
