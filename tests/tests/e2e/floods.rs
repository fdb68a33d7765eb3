//! Clients that mean harm: what they cost is bounded, and the others are served meanwhile.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::hbone_client::{ClientOptions, HboneClient, connect_tls};
use cairn_test_support::http1::{Http1, message};
use cairn_test_support::process::{self, Cairn};
use cairn_test_support::raw_h2::{RawH2, encode, headers, kind};
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, app_id, waypoint_id};
use cairn_test_support::wait::{drive, eventually, within};
use futures::future::join_all;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

async fn staged() -> (Stage, Run) {
    let stage = Stage::new().await;
    let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
    (stage, run)
}

/// Another client is answered, on an old connection and on a new one.
async fn others_are_served(stage: &Stage, run: &Run, what: &str) {
    let mut http = within(what, run.http()).await;
    assert_eq!(within(what, http.get("/")).await.unwrap().status, 200, "{what}");
    let fresh = within(what, run.waypoint.connect(&stage.client())).await;
    let mut http = Http1::new(within(what, fresh.open(VIP)).await.unwrap());
    assert_eq!(within(what, http.get("/")).await.unwrap().status, 200, "{what}");
}

async fn attacker(stage: &Stage, run: &Run) -> RawH2 {
    let tls = stage.client().hbone_client(&waypoint_id());
    let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
    raw.preface(&[]).await.unwrap();
    raw
}

fn connect(stream: u32) -> Vec<u8> {
    headers(stream, &[(":method", "CONNECT"), (":authority", VIP)], false).to_vec()
}

/// Sends up to so many rounds of bytes, and waits until the waypoint ends the connection for it.
async fn cut_off(what: &str, raw: &mut RawH2, rounds: usize, bytes: impl Fn(usize) -> Vec<u8>) {
    for round in 0..rounds {
        // Who is not read any more has to wait for the end as well.
        let bytes = bytes(round);
        let sending = tokio::time::timeout(Duration::from_secs(5), raw.send(&bytes));
        if !matches!(sending.await, Ok(Ok(()))) {
            break;
        }
    }
    let hangs = format!("{what}: the connection ends");
    let end = within(&hangs, raw.find(|frame| frame.kind == kind::GOAWAY)).await;
    assert!(end.is_none_or(|frame| frame.error_code() != Some(0)), "{what}: an orderly end");
}

#[test]
fn control_frames_without_end_cut_the_connection() {
    drive(async {
        let (stage, run) = staged().await;
        let many = |frame: &[u8]| frame.repeat(500);
        let ping = many(&encode(kind::PING, 0, 0, &[1; 8]));
        let settings = many(&encode(kind::SETTINGS, 0, 0, &[]));
        let table = many(&encode(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0]));
        let window = many(&encode(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
        let priority = many(&encode(2, 0, 1, &[0, 0, 0, 3, 1]));
        let unknown = many(&encode(0xfa, 0, 0, &[]));
        for (what, bytes) in [
            ("PING", ping),
            ("SETTINGS", settings),
            ("SETTINGS with values", table),
            ("WINDOW_UPDATE", window),
            ("PRIORITY", priority),
            ("unknown frames", unknown),
        ] {
            let mut raw = attacker(&stage, &run).await;
            cut_off(what, &mut raw, 100, |_| bytes.clone()).await;
            others_are_served(&stage, &run, what).await;
        }
        eventually("they are counted", || run.waypoint.counter("cairn_floods_total", &[]) >= 4)
            .await;
    });
}

#[test]
fn rapid_resets_cut_the_connection() {
    drive(async {
        let (stage, run) = staged().await;
        let mut raw = attacker(&stage, &run).await;
        cut_off("rapid reset", &mut raw, 200, |round| {
            let mut bytes = Vec::new();
            for number in 0..200 {
                let stream = (round * 400 + number * 2 + 1) as u32;
                bytes.extend(connect(stream));
                bytes.extend_from_slice(&encode(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            bytes
        })
        .await;
        others_are_served(&stage, &run, "rapid reset").await;
        eventually("no tunnel is left", || {
            run.waypoint.counter("cairn_tunnels", &[]) == 0
                || run.waypoint.counter("cairn_tunnels", &[]) <= 2
        })
        .await;
    });
}

#[test]
fn connects_without_end_are_bounded() {
    drive(async {
        let (stage, run) = staged().await;
        let mut raw = attacker(&stage, &run).await;
        let mut bytes = Vec::new();
        for number in 0..5000u32 {
            bytes.extend(connect(2 * number + 1));
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), raw.send(&bytes)).await;
        others_are_served(&stage, &run, "CONNECT flood").await;
        assert!(run.waypoint.counter("cairn_tunnels", &[]) <= 210);
        drop(raw);
        eventually("all of them end", || run.waypoint.counter("cairn_tunnels", &[]) <= 2).await;
    });
}

#[test]
fn continuations_without_end_cut_the_connection() {
    drive(async {
        let (stage, run) = staged().await;
        let mut raw = attacker(&stage, &run).await;
        raw.frame(kind::HEADERS, 0, 1, &[]).await.unwrap();
        let part = encode(kind::CONTINUATION, 0, 1, &[0x40; 1]).repeat(2000);
        cut_off("CONTINUATION", &mut raw, 50, |_| part.clone()).await;
        others_are_served(&stage, &run, "CONTINUATION flood").await;
    });
}

#[test]
fn empty_data_without_end_is_bounded() {
    drive(async {
        let (stage, run) = staged().await;
        let mut raw = attacker(&stage, &run).await;
        raw.open(1, VIP).await.unwrap();
        assert_eq!(raw.answer(1).await.unwrap().status(), Some(200));
        let empty = encode(kind::DATA, 0, 1, &[]).repeat(1000);
        cut_off("empty DATA", &mut raw, 100, |_| empty.clone()).await;
        others_are_served(&stage, &run, "empty DATA").await;
    });
}

#[test]
fn garbage_ends_where_it_is() {
    drive(async {
        let (stage, run) = staged().await;
        // Instead of TLS.
        let mut tcp = tokio::net::TcpStream::connect(run.waypoint.addr).await.unwrap();
        let _ = tcp.write_all(&[0xff; 10_000]).await;
        // Instead of the preface.
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut io = connect_tls(run.waypoint.addr, tls.clone()).await.unwrap();
        let _ = io.write_all(&[b'x'; 10_000]).await;
        let _ = io.flush().await;
        // Half a preface.
        let mut half = connect_tls(run.waypoint.addr, tls).await.unwrap();
        half.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
        half.flush().await.unwrap();
        // After a good CONNECT, on the connection and in the tunnel.
        let mut raw = attacker(&stage, &run).await;
        raw.open(1, VIP).await.unwrap();
        raw.answer(1).await.unwrap();
        let _ = raw.send(&[0xff; 10_000]).await;
        assert!(
            within("the connection ends", raw.find(|frame| frame.kind == kind::GOAWAY))
                .await
                .is_none_or(|frame| frame.error_code() != Some(0))
        );
        let mut tunnel = run.tunnel(VIP).await;
        tunnel.write_all(&[0xff; 100_000]).await.unwrap();
        let mut http = Http1::new(tunnel);
        let answer = within("the tunnel ends", http.response()).await;
        assert!(
            answer.is_err()
                || answer.is_ok_and(|response| response.status == 400 || response.status == 431)
        );
        assert_eq!(stage.app.requests(), 0);
        others_are_served(&stage, &run, "garbage").await;
        drop((tcp, io, half));
    });
}

#[test]
fn clients_that_never_send_are_carried() {
    drive(async {
        let (stage, run) = staged().await;
        // Connections without a tunnel, tunnels without a byte, requests without an end.
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(run.waypoint.connect(&stage.client()).await);
        }
        let silent = join_all((0..150).map(|_| run.tunnel(VIP))).await;
        let half = join_all((0..40).map(|number| {
            let client = &idle[number % idle.len()];
            async move {
                let mut tunnel = client.open(VIP).await.unwrap();
                tunnel
                    .write_all(b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100\r\n\r\nx")
                    .await
                    .unwrap();
                tunnel
            }
        }))
        .await;
        others_are_served(&stage, &run, "silent clients").await;
        drop((silent, half));
        drop(idle);
        eventually("they are forgotten", || run.waypoint.counter("cairn_tunnels", &[]) <= 2).await;
    });
}

#[test]
fn clients_that_never_read_are_carried() {
    drive(async {
        let (stage, run) = staged().await;
        let tls = stage.client().hbone_client(&waypoint_id());
        // h2 that reads, but a tunnel whose window is never opened again.
        let options = ClientOptions { stream_window: 65_535, ..ClientOptions::default() };
        let narrow = HboneClient::connect_with(run.waypoint.addr, tls, options).await.unwrap();
        let mut stuck = Vec::new();
        for _ in 0..20 {
            let mut tunnel = narrow.open(VIP).await.unwrap();
            tunnel.write_all(&message("GET", "/bytes?n=20000000", &[], b"")).await.unwrap();
            stuck.push(tunnel);
        }
        // A connection that is not read at all.
        let mut deaf = attacker(&stage, &run).await;
        for number in 0..20u32 {
            let stream = 2 * number + 1;
            deaf.open(stream, VIP).await.unwrap();
            deaf.frame(kind::DATA, 0, stream, &message("GET", "/bytes?n=20000000", &[], b""))
                .await
                .unwrap();
        }
        eventually("the backend is asked", || stage.app.count("/bytes") == 40).await;
        others_are_served(&stage, &run, "deaf clients").await;
        drop((stuck, deaf));
        eventually("they are forgotten", || run.waypoint.counter("cairn_tunnels", &[]) <= 2).await;
        others_are_served(&stage, &run, "after deaf clients").await;
    });
}

#[test]
fn an_endpoint_that_never_reads_stops_only_its_clients() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Silent);
        let pod = stage.pod(&app).await;
        let spec: MeshSpec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("deaf", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "deaf");
        let run = stage.run(&spec).await;
        let writers: Vec<_> = join_all((0..10).map(|_| run.tunnel(TCP_VIP)))
            .await
            .into_iter()
            .map(|mut tunnel| {
                tokio::spawn(async move { tunnel.write_all(&vec![0; 32 << 20]).await })
            })
            .collect();
        // On another connection: these ten share the connection's window with whoever else is on it.
        let other = run.waypoint.connect(&stage.client()).await;
        let mut http = Http1::new(within("a tunnel", other.open(VIP)).await.unwrap());
        for _ in 0..20 {
            assert_eq!(within("an answer", http.get("/")).await.unwrap().status, 200);
        }
        assert!(writers.iter().all(|writer| !writer.is_finished()), "320 MiB went somewhere");
        for writer in writers {
            writer.abort();
        }
    });
}

#[test]
fn h2c_floods_inside_a_tunnel_hurt_nobody_else() {
    drive(async {
        let (stage, run) = staged().await;
        let ping = encode(kind::PING, 0, 0, &[1; 8]).repeat(500);
        let settings = encode(kind::SETTINGS, 0, 0, &[]).repeat(500);
        for (what, bytes) in [("PING", ping), ("SETTINGS", settings)] {
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            for _ in 0..100 {
                let sending = tokio::time::timeout(Duration::from_secs(5), raw.send(&bytes));
                if !matches!(sending.await, Ok(Ok(()))) {
                    break;
                }
            }
            others_are_served(&stage, &run, what).await;
        }
        let mut raw = RawH2::new(run.tunnel(VIP).await);
        raw.preface(&[]).await.unwrap();
        for round in 0..50u32 {
            let mut bytes = Vec::new();
            for number in 0..200 {
                let stream = round * 400 + number * 2 + 1;
                let fields = [
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", "/reset-me"),
                    (":authority", "app.test"),
                ];
                bytes.extend_from_slice(&headers(stream, &fields, true));
                bytes.extend_from_slice(&encode(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            if within("rapid reset", raw.send(&bytes)).await.is_err() {
                break;
            }
        }
        others_are_served(&stage, &run, "rapid reset").await;
        drop(raw);
        eventually("nothing of it is left", || {
            run.waypoint.counter("cairn_requests_in_flight", &[]) == 0
                && run.waypoint.counter("cairn_tunnels", &[]) <= 2
        })
        .await;
    });
}

#[test]
fn memory_is_bounded_under_all_of_them() {
    process::drive(async {
        let stage = Stage::new().await;
        let files = stage.files(&stage.spec().http(VIP, all_to("app")));
        let mut cairn = Cairn::proxy(&files.config(), &[]).await;
        let addr = cairn.address("HBONE");
        let tls = stage.client().hbone_client(&waypoint_id());
        let good = HboneClient::connect(addr, &stage.client(), &waypoint_id()).await.unwrap();
        let mut http = Http1::new(good.open(VIP).await.unwrap());
        for _ in 0..50 {
            assert_eq!(http.get("/bytes?n=100000").await.unwrap().status, 200);
        }
        let before = cairn.resident_kib();
        let mut attackers = Vec::new();
        for _ in 0..10 {
            let mut raw = RawH2::connect(addr, tls.clone()).await.unwrap();
            raw.preface(&[]).await.unwrap();
            // Ten tunnels that ask for much and read nothing.
            for number in 0..10u32 {
                let request = message("GET", "/bytes?n=50000000", &[], b"");
                raw.open(2 * number + 1, VIP).await.unwrap();
                raw.frame(kind::DATA, 0, 2 * number + 1, &request).await.unwrap();
            }
            // CONNECTs and PINGs beyond all bounds.
            let mut bytes = Vec::new();
            for number in 10..2000u32 {
                bytes.extend(connect(2 * number + 1));
                bytes.extend_from_slice(&encode(kind::PING, 0, 0, &[1; 8]));
            }
            let _ = tokio::time::timeout(Duration::from_secs(2), raw.send(&bytes)).await;
            attackers.push(raw);
            assert!(cairn.is_running(), "{:#?}", cairn.output());
        }
        for _ in 0..50 {
            assert_eq!(
                within("the good one", http.get("/bytes?n=100000")).await.unwrap().status,
                200
            );
        }
        let during = cairn.resident_kib();
        // 100 greedy tunnels asked for 5 GB; 2,000 tunnels are open at most.
        assert!(during < before + 128 * 1024, "{before} KiB before, {during} KiB under attack");
        assert!(!cairn.printed("panicked"), "{:#?}", cairn.output());
    });
}

#[test]
fn tiny_frames_that_nobody_reads_cut_the_connection() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Silent);
        let pod = stage.pod(&app).await;
        let spec: MeshSpec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("deaf", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "deaf");
        let run = stage.run(&spec).await;
        let mut raw = attacker(&stage, &run).await;
        raw.open(1, TCP_VIP).await.unwrap();
        assert_eq!(raw.answer(1).await.unwrap().status(), Some(200));
        // All of it fits the stream's window many times over.
        let tiny = encode(kind::DATA, 0, 1, b"x").repeat(1000);
        cut_off("tiny DATA", &mut raw, 1000, |_| tiny.clone()).await;
        others_are_served(&stage, &run, "tiny DATA").await;
    });
}
