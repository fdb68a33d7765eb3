//! One try of a request at one endpoint, and how it went wrong.

use crate::breakers::Held;
use crate::inbound::Inbound;
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use tokio::time::{Instant, Sleep, sleep_until};

/// Why a try failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection: refused, unreachable, TLS or the tunnel's CONNECT failed.
    Connect(String),
    /// No connection within the cluster's connect timeout.
    ConnectTimeout,
    /// The connection or stream ended before the response's head was there. `reused`: it had carried requests before.
    Reset { reused: bool },
    /// The endpoint has reset the stream, and the connection goes on.
    StreamReset,
    /// The endpoint said that it has not looked at the request: its GOAWAY leaves the stream out.
    Unprocessed,
    /// The upstream refused the stream unprocessed (REFUSED_STREAM).
    RefusedStream,
    /// The connection or stream ended inside the response.
    Truncated,
    /// What came is no HTTP.
    Protocol(String),
    /// The route's timeout has passed.
    Timeout,
    /// The try's own timeout has passed.
    PerTryTimeout,
    /// Neither side has sent a byte for too long.
    Idle,
    /// The cluster's connections are all taken, and waiting for one is of no use.
    Overflow,
}

impl Failure {
    /// What went wrong below HTTP.
    pub(crate) fn transport_reason(&self) -> Option<&str> {
        match self {
            Failure::Connect(reason) => Some(reason),
            Failure::ConnectTimeout => Some("connect timeout"),
            _ => None,
        }
    }
}

/// One try.
pub(crate) struct Attempt {
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) endpoint: Arc<Endpoint>,
    /// HTTP/2 is spoken to the endpoint.
    pub(crate) http2: bool,
    /// No pooled HTTP/1 connection is taken: one has turned out dead.
    pub(crate) fresh: bool,
    /// When the try's own timeout passes.
    per_try_deadline: Option<Instant>,
    failure: OnceLock<Failure>,
    /// Room at the cluster, where requests are bounded.
    _room: Option<Held>,
}

/// Which timeouts bound a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// The route's and the try's own: up to the response's head.
    Try,
    /// The route's alone.
    Route,
    /// None but the silence of both sides: after an upgrade.
    Silence,
}

impl Attempt {
    pub(crate) fn new(
        inbound: Arc<Inbound>,
        cluster: Arc<Cluster>,
        endpoint: Arc<Endpoint>,
        http2: bool,
        per_try_deadline: Option<Instant>,
    ) -> Self {
        Attempt {
            inbound,
            cluster,
            endpoint,
            http2,
            fresh: false,
            per_try_deadline,
            failure: OnceLock::new(),
            _room: None,
        }
    }

    /// With room at the cluster for as long as it lives.
    pub(crate) fn in_room(mut self, room: Option<Held>) -> Self {
        self._room = room;
        self
    }

    /// On a connection of its own, if `fresh`.
    pub(crate) fn on_fresh_connection(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }

    /// Notes why the try failed; the first reason counts.
    pub(crate) fn fail(&self, failure: Failure) {
        let _first_counts = self.failure.set(failure);
    }

    /// Why the try failed.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// The route's timeout starts when the request has been read, which may be while a step is waiting.
    fn deadline(&self, bound: Bound) -> Option<(Instant, Failure)> {
        let route = (bound != Bound::Silence).then(|| self.inbound.deadline()).flatten();
        let one = self.per_try_deadline.filter(|_| bound == Bound::Try);
        let silence = self.inbound.idle_deadline();
        [
            route.map(|at| (at, Failure::Timeout)),
            one.map(|at| (at, Failure::PerTryTimeout)),
            silence.map(|at| (at, Failure::Idle)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Runs `step` until its deadline; `None`: it has passed, which is noted.
    pub(crate) async fn bounded<T>(
        &self,
        bound: Bound,
        step: impl Future<Output = T>,
    ) -> Option<T> {
        let mut step = std::pin::pin!(step);
        let mut alarm: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            if let Poll::Ready(value) = step.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let Some((at, failure)) = self.deadline(bound) else {
                return Poll::Pending;
            };
            let alarm = alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if alarm.deadline() != at {
                alarm.as_mut().reset(at);
            }
            alarm.as_mut().poll(cx).map(|()| {
                self.fail(failure);
                None
            })
        })
        .await
    }
}
