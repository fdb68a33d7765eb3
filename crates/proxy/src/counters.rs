//! Plain counters of one mesh instance.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

/// Holds a [`Level`] one higher until it is dropped.
#[derive(Debug)]
pub struct Raised<L: std::ops::Deref<Target = Counters>>(L, fn(&Counters) -> &Level);

impl Level {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn change(&self, up: bool) {
        if up {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<L: std::ops::Deref<Target = Counters>> Raised<L> {
    pub(crate) fn new(counters: L, level: fn(&Counters) -> &Level) -> Self {
        level(&counters).change(true);
        Raised(counters, level)
    }
}

impl<L: std::ops::Deref<Target = Counters>> Drop for Raised<L> {
    fn drop(&mut self) {
        (self.1)(&self.0).change(false);
    }
}

/// What one instance has done and is doing. Handshakes and streams are counted by `hbone`.
#[derive(Debug, Default)]
pub struct Counters {
    /// HBONE connections that are open.
    pub connections: Level,
    /// HBONE connections closed before TLS because there were too many.
    pub connections_shed: Count,
    /// Tunnels that are open.
    pub tunnels: Level,
    /// CONNECTs refused because no new tunnels were taken: 503.
    pub tunnels_shed: Count,
    /// Tunnels that carried HTTP/1.1.
    pub tunnels_http1: Count,
    /// Tunnels that carried HTTP/2.
    pub tunnels_http2: Count,
    /// Tunnels that carried opaque bytes.
    pub tunnels_tcp: Count,
    /// Tunnels of requests whose clients were told to open others because of their age.
    pub tunnels_aged: Count,
    /// Tunnels of requests whose clients were told to open others to balance the load.
    pub tunnels_rebalanced: Count,
    /// HBONE connections whose clients were told to open others because of their age.
    pub connections_aged: Count,
    /// CONNECTs for a destination that nobody has: 404.
    pub unknown_destinations: Count,
    /// CONNECTs that a policy refused: 403.
    pub denied_tunnels: Count,
    /// Requests whose response is not over.
    pub requests_in_flight: Level,
    /// Requests begun.
    pub requests: Count,
    /// Requests refused because too many were in flight: 503.
    pub requests_shed: Count,
    /// Requests that have waited for room in the process, whatever became of them.
    pub requests_queued: Count,
    /// Of the refused requests, those for which their tenant had no room in the process.
    pub requests_shed_by_share: Count,
    /// Requests and connections that a cluster's circuit breaker refused.
    pub overflows: Count,
    /// Streams of HTTP/2 inside of tunnels.
    pub streams: Level,
    /// Requests whose head was refused: 400, 408, 426, 431.
    pub refused_heads: Count,
    /// Tries after the first.
    pub retries: Count,
    /// Mirrored requests.
    pub mirrored: Count,
    /// Requests that were not mirrored because too many mirrors were in flight.
    pub mirrors_shed: Count,
    /// Snapshots that were published.
    pub snapshots: Count,
}

impl Counters {
    /// Name, help, whether it only grows, and value of each.
    pub fn snapshot(&self) -> Vec<(&'static str, &'static str, bool, u64)> {
        let Counters {
            connections,
            connections_shed,
            tunnels,
            tunnels_shed,
            tunnels_http1,
            tunnels_http2,
            tunnels_tcp,
            tunnels_aged,
            tunnels_rebalanced,
            connections_aged,
            unknown_destinations,
            denied_tunnels,
            requests_in_flight,
            requests,
            requests_shed,
            requests_queued,
            requests_shed_by_share,
            overflows,
            streams,
            refused_heads,
            retries,
            mirrored,
            mirrors_shed,
            snapshots,
        } = self;
        vec![
            ("cairn_connections", "HBONE connections that are open.", false, connections.get()),
            (
                "cairn_connections_shed_total",
                "HBONE connections closed before TLS because there were too many.",
                true,
                connections_shed.get(),
            ),
            ("cairn_tunnels", "Tunnels that are open.", false, tunnels.get()),
            (
                "cairn_tunnels_shed_total",
                "CONNECTs refused because no new tunnels were taken.",
                true,
                tunnels_shed.get(),
            ),
            (
                "cairn_tunnels_http1_total",
                "Tunnels that carried HTTP/1.1.",
                true,
                tunnels_http1.get(),
            ),
            (
                "cairn_tunnels_http2_total",
                "Tunnels that carried HTTP/2.",
                true,
                tunnels_http2.get(),
            ),
            (
                "cairn_tunnels_tcp_total",
                "Tunnels that carried opaque bytes.",
                true,
                tunnels_tcp.get(),
            ),
            (
                "cairn_tunnels_aged_total",
                "HTTP tunnels whose clients were told to open others because of their age.",
                true,
                tunnels_aged.get(),
            ),
            (
                "cairn_tunnels_rebalanced_total",
                "HTTP tunnels whose clients were told to open others to balance the load.",
                true,
                tunnels_rebalanced.get(),
            ),
            (
                "cairn_connections_aged_total",
                "HBONE connections whose clients were told to open others because of their age.",
                true,
                connections_aged.get(),
            ),
            (
                "cairn_unknown_destinations_total",
                "CONNECTs for a destination that nobody has.",
                true,
                unknown_destinations.get(),
            ),
            (
                "cairn_denied_tunnels_total",
                "CONNECTs that a policy refused.",
                true,
                denied_tunnels.get(),
            ),
            (
                "cairn_requests_in_flight",
                "Requests whose response is not over.",
                false,
                requests_in_flight.get(),
            ),
            ("cairn_requests_total", "Requests begun.", true, requests.get()),
            (
                "cairn_requests_shed_total",
                "Requests refused because too many were in flight.",
                true,
                requests_shed.get(),
            ),
            (
                "cairn_requests_queued_total",
                "Requests that have waited for room in the process.",
                true,
                requests_queued.get(),
            ),
            (
                "cairn_requests_shed_by_share_total",
                "Of the refused requests, those whose tenant had no room in the process.",
                true,
                requests_shed_by_share.get(),
            ),
            (
                "cairn_overflows_total",
                "Requests and connections that a cluster's circuit breaker refused.",
                true,
                overflows.get(),
            ),
            ("cairn_streams", "HTTP/2 streams inside of tunnels.", false, streams.get()),
            (
                "cairn_refused_heads_total",
                "Requests whose head was refused.",
                true,
                refused_heads.get(),
            ),
            ("cairn_retries_total", "Tries after the first.", true, retries.get()),
            ("cairn_mirrored_total", "Mirrored requests.", true, mirrored.get()),
            (
                "cairn_mirrors_shed_total",
                "Requests not mirrored because too many mirrors were in flight.",
                true,
                mirrors_shed.get(),
            ),
            (
                "cairn_snapshots_total",
                "Configuration snapshots that were published.",
                true,
                snapshots.get(),
            ),
        ]
    }
}
