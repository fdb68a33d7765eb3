//! One subscription on one stream: what was asked for, and what is still owed.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::workload::ADDRESS_TYPE_URL;

use crate::feed::{Kind, Wanted};
use crate::store::Store;

/// Most bytes of names or versions in one request. A Go server takes 4 MiB unless it was told otherwise.
const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;
/// Most workloads that are asked for beside the wildcard. The rest waits for the wildcard alone.
const MAX_LOOKUPS: usize = 4096;
/// The name that means all of them.
const ALL: &str = "*";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything there is.
    All,
    /// What the consumer wants by name.
    Named,
    /// Workloads by address; what has come stays until it is removed.
    OnDemand,
    /// Workloads that the consumer misses although it has asked for all; another topic owns what comes.
    Lookup,
}

/// One subscription.
#[derive(Debug)]
pub(super) struct Topic {
    pub kind: Kind,
    pub scope: Scope,
    pub type_url: &'static str,
    /// Whether it was asked for on this stream.
    pub asked: bool,
    /// Whether an answer has come on this stream.
    pub answered: bool,
    /// Names that are subscribed, but for `*`.
    pub names: BTreeSet<String>,
    /// Names that are held and that the first answer has to hold as well, or they are gone.
    owed: Option<BTreeSet<String>>,
}

/// The variable part of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    pub versions: BTreeMap<String, String>,
}

impl Topic {
    pub(super) fn new(kind: Kind, scope: Scope) -> Self {
        let type_url = if scope == Scope::Lookup { ADDRESS_TYPE_URL } else { kind.type_url() };
        Topic {
            kind,
            scope,
            type_url,
            asked: false,
            answered: false,
            names: BTreeSet::new(),
            owed: None,
        }
    }

    /// Whether an answer may hold this resource.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.scope != Scope::Named || self.names.contains(name)
    }

    /// What is gone because the first answer does not hold it.
    pub(super) fn settle(&mut self, answered: &BTreeSet<&str>) -> Vec<String> {
        let owed = self.owed.take().unwrap_or_default();
        owed.into_iter().filter(|name| !answered.contains(name.as_str())).collect()
    }

    /// What there is to ask for, and which of the held ones are needed no longer.
    pub(super) fn follow(&mut self, wanted: &Wanted, store: &Store) -> (Vec<Ask>, Vec<String>) {
        match self.scope {
            Scope::All => (self.ask_for_all(store), Vec::new()),
            Scope::OnDemand => (self.ask_on_demand(wanted, store), Vec::new()),
            Scope::Lookup => {
                let names = wanted.workloads.iter().take(MAX_LOOKUPS).cloned().collect();
                (self.ask_by_name(names), Vec::new())
            }
            Scope::Named => {
                let none = BTreeSet::new();
                let names = match self.kind {
                    Kind::Endpoints => &wanted.endpoints,
                    Kind::ExtensionConfig => &wanted.extension_configs,
                    Kind::Secret => &wanted.secrets,
                    Kind::Cluster | Kind::Listener | Kind::Workload => &none,
                };
                self.ask_for_wanted(names, store)
            }
        }
    }

    fn ask_for_all(&mut self, store: &Store) -> Vec<Ask> {
        if self.asked {
            return Vec::new();
        }
        self.asked = true;
        let versions = self.known(store);
        if versions.is_empty() {
            self.owed = Some(store.names(self.kind));
        }
        vec![Ask { subscribe: vec![ALL.to_owned()], versions, ..Ask::default() }]
    }

    /// Versions that a server may leave unchanged resources out for. Only Workload gets them: istiod honours them there,
    /// and of every other kind a first answer that is whole is worth more than a short one.
    fn known(&self, store: &Store) -> BTreeMap<String, String> {
        if self.kind != Kind::Workload {
            return BTreeMap::new();
        }
        let versions = store.versions(self.kind);
        let bytes: usize =
            versions.iter().map(|(name, version)| name.len() + version.len() + 8).sum();
        if bytes > MAX_REQUEST_BYTES { BTreeMap::new() } else { versions }
    }

    fn ask_on_demand(&mut self, wanted: &Wanted, store: &Store) -> Vec<Ask> {
        let mut names = wanted.workloads.clone();
        let aliases = store.aliases(self.kind);
        names.extend(self.names.intersection(&aliases).cloned());
        let first = !self.asked;
        if first {
            names.extend(aliases);
        }
        let mut asks = self.ask_by_name(names);
        if first {
            self.asked = true;
            // Nothing at all would mean everything.
            if asks.is_empty() {
                let all = || vec![ALL.to_owned()];
                asks.push(Ask { subscribe: all(), unsubscribe: all(), ..Ask::default() });
            }
            if let Some(ask) = asks.first_mut() {
                ask.versions = self.known(store);
            }
        }
        asks
    }

    fn ask_for_wanted(
        &mut self,
        names: &BTreeSet<String>,
        store: &Store,
    ) -> (Vec<Ask>, Vec<String>) {
        let first = !self.asked;
        if !first && *names == self.names {
            return (Vec::new(), Vec::new());
        }
        let held = store.names(self.kind);
        let forgotten = held.difference(names).cloned().collect();
        let asks = self.ask_by_name(names.clone());
        // Only EDS: istiod never says that an extension is gone, and a secret that is late is not gone.
        if first
            && self.kind == Kind::Endpoints
            && let Some(ask) = asks.first()
        {
            let owed = ask.subscribe.iter().filter(|name| held.contains(*name)).cloned();
            self.owed = Some(owed.collect());
        }
        (asks, forgotten)
    }

    /// Subscribes to these names and to no others, in as many requests as it takes.
    fn ask_by_name(&mut self, names: BTreeSet<String>) -> Vec<Ask> {
        let mut asks: Vec<Ask> = Vec::new();
        let mut room = 0;
        let mut slot = |name: &String, asks: &mut Vec<Ask>| {
            let bytes = name.len() + 8;
            if asks.is_empty() || room < bytes {
                asks.push(Ask::default());
                room = MAX_REQUEST_BYTES;
            }
            room = room.saturating_sub(bytes);
        };
        for name in names.difference(&self.names) {
            slot(name, &mut asks);
            if let Some(ask) = asks.last_mut() {
                ask.subscribe.push(name.clone());
            }
        }
        for name in self.names.difference(&names) {
            slot(name, &mut asks);
            if let Some(ask) = asks.last_mut() {
                ask.unsubscribe.push(name.clone());
            }
        }
        self.asked |= !asks.is_empty();
        self.names = names;
        asks
    }
}
