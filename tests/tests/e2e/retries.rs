//! Timeouts, and requests that are tried again.

use cairn_test_support::backend::pattern;
use cairn_test_support::config::{MeshSpec, hbone, hbone_at, plain, to};
use cairn_test_support::endpoint::DeadPort;
use cairn_test_support::pki::spiffe;
use cairn_test_support::stage::{Stage, VIP, app_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};

#[test]
fn a_timeout_is_504() {
    drive(async {
        let routes = json!([to("app", json!({ "timeout": "300ms" }))]);
        let (stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        let response = http.ask("GET /hold?gate=never", &[]).await;
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        eventually("the backend's request is cancelled", || stage.app.cancelled() == 1).await;
        assert_eq!(http.ask("GET /", &[]).await.status, 200);
        // After the head it is too late for a status: the response breaks off.
        let cut = within("an end", http.get("/gate?gate=never")).await;
        assert!(cut.is_err(), "{cut:?}");
        let h2c = run.h2c().await;
        let response = within("504", h2c.get("/hold?gate=never")).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
    });
}

#[test]
fn the_timeout_starts_after_the_request() {
    drive(async {
        let routes = json!([to("app", json!({ "timeout": "300ms" }))]);
        let (stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        http.send("POST /echo HTTP/1.1\r\nHost: app.test\r\nContent-Length: 8\r\n\r\nbody")
            .await
            .unwrap();
        // Other requests time out meanwhile: far more than 300 ms pass.
        for _ in 0..2 {
            assert_eq!(run.http().await.ask("GET /hold?gate=never", &[]).await.status, 504);
        }
        http.send("body").await.unwrap();
        assert_eq!(within("the answer", http.response()).await.unwrap().status, 200);
        assert_eq!(stage.app.last("/echo").body, "bodybody");
    });
}

#[test]
fn every_try_has_its_timeout() {
    drive(async {
        let retry = json!({ "on": ["5xx"], "attempts": 2, "per_try_timeout": "200ms", "backoff": { "base": "1ms" } });
        let (stage, run) = Stage::routed(json!([to("app", json!({ "retry": retry }))])).await;
        let mut http = run.http().await;
        let response = http.ask("GET /hold?gate=never", &[]).await;
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        eventually("three tries were cancelled", || stage.app.cancelled() == 3).await;
        assert_eq!(stage.app.count("/hold"), 3);
    });
}

/// Routes by the header `x-on`, each with one retry condition and two retries.
fn conditions() -> Value {
    let names = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
    ];
    let mut routes: Vec<Value> = names
        .iter()
        .map(|name| {
            let mut retry = json!({ "on": [name], "attempts": 2, "backoff": { "base": "1ms" } });
            if *name == "retriable-status-codes" {
                retry["status_codes"] = json!([418]);
            }
            json!({
                "match": { "path": { "prefix": "/" }, "headers": [{ "name": "x-on", "match": { "exact": name } }] },
                "route": { "cluster": "app", "timeout": "0s", "retry": retry },
            })
        })
        .collect();
    routes.push(to("app", json!({})));
    json!(routes)
}

#[test]
fn responses_are_retried_by_condition() {
    drive(async {
        let (stage, run) = Stage::routed(conditions()).await;
        let mut http = run.http().await;
        let fails = |status: u16| format!("/fail-first?n=2&status={status}");
        let mut id = 0;
        for (on, path, wanted) in [
            ("5xx", fails(500), 200),
            ("5xx", fails(503), 200),
            ("5xx", fails(409), 409),
            ("5xx", "/reset-first?n=2".to_owned(), 200),
            ("gateway-error", fails(502), 200),
            ("gateway-error", fails(503), 200),
            ("gateway-error", fails(504), 200),
            ("gateway-error", fails(500), 500),
            ("retriable-4xx", fails(409), 200),
            ("retriable-4xx", fails(404), 404),
            ("retriable-status-codes", fails(418), 200),
            ("retriable-status-codes", fails(503), 503),
            ("reset", "/reset-first?n=2".to_owned(), 200),
            ("reset", fails(503), 503),
            ("connect-failure", "/reset-first?n=2".to_owned(), 503),
            (
                "envoy-ratelimited",
                "/fail-first?n=2&status=429&fh=x-envoy-ratelimited:true".to_owned(),
                200,
            ),
            ("envoy-ratelimited", fails(429), 429),
            ("5xx", "/fail-first?n=3&status=500".to_owned(), 500),
            ("nothing", fails(503), 503),
        ] {
            id += 1;
            let test = id.to_string();
            let headers = [("X-On", on), ("X-Test-Id", &test)];
            let response = http.request("POST", &path, &headers, b"the body").await.unwrap();
            assert_eq!(response.status, wanted, "retry on {on}, {path}");
            if wanted == 200 {
                assert_eq!(response.json()["body"], "the body", "the body is sent again");
                assert_eq!(count_of(&stage, &test), 3, "retry on {on}, {path}");
            }
            if path.contains("n=3") {
                assert_eq!(response.text(), "attempt 3 fails", "the last response is the client's");
            }
        }
        // The same in HTTP/2.
        let h2c = run.h2c().await;
        let headers = [("x-on", "5xx"), ("x-test-id", "h2")];
        let response = h2c.request("POST", "/fail-first?n=2", &headers, b"the body").await.unwrap();
        assert_eq!((response.status, &response.json()["body"]), (200, &json!("the body")));
    });
}

fn count_of(stage: &Stage, id: &str) -> usize {
    stage.app.log().iter().filter(|seen| seen.headers.get("x-test-id") == Some(id)).count()
}

#[test]
fn failures_to_connect_are_retried_by_condition() {
    drive(async {
        let (stage, run) = Stage::routed(conditions()).await;
        let mut id = 0;
        for (on, wanted) in
            [("connect-failure", 200), ("5xx", 200), ("reset", 200), ("retriable-4xx", 503)]
        {
            id += 1;
            stage.pod.refuse_next(503, 2);
            let headers = [("X-On", on), ("X-Test-Id", &id.to_string())];
            // Not over an idle connection: a CONNECT is needed.
            stage.pod.drop_connections();
            eventually("no connection is left", || stage.pod.open_connections() == 0).await;
            let response = run.http().await.request("GET", "/", &headers, b"").await.unwrap();
            assert_eq!(response.status, wanted, "CONNECT 503, retry on {on}: {response:?}");
            stage.pod.refuse(200);
        }
        for (on, wanted) in [("refused-stream", 200), ("retriable-4xx", 503)] {
            stage.pod.drop_connections();
            eventually("no connection is left", || stage.pod.open_connections() == 0).await;
            stage.pod.reject_streams(2);
            let response =
                run.http().await.request("GET", "/", &[("X-On", on)], b"").await.unwrap();
            // A refused stream was never begun: it may be tried again without being asked to.
            assert!(response.status == wanted || response.status == 200, "{on}: {response:?}");
            stage.pod.reject_streams(0);
        }
    });
}

#[test]
fn dead_endpoints_are_passed_over() {
    drive(async {
        let stage = Stage::new().await;
        let dead = DeadPort::new();
        let retry =
            json!({ "on": ["connect-failure"], "attempts": 2, "backoff": { "base": "1ms" } });
        let endpoints = vec![
            hbone_at(dead.addr, "10.1.0.9:8080", &app_id()),
            plain(dead.addr),
            hbone(&stage.pod, "10.1.0.1:8080", &spiffe("shop", "app")),
        ];
        let spec = MeshSpec::new()
            .cluster("app", endpoints)
            .http(VIP, json!([to("app", json!({ "retry": retry }))]));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for round in 0..40 {
            let response = http.ask("GET /", &[]).await;
            assert_eq!((response.status, response.backend()), (200, "app"), "round {round}");
        }
    });
}

#[test]
fn a_retry_avoids_the_previous_host() {
    drive(async {
        let stage = Stage::new().await;
        let (other, other_pod) = stage.backend("other").await;
        let retry = json!({ "on": ["5xx"], "attempts": 1, "backoff": { "base": "1ms" } });
        let spec = MeshSpec::new()
            .cluster("app", vec![stage.endpoint(), hbone(&other_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, json!([to("app", json!({ "retry": retry }))]));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (broken, wanted) in [("x-fail-on", "app"), ("x-reset-on", "app")] {
            for round in 0..60 {
                let response = http.ask("GET /echo", &[(broken, "other")]).await;
                assert_eq!(
                    (response.status, response.backend()),
                    (200, wanted),
                    "{broken} round {round}"
                );
            }
        }
        assert!(other.requests() > 0, "nothing was retried");
    });
}

#[test]
fn bodies_beyond_the_replay_bound_are_not_retried() {
    drive(async {
        let (stage, run) = Stage::routed(conditions()).await;
        let mut http = run.http().await;
        let small = pattern(1_000_000);
        let headers = [("X-On", "5xx"), ("X-Test-Id", "small")];
        let response =
            http.request("POST", "/fail-first?n=1", &headers, small.as_bytes()).await.unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(stage.app.last("/fail-first").body_len, 1_000_000);
        let large = pattern(3_000_000);
        let headers = [("X-On", "5xx"), ("X-Test-Id", "large")];
        let response =
            http.request("POST", "/fail-first?n=1", &headers, large.as_bytes()).await.unwrap();
        assert_eq!((response.status, count_of(&stage, "large")), (503, 1));
    });
}

#[test]
fn a_silent_stream_ends_where_the_route_says_so() {
    drive(async {
        let routes = json!([to("app", json!({ "timeout": "0s", "idle_timeout": "300ms" }))]);
        let (stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        let response = http.ask("GET /hold?gate=never", &[]).await;
        // Envoy: 408 while the request's head is all there was, 504 once it is complete.
        assert!(matches!(response.status, 408 | 504), "{response:?}");
        eventually("the backend's request is cancelled", || stage.app.cancelled() == 1).await;
        let cut = within("an end", run.http().await.get("/gate?gate=never")).await;
        assert!(cut.is_err(), "{cut:?}");
    });
}
