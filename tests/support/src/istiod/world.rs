//! What all connections share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_proto::envoy::envoy::service::discovery::v3::Resource;
use cairn_proto::tonic::Status;
use cairn_proto::tonic::metadata::MetadataMap;
use cairn_xds::feed::Kind;
use tokio::sync::broadcast;

use super::authority::Authority;
use super::record::Record;
use super::{CLUSTER, IDENTITY, TOKEN};

/// So many events may be ahead of a stream.
const MAX_EVENTS: usize = 16 * 1024;

pub(super) struct Shared {
    pub world: Mutex<World>,
    pub record: Mutex<Record>,
    pub authority: Mutex<Authority>,
    events: broadcast::Sender<Event>,
    nonces: AtomicU64,
}

/// What there is and who may have it.
pub(super) struct World {
    resources: BTreeMap<Kind, BTreeMap<String, Resource>>,
    pub held: BTreeSet<Kind>,
    pub tokens: BTreeMap<String, String>,
    pub certificates: bool,
    pub refuse: Option<Status>,
    /// Streams by the name of the entry that they registered.
    pub registered: BTreeMap<String, usize>,
    /// An entry stays for so long after its last stream.
    pub registration_grace: Duration,
}

/// What streams are told.
#[derive(Clone)]
pub(super) enum Event {
    Push { kind: Kind, changed: Vec<Resource>, removed: Vec<String> },
    Release(Kind),
    End(Status),
    Finish,
}

/// Who is at the other end of a connection.
#[derive(Clone, Default)]
pub(super) struct Caller {
    /// URI SAN of its certificate.
    pub certificate: Option<String>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Shared {
            world: Mutex::new(World {
                resources: BTreeMap::new(),
                held: BTreeSet::new(),
                tokens: [(TOKEN.to_owned(), IDENTITY.to_owned())].into(),
                certificates: true,
                refuse: None,
                registered: BTreeMap::new(),
                registration_grace: Duration::from_millis(300),
            }),
            record: Mutex::default(),
            authority: Mutex::new(Authority::new()),
            events: broadcast::channel(MAX_EVENTS).0,
            nonces: AtomicU64::new(0),
        }
    }

    pub(super) fn announce(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(super) fn nonce(&self) -> String {
        format!("nonce-{}", self.nonces.fetch_add(1, Ordering::Relaxed))
    }

    /// Who calls: by certificate, or else by token. Both are put on record.
    pub(super) fn authenticate(
        &self,
        caller: &Caller,
        metadata: &MetadataMap,
        failure: &str,
    ) -> Result<String, Status> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (authorization, cluster) = (text("authorization"), text("clusterid"));
        let token = authorization.strip_prefix("Bearer ").unwrap_or(authorization);
        {
            let mut record = self.record.lock().unwrap();
            record.tokens.push(token.to_owned());
            record.cluster_ids.push(cluster.to_owned());
        }
        if let Some(identity) = &caller.certificate {
            return Ok(identity.clone());
        }
        let world = self.world.lock().unwrap();
        match world.tokens.get(token) {
            Some(identity) if cluster.is_empty() || cluster == CLUSTER => Ok(identity.clone()),
            _ => Err(Status::unauthenticated(failure)),
        }
    }
}

impl World {
    pub(super) fn names(&self, kind: Kind) -> BTreeSet<String> {
        self.all(kind).map(|resource| resource.name.clone()).collect()
    }

    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.resources.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&Resource> {
        self.resources.get(&kind)?.get(name)
    }

    pub(super) fn change(&mut self, kind: Kind, changed: Vec<Resource>, removed: &[String]) {
        let resources = self.resources.entry(kind).or_default();
        for name in removed {
            resources.remove(name);
        }
        resources.extend(changed.into_iter().map(|one| (one.name.clone(), one)));
    }

    pub(super) fn replace(&mut self, kind: Kind, resources: Vec<Resource>) {
        self.resources.remove(&kind);
        self.change(kind, resources, &[]);
    }
}
