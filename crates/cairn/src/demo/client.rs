//! A client of the demo: one identity, tunnels through the waypoint.

use cairn_hbone::{
    ConnectError, ConnectHeaders, Originator, OriginatorConfig, OriginatorCounters, TunnelStream,
};
use cairn_identity::{ExpectedPeers, Identity, SpiffeId};
use std::net::SocketAddr;
use std::sync::Arc;

/// One identity.
pub struct Client {
    /// Who it is.
    pub id: SpiffeId,
    originator: Originator,
}

impl Client {
    /// Without a connection yet.
    pub fn new(identity: Identity) -> Client {
        let counters = Arc::new(OriginatorCounters::default());
        Client {
            id: identity.current().id.clone(),
            originator: Originator::new(identity, OriginatorConfig::default(), counters),
        }
    }

    /// Opens a tunnel to `authority` at the HBONE endpoint `outer`, which must prove `expected`.
    pub async fn open(
        &self,
        outer: SocketAddr,
        expected: &SpiffeId,
        authority: &str,
    ) -> Result<TunnelStream, ConnectError> {
        let expected = ExpectedPeers::one(expected.clone());
        self.originator.connect(outer, &expected, authority, &ConnectHeaders::default()).await
    }
}
