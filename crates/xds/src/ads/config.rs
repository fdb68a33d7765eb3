//! What a client is told.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_identity::istiod::Istiod;
use cairn_proto::envoy::envoy::config::core::v3::Node;

use crate::feed::Kind;

/// Largest answer that is taken, in bytes. Istio's agent has no limit; a mesh of 1,000 services needs 8.3 MB.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Whom to ask, as whom, and for what.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// The way to istiod. Roots, token and certificate are looked at again for each stream.
    pub istiod: Istiod,
    /// Who asks: sent with the first request of each stream.
    pub node: Node,
    /// What is asked for.
    pub kinds: BTreeSet<Kind>,
    /// Which workloads are asked for.
    pub workloads: WorkloadScope,
    /// How long to wait between streams.
    pub backoff: Backoff,
}

impl AdsConfig {
    /// All kinds, every workload, the usual waits.
    pub fn new(istiod: Istiod, node: Node) -> Self {
        AdsConfig {
            istiod,
            node,
            kinds: Kind::ALL.into(),
            workloads: WorkloadScope::default(),
            backoff: Backoff::default(),
        }
    }
}

/// Which workloads are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkloadScope {
    /// All of the mesh, as an Envoy waypoint asks. After a reconnect istiod sends only what changed.
    ///
    /// Those that the consumer misses are asked for by `network/ip` all the same, as `istio.workload.Address`: istiod
    /// would answer a name beside a wildcard with the whole mesh again (`pilot/pkg/xds/workload.go`).
    #[default]
    Wildcard,
    /// Only those that the consumer wants, by `network/ip`. One that has come stays until istiod removes it.
    OnDemand,
}

/// How long to wait between streams. Each wait is cut by up to its half, at random, so that clients that lost the same
/// istiod do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After a healthy stream. Doubled after each one that was not.
    pub first: Duration,
    /// Longest wait.
    pub longest: Duration,
    /// A stream that was answered and lived for so long was healthy.
    pub healthy: Duration,
}

impl Default for Backoff {
    /// 100 ms to 30 s; healthy after 10 s.
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(30),
            healthy: Duration::from_secs(10),
        }
    }
}
