//! Opaque bytes: splicing, both ends, and telling them from HTTP.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::backend::Backend;
use cairn_test_support::config::{MeshSpec, all_to, hbone, hbone_at, plain};
use cairn_test_support::endpoint::{DeadPort, Endpoint};
use cairn_test_support::h2c::H2c;
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::http1::Http1;
use cairn_test_support::stage::{Stage, TCP_VIP, VIP, app_id, client_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// A pod with a TCP application behind [`TCP_VIP`].
async fn opaque(stage: &Stage, behaviour: Behaviour) -> (TcpApp, HboneBackend, MeshSpec) {
    let app = TcpApp::new(behaviour);
    let pod = stage.pod(&app).await;
    let spec = MeshSpec::new()
        .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
        .tcp(TCP_VIP, "tcp");
    (app, pod, spec)
}

async fn text(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    within("the end of the stream", io.read_to_string(&mut text)).await.unwrap();
    text
}

async fn exactly(io: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    within("bytes", io.read_exact(&mut bytes)).await.unwrap();
    bytes
}

#[test]
fn bytes_are_spliced_both_ways() {
    drive(async {
        let stage = Stage::new().await;
        let (app, pod, spec) = opaque(&stage, Behaviour::Echo).await;
        let run = stage.run(&spec).await;
        let tunnel = run.tunnel(TCP_VIP).await;
        let (mut read, mut write) = tokio::io::split(tunnel);
        let sent: Vec<u8> = (0..6u32 << 20).map(|at| (at % 251) as u8).collect();
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&copy).await.unwrap();
            write.shutdown().await.unwrap();
            write
        });
        let mut received = Vec::new();
        within("all comes back", read.read_to_end(&mut received)).await.unwrap();
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
        writing.await.unwrap();
        assert_eq!(pod.connects()[0].authority, "10.1.0.2:9000");
        eventually("it ended in order", || app.ended() == 1).await;
    });
}

#[test]
fn the_client_may_end_first() {
    drive(async {
        let stage = Stage::new().await;
        let (app, _pod, spec) = opaque(&stage, Behaviour::Count).await;
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(&[7; 100_000]).await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(text(&mut tunnel).await, "100000 bytes");
        eventually("it ended in order", || app.ended() == 1).await;
    });
}

#[test]
fn the_server_may_end_first() {
    drive(async {
        let stage = Stage::new().await;
        let (app, _pod, spec) = opaque(&stage, Behaviour::SayThenRead("bye")).await;
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        assert_eq!(text(&mut tunnel).await, "bye");
        tunnel.write_all(b"still here").await.unwrap();
        eventually("it arrives after the server's end", || app.received() == b"still here").await;
        assert_eq!(app.ended(), 0);
        tunnel.shutdown().await.unwrap();
        eventually("it ended in order", || app.ended() == 1).await;
    });
}

#[test]
fn the_server_may_speak_first() {
    drive(async {
        let stage = Stage::new().await;
        let (_app, _pod, spec) = opaque(&stage, Behaviour::ServerFirst("220 ready\r\n")).await;
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        assert_eq!(exactly(&mut tunnel, 11).await, b"220 ready\r\n");
        tunnel.write_all(b"EHLO").await.unwrap();
        assert_eq!(exactly(&mut tunnel, 4).await, b"EHLO");
    });
}

#[test]
fn a_reset_is_passed_on_both_ways() {
    drive(async {
        let stage = Stage::new().await;
        let (app, pod, spec) = opaque(&stage, Behaviour::Echo).await;
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"x").await.unwrap();
        exactly(&mut tunnel, 1).await;
        tunnel.reset(h2::Reason::CANCEL);
        eventually("the application's side breaks", || app.broken() == 1).await;
        assert_eq!(app.ended(), 0);
        drop(pod);

        let (_app, _pod, spec) = opaque(&stage, Behaviour::Abort("partial")).await;
        run.waypoint.apply(&spec);
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"x").await.unwrap();
        let mut received = Vec::new();
        let end = within("an end", tunnel.read_to_end(&mut received)).await;
        assert!(end.is_err(), "an abort became an orderly end after {received:?}");
    });
}

#[test]
fn an_endpoint_that_refuses_ends_the_tunnel() {
    drive(async {
        let stage = Stage::new().await;
        let dead = DeadPort::new();
        let (app, pod, spec) = opaque(&stage, Behaviour::Echo).await;
        let spec = spec
            .cluster("dead", vec![hbone_at(dead.addr, "10.1.0.9:9000", &app_id())])
            .cluster("none", vec![])
            .tcp("10.96.0.20:9000", "dead")
            .tcp("10.96.0.21:9000", "none")
            .tcp("10.96.0.22:9000", "missing");
        let run = stage.run(&spec).await;
        pod.refuse(503);
        for vip in [TCP_VIP, "10.96.0.20:9000", "10.96.0.21:9000", "10.96.0.22:9000"] {
            if let Ok(mut tunnel) = within(vip, run.client.open(vip)).await {
                let _ = tunnel.write_all(b"hello").await;
                let mut rest = Vec::new();
                let _ = within(vip, tunnel.read_to_end(&mut rest)).await;
                assert!(rest.is_empty(), "{vip}: {rest:?}");
            }
        }
        assert_eq!(app.connections(), 0);
        pod.refuse(200);
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"hello").await.unwrap();
        assert_eq!(exactly(&mut tunnel, 5).await, b"hello");
    });
}

#[test]
fn endpoints_may_be_plain() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Count);
        let endpoint = Endpoint::plain(&app).await;
        let spec = MeshSpec::new().cluster("tcp", vec![plain(endpoint.addr)]).tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"12345").await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(text(&mut tunnel).await, "5 bytes");
        assert_eq!(endpoint.connections(), 1);
    });
}

#[test]
fn clusters_are_chosen_by_weight() {
    drive(async {
        let stage = Stage::new().await;
        let (heavy, heavy_pod, spec) = opaque(&stage, Behaviour::Count).await;
        let light = TcpApp::new(Behaviour::Count);
        let light_pod = stage.pod(&light).await;
        let never = TcpApp::new(Behaviour::Count);
        let never_pod = stage.pod(&never).await;
        let spec = spec
            .cluster("light", vec![hbone(&light_pod, "10.1.0.3:9000", &app_id())])
            .cluster("never", vec![hbone(&never_pod, "10.1.0.4:9000", &app_id())])
            .destination(json!({
                "name": "split", "addresses": ["10.96.0.30"], "port": 9000,
                "tcp": { "clusters": [
                    { "name": "tcp", "weight": 3 },
                    { "name": "light", "weight": 1 },
                    { "name": "never", "weight": 0 },
                ] },
            }));
        let run = stage.run(&spec).await;
        for _ in 0..200 {
            let mut tunnel = run.tunnel("10.96.0.30:9000").await;
            tunnel.shutdown().await.unwrap();
            text(&mut tunnel).await;
        }
        assert_eq!(heavy.connections() + light.connections(), 200);
        assert_eq!(never.connections(), 0);
        // 150 and 50 are expected; five standard deviations are 31.
        assert!((119..=181).contains(&heavy.connections()), "{}", heavy.connections());
        drop(heavy_pod);
    });
}

#[test]
fn a_silent_splice_ends() {
    drive(async {
        let stage = Stage::new().await;
        let (app, pod, spec) = opaque(&stage, Behaviour::Echo).await;
        let spec = spec.destination(json!({
            "name": "impatient", "addresses": ["10.96.0.40"], "port": 9000,
            "tcp": { "clusters": [{ "name": "tcp" }], "idle_timeout": "300ms" },
        }));
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel("10.96.0.40:9000").await;
        tunnel.write_all(b"x").await.unwrap();
        exactly(&mut tunnel, 1).await;
        let mut rest = Vec::new();
        let _ = within("the idle timeout", tunnel.read_to_end(&mut rest)).await;
        eventually("the endpoint's side ends", || pod.open_tunnels() == 0).await;
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn a_client_that_does_not_read_stops_only_its_own_tunnel() {
    drive(async {
        let stage = Stage::new().await;
        let (_app, _pod, spec) = opaque(&stage, Behaviour::Echo).await;
        let run = stage.run(&spec).await;
        let stuck = run.tunnel(TCP_VIP).await;
        let (_unread, mut write) = tokio::io::split(stuck);
        // Far more than all windows on the way: the writer has to stop.
        let flood = tokio::spawn(async move {
            let _ = write.write_all(&vec![1; 64 << 20]).await;
        });
        for _ in 0..5 {
            let mut tunnel = run.tunnel(TCP_VIP).await;
            tunnel.write_all(&[2; 100_000]).await.unwrap();
            assert_eq!(exactly(&mut tunnel, 100_000).await, [2; 100_000]);
        }
        assert!(!flood.is_finished(), "64 MiB went somewhere");
        flood.abort();
    });
}

/// An HTTP and a TCP application behind the same port of unknown protocol.
async fn auto(stage: &Stage, behaviour: Behaviour) -> (TcpApp, HboneBackend, MeshSpec) {
    let app = TcpApp::new(behaviour);
    let pod = stage.pod(&app).await;
    let spec = stage.spec().cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())]).auto(
        VIP,
        all_to("app"),
        "tcp",
    );
    (app, pod, spec)
}

#[test]
fn first_bytes_tell_http_from_the_rest() {
    drive(async {
        let stage = Stage::new().await;
        let (tcp, _pod, spec) = auto(&stage, Behaviour::Echo).await;
        let run = stage.run(&spec).await;
        assert_eq!(run.http().await.get("/one").await.unwrap().status, 200);
        assert_eq!(run.h2c().await.get("/two").await.unwrap().status, 200);
        let mut posting = run.http().await;
        assert_eq!(posting.request("POST", "/three", &[], b"x").await.unwrap().status, 200);
        // Byte by byte.
        let mut slow = run.http().await;
        for byte in b"OPTIONS /four HTTP/1.1\r\nHost: app.test\r\n\r\n" {
            slow.send([*byte]).await.unwrap();
        }
        assert_eq!(slow.response().await.unwrap().status, 200);
        assert_eq!(tcp.connections(), 0);
        assert_eq!(stage.app.requests(), 4);

        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"hello world\r\n",
        ] {
            let mut tunnel = run.tunnel(VIP).await;
            tunnel.write_all(bytes).await.unwrap();
            assert_eq!(exactly(&mut tunnel, bytes.len()).await, bytes, "{bytes:?}");
        }
        assert_eq!(tcp.connections(), 6);
        assert_eq!(stage.app.requests(), 4);
    });
}

#[test]
fn a_silent_client_becomes_tcp() {
    drive(async {
        let stage = Stage::new().await;
        let (tcp, _pod, spec) = auto(&stage, Behaviour::ServerFirst("ready")).await;
        let run = stage.run(&spec.field("limits", json!({ "detection_timeout": "200ms" }))).await;
        let mut tunnel = run.tunnel(VIP).await;
        assert_eq!(exactly(&mut tunnel, 5).await, b"ready");
        tunnel.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert_eq!(exactly(&mut tunnel, 16).await, b"GET / HTTP/1.1\r\n");
        assert_eq!((tcp.connections(), stage.app.requests()), (1, 0));
        // Silent after a beginning that could have been HTTP.
        let mut half = run.tunnel(VIP).await;
        half.write_all(b"PRI * HT").await.unwrap();
        assert_eq!(exactly(&mut half, 13).await, b"readyPRI * HT");
    });
}

#[test]
fn a_client_that_ends_before_it_speaks_reaches_tcp() {
    drive(async {
        let stage = Stage::new().await;
        let (_tcp, _pod, spec) = auto(&stage, Behaviour::Count).await;
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(VIP).await;
        tunnel.write_all(b"GE").await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(text(&mut tunnel).await, "2 bytes");
    });
}

#[test]
fn an_http_port_refuses_other_bytes() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut tunnel = run.tunnel(VIP).await;
        tunnel.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = within("an end", tunnel.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn http_on_an_opaque_port_is_left_alone() {
    drive(async {
        let stage = Stage::new().await;
        let app = Backend::new("opaque");
        let pod = stage.pod(&app).await;
        let spec = MeshSpec::new()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut http = Http1::new(run.tunnel(TCP_VIP).await);
        let response = http.get("/x/../y").await.unwrap();
        assert_eq!(
            (response.json()["path"].as_str(), response.header("server")),
            (Some("/x/../y"), Some("backend"))
        );
        let h2c = H2c::connect(run.tunnel(TCP_VIP).await).await.unwrap();
        assert_eq!(h2c.get("/").await.unwrap().header("server"), Some("backend"));
    });
}

#[test]
fn policies_are_decided_before_any_byte() {
    drive(async {
        let stage = Stage::new().await;
        let (app, pod, spec) = opaque(&stage, Behaviour::ServerFirst("secret")).await;
        let policy = |action: &str, id: &str| {
            json!([{
                "action": action,
                "policies": { "p": { "permissions": ["any"], "principals": [{ "authenticated": { "exact": id } }] } },
            }])
        };
        let guarded = |vip: &str, rbac| {
            json!({
                "name": vip, "addresses": [vip], "port": 9000,
                "tcp": { "rbac": rbac, "clusters": [{ "name": "tcp" }] },
            })
        };
        let spec = spec
            .destination(guarded("10.96.0.50", policy("DENY", &client_id())))
            .destination(guarded("10.96.0.51", policy("ALLOW", &app_id())))
            .destination(guarded("10.96.0.52", policy("ALLOW", &client_id())))
            .destination(guarded("10.96.0.53", policy("LOG", &client_id())));
        let run = stage.run(&spec).await;
        for vip in ["10.96.0.50:9000", "10.96.0.51:9000"] {
            if let Ok(mut tunnel) = within(vip, run.client.open(vip)).await {
                let mut bytes = Vec::new();
                let _ = within(vip, tunnel.read_to_end(&mut bytes)).await;
                assert!(bytes.is_empty(), "{vip}: {bytes:?}");
            }
        }
        assert_eq!((app.connections(), pod.connects().len()), (0, 0));
        for vip in ["10.96.0.52:9000", "10.96.0.53:9000"] {
            let mut tunnel = run.tunnel(vip).await;
            assert_eq!(exactly(&mut tunnel, 6).await, b"secret", "{vip}");
        }
    });
}
