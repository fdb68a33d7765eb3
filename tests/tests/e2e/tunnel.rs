//! CONNECT: what it may name, what is answered, and who may ask.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::backend::{Backend, echoed};
use cairn_test_support::config::{all_to, hbone, rbac_policy};
use cairn_test_support::hbone_client::{ClientOptions, HboneClient, OpenFailure};
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::{Ca, Cert, CertSpec, serial, uris};
use cairn_test_support::raw_h2::{RawH2, kind};
use cairn_test_support::stage::{POD, Stage, TCP_VIP, VIP, app_id, waypoint_id};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{drive, eventually, within};
use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn a_known_address_is_accepted() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let echo = http.get("/hello").await.unwrap();
        assert_eq!((echo.status, echo.backend()), (200, "app"));
        let connects = stage.pod.connects();
        assert_eq!(connects[0].authority, POD);
        assert_eq!(connects[0].client, waypoint_id());
        assert_eq!(uris(&run.client.server_cert), [waypoint_id()]);
    });
}

#[test]
fn the_answer_to_connect_does_not_wait_for_the_endpoint() {
    drive(async {
        let stage = Stage::new().await;
        stage.pod.hold_connects(true);
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = within("CONNECT is answered", run.http()).await;
        stage.pod.hold_connects(false);
        assert_eq!(http.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn hosts_and_ipv6_are_accepted() {
    drive(async {
        let stage = Stage::new().await;
        let chain = |routes| json!({ "routes": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] } });
        let spec = stage
            .spec()
            .destination(json!({
                "name": "host", "hosts": ["app.shop.svc.cluster.local"], "port": 80, "http": chain(all_to("app")),
            }))
            .destination(json!({
                "name": "v6", "addresses": ["fd00::10"], "port": 80, "http": chain(all_to("app")),
            }))
            .destination(json!({
                "name": "workload", "addresses": ["10.2.0.0/24"], "http": chain(all_to("app")),
            }));
        let run = stage.run(&spec).await;
        for authority in [
            "app.shop.svc.cluster.local:80",
            "APP.shop.svc.cluster.LOCAL:80",
            "[fd00::10]:80",
            "[fd00:0:0:0:0:0:0:10]:80",
            "10.2.0.7:1",
            "10.2.0.255:65535",
        ] {
            let mut http = run.http_to(authority).await;
            assert_eq!(http.get("/").await.unwrap().status, 200, "{authority}");
        }
    });
}

#[test]
fn what_is_unknown_gets_404() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app")).destination(json!({
            "name": "everything", "addresses": ["0.0.0.0", "::"], "port": 80, "tcp": { "clusters": [{ "name": "app" }] },
        }));
        let run = stage.run(&spec).await;
        for authority in [
            "10.96.0.99:80",
            "10.96.0.10:81",
            "10.96.0.10:15008",
            "app.shop.svc.cluster.local:80",
            "[fd00::10]:80",
            "0.0.0.0:80",
            "[::]:80",
        ] {
            let failure = within(authority, run.client.open(authority)).await.unwrap_err();
            assert_eq!(failure.status(), 404, "{authority}: {failure:?}");
        }
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn what_is_malformed_gets_400() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        // The second column: so broken that HTTP/2 itself may call it malformed.
        for (authority, h2_may_reset) in [
            ("10.96.0.10", false),
            ("10.96.0.10:99999", false),
            ("10.96.0.10:080x", true),
            ("10.96.0.10:", false),
            ("app.shop.svc.cluster.local", false),
            (":80", true),
            ("10.96.0.10:80:80", true),
            ("fd00::10:80", true),
            ("[fd00::10:80", true),
            ("[10.96.0.10]:80", true),
            ("user@10.96.0.10:80", true),
            ("10.96.0.10:80/path", true),
            ("10.96.0.10:80?query", true),
            ("http://10.96.0.10:80", true),
            ("10.96.0.10 :80", true),
            ("10.96.0.10:80,10.96.0.11:80", true),
            ("10.96.0.10:-1", true),
            ("10.96.0.10:+80", true),
            ("10.96.0.010:80", false),
            ("", true),
        ] {
            let mut raw = RawH2::connect(run.waypoint.addr, tls.clone()).await.unwrap();
            raw.preface(&[]).await.unwrap();
            raw.open(1, authority).await.unwrap();
            let answer = within(authority, raw.answer(1)).await.unwrap();
            let refused = match answer.kind {
                kind::HEADERS => {
                    matches!(answer.status(), Some(400))
                        || authority == "10.96.0.010:80" && answer.status() == Some(404)
                }
                kind::RST_STREAM => h2_may_reset,
                _ => false,
            };
            assert!(refused, "{authority:?}: {answer:?} {:?}", answer.status());
            // The connection and its other streams are none the worse.
            raw.open(3, VIP).await.unwrap();
            let answer = within(authority, raw.answer(3)).await.unwrap();
            assert_eq!(answer.status(), Some(200), "after {authority:?}: {answer:?}");
        }
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn other_methods_and_extended_connect_are_refused() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        for (stream, method) in [(1, "GET"), (3, "POST"), (5, "OPTIONS")] {
            let fields =
                [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", VIP)];
            raw.headers(stream, &fields, true).await.unwrap();
            let answer = within(method, raw.answer(stream)).await.unwrap();
            assert_eq!(answer.kind, kind::HEADERS, "{method}: {answer:?}");
            // Later ones may repeat the status out of the dynamic table.
            assert!(stream > 1 || answer.status() == Some(400), "{answer:?}");
        }
        let fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", VIP),
        ];
        raw.headers(7, &fields, false).await.unwrap();
        let answer = within("extended CONNECT", raw.answer(7)).await.unwrap();
        assert_ne!(answer.status(), Some(200), "{answer:?}");
        assert_eq!(stage.app.requests(), 0);
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_refusal_by_policy_is_403() {
    drive(async {
        let stage = Stage::new().await;
        let policy = rbac_policy(
            "ALLOW",
            json!(["any"]),
            json!([{ "authenticated": { "exact": "spiffe://cluster.local/ns/web/sa/other" } }]),
        );
        let spec = stage.spec().destination(json!({
            "name": "guarded", "addresses": ["10.96.0.10"], "port": 80,
            "connection": { "rbac": [policy] },
            "http": { "routes": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": all_to("app") }] } },
        }));
        let run = stage.run(&spec).await;
        let failure = run.client.open(VIP).await.unwrap_err();
        assert_eq!(failure.status(), 403, "{failure:?}");
        let other = run.waypoint.connect(&stage.ca.workload("web", "other")).await;
        let mut http = Http1::new(other.open(VIP).await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn headers_of_connect_are_passed_on_to_the_endpoint() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let baggage =
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=web,k8s.deployment.name=client";
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let headers = [
            ("baggage", baggage),
            ("forwarded", "for=\"10.77.0.1:39052\";host=app.shop.svc.cluster.local"),
            ("traceparent", traceparent),
            ("x-unknown", "dropped"),
        ];
        let (tunnel, _) = run.client.open_with(VIP, &headers).await.unwrap();
        let echo = Http1::new(tunnel).get("/").await.unwrap();
        assert!(echoed(&echo.json(), "baggage").is_empty(), "that is not for the application");
        let connect = stage.pod.connects().pop().unwrap();
        assert_eq!(connect.headers["baggage"], baggage);
        assert_eq!(connect.headers["traceparent"], traceparent);
        assert!(connect.headers.contains_key("forwarded"));
        assert!(!connect.headers.contains_key("x-unknown"));
    });
}

#[test]
fn two_hundred_tunnels_fit_on_a_connection() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let tunnels: Vec<H2Stream> = join_all((0..200).map(|_| run.tunnel(VIP))).await;
        let answers = join_all(tunnels.into_iter().map(|tunnel| async {
            let mut http = Http1::new(tunnel);
            let status = http.get("/").await.unwrap().status;
            (status, http)
        }))
        .await;
        assert!(answers.iter().all(|(status, _)| *status == 200));
        assert_eq!(stage.app.requests(), 200);
    });
}

#[test]
fn early_bytes_are_not_lost() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let tls = stage.client().hbone_client(&waypoint_id());
        let mut raw = RawH2::connect(run.waypoint.addr, tls).await.unwrap();
        raw.preface(&[]).await.unwrap();
        raw.open(1, VIP).await.unwrap();
        raw.frame(kind::DATA, 0, 1, b"GET /early-bytes HTTP/1.1\r\nHost: app.test\r\n\r\n")
            .await
            .unwrap();
        let data = within("an answer", raw.find(|frame| frame.kind == kind::DATA)).await.unwrap();
        assert!(data.payload.starts_with(b"HTTP/1.1 200"), "{data:?}");
        assert_eq!(stage.app.count("/early-bytes"), 1);
    });
}

#[test]
fn a_tunnel_outlives_the_tls_clients_small_windows() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let options = ClientOptions {
            stream_window: 16 << 10,
            connection_window: 65_535,
            max_frame_size: 16 << 10,
            ..ClientOptions::default()
        };
        let tls = stage.client().hbone_client(&waypoint_id());
        let narrow = HboneClient::connect_with(run.waypoint.addr, tls, options).await.unwrap();
        let mut http = Http1::new(narrow.open(VIP).await.unwrap());
        assert_eq!(http.get("/bytes?n=2000000").await.unwrap().body.len(), 2_000_000);
    });
}

/// A certificate that must be refused, and the reason that is counted.
fn unacceptable(ca: &Ca) -> Vec<(&'static str, Cert)> {
    let good = CertSpec::workload("web", "client");
    vec![
        ("expired", ca.issue(&good.clone().expired())),
        ("not_yet_valid", ca.issue(&good.clone().not_yet_valid())),
        ("wrong_purpose", ca.issue(&good.clone().without_client_auth())),
        ("trust_domain", ca.issue(&CertSpec::uri("spiffe://other.domain/ns/web/sa/client"))),
        ("unknown_issuer", Ca::new().issue(&good).trusting(ca)),
        ("no_spiffe_id", ca.issue(&good.clone().without_identity())),
        ("no_spiffe_id", ca.issue(&CertSpec::uri("https://cluster.local/ns/web/sa/client"))),
        ("no_spiffe_id", ca.issue(&CertSpec::uri("spiffe://cluster.local/ns/web"))),
        ("no_spiffe_id", ca.issue(&good.and_uri("spiffe://cluster.local/ns/shop/sa/admin"))),
    ]
}

#[test]
fn unacceptable_clients_are_refused_and_counted() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let refused = |reason: &str| {
            run.waypoint.counter("cairn_handshake_failures_total", &[("reason", reason)])
        };
        for (reason, cert) in unacceptable(&stage.ca) {
            let before = refused(reason);
            let failure = within(reason, run.waypoint.try_connect(&cert)).await;
            assert!(failure.is_err(), "{reason}: accepted");
            eventually(&format!("one more is counted for {reason}"), || {
                refused(reason) == before + 1
            })
            .await;
        }
        let before = refused("no_certificate");
        let anonymous = stage.client().anonymous_client(&waypoint_id());
        let failure =
            HboneClient::connect_with(run.waypoint.addr, anonymous, ClientOptions::default()).await;
        assert!(failure.is_err(), "no certificate: accepted");
        eventually("it is counted", || refused("no_certificate") == before + 1).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn tls_other_than_hbones_is_refused() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let client = stage.client();
        let id = waypoint_id();
        for (what, config) in [
            ("TLS 1.2", client.odd_client(&id, &["h2"], true)),
            ("ALPN http/1.1", client.odd_client(&id, &["http/1.1"], false)),
        ] {
            let failure =
                HboneClient::connect_with(run.waypoint.addr, config, ClientOptions::default());
            assert!(within(what, failure).await.is_err(), "{what} is accepted");
        }
    });
}

#[test]
fn the_certificate_is_the_one_of_the_files() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec()).await;
        let again = run.waypoint.connect(&stage.client()).await;
        assert_eq!(serial(&run.client.server_cert), serial(&again.server_cert));
    });
}

#[test]
fn a_pushed_destination_is_there_at_once_on_old_connections() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec()).await;
        assert_eq!(run.client.open(VIP).await.unwrap_err().status(), 404);
        run.waypoint.apply(&stage.spec().http(VIP, all_to("app")));
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        run.waypoint.apply(&stage.spec());
        assert_eq!(run.client.open(VIP).await.unwrap_err().status(), 404);
    });
}

#[test]
fn a_tunnel_that_is_reset_by_the_client_is_forgotten() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let spec = stage
            .spec()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .tcp(TCP_VIP, "tcp");
        let run = stage.run(&spec).await;
        let mut tunnel = run.tunnel(TCP_VIP).await;
        tunnel.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        tunnel.read_exact(&mut echo).await.unwrap();
        assert_eq!(pod.open_tunnels(), 1);
        drop(tunnel);
        eventually("the endpoint's tunnel ends too", || pod.open_tunnels() == 0).await;
        assert!(!matches!(run.client.open(TCP_VIP).await, Err(OpenFailure::H2(_))));
    });
}

#[test]
fn destinations_may_be_in_the_process() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let local = Backend::new("local");
        run.waypoint.serve_locally("snapshot.cairn:80", &local);
        for authority in ["snapshot.cairn:80", "SNAPSHOT.cairn:80"] {
            let mut http = run.http_to(authority).await;
            let response = http.get("/x/../y").await.unwrap();
            assert_eq!(
                (response.backend(), &response.json()["path"]),
                ("local", &json!("/x/../y"))
            );
        }
        assert_eq!(run.client.open("snapshot.cairn:81").await.unwrap_err().status(), 404);
        assert_eq!(run.http().await.get("/").await.unwrap().backend(), "app");
    });
}

#[test]
fn several_trust_domains_may_be_accepted() {
    drive(async {
        let stage = Stage::new().await;
        let other = "spiffe://other.domain/ns/web/sa/client";
        let policy =
            rbac_policy("ALLOW", json!(["any"]), json!([{ "authenticated": { "exact": other } }]));
        let spec = stage
            .spec()
            .field("trust_domains", json!(["cluster.local", "other.domain"]))
            .http_with(VIP, all_to("app"), json!({ "filters": [{ "rbac": policy }] }));
        let run = stage.run(&spec).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 403);
        let client = run.waypoint.connect(&stage.ca.issue(&CertSpec::uri(other))).await;
        let mut http = Http1::new(client.open(VIP).await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 200);
        let third = stage.ca.issue(&CertSpec::uri("spiffe://third.domain/ns/web/sa/client"));
        assert!(run.waypoint.try_connect(&third).await.is_err());
    });
}
