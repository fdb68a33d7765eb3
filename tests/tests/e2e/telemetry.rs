//! Istio's metrics: one event per request and connection, with Envoy's flags.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, at, hbone, hbone_at, rbac};
use cairn_test_support::endpoint::DeadPort;
use cairn_test_support::h2c::grpc_frame;
use cairn_test_support::metrics::{Sample, sum};
use cairn_test_support::stage::{POD, Stage, TCP_VIP, VIP, app_id, client_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn requests(samples: &[Sample], labels: &[(&str, &str)]) -> f64 {
    sum(samples, "istio_requests_total", labels)
}

#[test]
fn a_request_is_counted_with_both_ends() {
    drive(async {
        let stage = Stage::new().await;
        let cluster =
            json!({ "service": "app.shop.svc.cluster.local", "service_namespace": "shop" });
        let spec = MeshSpec::new()
            .cluster_with("app", cluster, vec![stage.endpoint()])
            .http(VIP, json!([at(json!({ "prefix": "/" }), "app", json!({}))]))
            .workload(json!({
                "addresses": ["127.0.0.1"], "name": "client-1", "namespace": "web", "service_account": "client",
                "trust_domain": "cluster.local", "workload_name": "client", "canonical_name": "client",
                "canonical_revision": "v1", "cluster": "Kubernetes",
            }))
            .workload(json!({
                "addresses": ["10.1.0.1"], "name": "app-1", "namespace": "shop", "service_account": "app",
                "trust_domain": "cluster.local", "workload_name": "app", "canonical_name": "app",
                "canonical_revision": "v2", "cluster": "Kubernetes",
            }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for path in ["/", "/status/404", "/status/500"] {
            http.get(path).await.unwrap();
        }
        let (client, app) = (client_id(), app_id());
        let common = [
            ("reporter", "waypoint"),
            ("source_workload", "client"),
            ("source_workload_namespace", "web"),
            ("source_principal", client.as_str()),
            ("source_canonical_service", "client"),
            ("destination_workload", "app"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", app.as_str()),
            ("destination_service", "app.shop.svc.cluster.local"),
            ("destination_service_name", "app"),
            ("destination_service_namespace", "shop"),
            ("destination_canonical_revision", "v2"),
            ("request_protocol", "http"),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        for code in ["200", "404", "500"] {
            let mut labels = common.to_vec();
            labels.push(("response_code", code));
            eventually(&format!("{code} is counted"), || {
                requests(&run.waypoint.metrics(), &labels) == 1.0
            })
            .await;
        }
        let samples = run.waypoint.metrics();
        assert_eq!(sum(&samples, "istio_request_duration_milliseconds_count", &common), 3.0);
        assert_eq!(requests(&samples, &[]), 3.0, "nothing else is counted");
    });
}

#[test]
fn flags_say_why() {
    drive(async {
        let stage = Stage::new().await;
        let dead = DeadPort::new();
        let exact = |path: &str| json!({ "exact": path });
        let retry =
            json!({ "retry": { "on": ["5xx"], "attempts": 1, "backoff": { "base": "1ms" } } });
        let deny = rbac("DENY", json!([{ "path": { "exact": "/denied" } }]), json!(["any"]));
        let spec = stage
            .spec()
            .cluster("empty", vec![])
            .cluster("dead", vec![hbone_at(dead.addr, POD, &app_id())])
            .http_with(
                VIP,
                json!([
                    at(exact("/empty"), "empty", json!({})),
                    at(exact("/missing"), "missing", json!({})),
                    at(exact("/dead"), "dead", json!({})),
                    at(exact("/hold"), "app", json!({ "timeout": "200ms" })),
                    at(exact("/fail-first"), "app", retry),
                    at(json!({ "prefix": "/app" }), "app", json!({})),
                    at(exact("/reset"), "app", json!({})),
                ]),
                json!({ "filters": [deny] }),
            );
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (path, code, flag) in [
            ("/app", "200", "-"),
            ("/nowhere", "404", "NR"),
            ("/empty", "503", "UH"),
            ("/missing", "503", "NC"),
            ("/dead", "503", "UF"),
            ("/hold?gate=never", "504", "UT"),
            ("/reset", "503", "UC"),
            ("/fail-first?n=9&status=500", "500", "URX"),
            ("/denied", "403", "-"),
        ] {
            let response = within(path, http.get(path)).await.unwrap();
            assert_eq!(response.status.to_string(), code, "{path}");
            let labels = [("response_code", code), ("response_flags", flag)];
            eventually(&format!("{path} is counted as {code} {flag}"), || {
                requests(&run.waypoint.metrics(), &labels) >= 1.0
            })
            .await;
        }
        // The client leaves.
        http.send("GET /hold?gate=never HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        drop(http);
        eventually("DC is counted", || {
            requests(&run.waypoint.metrics(), &[("response_flags", "DC")]) == 1.0
        })
        .await;
        // Nonsense.
        let mut http = run.http().await;
        http.send("nonsense\r\n\r\n").await.unwrap();
        eventually("DPE is counted", || {
            requests(&run.waypoint.metrics(), &[("response_flags", "DPE")]) == 1.0
        })
        .await;
    });
}

#[test]
fn grpc_is_told_apart() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage
            .run(
                &stage.spec_h2().http(VIP, json!([at(json!({ "prefix": "/" }), "app", json!({}))])),
            )
            .await;
        let h2c = run.h2c().await;
        h2c.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        h2c.unary("/test.Echo/Fail", &[("x-status", "5")], b"x").await.unwrap();
        h2c.request("POST", "/plain", &[], &grpc_frame(b"x")).await.unwrap();
        for (labels, what) in [
            ([("request_protocol", "grpc"), ("grpc_response_status", "0")], "status 0"),
            ([("request_protocol", "grpc"), ("grpc_response_status", "5")], "status 5"),
            ([("request_protocol", "http"), ("response_code", "200")], "http"),
        ] {
            eventually(what, || requests(&run.waypoint.metrics(), &labels) == 1.0).await;
        }
    });
}

#[test]
fn tcp_connections_are_counted() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Count);
        let pod = stage.pod(&app).await;
        let spec = MeshSpec::new()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(&[0; 1234]).await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut text = String::new();
        tunnel.read_to_string(&mut text).await.unwrap();
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_received_bytes_total", 1234.0),
            ("istio_tcp_sent_bytes_total", text.len() as f64),
        ] {
            let labels = [("request_protocol", "tcp"), ("reporter", "waypoint")];
            eventually(name, || sum(&run.waypoint.metrics(), name, &labels) == value).await;
        }
    });
}

#[test]
fn what_is_open_is_counted() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage
            .run(&stage.spec().http(VIP, json!([at(json!({ "prefix": "/" }), "app", json!({}))])))
            .await;
        let counter = |name: &'static str| run.waypoint.counter(name, &[]);
        let mut http = run.http().await;
        http.send("GET /hold?gate=open HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        for name in ["cairn_connections", "cairn_tunnels", "cairn_requests_in_flight"] {
            assert_eq!(counter(name), 1, "{name}");
        }
        stage.app.release("open");
        assert_eq!(http.response().await.unwrap().status, 200);
        eventually("nothing is in flight", || counter("cairn_requests_in_flight") == 0).await;
        drop(http);
        eventually("no tunnel is open", || counter("cairn_tunnels") == 0).await;
        run.client.abort();
        eventually("no connection is open", || counter("cairn_connections") == 0).await;
    });
}

#[test]
fn a_chain_changes_what_is_counted() {
    drive(async {
        let stage = Stage::new().await;
        let routes = |cluster: &str| json!([at(json!({ "prefix": "/" }), cluster, json!({}))]);
        let changes = json!({ "observe": { "metrics": {
            "host_fallback": true,
            "overrides": [
                { "metric": "requests_total", "remove": ["source_app"], "dimensions": {
                    "tier": "request.headers['x-tier']",
                    "response_code": "response.code >= 500 ? 'bad' : 'good'",
                } },
                { "metric": "response_bytes", "drop": true },
                { "dimensions": { "who": "filter_state.downstream_peer.namespace" } },
            ],
        } } });
        let off = json!({ "observe": { "metrics": { "off": true } } });
        let spec = stage
            .spec()
            .workload(json!({
                "addresses": ["127.0.0.1"], "name": "client-1", "namespace": "web",
                "service_account": "client", "trust_domain": "cluster.local",
            }))
            .http_with(VIP, routes("app"), changes)
            .http_with("10.96.0.11:80", routes("app"), off);
        let run = stage.run(&spec).await;
        let mut http = run.http_to("10.96.0.11:80").await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        let mut http = run.http().await;
        for (path, tier) in [("/", "x-tier: gold\r\n"), ("/status/503", "")] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{tier}\r\n");
            http.send(&head).await.unwrap();
            http.response().await.unwrap();
        }
        let common = [("who", "web"), ("destination_service", "app.test")];
        for (code, tier) in [("good", "gold"), ("bad", "unknown")] {
            let labels = [common.as_slice(), &[("response_code", code), ("tier", tier)]].concat();
            eventually(code, || requests(&run.waypoint.metrics(), &labels) == 1.0).await;
        }
        let samples = run.waypoint.metrics();
        assert_eq!(requests(&samples, &[]), 2.0, "nothing of the chain that is off");
        let duration = "istio_request_duration_milliseconds_count";
        for code in ["200", "503"] {
            let labels = [common.as_slice(), &[("response_code", code)]].concat();
            assert_eq!(sum(&samples, duration, &labels), 1.0, "{code}");
        }
        let named = |name: &str| samples.iter().filter(|one| one.name == name).collect::<Vec<_>>();
        assert!(named("istio_requests_total").iter().all(|one| one.label("source_app").is_none()));
        assert!(named(duration).iter().all(|one| one.label("source_app").is_some()));
        assert!(named(duration).iter().all(|one| one.label("tier").is_none()));
        assert_eq!(named("istio_request_bytes_count").len(), 2);
        assert!(named("istio_response_bytes_count").is_empty());
    });
}

#[test]
fn sizes_are_those_of_heads_and_bodies() {
    drive(async {
        let (_stage, run) =
            Stage::routed(json!([at(json!({ "prefix": "/" }), "app", json!({}))])).await;
        let mut http = run.http().await;
        let head = "POST /sink HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000\r\n\r\n";
        let request = format!("{head}{}", "x".repeat(1000));
        http.send(&request).await.unwrap();
        let response = http.response().await.unwrap();
        let name = "istio_request_bytes_sum";
        eventually(name, || sum(&run.waypoint.metrics(), name, &[]) == request.len() as f64).await;
        let body = response.text().len() as f64;
        let sent = sum(&run.waypoint.metrics(), "istio_response_bytes_sum", &[]);
        assert!(sent > body + 50.0 && sent < body + 1000.0, "{sent} for a body of {body}");
    });
}
