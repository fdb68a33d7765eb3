//! The inside of a file: protobuf, because its decoder is total and old readers skip what they do not know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::packed::{MAX_DICTIONARY_BYTES, Packed};
use super::{Entry, Owner, Shelf, Shelves};
use crate::feed::Kind;

/// Most bytes that all bodies of a file may come to.
pub(super) const MAX_RECEIVED_BYTES: usize = 1024 * 1024 * 1024;

/// All of a file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Snapshot {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    /// What bodies lean on.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub dictionaries: Vec<Bytes>,
    #[prost(message, repeated, tag = "3")]
    pub entries: Vec<Item>,
}

/// Whose it is and how old.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub node: String,
    #[prost(string, tag = "2")]
    pub cluster: String,
    #[prost(string, tag = "3")]
    pub identity: String,
    /// When the control plane was last heard, in milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub written: u64,
    /// Labels of the kinds that are whole.
    #[prost(string, repeated, tag = "5")]
    pub answered: Vec<String>,
}

/// One resource.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    /// Label of the kind.
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub version: String,
    /// Empty: the kind's.
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, repeated, tag = "5")]
    pub aliases: Vec<String>,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "6")]
    pub updated: u64,
    /// Bytes of the body.
    #[prost(uint64, tag = "7")]
    pub length: u64,
    #[prost(bool, tag = "8")]
    pub compressed: bool,
    /// Place in `dictionaries` plus one; 0: none.
    #[prost(uint32, tag = "9")]
    pub dictionary: u32,
    #[prost(bytes = "bytes", tag = "10")]
    pub body: Bytes,
}

impl Snapshot {
    /// Everything but secrets. Bodies stay as they are kept.
    pub(super) fn of(shelves: &Shelves, owner: &Owner) -> Self {
        let Owner { node, cluster, identity } = owner;
        let mut snapshot = Snapshot {
            header: Some(Header {
                node: node.clone(),
                cluster: cluster.clone(),
                identity: identity.clone(),
                written: millis(shelves.confirmed.unwrap_or_else(SystemTime::now)),
                answered: shelves
                    .answered
                    .iter()
                    .filter(|kind| **kind != Kind::Secret)
                    .map(|kind| kind.label().to_owned())
                    .collect(),
            }),
            ..Snapshot::default()
        };
        let mut places: HashMap<*const u8, u32> = HashMap::new();
        for (kind, shelf) in &shelves.kinds {
            if *kind == Kind::Secret {
                continue;
            }
            for (name, entry) in &shelf.entries {
                let Entry { version, type_url, aliases, body, digest: _, updated } = &**entry;
                let Packed { length, compressed, dictionary, bytes } = body;
                let dictionary = dictionary.as_ref().map_or(0, |dictionary| {
                    *places.entry(dictionary.as_ptr()).or_insert_with(|| {
                        snapshot.dictionaries.push(Bytes::copy_from_slice(dictionary));
                        u32::try_from(snapshot.dictionaries.len()).unwrap_or(0)
                    })
                });
                snapshot.entries.push(Item {
                    kind: kind.label().to_owned(),
                    name: name.clone(),
                    version: version.clone(),
                    type_url: type_url.clone().unwrap_or_default(),
                    aliases: aliases.clone(),
                    updated: millis(*updated),
                    length: *length as u64,
                    compressed: *compressed,
                    dictionary,
                    body: bytes.clone(),
                });
            }
        }
        snapshot
    }

    /// The resources, each of which was decompressed once to see that it can be.
    pub(super) fn shelves(self, digest: impl Fn(&Bytes) -> u64) -> Result<Shelves, String> {
        let Snapshot { header, dictionaries, entries } = self;
        let kinds: BTreeMap<&str, Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| *kind != Kind::Secret)
            .map(|kind| (kind.label(), kind))
            .collect();
        let dictionaries: Vec<Arc<[u8]>> =
            dictionaries.iter().map(|bytes| Arc::from(bytes.as_ref())).collect();
        if dictionaries.iter().any(|dictionary| dictionary.len() > MAX_DICTIONARY_BYTES) {
            return Err("a dictionary is too long".to_owned());
        }
        let Header { written, answered, .. } = header.unwrap_or_default();
        let answered: BTreeSet<Kind> =
            answered.iter().filter_map(|label| kinds.get(label.as_str()).copied()).collect();
        let mut shelves =
            Shelves { kinds: BTreeMap::new(), answered, confirmed: Some(time(written)) };
        let mut received = 0usize;
        for item in entries {
            let Item {
                kind,
                name,
                version,
                type_url,
                aliases,
                updated,
                length,
                compressed,
                dictionary,
                body,
            } = item;
            let damaged = |what: &str| format!("the resource {name:?} {what}");
            let kind = *kinds.get(kind.as_str()).ok_or_else(|| {
                damaged(&format!("is of the kind {kind:?}, which cannot be here"))
            })?;
            let length = usize::try_from(length).map_err(|_| damaged("is too long"))?;
            received = received.saturating_add(length);
            if received > MAX_RECEIVED_BYTES {
                return Err(damaged("makes the bodies come to more than 1 GiB"));
            }
            let dictionary = match dictionary.checked_sub(1) {
                None => None,
                Some(place) => {
                    let place = usize::try_from(place).unwrap_or(usize::MAX);
                    let found = dictionaries.get(place).cloned();
                    Some(found.ok_or_else(|| damaged("leans on a dictionary that is not there"))?)
                }
            };
            // Its own copy: a slice would keep the whole file in memory.
            let bytes = Bytes::copy_from_slice(&body);
            let body = Packed { length, compressed, dictionary, bytes };
            let whole = body.unpack().map_err(|_| damaged("cannot be decompressed"))?;
            let shelf: &mut Shelf = shelves.kinds.entry(kind).or_default();
            if shelf.dictionary.is_none() {
                shelf.dictionary = body.dictionary.clone();
            }
            let entry = Entry {
                version,
                type_url: (!type_url.is_empty()).then_some(type_url),
                aliases,
                body,
                digest: digest(&whole),
                updated: time(updated),
            };
            if shelf.entries.insert(name.clone(), Arc::new(entry)).is_some() {
                return Err(damaged("is there twice"));
            }
        }
        Ok(shelves)
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time of so many milliseconds since 1970; a damaged one is 1970.
pub(super) fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}
