#![allow(clippy::unwrap_used)]

use super::*;
use crate::event::RequestEvent;
use crate::rules::{Rules, RulesBuilder};
use crate::series::{ConnectionCells, ConnectionTotals, RequestCells, RequestTotals};

const HOUR: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_secs(300);
const LIFETIMES: Lifetimes = Lifetimes { idle: HOUR, grace: GRACE };

fn store(shards: usize, limit: usize) -> Store<ConnectionCells> {
    Store::new(LabelSet::Http, shards, Arc::new(Budget::new(limit, limit)), LIFETIMES)
}

fn open(store: &Store<ConnectionCells>, shard: usize, principal: &str) {
    open_of(store, shard, "", principal);
}

fn open_of(store: &Store<ConnectionCells>, shard: usize, tenant: &str, principal: &str) {
    let event = RequestEvent { tenant, source_principal: principal, ..RequestEvent::default() };
    store.record(shard, &KeyRef::of_request(&event), |cells, _| cells.open());
}

fn opened(store: &Store<ConnectionCells>) -> Vec<u64> {
    let total = |series: &Arc<Series<ConnectionCells>>| {
        let mut totals = ConnectionTotals::default();
        series.for_each(|cells| totals.add(cells));
        totals.opened
    };
    store.series().iter().map(total).collect()
}

fn remembered(store: &Store<ConnectionCells>) -> Vec<usize> {
    store.shards.iter().map(|index| index.known.lock().slots.len()).collect()
}

#[test]
fn a_known_series_makes_no_other() {
    let store = store(1, 10);
    open(&store, 0, "a");
    let cell = |known: &Known<ConnectionCells>| {
        Arc::as_ptr(&known.slots.iter().next().unwrap().first.as_ref().unwrap().cell)
    };
    let before = cell(&store.shards.first().unwrap().known.lock());
    for _ in 0..1_000 {
        open(&store, 0, "a");
    }
    let known = store.shards.first().unwrap().known.lock();
    assert_eq!(known.slots.len(), 1);
    assert_eq!(cell(&known), before);
    drop(known);
    assert_eq!(store.len(), 1);
    assert_eq!(opened(&store), [1_001]);
}

#[test]
fn a_scrape_waits_for_no_worker() {
    let store = store(2, 10);
    open(&store, 0, "a");
    let _held: Vec<_> = store.shards.iter().map(|index| index.known.lock()).collect();
    let start = Instant::now();
    for hours in 0..3 {
        store.sweep(start + HOUR * hours);
    }
    assert!(opened(&store).is_empty());
}

#[test]
fn a_known_series_waits_for_no_scrape() {
    let store = store(1, 10);
    open(&store, 0, "a");
    let all = store.series();
    let _registry = store.registry.lock();
    let _cells: Vec<_> =
        all.iter().map(|series| (series.cells.lock(), series.life.lock())).collect();
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
    assert_eq!(remembered(&store), [4, 4], "the index is bounded as well");
    // Per shard: 2 known, 2 remembered as refused (once each), 6 unknown (twice each).
    assert_eq!(store.dropped(), 2 * (2 + 12));
}

#[test]
fn the_budget_is_shared() {
    let budget = Arc::new(Budget::new(3, 3));
    let new = || Store::<ConnectionCells>::new(LabelSet::Http, 1, Arc::clone(&budget), LIFETIMES);
    let (a, b) = (new(), new());
    for i in 0..3 {
        open(&a, 0, &i.to_string());
        open(&b, 0, &i.to_string());
    }
    assert_eq!(a.len() + b.len(), 3);
}

#[test]
fn a_greedy_tenant_overflows_alone() {
    let budget = Arc::new(Budget::new(16, 8));
    let store = Store::<ConnectionCells>::new(LabelSet::Http, 1, budget, LIFETIMES);
    for i in 0..20 {
        open_of(&store, 0, "greedy", &i.to_string());
    }
    for i in 0..2 {
        open_of(&store, 0, "modest", &format!("m{i}"));
    }
    assert_eq!(store.len(), 10);
    let all = store.series();
    assert_eq!(opened(&store), [[1; 10].as_slice(), &[12]].concat());
    let overflow = &all.last().unwrap().labels;
    assert!(overflow.contains("destination_service_namespace=\"greedy\""), "{overflow}");
}

#[test]
fn overflow_series_are_bounded_too() {
    let store = store(1, 0);
    let tenants = MAX_OVERFLOW_SERIES + 10;
    for i in 0..tenants {
        // The index of a store without places remembers nothing: ask as a worker with room would.
        let tenant = i.to_string();
        let event = RequestEvent { tenant: &tenant, ..RequestEvent::default() };
        let slot = store.resolve(0, 0, &KeyRef::of_request(&event));
        slot.apply(&|cells: &ConnectionCells, _| cells.open());
    }
    let opened = opened(&store);
    assert_eq!(opened.len(), MAX_OVERFLOW_SERIES + 1);
    assert_eq!(opened.iter().sum::<u64>(), tenants as u64);
    assert_eq!(opened.last(), Some(&10));
}

#[test]
fn an_idle_series_is_exposed_as_it_was_and_leaves_after_its_grace() {
    let store = store(2, 10);
    open(&store, 0, "idle");
    open(&store, 1, "idle");
    open(&store, 1, "busy");
    let start = Instant::now();
    store.sweep(start);
    open(&store, 1, "busy");
    store.sweep(start + HOUR);
    assert_eq!(opened(&store), [2, 2], "a tombstone is exposed");
    store.sweep(start + HOUR + GRACE / 2);
    assert_eq!(opened(&store), [2, 2]);
    store.sweep(start + HOUR + GRACE);
    assert_eq!(opened(&store), [2], "only the busy one is left");
    assert_eq!((store.len(), store.removed()), (1, 1));
    assert_eq!(store.budget.take("/").as_deref(), Some("/"));
    open(&store, 1, "busy");
    assert_eq!(remembered(&store), [1, 1], "a worker forgets when it comes by");
    open(&store, 0, "busy");
    assert_eq!(remembered(&store), [1, 1]);
    // It comes back as a new series, from 0.
    open(&store, 0, "idle");
    assert_eq!(opened(&store), [4, 1]);
}

#[test]
fn an_event_brings_a_tombstone_back_with_its_numbers() {
    let store = store(1, 10);
    open(&store, 0, "a");
    let start = Instant::now();
    store.sweep(start);
    store.sweep(start + HOUR);
    open(&store, 0, "a");
    assert_eq!(opened(&store), [2]);
    assert_eq!(remembered(&store), [1]);
    store.sweep(start + HOUR + GRACE);
    store.sweep(start + HOUR + GRACE * 2);
    assert_eq!(opened(&store), [2], "its idle time begins again");
    store.sweep(start + HOUR * 2 + GRACE * 2);
    store.sweep(start + HOUR * 2 + GRACE * 4);
    assert!(opened(&store).is_empty());
}

#[test]
fn an_increment_that_races_with_a_tombstone_keeps_it() {
    let store = store(1, 10);
    open(&store, 0, "a");
    let cell = store.series().first().unwrap().cells_of(0);
    let start = Instant::now();
    store.sweep(start);
    store.sweep(start + HOUR);
    cell.numbers.open(); // by a worker that looked just before
    store.sweep(start + HOUR + GRACE);
    assert_eq!(opened(&store), [2]);
    assert!(!cell.retired.load(Relaxed));
    open(&store, 0, "a");
    assert_eq!(opened(&store), [3]);
}

#[test]
fn what_was_refused_gets_a_series_when_others_leave() {
    let store = store(1, 1);
    open(&store, 0, "a");
    open(&store, 0, "b");
    assert_eq!(opened(&store), [1, 1]);
    let start = Instant::now();
    for at in [Duration::ZERO, HOUR, HOUR + GRACE] {
        store.sweep(start + at);
    }
    open(&store, 0, "b");
    assert_eq!(opened(&store), [1, 1]);
    assert!(store.series().first().unwrap().labels.contains("source_principal=\"b\""));
}

fn rules(change: impl Fn(&mut RulesBuilder)) -> Arc<Rules> {
    let mut builder = RulesBuilder::default();
    change(&mut builder);
    Arc::new(builder.build())
}

#[test]
fn metrics_that_are_changed_apart_have_series_apart() {
    let budget = Arc::new(Budget::new(100, 100));
    let store = Store::<RequestCells>::new(LabelSet::Http, 1, budget, LIFETIMES);
    let rules = rules(|builder| {
        builder.drop(Metric::RequestBytes);
        builder.dimension(Some(Metric::Requests), "host", 0);
    });
    let observe = |rules: Option<&Arc<Rules>>, host: &str| {
        let dimensions = [host.to_owned()];
        let event = RequestEvent { rules, dimensions: &dimensions, ..RequestEvent::default() };
        store.record(0, &KeyRef::of_request(&event), |cells, metrics| {
            cells.observe(metrics, Duration::ZERO, 1, 1);
        });
    };
    for host in ["a", "b", "b"] {
        observe(Some(&rules), host);
    }
    let seen = || -> Vec<(bool, bool, bool, u64, u64, u64)> {
        let all = store.series();
        let of = |series: &Arc<Series<RequestCells>>| {
            let mut totals = RequestTotals::default();
            series.for_each(|cells| totals.add(cells));
            (
                series.has(Metric::Requests),
                series.has(Metric::RequestDuration),
                series.has(Metric::RequestBytes),
                totals.requests,
                totals.duration.count(),
                totals.request_bytes.count(),
            )
        };
        all.iter().map(of).collect()
    };
    let custom = |requests| (true, false, false, requests, 0, 0);
    assert_eq!(seen(), [custom(1), (false, true, false, 0, 3, 0), custom(2)]);
    // A chain without changes shares the standard series, which has all metrics from then on.
    observe(None, "");
    assert_eq!(seen(), [custom(1), (true, true, true, 1, 4, 1), custom(2)]);
}

#[test]
fn chains_with_equal_rules_share_series_and_those_that_drop_all_have_none() {
    let store = store(1, 10);
    let open = |rules: &Arc<Rules>| {
        let event = RequestEvent { rules: Some(rules), ..RequestEvent::default() };
        store.record(0, &KeyRef::of_request(&event), |cells, _| cells.open());
    };
    let removed = || rules(|builder| builder.remove(None, "source_app"));
    open(&removed());
    open(&removed());
    assert_eq!(opened(&store), [2]);
    assert_eq!(remembered(&store), [1]);
    let nothing = rules(|builder| Metric::ALL.iter().for_each(|(one, _)| builder.drop(*one)));
    open(&nothing);
    assert_eq!(opened(&store), [2]);
    assert_eq!(store.dropped(), 0);
}

#[test]
fn a_label_set_is_found_with_little() {
    // docs/telemetry.md says so.
    assert!(size_of::<Slot<RequestCells>>() <= 176, "{}", size_of::<Slot<RequestCells>>());
    assert_eq!(size_of::<Cell<RequestCells>>(), 64);
    assert_eq!(size_of::<Cell<ConnectionCells>>(), 64);
}
