//! What the pages show and change: values, so that pages need no process.

use crate::logging::Logging;
use crate::ready::Readiness;
use arc_swap::ArcSwap;
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proxy::MeshInstance;
use cairn_router::spec::Resources;
use cairn_xds::store::Store;
use cairn_xds::translate::Unsupported;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// What the pages show and change.
pub struct AdminView {
    /// As istiod was told.
    pub node: Node,
    /// When the process began.
    pub started: Started,
    /// What istiod sent and was accepted.
    pub store: Arc<Store>,
    /// What it was made into: snapshot, counters, certificate, metrics.
    pub instance: Arc<MeshInstance>,
    /// What the snapshot was compiled from, for explanations.
    pub resources: Arc<ArcSwap<Resources>>,
    /// What is listened on.
    pub listeners: Vec<Bound>,
    /// For `/ready` and the state in `/server_info`.
    pub readiness: Arc<Readiness>,
    /// For `/logging`.
    pub logging: Logging,
    /// Numbers for `/stats` that the instance does not know, by Envoy's names, for example
    /// `control_plane.connected_state`.
    pub stats: Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>,
    /// What istiod sent and is not supported.
    pub unsupported: Box<dyn Fn() -> Vec<Unsupported> + Send + Sync>,
    /// What is done in another way than asked for.
    pub degraded: Box<dyn Fn() -> Vec<Unsupported> + Send + Sync>,
    /// What the pages can be told to do.
    pub actions: Actions,
}

/// A moment, for display and to count from.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// For display.
    pub at: SystemTime,
    /// To count from, whatever becomes of the clock.
    pub instant: Instant,
}

impl Started {
    /// This moment.
    pub fn now() -> Self {
        Started { at: SystemTime::now(), instant: Instant::now() }
    }
}

/// An address that is listened on.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Envoy's name of the listener, such as `connect_terminate`.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
}

/// What the pages can be told to do. Each is done at once and does not wait.
pub struct Actions {
    /// Readiness fails (`true`), or is what it is (`false`).
    pub fail_health: Box<dyn Fn(bool) + Send + Sync>,
    /// No new tunnels; those that are open go on.
    pub drain_listeners: Box<dyn Fn() + Send + Sync>,
    /// Drains and ends the process.
    pub quit: Box<dyn Fn() + Send + Sync>,
}
