//! Where series live: per worker an index that only it touches, and one registry of all series for the scrape.
//!
//! Invariants:
//! - A shard's index is locked by its worker alone. A scrape takes the registry's lock, which a worker takes only for a
//!   label set that its shard has not seen.
//! - Lock order: index, then registry, then a series' list of cells.
//! - Two series of a family never have the same rendered labels: the registry is keyed by the rendering.
//! - An index holds at most [`INDEX_FACTOR`] times the bound of the series; the registry at most the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use ahash::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::key::{Key, KeyRef};
use crate::labels::LabelSet;

/// An index also remembers label sets that got no series of their own, so that they need no rendering again.
const INDEX_FACTOR: usize = 2;

/// How many series there may be, shared by all families.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Budget { limit, used: AtomicUsize::new(0) }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn take(&self) -> bool {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| (used < self.limit).then_some(used + 1))
            .is_ok()
    }
}

/// One label set and its cells in every shard that has seen it.
#[derive(Debug)]
pub(crate) struct Series<C> {
    /// `name="value",…`, without braces.
    pub(crate) labels: String,
    /// By shard.
    cells: Mutex<Vec<Option<Arc<C>>>>,
}

impl<C: Default> Series<C> {
    fn new(labels: String) -> Self {
        Series { labels, cells: Mutex::new(Vec::new()) }
    }

    fn cells_of(&self, shard: usize) -> Arc<C> {
        let mut cells = self.cells.lock();
        if cells.len() <= shard {
            cells.resize_with(shard + 1, || None);
        }
        match cells.get_mut(shard) {
            Some(slot) => Arc::clone(slot.get_or_insert_with(Arc::default)),
            None => Arc::default(),
        }
    }

    /// Calls `add` with every shard's cells; false if no shard has any.
    pub(crate) fn for_each(&self, mut add: impl FnMut(&C)) -> bool {
        let cells = self.cells.lock();
        let mut any = false;
        for cells in cells.iter().flatten() {
            add(cells);
            any = true;
        }
        any
    }
}

#[derive(Debug)]
struct Slot<C> {
    hash: u64,
    key: Key,
    cells: Arc<C>,
}

/// One shard's way from a key to its cells. Aligned so that two shards' locks never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Index<C> {
    slots: Mutex<HashTable<Slot<C>>>,
    /// The shard's cells of the overflow series.
    overflow: Arc<C>,
}

/// All series, in the order of their making and by their labels.
#[derive(Debug)]
struct Registry<C> {
    series: Vec<Arc<Series<C>>>,
    by_labels: HashTable<Arc<Series<C>>>,
}

/// All series that share one label set and one kind of cells.
#[derive(Debug)]
pub(crate) struct Store<C> {
    label_set: LabelSet,
    budget: Arc<Budget>,
    hasher: RandomState,
    shards: Box<[Index<C>]>,
    registry: Mutex<Registry<C>>,
    overflow: Arc<Series<C>>,
    dropped: AtomicU64,
}

impl<C: Default> Store<C> {
    /// A store for `shards` workers, at least one.
    pub(crate) fn new(label_set: LabelSet, shards: usize, budget: Arc<Budget>) -> Self {
        let overflow = Arc::new(Series::new(label_set.render_overflow()));
        let shards = (0..shards.max(1))
            .map(|shard| Index {
                slots: Mutex::new(HashTable::new()),
                overflow: overflow.cells_of(shard),
            })
            .collect();
        Store {
            label_set,
            budget,
            hasher: RandomState::new(),
            shards,
            registry: Mutex::new(Registry { series: Vec::new(), by_labels: HashTable::new() }),
            overflow,
            dropped: AtomicU64::new(0),
        }
    }

    /// Applies `change` to the cells that `key` has in a shard (`shard` counts modulo their number).
    ///
    /// Neither allocates nor waits for anybody if the shard knows the key.
    pub(crate) fn record(&self, shard: usize, key: &KeyRef<'_>, change: impl FnOnce(&C)) {
        let shard = shard % self.shards.len();
        let Some(index) = self.shards.get(shard) else {
            return;
        };
        let hash = key.fingerprint(&self.hasher);
        let mut slots = index.slots.lock();
        if let Some(slot) = slots.find(hash, |slot| slot.hash == hash && slot.key.is(key)) {
            change(&slot.cells);
            return;
        }
        if slots.len() >= self.budget.limit().saturating_mul(INDEX_FACTOR) {
            self.dropped.fetch_add(1, Relaxed);
            change(&index.overflow);
            return;
        }
        let cells = self.resolve(shard, key).unwrap_or_else(|| {
            self.dropped.fetch_add(1, Relaxed);
            Arc::clone(&index.overflow)
        });
        change(&cells);
        let slot = Slot { hash, key: key.to_key(), cells };
        slots.insert_unique(hash, slot, |slot| slot.hash);
    }

    /// The cells that a label set has in a shard, made if need be; `None` if there may be no more series.
    fn resolve(&self, shard: usize, key: &KeyRef<'_>) -> Option<Arc<C>> {
        let labels = self.label_set.render(key);
        let hash = self.hasher.hash_one(&labels);
        let mut registry = self.registry.lock();
        if let Some(series) = registry.by_labels.find(hash, |series| series.labels == labels) {
            return Some(series.cells_of(shard));
        }
        if !self.budget.take() {
            return None;
        }
        let series = Arc::new(Series::new(labels));
        let Registry { series: all, by_labels } = &mut *registry;
        all.push(Arc::clone(&series));
        by_labels.insert_unique(hash, Arc::clone(&series), |s| self.hasher.hash_one(&s.labels));
        drop(registry);
        Some(series.cells_of(shard))
    }

    /// All series as they are, the overflow series last if anything went there.
    pub(crate) fn series(&self) -> Vec<Arc<Series<C>>> {
        let mut all = self.registry.lock().series.clone();
        if self.dropped() > 0 {
            all.push(Arc::clone(&self.overflow));
        }
        all
    }

    /// Number of series, without the overflow series.
    pub(crate) fn len(&self) -> usize {
        self.registry.lock().series.len()
    }

    /// How often a label set was refused a series of its own.
    ///
    /// Counts once per shard and label set, and every event once a shard remembers as many label sets as it may.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::RequestEvent;
    use crate::series::{ConnectionCells, ConnectionTotals};

    fn store(shards: usize, limit: usize) -> Store<ConnectionCells> {
        Store::new(LabelSet::Http, shards, Arc::new(Budget::new(limit)))
    }

    fn open(store: &Store<ConnectionCells>, shard: usize, principal: &str) {
        let event = RequestEvent { source_principal: principal, ..RequestEvent::default() };
        store.record(shard, &KeyRef::of_request(&event), ConnectionCells::open);
    }

    fn opened(store: &Store<ConnectionCells>) -> Vec<u64> {
        let total = |series: &Arc<Series<ConnectionCells>>| {
            let mut totals = ConnectionTotals::default();
            series.for_each(|cells| totals.add(cells));
            totals.opened
        };
        store.series().iter().map(total).collect()
    }

    #[test]
    fn a_known_series_makes_no_other() {
        let store = store(1, 10);
        open(&store, 0, "a");
        let before: *const ConnectionCells = {
            let slots = store.shards.first().unwrap().slots.lock();
            Arc::as_ptr(&slots.iter().next().unwrap().cells)
        };
        for _ in 0..1_000 {
            open(&store, 0, "a");
        }
        let slots = store.shards.first().unwrap().slots.lock();
        assert_eq!(slots.len(), 1);
        assert_eq!(Arc::as_ptr(&slots.iter().next().unwrap().cells), before);
        drop(slots);
        assert_eq!(store.len(), 1);
        assert_eq!(opened(&store), [1_001]);
    }

    #[test]
    fn a_scrape_waits_for_no_worker() {
        let store = store(2, 10);
        open(&store, 0, "a");
        let _held: Vec<_> = store.shards.iter().map(|index| index.slots.lock()).collect();
        assert_eq!(opened(&store), [1]);
    }

    #[test]
    fn a_known_series_waits_for_no_scrape() {
        let store = store(1, 10);
        open(&store, 0, "a");
        let all = store.series();
        let _registry = store.registry.lock();
        let _cells: Vec<_> = all.iter().map(|series| series.cells.lock()).collect();
        open(&store, 0, "a");
    }

    #[test]
    fn shards_share_a_series_and_not_its_cells() {
        let store = store(3, 10);
        for shard in 0..6 {
            open(&store, shard, "a");
        }
        assert_eq!(store.len(), 1);
        assert_eq!(opened(&store), [6]);
        let all = store.series();
        assert_eq!(all.first().unwrap().cells.lock().iter().flatten().count(), 3);
    }

    #[test]
    fn keys_with_the_same_rendering_share_a_series() {
        let store = store(1, 10);
        let long = "x".repeat(crate::MAX_LABEL_VALUE_BYTES);
        open(&store, 0, &format!("{long}1"));
        open(&store, 0, &format!("{long}2"));
        open(&store, 0, "");
        open(&store, 0, "unknown");
        assert_eq!(opened(&store), [2, 2]);
    }

    #[test]
    fn what_exceeds_the_bound_goes_to_one_series() {
        let store = store(2, 2);
        for shard in 0..2 {
            for i in 0..10 {
                open(&store, shard, &i.to_string());
                open(&store, shard, &i.to_string());
            }
        }
        assert_eq!(store.len(), 2);
        assert_eq!(opened(&store), [4, 4, 32], "no event is lost");
        for index in &store.shards {
            assert_eq!(index.slots.lock().len(), 4, "the index is bounded as well");
        }
        // Per shard: 2 known, 2 remembered as refused (once each), 6 unknown (twice each).
        assert_eq!(store.dropped(), 2 * (2 + 12));
    }

    #[test]
    fn the_budget_is_shared() {
        let budget = Arc::new(Budget::new(3));
        let a: Store<ConnectionCells> = Store::new(LabelSet::Http, 1, Arc::clone(&budget));
        let b: Store<ConnectionCells> = Store::new(LabelSet::Http, 1, budget);
        for i in 0..3 {
            open(&a, 0, &i.to_string());
            open(&b, 0, &i.to_string());
        }
        assert_eq!(a.len() + b.len(), 3);
    }
}
