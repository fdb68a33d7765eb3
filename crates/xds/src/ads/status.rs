//! How a client is doing, for readiness, metrics and logs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::feed::Kind;

/// How a client is doing. Counts are since the client was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdsStatus {
    /// There is a stream, and istiod has answered on it.
    pub connected: bool,
    /// Kinds of which a first answer is in. EDS counts too when CDS is in and no cluster wants endpoints.
    pub initial: BTreeSet<Kind>,
    /// By kind, of those that were answered.
    pub kinds: BTreeMap<Kind, KindStatus>,
    /// Streams that istiod answered on.
    pub streams: u64,
    /// Attempts and streams that ended, for whatever reason.
    pub reconnects: u64,
    /// Why the last one ended. Stays when the next stream is there.
    pub last_error: Option<String>,
    /// When the last one ended.
    pub last_error_at: Option<SystemTime>,
    /// What was said with the last NACK.
    pub last_nack: Option<String>,
}

/// How one kind is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindStatus {
    /// Answers that were taken.
    pub acks: u64,
    /// Answers of which something was refused.
    pub nacks: u64,
    /// Version of the last answer that was taken as a whole (`system_version_info`).
    pub version: String,
    /// When the last answer came.
    pub last_answer: Option<SystemTime>,
}

impl AdsStatus {
    /// Answers that were taken, of all kinds.
    pub fn acks(&self) -> u64 {
        self.kinds.values().map(|kind| kind.acks).sum()
    }

    /// Answers of which something was refused, of all kinds.
    pub fn nacks(&self) -> u64 {
        self.kinds.values().map(|kind| kind.nacks).sum()
    }

    /// Those of `required` whose first answer is not in.
    pub fn missing(&self, required: &[Kind]) -> Vec<Kind> {
        required.iter().copied().filter(|kind| !self.initial.contains(kind)).collect()
    }
}
