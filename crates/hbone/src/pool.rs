//! The originator's connections by where they lead.
//!
//! One mutex over plain data, never held across an await. A connection's slots are taken under it, so a connection that
//! is found unused under it can be retired without a race. Everything that can end early (a tunnel, a waiting caller, a
//! dial whose runtime stops) gives back what it holds when it is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use cairn_identity::{ExpectedPeers, SpiffeId};
use h2::client::SendRequest;
use parking_lot::Mutex;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::flood::Wire;
use crate::originator::ConnectError;

/// Below this many keys nobody looks for empty ones.
const SWEEP_FROM: usize = 64;

/// What connections are told apart by. Our identity counts, not its certificate: connections outlive a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) local: SpiffeId,
    pub(crate) expected: ExpectedPeers,
    pub(crate) outer: SocketAddr,
}

/// How a dial ended; `None` while it runs.
pub(crate) type Outcome = Option<Result<(), ConnectError>>;

pub(crate) struct Pool {
    max_streams: usize,
    max_connections: usize,
    entries: Mutex<Entries>,
}

struct Entries {
    by_key: HashMap<Key, Entry, ahash::RandomState>,
    sweep_at: usize,
}

#[derive(Default)]
struct Entry {
    connections: Vec<Pooled>,
    dialing: Option<watch::Receiver<Outcome>>,
    gate: Arc<Gate>,
}

struct Pooled {
    request: SendRequest<Bytes>,
    usage: Arc<Usage>,
}

/// How much a connection is used; shared by the pool, the connection's driver and its tunnels.
pub(crate) struct Usage {
    active: AtomicUsize,
    idle_since: Mutex<Instant>,
    gate: Arc<Gate>,
    wire: Arc<Wire>,
}

/// One stream of a connection; given back when dropped.
pub(crate) struct Slot {
    usage: Arc<Usage>,
}

/// Where callers wait for a slot when no connection may be added.
#[derive(Default)]
struct Gate {
    freed: Arc<Notify>,
    waiting: AtomicUsize,
}

/// A caller's place at the gate.
pub(crate) struct Place {
    gate: Arc<Gate>,
    freed: Pin<Box<OwnedNotified>>,
}

/// What a caller gets.
pub(crate) enum Pick {
    /// A slot.
    Slot(SendRequest<Bytes>, Slot),
    /// The duty to dial, and the outcome that all callers wait for.
    Dial(Dialing, watch::Receiver<Outcome>),
    /// The outcome of somebody else's dial.
    Wait(watch::Receiver<Outcome>),
    /// Everything is taken and no connection may be added.
    Full(Place),
}

/// The duty to dial for a key. Dropped without an outcome, it lets the next caller dial.
pub(crate) struct Dialing {
    pool: Weak<Pool>,
    key: Key,
    outcome: watch::Sender<Outcome>,
    gate: Arc<Gate>,
}

/// A connection in the pool, as its driver sees it. Leaves when dropped.
pub(crate) struct Member {
    pool: Weak<Pool>,
    key: Key,
    usage: Arc<Usage>,
}

impl Pool {
    pub(crate) fn new(max_streams: usize, max_connections: usize) -> Arc<Self> {
        Arc::new(Self {
            max_streams: max_streams.max(1),
            max_connections: max_connections.max(1),
            entries: Mutex::new(Entries { by_key: HashMap::default(), sweep_at: SWEEP_FROM }),
        })
    }

    /// A slot, or how to get one. The first connection with room is taken, so that the others become idle.
    pub(crate) fn pick(self: &Arc<Self>, key: &Key) -> Pick {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.by_key.get_mut(key) {
            return self.pick_in(entry, key);
        }
        entries.sweep();
        let entry = entries.by_key.entry(key.clone()).or_default();
        self.pick_in(entry, key)
    }

    fn pick_in(self: &Arc<Self>, entry: &mut Entry, key: &Key) -> Pick {
        if let Some((request, slot)) = entry.slot(self.max_streams) {
            return Pick::Slot(request, slot);
        }
        if let Some(outcome) = &entry.dialing {
            return Pick::Wait(outcome.clone());
        }
        if entry.connections.len() < self.max_connections {
            let (sender, receiver) = watch::channel(None);
            entry.dialing = Some(receiver.clone());
            let dialing = Dialing {
                pool: Arc::downgrade(self),
                key: key.clone(),
                outcome: sender,
                gate: Arc::clone(&entry.gate),
            };
            return Pick::Dial(dialing, receiver);
        }
        // A slot that is freed from here on wakes the place; one that was freed before is found by the second look.
        let place = Place::new(&entry.gate);
        match entry.slot(self.max_streams) {
            Some((request, slot)) => Pick::Slot(request, slot),
            None => Pick::Full(place),
        }
    }

    /// Lets go of connections without a stream; they close by themselves. Returns how many.
    pub(crate) fn close_idle(&self) -> usize {
        let mut closed = 0;
        for entry in self.entries.lock().by_key.values_mut() {
            let before = entry.connections.len();
            entry.connections.retain(|pooled| pooled.usage.active() > 0);
            closed += before - entry.connections.len();
        }
        closed
    }

    /// Connections that are open for new streams.
    pub(crate) fn len(&self) -> usize {
        let entries = self.entries.lock();
        entries.by_key.values().map(|entry| entry.connections.len()).sum()
    }

    fn leave(&self, key: &Key, usage: &Arc<Usage>) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.by_key.get_mut(key) else {
            return;
        };
        entry.remove(usage);
        if entry.is_empty() {
            entries.by_key.remove(key);
        } else {
            entry.gate.freed.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("connections", &self.len()).finish_non_exhaustive()
    }
}

impl Entries {
    /// Forgets keys without connections, now and then. Most are forgotten when their last connection leaves.
    fn sweep(&mut self) {
        if self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, entry| !entry.is_empty());
            self.sweep_at = SWEEP_FROM.max(self.by_key.len() * 2);
        }
    }
}

impl Entry {
    /// A slot of the first connection with room. Connections that take no streams any more leave on the way.
    fn slot(&mut self, max_streams: usize) -> Option<(SendRequest<Bytes>, Slot)> {
        let mut at = 0;
        while let Some(pooled) = self.connections.get_mut(at) {
            let active = pooled.usage.active();
            if active >= max_streams {
                at += 1;
                continue;
            }
            let mut cx = Context::from_waker(Waker::noop());
            match pooled.request.poll_ready(&mut cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) | Poll::Pending => {
                    self.connections.swap_remove(at);
                    continue;
                }
            }
            if active >= pooled.request.current_max_send_streams() {
                at += 1;
                continue;
            }
            return Some((pooled.request.clone(), Slot::take(&pooled.usage)));
        }
        None
    }

    fn remove(&mut self, usage: &Arc<Usage>) {
        self.connections.retain(|pooled| !Arc::ptr_eq(&pooled.usage, usage));
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty()
            && self.dialing.is_none()
            && self.gate.waiting.load(Ordering::SeqCst) == 0
    }
}

impl Usage {
    fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }
}

impl Slot {
    /// Under the pool's lock.
    fn take(usage: &Arc<Usage>) -> Self {
        usage.active.fetch_add(1, Ordering::SeqCst);
        Self { usage: Arc::clone(usage) }
    }

    /// What is known of the connection.
    pub(crate) fn wire(&self) -> &Arc<Wire> {
        &self.usage.wire
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.usage.idle_since.lock() = Instant::now();
        self.usage.active.fetch_sub(1, Ordering::SeqCst);
        if self.usage.gate.waiting.load(Ordering::SeqCst) > 0 {
            self.usage.gate.freed.notify_one();
        }
    }
}

impl Place {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.waiting.fetch_add(1, Ordering::SeqCst);
        let mut freed = Box::pin(Arc::clone(&gate.freed).notified_owned());
        freed.as_mut().enable();
        Self { gate: Arc::clone(gate), freed }
    }

    /// Until a slot was freed or a connection left.
    pub(crate) async fn wait(mut self) {
        self.freed.as_mut().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dialing {
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Puts the connection into the pool and wakes all callers. `None` when the pool is gone.
    pub(crate) fn succeed(self, request: SendRequest<Bytes>, wire: Arc<Wire>) -> Option<Member> {
        let pool = self.pool.upgrade()?;
        let usage = Arc::new(Usage {
            active: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            gate: Arc::clone(&self.gate),
            wire,
        });
        let member = Member {
            pool: Weak::clone(&self.pool),
            key: self.key.clone(),
            usage: Arc::clone(&usage),
        };
        if let Some(entry) = pool.entries.lock().by_key.get_mut(&self.key) {
            entry.connections.push(Pooled { request, usage });
            entry.dialing = None;
        }
        self.outcome.send_replace(Some(Ok(())));
        Some(member)
    }

    /// Tells all callers why there is no connection.
    pub(crate) fn fail(self, error: ConnectError) {
        self.over();
        self.outcome.send_replace(Some(Err(error)));
    }

    fn over(&self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let mut entries = pool.entries.lock();
        if let Some(entry) = entries.by_key.get_mut(&self.key) {
            // After the outcome is known another dial may run already.
            let ours = |dialing: &watch::Receiver<Outcome>| {
                dialing.same_channel(&self.outcome.subscribe())
            };
            if entry.dialing.as_ref().is_some_and(ours) {
                entry.dialing = None;
            }
            if entry.is_empty() {
                entries.by_key.remove(&self.key);
            }
        }
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.over();
    }
}

impl Member {
    /// Resolves when the connection has been unused for `idle_timeout` and has left the pool.
    pub(crate) async fn retired(&self, idle_timeout: Duration) {
        let mut until = Instant::now() + idle_timeout;
        loop {
            tokio::time::sleep_until(until).await;
            match self.retire(idle_timeout) {
                Some(later) => until = later,
                None => return,
            }
        }
    }

    /// Leaves the pool if the connection is unused for long enough, else says when to look again.
    fn retire(&self, idle_timeout: Duration) -> Option<Instant> {
        let pool = self.pool.upgrade()?;
        let mut entries = pool.entries.lock();
        let entry = entries.by_key.get_mut(&self.key)?;
        let now = Instant::now();
        if self.usage.active() > 0 {
            return Some(now + idle_timeout);
        }
        let due = *self.usage.idle_since.lock() + idle_timeout;
        if due > now {
            return Some(due);
        }
        entry.remove(&self.usage);
        None
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.leave(&self.key, &self.usage);
        }
    }
}
