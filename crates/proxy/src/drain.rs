//! Ending what is served without losing a request.
//!
//! A drain tells clients in two ways. Their HBONE connections get GOAWAY in two steps, so that ztunnel opens the next
//! tunnel elsewhere. The tunnels are told, too (HTTP/2: GOAWAY; HTTP/1.1: `connection: close` on the next response), because
//! a client that keeps its connection alive would stay for ever. Streams, upgraded connections and TCP live until the
//! limit, and are then reset: nothing that was not finished looks as if it were.

use crate::instance::MeshInstance;
use crate::listener::Running;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the end of a drain waits for what is told to collectors.
const FLUSH: Duration = Duration::from_secs(2);
/// How often tunnels are told whose time has come.
const TICK: Duration = Duration::from_millis(50);
/// How long nothing has to be open until a drain that accepts is over.
const QUIET: Duration = Duration::from_millis(500);
/// How long the resets of tunnels that are cut, and the ends of connections, have.
const CUT: Duration = Duration::from_secs(1);

/// How a drain that goes on accepting is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPlan {
    /// Over how long tunnels are told to end, each at a moment of its own by chance, so that clients do not all come
    /// to the other waypoints at once; zero: all at once. For a waypoint of a pool 20 s.
    pub spread: Duration,
    /// When what is left is cut, from the beginning.
    pub limit: Duration,
}

impl Default for DrainPlan {
    fn default() -> Self {
        DrainPlan { spread: Duration::from_secs(20), limit: Duration::from_secs(120) }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections and tunnels that were still open at the limit, and were cut.
    pub cut: usize,
    /// Of those, tunnels with requests, among them streams of gRPC.
    pub http: usize,
    /// Of those, other tunnels: TCP, and what a request was upgraded to.
    pub opaque: usize,
}

/// What is open at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlight {
    /// HBONE connections.
    pub connections: u64,
    /// Tunnels.
    pub tunnels: u64,
    /// Requests whose response is not over.
    pub requests: u64,
}

impl Running {
    /// The instance that is served.
    pub fn instance(&self) -> &Arc<MeshInstance> {
        &self.instance
    }

    /// What is open now. Cheap.
    pub fn in_flight(&self) -> InFlight {
        let counters = self.instance.counters();
        InFlight {
            connections: counters.connections.get(),
            tunnels: counters.tunnels.get(),
            requests: counters.requests_in_flight.get(),
        }
    }

    /// Stops accepting, tells clients (GOAWAY in two steps), lets what is in flight finish for up to `limit`,
    /// and cuts the rest.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let begun = Instant::now();
        self.stop_accepting();
        self.drain.start();
        self.end(begun, DrainPlan { spread: Duration::ZERO, limit }).await
    }

    /// As [`drain`](Self::drain), and goes on accepting meanwhile: a ztunnel that has not heard of the end may still
    /// come. Its connection is told GOAWAY right away, and its tunnels are served. Ends when nothing has been open for
    /// half a second, or at the limit.
    pub async fn drain_by(&self, plan: DrainPlan) -> Drained {
        let begun = Instant::now();
        self.drain.start();
        let quiet = self.tell(begun, plan.spread, Some(QUIET));
        let _at_the_limit_it_is_not = tokio::time::timeout(plan.limit, quiet).await;
        self.stop_accepting();
        self.end(begun, plan).await
    }

    fn stop_accepting(&self) {
        drop(self.stop.lock().take());
        self.tasks.close();
    }

    /// Tells tunnels in their time, for ever; with `quiet`: until nothing has been open for so long.
    async fn tell(&self, begun: Instant, spread: Duration, quiet: Option<Duration>) {
        let mut tick = tokio::time::interval(TICK);
        let mut open_at = begun;
        loop {
            tick.tick().await;
            self.instance.roll().tell_due(begun.elapsed(), spread);
            if !self.tasks.is_empty() {
                open_at = Instant::now();
            } else if quiet.is_some_and(|quiet| open_at.elapsed() >= quiet) {
                return;
            }
        }
    }

    /// Waits for the end of what is open until the limit, and cuts the rest.
    async fn end(&self, begun: Instant, plan: DrainPlan) -> Drained {
        let drained = tokio::select! {
            () = self.tasks.wait() => Drained::default(),
            () = self.tell(begun, plan.spread, None) => Drained::default(),
            () = tokio::time::sleep_until(begun + plan.limit) => self.cut_short().await,
        };
        self.over.cancel();
        // The last requests are told of, too.
        self.instance.flush_exports(FLUSH).await;
        drained
    }

    /// Resets the tunnels, and gives the connections time to say so.
    async fn cut_short(&self) -> Drained {
        let cut = self.tasks.len();
        let (http, opaque) = self.instance.roll().cut();
        let _resets_are_sent = tokio::time::timeout(CUT, self.tasks.wait()).await;
        self.cut.cancel();
        let _gone_with_the_process = tokio::time::timeout(CUT, self.tasks.wait()).await;
        Drained { cut, http, opaque }
    }
}
