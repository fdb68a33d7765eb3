//! Injected delays and aborts.

use cairn_test_support::config::{at, merge};
use cairn_test_support::stage::Stage;
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A route for one path with a fault.
fn faulty(path: &str, fault: Value, more: Value) -> Value {
    let mut route = at(json!({ "exact": path }), "app", json!({}));
    route["fault"] = fault;
    merge(&mut route, more);
    route
}

fn abort(status: u16) -> Value {
    json!({ "abort": { "http_status": status, "percent": 100.0 } })
}

fn grpc_abort(status: u32) -> Value {
    json!({ "abort": { "grpc_status": status, "percent": 100.0 } })
}

fn delay(fixed: &str) -> Value {
    json!({ "delay": { "fixed": fixed, "percent": 100.0 } })
}

#[test]
fn aborts_answer_instead_of_the_endpoint() {
    drive(async {
        let direct = json!({
            "match": { "path": { "exact": "/direct" } },
            "direct_response": { "status": 200, "body": "direct" },
            "fault": abort(418),
        });
        let redirect = json!({
            "match": { "path": { "exact": "/redirect" } },
            "redirect": { "host": "other.test" },
            "fault": abort(500),
        });
        let (stage, run) = Stage::routed(json!([
            faulty(
                "/503",
                abort(503),
                json!({ "response_headers": { "add": [{ "name": "x-route", "value": "1" }] } })
            ),
            faulty("/204", abort(204), json!({})),
            faulty("/grpc", grpc_abort(14), json!({})),
            faulty("/test.Echo/Unary", grpc_abort(7), json!({})),
            faulty("/test.Echo/Other", abort(401), json!({})),
            faulty("/never", json!({ "abort": { "http_status": 503, "percent": 0.0 } }), json!({})),
            faulty("/missing", abort(429), json!({ "route": { "cluster": "missing" } })),
            direct,
            redirect,
        ]))
        .await;
        let mut http = run.http().await;
        for (path, status, body) in [
            ("/503", 503, "fault filter abort"),
            ("/204", 204, ""),
            ("/grpc", 200, "fault filter abort"),
            ("/missing", 429, "fault filter abort"),
            ("/direct", 418, "fault filter abort"),
            ("/redirect", 500, "fault filter abort"),
        ] {
            let response = within(path, http.get(path)).await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
            assert_eq!(
                response.headers.has("x-route"),
                path == "/503",
                "the route changes it, too"
            );
            assert!(!response.headers.has("location"));
            assert_eq!(response.header("server"), Some("istio-envoy"));
        }
        let h2c = run.h2c().await;
        let reply = h2c.unary("/test.Echo/Unary", &[], b"hello").await.unwrap();
        assert_eq!((reply.status, reply.headers_only, reply.grpc_status()), (200, true, Some(7)));
        assert_eq!(reply.grpc_message(), Some("fault filter abort"));
        let reply = h2c.unary("/test.Echo/Other", &[], b"hello").await.unwrap();
        assert_eq!((reply.headers_only, reply.grpc_status()), (true, Some(16)));
        assert_eq!(stage.app.requests(), 0);
        assert_eq!(http.get("/never").await.unwrap().backend(), "app");
        eventually("aborts are recorded", || {
            run.waypoint.istio("istio_requests_total", &[("response_flags", "FI")]) == 8
        })
        .await;
    });
}

#[test]
fn some_requests_are_aborted() {
    drive(async {
        let half = json!({ "abort": { "http_status": 503, "percent": 50.0 } });
        let (stage, run) = Stage::routed(json!([faulty("/", half, json!({}))])).await;
        let mut http = run.http().await;
        let mut aborted = 0;
        for _ in 0..200 {
            aborted += u64::from(http.get("/").await.unwrap().status == 503);
        }
        assert!((40..=160).contains(&aborted), "{aborted} of 200");
        assert_eq!(stage.app.requests(), 200 - aborted);
    });
}

#[test]
fn delays_come_first() {
    drive(async {
        let mut both = delay("150ms");
        merge(&mut both, abort(418));
        let (stage, run) = Stage::routed(json!([
            faulty(
                "/delayed",
                delay("150ms"),
                json!({ "route": { "cluster": "app", "timeout": "1h" } })
            ),
            faulty("/both", both, json!({})),
        ]))
        .await;
        let mut http = run.http().await;
        for (path, status) in [("/delayed", 200), ("/both", 418)] {
            let started = Instant::now();
            let response = http.request("POST", path, &[], b"body").await.unwrap();
            assert_eq!(response.status, status, "{path}");
            assert!(started.elapsed() >= Duration::from_millis(150), "{path}");
        }
        assert_eq!(stage.app.requests(), 1);
        eventually("both flags are recorded", || {
            run.waypoint.istio("istio_requests_total", &[("response_flags", "DI")]) == 1
                && run.waypoint.istio("istio_requests_total", &[("response_flags", "DI,FI")]) == 1
        })
        .await;
    });
}

#[test]
fn a_delay_does_not_eat_the_timeout() {
    drive(async {
        let patient = json!({ "route": { "cluster": "app", "timeout": "10s" } });
        let (_stage, run) = Stage::routed(json!([faulty("/", delay("100ms"), patient)])).await;
        let echo = run.http().await.get("/").await.unwrap().json();
        let seen = cairn_test_support::backend::echoed(&echo, "x-envoy-expected-rq-timeout-ms");
        assert_eq!(seen, ["10000"]);
    });
}

#[test]
fn a_delay_ends_with_its_client() {
    drive(async {
        let (stage, run) = Stage::routed(json!([faulty("/", delay("1h"), json!({}))])).await;
        let h2c = run.h2c().await;
        let (response, stream) = h2c.start("GET", "/", &[], true).await.unwrap();
        let mut http = run.http().await;
        http.send(cairn_test_support::http1::message("GET", "/", &[], b"")).await.unwrap();
        eventually("both are delayed", || {
            run.waypoint.counter("cairn_requests_in_flight", &[]) == 2
        })
        .await;
        drop((response, stream));
        http.wire.io().reset(h2::Reason::CANCEL);
        eventually("nothing is left of them", || {
            run.waypoint.counter("cairn_requests_in_flight", &[]) == 0
        })
        .await;
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn policies_come_before_faults() {
    drive(async {
        let stage = Stage::new().await;
        let deny = cairn_test_support::config::rbac("DENY", json!(["any"]), json!(["any"]));
        let routes = json!([faulty("/", abort(418), json!({}))]);
        let spec = stage.spec().http_with(
            cairn_test_support::stage::VIP,
            routes,
            json!({ "filters": [deny] }),
        );
        let run = stage.run(&spec).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 403);
    });
}
