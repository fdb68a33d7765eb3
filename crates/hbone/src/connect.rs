//! A CONNECT and what becomes of it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use cairn_identity::SpiffeId;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Response, StatusCode};

use crate::authority::Target;
use crate::counters::{TerminatorCounters, increase};
use crate::headers::ConnectHeaders;
use crate::stream::TunnelStream;

/// The other end of a connection: one for all tunnels in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its verified identity.
    pub id: SpiffeId,
    /// Its TCP address.
    pub addr: SocketAddr,
    /// The address that it connected to.
    pub local_addr: SocketAddr,
    /// Our identity, as it was at the handshake.
    pub local_id: SpiffeId,
}

/// A well-formed CONNECT that waits for its answer. Dropping it resets the stream with CANCEL.
#[derive(Debug)]
pub struct Connect {
    /// Who asks.
    pub peer: Arc<Peer>,
    /// Where the tunnel shall lead.
    pub target: Target,
    /// What the peer tells of it.
    pub headers: ConnectHeaders,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    counters: Arc<TerminatorCounters>,
}

/// An accepted CONNECT.
#[derive(Debug)]
pub struct Tunnel {
    /// Who is at its other end.
    pub peer: Arc<Peer>,
    /// Where it leads.
    pub target: Target,
    /// What the peer told of it.
    pub headers: ConnectHeaders,
    /// Its bytes.
    pub stream: TunnelStream,
}

/// The peer reset the CONNECT, or its connection ended, before the answer.
#[derive(Debug, thiserror::Error)]
#[error("the CONNECT ended before its answer: {0}")]
pub struct TunnelError(#[from] h2::Error);

/// Counts the end of a tunnel.
struct Open(Arc<TerminatorCounters>);

impl Connect {
    pub(crate) fn new(
        peer: Arc<Peer>,
        target: Target,
        headers: ConnectHeaders,
        (recv, respond): (RecvStream, SendResponse<Bytes>),
        counters: Arc<TerminatorCounters>,
    ) -> Self {
        increase(&counters.connects);
        Self { peer, target, headers, respond, recv, counters }
    }

    /// Answers 200, at once. ztunnel waits for it without a limit and sends nothing before.
    ///
    /// # Errors
    ///
    /// When the peer has gone meanwhile.
    pub fn accept(self) -> Result<Tunnel, TunnelError> {
        let Self { peer, target, headers, mut respond, recv, counters } = self;
        let send = respond.send_response(Response::new(()), false)?;
        increase(&counters.tunnels_opened);
        Ok(Tunnel {
            peer,
            target,
            headers,
            stream: TunnelStream::new(send, recv, Arc::new(Open(counters)), None),
        })
    }

    /// Answers with another status and ends the stream. The peer sees the status only, `reason` goes to the log.
    ///
    /// ztunnel closes the application's connection on every status but 200 and does not try again.
    pub fn refuse(self, status: StatusCode, reason: &str) {
        tracing::debug!(
            peer = %self.peer.id,
            target = %self.target,
            status = status.as_u16(),
            reason,
            "CONNECT refused"
        );
        increase(&self.counters.connects_refused);
        answer(self.respond, status);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        increase(&self.0.tunnels_closed);
    }
}

/// Ends a request with a status. A peer that has gone meanwhile needs no answer.
pub(crate) fn answer(mut respond: SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let _ = respond.send_response(response, true);
}
