//! How much may be under way at a cluster.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, all_to, hbone, to};
use cairn_test_support::http1::message;
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, app_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OVERFLOW: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: overflow";

/// A mesh in which the pod's cluster has these bounds.
fn bounded(stage: &Stage, breakers: Value, more: Value) -> MeshSpec {
    let mut cluster = more;
    cluster["circuit_breakers"] = breakers;
    MeshSpec::new().cluster_with("app", cluster, vec![stage.endpoint()]).http(VIP, all_to("app"))
}

async fn in_flight(run: &Run, count: u64) {
    eventually(&format!("{count} requests are in flight"), || {
        run.waypoint.counter("cairn_requests_in_flight", &[]) == count
    })
    .await;
}

#[test]
fn requests_overflow() {
    drive(async {
        for (protocol, vip) in [("http1", VIP), ("http2", VIP)] {
            let stage = Stage::new().await;
            let breakers = json!({ "max_requests": 1 });
            let spec = bounded(&stage, breakers.clone(), json!({ "protocol": protocol }));
            let run = stage.run(&spec).await;
            let mut first = run.http_to(vip).await;
            first.send(message("GET", "/hold?gate=g", &[], b"")).await.unwrap();
            eventually("it is held", || stage.app.waiting() == 1).await;
            let mut second = run.http_to(vip).await;
            let response = second.get("/").await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (503, OVERFLOW));
            assert_eq!(response.header("x-envoy-overloaded"), Some("true"));

            // A push forgets nothing; the bound itself is the new one.
            let other = json!({ "protocol": protocol, "idle_timeout": "1m" });
            run.waypoint.apply(&bounded(&stage, breakers.clone(), other.clone()));
            assert_eq!(second.get("/").await.unwrap().status, 503);
            run.waypoint.apply(&bounded(&stage, json!({ "max_requests": 2 }), other));
            assert_eq!(second.get("/").await.unwrap().status, 200);
            run.waypoint.apply(&spec);
            assert_eq!(second.get("/").await.unwrap().status, 503);

            stage.app.release("g");
            assert_eq!(within("the first", first.response()).await.unwrap().status, 200);
            in_flight(&run, 0).await;
            assert_eq!(second.get("/").await.unwrap().status, 200);
            eventually("overflows are recorded", || {
                run.waypoint.istio("istio_requests_total", &[("response_flags", "UO")]) == 3
            })
            .await;
        }
    });
}

#[test]
fn the_header_is_envoys() {
    drive(async {
        let stage = Stage::new().await;
        let cluster = json!({ "circuit_breakers": { "max_requests": 0 } });
        let spec = MeshSpec::new().cluster_with("app", cluster, vec![stage.endpoint()]).http_with(
            VIP,
            all_to("app"),
            json!({ "suppress_envoy_headers": true }),
        );
        let run = stage.run(&spec).await;
        let response = run.http().await.get("/").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (503, OVERFLOW));
        assert!(!response.headers.has("x-envoy-overloaded"));
        let unary = run.h2c().await.unary("/test.Echo/Unary", &[], b"").await.unwrap();
        assert_eq!(unary.grpc_status(), Some(14));
    });
}

#[test]
fn who_exceeds_the_connections_waits() {
    drive(async {
        let stage = Stage::new().await;
        let breakers = json!({ "max_connections": 1, "max_pending_requests": 1 });
        let run = stage.run(&bounded(&stage, breakers, json!({}))).await;
        let mut clients = Vec::new();
        for number in 1..=2 {
            let mut http = run.http().await;
            http.send(message("GET", "/hold?gate=g", &[], b"")).await.unwrap();
            in_flight(&run, number).await;
            clients.push(http);
        }
        eventually("one of them is there", || stage.app.waiting() == 1).await;
        let mut third = run.http().await;
        let response = third.get("/").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (503, OVERFLOW));
        assert_eq!(stage.app.requests(), 1);
        stage.app.release("g");
        for mut http in clients {
            assert_eq!(within("its turn", http.response()).await.unwrap().status, 200);
        }
        assert_eq!(third.get("/").await.unwrap().status, 200);
        assert_eq!(stage.app.open_connections(), 1, "one connection did it all");
    });
}

#[test]
fn the_wait_is_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let breakers = json!({ "max_connections": 1 });
        let impatient = json!({ "connect_timeout": "200ms" });
        let run = stage.run(&bounded(&stage, breakers.clone(), impatient)).await;
        let mut first = run.http().await;
        first.send(message("GET", "/hold?gate=g", &[], b"")).await.unwrap();
        eventually("it is held", || stage.app.waiting() == 1).await;
        let mut second = run.http().await;
        let response = within("the connect timeout", second.get("/")).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (503, OVERFLOW));

        let cluster = json!({ "circuit_breakers": breakers });
        let spec = MeshSpec::new()
            .cluster_with("app", cluster, vec![stage.endpoint()])
            .http(VIP, json!([to("app", json!({ "timeout": "200ms" }))]));
        run.waypoint.apply(&spec);
        let response = within("the route's timeout", second.get("/")).await.unwrap();
        assert_eq!(response.status, 504);

        // One that leaves makes room for the next.
        let mut third = run.http().await;
        third.send(message("GET", "/hold?gate=g", &[], b"")).await.unwrap();
        in_flight(&run, 2).await;
        third.wire.io().reset(h2::Reason::CANCEL);
        in_flight(&run, 1).await;
        stage.app.release("g");
        assert_eq!(within("the first", first.response()).await.unwrap().status, 200);
        assert_eq!(second.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn retries_overflow() {
    drive(async {
        let retry = json!({ "on": ["5xx"], "attempts": 2, "backoff": { "base": "1ms" } });
        for (bound, status) in [(0, 503), (1, 200)] {
            let stage = Stage::new().await;
            let cluster = json!({ "circuit_breakers": { "max_retries": bound } });
            let spec = MeshSpec::new()
                .cluster_with("app", cluster, vec![stage.endpoint()])
                .http(VIP, json!([to("app", json!({ "retry": retry }))]));
            let run = stage.run(&spec).await;
            let mut http = run.http().await;
            for id in ["1", "2"] {
                let response = http.ask("GET /fail-first?n=2", &[("X-Test-Id", id)]).await;
                assert_eq!(response.status, status, "at most {bound}");
            }
            let flags = if bound == 0 { "UO" } else { "-" };
            eventually("they are recorded", || {
                run.waypoint.istio("istio_requests_total", &[("response_flags", flags)]) == 2
            })
            .await;
        }
    });
}

#[test]
fn a_retry_leaves_its_place() {
    drive(async {
        let stage = Stage::new().await;
        let retry = json!({ "on": ["5xx"], "attempts": 2, "backoff": { "base": "1ms" } });
        for protocol in ["http1", "http2"] {
            let bounds =
                json!({ "max_requests": 1, "max_connections": 1, "max_pending_requests": 0 });
            let cluster = json!({ "protocol": protocol, "circuit_breakers": bounds });
            let spec = MeshSpec::new()
                .cluster_with("app", cluster, vec![stage.endpoint()])
                .http(VIP, json!([to("app", json!({ "retry": retry }))]));
            let run = stage.run(&spec).await;
            let mut http = run.http().await;
            for path in ["GET /fail-first?n=2", "GET /reset-first?n=2"] {
                let id = format!("{path}{protocol}").replace(' ', "");
                let response = http.ask(path, &[("X-Test-Id", &id)]).await;
                assert_eq!(response.status, 200, "{path} {protocol}");
            }
        }
    });
}

#[test]
fn connections_overflow() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::ServerFirst("hello"));
        let pod = stage.pod(&app).await;
        let spec = |pending: u32| {
            let bounds = json!({ "max_connections": 1, "max_pending_requests": pending });
            let cluster = json!({ "circuit_breakers": bounds });
            let endpoint = hbone(&pod, "10.1.0.2:9000", &app_id());
            MeshSpec::new().cluster_with("tcp", cluster, vec![endpoint]).tcp(TCP_VIP, "tcp")
        };
        let run = stage.run(&spec(0)).await;
        let mut hello = [0; 5];
        let mut first = run.tunnel(TCP_VIP).await;
        within("hello", first.read_exact(&mut hello)).await.unwrap();
        let mut second = run.tunnel(TCP_VIP).await;
        let mut nothing = Vec::new();
        let _closed = within("the end", second.read_to_end(&mut nothing)).await;
        assert!(nothing.is_empty());
        eventually("it is recorded", || {
            let labels = [("response_flags", "UO")];
            run.waypoint.istio("istio_tcp_connections_closed_total", &labels) == 1
        })
        .await;

        run.waypoint.apply(&spec(1));
        let mut third = run.tunnel(TCP_VIP).await;
        let waiting = tokio::spawn(async move {
            let mut hello = [0; 5];
            within("its turn", third.read_exact(&mut hello)).await.unwrap();
            hello
        });
        first.shutdown().await.unwrap();
        assert_eq!(&waiting.await.unwrap(), b"hello");
        assert_eq!(app.connections(), 2);
    });
}
