//! Requests to the very address that the client named, and endpoints about whom somebody has to be
//! asked first.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::backend::Backend;
use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::endpoint::Endpoint;
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::stage::{POD, Stage, TCP_VIP, VIP, app_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Gives the answer that is waited for.
type Answer = Box<dyn Fn() + Send + Sync>;

/// Every address of the loopback network, and one name, over `transport`.
fn direct(transport: &str, protocol: &str) -> MeshSpec {
    let routes = json!({ "virtual_hosts": [
        { "name": "all", "domains": ["*"], "routes": all_to("direct") },
    ] });
    direct_with(json!({ "http": { "routes": routes } }), transport, protocol)
}

fn direct_with(chains: Value, transport: &str, protocol: &str) -> MeshSpec {
    let mut destination = chains;
    destination["name"] = json!("direct");
    destination["addresses"] = json!(["127.0.0.0/8"]);
    destination["hosts"] = json!(["by.name"]);
    let cluster = json!({
        "name": "direct",
        "protocol": protocol,
        "original_destination": { "transport": transport, "loopback": true },
    });
    MeshSpec::new().destination(destination).field("clusters", json!([cluster]))
}

fn workload(ip: IpAddr) -> Value {
    json!({
        "addresses": [ip.to_string()], "name": "pod", "namespace": "shop",
        "service_account": "app", "trust_domain": "cluster.local", "workload_name": "app",
    })
}

/// An address of the loopback network that no other process of this test uses.
fn address(number: u8) -> IpAddr {
    let process = std::process::id();
    Ipv4Addr::new(127, (process >> 8) as u8, process as u8, number).into()
}

#[test]
fn a_plain_address_is_reached_and_pooled() {
    drive(async {
        for protocol in ["http1", "http2"] {
            let stage = Stage::new().await;
            let (one, two) = (Backend::new("one"), Backend::new("two"));
            let (at_one, at_two) = (Endpoint::plain(&one).await, Endpoint::plain(&two).await);
            let run = stage.run(&direct("plain", protocol)).await;
            for _ in 0..3 {
                for (endpoint, name) in [(&at_one, "one"), (&at_two, "two")] {
                    let response =
                        run.http_to(&endpoint.addr.to_string()).await.get("/").await.unwrap();
                    assert_eq!(response.backend(), name);
                }
                // A push of other things leaves the connections alone.
                run.waypoint.apply(&direct("plain", protocol).cluster("other", vec![]));
            }
            assert_eq!((at_one.connections(), at_two.connections()), (1, 1), "{protocol}");
        }
    });
}

#[test]
fn a_tunnel_expects_who_is_there() {
    drive(async {
        let stage = Stage::new().await;
        let (good, bad) = (address(1), address(2));
        let app = Backend::new("direct");
        let outer = |ip| SocketAddr::new(ip, 15008);
        let pod =
            HboneBackend::start_at(outer(good), &stage.ca.workload("shop", "app"), &app).await;
        let thief =
            HboneBackend::start_at(outer(bad), &stage.ca.workload("shop", "thief"), &app).await;
        let spec = direct("hbone", "http1").workload(workload(good));
        let run = stage.run(&spec).await;
        let named = SocketAddr::new(good, 8080).to_string();
        for _ in 0..2 {
            assert_eq!(run.http_to(&named).await.get("/").await.unwrap().backend(), "direct");
        }
        assert_eq!(app.connections(), 1);
        assert_eq!(pod.connects()[0].authority, named);

        // Unknown, then known as somebody else than it is.
        let named = SocketAddr::new(bad, 8080).to_string();
        let mut http = run.http_to(&named).await;
        let response = http.get("/").await.unwrap();
        let said = (response.status, response.text());
        assert_eq!(said, (503, "no healthy upstream".to_owned()));
        assert_eq!(thief.connections(), 0);
        let mut wrong = workload(bad);
        wrong["name"] = json!("thief");
        run.waypoint.apply(&spec.workload(wrong));
        assert_eq!(http.get("/").await.unwrap().status, 503);
        assert_eq!(thief.connects().len(), 0, "nothing was asked of it");
        assert_eq!(app.requests(), 2);
        eventually("both are recorded", || {
            run.waypoint.istio("istio_requests_total", &[("response_flags", "UH")]) == 1
                && run.waypoint.istio("istio_requests_total", &[("response_flags", "UF")]) == 1
        })
        .await;
    });
}

#[test]
fn a_name_is_no_address() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&direct("plain", "http1")).await;
        let response = run.http_to("by.name:80").await.get("/").await.unwrap();
        let said = (response.status, response.text());
        assert_eq!(said, (503, "no healthy upstream".to_owned()));
    });
}

#[test]
fn we_are_no_destination() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&direct("plain", "http1")).await;
        let ourselves = run.waypoint.addr.to_string();
        assert_eq!(run.http_to(&ourselves).await.get("/").await.unwrap().status, 503);
    });
}

#[test]
fn bytes_go_there_too() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let endpoint = Endpoint::plain(&app).await;
        let tcp = json!({ "tcp": { "clusters": [{ "name": "direct" }] } });
        let run = stage.run(&direct_with(tcp, "plain", "http1")).await;
        let mut tunnel = run.tunnel(&endpoint.addr.to_string()).await;
        tunnel.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        within("the echo", tunnel.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
        let mut nowhere = run.tunnel("by.name:80").await;
        let mut nothing = Vec::new();
        let _closed = within("the end", nowhere.read_to_end(&mut nothing)).await;
        assert!(nothing.is_empty());
    });
}

/// One HTTP and one TCP service whose pod has no identity, if it is not known.
fn services(stage: &Stage, known: bool) -> MeshSpec {
    let mut endpoint = hbone(&stage.pod, POD, &app_id());
    if !known {
        endpoint["identities"] = json!([]);
    }
    MeshSpec::new().cluster("app", vec![endpoint]).http(VIP, all_to("app")).tcp(TCP_VIP, "app")
}

#[test]
fn who_is_there_is_asked_and_waited_for() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&services(&stage, false)).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 503, "nobody can be asked");

        let asked: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
        let answer: Arc<Mutex<Option<Answer>>> = Arc::default();
        let (ask, reply) = (asked.clone(), answer.clone());
        run.waypoint.ask_for_identities(move |address| {
            ask.lock().unwrap().push(address);
            if let Some(reply) = &*reply.lock().unwrap() {
                reply();
            }
        });
        let response = within("it is given up", http.get("/")).await.unwrap();
        let said = (response.status, response.text());
        assert_eq!(said, (503, "no healthy upstream".to_owned()));
        let pod: SocketAddr = POD.parse().unwrap();
        assert_eq!(*asked.lock().unwrap(), [pod.ip()]);

        // The answer is there at once.
        let (known, unknown) = (services(&stage, true), services(&stage, false));
        *answer.lock().unwrap() = Some(Box::new(run.waypoint.publication(&known)));
        assert_eq!(http.get("/").await.unwrap().status, 200);
        assert_eq!(http.get("/").await.unwrap().status, 200);
        assert_eq!(asked.lock().unwrap().len(), 2, "what is known is not asked");
        run.waypoint.apply(&unknown);
        *answer.lock().unwrap() = Some(Box::new(run.waypoint.publication(&known)));
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        within("an answer", tunnel.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");

        // The answer comes later. A machine that stands still may take longer than the request waits.
        let mut status = 0;
        for _ in 0..20 {
            run.waypoint.apply(&unknown);
            let publish = Arc::new(run.waypoint.publication(&known));
            *answer.lock().unwrap() = Some(Box::new(move || {
                let publish = publish.clone();
                std::thread::spawn(move || publish());
            }));
            status = http.get("/").await.unwrap().status;
            if status == 200 {
                break;
            }
        }
        assert_eq!(status, 200);
    });
}

#[test]
fn an_unknown_workload_is_asked_for() {
    drive(async {
        let stage = Stage::new().await;
        let ip = address(3);
        let app = Backend::new("direct");
        let outer = SocketAddr::new(ip, 15008);
        let pod = HboneBackend::start_at(outer, &stage.ca.workload("shop", "app"), &app).await;
        let run = stage.run(&direct("hbone", "http1")).await;
        let known = run.waypoint.publication(&direct("hbone", "http1").workload(workload(ip)));
        run.waypoint.ask_for_identities(move |address| {
            assert_eq!(address, ip);
            known();
        });
        let named = SocketAddr::new(ip, 8080).to_string();
        assert_eq!(run.http_to(&named).await.get("/").await.unwrap().backend(), "direct");
        assert_eq!(pod.connects().len(), 1);
    });
}
