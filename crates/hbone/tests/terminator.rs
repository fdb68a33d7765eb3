//! The terminator against raw HTTP/2 clients.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::time::{Duration, SystemTime};

use cairn_hbone::{Connect, MAX_CONCURRENT_STREAMS, ServeError, Target, TerminatorConfig};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{Identity, SpiffeId, TrustDomains};
use h2::Reason;
use http::{HeaderValue, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use harness::*;

fn by_host(connect: Connect) {
    match &connect.target {
        Target::Host { host, .. } if host == "denied" => {
            connect.refuse(StatusCode::FORBIDDEN, "policy");
        }
        Target::Host { host, .. } if host == "dropped" => drop(connect),
        Target::Host { .. } => connect.refuse(StatusCode::NOT_FOUND, "unknown"),
        Target::Addr(_) => echo(connect),
    }
}

#[tokio::test]
async fn every_request_is_answered() {
    let ca = ca();
    let server =
        Server::start(identity(&ca, "waypoint"), TerminatorConfig::default(), by_host).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    for (authority, status) in [
        ("10.0.0.1:80", 200),
        ("[2001:db8::1]:443", 200),
        ("denied:80", 403),
        ("unknown.default.svc.cluster.local:80", 404),
        ("10.0.0.1", 400),
        ("10.0.0.1:0", 400),
        ("10.0.0.1:65536", 400),
        ("user@10.0.0.1:80", 400),
        ("10.0.0.300:80", 400),
        ("-web:80", 400),
    ] {
        let answer = soon(client.status(connect_to(authority))).await.unwrap();
        assert_eq!(answer, status, "{authority}");
    }
    for method in [Method::GET, Method::POST, Method::OPTIONS] {
        let request =
            Request::builder().method(method).uri("http://10.0.0.1:80/").body(()).unwrap();
        assert_eq!(soon(client.status(request)).await.unwrap(), 400);
    }
    let error = soon(client.status(connect_to("dropped:80"))).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));

    assert_eq!(get(&server.counters.connects), 5);
    assert_eq!(get(&server.counters.connects_malformed), 9);
    assert_eq!(get(&server.counters.connects_refused), 2);
    assert_eq!(get(&server.counters.tunnels_opened), 2);
    eventually("tunnels closed", || get(&server.counters.tunnels_closed) == 2).await;
}

#[tokio::test]
async fn extended_connect_is_a_stream_error() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "waypoint")).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://10.0.0.1:80/")
        .extension(h2::ext::Protocol::from_static("websocket"))
        .body(())
        .unwrap();
    let error = soon(client.status(request)).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR));
    assert!(error.is_reset());
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
}

#[tokio::test]
async fn a_connect_carries_identity_addresses_and_headers() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let waypoint = identity(&ca, "waypoint");
    let server = Server::start(waypoint, TerminatorConfig::default(), on_connect).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let mut request = connect_to("Web.Default.svc.cluster.local:8080");
    for (name, value) in [
        ("baggage", "k8s.namespace.name=default,service.name=client"),
        ("forwarded", "for=\"10.77.0.1:39052\";host=web.default.svc.cluster.local"),
        ("traceparent", "00-0123-4567-00"),
        ("x-forwarded-network", "n2"),
        ("x-istio-source", "gateway"),
        ("x-spoofed-identity", "spiffe://cluster.local/ns/default/sa/admin"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    assert_eq!(soon(client.status(request)).await.unwrap(), 200);
    let tunnel = soon(tunnels.recv()).await.unwrap();
    assert_eq!(tunnel.target.to_string(), "web.default.svc.cluster.local:8080");
    assert_eq!(tunnel.peer.id, spiffe("client"));
    assert_eq!(tunnel.peer.local_id, spiffe("waypoint"));
    assert_eq!(tunnel.peer.local_addr, server.addr);
    assert_eq!(tunnel.peer.addr.ip(), server.addr.ip());
    assert_eq!(tunnel.headers.forwarded_for(), Some("10.77.0.1:39052".parse().unwrap()));
    assert_eq!(tunnel.headers.source().service.as_deref(), Some("client"));
    assert_eq!(tunnel.headers.traceparent.as_ref().unwrap(), "00-0123-4567-00");
    assert_eq!(tunnel.headers.x_forwarded_network.as_ref().unwrap(), "n2");
    assert_eq!(tunnel.headers.x_istio_source.as_ref().unwrap(), "gateway");
}

#[tokio::test]
async fn too_many_streams_are_refused_and_the_connection_stays() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let waypoint = identity(&ca, "waypoint");
    let server = Server::start(waypoint, TerminatorConfig::default(), on_connect).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;

    // All at once, before the client can know our SETTINGS.
    let most = MAX_CONCURRENT_STREAMS as usize;
    let opened: Vec<_> = (0..most + 5).map(|_| client.open(connect_to(TARGET)).unwrap()).collect();
    let (mut answers, mut bodies) = (Vec::new(), Vec::new());
    for (response, body) in opened {
        bodies.push(body);
        answers.push(soon(response).await);
    }
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!((accepted, refused.len()), (most, 5));
    assert!(refused.iter().all(|error| error.reason() == Some(Reason::REFUSED_STREAM)));

    for _ in 0..most {
        drop(soon(tunnels.recv()).await.unwrap());
    }
    drop(answers);
    drop(bodies);
    eventually("all closed", || get(&server.counters.tunnels_closed) == most as u64).await;
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
}

#[tokio::test]
async fn a_header_list_that_is_too_large_is_answered_with_431() {
    let ca = ca();
    let config = TerminatorConfig { max_header_list_size: 16 * 1024, ..Default::default() };
    let server = Server::start(identity(&ca, "waypoint"), config, echo).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let mut request = connect_to(TARGET);
    for at in 0..20 {
        let name = http::HeaderName::try_from(format!("x-{at}")).unwrap();
        request.headers_mut().insert(name, HeaderValue::from_str(&"v".repeat(1000)).unwrap());
    }
    assert_eq!(soon(client.status(request)).await.unwrap(), 431);
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
}

/// A client with a certificate that the server should not accept, and the reason that it counts.
fn bad_clients(ca: &DevCa) -> Vec<(&'static str, Identity)> {
    let id = ca.id("default", "client").unwrap();
    let issue =
        |options| Identity::fixed(ca.issue_pem(&id, options).unwrap().credentials().unwrap());
    let hour_ago = |hours: u64| SystemTime::now() - hours as u32 * HOUR;
    let foreign = SpiffeId::new("other.local", "default", "client").unwrap();
    let other_root = DevCa::new("cluster.local").unwrap();
    let mut stranger = other_root.issue_pem(&id, IssueOptions::default()).unwrap();
    // It trusts the server, the server does not trust it.
    stranger.roots = ca.root_pem().to_owned();
    vec![
        ("trust_domain", Identity::fixed(ca.issue(&foreign, HOUR).unwrap())),
        (
            "expired",
            issue(IssueOptions { ttl: HOUR, not_before: Some(hour_ago(2)), ..Default::default() }),
        ),
        (
            "not_yet_valid",
            issue(IssueOptions {
                not_before: Some(SystemTime::now() + HOUR),
                ..Default::default()
            }),
        ),
        ("wrong_purpose", issue(IssueOptions { client_auth: false, ..Default::default() })),
        ("unknown_issuer", Identity::fixed(stranger.credentials().unwrap())),
    ]
}

#[tokio::test]
async fn clients_are_refused_in_the_handshake_with_a_counted_reason() {
    let ca = ca();
    for (reason, client) in bad_clients(&ca) {
        let mut server = Server::echo(identity(&ca, "waypoint")).await;
        // In TLS 1.3 the client's handshake may be done before the server has looked at its certificate.
        if let Ok(mut tls) = tls(&client, &server).await {
            assert!(soon(tls.read_u8()).await.is_err(), "{reason}");
        }
        let end = soon(server.ended.recv()).await.unwrap();
        assert!(matches!(end, Err(ServeError::Refused(_))), "{reason}: {end:?}");
        let counted = failures(server.counters.handshake_failures());
        assert_eq!(counted, [(reason, 1)]);
        assert_eq!(get(&server.counters.handshakes), 0);
        assert_eq!(get(&server.counters.connections_closed), 1);
    }
}

#[tokio::test]
async fn clients_of_another_accepted_trust_domain_are_served() {
    let ca = ca();
    let waypoint = ca.issue(&spiffe("waypoint"), HOUR).unwrap();
    let domains = TrustDomains::new(["cluster.local", "other.local"]).unwrap();
    let server = Server::echo(Identity::new(waypoint, domains)).await;
    let foreign = SpiffeId::new("other.local", "default", "client").unwrap();
    let client = Identity::fixed(ca.issue(&foreign, HOUR).unwrap());
    let mut client = RawClient::connect(&client, &server).await;
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
}

#[tokio::test]
async fn a_client_without_a_certificate_and_plain_text_are_refused() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "waypoint")).await;

    let mut roots = rustls::RootCertStore::empty();
    for root in server.identity.current().roots() {
        roots.add(root.clone()).unwrap();
    }
    let bare = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .dangerous()
    .with_custom_certificate_verifier(std::sync::Arc::new(AnyServer))
    .with_no_client_auth();
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(server.addr.ip().into());
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(bare));
    if let Ok(mut tls) = connector.connect(name, tcp).await {
        assert!(soon(tls.read_u8()).await.is_err());
    }
    assert!(matches!(soon(server.ended.recv()).await.unwrap(), Err(ServeError::Refused(_))));

    let mut plain = TcpStream::connect(server.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(matches!(soon(server.ended.recv()).await.unwrap(), Err(ServeError::Refused(_))));

    drop(TcpStream::connect(server.addr).await.unwrap());
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::HandshakeClosed(_))), "{end:?}");

    let counted = failures(server.counters.handshake_failures());
    assert_eq!(counted, [("no_certificate", 1), ("handshake", 1), ("closed", 1)]);
}

#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn a_silent_client_is_cut_before_tls_and_before_the_preface() {
    let ca = ca();
    let config =
        TerminatorConfig { handshake_timeout: Duration::from_millis(200), ..Default::default() };
    let mut server = Server::start(identity(&ca, "waypoint"), config, echo).await;

    let silent = TcpStream::connect(server.addr).await.unwrap();
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::HandshakeTimeout)), "{end:?}");
    drop(silent);

    let client = identity(&ca, "client");
    let mut half = tls(&client, &server).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::HandshakeTimeout)), "{end:?}");

    let mut garbage = tls(&client, &server).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::Preface(_))), "{end:?}");

    let counted = failures(server.counters.handshake_failures());
    assert_eq!(counted, [("timeout", 2), ("preface", 1)]);
}

#[tokio::test]
async fn drain_lets_tunnels_finish_and_takes_no_more() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "waypoint")).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let (response, mut body) = client.open(connect_to(TARGET)).unwrap();
    let mut recv = soon(response).await.unwrap().into_body();

    server.drain.lock().unwrap().start();
    let error = soon(async {
        loop {
            match client.status(connect_to(TARGET)).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(error.is_go_away() && error.reason() == Some(Reason::NO_ERROR), "{error}");

    body.send_data("still works".into(), true).unwrap();
    let mut echoed = Vec::new();
    while let Some(chunk) = soon(recv.data()).await {
        echoed.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(echoed, b"still works");
    soon(server.ended.recv()).await.unwrap().unwrap();
    soon(client.driver).await.unwrap().unwrap();

    // A connection that comes during the drain is told at once, and ends at once.
    let _late = RawClient::connect(&identity(&ca, "client"), &server).await;
    soon(server.ended.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_cut() {
    let ca = ca();
    let config = TerminatorConfig {
        keepalive_interval: Duration::from_millis(20),
        keepalive_timeout: Duration::from_millis(100),
        ..Default::default()
    };
    let mut server = Server::start(identity(&ca, "waypoint"), config, echo).await;
    let mut client = tls(&identity(&ca, "client"), &server).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::KeepaliveTimeout)), "{end:?}");
    assert_eq!(get(&server.counters.keepalive_timeouts), 1);
}

#[tokio::test]
async fn a_rotated_identity_is_used_at_the_next_handshake() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "waypoint")).await;
    let client = identity(&ca, "client");
    let mut before = RawClient::connect(&client, &server).await;
    assert_eq!(soon(before.status(connect_to(TARGET))).await.unwrap(), 200);
    server.identity.publish(ca.issue(&spiffe("waypoint"), HOUR).unwrap()).unwrap();

    let serial = server.identity.current().serial.clone();
    let tls = tls(&client, &server).await.unwrap();
    let certificates = tls.get_ref().1.peer_certificates().unwrap();
    let seen = cairn_identity::PeerIdentity::from_certificates(certificates).unwrap();
    assert_eq!(seen.serial, serial);
    assert_eq!(soon(before.status(connect_to(TARGET))).await.unwrap(), 200);
}

#[tokio::test]
async fn the_connection_future_is_small() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "waypoint")).await;
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let terminator = cairn_hbone::Terminator::new(
        server.identity.clone(),
        TerminatorConfig::default(),
        Default::default(),
    );
    let future = terminator.serve(tcp, server.addr, server.drain.lock().unwrap().watch(), echo);
    assert!(size_of_val(&future) <= 6 * 1024, "{}", size_of_val(&future));
}
