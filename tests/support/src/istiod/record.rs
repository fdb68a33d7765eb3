//! What clients said.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_xds::feed::Kind;

/// What clients said, in order.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// TLS connections.
    pub connections: u64,
    /// Discovery streams that were let in, and who opened them.
    pub streams: Vec<String>,
    /// Nodes, as the first request of each stream had them.
    pub nodes: Vec<Node>,
    /// Requests of all streams.
    pub requests: Vec<Asked>,
    /// Tokens, of streams and of certificate requests; empty: none was sent.
    pub tokens: Vec<String>,
    /// `clusterid` metadata, likewise.
    pub cluster_ids: Vec<String>,
    /// URI SANs of client certificates, by connection that had one.
    pub certificates: Vec<String>,
    /// What should not have been: subscriptions changed with an ACK, a change that changes nothing.
    pub violations: Vec<String>,
    /// Certificates that were signed.
    pub signed: Vec<Signed>,
    /// Certificate requests that were refused or answered with a fault.
    pub unsigned: u64,
}

/// One discovery request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Which stream, from 0.
    pub stream: usize,
    /// Its type.
    pub type_url: String,
    /// Names that were added.
    pub subscribe: Vec<String>,
    /// Names that were dropped.
    pub unsubscribe: Vec<String>,
    /// Versions that were said to be known.
    pub versions: BTreeMap<String, String>,
    /// The answer that it acknowledges; empty: none.
    pub nonce: String,
    /// What was wrong with that answer, with its code.
    pub error: Option<(i32, String)>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// For whom.
    pub identity: String,
    /// Hexadecimal.
    pub serial: String,
    /// Seconds that were asked for.
    pub asked_seconds: i64,
    /// Whether the caller had shown a certificate.
    pub by_certificate: bool,
}

impl Record {
    /// Answers of a kind that were taken.
    pub fn acks(&self, kind: Kind) -> usize {
        self.of(kind).filter(|asked| !asked.nonce.is_empty() && asked.error.is_none()).count()
    }

    /// Why answers of a kind were refused.
    pub fn nacks(&self, kind: Kind) -> Vec<String> {
        self.of(kind).filter_map(|asked| asked.error.clone()).map(|(_, text)| text).collect()
    }

    /// What a stream is subscribed to of a kind.
    pub fn subscribed(&self, stream: usize, kind: Kind) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for asked in self.of(kind).filter(|asked| asked.stream == stream) {
            names.extend(asked.subscribe.iter().cloned());
            for name in &asked.unsubscribe {
                names.remove(name);
            }
        }
        names
    }

    /// The first request of a stream for a kind.
    pub fn first(&self, stream: usize, kind: Kind) -> Option<&Asked> {
        self.of(kind).find(|asked| asked.stream == stream)
    }

    /// Requests of a kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Asked> {
        self.requests.iter().filter(move |asked| asked.type_url == kind.type_url())
    }
}
