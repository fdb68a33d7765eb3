//! The life of a pool's member: it drains while clients go on, and moves clients to others.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{all_to, hbone};
use cairn_test_support::h2c::{H2c, collect};
use cairn_test_support::hbone_client::{HboneClient, OpenFailure};
use cairn_test_support::http1::{Http1, message};
use cairn_test_support::pki::{Cert, CertDir};
use cairn_test_support::stage::{Run, Stage, TCP_VIP, VIP, app_id, waypoint_id};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{drive, eventually, eventually_async, within};
use cairn_test_support::waypoint::{DrainPlan, Drained, InFlight, Process};
use cairn_test_support::websocket;
use futures::FutureExt;
use futures::future::{join, join_all};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MINUTE: Duration = Duration::from_secs(60);

/// Clients that know of no other waypoint, and come back whenever they are told to go.
#[derive(Default)]
struct Crowd {
    stop: AtomicBool,
    requests: AtomicU64,
    /// Tunnels whose end the waypoint has announced.
    told: AtomicU64,
}

impl Crowd {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn done(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    fn told(&self) {
        self.told.fetch_add(1, Ordering::SeqCst);
    }

    /// A tunnel, on another connection when the last one goes away.
    async fn open(&self, at: &mut HboneClient, addr: SocketAddr, client: &Cert) -> H2Stream {
        loop {
            match within("CONNECT", at.open(VIP)).await {
                Ok(tunnel) => return tunnel,
                Err(OpenFailure::H2(_)) => {
                    *at = HboneClient::connect(addr, client, &waypoint_id()).await.unwrap();
                }
                Err(OpenFailure::Status(status, _)) => panic!("CONNECT {status}"),
            }
        }
    }

    /// HTTP/1.1 with keep-alive, for as long as the waypoint keeps it.
    async fn http1(self: Arc<Self>, addr: SocketAddr, client: Cert) {
        let mut hbone = HboneClient::connect(addr, &client, &waypoint_id()).await.unwrap();
        while self.goes_on() {
            let mut http = Http1::new(self.open(&mut hbone, addr, &client).await);
            while self.goes_on() {
                let response = within("a request", http.request("POST", "/echo", &[], b"body"));
                let response = response.await.unwrap_or_else(|error| panic!("HTTP/1.1: {error}"));
                assert_eq!(response.status, 200);
                self.done();
                if response.headers.has_token("connection", "close") {
                    self.told();
                    break;
                }
            }
        }
    }

    /// Calls of gRPC or requests one after the other on one tunnel until GOAWAY.
    async fn http2(self: Arc<Self>, addr: SocketAddr, client: Cert, grpc: bool) {
        let mut hbone = HboneClient::connect(addr, &client, &waypoint_id()).await.unwrap();
        let headers: &[(&str, &str)] =
            if grpc { &[("content-type", "application/grpc"), ("te", "trailers")] } else { &[] };
        let path = if grpc { "/test.Echo/Unary" } else { "/echo" };
        while self.goes_on() {
            let tunnel = self.open(&mut hbone, addr, &client).await;
            let h2c = H2c::connect(tunnel).await.unwrap();
            while self.goes_on() {
                let Ok((response, _)) = h2c.start("POST", path, headers, true).await else {
                    self.told();
                    break;
                };
                match within("a request", collect(response)).await {
                    Ok(response) => {
                        assert_eq!(response.status, 200);
                        assert!(!grpc || response.grpc_status() == Some(0), "{response:?}");
                        self.done();
                    }
                    // Never begun there: GOAWAY's last stream is below it.
                    Err(error) if error.is_go_away() => {
                        self.told();
                        break;
                    }
                    Err(error) => panic!("HTTP/2: {error}"),
                }
            }
        }
    }
}

#[test]
fn a_drain_that_accepts_fails_nothing() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, all_to("app"))).await;
        let (crowd, addr) = (Arc::new(Crowd::default()), run.waypoint.addr);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(tokio::spawn(crowd.clone().http1(addr, stage.client())));
        }
        for grpc in [true, false, true] {
            clients.push(tokio::spawn(crowd.clone().http2(addr, stage.client(), grpc)));
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        eventually("the load runs", || count(&crowd.requests) > 200).await;
        assert_eq!(count(&crowd.told), 0);

        let plan = DrainPlan { spread: Duration::from_millis(500), limit: MINUTE };
        let drain = run.waypoint.running().drain_by(plan);
        let goes_on = async {
            eventually("all are told, and come back", || count(&crowd.told) >= 20).await;
            let before = count(&crowd.requests);
            eventually("and are served", || count(&crowd.requests) > before + 50).await;
            // Who knows nothing is served, too, and told at once.
            let late = run.waypoint.connect(&stage.client()).await;
            let mut http = Http1::new(late.open(VIP).await.unwrap());
            assert_eq!(http.get("/").await.unwrap().status, 200);
            eventually_async("it is told", async || late.is_draining().await).await;
            crowd.stop.store(true, Ordering::SeqCst);
        };
        let (drained, ()) = within("the drain", join(drain, goes_on)).await;
        assert_eq!(drained, Drained::default());
        for client in join_all(clients).await {
            client.unwrap();
        }
        assert!(std::net::TcpStream::connect(addr).is_err(), "it accepts no more");
        assert_eq!(run.waypoint.running().in_flight(), InFlight::default());
        assert_eq!(run.waypoint.istio("istio_requests_total", &[("response_code", "503")]), 0);
    });
}

#[test]
fn connections_are_told_at_once_and_tunnels_in_their_time() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        let plan = DrainPlan { spread: Duration::from_secs(10_000_000), limit: MINUTE * 60 };
        let mut drain = Box::pin(run.waypoint.running().drain_by(plan));
        let told = eventually_async("it is told", async || run.client.is_draining().await);
        tokio::select! {
            drained = &mut drain => panic!("{drained:?} with a tunnel"),
            () = told => {}
        }
        for _ in 0..3 {
            let response = http.get("/").await.unwrap();
            assert_eq!(response.status, 200);
            assert!(!response.headers.has_token("connection", "close"));
        }
        assert!((&mut drain).now_or_never().is_none());
        http.shutdown().await.unwrap();
        drop(http);
        // Nothing is open any more: it does not wait for the spread.
        assert_eq!(within("the end", drain).await, Drained::default());
    });
}

#[test]
fn what_is_left_at_the_limit_is_reset() {
    drive(async {
        let stage = Stage::new().await;
        let pod = stage.pod(&TcpApp::new(Behaviour::Echo)).await;
        let spec = stage
            .spec()
            .http_with(VIP, all_to("app"), json!({ "upgrades": ["websocket"] }))
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let h2c = run.h2c().await;
        let mut call = h2c.stream("/gate?gate=never", &[]).await.unwrap();
        call.close_send().unwrap();
        call.headers().await.unwrap();
        let mut http = run.http().await;
        http.send(message("GET", "/gate?gate=never", &[], b"")).await.unwrap();
        assert_eq!(http.head().await.unwrap().status, 200);
        let (mut socket, _) = websocket::upgrade(run.http().await, "/ws").await.unwrap().unwrap();
        socket.echo("hello").await.unwrap();
        let mut splice = run.tunnel(TCP_VIP).await;
        splice.write_all(b"x").await.unwrap();
        splice.read_exact(&mut [0]).await.unwrap();
        assert_eq!(run.waypoint.running().in_flight().tunnels, 4);

        let plan = DrainPlan { spread: Duration::ZERO, limit: Duration::from_millis(200) };
        let drained = within("the drain", run.waypoint.running().drain_by(plan)).await;
        assert_eq!(drained, Drained { cut: 5, http: 2, opaque: 2 }, "and one connection");
        let end = loop {
            match call.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream that was cut looks whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(end.reason(), Some(h2::Reason::CANCEL), "{end}");
        let mut rest = Vec::new();
        assert!(http.wire.io().read_to_end(&mut rest).await.is_err());
        let reset = splice.reset_by_peer().await.unwrap();
        assert_eq!(reset, h2::Reason::CANCEL);
        assert!(socket.recv().await.is_err());
    });
}

/// The next response says that it is the last one.
async fn says_close(http: &mut Http1<H2Stream>) -> bool {
    let response = within("a request", http.get("/")).await.unwrap();
    assert_eq!(response.status, 200);
    response.headers.has_token("connection", "close")
}

/// GOAWAY, and then the end of the tunnel.
async fn ends(h2c: &H2c) {
    eventually("the tunnel ends", || h2c.is_closed()).await;
}

#[test]
fn a_rebalance_moves_the_least_used_and_loses_nothing() {
    drive(async {
        let stage = Stage::new().await;
        let pod = stage.pod(&TcpApp::new(Behaviour::Echo)).await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut splice = run.tunnel(TCP_VIP).await;
        splice.write_all(b"x").await.unwrap();
        splice.read_exact(&mut [0]).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut http = run.http().await;
            assert!(!says_close(&mut http).await);
            open.push(http);
        }
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
        let (held, _) = h2c.start("GET", "/hold?gate=open", &[], true).await.unwrap();
        eventually("it is held", || stage.app.waiting() == 1).await;
        // The first tunnel is in use again.
        let [first, second, third] = &mut open[..] else { panic!("three tunnels") };
        first.send(message("GET", "/hold?gate=open", &[], b"")).await.unwrap();
        eventually("it is held, too", || stage.app.waiting() == 2).await;

        let instance = run.waypoint.instance();
        assert_eq!(instance.shed(1), 1);
        assert!(says_close(second).await, "the one that was not used for longest");
        assert!(!says_close(third).await);
        eventually("the second is gone", || run.waypoint.running().in_flight().tunnels == 4).await;
        assert_eq!(instance.shed(10), 3, "TCP stays where it is");
        assert_eq!(instance.shed(10), 0);
        stage.app.release("open");
        let response = within("the response in flight", first.response()).await.unwrap();
        assert_eq!(response.status, 200);
        assert!(response.headers.has_token("connection", "close"));
        assert_eq!(within("the stream in flight", collect(held)).await.unwrap().status, 200);
        ends(&h2c).await;
        assert!(within("the silent one ends", third.closed()).await);
        splice.write_all(b"y").await.unwrap();
        splice.read_exact(&mut [0]).await.unwrap();
        assert_eq!(run.waypoint.counter("cairn_tunnels_rebalanced_total", &[]), 4);
        assert_eq!(run.waypoint.counter("cairn_tunnels_aged_total", &[]), 0);
        assert!(!run.client.is_draining().await, "its HBONE connection is not concerned");
    });
}

#[test]
fn tunnels_of_requests_grow_old() {
    drive(async {
        let stage = Stage::new().await;
        let pod = stage.pod(&TcpApp::new(Behaviour::Echo)).await;
        let spec = stage
            .spec()
            .http_with(VIP, all_to("app"), json!({ "upgrades": ["websocket"] }))
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let age = Duration::from_millis(200);
        let run = stage.run_tuned(&spec, |limits| limits.max_connection_age = Some(age)).await;
        let (mut socket, _) = websocket::upgrade(run.http().await, "/ws").await.unwrap().unwrap();
        let mut splice = run.tunnel(TCP_VIP).await;
        let h2c = run.h2c().await;
        let (held, _) = h2c.start("GET", "/hold?gate=open", &[], true).await.unwrap();
        let mut http = run.http().await;
        while !says_close(&mut http).await {}
        eventually("both are told", || run.waypoint.counter("cairn_tunnels_aged_total", &[]) == 2)
            .await;
        stage.app.release("open");
        assert_eq!(within("the stream in flight", collect(held)).await.unwrap().status, 200);
        ends(&h2c).await;
        socket.echo("hello").await.unwrap();
        splice.write_all(b"x").await.unwrap();
        splice.read_exact(&mut [0]).await.unwrap();
        assert_eq!(run.waypoint.counter("cairn_tunnels_aged_total", &[]), 2);
        assert!(!run.client.is_draining().await);
    });
}

#[test]
fn hbone_connections_grow_old_and_their_tunnels_live_on() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app"));
        let age = Duration::from_millis(200);
        let run = stage.run_tuned(&spec, |limits| limits.max_hbone_age = Some(age)).await;
        let mut http = run.http().await;
        assert!(!says_close(&mut http).await);
        eventually_async("it is told", async || run.client.is_draining().await).await;
        assert!(!says_close(&mut http).await);
        assert_eq!(run.waypoint.counter("cairn_connections_aged_total", &[]), 1);
        http.shutdown().await.unwrap();
        drop(http);
        eventually("it ends with its last tunnel", || run.client.is_closed()).await;
        let other = run.waypoint.connect(&stage.client()).await;
        let mut http = Http1::new(other.open(VIP).await.unwrap());
        assert!(!says_close(&mut http).await);
    });
}

#[test]
fn without_memory_keep_alive_ends() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let (mut quiet, mut used) = (run.http().await, run.http().await);
        for http in [&mut quiet, &mut used] {
            assert!(!says_close(http).await);
        }
        used.send(message("GET", "/hold?gate=open", &[], b"")).await.unwrap();
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
        eventually("it is held", || stage.app.waiting() == 1).await;
        let instance = run.waypoint.instance();
        instance.end_keep_alive(true);
        assert!(within("the silent one ends", quiet.closed()).await);
        ends(&h2c).await;
        assert!(says_close(&mut run.http().await).await);
        instance.end_keep_alive(false);
        stage.app.release("open");
        let response = within("the response", used.response()).await.unwrap();
        assert!(!response.headers.has_token("connection", "close"), "it was in use all the time");
        assert!(!says_close(&mut run.http().await).await);
    });
}

#[test]
fn nothing_of_a_mesh_is_left_when_it_is_gone() {
    drive(async {
        let stage = Stage::new().await;
        let process = Process::start(1);
        let certs = CertDir::plain(&stage.ca.workload("shop", "waypoint"));
        let waypoint = process.add(certs, &stage.spec().http(VIP, all_to("app"))).await;
        let client = waypoint.connect(&stage.client()).await;
        let run = Run { waypoint, client };
        assert!(!says_close(&mut run.http().await).await);
        assert_eq!(run.waypoint.drain(MINUTE).await, 0);
        let instance = Arc::downgrade(run.waypoint.instance());
        drop(run);
        // Its workers go on.
        eventually("its memory is given back", || instance.strong_count() == 0).await;
        drop(process);
    });
}
