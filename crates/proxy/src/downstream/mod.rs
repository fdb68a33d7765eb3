//! Requests out of a tunnel: HTTP/1.1 and h2c as Pingora sessions of our own.
//!
//! Pingora's stock sessions read heads leniently, rewrite `Date` and `Connection`,
//! drop trailers and keep 64 KiB for replays; these follow Envoy (docs/differences.md).

mod h1;
mod h2;
mod session;

pub(crate) use h1::{DRAIN_SILENCE, serve as serve_h1};
pub(crate) use h2::serve as serve_h2;

use crate::instance::MeshInstance;
use crate::resolve::Resolved;
use crate::upstream::Outgoing;
use arc_swap::ArcSwap;
use cairn_hbone::{ConnectHeaders, DrainWatch, Peer, Target};
use cairn_router::request::ConnectionView;
use cairn_telemetry::{ShardHandle, WorkloadLabels};
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_core::protocols::Digest;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_error::{Error, ErrorType};
use pingora_http::ResponseHeader;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

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
    pub(crate) drain: DrainWatch,
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
    pub(crate) drain: DrainWatch,
    pub(crate) resolved: Arc<Resolved>,
}

impl Link {
    pub(crate) fn new(parts: LinkParts) -> Self {
        let LinkParts { instance, worker, peer, target, connect_headers, drain, resolved } = parts;
        Link {
            source: instance.source_labels(&resolved.mesh, &peer),
            metrics: instance.telemetry().shard(worker),
            instance,
            worker,
            peer,
            target_text: target.to_string(),
            target,
            connect_headers,
            drain,
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
        let fresh = Arc::new(Resolved::find(&mesh, &self.target)?);
        if !fresh.admits(&self.connection()) {
            return None;
        }
        self.resolved.store(Arc::clone(&fresh));
        Some(fresh)
    }

    /// What policies may know of the connection.
    pub(crate) fn connection(&self) -> ConnectionView<'_> {
        ConnectionView {
            peer_id: Some(self.peer.id.as_str()),
            source: self.peer.addr,
            destination: crate::tunnel::address(&self.target),
            port: self.target.port(),
        }
    }
}

/// What a request's session and the hooks that handle it share.
pub(crate) struct Inbound {
    pub(crate) link: Arc<Link>,
    pub(crate) resolved: Arc<Resolved>,
    /// Bytes of the body that the session keeps for another try; 0: none.
    replay_limit: AtomicUsize,
    /// Body bytes have arrived with the head, so that both can leave together.
    body_waits: AtomicBool,
    /// Trailers of the request, between the session that read them and the one that sends them.
    trailers: Mutex<Option<Box<HeaderMap>>>,
    /// The request as far as it is not written. Reading and writing it happens in one task, so nobody waits.
    outgoing: Mutex<Option<Outgoing>>,
    /// When the route's timeout passes; set when the request has been read.
    deadline: OnceLock<Instant>,
    /// How long neither side may be silent, if that is bounded, and since when.
    idle: OnceLock<Idle>,
}

/// Silence of a stream.
struct Idle {
    since: Instant,
    timeout: Duration,
    /// Milliseconds from `since` to the last byte of either side.
    last: AtomicU64,
}

impl Inbound {
    pub(crate) fn new(link: Arc<Link>, resolved: Arc<Resolved>) -> Self {
        Inbound {
            link,
            resolved,
            replay_limit: AtomicUsize::new(0),
            body_waits: AtomicBool::new(false),
            trailers: Mutex::new(None),
            outgoing: Mutex::new(None),
            deadline: OnceLock::new(),
            idle: OnceLock::new(),
        }
    }

    /// Starts the route's timeout, the first time.
    pub(crate) fn start_timeout(&self, timeout: Duration) {
        let _started_before = self.deadline.set(Instant::now() + timeout);
    }

    /// When the route's timeout passes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Bounds how long neither side may be silent, from here on.
    pub(crate) fn bound_silence(&self, timeout: Duration) {
        let _bounded_before =
            self.idle.set(Idle { since: Instant::now(), timeout, last: AtomicU64::new(0) });
    }

    /// A byte has passed.
    pub(crate) fn touch(&self) {
        if let Some(idle) = self.idle.get() {
            let passed = idle.since.elapsed().as_millis();
            idle.last.store(u64::try_from(passed).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// When the silence will have lasted too long.
    pub(crate) fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.idle.get()?;
        let last = Duration::from_millis(idle.last.load(Ordering::Relaxed));
        Some(idle.since + last + idle.timeout)
    }

    pub(crate) fn set_outgoing(&self, outgoing: Outgoing) {
        *self.outgoing.lock() = Some(outgoing);
    }

    pub(crate) fn take_outgoing(&self) -> Option<Outgoing> {
        self.outgoing.lock().take()
    }

    pub(crate) fn with_outgoing(&self, change: impl FnOnce(&mut Outgoing)) {
        if let Some(outgoing) = self.outgoing.lock().as_mut() {
            change(outgoing);
        }
    }

    /// Writes on; `Ready` when the client's body may be read further.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.outgoing.lock().as_mut() {
            Some(outgoing) => outgoing.poll_flush(cx),
            None => Poll::Ready(()),
        }
    }

    /// [`Self::poll_flush`] as a future.
    pub(crate) async fn flushed(&self) {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await;
    }

    /// Asks the session to keep up to `bytes` of the body for another try.
    pub(crate) fn keep_for_replay(&self, bytes: usize) {
        self.replay_limit.store(bytes, Ordering::Relaxed);
    }

    fn replay_limit(&self) -> usize {
        self.replay_limit.load(Ordering::Relaxed)
    }

    /// Whether body bytes are at hand already.
    pub(crate) fn body_waits(&self) -> bool {
        self.body_waits.load(Ordering::Relaxed)
    }

    fn set_body_waits(&self) {
        self.body_waits.store(true, Ordering::Relaxed);
    }

    fn put_trailers(&self, trailers: Box<HeaderMap>) {
        *self.trailers.lock() = Some(trailers);
    }

    /// The request's trailers, once its body has ended. They stay for another try.
    pub(crate) fn trailers(&self) -> Option<Box<HeaderMap>> {
        self.trailers.lock().clone()
    }
}

/// Carries `inbound` to the hooks: Pingora's digest has one place for a value of ours.
fn digest_for(inbound: Arc<Inbound>) -> Digest {
    let response = ResponseHeader::build(200, Some(0)).expect("200 is a valid status");
    Digest {
        proxy_digest: Some(Arc::new(ProxyDigest::new(Box::new(response), Some(Box::new(inbound))))),
        ..Digest::default()
    }
}

/// What [`digest_for`] carries.
pub(crate) fn inbound_of(digest: Option<&Digest>) -> Option<&Arc<Inbound>> {
    digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref::<Arc<Inbound>>()
}

/// The part of a request's body that is kept for another try.
#[derive(Debug, Default)]
struct Replay {
    kept: bytes::BytesMut,
    enabled: bool,
    truncated: bool,
}

impl Replay {
    fn keep(&mut self, data: &[u8], limit: usize) {
        if !self.enabled || self.truncated {
            return;
        }
        if self.kept.len() + data.len() > limit {
            self.truncated = true;
            self.kept = bytes::BytesMut::new();
        } else {
            self.kept.extend_from_slice(data);
        }
    }

    fn take(&self) -> Option<bytes::Bytes> {
        if self.truncated || self.kept.is_empty() {
            None
        } else {
            Some(bytes::Bytes::copy_from_slice(&self.kept))
        }
    }
}

/// The response is over and the request is not: the rest of it is of no use to anybody.
fn answered_early() -> Box<Error> {
    Error::explain(ANSWERED_EARLY, "answered before the request was over").into_down()
}

/// How [`answered_early`] is told from a client that has gone.
pub(crate) const ANSWERED_EARLY: ErrorType = ErrorType::new("AnsweredEarly");

/// Pingora's form of an address.
fn pingora_addr(addr: SocketAddr) -> pingora_core::protocols::l4::socket::SocketAddr {
    pingora_core::protocols::l4::socket::SocketAddr::Inet(addr)
}
