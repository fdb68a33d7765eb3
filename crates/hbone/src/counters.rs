//! Counters of both doors. Plain atomics that only grow; whoever owns them renders them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_identity::PeerRefusal;

use crate::traffic::Traffic;

/// How many reasons of a failed handshake there are beside those of [`PeerRefusal`].
const OTHER_FAILURES: usize = 3;

const FAILURES: usize = PeerRefusal::LABELS.len() + OTHER_FAILURES;

/// Why a connection never came to HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// TLS was refused, by us or by the peer.
    Refused(PeerRefusal),
    /// TLS and the HTTP/2 preface were not complete in time.
    Timeout,
    /// The peer closed or reset the connection.
    Closed,
    /// TLS was complete, but what came was not HTTP/2.
    Preface,
}

impl HandshakeFailure {
    /// A value for a metric's label: one of [`PeerRefusal::LABELS`], `timeout`, `closed` or `preface`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Preface => "preface",
        }
    }

    fn index(&self) -> usize {
        let other = PeerRefusal::LABELS.len();
        match self {
            Self::Refused(refusal) => refusal.index(),
            Self::Timeout => other,
            Self::Closed => other + 1,
            Self::Preface => other + 2,
        }
    }
}

/// What a [`Terminator`](crate::Terminator) counts.
#[derive(Debug, Default)]
pub struct TerminatorCounters {
    /// TCP connections taken.
    pub connections_opened: AtomicU64,
    /// Of those, how many are over.
    pub connections_closed: AtomicU64,
    /// Handshakes, TLS and HTTP/2 preface, that were completed.
    pub handshakes: AtomicU64,
    handshake_failures: Failures,
    /// Well-formed CONNECTs, whatever the answer.
    pub connects: AtomicU64,
    /// Requests answered with 400 here: other methods, and CONNECTs without a good authority.
    pub connects_malformed: AtomicU64,
    /// CONNECTs that were refused by [`Connect::refuse`](crate::Connect::refuse).
    pub connects_refused: AtomicU64,
    /// Tunnels: CONNECTs answered with 200.
    pub tunnels_opened: AtomicU64,
    /// Of those, how many are over: both halves are dropped.
    pub tunnels_closed: AtomicU64,
    /// Connections cut because the peer flooded them.
    pub floods: AtomicU64,
    /// Connections cut because the peer did not answer a PING.
    pub keepalive_timeouts: AtomicU64,
    /// Bytes on the wire.
    pub traffic: Arc<Traffic>,
}

impl TerminatorCounters {
    /// Failed handshakes by [`HandshakeFailure::label`], all labels, also those that are 0.
    pub fn handshake_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.handshake_failures.iter()
    }

    pub(crate) fn handshake_failed(&self, failure: &HandshakeFailure) {
        self.handshake_failures.add(failure);
    }
}

/// What an [`Originator`](crate::Originator) counts.
#[derive(Debug, Default)]
pub struct OriginatorCounters {
    /// Connections that were established, TLS included.
    pub connections_opened: AtomicU64,
    /// Of those, how many are over.
    pub connections_closed: AtomicU64,
    /// Attempts to establish one, those that failed included.
    pub dials: AtomicU64,
    dial_failures: Failures,
    /// Tunnels: CONNECTs that were answered with 200.
    pub tunnels_opened: AtomicU64,
    /// Of those, how many are over: both halves are dropped.
    pub tunnels_closed: AtomicU64,
    /// CONNECTs that were answered otherwise.
    pub connects_refused: AtomicU64,
    /// CONNECTs that were sent again on another connection, because theirs went away before the answer.
    pub connects_retried: AtomicU64,
    /// Connections released because nobody used them.
    pub idle_released: AtomicU64,
    /// Connections cut because the peer flooded them.
    pub floods: AtomicU64,
    /// Connections cut because the peer did not answer a PING.
    pub keepalive_timeouts: AtomicU64,
    /// Bytes on the wire.
    pub traffic: Arc<Traffic>,
}

impl OriginatorCounters {
    /// Failed dials by [`HandshakeFailure::label`], all labels, also those that are 0. A connection that was refused
    /// by TCP counts as `closed`.
    pub fn dial_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.dial_failures.iter()
    }

    pub(crate) fn dial_failed(&self, failure: &HandshakeFailure) {
        self.dial_failures.add(failure);
    }
}

#[derive(Debug, Default)]
struct Failures([AtomicU64; FAILURES]);

impl Failures {
    fn add(&self, failure: &HandshakeFailure) {
        if let Some(counter) = self.0.get(failure.index()) {
            increase(counter);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let others =
            [HandshakeFailure::Timeout, HandshakeFailure::Closed, HandshakeFailure::Preface];
        let labels = PeerRefusal::LABELS.into_iter().chain(others.map(|failure| failure.label()));
        labels.zip(self.0.iter().map(|counter| counter.load(Ordering::Relaxed)))
    }
}

pub(crate) fn increase(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_counts_under_its_own_label() {
        let counters = TerminatorCounters::default();
        let failures = [
            HandshakeFailure::Refused(PeerRefusal::Expired),
            HandshakeFailure::Refused(PeerRefusal::Handshake(String::new())),
            HandshakeFailure::Timeout,
            HandshakeFailure::Closed,
            HandshakeFailure::Preface,
        ];
        for failure in &failures {
            counters.handshake_failed(failure);
        }
        let counted: Vec<_> = counters
            .handshake_failures()
            .filter(|(_, count)| *count == 1)
            .map(|(label, _)| label)
            .collect();
        assert_eq!(counted, failures.map(|failure| failure.label()));
        assert_eq!(counters.handshake_failures().count(), FAILURES);
    }
}
