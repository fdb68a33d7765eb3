//! gRPC: streams, trailers, our own answers, deadlines, retries.

use cairn_test_support::backend::echoed;
use cairn_test_support::config::{at, hbone, rbac, to};
use cairn_test_support::h2c::{collect, grpc_frame};
use cairn_test_support::http1::Http1;
use cairn_test_support::stage::{Stage, VIP, app_id};
use cairn_test_support::wait::{drive, eventually, within};
use futures::future::join_all;
use serde_json::json;

#[test]
fn a_unary_call_keeps_messages_metadata_and_trailers() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let h2c = run.h2c().await;
        let reply = h2c.unary("/test.Echo/Unary", &[("x-meta", "data")], b"hello").await.unwrap();
        assert_eq!((reply.status, reply.grpc_status(), reply.headers_only), (200, Some(0), false));
        assert_eq!(reply.messages(), ["hello"]);
        assert_eq!(reply.header("content-type"), Some("application/grpc"));
        assert_eq!(reply.trailers["x-trailer"], "end");
        let seen = stage.app.last("/test.Echo/Unary");
        assert_eq!((seen.version, seen.headers.get("x-meta")), ("HTTP/2.0", Some("data")));
        assert_eq!(seen.headers.get("te"), Some("trailers"));
        let big = vec![b'x'; 4 << 20];
        let reply = h2c.unary("/test.Echo/Unary", &[], &big[..1 << 19]).await.unwrap();
        assert_eq!(reply.messages()[0].len(), 1 << 19);
        let reply = h2c.unary("/test.Sink/Unary", &[], &big).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        assert_eq!(stage.app.last("/test.Sink").body_len, (4 << 20) + 5);
    });
}

#[test]
fn a_call_streams_both_ways() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let mut call = run.h2c().await.stream("/test.Echo/Bidi", &[]).await.unwrap();
        // Before any message, and so before the request has ended.
        within("the response's head", call.headers()).await.unwrap();
        for round in 0..100 {
            let message = format!("message {round}");
            call.send(message.as_bytes()).await.unwrap();
            let echo = within("the echo", call.recv()).await.unwrap().unwrap();
            assert_eq!(echo, message);
        }
        call.close_send().unwrap();
        assert_eq!(call.recv().await.unwrap(), None);
        let trailers = call.trailers().await.unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-trailer"], "end");
    });
}

#[test]
fn errors_of_the_backend_pass() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let h2c = run.h2c().await;
        let reply = h2c.unary("/test.Echo/Fail", &[("x-status", "5")], b"").await.unwrap();
        assert_eq!((reply.status, reply.headers_only), (200, true), "trailers-only stays so");
        assert_eq!((reply.grpc_status(), reply.grpc_message()), (Some(5), Some("told to fail")));
        let reply = h2c.unary("/test.Echo/FailAfter", &[], b"last words").await.unwrap();
        assert_eq!((reply.messages(), reply.grpc_status()), (vec!["last words".into()], Some(13)));
    });
}

#[test]
fn a_hundred_calls_share_a_tunnel() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let h2c = run.h2c().await;
        let replies = join_all((0..100).map(|round| {
            let h2c = h2c.clone();
            async move {
                let message = format!("{round}").repeat(1000);
                let reply = h2c.unary("/test.Echo/Unary", &[], message.as_bytes()).await.unwrap();
                reply.messages() == [message] && reply.grpc_status() == Some(0)
            }
        }))
        .await;
        assert!(replies.iter().all(|good| *good));
        assert_eq!(stage.pod.connections(), 1);
    });
}

#[test]
fn our_own_answers_are_trailers_only() {
    drive(async {
        let stage = Stage::new().await;
        let direct = |status: u16| {
            json!({
                "match": { "path": { "exact": format!("/direct.Status/{status}") } },
                "direct_response": { "status": status, "body": "said by the route" },
            })
        };
        let mut routes: Vec<_> = [400, 401, 403, 404, 429, 500, 502, 503, 504].map(direct).into();
        routes.push(at(json!({ "prefix": "/empty." }), "empty", json!({})));
        routes.push(at(json!({ "prefix": "/missing." }), "missing", json!({})));
        routes.push(at(json!({ "prefix": "/test." }), "app", json!({})));
        let deny = rbac("DENY", json!([{ "path": { "prefix": "/test.Admin/" } }]), json!(["any"]));
        let spec = stage.spec_h2().cluster("empty", vec![]).http_with(
            VIP,
            json!(routes),
            json!({ "filters": [deny] }),
        );
        let run = stage.run(&spec).await;
        let h2c = run.h2c().await;
        // Envoy: Grpc::Utility::httpToGrpcStatus, except that 504 is DEADLINE_EXCEEDED.
        for (path, status, message) in [
            ("/direct.Status/400", 13, "said by the route"),
            ("/direct.Status/401", 16, "said by the route"),
            ("/direct.Status/403", 7, "said by the route"),
            ("/direct.Status/404", 12, "said by the route"),
            ("/direct.Status/429", 14, "said by the route"),
            ("/direct.Status/500", 2, "said by the route"),
            ("/direct.Status/502", 14, "said by the route"),
            ("/direct.Status/503", 14, "said by the route"),
            ("/direct.Status/504", 4, "said by the route"),
            ("/test.Admin/Do", 7, "RBAC: access denied"),
            ("/empty.Service/Do", 14, "no healthy upstream"),
        ] {
            let reply = h2c.unary(path, &[], b"hello").await.unwrap();
            assert_eq!((reply.status, reply.headers_only), (200, true), "{path}: {reply:?}");
            assert_eq!(
                (reply.grpc_status(), reply.grpc_message()),
                (Some(status), Some(message)),
                "{path}"
            );
            assert_eq!(reply.header("content-type"), Some("application/grpc"), "{path}");
            assert_eq!(reply.header("server"), Some("istio-envoy"), "{path}");
        }
        for (path, status) in [("/missing.Service/Do", 14), ("/nowhere.Service/Do", 12)] {
            let reply = h2c.unary(path, &[], b"hello").await.unwrap();
            assert_eq!(
                (reply.status, reply.headers_only, reply.grpc_status()),
                (200, true, Some(status)),
                "{path}"
            );
        }
        assert_eq!(stage.app.requests(), 0);
        // Variants of the content type count, look-alikes do not.
        let proto = [("content-type", "application/grpc+proto")];
        let reply = h2c.request("POST", "/test.Admin/Do", &proto, &grpc_frame(b"")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some(7)));
        for other in ["application/grpc-web", "application/json"] {
            let reply = h2c
                .request("POST", "/test.Admin/Do", &[("content-type", other)], b"x")
                .await
                .unwrap();
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (403, "RBAC: access denied"),
                "{other}"
            );
        }
    });
}

#[test]
fn a_dead_endpoint_is_unavailable() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        stage.pod.refuse(503);
        let reply = run.h2c().await.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        assert_eq!((reply.status, reply.headers_only, reply.grpc_status()), (200, true, Some(14)));
    });
}

#[test]
fn a_deadline_ends_as_deadline_exceeded() {
    drive(async {
        let stage = Stage::new().await;
        let routes = json!([
            at(json!({ "prefix": "/test.Echo/Hold" }), "app", json!({ "max_grpc_timeout": "0s" })),
            to("app", json!({ "timeout": "0s", "max_grpc_timeout": "0s" })),
        ]);
        let run = stage.run(&stage.spec_h2().http(VIP, routes)).await;
        let h2c = run.h2c().await;
        let headers = [("grpc-timeout", "300m"), ("x-gate", "never")];
        let reply =
            within("the deadline", h2c.unary("/test.Echo/Hold", &headers, b"x")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some(4)), "{reply:?}");
        eventually("the backend's call is cancelled", || stage.app.cancelled() == 1).await;
        // In time: the backend is told the deadline.
        let reply = h2c.unary("/test.Echo/Unary", &[("grpc-timeout", "1H")], b"x").await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        assert!(reply.trailers.contains_key("x-seen-timeout"), "{reply:?}");
    });
}

#[test]
fn a_deadline_is_bounded_by_the_route() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage
            .run(
                &stage
                    .spec_h2()
                    .http(VIP, json!([to("app", json!({ "max_grpc_timeout": "300ms" }))])),
            )
            .await;
        let headers = [("grpc-timeout", "1H"), ("x-gate", "never")];
        let call = run.h2c().await;
        let reply =
            within("the deadline", call.unary("/test.Echo/Hold", &headers, b"x")).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(4), "{reply:?}");
    });
}

#[test]
fn a_deadline_is_ignored_where_the_route_does_not_ask_for_it() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let h2c = run.h2c().await;
        let headers = [("grpc-timeout", "1m"), ("x-gate", "open")];
        let call = tokio::spawn(async move { h2c.unary("/test.Echo/Hold", &headers, b"x").await });
        eventually("the call waits", || stage.app.waiting() == 1).await;
        // A later call goes all the way before the first is let go: 1 ms has passed.
        run.h2c().await.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        stage.app.release("open");
        assert_eq!(call.await.unwrap().unwrap().grpc_status(), Some(0));
    });
}

#[test]
fn a_cancelled_call_is_cancelled_upstream() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let h2c = run.h2c().await;
        let headers =
            [("content-type", "application/grpc"), ("te", "trailers"), ("x-gate", "never")];
        let (response, mut send) =
            h2c.start("POST", "/test.Echo/Hold", &headers, false).await.unwrap();
        send.send_data(grpc_frame(b"x"), true).unwrap();
        eventually("the call waits", || stage.app.waiting() == 1).await;
        send.send_reset(h2::Reason::CANCEL);
        eventually("it is cancelled", || stage.app.cancelled() == 1).await;
        assert!(collect(response).await.is_err());
        assert_eq!(h2c.unary("/test.Echo/Unary", &[], b"x").await.unwrap().grpc_status(), Some(0));
    });
}

#[test]
fn grpc_conditions_are_retried() {
    drive(async {
        let stage = Stage::new().await;
        let conditions = [
            ("cancelled", 1),
            ("deadline-exceeded", 4),
            ("internal", 13),
            ("resource-exhausted", 8),
            ("unavailable", 14),
        ];
        let routes: Vec<_> = conditions
            .iter()
            .map(|(name, _)| {
                json!({
                    "match": { "path": { "prefix": "/" }, "headers": [{ "name": "x-on", "match": { "exact": name } }] },
                    "route": { "cluster": "app", "timeout": "0s", "retry": { "on": [name], "attempts": 2, "backoff": { "base": "1ms" } } },
                })
            })
            .collect();
        let run = stage.run(&stage.spec_h2().http(VIP, json!(routes))).await;
        let h2c = run.h2c().await;
        for (on, _) in conditions {
            for (name, status) in conditions {
                let id = format!("{on} {name}");
                let status_text = status.to_string();
                let headers = [
                    ("x-on", on),
                    ("x-status", &status_text),
                    ("x-fail-first", "2"),
                    ("x-test-id", &id),
                ];
                let reply = h2c.unary("/test.Echo/FailFirst", &headers, b"again").await.unwrap();
                let wanted = if on == name { 0 } else { status };
                assert_eq!(reply.grpc_status(), Some(wanted), "retry on {on}, status {name}");
                if on == name {
                    assert_eq!(reply.messages(), ["again"], "the message is sent again");
                }
            }
        }
    });
}

#[test]
fn http1_clients_get_trailers_where_they_ask() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, json!([to("app", json!({}))]))).await;
        let mut http = run.http().await;
        let headers = [("Content-Type", "application/grpc"), ("TE", "trailers")];
        let reply = http
            .request("POST", "/test.Echo/Unary", &headers, &grpc_frame(b"hello"))
            .await
            .unwrap();
        assert_eq!(
            (reply.status, reply.trailers.get("grpc-status")),
            (200, Some("0")),
            "{reply:?}"
        );
        assert_eq!(reply.body, grpc_frame(b"hello"));
        let reply =
            http.request("POST", "/test.Echo/Fail", &headers, &grpc_frame(b"")).await.unwrap();
        assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("5")), "{reply:?}");
    });
}

#[test]
fn the_cluster_may_follow_the_client() {
    drive(async {
        let stage = Stage::new().await;
        let more = json!({ "protocol": "downstream" });
        let spec = cairn_test_support::config::MeshSpec::new()
            .cluster_with("app", more, vec![hbone(&stage.pod, "10.1.0.1:8080", &app_id())])
            .http(VIP, json!([to("app", json!({}))]));
        let run = stage.run(&spec).await;
        let reply = run.h2c().await.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        let mut http = Http1::new(run.tunnel(VIP).await);
        let echo = http.get("/echo").await.unwrap().json();
        assert_eq!(echo["version"], "HTTP/1.1");
        assert_eq!(echoed(&echo, "te"), [""; 0]);
    });
}
