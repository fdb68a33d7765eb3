//! Where answers go: the consumer first, and what it takes into the store.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::feed::{Consumer, Kind, Rejected, Resource, Update, Wanted};
use crate::store::Store;

/// So often a consumer is asked to find out which resources of a refused answer it took.
const MAX_PROBES: usize = 256;

/// The consumer and the store, together. Work is done on a thread that may block.
#[derive(Clone)]
pub(super) struct Intake {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    consumer: Box<dyn Consumer>,
    store: Arc<Store>,
    wanted: Arc<Wanted>,
}

/// What became of an answer.
pub(super) struct Taken {
    pub result: Result<(), Rejected>,
    pub wanted: Arc<Wanted>,
}

impl Intake {
    pub(super) fn new(consumer: Box<dyn Consumer>, store: Arc<Store>) -> Self {
        let inner = Inner { consumer, store, wanted: Arc::default() };
        Intake { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Gives an update to the consumer. A consumer that panics has refused.
    pub(super) async fn take(&self, update: Update) -> Taken {
        let kind = update.kind;
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || inner.lock().take(update)).await;
        done.unwrap_or_else(|_| Taken {
            result: Err(broken(kind)),
            wanted: Arc::clone(&self.inner.lock().wanted),
        })
    }

    /// What the consumer needs now.
    pub(super) async fn wanted(&self) -> Arc<Wanted> {
        let inner = Arc::clone(&self.inner);
        let asked = tokio::task::spawn_blocking(move || inner.lock().ask()).await;
        asked.unwrap_or_default()
    }
}

impl Inner {
    fn take(&mut self, update: Update) -> Taken {
        let result = self.apply(update.clone());
        match &result {
            Ok(()) => self.store.apply(&update),
            Err(_) => {
                let Update { kind, changed, removed } = update;
                let changed = self.accepted(kind, changed);
                self.store.apply(&Update { kind, changed, removed });
            }
        }
        self.store.confirm();
        Taken { result, wanted: self.ask() }
    }

    fn apply(&mut self, update: Update) -> Result<(), Rejected> {
        let kind = update.kind;
        catch_unwind(AssertUnwindSafe(|| self.consumer.apply(update)))
            .unwrap_or_else(|_| Err(broken(kind)))
    }

    fn ask(&mut self) -> Arc<Wanted> {
        if let Ok(wanted) = catch_unwind(AssertUnwindSafe(|| self.consumer.wanted())) {
            self.wanted = Arc::new(wanted);
        }
        Arc::clone(&self.wanted)
    }

    /// Those of a refused answer that were taken, found by halving: taking one again changes nothing.
    fn accepted(&mut self, kind: Kind, resources: Vec<Resource>) -> Vec<Resource> {
        let mut accepted = Vec::new();
        let mut open = VecDeque::from(halves(resources));
        for _ in 0..MAX_PROBES {
            let Some(part) = open.pop_front() else { break };
            match self.apply(Update { kind, changed: part.clone(), removed: Vec::new() }) {
                Ok(()) => accepted.extend(part),
                Err(_) => open.extend(halves(part)),
            }
        }
        accepted
    }
}

/// Two parts of more than one, nothing of one: it was refused by itself.
fn halves(mut resources: Vec<Resource>) -> Vec<Vec<Resource>> {
    if resources.len() < 2 {
        return Vec::new();
    }
    let second = resources.split_off(resources.len() / 2);
    vec![resources, second]
}

fn broken(kind: Kind) -> Rejected {
    Rejected { detail: format!("{kind}: an internal error; the proxy's log says more") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use bytes::Bytes;

    use super::*;

    /// Refuses bodies that say so.
    struct Choosy;

    impl Consumer for Choosy {
        fn apply(&mut self, update: Update) -> Result<(), Rejected> {
            let bad: Vec<String> = update
                .changed
                .iter()
                .inspect(|resource| assert_ne!(resource.body, "panic"))
                .filter(|resource| resource.body == "bad")
                .map(|resource| resource.name.clone())
                .collect();
            if bad.is_empty() { Ok(()) } else { Err(Rejected { detail: bad.join(", ") }) }
        }

        fn wanted(&self) -> Wanted {
            Wanted::default()
        }
    }

    fn resource(name: &str, body: &'static str) -> Resource {
        Resource {
            name: name.to_owned(),
            version: String::new(),
            type_url: Kind::Cluster.type_url().to_owned(),
            body: Bytes::from_static(body.as_bytes()),
            aliases: Vec::new(),
        }
    }

    #[tokio::test]
    async fn what_is_refused_keeps_its_last_good_value_and_the_rest_gets_in() {
        let store = Arc::new(Store::new());
        let intake = Intake::new(Box::new(Choosy), Arc::clone(&store));
        let update = |changed| Update { kind: Kind::Cluster, changed, removed: Vec::new() };
        let good = intake.take(update(vec![resource("n7", "good")])).await;
        assert!(good.result.is_ok());
        let names: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
        let changed = names
            .iter()
            .map(|name| resource(name, if name == "n7" || name == "n12" { "bad" } else { "fine" }))
            .collect();
        let taken = intake.take(update(changed)).await;
        assert_eq!(taken.result.unwrap_err().detail, "n7, n12");
        assert_eq!(store.len(Kind::Cluster), 19);
        assert_eq!(store.get(Kind::Cluster, "n7").unwrap().body, "good");
        assert_eq!(store.get(Kind::Cluster, "n12"), None);
        assert_eq!(store.get(Kind::Cluster, "n19").unwrap().body, "fine");
    }

    #[tokio::test]
    async fn a_panic_is_a_refusal() {
        let store = Arc::new(Store::new());
        let intake = Intake::new(Box::new(Choosy), Arc::clone(&store));
        let changed = vec![resource("a", "panic"), resource("b", "fine")];
        let taken = intake.take(Update { kind: Kind::Cluster, changed, removed: vec![] }).await;
        assert!(taken.result.unwrap_err().detail.contains("internal error"));
        assert_eq!(store.names(Kind::Cluster), ["b".to_owned()].into());
        let taken = intake.take(Update {
            kind: Kind::Cluster,
            changed: vec![],
            removed: vec!["b".to_owned(), "unknown".to_owned()],
        });
        assert!(taken.await.result.is_ok());
        assert!(store.is_empty());
    }
}
