//! What istiod's listeners and clusters say about tunnels as such.
//!
//! An Envoy waypoint is told in filters how tunnels end and begin; Cairn does that by itself. What varies
//! is kept here.

use std::net::SocketAddr;
use std::time::Duration;

/// What holds for the whole waypoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// How tunnels are accepted; `None`: `connect_terminate` has not come.
    pub terminate: Option<Terminate>,
    /// How tunnels are begun; `None`: the cluster `connect_originate` has not come.
    pub originate: Option<Originate>,
    /// Trust domains of clients, from the SAN prefixes of `connect_terminate`; empty: all whose certificates
    /// the mesh's roots sign.
    pub trust_domains: Vec<String>,
    /// Peer metadata travels as `baggage`, too (`AMBIENT_ENABLE_BAGGAGE`).
    pub baggage: bool,
}

/// How tunnels are accepted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terminate {
    /// Where; the first is the listener's own, the others are its additional ones.
    pub addresses: Vec<SocketAddr>,
    /// Trust domains of clients; empty: all.
    pub trust_domains: Vec<String>,
    /// Tunnels on one connection at a time; `None`: Envoy's bound.
    pub max_concurrent_streams: Option<u32>,
    /// How often a silent connection is asked, and how long the answer may take.
    pub keepalive: Option<(Duration, Duration)>,
    /// Why nothing is let in, if the listener asks for something that is not understood.
    pub broken: Option<String>,
}

/// How tunnels are begun.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Originate {
    /// Port of HBONE at endpoints.
    pub port: u16,
    /// Beginnings (`spiffe://cluster.local/`) of which an endpoint's identity has one; empty: any.
    pub prefixes: Vec<String>,
    /// Bound of a dial.
    pub connect_timeout: Option<Duration>,
    /// An idle connection is closed after so long.
    pub idle_timeout: Option<Duration>,
}
