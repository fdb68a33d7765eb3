//! Requests of all kinds, and what becomes of them.

use super::mesh::Client;
use super::stage::Stage;
use cairn_test_support::h2c::H2c;
use cairn_test_support::hbone_client::{HboneClient, OpenFailure};
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::Cert;
use cairn_test_support::wait::within;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Where services are.
#[derive(Clone)]
struct Map {
    vips: Vec<(&'static str, String)>,
    waypoint: SocketAddr,
}

impl Map {
    async fn of(stage: &Stage) -> Self {
        let vips = super::stage::SERVICES.map(|name| (name, stage.mesh.vip(name))).to_vec();
        Map { vips, waypoint: stage.hbone().await }
    }

    fn vip(&self, name: &str) -> &str {
        &self.vips.iter().find(|(known, _)| *known == name).unwrap().1
    }
}

/// One of each, with the answer that it must have.
pub async fn round(stage: &Stage) {
    one_of_each(&stage.client, &Map::of(stage).await).await;
}

async fn one_of_each(client: &Client, map: &Map) {
    for (service, path, status) in [
        ("app", "/", 200),
        ("shop", "/", 200),
        ("app", "/status/404", 404),
        ("app", "/status/500", 500),
        ("empty", "/", 503),
        ("dead", "/", 503),
        ("closed", "/", 403),
        ("odd", "/", 503),
    ] {
        let found = client.status(map.vip(service), path).await;
        assert_eq!(found, status, "{service} {path}");
    }
    let open = async |name: &str| {
        let tunnel = within("CONNECT", client.hbone.open(map.vip(name))).await;
        tunnel.unwrap_or_else(|error| panic!("{name}: {error:?}"))
    };
    let grpc = H2c::connect(open("rpc").await).await.unwrap();
    let answer = within("a call", grpc.unary("/test.Echo/Unary", &[], b"hello")).await.unwrap();
    assert_eq!(answer.grpc_status(), Some(0));
    let headers = [("x-status", "5")];
    let answer = within("a call", grpc.unary("/test.Echo/Fail", &headers, b"x")).await.unwrap();
    assert_eq!(answer.grpc_status(), Some(5));
    // Bytes are bytes: what carries TCP carries this too.
    let mut opaque = Http1::new(open("tcp").await);
    assert_eq!(within("bytes", opaque.get("/")).await.unwrap().status, 200);
    let mut stranger = TcpStream::connect(map.waypoint).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = within("no TLS", stranger.read_to_end(&mut Vec::new())).await;
    let nowhere = within("CONNECT", client.hbone.open("10.96.9.9:80")).await;
    assert!(
        matches!(nowhere, Err(OpenFailure::Status(status, _)) if status == 404),
        "an address of nobody"
    );
}

/// Keeps on until it is aborted, more and less in turns.
pub async fn start(stage: &Stage) -> JoinHandle<()> {
    let map = Map::of(stage).await;
    let cert = stage.mesh.cert("client");
    tokio::spawn(async move {
        let begin = Instant::now();
        loop {
            let client = connect(map.waypoint, &cert).await;
            for _ in 0..50 {
                one_of_each(&client, &map).await;
                let phase = begin.elapsed().as_secs_f64() / 40.0 * std::f64::consts::TAU;
                let requests = (20.0 * (1.2 - phase.cos())) as usize;
                let service = if phase.sin() > 0.3 { "shop" } else { "app" };
                for number in 0..requests {
                    let path = if number % 5 == 0 { "/bytes?n=20000" } else { "/" };
                    let name = if number % 3 == 0 { "app" } else { service };
                    client.status(map.vip(name), path).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
}

async fn connect(address: SocketAddr, cert: &Cert) -> Client {
    let id = super::mesh::waypoint_id();
    Client { hbone: HboneClient::connect(address, cert, &id).await.unwrap() }
}
