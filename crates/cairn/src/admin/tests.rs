#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::cli::LogFormat;
use crate::fleet::{Fleet, NewMesh};
use crate::load::{Configured, LoadSettings};
use cairn_identity::Identity;
use cairn_identity::dev::DevCa;
use cairn_proxy::{Placement, Workers};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Pages {
    admin: SocketAddr,
    metrics: SocketAddr,
    health: SocketAddr,
    readiness: Arc<Readiness>,
    quit: Arc<Notify>,
    _fleet: Fleet,
}

/// One mesh, config/minimal.yaml, and all three listeners.
async fn start() -> Pages {
    let yaml = include_bytes!("../../../../config/minimal.yaml");
    let config = cairn_xds::parse_bytes(cairn_xds::Format::Yaml, yaml).unwrap();
    let mut config = config.meshes.into_iter().next().unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    let telemetry = Telemetry::new(1);
    let workers = Workers::start(1, Placement::default()).unwrap();
    let delays = workers.delays();
    let mut fleet = Fleet::new(workers, Arc::clone(&telemetry));
    let ca = DevCa::new("cluster.local").unwrap();
    let id = ca.id("shop", "waypoint").unwrap();
    let identity = Identity::fixed(ca.issue(&id, Duration::from_secs(60)).unwrap());
    let resources = config.resources().clone();
    fleet.start(NewMesh { config, resources, identity, watch: None }).await.unwrap();

    let readiness = Arc::new(Readiness::waiting_for(["mesh slow".to_owned()]));
    let quit = Arc::new(Notify::new());
    let load = Configured {
        settings: LoadSettings::default(),
        workers: 1,
        delays,
        readiness: Arc::clone(&readiness),
        roster: fleet.roster(),
    };
    let admin = Arc::new(Admin {
        readiness: Arc::clone(&readiness),
        load: load.reporter(&telemetry),
        telemetry,
        roster: fleet.roster(),
        logging: Logging::start(LogFormat::Text, "off").unwrap(),
        quit: Arc::clone(&quit),
    });
    let (a, m, h) = (listener().await, listener().await, listener().await);
    let address = |listener: &TcpListener| listener.local_addr().unwrap();
    let (admin_at, metrics, health) = (address(&a), address(&m), address(&h));
    tokio::spawn(admin.serve_admin(a));
    tokio::spawn(admin.serve_metrics(m));
    tokio::spawn(admin.serve_health(h));
    Pages { admin: admin_at, metrics, health, readiness, quit, _fleet: fleet }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Status and body.
async fn ask(at: SocketAddr, method: &str, path: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    ask(at, "GET", path, "").await
}

#[tokio::test]
async fn every_page_of_the_index_is_there() {
    let pages = start().await;
    let (status, html) = get(pages.admin, "/").await;
    assert_eq!(status, 200);
    for (method, path, _) in PAGES {
        assert!(html.contains(path), "{path}");
        let wrong = if method == "GET" { "DELETE" } else { "PUT" };
        let (status, _) = ask(pages.admin, wrong, path, "").await;
        assert_eq!(status, 405, "{wrong} {path}");
        if method == "GET" {
            assert_ne!(get(pages.admin, path).await.0, 404, "{path}");
        }
    }
    assert_eq!(get(pages.admin, "/nowhere").await.0, 404);
}

#[tokio::test]
async fn config_shows_the_resources_and_no_key() {
    let pages = start().await;
    let (status, body) = get(pages.admin, "/config").await;
    assert_eq!(status, 200);
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    let mesh = &json["meshes"][0];
    assert_eq!(mesh["name"], "mesh");
    assert_eq!(mesh["id"], "spiffe://cluster.local/ns/shop/sa/waypoint");
    assert_eq!(mesh["destinations"][0]["addresses"][0], "10.96.0.10");
    assert_eq!(mesh["endpoints"][0]["endpoints"][0]["address"], "10.244.0.11:8080");
    assert!(!body.contains("PRIVATE"));
}

#[tokio::test]
async fn clusters_lists_endpoints_with_counters() {
    let pages = start().await;
    let (status, body) = get(pages.admin, "/clusters").await;
    assert_eq!(status, 200);
    for line in [
        "app::lb_policy::least_request",
        "app::10.244.0.11:8080::rq_total::0",
        "app::10.244.0.11:8080::health_flags::healthy",
        "app::10.244.0.11:8080::tunnel::10.244.0.11:15008",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} in {body}");
    }
}

#[tokio::test]
async fn logging_shows_and_refuses_nonsense() {
    let pages = start().await;
    assert_eq!(get(pages.admin, "/logging").await, (200, "off\n".to_owned()));
    let (status, body) = ask(pages.admin, "POST", "/logging?level=loud%3dloud", "").await;
    assert_eq!(status, 400);
    assert!(body.contains("loud=loud"), "{body}");
    assert_eq!(ask(pages.admin, "POST", "/logging", "").await.0, 400);
    assert_eq!(ask(pages.admin, "POST", "/logging?level=%zz", "").await.0, 400);
}

#[tokio::test]
async fn readiness_says_what_is_missing_on_every_listener() {
    let pages = start().await;
    let all = [
        (pages.admin, "/ready"),
        (pages.metrics, "/healthz/ready"),
        (pages.health, "/healthz/ready"),
    ];
    for (at, path) in all {
        let missing = (503, "waiting for mesh slow (starting)\n".to_owned());
        assert_eq!(get(at, path).await, missing);
    }
    pages.readiness.arrived("mesh slow");
    for (at, path) in all {
        assert_eq!(get(at, path).await, (200, "ready\n".to_owned()));
    }
    pages.readiness.drain();
    for (at, path) in all {
        assert_eq!(get(at, path).await, (503, "draining\n".to_owned()));
    }
    assert_eq!(get(pages.health, "/config").await.0, 404);
    assert_eq!(get(pages.metrics, "/quitquitquit").await.0, 404);
}

#[tokio::test]
async fn metrics_come_in_both_formats() {
    let pages = start().await;
    for (at, path) in [
        (pages.metrics, "/stats/prometheus"),
        (pages.metrics, "/metrics"),
        (pages.admin, "/stats/prometheus"),
    ] {
        let (status, body) = get(at, path).await;
        assert_eq!(status, 200);
        assert!(body.contains("istio_build"), "{body}");
        assert!(!body.contains("# EOF"));
    }
    let accept = "accept: application/openmetrics-text;version=1.0.0\r\n";
    let (_, body) = ask(pages.metrics, "GET", "/metrics", accept).await;
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn metrics_are_compressed_where_that_is_taken() {
    let pages = start().await;
    let accept = "accept-encoding: gzip\r\naccept: application/openmetrics-text\r\n";
    for (at, path) in [(pages.metrics, "/metrics"), (pages.admin, "/stats/prometheus")] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{accept}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let (head, body) = answer.split_at(end + 4);
        let head = String::from_utf8(head.to_vec()).unwrap();
        assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(body), &mut text).unwrap();
        assert!(text.contains("istio_build{") && text.ends_with("# EOF\n"), "{text}");
    }
}

#[tokio::test]
async fn only_a_post_of_a_person_quits() {
    let pages = start().await;
    assert_eq!(get(pages.admin, "/quitquitquit").await.0, 405);
    let (status, _) = ask(pages.admin, "POST", "/quitquitquit", "origin: http://evil\r\n").await;
    assert_eq!(status, 403);
    assert!(tokio::time::timeout(Duration::from_millis(20), pages.quit.notified()).await.is_err());
    assert_eq!(ask(pages.admin, "POST", "/quitquitquit", "").await.0, 200);
    pages.quit.notified().await;
}

#[test]
fn percent_escapes_are_undone_or_refused() {
    assert_eq!(percent_decoded("info%2Ccairn%3Ddebug+x").as_deref(), Some("info,cairn=debug x"));
    assert_eq!(percent_decoded("%2"), None);
    assert_eq!(percent_decoded("%ff"), None);
}
