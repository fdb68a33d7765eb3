//! What a control plane sent and was accepted, as it was sent.
//!
//! It serves three ends: a lost stream goes on from the versions that are known, the admin pages show each resource as
//! received, and a restarted process serves from a file until the control plane answers (warm start).
//!
//! Invariants:
//! * Bodies are kept compressed; those of one kind share a dictionary.
//! * A refused resource never gets in: the last accepted one stays.
//! * Keys never leave memory: [`Kind::Secret`] is in no file.

mod file;
mod packed;
mod snapshot;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::feed::{Consumer, Kind, Rejected, Resource, Update};
use packed::{MAX_DICTIONARY_BYTES, Packed};

pub use file::{
    DEFAULT_MAX_AGE, DEFAULT_MAX_FILE_BYTES, ExportError, ImportError, ImportLimits, Imported,
    Owner,
};
pub use writer::{StoreWriter, WriterConfig};

/// Accepted resources by kind and name.
pub struct Store {
    shelves: Mutex<Shelves>,
    hasher: ahash::RandomState,
    revision: watch::Sender<u64>,
}

/// What a store takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Resources.
    pub resources: usize,
    /// Their bodies as received.
    pub received_bytes: usize,
    /// Their bodies as kept.
    pub kept_bytes: usize,
}

#[derive(Debug, Default, Clone)]
struct Shelves {
    kinds: BTreeMap<Kind, Shelf>,
    answered: BTreeSet<Kind>,
    confirmed: Option<SystemTime>,
}

#[derive(Debug, Default, Clone)]
struct Shelf {
    entries: BTreeMap<String, Arc<Entry>>,
    dictionary: Option<Arc<[u8]>>,
}

#[derive(Debug, Clone)]
struct Entry {
    version: String,
    /// None: that of the kind.
    type_url: Option<String>,
    aliases: Vec<String>,
    body: Packed,
    /// Of the body, by the store's own hasher.
    digest: u64,
    updated: SystemTime,
}

impl Store {
    /// An empty one.
    pub fn new() -> Self {
        Store {
            shelves: Mutex::default(),
            hasher: ahash::RandomState::new(),
            revision: watch::channel(0).0,
        }
    }

    /// Puts accepted resources in, takes removed ones out; unknown names are ignored.
    ///
    /// A body that is there already keeps its time and costs no compression.
    pub fn apply(&self, update: &Update) {
        let Update { kind, changed, removed } = update;
        self.share_dictionary(*kind, changed);
        let mut altered = false;
        for resource in changed {
            altered |= self.put(*kind, resource);
        }
        if !removed.is_empty() {
            let mut shelves = self.shelves.lock();
            if let Some(shelf) = shelves.kinds.get_mut(kind) {
                for name in removed {
                    altered |= shelf.entries.remove(name).is_some();
                }
            }
        }
        if altered {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// Notes that the first answer of this kind has come, so what is held is whole.
    pub fn answered(&self, kind: Kind) {
        if self.shelves.lock().answered.insert(kind) {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// Notes that the control plane has just been heard: what is held is as fresh as that.
    pub fn confirm(&self) {
        self.shelves.lock().confirmed = Some(SystemTime::now());
    }

    /// When the control plane was last heard, in this process or in the one that wrote the imported file.
    pub fn confirmed(&self) -> Option<SystemTime> {
        self.shelves.lock().confirmed
    }

    /// Kinds of which a first answer has come, in this process or in the one that wrote the imported file.
    pub fn answers(&self) -> BTreeSet<Kind> {
        self.shelves.lock().answered.clone()
    }

    /// Shows each resource of a kind, by name: name, version, type URL, body as received, time of its last change.
    ///
    /// One body at a time is decompressed, and nothing is locked meanwhile.
    pub fn each(&self, kind: Kind, mut show: impl FnMut(&str, &str, &str, Bytes, SystemTime)) {
        let entries = self.entries(kind);
        for (name, entry) in entries {
            if let Ok(body) = entry.body.unpack() {
                show(&name, &entry.version, entry.type_url(kind), body, entry.updated);
            }
        }
    }

    /// One resource as it was received.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Resource> {
        let entry = self.shelves.lock().kinds.get(&kind)?.entries.get(name).cloned()?;
        entry.resource(kind, name)
    }

    /// Version of each resource of a kind, by name.
    pub fn versions(&self, kind: Kind) -> BTreeMap<String, String> {
        self.with(kind, |entries| {
            entries.iter().map(|(name, entry)| (name.clone(), entry.version.clone())).collect()
        })
    }

    /// Names of a kind.
    pub fn names(&self, kind: Kind) -> BTreeSet<String> {
        self.with(kind, |entries| entries.keys().cloned().collect())
    }

    /// Other names by which resources of a kind are known.
    pub fn aliases(&self, kind: Kind) -> BTreeSet<String> {
        self.with(kind, |entries| {
            entries.values().flat_map(|entry| entry.aliases.iter().cloned()).collect()
        })
    }

    /// How many resources of a kind there are.
    pub fn len(&self, kind: Kind) -> usize {
        self.with(kind, BTreeMap::len)
    }

    /// Whether there is nothing of any kind.
    pub fn is_empty(&self) -> bool {
        self.shelves.lock().kinds.values().all(|shelf| shelf.entries.is_empty())
    }

    /// Forgets everything, such as after a [`Store::replay`] that was refused.
    pub fn clear(&self) {
        *self.shelves.lock() = Shelves::default();
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Gives all that is held to a consumer, kind by kind in the order of [`Kind::ALL`].
    ///
    /// # Errors
    /// What the consumer refuses. The other kinds were given all the same.
    pub fn replay(&self, consumer: &mut dyn Consumer) -> Result<(), Rejected> {
        let mut refused = Vec::new();
        for kind in Kind::ALL {
            let changed: Vec<Resource> = self
                .entries(kind)
                .iter()
                .filter_map(|(name, entry)| entry.resource(kind, name))
                .collect();
            if changed.is_empty() {
                continue;
            }
            if let Err(rejected) = consumer.apply(Update { kind, changed, removed: Vec::new() }) {
                refused.push(rejected.detail);
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(Rejected { detail: refused.join("; ") }) }
    }

    /// Counts up with each change.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// What it takes.
    pub fn footprint(&self) -> Footprint {
        let shelves = self.shelves.lock();
        let mut sum = Footprint::default();
        for entry in shelves.kinds.values().flat_map(|shelf| shelf.entries.values()) {
            sum.resources += 1;
            sum.received_bytes += entry.body.length;
            sum.kept_bytes += entry.body.bytes.len();
        }
        sum
    }

    fn digest(&self, body: &Bytes) -> u64 {
        self.hasher.hash_one(body.as_ref())
    }

    fn entries(&self, kind: Kind) -> Vec<(String, Arc<Entry>)> {
        self.with(kind, |entries| {
            entries.iter().map(|(name, entry)| (name.clone(), Arc::clone(entry))).collect()
        })
    }

    fn with<T: Default>(
        &self,
        kind: Kind,
        read: impl FnOnce(&BTreeMap<String, Arc<Entry>>) -> T,
    ) -> T {
        self.shelves.lock().kinds.get(&kind).map(|shelf| read(&shelf.entries)).unwrap_or_default()
    }

    /// The first bodies of a kind are what the others are compared with.
    fn share_dictionary(&self, kind: Kind, bodies: &[Resource]) {
        let mut shelves = self.shelves.lock();
        let shelf = shelves.kinds.entry(kind).or_default();
        if shelf.dictionary.is_some() || bodies.is_empty() {
            return;
        }
        let mut dictionary = Vec::new();
        for resource in bodies {
            let room = MAX_DICTIONARY_BYTES - dictionary.len();
            if room == 0 {
                break;
            }
            dictionary.extend_from_slice(resource.body.get(..room).unwrap_or(&resource.body));
        }
        if !dictionary.is_empty() {
            shelf.dictionary = Some(Arc::from(dictionary));
        }
    }

    fn put(&self, kind: Kind, resource: &Resource) -> bool {
        let Resource { name, version, type_url, body, aliases } = resource;
        let digest = self.digest(body);
        let type_url = (type_url != kind.type_url()).then(|| type_url.clone());
        let (known, dictionary) = {
            let shelves = self.shelves.lock();
            let shelf = shelves.kinds.get(&kind);
            (
                shelf.and_then(|shelf| shelf.entries.get(name).cloned()),
                shelf.and_then(|shelf| shelf.dictionary.clone()),
            )
        };
        let same_body = known.as_ref().is_some_and(|known| known.holds(body, digest));
        if let Some(known) = &known
            && same_body
            && known.version == *version
            && known.aliases == *aliases
            && known.type_url == type_url
        {
            return false;
        }
        let body = match known {
            Some(known) if same_body => known.body.clone(),
            _ => Packed::pack(body, dictionary.as_ref()),
        };
        let entry = Entry {
            version: version.clone(),
            type_url,
            aliases: aliases.clone(),
            body,
            digest,
            updated: SystemTime::now(),
        };
        let mut shelves = self.shelves.lock();
        let shelf = shelves.kinds.entry(kind).or_default();
        shelf.entries.insert(name.clone(), Arc::new(entry));
        true
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.footprint()).finish()
    }
}

impl Entry {
    fn type_url(&self, kind: Kind) -> &str {
        self.type_url.as_deref().unwrap_or(kind.type_url())
    }

    fn holds(&self, body: &Bytes, digest: u64) -> bool {
        self.body.length == body.len() && self.digest == digest
    }

    fn resource(&self, kind: Kind, name: &str) -> Option<Resource> {
        Some(Resource {
            name: name.to_owned(),
            version: self.version.clone(),
            type_url: self.type_url(kind).to_owned(),
            body: self.body.unpack().ok()?,
            aliases: self.aliases.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
