//! What an instance says of its load: `/load` of a real process while requests are in flight.

use cairn_autoscale::{LoadReport, TenantLoad};
use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{all_to, hbone};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::{Http1, message};
use cairn_test_support::metrics::{parse, sum};
use cairn_test_support::process::{Cairn, drive};
use cairn_test_support::stage::{Files, Stage, TCP_VIP, VIP, app_id, waypoint_id};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{eventually, eventually_async, within};
use cairn_test_support::websocket;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Another tenant's service.
const BANK: &str = "10.96.7.7:80";

async fn page(cairn: &Cairn, path: &str) -> String {
    let stream = TcpStream::connect(cairn.address("metrics pages")).await.unwrap();
    let page = within(path, Http1::new(stream).get(path)).await.unwrap();
    assert_eq!(page.status, 200, "{path}");
    page.text()
}

async fn load(cairn: &Cairn) -> LoadReport {
    let text = page(cairn, "/load").await;
    LoadReport::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A report of which this holds, sooner or later.
async fn until(cairn: &Cairn, what: &str, holds: impl Fn(&LoadReport) -> bool) -> LoadReport {
    let mut last = LoadReport::default();
    eventually_async(what, async || {
        last = load(cairn).await;
        holds(&last)
    })
    .await;
    last
}

fn tenant<'a>(report: &'a LoadReport, namespace: &str) -> &'a TenantLoad {
    let found = report.tenants.iter().find(|tenant| tenant.namespace == namespace);
    found.unwrap_or_else(|| panic!("no {namespace} in {:#?}", report.tenants))
}

/// Two tenants, `shop` at [`VIP`] and `bank` at [`BANK`], with the same endpoint.
fn two_tenants(stage: &Stage) -> Value {
    let mut mesh = stage.spec().http(VIP, all_to("app")).http(BANK, all_to("app")).mesh(json!({}));
    mesh["destinations"][1]["namespace"] = json!("bank");
    mesh
}

/// Files with this mesh, and more at the top.
fn files(stage: &Stage, mut mesh: Value, more: Value) -> Files {
    let files = stage.files(&stage.spec());
    mesh["listen"] = json!("127.0.0.1:0");
    mesh["identity"] = json!({ "files": {
        "cert": files.certs.cert(), "key": files.certs.key(), "roots": files.certs.roots(),
    } });
    let mut config = more;
    config["meshes"] = json!([mesh]);
    files.write_text(&config.to_string());
    files
}

async fn client(stage: &Stage, cairn: &Cairn) -> HboneClient {
    HboneClient::connect(cairn.address("HBONE"), &stage.client(), &waypoint_id()).await.unwrap()
}

/// A request that the backend holds until the gate opens.
async fn held(hbone: &HboneClient, vip: &str, gate: &str) -> Http1<H2Stream> {
    let mut http = Http1::new(hbone.open(vip).await.unwrap());
    http.send(message("GET", &format!("/hold?gate={gate}"), &[], b"")).await.unwrap();
    http
}

/// The pages that list metrics.
fn documentation() -> String {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = ["metrics.md", "telemetry.md"].map(|page| std::fs::read_to_string(docs.join(page)));
    pages.into_iter().flatten().collect()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
}

#[test]
fn what_is_in_flight_is_counted_for_as_long_as_it_is() {
    drive(async {
        let stage = Stage::new().await;
        let files = files(&stage, two_tenants(&stage), json!({}));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let hbone = client(&stage, &cairn).await;
        let mut requests = Vec::new();
        for _ in 0..5 {
            requests.push(held(&hbone, VIP, "five").await);
        }
        let mut other = held(&hbone, BANK, "one").await;
        eventually("all are held", || stage.app.waiting() == 6).await;

        // They live through all of these polls.
        let first = load(&cairn).await;
        let mut last = first.clone();
        for _ in 0..4 {
            let after = last.uptime_seconds + 0.02;
            let next = until(&cairn, "time passes", |next| next.uptime_seconds > after).await;
            for (report, before) in [(&next, &last), (&next, &first)] {
                let seconds = report.uptime_seconds - before.uptime_seconds;
                let passed = |total: fn(&LoadReport) -> f64| total(report) - total(before);
                near(passed(|report| report.in_flight_seconds_total), 6.0 * seconds);
                near(
                    passed(|report| tenant(report, "shop").in_flight_seconds_total),
                    5.0 * seconds,
                );
                near(passed(|report| tenant(report, "bank").in_flight_seconds_total), seconds);
            }
            assert_eq!((next.in_flight, next.requests_total), (6.0, 0));
            let names: Vec<_> = next.tenants.iter().map(|row| row.namespace.as_str()).collect();
            assert_eq!(names, ["shop", "bank"], "the busiest first, and no row for no others");
            assert_eq!(tenant(&next, "shop").in_flight, 5.0);
            assert_eq!(tenant(&next, "shop").mesh, "test");
            last = next;
        }
        assert_eq!((last.connections.hbone, last.connections.tunnels), (1, 6));
        assert!(last.connections.upstream >= 1 && last.handshakes_total >= 1);

        // Those that end count until then, the other one goes on.
        stage.app.release("five");
        for request in &mut requests {
            assert_eq!(within("a response", request.response()).await.unwrap().status, 200);
        }
        let ended = until(&cairn, "five are over", |report| report.in_flight == 1.0).await;
        let seconds = ended.uptime_seconds - last.uptime_seconds;
        let passed = ended.in_flight_seconds_total - last.in_flight_seconds_total;
        assert!(
            passed >= seconds - 1e-3 && passed <= 6.0 * seconds + 1e-3,
            "{passed} in {seconds}"
        );
        assert_eq!((ended.requests_total, tenant(&ended, "shop").requests_total), (5, 5));
        let after = ended.uptime_seconds + 0.02;
        let later = until(&cairn, "time passes", |next| next.uptime_seconds > after).await;
        let seconds = later.uptime_seconds - ended.uptime_seconds;
        near(later.in_flight_seconds_total - ended.in_flight_seconds_total, seconds);
        assert_eq!(
            tenant(&later, "shop").in_flight_seconds_total,
            tenant(&ended, "shop").in_flight_seconds_total,
            "nothing of it is in flight"
        );
        stage.app.release("one");
        assert_eq!(within("the last", other.response()).await.unwrap().status, 200);
    });
}

#[test]
fn a_report_has_all_that_is_known() {
    drive(async {
        let stage = Stage::new().await;
        let more = json!({ "load": {
            "bandwidth": "eci", "in_flight": 7, "cpu": 2, "zone": "from-file", "tenants": 1,
        } });
        let files = files(&stage, two_tenants(&stage), more);
        let cairn = Cairn::proxy(&files.config(), &["--capacity", "in-flight=9,zone=z-1"]).await;
        let hbone = client(&stage, &cairn).await;
        for vip in [VIP, BANK, BANK] {
            let mut http = Http1::new(hbone.open(vip).await.unwrap());
            assert_eq!(http.request("POST", "/echo", &[], b"12345").await.unwrap().status, 200);
        }
        let report = until(&cairn, "three are over", |report| {
            report.requests_total == 3 && report.executor_delay_max_milliseconds > 0.0
        })
        .await;
        assert_eq!((report.version, report.build.as_str()), (1, env!("CARGO_PKG_VERSION")));
        assert!(report.ready && !report.draining && report.in_flight == 0.0);
        assert_eq!(report.zone, "z-1", "what the command line says comes first");
        let capacity = report.capacity;
        assert_eq!((capacity.in_flight, capacity.cpu, capacity.units), (9.0, 2.0, 1.0));
        assert_eq!((capacity.connections, capacity.bytes_per_second), (8000.0, 125_000_000.0));
        assert!(report.cpu_seconds_total > 0.0 && report.memory_bytes > 1 << 20);
        assert!(["cgroup2", "cgroup1", "process"].contains(&report.cpu_source.as_str()));
        assert!(report.executor_delay_p50_milliseconds <= report.executor_delay_p99_milliseconds);
        assert!(report.executor_delay_p99_milliseconds <= report.executor_delay_max_milliseconds);
        // At least the bodies, in and out on both sides, and TLS.
        assert!(report.received_bytes_total > 500 && report.sent_bytes_total > 500);
        let start = report.cold_start.unwrap();
        assert!(start.certificate_milliseconds <= start.config_milliseconds);
        assert!(start.config_milliseconds <= start.ready_milliseconds);
        assert!(start.ready_milliseconds > 0.0);
        assert!(start.ready_milliseconds <= report.uptime_seconds * 1000.0);
        assert!(report.config_age_seconds <= report.uptime_seconds);

        // One row of its own, and one for the rest.
        let rows: Vec<_> = report
            .tenants
            .iter()
            .map(|row| (row.mesh.as_str(), row.namespace == "*", row.requests_total))
            .collect();
        assert!(matches!(rows[..], [("test", false, _), ("*", true, _)]), "{rows:?}");
        assert_eq!(rows[0].2 + rows[1].2, 3);
        assert!(report.tenants.iter().all(|row| row.bytes_total >= 10));

        let again = load(&cairn).await;
        assert_eq!(again.instance, report.instance);
        let restarted = Cairn::proxy(&files.config(), &[]).await;
        assert_ne!(load(&restarted).await.instance, report.instance);
    });
}

#[test]
fn prometheus_gets_the_same() {
    drive(async {
        let stage = Stage::new().await;
        let files = files(&stage, two_tenants(&stage), json!({}));
        let cairn = Cairn::proxy(&files.config(), &["--bandwidth", "1.5Gbit"]).await;
        let hbone = client(&stage, &cairn).await;
        let mut request = held(&hbone, BANK, "gate").await;
        eventually("it is held", || stage.app.waiting() == 1).await;
        let report = load(&cairn).await;
        let samples = parse(&page(&cairn, "/stats/prometheus").await);
        let value = |name: &str, labels: &[(&str, &str)]| sum(&samples, name, labels);
        assert_eq!(value("cairn_load_in_flight", &[]), 1.0);
        assert!(value("cairn_load_in_flight_seconds_total", &[]) >= report.in_flight_seconds_total);
        let bank = [("mesh", "test"), ("namespace", "bank")];
        assert_eq!(value("cairn_load_tenant_in_flight", &bank), 1.0);
        assert_eq!(value("cairn_load_capacity", &[("of", "bytes_per_second")]), 187_500_000.0);
        assert!(value("cairn_load_cold_start_seconds", &[("step", "ready")]) > 0.0);
        assert_eq!(value("cairn_load_ready", &[]), 1.0);
        let documented = documentation();
        let mut names: Vec<_> = samples
            .iter()
            .map(|sample| sample.name.as_str())
            .filter(|name| name.starts_with("cairn_load_"))
            .collect();
        names.dedup();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(documented.contains(&format!("`{name}")), "{name} is not in the documentation");
        }
        assert_eq!(value("cairn_telemetry_samples_rejected_total", &[]), 0.0);
        stage.app.release("gate");
        assert_eq!(within("the response", request.response()).await.unwrap().status, 200);
    });
}

#[test]
fn what_is_refused_and_what_waits_is_counted() {
    drive(async {
        let stage = Stage::new().await;
        let mut mesh = two_tenants(&stage);
        mesh["limits"] = json!({ "max_requests_in_flight": 3 });
        mesh["clusters"][0]["circuit_breakers"] =
            json!({ "max_connections": 1, "max_pending_requests": 1 });
        mesh["clusters"][0]["connect_timeout"] = json!("1h");
        let files = files(&stage, mesh, json!({}));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let hbone = client(&stage, &cairn).await;
        let mut first = held(&hbone, VIP, "gate").await;
        eventually("one is held", || stage.app.waiting() == 1).await;
        let mut second = held(&hbone, VIP, "gate").await;
        let waits =
            until(&cairn, "one waits", |report| report.queues.connection.waiting == 1.0).await;
        assert_eq!(waits.queues.connection.waits_total, 0);
        assert_eq!((waits.shed_total, waits.overflows_total), (0, 0));

        // The cluster's bound is not ours: nothing was shed.
        let mut third = Http1::new(hbone.open(VIP).await.unwrap());
        assert_eq!(third.get("/").await.unwrap().status, 503);
        let overflow = until(&cairn, "it is counted", |report| report.overflows_total == 1).await;
        assert_eq!((overflow.shed_total, overflow.shed.requests), (0, 0));

        stage.app.release("gate");
        for request in [&mut first, &mut second] {
            assert_eq!(within("a response", request.response()).await.unwrap().status, 200);
        }
        let over = until(&cairn, "nothing waits", |report| {
            report.queues.connection.waits_total == 1 && report.in_flight == 0.0
        })
        .await;
        let queue = over.queues.connection;
        let at_least = waits.queues.connection.wait_seconds_total;
        assert!(queue.waiting == 0.0 && queue.wait_seconds_total >= at_least, "{queue:?}");
        assert!(queue.wait_seconds_total > 0.0);
    });
}

#[test]
fn shed_requests_are_those_of_their_tenant() {
    drive(async {
        let stage = Stage::new().await;
        let mut mesh = two_tenants(&stage);
        mesh["limits"] = json!({ "max_requests_in_flight": 1 });
        let files = files(&stage, mesh, json!({}));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let hbone = client(&stage, &cairn).await;
        let mut request = held(&hbone, VIP, "gate").await;
        eventually("one is held", || stage.app.waiting() == 1).await;
        for _ in 0..2 {
            let mut beyond = Http1::new(hbone.open(BANK).await.unwrap());
            assert_eq!(beyond.get("/").await.unwrap().status, 503);
        }
        let report = load(&cairn).await;
        assert_eq!((report.shed_total, report.shed.requests), (2, 2));
        assert_eq!((report.shed.connections, report.shed.tunnels), (0, 0));
        assert_eq!(tenant(&report, "bank").shed_total, 2);
        assert_eq!(tenant(&report, "shop").shed_total, 0);
        stage.app.release("gate");
        assert_eq!(within("the response", request.response()).await.unwrap().status, 200);
    });
}

#[test]
fn a_drain_shows_until_the_end() {
    drive(async {
        let stage = Stage::new().await;
        let files = files(&stage, two_tenants(&stage), json!({}));
        let mut cairn = Cairn::proxy(&files.config(), &["--drain-limit", "10m"]).await;
        let hbone = client(&stage, &cairn).await;
        let mut request = held(&hbone, VIP, "gate").await;
        eventually("one is held", || stage.app.waiting() == 1).await;
        let before = load(&cairn).await;
        assert!(before.ready && !before.draining);
        cairn.terminate();
        let draining = until(&cairn, "it drains", |report| report.draining).await;
        assert!(!draining.ready);
        assert_eq!(draining.in_flight, 1.0);
        stage.app.release("gate");
        assert_eq!(within("the response", request.response()).await.unwrap().status, 200);
        assert_eq!(cairn.wait().await.code(), Some(0));
    });
}

#[test]
fn streams_of_bytes_weigh_a_tenth_and_their_bytes_count_as_they_pass() {
    drive(async {
        let stage = Stage::new().await;
        let echo = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&echo).await;
        let mut mesh = stage
            .spec()
            .http_with(VIP, all_to("app"), json!({ "upgrades": ["websocket"] }))
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp")
            .mesh(json!({}));
        mesh["destinations"][1]["namespace"] = json!("bank");
        let files = files(&stage, mesh, json!({}));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let hbone = client(&stage, &cairn).await;
        let mut splice = hbone.open(TCP_VIP).await.unwrap();
        splice.write_all(b"before").await.unwrap();
        let mut back = [0; 6];
        within("the echo", splice.read_exact(&mut back)).await.unwrap();
        let report = load(&cairn).await;
        assert_eq!(tenant(&report, "bank").in_flight, 0.1);
        assert_eq!(tenant(&report, "bank").bytes_total, 12, "while it is open");

        let http = Http1::new(hbone.open(VIP).await.unwrap());
        let (mut socket, _) = websocket::upgrade(http, "/ws").await.unwrap().unwrap();
        socket.echo("hello").await.unwrap();
        let report = load(&cairn).await;
        assert_eq!(tenant(&report, "shop").in_flight, 0.1);
        assert!((report.in_flight - 0.2).abs() < 1e-9);
        drop(socket);
        splice.shutdown().await.unwrap();
        drop(splice);
        let over = until(&cairn, "both are over", |report| report.in_flight == 0.0).await;
        assert_eq!(over.requests_total, 1, "a connection is no request");
    });
}

#[test]
fn what_a_mesh_has_done_counts_after_it_is_gone() {
    drive(async {
        let stage = Stage::new().await;
        let files = files(&stage, two_tenants(&stage), json!({}));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let hbone = client(&stage, &cairn).await;
        let mut http = Http1::new(hbone.open(VIP).await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 200);
        let before = until(&cairn, "it is over", |report| report.requests_total == 1).await;
        let text = std::fs::read_to_string(files.config()).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["meshes"][0]["name"] = json!("other");
        files.write_text(&config.to_string());
        eventually("it is removed", || cairn.printed("mesh removed")).await;
        let after = load(&cairn).await;
        assert_eq!(after.requests_total, 1);
        assert!(after.received_bytes_total >= before.received_bytes_total);
        assert!(after.in_flight_seconds_total >= before.in_flight_seconds_total);
        assert!(after.config_age_seconds < after.uptime_seconds);
    });
}
