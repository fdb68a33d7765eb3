//! The protocol of one stream, without the stream: answers in, requests out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Received,
};
use cairn_proto::envoy::google::rpc::Status;
use cairn_proto::tonic::Code;

use super::config::{AdsConfig, WorkloadScope};
use super::topic::{Ask, Scope, Topic};
use crate::feed::{Kind, Rejected, Resource, Update, Wanted};
use crate::store::Store;

/// Most bytes of an `error_detail`.
const MAX_DETAIL_BYTES: usize = 4096;

/// One stream.
#[derive(Debug)]
pub(super) struct Session {
    node: Option<Node>,
    topics: Vec<Topic>,
}

/// An answer to take in, and then to acknowledge.
#[derive(Debug)]
pub(super) struct Delivery {
    pub update: Update,
    /// `system_version_info`.
    pub version: String,
    /// Whether it is the kind's own, and not an answer to a lookup.
    pub counts: bool,
    receipt: Receipt,
}

/// What an acknowledgement needs.
#[derive(Debug)]
pub(super) struct Receipt {
    type_url: String,
    nonce: String,
}

/// What follows from what the consumer wants.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub requests: Vec<DeltaDiscoveryRequest>,
    /// Held resources that are needed no longer.
    pub forgotten: Vec<Update>,
}

impl Session {
    pub(super) fn new(config: &AdsConfig) -> Self {
        let mut topics = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| config.kinds.contains(kind)) {
            let scope = match (kind, config.workloads) {
                (Kind::Cluster | Kind::Listener, _) => Scope::All,
                (Kind::Endpoints | Kind::ExtensionConfig | Kind::Secret, _) => Scope::Named,
                (Kind::Workload, WorkloadScope::Wildcard) => Scope::All,
                (Kind::Workload, WorkloadScope::OnDemand) => Scope::OnDemand,
            };
            topics.push(Topic::new(kind, scope));
            if kind == Kind::Workload && scope == Scope::All {
                topics.push(Topic::new(kind, Scope::Lookup));
            }
        }
        Session { node: Some(config.node.clone()), topics }
    }

    /// Subscribes to what is wanted now. The first call opens the stream.
    pub(super) fn follow(&mut self, wanted: &Wanted, store: &Store) -> Followed {
        let mut followed = Followed::default();
        let Session { node, topics } = self;
        // Whom all of them do not name is looked up; before they have come, that would be everybody.
        let all_there = topics.iter().any(|topic| {
            topic.kind == Kind::Workload && topic.scope == Scope::All && topic.answered
        });
        for topic in topics {
            if topic.scope == Scope::Lookup && !all_there {
                continue;
            }
            let (asks, forgotten) = topic.follow(wanted, store);
            for Ask { subscribe, unsubscribe, versions } in asks {
                followed.requests.push(DeltaDiscoveryRequest {
                    node: node.take(),
                    type_url: topic.type_url.to_owned(),
                    resource_names_subscribe: subscribe,
                    resource_names_unsubscribe: unsubscribe,
                    initial_resource_versions: HashMap::from_iter(versions),
                    ..DeltaDiscoveryRequest::default()
                });
            }
            if !forgotten.is_empty() {
                followed.forgotten.push(Update {
                    kind: topic.kind,
                    changed: Vec::new(),
                    removed: forgotten,
                });
            }
        }
        followed
    }

    /// Whether nothing of this kind has been asked for, because nothing is wanted.
    pub(super) fn wants_nothing(&self, kind: Kind) -> bool {
        self.topics.iter().all(|topic| topic.kind != kind || !topic.asked)
    }

    /// Reads an answer; the error is the request that refuses it as a whole.
    pub(super) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Delivery, Box<(DeltaDiscoveryRequest, Rejected)>> {
        let DeltaDiscoveryResponse {
            system_version_info,
            resources,
            type_url,
            removed_resources,
            nonce,
            ..
        } = response;
        let receipt = Receipt { type_url, nonce };
        let asked = |topic: &&mut Topic| topic.asked && topic.type_url == receipt.type_url;
        let Some(topic) = self.topics.iter_mut().find(asked) else {
            let detail = format!("{:?} was not asked for", receipt.type_url);
            let rejected = Rejected { detail };
            return Err(Box::new((receipt.answer(Err(&rejected)), rejected)));
        };
        topic.answered = true;
        let named: BTreeSet<&str> = resources.iter().map(name_of).collect();
        let mut removed = topic.settle(&named);
        removed.extend(removed_resources.into_iter().filter(|name| !named.contains(name.as_str())));
        // Of two with one name the last counts. What was unsubscribed meanwhile is not wanted.
        let mut changed = BTreeMap::new();
        for received in resources {
            if topic.takes(name_of(&received))
                && let Some(resource) = resource(received)
            {
                changed.insert(resource.name.clone(), resource);
            }
        }
        Ok(Delivery {
            update: Update { kind: topic.kind, changed: changed.into_values().collect(), removed },
            version: system_version_info,
            counts: topic.scope != Scope::Lookup,
            receipt,
        })
    }
}

impl Delivery {
    /// Its parts: what to take in, and what to acknowledge with.
    pub(super) fn split(self) -> (Update, Receipt) {
        (self.update, self.receipt)
    }
}

impl Receipt {
    /// The ACK or the NACK. It changes no subscription: istiod takes both at once for an error.
    pub(super) fn answer(self, result: Result<(), &Rejected>) -> DeltaDiscoveryRequest {
        let Receipt { type_url, nonce } = self;
        DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail: result.err().map(|Rejected { detail }| Status {
                code: Code::InvalidArgument as i32,
                message: shortened(detail, MAX_DETAIL_BYTES),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// At most so many bytes of a text.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}…", text.get(..text.floor_char_boundary(most)).unwrap_or_default())
}

fn name_of(received: &Received) -> &str {
    match &received.resource_name {
        Some(name) if received.name.is_empty() => &name.name,
        _ => &received.name,
    }
}

/// None for one without a body: it only says that the resource is still there.
fn resource(received: Received) -> Option<Resource> {
    let name = name_of(&received).to_owned();
    let Received { version, aliases, resource, .. } = received;
    let body = resource?;
    Some(Resource {
        name,
        version,
        type_url: body.type_url,
        body: Bytes::from(body.value),
        aliases,
    })
}

#[cfg(test)]
mod tests;
