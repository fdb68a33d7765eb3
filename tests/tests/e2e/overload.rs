//! More requests than a process has room for: shares of tenants.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{all_to, hbone};
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::{Http1, Response, message};
use cairn_test_support::pki::CertDir;
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, app_id};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{drive, eventually, within};
use cairn_test_support::waypoint::{MeshInstance, Overload, OverloadConfig, Process};
use futures::future::join_all;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Another tenant's service.
const BANK: &str = "10.96.7.7:80";

/// `shop` at [`VIP`] and [`TCP_VIP`] and `bank` at [`BANK`], in a process with room for so many requests.
async fn two_tenants(stage: &Stage, config: OverloadConfig) -> (Run, Arc<Overload>, HboneBackend) {
    let bank = json!({
        "namespace": "bank",
        "name": "bank",
        "addresses": ["10.96.7.7"],
        "port": 80,
        "http": { "routes": {
            "name": "routes",
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": all_to("app") }],
        } },
    });
    let pod = stage.pod(&TcpApp::new(Behaviour::Echo)).await;
    let spec = stage
        .spec()
        .http_with(VIP, all_to("app"), json!({ "upgrades": ["websocket"] }))
        .destination(bank)
        .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
        .tcp(TCP_VIP, "tcp");
    let overload = Overload::new(config);
    let certs = CertDir::plain(&stage.ca.workload("shop", "waypoint"));
    let shared = overload.clone();
    let prepare = |instance: &MeshInstance| instance.set_overload(shared);
    let waypoint = Process::start(2).add_tuned(certs, &spec, |_| {}, prepare).await;
    let client = waypoint.connect(&stage.client()).await;
    (Run { waypoint, client }, overload, pod)
}

async fn get(client: &HboneClient, vip: &str, path: &str) -> Response {
    let mut http = Http1::new(client.open(vip).await.unwrap());
    within("a request", http.get(path)).await.unwrap()
}

async fn held(client: &HboneClient, vip: &str, gate: &str) -> Http1<H2Stream> {
    let mut http = Http1::new(client.open(vip).await.unwrap());
    http.send(message("GET", &format!("/hold?gate={gate}"), &[], b"")).await.unwrap();
    http
}

/// One that is refused says so, and when to come back.
fn assert_refused(response: &Response) {
    assert_eq!((response.status, response.text().as_str()), (503, "overloaded"));
    assert_eq!(response.header("x-envoy-overloaded"), Some("true"));
    let after: u32 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3).contains(&after), "{after}");
}

/// `shop` wants ten times its share of a backend that does not answer; `bank` less than its own.
#[test]
fn a_greedy_neighbour_costs_nobody_else_a_request() {
    drive(async {
        let stage = Stage::new().await;
        let (run, overload, _pod) = two_tenants(&stage, OverloadConfig::new(10)).await;
        assert_eq!(get(&run.client, BANK, "/").await.status, 200);
        let mut greedy = Vec::new();
        for _ in 0..50 {
            greedy.push(held(&run.client, VIP, "slow").await);
        }
        eventually("its share is in use", || stage.app.waiting() == 5).await;

        // Rounds of four at once, while the other one holds all that it may and asks for more.
        let mut answered = 0;
        for _ in 0..10 {
            for response in join_all((0..4).map(|_| get(&run.client, BANK, "/"))).await {
                assert_eq!(response.status, 200, "{response:?}");
                answered += 1;
            }
            let mut more = Vec::new();
            for _ in 0..5 {
                more.push(held(&run.client, VIP, "slow").await);
            }
            assert_eq!(stage.app.waiting(), 5, "never more than its share");
            greedy.append(&mut more);
        }
        assert_eq!(answered, 40);
        eventually("those that wait are refused", || overload.reading().waiting == 0).await;
        stage.app.release("slow");
        let mut statuses = Vec::new();
        for http in &mut greedy {
            let response = within("an answer", http.response()).await.unwrap();
            if response.status != 200 {
                assert_refused(&response);
            }
            statuses.push(response.status);
        }
        let served = statuses.iter().filter(|status| **status == 200).count();
        let refused = statuses.len() - served;
        assert_eq!((served, refused), (5, 95));
        let instance = run.waypoint.instance();
        let load = instance.load();
        let shed = |namespace: &str| {
            let tenant = load.tenants.iter().find(|tenant| *tenant.namespace == *namespace);
            load.totals(&tenant.unwrap().reading, std::time::Instant::now()).shed
        };
        assert_eq!((shed("bank"), shed("shop")), (0, refused as u64));
        let counter = |name| run.waypoint.counter(name, &[]);
        assert_eq!(counter("cairn_requests_shed_by_share_total"), refused as u64);
        assert_eq!(counter("cairn_requests_shed_total"), refused as u64);
        assert!(counter("cairn_requests_queued_total") >= refused as u64);
        let flagged = [("response_code", "503"), ("response_flags", "UO")];
        assert_eq!(run.waypoint.istio("istio_requests_total", &flagged), refused as u64);
        eventually("nothing is left", || overload.reading().in_flight == 0.0).await;
        assert_eq!(overload.reading().waiting, 0);
    });
}

/// Those that wait: the modest one goes first, though it came last.
#[test]
fn who_is_within_its_share_is_admitted_ahead() {
    drive(async {
        let stage = Stage::new().await;
        let long = Duration::from_secs(60);
        let patient = OverloadConfig { interval: long, max_wait: long, ..OverloadConfig::new(4) };
        let (run, overload, _pod) = two_tenants(&stage, patient).await;
        // Alone it has everything.
        let mut greedy = Vec::new();
        for number in 0..8 {
            greedy.push(held(&run.client, VIP, if number < 2 { "first" } else { "rest" }).await);
            let at_least = 1 + number.min(3);
            eventually("it is held", || stage.app.waiting() >= at_least).await;
        }
        eventually("four wait", || overload.reading().waiting == 4).await;
        let mut modest = held(&run.client, BANK, "bank").await;
        eventually("five wait", || overload.reading().waiting == 5).await;
        stage.app.release("first");
        eventually("it is the backend's", || stage.app.count("/hold?gate=bank") == 1).await;
        stage.app.release("bank");
        assert_eq!(within("its answer", modest.response()).await.unwrap().status, 200);
        stage.app.release("rest");
        for http in &mut greedy {
            assert_eq!(within("an answer", http.response()).await.unwrap().status, 200);
        }
        eventually("nothing is left", || overload.reading().in_flight == 0.0).await;
    });
}

#[test]
fn calls_that_are_refused_are_unavailable() {
    drive(async {
        let stage = Stage::new().await;
        let (run, overload, _pod) = two_tenants(&stage, OverloadConfig::new(1)).await;
        let mut first = held(&run.client, VIP, "gate").await;
        eventually("it is held", || stage.app.waiting() == 1).await;
        let h2c = run.h2c_to(BANK).await;
        let refused = within("a call", h2c.unary("/test.Echo/Unary", &[], b"x")).await.unwrap();
        assert_eq!((refused.status, refused.grpc_status()), (200, Some(14)));
        assert_eq!(refused.grpc_message(), Some("overloaded"));
        assert!(refused.headers_only && refused.header("retry-after").is_some());
        stage.app.release("gate");
        assert_eq!(within("the first", first.response()).await.unwrap().status, 200);
        eventually("there is room", || overload.reading().in_flight == 0.0).await;
        assert_eq!(within("a request", h2c.get("/")).await.unwrap().status, 200);
    });
}

#[test]
fn streams_of_bytes_take_a_tenth_of_a_request() {
    drive(async {
        let stage = Stage::new().await;
        let (run, overload, _pod) = two_tenants(&stage, OverloadConfig::new(1)).await;
        let mut open = Vec::new();
        for _ in 0..10 {
            let mut tunnel = run.tunnel(TCP_VIP).await;
            tunnel.write_all(b"x").await.unwrap();
            within("the echo", tunnel.read_exact(&mut [0])).await.unwrap();
            open.push(tunnel);
        }
        assert_eq!(overload.reading().in_flight, 1.0);
        let mut beyond = run.tunnel(TCP_VIP).await;
        assert!(within("an end", beyond.read_to_end(&mut Vec::new())).await.is_err());
        drop(open);
        eventually("there is room", || overload.reading().in_flight == 0.0).await;
        let http = run.http().await;
        let (mut socket, _) =
            cairn_test_support::websocket::upgrade(http, "/ws").await.unwrap().unwrap();
        socket.echo("hello").await.unwrap();
        assert_eq!(overload.reading().in_flight, 0.1);
        drop(socket);
        eventually("nothing is left", || overload.reading().in_flight == 0.0).await;
    });
}
