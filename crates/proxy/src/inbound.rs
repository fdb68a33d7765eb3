//! One request on its way through: what the session that reads it, the hooks that handle it and the
//! session that sends it share.

use crate::link::Link;
use crate::outgoing::Outgoing;
use crate::resolve::Resolved;
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_core::protocols::Digest;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_http::ResponseHeader;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

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

    pub(crate) fn replay_limit(&self) -> usize {
        self.replay_limit.load(Ordering::Relaxed)
    }

    /// Whether body bytes are at hand already.
    pub(crate) fn body_waits(&self) -> bool {
        self.body_waits.load(Ordering::Relaxed)
    }

    pub(crate) fn set_body_waits(&self) {
        self.body_waits.store(true, Ordering::Relaxed);
    }

    pub(crate) fn put_trailers(&self, trailers: Box<HeaderMap>) {
        *self.trailers.lock() = Some(trailers);
    }

    /// The request's trailers, once its body has ended. They stay for another try.
    pub(crate) fn trailers(&self) -> Option<Box<HeaderMap>> {
        self.trailers.lock().clone()
    }
}

/// Carries `inbound` to the hooks: Pingora's digest has one place for a value of ours.
pub(crate) fn digest_for(inbound: Arc<Inbound>) -> Digest {
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
