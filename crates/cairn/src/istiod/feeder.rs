//! Where istiod's answers go in: the translation, shared by the client that feeds it, the task that
//! publishes what comes out, and those who only look.

use super::asked::Asked;
use cairn_router::spec::Resources;
use cairn_xds::feed::{Consumer, Kind, Rejected, Update, Wanted};
use cairn_xds::translate::{Counters, Facts, Translator, Unsupported};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// The translation and what is to be done about it. Clones share it.
#[derive(Clone)]
pub struct Feeder {
    shared: Arc<Shared>,
}

struct Shared {
    translator: Mutex<Translator>,
    asked: Asked,
    /// Counts changes.
    revision: AtomicU64,
    /// Told after each change.
    changed: Notify,
    /// Clusters went, and the listeners that no longer lead there have not come.
    torn: AtomicBool,
}

/// What the translation comes to at one moment.
pub struct Yield {
    /// Changes that are in it.
    pub revision: u64,
    /// What is served.
    pub resources: Resources,
    /// What holds for the whole waypoint.
    pub facts: Facts,
    /// What fails closed.
    pub unsupported: Vec<Unsupported>,
    /// What is done in another way than asked for.
    pub degraded: Vec<Unsupported>,
}

impl Feeder {
    /// With a translation; `network` is ours, for workloads that are asked for by address.
    pub fn new(translator: Translator, network: &str) -> Self {
        let asked = Asked::new(network);
        let translator = Mutex::new(translator);
        let shared = Shared {
            translator,
            asked,
            revision: AtomicU64::new(0),
            changed: Notify::new(),
            torn: AtomicBool::new(false),
        };
        Feeder { shared: Arc::new(shared) }
    }

    /// Resolves after a change; several become one.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Endpoint lists that are wanted and have not come.
    pub fn awaited_endpoints(&self) -> BTreeSet<String> {
        self.shared.translator.lock().awaited_endpoints()
    }

    /// Clusters went, and the listeners that no longer lead there are on their way: istiod sends them right after.
    pub fn is_torn(&self) -> bool {
        self.shared.torn.load(Ordering::SeqCst)
    }

    /// They do not come: clusters went to which no listener led, or istiod is late.
    pub fn give_up_torn(&self) {
        self.shared.torn.store(false, Ordering::SeqCst);
    }

    /// Forgets all that came.
    pub fn start_afresh(&self) {
        let mut translator = self.shared.translator.lock();
        *translator = Translator::new(translator.settings().clone());
    }

    /// What there is at this moment.
    pub fn take(&self) -> Yield {
        let translator = self.shared.translator.lock();
        Yield {
            revision: self.revision(),
            resources: translator.resources(),
            facts: translator.facts(),
            unsupported: translator.unsupported(),
            degraded: translator.degraded(),
        }
    }

    /// Changes so far.
    pub fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::SeqCst)
    }

    /// How much was read and how much was known.
    pub fn counters(&self) -> Counters {
        self.shared.translator.lock().counters()
    }

    /// A request needs to know who is at this address. `true`: nobody asked before, so istiod has to be.
    pub fn ask(&self, address: IpAddr) -> bool {
        self.shared.asked.ask(address)
    }
}

impl Consumer for Feeder {
    fn apply(&mut self, update: Update) -> Result<(), Rejected> {
        match update.kind {
            Kind::Cluster if !update.removed.is_empty() => {
                self.shared.torn.store(true, Ordering::SeqCst);
            }
            Kind::Listener => self.shared.torn.store(false, Ordering::SeqCst),
            _ => {}
        }
        let mut translator = self.shared.translator.lock();
        let applied = translator.apply(update);
        // What decoded of a refused update holds, too.
        if !matches!(applied, Ok(applied) if !applied.changed) {
            self.shared.revision.fetch_add(1, Ordering::SeqCst);
            self.shared.changed.notify_one();
        }
        drop(translator);
        applied.map(|_| ())
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = self.shared.translator.lock().wanted();
        wanted.workloads.extend(self.shared.asked.names());
        wanted
    }
}
