//! Traces: what the endpoint is told, and what collectors get through clusters of the mesh.

use cairn_test_support::app::App;
use cairn_test_support::backend::Recorded;
use cairn_test_support::collector::{Collector, Seen, of_otlp_http, of_zipkin};
use cairn_test_support::config::{at, hbone, hbone_at, merge, plain, to};
use cairn_test_support::endpoint::DeadPort;
use cairn_test_support::stage::{POD, Run, Stage, VIP, app_id};
use cairn_test_support::wait::{drive, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const PARENT: &str = "00f067aa0ba902b7";

fn otlp(cluster: &str) -> Value {
    json!({ "open_telemetry": {
        "collector": { "grpc": { "cluster": cluster, "authority": "collector.shop", "headers": [["x-token", "t"]] } },
        "service_name": "waypoint.shop",
    } })
}

fn zipkin(cluster: &str, more: Value) -> Value {
    let mut zipkin = json!({
        "collector": { "cluster": cluster, "host": "zipkin.shop:9411", "path": "/api/v2/spans" },
        "trace_id_128bit": true, "shared_span_context": false,
    });
    merge(&mut zipkin, more);
    json!({ "zipkin": zipkin })
}

/// Everything is traced.
fn tracing(provider: Value, more: Value) -> Value {
    let mut tracing = json!({ "provider": provider });
    merge(&mut tracing, more);
    json!({ "observe": { "tracing": tracing } })
}

fn client_workload() -> Value {
    json!({
        "addresses": ["127.0.0.1"], "name": "client-1", "namespace": "web", "service_account": "client",
        "trust_domain": "cluster.local", "workload_name": "client", "canonical_name": "client",
        "canonical_revision": "v1", "cluster": "Kubernetes",
    })
}

fn app_workload() -> Value {
    json!({
        "addresses": ["10.1.0.1"], "name": "app-1", "namespace": "shop", "service_account": "app",
        "trust_domain": "cluster.local", "workload_name": "app", "canonical_name": "app",
        "canonical_revision": "v2", "cluster": "Kubernetes",
    })
}

async fn get(run: &Run, path: &str, headers: &[(&str, &str)]) -> u16 {
    let mut http = run.http().await;
    http.request("GET", path, headers, b"").await.unwrap().status
}

/// The fields of a trace that the endpoint got.
fn told(seen: &Recorded) -> Vec<(String, String)> {
    let names = [
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
    ];
    let one = |name: &&str| Some(((*name).to_owned(), seen.headers.get(name)?.to_owned()));
    names.iter().filter_map(one).collect()
}

fn field(seen: &Recorded, name: &str) -> String {
    seen.headers.get(name).unwrap_or_default().to_owned()
}

async fn spans(what: &str, count: usize, all: impl Fn() -> Vec<Seen>) -> Vec<Seen> {
    eventually(&format!("{what}: {count} spans"), || all().len() >= count).await;
    let all = all();
    assert_eq!(all.len(), count, "{what}: {all:#?}");
    all
}

/// A mesh that is traced, with a collector in plaintext.
async fn traced(stage: &Stage, collector: &Collector, more: Value) -> Run {
    let spec = stage.spec().cluster("collector", vec![plain(collector.addr)]).http_with(
        VIP,
        json!([to("app", json!({}))]),
        tracing(otlp("collector"), more),
    );
    stage.run(&spec).await
}

#[test]
fn a_request_is_a_span_at_a_grpc_collector() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let tags = json!([
            { "tag": "literal", "value": { "literal": "x" } },
            { "tag": "header", "value": { "request_header": { "name": "x-h", "default": "d" } } },
            { "tag": "no-header", "value": { "request_header": { "name": "x-none" } } },
            { "tag": "text", "value": { "format": "<%REQ(x-h)% %RESPONSE_CODE%>" } },
            { "tag": "istio.source_workload", "value": { "format": "%FILTER_STATE(downstream_peer_obj:FIELD:workload)%" } },
            { "tag": "istio.source_instance_name", "value": { "format": "%FILTER_STATE(downstream_peer_obj:FIELD:name)%" } },
            { "tag": "istio.destination_workload", "value": { "format": "%FILTER_STATE(upstream_peer_obj:FIELD:workload)%" } },
            { "tag": "istio.destination_canonical_revision", "value": { "format": "%FILTER_STATE(upstream_peer_obj:FIELD:revision)%" } },
        ]);
        let mut route = to("app", json!({}));
        route["decorator"] = json!("app.shop.svc.cluster.local:80/*");
        let spec = stage
            .spec()
            .cluster("collector", vec![plain(collector.addr)])
            .workload(client_workload())
            .workload(app_workload())
            .http_with(
                VIP,
                json!([route]),
                tracing(
                    otlp("collector"),
                    json!({ "custom_tags": tags, "max_path_tag_length": 9, "verbose": true }),
                ),
            );
        let run = stage.run(&spec).await;
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let headers = [
            ("traceparent", parent.as_str()),
            ("tracestate", "a=b"),
            ("x-h", "hh"),
            ("user-agent", "me"),
            ("x-request-id", "00002710-0000-4000-8000-000000000001"),
        ];
        assert_eq!(get(&run, "/echo?long=path", &headers).await, 200);
        let [span] = spans("one request", 1, || collector.spans()).await.try_into().unwrap();
        assert_eq!((span.trace.as_str(), span.parent.as_str(), span.kind), (TRACE, SPAN, "server"));
        assert_eq!(span.name, "app.shop.svc.cluster.local:80/*");
        assert_eq!((span.service.as_str(), span.failed), ("waypoint.shop", false));
        assert_eq!(span.resource["telemetry.sdk.name"], "cairn");
        for (tag, value) in [
            ("component", "proxy"),
            ("guid:x-request-id", "00002710-0000-9000-8000-000000000001"),
            ("http.method", "GET"),
            ("http.status_code", "200"),
            ("http.protocol", "HTTP/1.1"),
            ("user_agent", "me"),
            ("downstream_cluster", "-"),
            ("peer.address", "127.0.0.1"),
            ("request_size", "0"),
            ("response_flags", "-"),
            ("upstream_cluster", "app"),
            ("upstream_cluster.name", "app"),
            ("literal", "x"),
            ("header", "hh"),
            ("text", "<hh 200>"),
            ("istio.source_workload", "client"),
            ("istio.source_instance_name", "client-1"),
            ("istio.destination_workload", "app"),
            ("istio.destination_canonical_revision", "v2"),
        ] {
            assert_eq!(span.tag(tag), value, "{tag}");
        }
        assert!(span.tag("http.url").ends_with("/echo?lon"), "{}", span.tag("http.url"));
        assert!(!span.tags.contains_key("no-header") && !span.tags.contains_key("error"));
        assert_ne!(span.tag("response_size"), "0");
        assert!(
            span.events.contains(&"last_downstream_tx_byte_sent".to_owned()),
            "{:?}",
            span.events
        );
        let seen = stage.app.last("/echo");
        let mine = format!("00-{TRACE}-{}-01", span.id);
        assert_eq!(
            told(&seen),
            [("traceparent".to_owned(), mine), ("tracestate".to_owned(), "a=b".to_owned())]
        );
        assert_eq!(field(&seen, "x-request-id"), "00002710-0000-9000-8000-000000000001");
        assert_eq!(collector.metadata("x-token").as_deref(), Some("t"));
        let count = |name: &str| run.waypoint.counter(name, &[]);
        eventually("it is counted", || count("cairn_traces_exported_total") == 1).await;
        assert_eq!(count("cairn_traces_spans_total"), 1);
        assert_eq!(count("cairn_traces_dropped_total"), 0);
    });
}

#[test]
fn what_is_not_traced_costs_headers_only() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let run = traced(&stage, &collector, json!({ "random_sampling": 0 })).await;
        let parent = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
        assert_eq!(get(&run, "/new", &[]).await, 200);
        let new = field(&stage.app.last("/new"), "traceparent");
        assert!(new.starts_with("00-") && new.ends_with("-00"), "{new}");
        for flags in ["00", "01"] {
            assert_eq!(get(&run, "/child", &[("traceparent", &parent(flags))]).await, 200);
            let child = field(&stage.app.last("/child"), "traceparent");
            assert!(
                child.starts_with(&format!("00-{TRACE}-")) && child.ends_with("-00"),
                "{child}"
            );
            assert_ne!(child, parent("00"));
        }
        assert_eq!(get(&run, "/bad", &[("traceparent", "garbage")]).await, 200);
        assert_eq!(field(&stage.app.last("/bad"), "traceparent"), "garbage");
        // Asked for by the client, and by an id that was decided on before.
        assert_eq!(get(&run, "/client", &[("x-client-trace-id", "c")]).await, 200);
        let id = "00002710-0000-9000-8000-000000000001";
        assert_eq!(get(&run, "/decided", &[("x-request-id", id)]).await, 200);
        let all = spans("two are traced", 2, || collector.spans()).await;
        assert_eq!(all[0].tag("guid:x-client-trace-id"), "c");
        assert_eq!(all[0].name, "ingress");
        assert_eq!(&all[0].tag("guid:x-request-id")[14..15], "b");
        assert_eq!(all[1].tag("guid:x-request-id"), id);
        assert_eq!(run.waypoint.counter("cairn_traces_spans_total", &[]), 2);
    });
}

#[test]
fn without_a_provider_headers_pass_as_they_are() {
    drive(async {
        let stage = Stage::new().await;
        let none = json!({ "observe": { "tracing": {} } });
        let spec = stage.spec().http_with(VIP, json!([to("app", json!({}))]), none);
        let run = stage.run(&spec).await;
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let b3 = format!("{TRACE}-{SPAN}-1-{PARENT}");
        let headers = [("traceparent", parent.as_str()), ("b3", b3.as_str())];
        assert_eq!(get(&run, "/told", &headers).await, 200);
        let seen = stage.app.last("/told");
        assert_eq!(told(&seen), [("traceparent".to_owned(), parent), ("b3".to_owned(), b3)]);
        assert_eq!(
            &field(&seen, "x-request-id")[14..15],
            "9",
            "the decision is written all the same"
        );
        assert_eq!(get(&run, "/none", &[]).await, 200);
        assert_eq!(told(&stage.app.last("/none")), []);
        // And where nothing is said of tracing, not even that.
        let spec = stage.spec().http(VIP, json!([to("app", json!({}))]));
        let run = stage.run(&spec).await;
        assert_eq!(get(&run, "/plain", &[]).await, 200);
        assert_eq!(&field(&stage.app.last("/plain"), "x-request-id")[14..15], "4");
    });
}

#[test]
fn zipkin_with_b3_by_http() {
    drive(async {
        let stage = Stage::new().await;
        let (collector, pod) = stage.backend("collector").await;
        let spec = stage
            .spec()
            .cluster("zipkin", vec![hbone(&pod, "10.1.0.9:9411", &app_id())])
            .http_with(
                VIP,
                json!([to("app", json!({}))]),
                tracing(zipkin("zipkin", json!({})), json!({})),
            );
        let run = stage.run(&spec).await;
        let all = || collector.log().iter().flat_map(of_zipkin).collect::<Vec<Seen>>();
        let b3 = format!("{TRACE}-{SPAN}-1-{PARENT}");
        assert_eq!(get(&run, "/single", &[("b3", &b3), ("host", "app.test")]).await, 200);
        let [span] = spans("one header", 1, all).await.try_into().unwrap();
        assert_eq!((span.trace.as_str(), span.parent.as_str(), span.kind), (TRACE, SPAN, "server"));
        assert_eq!(span.name, "app.test", "Envoy: the host");
        let seen = stage.app.last("/single");
        assert_eq!(told(&seen), [("b3".to_owned(), format!("{TRACE}-{}-1-{SPAN}", span.id))]);
        let headers = [
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-parentspanid", PARENT),
            ("x-b3-sampled", "0"),
        ];
        assert_eq!(get(&run, "/multi", &headers).await, 200);
        let seen = stage.app.last("/multi");
        assert_eq!(field(&seen, "x-b3-sampled"), "0");
        assert_eq!(field(&seen, "x-b3-parentspanid"), SPAN);
        assert_ne!(field(&seen, "x-b3-spanid"), SPAN);
        assert_eq!(get(&run, "/new", &[("traceparent", "00-x")]).await, 200);
        let new = spans("a trace begins", 2, all).await.pop().unwrap();
        assert_eq!((&new.trace[16..], new.parent.as_str()), (new.id.as_str(), ""));
        let seen = stage.app.last("/new");
        assert_eq!(field(&seen, "x-b3-traceid"), new.trace);
        assert_eq!(field(&seen, "traceparent"), "00-x", "W3C passes as it is");
        let request = collector.last("/api/v2/spans");
        assert_eq!(
            (request.method.as_str(), request.authority.as_str()),
            ("POST", "zipkin.shop:9411")
        );
        assert_eq!(pod.connects().last().unwrap().authority, "10.1.0.9:9411");
    });
}

#[test]
fn zipkin_with_both_kinds_of_headers() {
    drive(async {
        let stage = Stage::new().await;
        let (collector, pod) = stage.backend("collector").await;
        let more = json!({ "w3c": true, "shared_span_context": true });
        let spec = stage
            .spec()
            .cluster("zipkin", vec![hbone(&pod, "10.1.0.9:9411", &app_id())])
            .http_with(
                VIP,
                json!([to("app", json!({}))]),
                tracing(zipkin("zipkin", more), json!({ "random_sampling": 0 })),
            );
        let run = stage.run(&spec).await;
        let parent = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(get(&run, "/w3c", &[("traceparent", &parent)]).await, 200);
        let all = || collector.log().iter().flat_map(of_zipkin).collect::<Vec<Seen>>();
        let [span] = spans("the caller wants it", 1, all).await.try_into().unwrap();
        assert_eq!((span.trace.as_str(), span.id.as_str()), (TRACE, SPAN), "the span is shared");
        let seen = stage.app.last("/w3c");
        assert_eq!(field(&seen, "traceparent"), parent);
        assert_eq!(field(&seen, "x-b3-traceid"), TRACE);
        assert_eq!(field(&seen, "x-b3-sampled"), "1");
    });
}

#[test]
fn otlp_by_http_through_a_tunnel() {
    drive(async {
        let stage = Stage::new().await;
        let (collector, pod) = stage.backend("collector").await;
        let provider = json!({ "open_telemetry": {
            "collector": { "http": {
                "cluster": "otlp", "host": "otlp.shop:4318", "path": "/v1/traces", "headers": [["x-token", "t"]],
            } },
            "service_name": "waypoint.shop",
        } });
        let spec = stage
            .spec()
            .cluster("otlp", vec![hbone(&pod, "10.1.0.9:4318", &app_id())])
            .http_with(VIP, json!([to("app", json!({}))]), tracing(provider, json!({})));
        let run = stage.run(&spec).await;
        assert_eq!(get(&run, "/status/404", &[]).await, 404);
        let all = || collector.log().iter().flat_map(of_otlp_http).collect::<Vec<Seen>>();
        let [span] = spans("one", 1, all).await.try_into().unwrap();
        assert_eq!((span.tag("http.status_code"), span.failed), ("404", false));
        let request = collector.last("/v1/traces");
        assert_eq!(request.authority, "otlp.shop:4318");
        assert_eq!(request.headers.get("x-token"), Some("t"));
    });
}

#[test]
fn grpc_through_a_tunnel_and_every_try_a_span() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let pod = stage.pod(App::At(collector.addr)).await;
        let dead = DeadPort::new();
        let retry = json!({ "retry": { "on": ["5xx", "connect-failure"], "attempts": 1, "backoff": { "base": "1ms" } } });
        let spec = stage
            .spec()
            .cluster("dead", vec![hbone_at(dead.addr, POD, &app_id())])
            .cluster_with(
                "collector",
                json!({ "protocol": "http2" }),
                vec![hbone(&pod, "10.1.0.9:4317", &app_id())],
            )
            .http_with(
                VIP,
                json!([
                    at(json!({ "exact": "/dead" }), "dead", retry.clone()),
                    at(json!({ "prefix": "/" }), "app", retry),
                ]),
                tracing(otlp("collector"), json!({ "spawn_upstream_span": true })),
            );
        let run = stage.run(&spec).await;
        assert_eq!(get(&run, "/fail-first?n=1&status=500", &[("x-test-id", "a")]).await, 200);
        let all = spans("two tries", 3, || collector.spans()).await;
        let [first, second, server] = all.as_slice() else { unreachable!() };
        assert_eq!((server.kind, first.kind, second.kind), ("server", "client", "client"));
        for span in [first, second] {
            assert_eq!((&span.parent, &span.trace), (&server.id, &server.trace));
            assert_eq!(span.name, "router app egress");
            assert_eq!(span.tag("upstream_address"), POD);
        }
        assert_eq!((first.tag("http.status_code"), first.tag("canceled")), ("500", "true"));
        assert_eq!((first.tag("retry.count"), first.failed), ("", true));
        assert_eq!((second.tag("retry.count"), second.tag("http.status_code")), ("1", "200"));
        assert!(!second.failed && second.tag("canceled").is_empty());
        let log = stage.app.log();
        let parents: Vec<String> = log.iter().map(|seen| field(seen, "traceparent")).collect();
        let expected = [first, second].map(|span| format!("00-{}-{}-01", server.trace, span.id));
        assert_eq!(parents, expected);
        assert_eq!(get(&run, "/dead", &[]).await, 503);
        let all = spans("nobody there", 6, || collector.spans()).await;
        for span in &all[3..5] {
            assert_eq!(span.tag("error.reason"), "remote connection failure");
            assert_eq!((span.tag("response_flags"), span.tag("http.status_code")), ("UF", "0"));
        }
        assert_eq!(all[5].tag("response_flags"), "UF,URX");
        assert!(all[5].failed);
        assert_eq!(pod.connections(), 1, "one connection carries all messages");
    });
}

#[test]
fn grpc_calls_have_their_tags() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let spec = stage.spec_h2().cluster("collector", vec![plain(collector.addr)]).http_with(
            VIP,
            json!([to("app", json!({}))]),
            tracing(otlp("collector"), json!({})),
        );
        let run = stage.run(&spec).await;
        let h2c = run.h2c().await;
        for (status, failed) in [("0", false), ("5", false), ("13", true)] {
            let path = if status == "0" { "/test.Echo/Unary" } else { "/test.Echo/Fail" };
            h2c.unary(path, &[("x-status", status), ("grpc-timeout", "9S")], b"").await.unwrap();
            let before = collector.spans().len();
            eventually("it is told", || collector.spans().len() > before || before > 0).await;
            eventually("the span is there", || {
                collector.spans().iter().any(|span| span.tag("grpc.status_code") == status)
            })
            .await;
            let all = collector.spans();
            let span = all.iter().find(|span| span.tag("grpc.status_code") == status).unwrap();
            assert_eq!((span.tag("grpc.path"), span.failed), (path, failed), "{status}");
            assert_eq!(span.tag("grpc.content_type"), "application/grpc");
            assert_eq!((span.tag("grpc.timeout"), span.tag("http.protocol")), ("9S", "HTTP/2"));
        }
    });
}

#[test]
fn a_dead_collector_costs_spans_only() {
    drive(async {
        let stage = Stage::new().await;
        let dead = DeadPort::new();
        let spec = |collector| {
            stage.spec().cluster("collector", vec![plain(collector)]).http_with(
                VIP,
                json!([to("app", json!({}))]),
                tracing(otlp("collector"), json!({})),
            )
        };
        let run = stage.run(&spec(dead.addr)).await;
        let count = |name: &str| run.waypoint.counter(name, &[]);
        let mut http = run.http().await;
        for _ in 0..20 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
        eventually("all are dropped", || count("cairn_traces_dropped_total") == 20).await;
        let delivery = [("reason", "delivery")];
        assert_eq!(run.waypoint.counter("cairn_traces_dropped_total", &delivery), 20);
        let failures = count("cairn_traces_export_failures_total");
        assert!(
            failures >= 2 && failures.is_multiple_of(2),
            "each message is sent twice: {failures}"
        );
        assert_eq!(count("cairn_traces_exported_total"), 0);
        // It comes back, and refuses for a while.
        let collector = Collector::start().await;
        collector.refuse(true);
        run.waypoint.apply(&spec(collector.addr));
        assert_eq!(http.get("/").await.unwrap().status, 200);
        eventually("refused twice", || count("cairn_traces_dropped_total") == 21).await;
        assert_eq!(collector.calls(), 2);
        collector.refuse(false);
        assert_eq!(http.get("/").await.unwrap().status, 200);
        spans("it is taken", 1, || collector.spans()).await;
        // A cluster that is not there, and one without endpoints, are no other matter.
        for spec in [
            stage.spec().http_with(
                VIP,
                json!([to("app", json!({}))]),
                tracing(otlp("none"), json!({})),
            ),
            stage.spec().cluster("none", vec![]).http_with(
                VIP,
                json!([to("app", json!({}))]),
                tracing(otlp("none"), json!({ "verbose": true })),
            ),
        ] {
            let before = count("cairn_traces_dropped_total");
            run.waypoint.apply(&spec);
            assert_eq!(http.get("/").await.unwrap().status, 200);
            eventually("it is dropped", || count("cairn_traces_dropped_total") == before + 1).await;
        }
    });
}

#[test]
fn a_drain_sends_what_waits() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let run = traced(&stage, &collector, json!({})).await;
        let mut http = run.http().await;
        for _ in 0..3 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
        drop(http);
        run.waypoint.drain(Duration::from_secs(10)).await;
        assert_eq!(collector.spans().len(), 3, "at once, not when they are old enough");
    });
}

#[test]
fn mirrors_are_not_recorded() {
    drive(async {
        let stage = Stage::new().await;
        let (copy, pod) = stage.backend("copy").await;
        let collector = Collector::start().await;
        let mirrors = json!({ "mirrors": [{ "cluster": "copy" }] });
        let spec = stage
            .spec()
            .cluster("copy", vec![hbone(&pod, "10.1.0.2:8080", &app_id())])
            .cluster("collector", vec![plain(collector.addr)])
            .http_with(VIP, json!([to("app", mirrors)]), tracing(otlp("collector"), json!({})));
        let run = stage.run(&spec).await;
        assert_eq!(get(&run, "/mirrored", &[]).await, 200);
        eventually("the copy is there", || copy.count("/mirrored") == 1).await;
        let original = field(&stage.app.last("/mirrored"), "traceparent");
        let copied = field(&copy.last("/mirrored"), "traceparent");
        assert_eq!(original[..35], copied[..35], "the trace is the same");
        assert!(original.ends_with("-01") && copied.ends_with("-00"), "{original} {copied}");
        assert_ne!(original[36..52], copied[36..52]);
    });
}

#[test]
fn records_of_access_logs_reach_a_collector_with_their_trace() {
    drive(async {
        let stage = Stage::new().await;
        let collector = Collector::start().await;
        let pod = stage.pod(App::At(collector.addr)).await;
        let resource = json!([["log_name", "otel_envoy_accesslog"]]);
        let record = |path: Option<&str>| {
            let mut target =
                json!({ "cluster": "collector", "authority": "logs.shop", "resource": resource });
            if let Some(path) = path {
                target["cluster"] = json!("http");
                target["http_path"] = json!(path);
            }
            json!({ "to": { "otel": {
                "target": target,
                "body": "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%",
                "attributes": { "code": "%RESPONSE_CODE%", "trace": "%TRACE_ID%" },
            } } })
        };
        let (http, http_pod) = stage.backend("http").await;
        let mut observe = tracing(otlp("collector"), json!({ "random_sampling": 0 }));
        observe["observe"]["access_logs"] = json!([record(None), record(Some("/v1/logs"))]);
        let spec = stage
            .spec()
            .cluster("collector", vec![hbone(&pod, "10.1.0.9:4317", &app_id())])
            .cluster("http", vec![hbone(&http_pod, "10.1.0.9:4318", &app_id())])
            .http_with(VIP, json!([to("app", json!({}))]), observe);
        let run = stage.run(&spec).await;
        for path in ["/one", "/status/404"] {
            assert!(get(&run, path, &[]).await < 500);
        }
        let records = || {
            let logs = collector.logs();
            let scopes = logs.iter().flat_map(|all| &all.scope_logs);
            scopes.flat_map(|scope| scope.log_records.clone()).collect::<Vec<_>>()
        };
        eventually("two records", || records().len() == 2).await;
        let told: Vec<String> = ["/one", "/status/404"]
            .iter()
            .map(|path| field(&stage.app.last(path), "traceparent")[3..35].to_owned())
            .collect();
        let text = |value: &cairn_proto::opentelemetry::proto::common::v1::AnyValue| match &value
            .value
        {
            Some(cairn_proto::opentelemetry::proto::common::v1::any_value::Value::StringValue(
                text,
            )) => text.clone(),
            other => panic!("{other:?}"),
        };
        for (number, body) in ["GET /one 200", "GET /status/404 404"].iter().enumerate() {
            let record = &records()[number];
            assert_eq!(text(record.body.as_ref().unwrap()), *body);
            let id: String = record.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(id, told[number], "not sampled, and of a trace all the same");
            assert_eq!(record.attributes.last().unwrap().key, "trace");
            assert_eq!(text(record.attributes.last().unwrap().value.as_ref().unwrap()), id);
        }
        let resource = collector.logs()[0].resource.clone().unwrap().attributes;
        assert_eq!(resource[0].key, "log_name");
        eventually("by HTTP, too", || http.count("/v1/logs") >= 1).await;
        assert_eq!(
            http.last("/v1/logs").headers.get("content-type"),
            Some("application/x-protobuf")
        );
        eventually("they are counted", || {
            run.waypoint.counter("cairn_logs_exported_total", &[]) == 4
        })
        .await;
        assert_eq!(collector.spans().len(), 0);
        // One that is gone costs records only.
        let dead = DeadPort::new();
        let mut observe = tracing(otlp("collector"), json!({ "random_sampling": 0 }));
        observe["observe"]["access_logs"] = json!([record(None)]);
        let spec = stage.spec().cluster("collector", vec![plain(dead.addr)]).http_with(
            VIP,
            json!([to("app", json!({}))]),
            observe,
        );
        run.waypoint.apply(&spec);
        assert_eq!(get(&run, "/", &[]).await, 200);
        eventually("sent twice", || {
            run.waypoint.counter("cairn_logs_export_failures_total", &[]) == 2
        })
        .await;
        eventually("dropped", || {
            run.waypoint.istio("cairn_access_log_dropped_total", &[("log", "otlp")]) == 1
        })
        .await;
    });
}
