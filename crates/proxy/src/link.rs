//! A tunnel that carries requests: what all of them have in common.

use crate::instance::MeshInstance;
use crate::resolve::{Resolved, address};
use crate::roll::Entry;
use arc_swap::ArcSwap;
use cairn_hbone::{ConnectHeaders, Peer, Target};
use cairn_router::request::ConnectionView;
use cairn_telemetry::{ShardHandle, WorkloadLabels};
use std::sync::Arc;
use std::time::Duration;

/// What all requests of one tunnel have in common.
pub(crate) struct Link {
    pub(crate) instance: Arc<MeshInstance>,
    /// Index of the worker that the tunnel runs on: which shard of pools and metrics is its own.
    pub(crate) worker: usize,
    pub(crate) peer: Arc<Peer>,
    pub(crate) target: Target,
    /// `target` as it is written.
    pub(crate) target_text: String,
    pub(crate) connect_headers: ConnectHeaders,
    pub(crate) source: Arc<WorkloadLabels>,
    /// How it learns that it is to end.
    pub(crate) entry: Arc<Entry>,
    pub(crate) metrics: ShardHandle,
    /// Snapshot by which the tunnel was resolved last; replaced when a request finds a newer one.
    resolved: ArcSwap<Resolved>,
}

/// The parts that make a [`Link`].
pub(crate) struct LinkParts {
    pub(crate) instance: Arc<MeshInstance>,
    pub(crate) worker: usize,
    pub(crate) peer: Arc<Peer>,
    pub(crate) target: Target,
    pub(crate) connect_headers: ConnectHeaders,
    pub(crate) entry: Arc<Entry>,
    pub(crate) resolved: Arc<Resolved>,
}

impl Link {
    pub(crate) fn new(parts: LinkParts) -> Self {
        let LinkParts { instance, worker, peer, target, connect_headers, entry, resolved } = parts;
        Link {
            source: instance.source_labels(&resolved.mesh, &peer),
            metrics: instance.telemetry().shard(worker),
            instance,
            worker,
            peer,
            target_text: target.to_string(),
            target,
            connect_headers,
            entry,
            resolved: ArcSwap::new(resolved),
        }
    }

    /// The destination by the current snapshot. `None`: it is gone, or no longer open to this peer.
    pub(crate) fn resolve(&self) -> Option<Arc<Resolved>> {
        let known = self.resolved.load();
        let mesh = self.instance.mesh_guard();
        if Arc::ptr_eq(&known.mesh, &mesh) {
            return Some(Arc::clone(&known));
        }
        let fresh = Arc::new(Resolved::find(&self.instance, &mesh, &self.target)?);
        if !fresh.admits(&self.connection()) {
            return None;
        }
        self.resolved.store(Arc::clone(&fresh));
        Some(fresh)
    }

    /// The destination as it was resolved last.
    pub(crate) fn known(&self) -> Arc<Resolved> {
        self.resolved.load_full()
    }

    /// How long the client may keep the tunnel without a request.
    pub(crate) fn http_idle_timeout(&self) -> Duration {
        let known = self.resolved.load();
        let chain = known.destination.http.as_ref();
        let configured = chain.and_then(|chain| chain.idle_timeout);
        configured.unwrap_or(self.instance.limits().http_idle_timeout)
    }

    /// Whether the tunnel is to end with the response under way.
    pub(crate) fn is_ending(&self) -> bool {
        self.entry.is_told() || self.instance.roll().ends_keep_alive()
    }

    /// What policies may know of the connection.
    pub(crate) fn connection(&self) -> ConnectionView<'_> {
        ConnectionView {
            peer_id: Some(self.peer.id.as_str()),
            source: self.peer.addr,
            destination: address(&self.target),
            port: self.target.port(),
        }
    }
}
