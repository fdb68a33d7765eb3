//! The delta ADS client: one stream to istiod, kept up for as long as the process lives.
//!
//! ```text
//! dial → open (node, subscriptions, known versions) → per answer: take in → ACK or NACK → subscriptions that follow
//!   ↑                                                                                             │
//!   └──────────────────────── back off, with jitter ← the stream ends, for whatever reason ───────┘
//! ```
//!
//! Invariants:
//! * One task per [`Ads`]; all it knows came as values, so a process may have any number.
//! * What an answer does not name stays. Only the first answer of a stream that was asked for everything, without known
//!   versions, is everything: what it does not hold is dropped.
//! * What is refused keeps its last good value, in the consumer as in the [store](crate::store).
//! * Without istiod nothing changes: the last good configuration stays, and the client never gives up.
//! * An answer may take as long as it likes, and come in any order; a dead connection is found by its keepalive.
//!
//! Contract: istiod's `pilot/pkg/xds/delta.go`; Envoy's `xds_protocol` (incremental, aggregated).

mod backoff;
mod client;
mod config;
mod intake;
mod session;
mod status;
mod topic;

pub use client::{Ads, AdsClient};
pub use config::{AdsConfig, Backoff, MAX_ANSWER_BYTES, WorkloadScope};
pub use status::{AdsStatus, KindStatus};
