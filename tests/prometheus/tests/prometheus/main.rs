//! What we export, read by those who read it: promtool, Prometheus, and the dashboard's queries, which
//! all have to find series of a real waypoint with real traffic and of a real scaler. The alerts ask for nothing that is
//! not on a page of those, of a member or of a registrar, and fire when they ought to.
//!
//! `CAIRN_DASHBOARD_DATA=FILE` records two minutes of the dashboard's answers for
//! `deploy/grafana/draw.py`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cluster;
#[path = "../../../tests/members/world.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod members;
#[path = "../../../tests/istio/mesh.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod mesh;
/// What `mesh` stands on.
mod pod {
    pub use cairn_test_support::pod::{Pod, Waypoint};
}
mod record;
mod stage;
mod traffic;

use cairn_prometheus_tests::alerts::{self, Alert};
use cairn_prometheus_tests::dashboard::{self, Query};
use cairn_prometheus_tests::query;
use cairn_prometheus_tests::server::Server;
use cairn_prometheus_tests::tools::Tools;
use cairn_test_support::metrics;
use serde_json::Value;
use stage::Stage;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Two that need none of the programs, and those that do.
const COUNT: usize = 6;
/// Labels that Prometheus gives to whatever it scrapes in a cluster.
const OF_THE_TARGET: [&str; 3] = ["cluster", "namespace", "pod"];
const ALERTS: &str = "deploy/helm/cairn/files/alerts.yaml";
const ALERT_TESTS: &str = "tests/data/alerts-test.yaml";
/// How long series may take to be there.
const PATIENCE: Duration = Duration::from_secs(90);

static PASSED: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let tools = Tools::install(target);
    let must = std::env::var("CI").is_ok_and(|value| value == "true");
    cairn_test_support::process::binary();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = || runtime.block_on(steps(tools.as_ref().ok()));
    let verdict = catch_unwind(AssertUnwindSafe(run));
    let passed = PASSED.load(Ordering::SeqCst);
    let left = COUNT - passed;
    match (verdict, tools) {
        (Ok(()), Ok(_)) => {
            assert_eq!(left, 0, "COUNT is the number of steps");
            println!("{passed} passed, 0 failed");
            ExitCode::SUCCESS
        }
        (Ok(()), Err(reason)) if must => {
            println!("{passed} passed, {left} failed: {reason}");
            ExitCode::FAILURE
        }
        (Ok(()), Err(reason)) => {
            println!("no Prometheus: {reason}");
            println!("{passed} passed, 0 failed, {left} skipped");
            ExitCode::SUCCESS
        }
        (Err(_), _) => {
            println!("{passed} passed, 1 failed, {} skipped", left - 1);
            ExitCode::FAILURE
        }
    }
}

fn passed(step: &str) {
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    println!("[{number}/{COUNT}] {step}");
}

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn dashboard() -> Value {
    serde_json::from_slice(&std::fs::read(file("deploy/grafana/cairn.json")).unwrap()).unwrap()
}

async fn steps(tools: Option<&Tools>) {
    let board = dashboard();
    let stage = Stage::start().await;
    traffic::round(&stage).await;
    let pages = stage.pages().await;
    let known = known(&pages);
    let queries: Vec<Query> = [dashboard::queries(&board), dashboard::variables(&board)].concat();
    assert!(queries.len() > 60, "{}", queries.len());
    names_and_labels_exist(&queries, &known);
    passed("metrics and labels of the dashboard exist");

    let rules = file(ALERTS);
    let alerts = alerts::read(&std::fs::read_to_string(&rules).unwrap());
    alerts_are_whole(&alerts);
    let asked: Vec<Query> = alerts.iter().map(of_alert).collect();
    names_and_labels_exist(&asked, &known);
    passed("metrics and labels of the alerts exist, and the page lists them");
    let Some(tools) = tools else { return };

    for (name, page) in &pages {
        let verdict = tools.check_metrics(page);
        assert!(verdict.readable, "{name}: {:#?}", verdict.complaints);
        // Istio's names are given.
        let ours: Vec<_> =
            verdict.complaints.iter().filter(|line| !line.starts_with("istio_")).collect();
        assert!(ours.is_empty(), "{name}: {ours:#?}");
    }
    assert!(!tools.check_metrics("a{ 1\n").readable, "promtool knows what it cannot read");
    passed("promtool reads every page");

    alerts_fire(tools, &rules);
    passed("alerts fire by series that are wrong, and by no others");

    let dir = tempfile::tempdir().unwrap();
    for target in stage.targets() {
        let (kind, page) = stage::open_metrics(&target).await;
        assert!(kind.starts_with("application/openmetrics-text"), "{}: {kind}", target.job);
        assert!(page.ends_with("# EOF\n"), "{}", target.job);
    }
    let server = Server::start(tools, dir.path(), &stage.targets()).await;
    assert_eq!(server.complaints().await, Vec::<String>::new());
    passed("Prometheus scrapes every page as OpenMetrics");

    let stop = traffic::start(&stage).await;
    every_query_finds_series(&board, &queries, &server).await;
    if let Some(file) = std::env::var_os("CAIRN_DASHBOARD_DATA") {
        record::record(&board, &server, Path::new(&file)).await;
    }
    stop.abort();
    passed("every query of the dashboard finds series");
}

/// Labels of each metric, as Prometheus keeps them: what the target has already is renamed.
fn known(pages: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, page) in pages {
        for sample in metrics::parse(page) {
            let labels = sample.labels.into_iter().map(|(name, _)| name);
            let kept = labels.map(|name| match OF_THE_TARGET.contains(&name.as_str()) {
                true => format!("exported_{name}"),
                false => name,
            });
            known.entry(sample.name).or_default().extend(kept);
        }
    }
    known
}

/// Needs no Prometheus: by the pages themselves.
fn names_and_labels_exist(queries: &[Query], known: &BTreeMap<String, BTreeSet<String>>) {
    let mut wrong = BTreeSet::new();
    for Query { of, expression, legend } in queries {
        let used = query::used(expression);
        if used.metrics.is_empty() {
            wrong.insert(format!("{of}: no metric in {expression}"));
        }
        let mut labels: BTreeSet<&str> = OF_THE_TARGET.into();
        for metric in &used.metrics {
            match known.get(metric) {
                Some(there) => labels.extend(there.iter().map(String::as_str)),
                None => {
                    wrong.insert(format!("{of}: there is no {metric}"));
                }
            }
        }
        for label in used.labels.iter().chain(legend).map(String::as_str) {
            if !labels.contains(label) && label != "__auto" {
                wrong.insert(format!("{of}: no {label} in {:?}", used.metrics));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn of_alert(alert: &Alert) -> Query {
    let Alert { name, expression, labels, .. } = alert;
    // Whichever of the two a target leaves of a cluster's name.
    let legend = labels.iter().filter(|label| *label != "exported_cluster").cloned().collect();
    Query { of: name.clone(), expression: expression.clone(), legend }
}

/// Each says what, how bad, and what to do; the page has them all, and the series that fire them.
fn alerts_are_whole(alerts: &[Alert]) {
    assert!(alerts.len() > 30, "{}", alerts.len());
    let page = std::fs::read_to_string(file("docs/operations.md")).unwrap();
    let tests = std::fs::read_to_string(file(ALERT_TESTS)).unwrap();
    for Alert { name, severity, texts, .. } in alerts {
        assert!(["warning", "critical"].contains(&severity.as_str()), "{name}: {severity}");
        assert_eq!(*texts, ["summary", "description", "runbook"], "{name}");
        assert!(page.contains(&format!("| `{name}` | {severity} |")), "{name} is not on the page");
        assert!(tests.contains(&format!("- name: {name}\n")), "{name} is not tested");
    }
    let on_page = page.lines().filter(|line| line.starts_with("| `Cairn")).count();
    assert_eq!(on_page, alerts.len(), "the page has others");
}

fn alerts_fire(tools: &Tools, rules: &Path) {
    tools.promtool(&["check", "rules"], rules).unwrap();
    let tests = file(ALERT_TESTS);
    tools.promtool(&["test", "rules"], &tests).unwrap();
    // Where one fires that is not to, it would be seen.
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(&tests).unwrap();
    let text = text.replace(&format!("../../{ALERTS}"), &rules.display().to_string());
    let wrong = dir.path().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("value: 1\n", "value: 2\n")).unwrap();
    let said = tools.promtool(&["test", "rules"], &wrong).unwrap_err();
    assert!(said.contains("CairnNotReady"), "{said}");
}

async fn every_query_finds_series(board: &Value, queries: &[Query], server: &Server) {
    let mut open: Vec<(String, String)> = queries
        .iter()
        .map(|query| (query.of.clone(), dashboard::filled(&query.expression, board)))
        .collect();
    let start = Instant::now();
    loop {
        let mut empty = Vec::new();
        for (of, expression) in open {
            let found = server.query(&expression).await;
            let found = found.unwrap_or_else(|error| panic!("{of}: {expression}: {error}"));
            if found.is_empty() {
                empty.push((of, expression));
            }
        }
        if empty.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "these find nothing: {empty:#?}");
        open = empty;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
