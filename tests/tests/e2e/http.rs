//! HTTP/1.1 and h2c through the waypoint: framing, upgrades, bridging, ends.

use cairn_test_support::backend::{echoed, hex, pattern};
use cairn_test_support::config::all_to;
use cairn_test_support::h2c::collect;
use cairn_test_support::http1::message;
use cairn_test_support::stage::{Stage, VIP, VIP2};
use cairn_test_support::wait::{drive, eventually, within};
use cairn_test_support::websocket::{self, opcode};
use futures::future::join_all;
use serde_json::json;

#[test]
fn a_connection_is_kept_alive() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        for round in 0..5 {
            let response = http.get(&format!("/echo?round={round}")).await.unwrap();
            assert_eq!(response.json()["path"], format!("/echo?round={round}"));
            assert!(!response.headers.has_token("connection", "close"));
        }
        assert_eq!((stage.app.connections(), stage.pod.connects().len()), (1, 1));
        let last = http.request("GET", "/", &[("Connection", "close")], b"").await.unwrap();
        assert!(last.headers.has_token("connection", "close"));
        assert!(within("the end", http.closed()).await);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let mut bytes = Vec::new();
        for round in 0..10 {
            let body = format!("body {round}");
            bytes.extend(message("POST", &format!("/echo?round={round}"), &[], body.as_bytes()));
        }
        http.send(bytes).await.unwrap();
        for round in 0..10 {
            let json = http.response().await.unwrap().json();
            assert_eq!(json["path"], format!("/echo?round={round}"));
            assert_eq!(json["body"], format!("body {round}"));
        }
    });
}

#[test]
fn bodies_pass_in_every_framing() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let chunked = [("Transfer-Encoding", "chunked")];
        let response = http
            .request("POST", "/echo", &chunked, b"5\r\nhello\r\n7;ext=1\r\n chunks\r\n0\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(response.json()["body"], "hello chunks");
        let response = http.get("/chunked").await.unwrap();
        assert_eq!(response.text(), "one two three");
        let response = http.get("/close-delimited").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "until the end"));
        // Its end is clear to the client even so: chunked, and the tunnel goes on.
        assert!(response.headers.has_token("transfer-encoding", "chunked"), "{response:?}");
        let response = http.get("/close").await.unwrap();
        assert_eq!(response.text(), "goodbye");
        assert!(!response.headers.has("connection"), "the upstream's `close` is not the client's");
        for (path, status) in [("/status/204", 204), ("/status/304", 304), ("/bytes?n=0", 200)] {
            let response = http.get(path).await.unwrap();
            assert_eq!((response.status, response.body.len()), (status, 0), "{path}");
            assert!(!response.headers.has("transfer-encoding"), "{path}");
        }
        let response = http.request("HEAD", "/bytes?n=77", &[], b"").await.unwrap();
        assert_eq!((response.status, response.header("content-length")), (200, Some("77")));
        assert_eq!(http.get("/echo").await.unwrap().status, 200);
    });
}

#[test]
fn trailers_pass_where_they_are_asked_for() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).cluster_with(
            "h2",
            json!({ "protocol": "http2" }),
            vec![stage.endpoint()],
        );
        let run = stage.run(&spec.http(VIP2, all_to("h2"))).await;
        for vip in [VIP, VIP2] {
            let mut http = run.http_to(vip).await;
            let response =
                http.request("GET", "/chunked", &[("TE", "trailers")], b"").await.unwrap();
            assert_eq!(response.text(), "one two three");
            assert_eq!(response.trailers.get("x-trailer"), Some("end"), "{vip}");
            let h2c = run.h2c_to(vip).await;
            let response =
                h2c.request("GET", "/chunked", &[("te", "trailers")], b"").await.unwrap();
            assert_eq!(response.text(), "one two three");
            assert_eq!(response.trailers["x-trailer"], "end", "{vip}");
        }
        let mut http = run.http_to(VIP2).await;
        let headers = [("Transfer-Encoding", "chunked"), ("Trailer", "x-sum")];
        let body = b"4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n";
        let echo = http.request("POST", "/echo", &headers, body).await.unwrap().json();
        assert_eq!((&echo["body"], &echo["trailers"]), (&json!("body"), &json!([["x-sum", "42"]])));
    });
}

#[test]
fn large_bodies_arrive_whole() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).cluster_with(
            "h2",
            json!({ "protocol": "http2" }),
            vec![stage.endpoint()],
        );
        let run = stage.run(&spec.http(VIP2, all_to("h2"))).await;
        let count = 5_000_000;
        for vip in [VIP, VIP2] {
            let mut http = run.http_to(vip).await;
            let path = format!("/bytes?n={count}");
            assert!(http.get(&path).await.unwrap().text() == pattern(count), "h1 {vip}");
            let body = pattern(count).into_bytes();
            let response = http.request("POST", "/sink", &[], &body).await.unwrap();
            assert_eq!(response.text(), count.to_string(), "h1 {vip}");
            let h2c = run.h2c_to(vip).await;
            assert!(h2c.get(&path).await.unwrap().text() == pattern(count), "h2 {vip}");
            let response = h2c.request("POST", "/sink", &[], &body).await.unwrap();
            assert_eq!(response.text(), count.to_string(), "h2 {vip}");
        }
    });
}

#[test]
fn a_response_is_streamed() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).cluster_with(
            "h2",
            json!({ "protocol": "http2" }),
            vec![stage.endpoint()],
        );
        let run = stage.run(&spec.http(VIP2, all_to("h2"))).await;
        for vip in [VIP, VIP2] {
            let gate = format!("gate-{vip}");
            let mut http = run.http_to(vip).await;
            http.send(message("GET", &format!("/gate?gate={gate}"), &[], b"")).await.unwrap();
            let head = within("the head", http.head()).await.unwrap();
            assert_eq!(head.status, 200);
            let first = within("the first part", http.wire.chunk()).await.unwrap().unwrap();
            assert_eq!(first, "first ");
            stage.app.release(&gate);
            assert_eq!(http.wire.chunk().await.unwrap().unwrap(), "second");
            assert!(http.wire.chunk().await.unwrap().is_err(), "the last chunk");
        }
    });
}

#[test]
fn expectations_are_the_backends() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let head = "POST /echo HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        http.send(head).await.unwrap();
        let line = within("the interim response", http.wire.line()).await.unwrap().unwrap();
        assert!(line.starts_with("HTTP/1.1 100"), "{line}");
        http.wire.fields().await.unwrap();
        http.send("body").await.unwrap();
        let response = http.response().await.unwrap();
        assert_eq!((response.status, &response.json()["body"]), (200, &json!("body")));
        http.send(head.replace("/echo", "/expect-refuse")).await.unwrap();
        let response = within("the refusal", http.response()).await.unwrap();
        assert_eq!((response.status, response.interim.len()), (417, 0));
        assert_eq!(response.text(), "refused");
    });
}

#[test]
fn expectations_end_at_the_waypoint_before_h2() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let head = "POST /echo HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        http.send(head).await.unwrap();
        let line = within("the interim response", http.wire.line()).await.unwrap().unwrap();
        assert!(line.starts_with("HTTP/1.1 100"), "{line}");
        http.wire.fields().await.unwrap();
        http.send("body").await.unwrap();
        assert_eq!(http.response().await.unwrap().json()["body"], "body");
    });
}

#[test]
fn websockets_pass() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let (mut socket, response) =
            websocket::upgrade(run.http().await, "/ws").await.unwrap().unwrap();
        assert!(response.headers.has_token("connection", "upgrade"), "{response:?}");
        assert!(response.headers.has_token("upgrade", "websocket"), "{response:?}");
        assert_eq!(response.header("server"), Some("istio-envoy"));
        for text in ["hello", &"large ".repeat(100_000)] {
            within("the echo", socket.echo(text)).await.unwrap();
        }
        socket.send(opcode::CLOSE, b"\x03\xe8").await.unwrap();
        assert_eq!(socket.recv().await.unwrap().0, opcode::CLOSE);
        assert_eq!(within("the end", socket.wire.rest()).await.unwrap().len(), 0);
        // Refused by the backend: an ordinary response, and the connection goes on.
        let refused =
            websocket::upgrade(run.http().await, "/status/403").await.unwrap().unwrap_err();
        assert_eq!((refused.status, refused.text().as_str()), (403, "status 403"));
        let seen = stage.app.last("/ws");
        assert!(seen.headers.has_token("upgrade", "websocket"));
        assert_eq!(seen.headers.get("sec-websocket-key"), Some(websocket::KEY));
    });
}

#[test]
fn other_upgrades_are_refused() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).http_with(
            VIP2,
            all_to("app"),
            json!({ "upgrades": [] }),
        );
        let run = stage.run(&spec).await;
        for token in ["foo", "spdy/3.1", "websocket2"] {
            let mut http = run.http().await;
            let headers = [("Connection", "Upgrade"), ("Upgrade", token)];
            let response = http.request("GET", "/ws", &headers, b"").await.unwrap();
            assert_eq!(response.status, 403, "{token}: {response:?}");
        }
        let http = run.http_to(VIP2).await;
        assert_eq!(websocket::upgrade(http, "/ws").await.unwrap().unwrap_err().status, 403);
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn http_1_0_is_426_unless_it_is_accepted() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).http_with(
            VIP2,
            all_to("app"),
            json!({ "accept_http_10": true }),
        );
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        http.send("GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await.unwrap();
        assert_eq!(within("an answer", http.response()).await.unwrap().status, 426);
        assert!(http.closed().await);
        assert_eq!(stage.app.requests(), 0);
        let mut http = run.http_to(VIP2).await;
        http.send("GET /chunked HTTP/1.0\r\nHost: app.test\r\n\r\n").await.unwrap();
        let response = http.response().await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "one two three"));
        assert!(!response.headers.has("transfer-encoding"), "HTTP/1.0 knows no chunks");
        assert!(within("the end", http.closed()).await);
    });
}

#[test]
fn h2c_carries_many_requests_at_once() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, all_to("app"))).await;
        let h2c = run.h2c().await;
        let held =
            join_all(
                (0..50).map(|round| {
                    let h2c = h2c.clone();
                    async move {
                        h2c.get(&format!("/hold?gate=all&round={round}")).await.unwrap().status
                    }
                }),
            );
        let held = tokio::spawn(held);
        eventually("all wait", || stage.app.waiting() == 50).await;
        assert_eq!(h2c.get("/echo").await.unwrap().status, 200, "one that does not wait");
        stage.app.release("all");
        assert_eq!(held.await.unwrap(), [200; 50]);
    });
}

#[test]
fn versions_are_bridged_both_ways() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).cluster_with(
            "h2",
            json!({ "protocol": "http2" }),
            vec![stage.endpoint()],
        );
        let run = stage.run(&spec.http(VIP2, all_to("h2"))).await;
        for (vip, version) in [(VIP, "HTTP/1.1"), (VIP2, "HTTP/2.0")] {
            let headers = [("X-Mixed-Case", "1"), ("Host", "shop.example:8080")];
            let echo =
                run.http_to(vip).await.request("PUT", "/a?b=c", &headers, b"body").await.unwrap();
            let lower = [("x-mixed-case", "1"), ("host", "shop.example:8080")];
            let echo2 =
                run.h2c_to(vip).await.request("PUT", "/a?b=c", &lower, b"body").await.unwrap();
            for json in [echo.json(), echo2.json()] {
                assert_eq!(json["version"], version);
                assert_eq!(json["method"], "PUT");
                assert_eq!(json["path"], "/a?b=c");
                assert_eq!(json["authority"], "shop.example:8080");
                assert_eq!(json["body"], "body");
                assert_eq!(echoed(&json, "x-mixed-case"), ["1"]);
                assert_eq!(echoed(&json, "x-forwarded-proto"), ["http"]);
                if version == "HTTP/2.0" {
                    assert!(echoed(&json, "host").is_empty(), "{json}");
                }
            }
        }
        // A body of unknown length.
        let h2c = run.h2c_to(VIP).await;
        let (response, mut send) = h2c.start("POST", "/echo", &[], false).await.unwrap();
        send.send_data("one ".into(), false).unwrap();
        send.send_data("two".into(), true).unwrap();
        let json = collect(response).await.unwrap().json();
        assert_eq!((&json["body"], &json["version"]), (&json!("one two"), &json!("HTTP/1.1")));
        // Cookies are split in HTTP/2 and joined in HTTP/1.
        let cookies = [("cookie", "a=1"), ("cookie", "b=2")];
        let json = h2c.request("GET", "/echo", &cookies, b"").await.unwrap().json();
        assert_eq!(echoed(&json, "cookie"), ["a=1; b=2"]);
    });
}

#[test]
fn an_early_answer_is_delivered() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let head = "POST /early HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000\r\n\r\n";
        http.send(head).await.unwrap();
        http.send(vec![b'x'; 1000]).await.unwrap();
        let response = within("the early answer", http.response()).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "early"));
        let h2c = run.h2c().await;
        let (response, mut send) = h2c.start("POST", "/early", &[], false).await.unwrap();
        send.send_data(vec![b'x'; 1000].into(), false).unwrap();
        let response = within("the early answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
    });
}

#[test]
fn a_client_that_leaves_is_noticed_upstream() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).cluster_with(
            "h2",
            json!({ "protocol": "http2" }),
            vec![stage.endpoint()],
        );
        let run = stage.run(&spec.http(VIP2, all_to("h2"))).await;
        for (round, vip) in [VIP, VIP2].iter().enumerate() {
            let before = 2 * round as u64;
            let mut http = run.http_to(vip).await;
            http.send(message("GET", "/hold?gate=never", &[], b"")).await.unwrap();
            eventually("it waits", || stage.app.waiting() == 1).await;
            drop(http);
            eventually("it is cancelled", || stage.app.cancelled() == before + 1).await;
            let h2c = run.h2c_to(vip).await;
            let (response, mut send) =
                h2c.start("GET", "/hold?gate=never", &[], true).await.unwrap();
            eventually("it waits", || stage.app.waiting() == 1).await;
            send.send_reset(h2::Reason::CANCEL);
            eventually("it is cancelled", || stage.app.cancelled() == before + 2).await;
            drop(response);
        }
    });
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        http.send(message("GET", "/hold?gate=open", &[], b"")).await.unwrap();
        http.shutdown().await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        stage.app.release("open");
        assert_eq!(within("the answer", http.response()).await.unwrap().status, 200);
    });
}

#[test]
fn a_response_that_breaks_off_is_not_passed_as_whole() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        http.send(message("GET", "/cut?gate=h1", &[], b"")).await.unwrap();
        assert_eq!(within("the head", http.head()).await.unwrap().status, 200);
        assert_eq!(within("the beginning", http.wire.exact(10)).await.unwrap(), "0123456789");
        stage.app.release("h1");
        let rest = within("an end", http.wire.exact(90)).await;
        assert!(rest.is_err(), "{rest:?}");
        let h2c = run.h2c().await;
        let (response, _) = h2c.start("GET", "/cut?gate=h2", &[], true).await.unwrap();
        let mut body = within("the head", response).await.unwrap().into_body();
        assert_eq!(within("the beginning", body.data()).await.unwrap().unwrap(), "0123456789");
        stage.app.release("h2");
        let rest = within("an end", body.data()).await;
        assert!(matches!(rest, Some(Err(_))), "{rest:?}");
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn no_response_is_503_and_a_bad_one_502() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let response = http.get("/reset").await.unwrap();
        assert_eq!(response.status, 503, "{response:?}");
        assert!(
            response
                .text()
                .starts_with("upstream connect error or disconnect/reset before headers"),
            "{response:?}"
        );
        for bad in [
            "garbage\r\n\r\n",
            "HTTP/1.1 abc OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
            "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        ] {
            let response = within(bad, http.get(&format!("/raw?hex={}", hex(bad)))).await.unwrap();
            assert_eq!(response.status, 502, "{bad:?}: {response:?}");
            assert_eq!(http.get("/echo").await.unwrap().status, 200, "after {bad:?}");
        }
        // More than one response to one request: the second is nobody's.
        let two = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
        let response = http.get(&format!("/raw?hex={}", hex(two))).await.unwrap();
        assert_eq!(response.text(), "1");
        for _ in 0..3 {
            assert_ne!(http.get("/echo").await.unwrap().text(), "poison");
        }
    });
}

#[test]
fn odd_requests_are_answered() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        // Absolute form that agrees with Host.
        http.send("GET http://app.test/abs?x HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        let response = http.response().await.unwrap();
        assert_eq!((response.status, &response.json()["path"]), (200, &json!("/abs?x")));
        // An empty line in front of a request is skipped (RFC 9112 §2.2).
        http.send("\r\nGET /after HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        assert_eq!(http.response().await.unwrap().status, 200);
        let response = http.request("OPTIONS", "*", &[], b"").await.unwrap();
        assert_eq!(response.status, 404, "{response:?}");
        let response = http.request("DELETE", "/x", &[], b"").await.unwrap();
        assert_eq!(response.json()["method"], "DELETE");
        let response = http.request("PURGE", "/x", &[], b"").await.unwrap();
        assert!(matches!(response.status, 200 | 400), "{response:?}");
    });
}

#[test]
fn an_upgrade_may_be_silent() {
    drive(async {
        let stage = Stage::new().await;
        let limits = json!({ "http_idle_timeout": "1s", "request_head_timeout": "200ms" });
        let run = stage.run(&stage.spec().http(VIP, all_to("app")).field("limits", limits)).await;
        let upgraded = websocket::upgrade(run.http().await, "/ws").await.unwrap();
        let (mut socket, _) = upgraded.unwrap();
        // Everything that bounds silence between requests passes meanwhile.
        let mut idle = run.http().await;
        assert_eq!(idle.get("/").await.unwrap().status, 200);
        assert!(within("the idle tunnel ends", idle.closed()).await);
        within("the echo", socket.echo("still here")).await.unwrap();
    });
}
