//! The judges judged: client, HBONE endpoint and backend against each other, without a waypoint.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::backend::{Backend, echoed};
use cairn_test_support::h2c::H2c;
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::hbone_client::{ConnectFailure, HboneClient};
use cairn_test_support::http1::Http1;
use cairn_test_support::metrics::{parse, sum};
use cairn_test_support::pki::{Ca, CertSpec, spiffe};
use cairn_test_support::raw_h2::{RawH2, kind};
use cairn_test_support::wait::{drive, eventually};
use cairn_test_support::websocket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn http1_through_a_tunnel() {
    drive(async {
        let ca = Ca::new();
        let app = Backend::new("app");
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        let client = ca.workload("web", "client");
        let hbone = HboneClient::connect(pod.addr, &client, &spiffe("shop", "app")).await.unwrap();
        let mut http = Http1::new(hbone.open("10.1.0.1:8080").await.unwrap());
        let echo = http.request("POST", "/echo?a=b", &[("X-One", "1")], b"body").await.unwrap();
        assert_eq!((echo.status, echo.backend()), (200, "app"));
        let json = echo.json();
        assert_eq!(json["method"], "POST");
        assert_eq!(json["path"], "/echo?a=b");
        assert_eq!(json["body"], "body");
        assert_eq!(echoed(&json, "x-one"), ["1"]);
        let chunked = http.get("/chunked").await.unwrap();
        assert_eq!(
            (chunked.text().as_str(), chunked.trailers.get("x-trailer")),
            ("one two three", Some("end"))
        );
        assert_eq!(http.get("/status/418").await.unwrap().status, 418);
        assert!(http.get("/reset").await.is_err());
        let http = Http1::new(hbone.open("10.1.0.1:8080").await.unwrap());
        let (mut socket, _) = websocket::upgrade(http, "/ws").await.unwrap().unwrap();
        socket.echo("hello").await.unwrap();
        socket.echo(&"long ".repeat(20_000)).await.unwrap();
        assert_eq!(pod.connections(), 1);
        assert_eq!(pod.connects().len(), 2);
        assert_eq!(pod.connects()[0].client, spiffe("web", "client"));
        assert_eq!(app.requests(), 5);
    });
}

#[test]
fn h2c_and_grpc_through_a_tunnel() {
    drive(async {
        let ca = Ca::new();
        let app = Backend::new("app");
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        let client = ca.workload("web", "client");
        let hbone = HboneClient::connect(pod.addr, &client, &spiffe("shop", "app")).await.unwrap();
        let h2c = H2c::connect(hbone.open("10.1.0.1:8080").await.unwrap()).await.unwrap();
        let body = vec![b'x'; 3 << 20];
        let sink = h2c.request("POST", "/sink", &[], &body).await.unwrap();
        assert_eq!(sink.text(), body.len().to_string());
        let bytes = h2c.get("/bytes?n=3000000").await.unwrap();
        assert_eq!(bytes.body.len(), 3_000_000);
        let reply = h2c.unary("/test.Echo/Unary", &[], b"hello").await.unwrap();
        assert_eq!((reply.grpc_status(), reply.headers_only), (Some(0), false));
        assert_eq!(reply.messages(), ["hello"]);
        let reply = h2c.unary("/test.Echo/Fail", &[("x-status", "9")], b"").await.unwrap();
        assert_eq!((reply.grpc_status(), reply.headers_only), (Some(9), true));
        let mut call = h2c.stream("/test.Echo/Bidi", &[]).await.unwrap();
        for text in ["one", "two"] {
            call.send(text.as_bytes()).await.unwrap();
            assert_eq!(call.recv().await.unwrap().unwrap(), text);
        }
        call.close_send().unwrap();
        assert_eq!(call.recv().await.unwrap(), None);
        assert_eq!(call.trailers().await.unwrap()["grpc-status"], "0");
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn tcp_ends_in_halves() {
    drive(async {
        let ca = Ca::new();
        let app = TcpApp::new(Behaviour::Count);
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        let client = ca.workload("web", "client");
        let hbone = HboneClient::connect(pod.addr, &client, &spiffe("shop", "app")).await.unwrap();
        let mut tunnel = hbone.open("10.1.0.1:9000").await.unwrap();
        tunnel.write_all(b"12345").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut text = String::new();
        tunnel.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "5 bytes");
    });
}

#[test]
fn an_endpoint_can_be_told_to_misbehave() {
    drive(async {
        let ca = Ca::new();
        let app = Backend::new("app");
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        let client = ca.workload("web", "client");
        let id = spiffe("shop", "app");
        let hbone = HboneClient::connect(pod.addr, &client, &id).await.unwrap();
        pod.refuse_next(503, 1);
        assert_eq!(hbone.open("10.1.0.1:8080").await.unwrap_err().status(), 503);
        let mut http = Http1::new(hbone.open("10.1.0.1:8080").await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 200);
        pod.goaway();
        for _ in 0..3 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
        eventually("the old connection takes no more", || hbone.is_closed() || app.requests() == 4)
            .await;
        let other = HboneClient::connect(pod.addr, &client, &id).await.unwrap();
        pod.stop_listening().await;
        assert!(matches!(
            HboneClient::connect(pod.addr, &client, &id).await,
            Err(ConnectFailure::Tcp(_))
        ));
        pod.drop_connections();
        eventually("the connection is dropped", || other.is_closed()).await;
        pod.listen_again();
        HboneClient::connect(pod.addr, &client, &id).await.unwrap();
    });
}

#[test]
fn bad_certificates_are_seen() {
    drive(async {
        let ca = Ca::new();
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &Backend::new("app")).await;
        let id = spiffe("shop", "app");
        let good = CertSpec::workload("web", "client");
        for bad in [
            good.clone().expired(),
            good.clone().not_yet_valid(),
            good.clone().without_client_auth(),
        ] {
            let failure = HboneClient::connect(pod.addr, &ca.issue(&bad), &id).await;
            assert!(matches!(failure, Err(ConnectFailure::Refused(_))), "{bad:?}");
        }
        let stranger = Ca::new().issue(&good).trusting(&ca);
        assert!(HboneClient::connect(pod.addr, &stranger, &id).await.is_err());
        let wrong =
            HboneClient::connect(pod.addr, &ca.issue(&good), &spiffe("shop", "other")).await;
        assert!(matches!(wrong, Err(ConnectFailure::Tls(_))));
    });
}

#[test]
fn frames_can_be_written_by_hand() {
    drive(async {
        let ca = Ca::new();
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &Backend::new("app")).await;
        let config = ca.workload("web", "client").hbone_client(&spiffe("shop", "app"));
        let mut raw = RawH2::connect(pod.addr, config).await.unwrap();
        raw.preface(&[]).await.unwrap();
        raw.open(1, "10.1.0.1:8080").await.unwrap();
        assert_eq!(raw.answer(1).await.unwrap().status(), Some(200));
        for (stream, status) in [(3, 401), (5, 403), (7, 429), (9, 503), (11, 400)] {
            pod.refuse_next(status, 1);
            raw.open(stream, "10.1.0.1:8080").await.unwrap();
            assert_eq!(raw.answer(stream).await.unwrap().status(), Some(status));
        }
        raw.frame(kind::DATA, 0, 1, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let data = raw.find(|frame| frame.kind == kind::DATA && frame.stream == 1).await.unwrap();
        assert!(data.payload.starts_with(b"HTTP/1.1 200"));
    });
}

#[test]
fn metrics_are_read() {
    let page = "# HELP a b\na_total{x=\"1\",y=\"q\\\"uote\"} 3\na_total{x=\"2\",y=\"\"} 4\nb 5.5\n";
    let samples = parse(page);
    assert_eq!(sum(&samples, "a_total", &[]), 7.0);
    assert_eq!(sum(&samples, "a_total", &[("y", "q\"uote")]), 3.0);
    assert_eq!(sum(&samples, "b", &[]), 5.5);
}

#[test]
fn goaway_of_the_backend_loses_nothing_that_it_took() {
    drive(async {
        let ca = Ca::new();
        let app = Backend::new("app");
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        let client = ca.workload("web", "client");
        let hbone = HboneClient::connect(pod.addr, &client, &spiffe("shop", "app")).await.unwrap();
        for _ in 0..20 {
            let h2c = H2c::connect(hbone.open("10.1.0.1:8080").await.unwrap()).await.unwrap();
            let requests: Vec<_> = (0..6)
                .map(|_| {
                    let h2c = h2c.clone();
                    tokio::spawn(async move {
                        let mut done = 0;
                        while let Ok((response, _)) = h2c.start("GET", "/echo", &[], true).await {
                            match cairn_test_support::h2c::collect(response).await {
                                Ok(_) => done += 1,
                                Err(error) if error.is_go_away() => break,
                                Err(error) => panic!("{error:?} after {done}"),
                            }
                        }
                        done
                    })
                })
                .collect();
            let before = app.requests();
            eventually("the load runs", || app.requests() > before + 50).await;
            app.close_idle();
            for request in requests {
                assert!(request.await.unwrap() > 0);
            }
        }
    });
}
