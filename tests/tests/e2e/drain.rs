//! The end of a process or of a mesh: whatever was begun is finished.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::hbone_client::{HboneClient, OpenFailure};
use cairn_test_support::http1::{Http1, message};
use cairn_test_support::pki::Cert;
use cairn_test_support::process::{Cairn, drive};
use cairn_test_support::stage::{Stage, TCP_VIP, VIP, app_id, waypoint_id};
use cairn_test_support::wait::{eventually, within};
use futures::future::join_all;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A client as ztunnel: tunnels on one connection until it is told to go away. Returns what failed.
///
/// A CONNECT that is not answered because the connection goes away is not a failure: nothing was
/// sent, and with another waypoint there it would be sent there. After the 200 everything counts.
async fn tunnels(addr: SocketAddr, client: Cert, done: Arc<AtomicU64>) -> Vec<String> {
    let hbone = HboneClient::connect(addr, &client, &waypoint_id()).await.unwrap();
    let mut failures = Vec::new();
    loop {
        let tunnel = match within("CONNECT", hbone.open(VIP)).await {
            Ok(tunnel) => tunnel,
            Err(OpenFailure::H2(_)) => return failures,
            Err(OpenFailure::Status(status, _)) => {
                failures.push(format!("CONNECT {status}"));
                return failures;
            }
        };
        let mut http = Http1::new(tunnel);
        // One tunnel for a few requests, as keep-alive clients do.
        for round in 0..3 {
            match within("a request", http.request("POST", "/echo", &[], b"body")).await {
                Ok(response) if response.status == 200 => {
                    done.fetch_add(1, Ordering::SeqCst);
                    if response.headers.has_token("connection", "close") {
                        break;
                    }
                }
                other => {
                    failures.push(format!("request {round} of a tunnel: {other:?}"));
                    break;
                }
            }
        }
    }
}

/// The same with h2c: requests on one tunnel until GOAWAY.
async fn streams(addr: SocketAddr, client: Cert, done: Arc<AtomicU64>) -> Vec<String> {
    let hbone = HboneClient::connect(addr, &client, &waypoint_id()).await.unwrap();
    let mut failures = Vec::new();
    while let Ok(tunnel) = within("CONNECT", hbone.open(VIP)).await {
        let h2c = cairn_test_support::h2c::H2c::connect(tunnel).await.unwrap();
        loop {
            let sending = h2c.start("GET", "/echo", &[], true).await;
            let Ok((response, _)) = sending else {
                break;
            };
            match within("a request", cairn_test_support::h2c::collect(response)).await {
                Ok(response) if response.status == 200 => {
                    done.fetch_add(1, Ordering::SeqCst);
                }
                // Never begun there: GOAWAY's last stream is below it.
                Err(error)
                    if error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM) =>
                {
                    break;
                }
                other => {
                    failures.push(format!("h2c: {other:?}"));
                    return failures;
                }
            }
        }
    }
    failures
}

#[test]
fn sigterm_under_load_fails_nothing() {
    drive(async {
        let stage = Stage::new().await;
        for round in 0..3 {
            let files = stage.files(&stage.spec().http(VIP, all_to("app")));
            let mut cairn = Cairn::proxy(&files.config(), &[]).await;
            let addr = cairn.address("HBONE");
            let done = Arc::new(AtomicU64::new(0));
            let mut load = Vec::new();
            for _ in 0..4 {
                load.push(tokio::spawn(tunnels(addr, stage.client(), done.clone())));
            }
            for _ in 0..2 {
                load.push(tokio::spawn(streams(addr, stage.client(), done.clone())));
            }
            // Some take their time, and end after the signal.
            let slow = HboneClient::connect(addr, &stage.client(), &waypoint_id()).await.unwrap();
            let gate = format!("gate-{round}");
            let held = tokio::spawn(async move {
                let path = format!("/hold?gate={gate}");
                join_all((0..10).map(|_| async {
                    let mut http = Http1::new(slow.open(VIP).await.unwrap());
                    http.get(&path)
                        .await
                        .map(|response| response.status)
                        .map_err(|error| error.to_string())
                }))
                .await
            });
            eventually("the load runs", || {
                done.load(Ordering::SeqCst) > 300 && stage.app.waiting() == 10
            })
            .await;
            cairn.terminate();
            eventually("it drains", || cairn.printed("draining")).await;
            let failures: Vec<String> =
                join_all(load).await.into_iter().flat_map(Result::unwrap).collect();
            assert_eq!(failures, Vec::<String>::new(), "round {round}");
            assert!(cairn.is_running(), "it waits for what is in flight");
            stage.app.release(&format!("gate-{round}"));
            assert_eq!(held.await.unwrap(), vec![Ok(200); 10], "round {round}");
            assert_eq!(cairn.wait().await.code(), Some(0), "{:#?}", cairn.output());
        }
    });
}

#[test]
fn an_idle_process_ends_at_once() {
    drive(async {
        let stage = Stage::new().await;
        let files = stage.files(&stage.spec().http(VIP, all_to("app")));
        // Were it to wait for the limit, the test would hang.
        let mut cairn = Cairn::proxy(&files.config(), &["--drain-limit", "10m"]).await;
        let hbone = HboneClient::connect(cairn.address("HBONE"), &stage.client(), &waypoint_id())
            .await
            .unwrap();
        let mut http = Http1::new(hbone.open(VIP).await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 200);
        cairn.terminate();
        assert!(within("the idle tunnel ends", http.closed()).await);
        assert_eq!(cairn.wait().await.code(), Some(0));
        eventually("the connection ends", || hbone.is_closed()).await;
    });
}

#[test]
fn what_does_not_end_is_cut_at_the_limit() {
    drive(async {
        let stage = Stage::new().await;
        let files = stage.files(&stage.spec().http(VIP, all_to("app")));
        let mut cairn = Cairn::proxy(&files.config(), &["--drain-limit", "500ms"]).await;
        let hbone = HboneClient::connect(cairn.address("HBONE"), &stage.client(), &waypoint_id())
            .await
            .unwrap();
        let mut http = Http1::new(hbone.open(VIP).await.unwrap());
        http.send(message("GET", "/hold?gate=never", &[], b"")).await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        cairn.terminate();
        assert_eq!(cairn.wait().await.code(), Some(0));
        assert!(http.response().await.is_err());
    });
}

#[test]
fn a_drain_lets_everything_in_flight_finish() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let spec: MeshSpec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        http.send(message("GET", "/hold?gate=open", &[], b"")).await.unwrap();
        let mut upload = run.http().await;
        upload
            .send("POST /sink HTTP/1.1\r\nHost: app.test\r\nContent-Length: 8\r\n\r\nhalf")
            .await
            .unwrap();
        let mut splice = run.tunnel(TCP_VIP).await;
        splice.write_all(b"before").await.unwrap();
        let mut echo = [0; 6];
        splice.read_exact(&mut echo).await.unwrap();
        let h2c = run.h2c().await;
        let mut call = h2c.stream("/hold?gate=open", &[]).await.unwrap();
        call.close_send().unwrap();
        eventually("all of it is in flight", || stage.app.waiting() == 2).await;

        let mut drain = Box::pin(run.waypoint.drain(Duration::from_secs(60)));
        tokio::select! {
            cut = &mut drain => panic!("drained with {cut} cut while four things are in flight"),
            () = eventually("the listener is closed", || {
                std::net::TcpStream::connect(run.waypoint.addr).is_err()
            }) => {}
        }
        let work = async {
            upload.send("half").await.unwrap();
            let response = upload.response().await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "8"));
            assert!(response.headers.has_token("connection", "close"), "{response:?}");
            splice.write_all(b"after").await.unwrap();
            let mut echo = [0; 5];
            splice.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"after");
            splice.shutdown().await.unwrap();
            stage.app.release("open");
            let response = http.response().await.unwrap();
            assert_eq!(response.status, 200);
            assert!(response.headers.has_token("connection", "close"), "{response:?}");
            call.headers().await.unwrap();
            while call.recv().await.unwrap().is_some() {}
        };
        let (cut, ()) = within("the drain", futures::future::join(drain, work)).await;
        assert_eq!(cut, 0);
        eventually("the connection ends", || run.client.is_closed()).await;
    });
}
