//! Where series live: per worker an index that only it touches, and one registry of all series for the scrape.
//!
//! Invariants:
//! - A shard's index is locked by its worker alone. A scrape takes the registry's lock, which a worker takes only for a
//!   label set that its shard has not seen.
//! - Lock order: index, then registry, then a series' list of cells, then the budget.
//! - Two series of a family never have the same rendered labels: the registry is keyed by the rendering.
//! - An index holds at most [`INDEX_FACTOR`] times the bound of the series; the registry at most the bound.
//!
//! A series that nothing happened to for a while becomes a tombstone: its cells are marked, and it stays exposed as it
//! is. A worker that finds the mark goes to the registry, which brings the series back to life. A tombstone that nobody
//! touched leaves the registry at the end of its grace period, which no increment can outlast. Then workers forget what
//! is marked, each in its own index, when they see that the store's generation is another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ahash::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::budget::Budget;
use crate::key::{Key, KeyRef};
use crate::labels::LabelSet;
use crate::rules::{Change, Group, Metric, Metrics};
use crate::series::Cells;

/// An index also remembers label sets that got no series of their own, so that they need no rendering again.
const INDEX_FACTOR: usize = 2;

/// So many namespaces have an overflow series of their own; what others have too much goes to one series.
const MAX_OVERFLOW_SERIES: usize = 64;

/// When series leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    /// So long nothing happens until a series is a tombstone.
    pub(crate) idle: Duration,
    /// So long a tombstone is exposed.
    pub(crate) grace: Duration,
}

/// One shard's numbers of one series. Aligned so that two shards' numbers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Cell<C> {
    /// The series is a tombstone, or gone.
    retired: AtomicBool,
    numbers: C,
}

/// One label set and its cells in every shard that has seen it.
#[derive(Debug)]
pub(crate) struct Series<C> {
    /// `name="value",…`, without braces.
    pub(crate) labels: String,
    /// Whose place it takes; `None` for overflow series, which take none.
    tenant: Option<Arc<str>>,
    /// Which metrics have this label set.
    metrics: AtomicU16,
    /// By shard.
    cells: Mutex<Vec<Option<Arc<Cell<C>>>>>,
    life: Mutex<Life>,
}

/// What the last sweep saw of a series.
#[derive(Debug, Default)]
struct Life {
    activity: u64,
    /// When it changed last; `None` before the first sweep.
    changed: Option<Instant>,
    tombstone: Option<Instant>,
}

impl<C: Cells> Series<C> {
    fn new(labels: String, tenant: Option<Arc<str>>) -> Self {
        Series {
            labels,
            tenant,
            metrics: AtomicU16::new(0),
            cells: Mutex::default(),
            life: Mutex::default(),
        }
    }

    fn cells_of(&self, shard: usize) -> Arc<Cell<C>> {
        let mut cells = self.cells.lock();
        if cells.len() <= shard {
            cells.resize_with(shard + 1, || None);
        }
        match cells.get_mut(shard) {
            Some(slot) => Arc::clone(slot.get_or_insert_with(Arc::default)),
            None => Arc::default(),
        }
    }

    /// Whether a metric has this label set.
    pub(crate) fn has(&self, metric: Metric) -> bool {
        Metrics::from_bits(self.metrics.load(Relaxed)).has(metric)
    }

    /// Calls `add` with every shard's cells.
    pub(crate) fn for_each(&self, mut add: impl FnMut(&C)) {
        for cell in self.cells.lock().iter().flatten() {
            add(&cell.numbers);
        }
    }

    fn activity(&self) -> u64 {
        let mut activity: u64 = 0;
        self.for_each(|cells| activity = activity.wrapping_add(cells.activity()));
        activity
    }

    fn retire(&self, retired: bool) {
        for cell in self.cells.lock().iter().flatten() {
            cell.retired.store(retired, Relaxed);
        }
    }

    /// Back from a tombstone, if it is one.
    fn revive(&self) {
        let mut life = self.life.lock();
        if life.tombstone.take().is_some() {
            life.changed = None;
            self.retire(false);
        }
    }

    /// Looks after the series; false when it is over.
    fn sweep(&self, now: Instant, lifetimes: Lifetimes) -> bool {
        let mut life = self.life.lock();
        let activity = self.activity();
        let changed = life.changed.filter(|_| activity == life.activity);
        life.activity = activity;
        let Some(changed) = changed else {
            life.changed = Some(now);
            if life.tombstone.take().is_some() {
                self.retire(false);
            }
            return true;
        };
        match life.tombstone {
            None if now.saturating_duration_since(changed) >= lifetimes.idle => {
                life.tombstone = Some(now);
                self.retire(true);
                true
            }
            None => true,
            Some(since) => now.saturating_duration_since(since) < lifetimes.grace,
        }
    }
}

/// Cells that an event goes to, and the metrics that it counts for there.
#[derive(Debug)]
struct Target<C> {
    metrics: Metrics,
    cell: Arc<Cell<C>>,
}

#[derive(Debug)]
struct Slot<C> {
    hash: u64,
    key: Key,
    /// Nearly always the only one.
    first: Option<Target<C>>,
    /// Where metrics are changed each in its own way.
    more: Box<[Target<C>]>,
    /// Something of it went to an overflow series.
    refused: bool,
}

impl<C> Slot<C> {
    fn targets(&self) -> impl Iterator<Item = &Target<C>> {
        self.first.iter().chain(&self.more)
    }

    fn is_live(&self) -> bool {
        self.targets().all(|target| !target.cell.retired.load(Relaxed))
    }

    fn apply(&self, change: &impl Fn(&C, Metrics)) {
        for target in self.targets() {
            change(&target.cell.numbers, target.metrics);
        }
    }
}

/// One shard's way from a key to its cells. Aligned so that two shards' locks never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Index<C> {
    known: Mutex<Known<C>>,
    /// The shard's cells of the overflow series.
    overflow: Arc<Cell<C>>,
}

#[derive(Debug)]
struct Known<C> {
    slots: HashTable<Slot<C>>,
    /// The store's generation up to which it has forgotten.
    generation: u64,
}

/// All series, in the order of their making and by their labels.
#[derive(Debug)]
struct Registry<C> {
    series: Vec<Arc<Series<C>>>,
    by_labels: HashTable<Arc<Series<C>>>,
    /// By the namespaces that have one.
    overflows: Vec<(Box<str>, Arc<Series<C>>)>,
    swept: Option<Instant>,
}

/// All series that share one label set and one kind of cells.
#[derive(Debug)]
pub(crate) struct Store<C> {
    label_set: LabelSet,
    budget: Arc<Budget>,
    lifetimes: Lifetimes,
    hasher: RandomState,
    shards: Box<[Index<C>]>,
    registry: Mutex<Registry<C>>,
    overflow: Arc<Series<C>>,
    dropped: AtomicU64,
    removed: AtomicU64,
    /// Grows when series leave.
    generation: AtomicU64,
}

impl<C: Cells> Store<C> {
    /// A store for `shards` workers, at least one.
    pub(crate) fn new(
        label_set: LabelSet,
        shards: usize,
        budget: Arc<Budget>,
        lifetimes: Lifetimes,
    ) -> Self {
        let overflow = Arc::new(Series::new(label_set.render_overflow(None), None));
        let shards = (0..shards.max(1))
            .map(|shard| Index {
                known: Mutex::new(Known { slots: HashTable::new(), generation: 0 }),
                overflow: overflow.cells_of(shard),
            })
            .collect();
        Store {
            label_set,
            budget,
            lifetimes,
            hasher: RandomState::new(),
            shards,
            registry: Mutex::new(Registry {
                series: Vec::new(),
                by_labels: HashTable::new(),
                overflows: Vec::new(),
                swept: None,
            }),
            overflow,
            dropped: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// Applies `change` to the cells that `key` has in a shard (`shard` counts modulo their number).
    ///
    /// Neither allocates nor waits for anybody if the shard knows the key.
    pub(crate) fn record(&self, shard: usize, key: &KeyRef<'_>, change: impl Fn(&C, Metrics)) {
        let shard = shard % self.shards.len();
        let Some(index) = self.shards.get(shard) else {
            return;
        };
        let hash = key.fingerprint(&self.hasher);
        let mut known = index.known.lock();
        let generation = self.generation.load(Relaxed);
        if known.generation != generation {
            // What was refused may find room as well.
            known.slots.retain(|slot| !slot.refused && slot.is_live());
            known.generation = generation;
        }
        let found = known.slots.find_entry(hash, |slot| slot.hash == hash && slot.key.is(key));
        if let Ok(found) = found {
            if found.get().is_live() {
                found.get().apply(&change);
                return;
            }
            found.remove();
        }
        if known.slots.len() >= self.budget.limit().saturating_mul(INDEX_FACTOR) {
            self.dropped.fetch_add(1, Relaxed);
            self.overflow.metrics.fetch_or(Metrics::ALL.bits(), Relaxed);
            change(&index.overflow.numbers, Metrics::ALL);
            return;
        }
        let slot = self.resolve(shard, hash, key);
        slot.apply(&change);
        known.slots.insert_unique(hash, slot, |slot| slot.hash);
    }

    /// The cells that a key's label sets have in a shard, made if need be.
    fn resolve(&self, shard: usize, hash: u64, key: &KeyRef<'_>) -> Slot<C> {
        let standard = [Group { metrics: Metrics::ALL, change: Change::default() }];
        let groups = match key.rules {
            Some(rules) => rules.groups(self.label_set),
            None => &standard,
        };
        let mut refused = false;
        let mut targets = groups.iter().map(|group| {
            let series = self.series_of(key, group).unwrap_or_else(|| {
                refused = true;
                self.overflow_of(key)
            });
            series.metrics.fetch_or(group.metrics.bits(), Relaxed);
            Target { metrics: group.metrics, cell: series.cells_of(shard) }
        });
        let first = targets.next();
        let more = targets.collect();
        if refused {
            self.dropped.fetch_add(1, Relaxed);
        }
        Slot { hash, key: key.to_key(), first, more, refused }
    }

    /// The series of a label set, made if need be; `None` if there may be no more.
    fn series_of(&self, key: &KeyRef<'_>, group: &Group) -> Option<Arc<Series<C>>> {
        let labels = self.label_set.render(key, &group.change);
        let hash = self.hasher.hash_one(&labels);
        let mut registry = self.registry.lock();
        if let Some(series) = registry.by_labels.find(hash, |series| series.labels == labels) {
            series.revive();
            return Some(Arc::clone(series));
        }
        let (mesh, namespace) = key.tenant;
        let tenant = self.budget.take(&format!("{mesh}/{namespace}"))?;
        let series = Arc::new(Series::new(labels, Some(tenant)));
        let Registry { series: all, by_labels, .. } = &mut *registry;
        all.push(Arc::clone(&series));
        by_labels.insert_unique(hash, Arc::clone(&series), |s| self.hasher.hash_one(&s.labels));
        Some(series)
    }

    /// The series for what exceeds a bound.
    fn overflow_of(&self, key: &KeyRef<'_>) -> Arc<Series<C>> {
        let (_, namespace) = key.tenant;
        let overflows = &mut self.registry.lock().overflows;
        if let Some((_, series)) = overflows.iter().find(|(known, _)| **known == *namespace) {
            return Arc::clone(series);
        }
        if overflows.len() >= MAX_OVERFLOW_SERIES || namespace.is_empty() {
            return Arc::clone(&self.overflow);
        }
        let series = Arc::new(Series::new(self.label_set.render_overflow(Some(namespace)), None));
        overflows.push((namespace.into(), Arc::clone(&series)));
        series
    }

    /// Looks after all series, if that was not done lately: idle ones become tombstones, old tombstones leave.
    pub(crate) fn sweep(&self, now: Instant) {
        let Lifetimes { idle, grace } = self.lifetimes;
        let pause = (idle.min(grace) / 8).min(Duration::from_secs(60));
        let mut registry = self.registry.lock();
        if registry.swept.is_some_and(|swept| now.saturating_duration_since(swept) < pause) {
            return;
        }
        registry.swept = Some(now);
        let Registry { series: all, by_labels, .. } = &mut *registry;
        let before = all.len();
        all.retain(|series| {
            let stays = series.sweep(now, self.lifetimes);
            if !stays {
                let hash = self.hasher.hash_one(&series.labels);
                if let Ok(found) = by_labels.find_entry(hash, |one| Arc::ptr_eq(one, series)) {
                    found.remove();
                }
                if let Some(tenant) = &series.tenant {
                    self.budget.give(tenant);
                }
            }
            stays
        });
        let removed = before - all.len();
        if removed > 0 {
            self.removed.fetch_add(removed as u64, Relaxed);
            self.generation.fetch_add(1, Relaxed);
        }
    }

    /// All series as they are, those last that took what exceeded the bounds.
    pub(crate) fn series(&self) -> Vec<Arc<Series<C>>> {
        let registry = self.registry.lock();
        let mut all = registry.series.clone();
        all.extend(registry.overflows.iter().map(|(_, series)| Arc::clone(series)));
        if self.overflow.metrics.load(Relaxed) != 0 {
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

    /// Series that left.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
