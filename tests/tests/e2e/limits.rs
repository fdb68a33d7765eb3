//! Every bound of docs/limits.md, from just inside and from outside.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::backend::{echoed, hex};
use cairn_test_support::config::{MeshSpec, all_to, hbone, hbone_at};
use cairn_test_support::endpoint::DeadPort;
use cairn_test_support::hbone_client::{HboneClient, connect_tls};
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::metrics::sum;
use cairn_test_support::raw_h2::{Frame, RawH2, block, encode, flag, headers, kind};
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, VIP2, app_id, waypoint_id};
use cairn_test_support::stream::{H2Stream, reason};
use cairn_test_support::wait::{drive, eventually, eventually_async, within};
use cairn_test_support::waypoint::refusal;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn limited(stage: &Stage, limits: Value) -> Run {
    stage.run(&stage.spec().http(VIP, all_to("app")).field("limits", limits)).await
}

/// A request of its own tunnel with raw header lines.
async fn with_lines(run: &Run, lines: &str) -> Option<Response> {
    let mut http = run.http().await;
    let _ = http.send(format!("GET /echo HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n")).await;
    within("an answer", http.response()).await.ok()
}

fn fields(count: usize) -> String {
    (0..count).map(|number| format!("X-{number}: 1\r\n")).collect()
}

#[test]
fn request_heads_are_bounded_in_bytes() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let big = |kib: usize| format!("X-Big: {}\r\n", "x".repeat(kib * 1024));
        assert_eq!(with_lines(&run, &big(58)).await.unwrap().status, 200);
        assert_eq!(with_lines(&run, &big(61)).await.unwrap().status, 431);
        assert_eq!(with_lines(&run, &big(600)).await.unwrap().status, 431);
        let mut http = run.http().await;
        let path = format!("/{}", "x".repeat(61 * 1024));
        let response = within("a long path", http.get(&path)).await.unwrap();
        assert!(matches!(response.status, 414 | 431), "{}", response.status);
        assert_eq!(stage.app.requests(), 1);
        let small = limited(&stage, json!({ "max_request_headers_kib": 4 })).await;
        assert_eq!(with_lines(&small, &big(3)).await.unwrap().status, 200);
        assert_eq!(with_lines(&small, &big(5)).await.unwrap().status, 431);
    });
}

#[test]
fn request_heads_are_bounded_in_fields() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        // With Host.
        assert_eq!(with_lines(&run, &fields(99)).await.unwrap().status, 200);
        assert_eq!(with_lines(&run, &fields(101)).await.unwrap().status, 431);
        let small = limited(&stage, json!({ "max_request_headers": 10 })).await;
        assert_eq!(with_lines(&small, &fields(9)).await.unwrap().status, 200);
        assert_eq!(with_lines(&small, &fields(11)).await.unwrap().status, 431);
    });
}

#[test]
fn h2c_heads_are_bounded_too() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let value = |kib: usize| "x".repeat(kib * 1024);
        let h2c = run.h2c().await;
        let good = h2c.request("GET", "/echo", &[("x-big", &value(50))], b"").await.unwrap();
        assert_eq!(good.status, 200);
        let names: Vec<String> = (0..120).map(|number| format!("x-{number}")).collect();
        for (what, many, big) in [("bytes", 0, value(70)), ("fields", 120, String::new())] {
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            let mut fields = vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/bounded"),
                (":authority", "app.test"),
            ];
            fields.push(("x-big", &big));
            fields.extend(names[..many].iter().map(|name| (name.as_str(), "1")));
            let block = block(&fields);
            let mut parts = block.chunks(16_000).peekable();
            let mut kind_of = kind::HEADERS;
            while let Some(part) = parts.next() {
                let last = if parts.peek().is_none() { flag::END_HEADERS } else { 0 };
                let end = if kind_of == kind::HEADERS { flag::END_STREAM } else { 0 };
                raw.frame(kind_of, last | end, 1, part).await.unwrap();
                kind_of = kind::CONTINUATION;
            }
            let answer = within(what, raw.answer(1)).await;
            let status = answer.as_ref().and_then(Frame::status);
            assert_eq!(status, Some(431), "{what}: {answer:?}");
        }
        assert_eq!(stage.app.count("/bounded"), 0);
    });
}

#[test]
fn a_request_head_must_come_in_time() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "request_head_timeout": "300ms" })).await;
        let mut http = run.http().await;
        http.send("GET / HTTP/1.1\r\nHost: app").await.unwrap();
        let response = within("the bound", http.response()).await.unwrap();
        assert_eq!(response.status, 408);
        assert!(within("the end", http.closed()).await);
        // It is the head that is bounded, neither the pause before it nor the body.
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        http.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        let mut other = run.http().await;
        other.send("GET / HT").await.unwrap();
        assert_eq!(within("the bound", other.response()).await.unwrap().status, 408);
        http.send("body").await.unwrap();
        assert_eq!(http.response().await.unwrap().status, 200);
    });
}

#[test]
fn response_heads_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run =
            limited(&stage, json!({ "max_response_headers_kib": 2, "max_response_headers": 20 }))
                .await;
        let mut http = run.http().await;
        for (what, lines, status) in [
            ("small", fields(10), 200),
            ("many fields", fields(30), 502),
            ("many bytes", format!("x: {}\r\n", "y".repeat(3000)), 502),
        ] {
            let raw = format!("HTTP/1.1 200 OK\r\n{lines}content-length: 0\r\n\r\n");
            let path = format!("/raw?hex={}", hex(&raw));
            let response = within(what, http.get(&path)).await.unwrap();
            assert_eq!(response.status, status, "{what}: {response:?}");
        }
        // One that never ends.
        let raw = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(3000));
        let response =
            within("endless", http.get(&format!("/raw?hex={}", hex(&raw)))).await.unwrap();
        assert_eq!(response.status, 502);
    });
}

#[test]
fn streams_beyond_two_hundred_are_refused() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        let settings = raw
            .find(|frame| frame.kind == kind::SETTINGS && frame.flags & flag::ACK == 0)
            .await
            .unwrap();
        let advertised = settings.payload.chunks(6).find(|entry| entry[..2] == [0, 3]).unwrap();
        assert_eq!(advertised[2..], 200u32.to_be_bytes());
        let mut burst = Vec::new();
        for number in 0..210u32 {
            burst.extend_from_slice(&headers(
                2 * number + 1,
                &[(":method", "CONNECT"), (":authority", VIP)],
                false,
            ));
        }
        raw.send(&burst).await.unwrap();
        let (mut opened, mut refused) = (Vec::new(), 0);
        while opened.len() + refused < 210 {
            let frame = within(
                "an answer to each",
                raw.find(|frame| {
                    matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY)
                }),
            )
            .await
            .expect("the connection lives");
            match frame.kind {
                kind::HEADERS => opened.push(frame.stream),
                kind::RST_STREAM => {
                    assert_eq!(frame.error_code(), Some(7), "REFUSED_STREAM");
                    refused += 1;
                }
                _ => panic!("{frame:?}"),
            }
        }
        assert_eq!((opened.len(), refused), (200, 10));
        // Room again: the connection takes more.
        raw.frame(kind::RST_STREAM, 0, opened[0], &8u32.to_be_bytes()).await.unwrap();
        raw.open(421, VIP).await.unwrap();
        let answer = within("the next stream", raw.answer(421)).await.unwrap();
        assert_eq!(answer.kind, kind::HEADERS, "{answer:?}");
    });
}

#[test]
fn windows_are_as_documented() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Silent);
        let pod = stage.pod(&app).await;
        let spec = MeshSpec::new()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        let settings = raw
            .find(|frame| frame.kind == kind::SETTINGS && frame.flags & flag::ACK == 0)
            .await
            .unwrap();
        let value = |id: u8| {
            let entry = settings.payload.chunks(6).find(|entry| entry[..2] == [0, id]);
            entry.map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
        };
        assert_eq!(value(4), Some(1 << 20), "INITIAL_WINDOW_SIZE");
        assert_eq!(value(5), Some(64 << 10), "MAX_FRAME_SIZE");
        assert_eq!(value(6), Some(64 << 10), "MAX_HEADER_LIST_SIZE");
        let update =
            raw.find(|frame| frame.kind == kind::WINDOW_UPDATE && frame.stream == 0).await.unwrap();
        let increment = u32::from_be_bytes(update.payload[..].try_into().unwrap());
        assert_eq!(increment + 65_535, 4 << 20, "connection window");
        // More than the window: FLOW_CONTROL_ERROR for the stream or the connection.
        raw.open(1, TCP_VIP).await.unwrap();
        raw.answer(1).await.unwrap();
        let mut flood = Vec::new();
        for _ in 0..400 {
            flood.extend_from_slice(&encode(kind::DATA, 0, 1, &[0; 16_384]));
        }
        let _ = raw.send(&flood).await;
        let end = within("the end", raw.find(|frame| frame.error_code().is_some())).await;
        assert!(end.is_none_or(|frame| frame.error_code() == Some(3)), "FLOW_CONTROL_ERROR");
        assert_eq!(run.client.open("10.96.0.77:1").await.unwrap_err().status(), 404, "others live");
    });
}

#[test]
fn headers_of_connect_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        let big = "x".repeat(70 << 10);
        let block = block(&[(":method", "CONNECT"), (":authority", VIP), ("baggage", &big)]);
        let parts: Vec<&[u8]> = block.chunks(16_000).collect();
        raw.frame(kind::HEADERS, 0, 1, parts[0]).await.unwrap();
        for (at, part) in parts.iter().enumerate().skip(1) {
            let last = if at + 1 == parts.len() { flag::END_HEADERS } else { 0 };
            raw.frame(kind::CONTINUATION, last, 1, part).await.unwrap();
        }
        let answer = within("an answer", raw.answer(1)).await.unwrap();
        assert_eq!(answer.status(), Some(431), "{answer:?}");
        // Values of the headers that are passed on.
        let fits = "x".repeat(8 << 10);
        let beyond = "y".repeat((8 << 10) + 1);
        for (value, kept) in [(&fits, true), (&beyond, false)] {
            let (tunnel, _) = run.client.open_with(VIP, &[("baggage", value)]).await.unwrap();
            stage.app.close_idle();
            eventually("a CONNECT is needed", || stage.app.open_connections() == 0).await;
            assert_eq!(Http1::new(tunnel).get("/").await.unwrap().status, 200);
            let connect = stage.pod.connects().pop().unwrap();
            assert_eq!(connect.headers.contains_key("baggage"), kept);
        }
    });
}

#[test]
fn a_handshake_must_come_in_time() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "handshake_timeout": "300ms" })).await;
        let timeouts =
            || run.waypoint.counter("cairn_handshake_failures_total", &[("reason", "timeout")]);
        // Nothing at all; half a ClientHello; TLS without the preface; half a preface.
        let mut silent = TcpStream::connect(run.waypoint.addr).await.unwrap();
        let mut rest = Vec::new();
        let _ = within("the end of the silent one", silent.read_to_end(&mut rest)).await;
        eventually("it is counted", || timeouts() == 1).await;
        let mut half = TcpStream::connect(run.waypoint.addr).await.unwrap();
        half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01").await.unwrap();
        let _ = within("the end of the half one", half.read_to_end(&mut rest)).await;
        eventually("it is counted", || timeouts() == 2).await;
        for (round, preface) in [&b""[..], b"PRI * HTTP/2.0\r\n"].iter().enumerate() {
            let config = stage.client().hbone_client(&waypoint_id());
            let mut tls = connect_tls(run.waypoint.addr, config).await.unwrap();
            tls.write_all(preface).await.unwrap();
            tls.flush().await.unwrap();
            let mut rest = Vec::new();
            let _ = within("the end without a preface", tls.read_to_end(&mut rest)).await;
            eventually("it is counted", || timeouts() == 3 + round as u64).await;
        }
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200, "who is in, stays");
    });
}

#[test]
fn connections_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "max_connections": 3 })).await;
        let mut kept: Vec<HboneClient> = Vec::new();
        for _ in 0..2 {
            kept.push(run.waypoint.connect(&stage.client()).await);
        }
        assert!(run.waypoint.try_connect(&stage.client()).await.is_err());
        eventually("it is counted", || {
            run.waypoint.counter("cairn_connections_shed_total", &[]) == 1
        })
        .await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        kept.pop().unwrap().abort();
        eventually_async("there is room again", || async {
            run.waypoint.try_connect(&stage.client()).await.is_ok()
        })
        .await;
    });
}

#[test]
fn requests_in_one_h2c_tunnel_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "max_inner_streams": 5 })).await;
        let mut raw = RawH2::new(run.tunnel(VIP).await);
        raw.preface(&[]).await.unwrap();
        for number in 0..8u32 {
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/hold?gate=all"),
                (":authority", "app.test"),
            ];
            raw.headers(2 * number + 1, &fields, true).await.unwrap();
        }
        for _ in 0..3 {
            let frame = within("a refusal", raw.find(|frame| frame.kind == kind::RST_STREAM))
                .await
                .unwrap();
            assert_eq!(frame.error_code(), Some(7), "REFUSED_STREAM");
        }
        eventually("five wait", || stage.app.waiting() == 5).await;
        stage.app.release("all");
        for _ in 0..5 {
            within("an answer", raw.find(|frame| frame.kind == kind::HEADERS)).await.unwrap();
        }
        assert_eq!(stage.app.requests(), 5);
    });
}

#[test]
fn replays_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let retry = json!({ "on": ["5xx"], "attempts": 1, "backoff": { "base": "1ms" } });
        let routes = json!([{ "match": { "path": { "prefix": "/" } }, "route": { "cluster": "app", "timeout": "0s", "retry": retry } }]);
        let run = stage
            .run(&stage.spec().http(VIP, routes).field("limits", json!({ "max_replay": 1000 })))
            .await;
        let mut http = run.http().await;
        for (count, status) in [(1000, 200), (1001, 503)] {
            let headers = [("X-Test-Id", if count == 1000 { "inside" } else { "outside" })];
            let response = http
                .request("POST", "/fail-first?n=1", &headers, &vec![b'x'; count])
                .await
                .unwrap();
            assert_eq!(response.status, status, "{count} bytes");
        }
    });
}

#[test]
fn mirrors_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let (shadow, shadow_pod) = stage.backend("shadow").await;
        let routes = json!([{ "match": { "path": { "prefix": "/" } }, "route": {
            "cluster": "app", "timeout": "0s", "mirrors": [{ "cluster": "shadow" }],
        } }]);
        let spec = stage
            .spec()
            .cluster("shadow", vec![hbone(&shadow_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, routes)
            .field("limits", json!({ "max_mirrors": 2 }));
        let run = stage.run(&spec).await;
        stage.app.release("shadow");
        for _ in 0..5 {
            // Held by the mirror alone.
            assert_eq!(run.http().await.get("/hold?gate=shadow").await.unwrap().status, 200);
        }
        eventually("two copies wait", || shadow.waiting() == 2).await;
        assert_eq!(run.waypoint.counter("cairn_mirrors_shed_total", &[]), 3);
        shadow.release("shadow");
        eventually("the copies are done", || shadow.waiting() == 0).await;
        eventually_async("there is room again", || async {
            run.http().await.get("/later").await.unwrap();
            shadow.count("/later") > 0
        })
        .await;
    });
}

#[test]
fn idle_connections_per_endpoint_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "max_idle_per_endpoint": 3 })).await;
        let held = join_all(
            (0..10).map(|_| async { run.http().await.get("/hold?gate=all").await.unwrap().status }),
        );
        let release = async {
            eventually("all wait", || stage.app.waiting() == 10).await;
            stage.app.release("all");
        };
        assert_eq!(futures::future::join(held, release).await.0, [200; 10]);
        eventually("three are kept", || stage.app.open_connections() == 3).await;
    });
}

#[test]
fn requests_on_one_upstream_connection_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec_h2()
            .http(VIP, all_to("app"))
            .field("limits", json!({ "max_upstream_streams": 4 }));
        let run = stage.run(&spec).await;
        let held = join_all(
            (0..10).map(|_| async { run.http().await.get("/hold?gate=all").await.unwrap().status }),
        );
        let release = async {
            eventually("all wait", || stage.app.waiting() == 10).await;
            assert!(stage.app.connections() >= 3, "{}", stage.app.connections());
            stage.app.release("all");
        };
        assert_eq!(futures::future::join(held, release).await.0, [200; 10]);
    });
}

#[test]
fn tunnels_on_one_outgoing_connection_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "pool_max_streams": 4 })).await;
        let held = join_all(
            (0..10).map(|_| async { run.http().await.get("/hold?gate=all").await.unwrap().status }),
        );
        let release = async {
            eventually("all wait", || stage.app.waiting() == 10).await;
            assert_eq!(stage.pod.connections(), 3);
            stage.app.release("all");
        };
        assert_eq!(futures::future::join(held, release).await.0, [200; 10]);
    });
}

#[test]
fn idle_tunnels_end() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let spec = stage
            .spec()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .http(VIP, all_to("app"))
            .tcp(TCP_VIP, "tcp")
            .field("limits", json!({ "http_idle_timeout": "1s", "tcp_idle_timeout": "1s" }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        assert!(within("an idle HTTP tunnel ends", http.closed()).await);
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
        eventually("an idle h2c tunnel ends", || h2c.is_closed()).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"x").await.unwrap();
        let mut rest = Vec::new();
        let _ = within("an idle TCP tunnel ends", tunnel.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"x");
    });
}

#[test]
fn dead_clients_are_noticed() {
    drive(async {
        let stage = Stage::new().await;
        let run =
            limited(&stage, json!({ "keepalive_interval": "1s", "keepalive_timeout": "1s" })).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        let mut pings = 0;
        // Read, but answer nothing.
        while let Ok(Some(frame)) = within("the end", raw.next()).await {
            pings += u32::from(frame.kind == kind::PING && frame.flags & flag::ACK == 0);
        }
        assert!(pings >= 1);
        eventually("it is counted", || {
            run.waypoint.counter("cairn_keepalive_timeouts_total", &[]) >= 1
        })
        .await;
        // Whoever answers stays.
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn one_mesh_has_its_own_limits() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "max_request_headers": 5 })).await;
        let other = stage.run(&stage.spec().http(VIP2, all_to("app"))).await;
        assert_eq!(with_lines(&run, &fields(20)).await.unwrap().status, 431);
        let mut http: Http1<H2Stream> = other.http_to(VIP2).await;
        http.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{}\r\n", fields(20))).await.unwrap();
        assert_eq!(http.response().await.unwrap().status, 200);
    });
}

#[test]
fn a_reset_carries_its_reason() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().cluster("none", vec![]).tcp(TCP_VIP, "none");
        let run = stage.run(&spec).await;
        if let Ok(mut tunnel) = run.client.open(TCP_VIP).await {
            let mut rest = Vec::new();
            let end = within("an end", tunnel.read_to_end(&mut rest)).await;
            let error = end.expect_err("nothing answered: that is no orderly end");
            assert!(reason(&error).is_some(), "{error:?}");
        }
    });
}

#[test]
fn frames_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        raw.open(1, VIP).await.unwrap();
        raw.answer(1).await.unwrap();
        raw.frame(kind::DATA, 0, 1, &[b'x'; (64 << 10) + 1]).await.unwrap();
        let end = within("the end", raw.find(|frame| frame.kind == kind::GOAWAY)).await;
        assert!(end.is_none_or(|frame| frame.error_code() == Some(6)), "FRAME_SIZE_ERROR");
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200, "others live");
    });
}

#[test]
fn requests_in_flight_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({ "max_requests_in_flight": 3 })).await;
        let held = join_all(
            (0..3).map(|_| async { run.http().await.get("/hold?gate=all").await.unwrap().status }),
        );
        let beyond = async {
            eventually("all wait", || stage.app.waiting() == 3).await;
            let mut http = run.http().await;
            let response = http.get("/").await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (503, "overflow"));
            let flag = [("response_flags", "UO")];
            let counted = || sum(&run.waypoint.metrics(), "istio_requests_total", &flag) == 1.0;
            eventually("UO is counted", counted).await;
            stage.app.release("all");
            http
        };
        let (statuses, mut http) = futures::future::join(held, beyond).await;
        assert_eq!(statuses, [200; 3]);
        eventually_async("there is room again", async || {
            http.get("/").await.unwrap().status == 200
        })
        .await;
    });
}

#[test]
fn chunk_extensions_and_trailers_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run = limited(&stage, json!({})).await;
        let lines = |count: usize| {
            (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>()
        };
        let long = |bytes: usize| format!("x: {}\r\n", "y".repeat(bytes));
        let cases = [
            ("a short extension", format!("4;{}\r\nbody\r\n0\r\n\r\n", "e".repeat(4000)), 200),
            ("a long extension", format!("4;{}\r\nbody\r\n0\r\n\r\n", "e".repeat(5000)), 400),
            ("some trailers", format!("4\r\nbody\r\n0\r\n{}\r\n", lines(60)), 200),
            ("many trailers", format!("4\r\nbody\r\n0\r\n{}\r\n", lines(70)), 400),
            ("a trailer", format!("4\r\nbody\r\n0\r\n{}\r\n", long(15_000)), 200),
            ("a long trailer", format!("4\r\nbody\r\n0\r\n{}\r\n", long(17_000)), 400),
        ];
        for (what, body, status) in cases {
            let mut http = run.http().await;
            let head =
                "POST /echo HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = http.send(format!("{head}{body}")).await;
            let response = within(what, http.response()).await.unwrap();
            assert_eq!(response.status, status, "{what}");
        }
        // From an endpoint: after the response's head only a broken end can tell.
        for (what, trailers) in [("many", lines(70)), ("a long one", long(17_000))] {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let raw = format!("{head}4\r\nbody\r\n0\r\n{trailers}\r\n");
            let path = format!("/raw?hex={}", hex(&raw));
            let response = within(what, run.http().await.get(&path)).await;
            assert!(response.is_err(), "{what}: {response:?}");
        }
    });
}

#[test]
fn mirrored_bodies_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let (shadow, shadow_pod) = stage.backend("shadow").await;
        let routes = json!([{ "match": { "path": { "prefix": "/" } }, "route": {
            "cluster": "app", "timeout": "0s", "mirrors": [{ "cluster": "shadow" }],
        } }]);
        let spec = stage
            .spec()
            .cluster("shadow", vec![hbone(&shadow_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, routes)
            .field("limits", json!({ "max_replay": 1000 }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let response = http.request("POST", "/beyond", &[], &[b'x'; 1001]).await.unwrap();
        assert_eq!((response.status, response.backend()), (200, "app"));
        let shed = || run.waypoint.counter("cairn_mirrors_shed_total", &[]);
        eventually("it is counted", || shed() == 1).await;
        http.request("POST", "/inside", &[], &[b'x'; 1000]).await.unwrap();
        eventually("the copy arrives", || shadow.count("/inside") == 1).await;
        assert_eq!(shadow.last("/inside").body_len, 1000);
        assert!(!shadow.log().iter().any(|seen| seen.body_len == 1001), "no whole copy");
    });
}

#[test]
fn connections_to_one_endpoint_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let run =
            limited(&stage, json!({ "pool_max_streams": 1, "pool_max_connections": 2 })).await;
        let held = join_all((0..5).map(|number| {
            let path = format!("/hold?gate=all&number={number}");
            let run = &run;
            async move { run.http().await.get(&path).await.unwrap().status }
        }));
        let release = async {
            eventually("two wait at the backend", || stage.app.waiting() == 2).await;
            stage.app.release("all");
        };
        let (statuses, ()) = futures::future::join(held, release).await;
        assert_eq!(statuses, [200; 5], "the others have waited");
        assert!(stage.pod.connects().iter().all(|connect| connect.connection <= 2));
    });
}

#[test]
fn formatted_headers_are_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let many = "%REQ(x-part)%".repeat(10);
        let routes = json!([{
            "match": { "path": { "prefix": "/" } },
            "route": { "cluster": "app", "timeout": "0s" },
            "request_headers": { "add": [{ "name": "x-whole", "value": many }] },
        }]);
        let run = stage.run(&stage.spec().http(VIP, routes)).await;
        let part = "p".repeat(10_000);
        let headers = [("X-Part", part.as_str())];
        let response = run.http().await.request("GET", "/echo", &headers, b"").await.unwrap();
        let echo = response.json();
        let whole = echoed(&echo, "x-whole")[0];
        assert_eq!(whole.len(), 64 << 10);
    });
}

#[test]
fn a_tcp_connection_tries_three_endpoints() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let dead = DeadPort::new();
        let at = |address: &str| hbone_at(dead.addr, address, &app_id());
        let good = hbone(&pod, "10.1.0.2:9000", &app_id());
        let spec = MeshSpec::new()
            .cluster("tcp", vec![at("10.1.0.3:9000"), at("10.1.0.4:9000"), good])
            .cluster("dead", vec![at("10.1.0.3:9000"), at("10.1.0.4:9000"), at("10.1.0.5:9000")])
            .tcp(TCP_VIP, "tcp")
            .tcp("10.96.0.10:9001", "dead");
        let run = stage.run(&spec).await;
        for _ in 0..20 {
            let mut tunnel = run.tunnel(TCP_VIP).await;
            tunnel.write_all(b"x").await.unwrap();
            let mut echo = [0];
            within("the echo", tunnel.read_exact(&mut echo)).await.unwrap();
        }
        let mut tunnel = run.tunnel("10.96.0.10:9001").await;
        let mut rest = Vec::new();
        assert!(within("an end", tunnel.read_to_end(&mut rest)).await.is_err());
        let closed = [("response_flags", "UF,URX")];
        let counted =
            || sum(&run.waypoint.metrics(), "istio_tcp_connections_closed_total", &closed) == 1.0;
        eventually("UF is counted", counted).await;
    });
}

#[test]
fn configured_sizes_are_bounded() {
    let stage = |route: Value| MeshSpec::new().http(VIP, json!([route]));
    let direct = |bytes: usize| {
        json!({
            "match": { "path": { "prefix": "/" } },
            "direct_response": { "status": 200, "body": "x".repeat(bytes) },
        })
    };
    let path = |bytes: usize| {
        json!({
            "match": { "path": { "prefix": format!("/{}", "x".repeat(bytes - 1)) } },
            "direct_response": { "status": 200 },
        })
    };
    let attempts = |count: u32| {
        json!({
            "match": { "path": { "prefix": "/" } },
            "route": { "cluster": "app", "retry": { "on": ["5xx"], "attempts": count } },
        })
    };
    for (what, inside, beyond) in [
        ("body", direct(1 << 20), direct((1 << 20) + 1)),
        ("path", path(8 << 10), path((8 << 10) + 1)),
        ("attempts", attempts(16), attempts(17)),
    ] {
        assert_eq!(refusal(&stage(inside)), "", "{what}");
        assert!(refusal(&stage(beyond)).contains(what), "{what}");
    }
}
