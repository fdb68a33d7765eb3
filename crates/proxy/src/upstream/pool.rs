//! Connections to one endpoint that wait for the next request.
//!
//! One shard per worker: its locks are taken by that worker alone (and once a few
//! seconds by the sweeper), so nobody waits. No task watches an idle connection; it
//! is looked at when it is picked.

use crate::io::{ByteReader, ByteWriter};
use bytes::{Bytes, BytesMut};
use cairn_identity::{ExpectedPeers, TrustDomains};
use cairn_router::endpoint::TunnelTo;
use h2::client::SendRequest;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// An HTTP/1 connection that carries one request at a time.
pub(crate) struct H1Connection {
    pub(crate) reader: ByteReader,
    pub(crate) writer: ByteWriter,
    pub(crate) rest: Bytes,
    pub(crate) out: BytesMut,
    /// Requests that it has carried.
    pub(crate) served: u32,
}

struct Idle {
    connection: H1Connection,
    since: Instant,
    timeout: Duration,
}

/// An HTTP/2 connection that carries many.
pub(crate) struct H2Connection {
    pub(crate) send: SendRequest<Bytes>,
    active: AtomicUsize,
    served: AtomicUsize,
    closed: Arc<AtomicBool>,
    idle_since: Mutex<Instant>,
    timeout: Duration,
}

/// A stream of an HTTP/2 connection; counted until it is dropped.
pub(crate) struct H2Lease(pub(crate) Arc<H2Connection>);

#[derive(Default)]
struct Shard {
    h1: Mutex<Vec<Idle>>,
    /// Requests that are dialling and would as well take a connection that comes back.
    waiting: AtomicUsize,
    returned: Notify,
    h2: Mutex<Vec<Arc<H2Connection>>>,
    dialling: tokio::sync::Mutex<()>,
}

/// The connections of one endpoint; kept beside its state, so that a push does not close them.
pub(crate) struct EndpointPool {
    shards: Box<[Shard]>,
    expected: OnceLock<Option<ExpectedPeers>>,
}

impl EndpointPool {
    pub(crate) fn new(workers: usize) -> Self {
        EndpointPool {
            shards: (0..workers.max(1)).map(|_| Shard::default()).collect(),
            expected: OnceLock::new(),
        }
    }

    fn shard(&self, worker: usize) -> &Shard {
        &self.shards[worker % self.shards.len()]
    }

    /// The identities of which a tunnel's far end must prove one. `None`: they are no SPIFFE ids, so nobody can.
    pub(crate) fn expected(&self, tunnel: &TunnelTo) -> Option<&ExpectedPeers> {
        self.expected.get_or_init(|| expected(&tunnel.identities)).as_ref()
    }

    /// A connection that still looks alive, the one used last first.
    pub(crate) fn take_h1(&self, worker: usize) -> Option<H1Connection> {
        let mut idle = self.shard(worker).h1.lock();
        while let Some(mut candidate) = idle.pop() {
            if candidate.since.elapsed() < candidate.timeout
                && candidate.connection.reader.is_idle()
            {
                return Some(candidate.connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless `most` are waiting already.
    pub(crate) fn put_h1(
        &self,
        worker: usize,
        connection: H1Connection,
        timeout: Duration,
        most: usize,
    ) {
        let shard = self.shard(worker);
        let mut idle = shard.h1.lock();
        if idle.len() < most {
            if shard.waiting.load(Ordering::Relaxed) > 0 {
                shard.returned.notify_one();
            }
            idle.push(Idle { connection, since: Instant::now(), timeout });
        }
    }

    /// Waits until a connection comes back. Endpoints bound their tunnels: a dial may have to wait for one that has
    /// just become idle here.
    pub(crate) async fn h1_returned(&self, worker: usize) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let shard = self.shard(worker);
        shard.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&shard.waiting);
        shard.returned.notified().await;
    }

    /// An HTTP/2 connection with room for another stream.
    pub(crate) fn take_h2(&self, worker: usize, limits: H2Limits) -> Option<H2Lease> {
        let mut connections = self.shard(worker).h2.lock();
        connections.retain(|connection| connection.is_usable(limits));
        connections
            .iter()
            .find(|connection| connection.active.load(Ordering::Relaxed) < limits.streams)
            .map(H2Lease::new)
    }

    /// Held while dialling, so that a burst makes one connection.
    pub(crate) async fn dialling(&self, worker: usize) -> tokio::sync::MutexGuard<'_, ()> {
        self.shard(worker).dialling.lock().await
    }

    /// Adds a connection and takes a stream of it.
    pub(crate) fn put_h2(
        &self,
        worker: usize,
        send: SendRequest<Bytes>,
        closed: Arc<AtomicBool>,
        timeout: Duration,
    ) -> H2Lease {
        let connection = Arc::new(H2Connection {
            send,
            active: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            closed,
            idle_since: Mutex::new(Instant::now()),
            timeout,
        });
        let lease = H2Lease::new(&connection);
        self.shard(worker).h2.lock().push(connection);
        lease
    }

    /// Closes what has been idle for too long, and what the endpoint has closed or wants to close.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            shard.h1.lock().retain_mut(|idle| {
                idle.since.elapsed() < idle.timeout && idle.connection.reader.is_idle()
            });
            shard.h2.lock().retain(|connection| !connection.is_stale());
        }
    }

    /// Idle HTTP/1 and open HTTP/2 connections.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.shards.iter().fold((0, 0), |(h1, h2), shard| {
            (h1 + shard.h1.lock().len(), h2 + shard.h2.lock().len())
        })
    }
}

/// All are ids, or all are trust domains (`spiffe://DOMAIN/`), of which anybody is accepted.
fn expected(identities: &[String]) -> Option<ExpectedPeers> {
    let domain = |text: &String| {
        let domain = text.strip_prefix("spiffe://")?.strip_suffix('/')?;
        (!domain.contains('/')).then(|| domain.to_owned())
    };
    if let Some(domains) = identities.iter().map(domain).collect::<Option<Vec<_>>>() {
        return Some(ExpectedPeers::any_of(TrustDomains::new(domains).ok()?));
    }
    ExpectedPeers::parse(identities).ok()
}

/// How much one HTTP/2 connection carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct H2Limits {
    /// At once.
    pub(crate) streams: usize,
    /// Ever.
    pub(crate) requests: usize,
}

impl H2Connection {
    fn is_usable(&self, limits: H2Limits) -> bool {
        !self.closed.load(Ordering::Relaxed)
            && self.served.load(Ordering::Relaxed) < limits.requests
            && !self.is_stale()
    }

    fn is_stale(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
            || (self.active.load(Ordering::Relaxed) == 0
                && self.idle_since.lock().elapsed() >= self.timeout)
    }

    /// No further stream is opened on it.
    pub(crate) fn retire(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl H2Lease {
    fn new(connection: &Arc<H2Connection>) -> Self {
        connection.active.fetch_add(1, Ordering::Relaxed);
        connection.served.fetch_add(1, Ordering::Relaxed);
        H2Lease(Arc::clone(connection))
    }

    /// Another stream was open on it before.
    pub(crate) fn is_reused(&self) -> bool {
        self.0.served.load(Ordering::Relaxed) > 1
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.idle_since.lock() = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cairn_identity::SpiffeId;

    fn accepts(identities: &[&str], id: &str) -> Option<bool> {
        let identities: Vec<String> = identities.iter().map(|&text| text.to_owned()).collect();
        Some(expected(&identities)?.contains(&SpiffeId::parse(id).unwrap()))
    }

    #[test]
    fn whom_an_endpoint_has_to_be() {
        let app = "spiffe://cluster.local/ns/shop/sa/app";
        let other = "spiffe://cluster.local/ns/shop/sa/other";
        let far = "spiffe://other.domain/ns/shop/sa/app";
        assert_eq!(accepts(&[app], app), Some(true));
        assert_eq!(accepts(&[app], other), Some(false));
        let domain = ["spiffe://cluster.local/"];
        assert_eq!(accepts(&domain, app), Some(true));
        assert_eq!(accepts(&domain, other), Some(true));
        assert_eq!(accepts(&domain, far), Some(false));
        assert_eq!(accepts(&["spiffe://cluster.local/", app], app), None, "one kind at a time");
        assert_eq!(accepts(&["spiffe:///"], app), None);
        assert_eq!(accepts(&["anybody"], app), None);
        assert_eq!(accepts(&[], app), None);
    }
}
