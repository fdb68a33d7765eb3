//! The originator's pool against our terminator and against servers that misbehave.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cairn_hbone::{
    ConnectError, ConnectHeaders, Originator, OriginatorConfig, TerminatorConfig, TunnelStream,
};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{ExpectedPeers, Identity, PeerRefusal, SpiffeId, TrustDomains};
use h2::Reason;
use http::{HeaderValue, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use harness::*;

async fn echoes(stream: &mut TunnelStream) {
    stream.writer().write_chunk("ping".into()).await.unwrap();
    assert_eq!(soon(stream.reader().chunk()).await.unwrap().unwrap(), "ping");
}

async fn many(
    originator: &Originator,
    server: &Server,
    count: usize,
) -> Vec<Result<TunnelStream, ConnectError>> {
    let expected = expect(&server.identity);
    let connecting: Vec<_> = (0..count)
        .map(|_| {
            let (originator, expected, addr) = (originator.clone(), expected.clone(), server.addr);
            tokio::spawn(async move {
                originator.connect(addr, &expected, TARGET, &ConnectHeaders::default()).await
            })
        })
        .collect();
    let mut results = Vec::new();
    for task in connecting {
        results.push(soon(task).await.unwrap());
    }
    results
}

#[tokio::test]
async fn fifty_callers_share_one_dial() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    for stream in &mut many(&originator, &server, 50).await {
        echoes(stream.as_mut().unwrap()).await;
    }
    assert_eq!(server.accepted(), 1);
    assert_eq!(get(&originator.counters().dials), 1);
    assert_eq!(get(&originator.counters().tunnels_opened), 50);
    assert_eq!(originator.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_hundred_tunnels_fill_a_connection() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let mut streams = many(&originator, &server, 250).await;
    for stream in &mut streams {
        echoes(stream.as_mut().unwrap()).await;
    }
    assert_eq!(server.accepted(), 3);
    assert_eq!(originator.connections(), 3);

    // Ended tunnels free their places.
    drop(streams);
    for stream in &mut many(&originator, &server, 250).await {
        echoes(stream.as_mut().unwrap()).await;
    }
    assert_eq!(server.accepted(), 3);
    assert_eq!(get(&originator.counters().connects_retried), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn full_connections_are_waited_for() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let config = OriginatorConfig {
        max_streams_per_connection: 2,
        max_connections_per_peer: 2,
        ..Default::default()
    };
    let originator = originator(identity(&ca, "waypoint"), config);
    let mut streams: Vec<_> =
        many(&originator, &server, 4).await.into_iter().map(Result::unwrap).collect();
    let (waiting, addr, expected) = (originator.clone(), server.addr, expect(&server.identity));
    let waiting = tokio::spawn(async move {
        let mut all = Vec::new();
        for _ in 0..2 {
            let headers = ConnectHeaders::default();
            all.push(waiting.connect(addr, &expected, TARGET, &headers).await.unwrap());
        }
        all
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    streams.pop();
    streams.pop();
    for stream in &mut soon(waiting).await.unwrap() {
        echoes(stream).await;
    }
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn waiting_ends_with_the_connect_timeout() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let config = OriginatorConfig {
        max_streams_per_connection: 1,
        max_connections_per_peer: 1,
        connect_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    let originator = originator(identity(&ca, "waypoint"), config);
    let _only = connect(&originator, &server).await;
    let results = many(&originator, &server, 3).await;
    assert!(results.iter().all(|result| matches!(result, Err(ConnectError::Timeout))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_peers_limit_counts_too() {
    let ca = ca();
    let server = RawServer::start(identity(&ca, "server"), |builder| {
        builder.max_concurrent_streams(5);
    })
    .await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    // All at once, on a connection that is yet to be dialled.
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let (originator, server) = (originator.clone(), server.clone());
            tokio::spawn(async move { server.connect(&originator).await })
        })
        .collect();
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(soon(task).await.unwrap().unwrap());
    }
    for stream in &mut streams {
        echoes(stream).await;
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 3);
    assert_eq!(get(&originator.counters().connects_retried), 0);
}

/// A plain h2 server behind our TLS, for what the terminator never does.
#[derive(Clone)]
struct RawServer {
    addr: std::net::SocketAddr,
    expected: ExpectedPeers,
    accepted: Arc<AtomicUsize>,
}

impl RawServer {
    async fn start(
        identity: Identity,
        configure: impl Fn(&mut h2::server::Builder) + Send + 'static,
    ) -> Self {
        Self::answering(identity, configure, |_, mut respond, request| {
            if let Ok(send) = respond.send_response(Response::new(()), false) {
                tokio::spawn(echo_raw(send, request.into_body()));
            }
            true
        })
        .await
    }

    /// `answer` gets the number of the connection, and says whether the connection goes on.
    async fn answering(
        identity: Identity,
        configure: impl Fn(&mut h2::server::Builder) + Send + 'static,
        answer: impl FnMut(
            usize,
            h2::server::SendResponse<Bytes>,
            http::Request<h2::RecvStream>,
        ) -> bool
        + Clone
        + Send
        + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            expected: expect(&identity),
            accepted: Arc::default(),
        };
        let accepted = Arc::clone(&server.accepted);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let tls = TlsAcceptor::from(identity.server_config()).accept(tcp).await.unwrap();
                let mut builder = h2::server::Builder::new();
                configure(&mut builder);
                let mut answer = answer.clone();
                tokio::spawn(async move {
                    let mut connection = builder.handshake(tls).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        if !answer(number, respond, request) {
                            return;
                        }
                    }
                });
            }
        });
        server
    }

    async fn connect(&self, originator: &Originator) -> Result<TunnelStream, ConnectError> {
        let headers = ConnectHeaders::default();
        originator.connect(self.addr, &self.expected, TARGET, &headers).await
    }
}

async fn echo_raw(mut send: h2::SendStream<Bytes>, mut recv: h2::RecvStream) {
    while let Some(Ok(chunk)) = recv.data().await {
        let _ = recv.flow_control().release_capacity(chunk.len());
        if send.send_data(chunk, false).is_err() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

#[tokio::test]
async fn only_the_exact_identity_is_accepted() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let try_as = async |expected: &[SpiffeId]| {
        let expected = ExpectedPeers::new(expected.iter().cloned()).unwrap();
        let headers = ConnectHeaders::default();
        soon(originator.connect(server.addr, &expected, TARGET, &headers)).await
    };
    echoes(&mut try_as(&[spiffe("server")]).await.unwrap()).await;
    echoes(&mut try_as(&[spiffe("other"), spiffe("server")]).await.unwrap()).await;
    for wrong in [
        spiffe("server2"),
        spiffe("serve"),
        SpiffeId::new("cluster.local", "other", "server").unwrap(),
        SpiffeId::new("other.local", "default", "server").unwrap(),
    ] {
        let error = try_as(std::slice::from_ref(&wrong)).await.unwrap_err();
        let ConnectError::Tls(PeerRefusal::UnexpectedIdentity(seen)) = &error else {
            panic!("{wrong}: {error}");
        };
        assert_eq!(*seen, spiffe("server"));
        assert!(error.is_connect_failure());
    }
    // The pool never mixes expectations: one connection each.
    assert_eq!(originator.connections(), 2);
    assert_eq!(failures(originator.counters().dial_failures()), [("unexpected_identity", 4)]);
}

#[tokio::test]
async fn servers_with_bad_certificates_are_refused() {
    let ca = ca();
    let id = ca.id("default", "server").unwrap();
    let issue = |ca: &DevCa, options| {
        Identity::fixed(ca.issue_pem(&id, options).unwrap().credentials().unwrap())
    };
    let hours_ago = SystemTime::now() - 2 * HOUR;
    let other_root = DevCa::new("cluster.local").unwrap();
    for (reason, server) in [
        (
            "expired",
            issue(
                &ca,
                IssueOptions { ttl: HOUR, not_before: Some(hours_ago), ..Default::default() },
            ),
        ),
        ("wrong_purpose", issue(&ca, IssueOptions { server_auth: false, ..Default::default() })),
        ("unknown_issuer", issue(&other_root, IssueOptions::default())),
    ] {
        let server_identity = server;
        let acceptor = TlsAcceptor::from(server_identity.server_config());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            acceptor.accept(tcp).await.is_err()
        });
        let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
        let expected = ExpectedPeers::one(id.clone());
        let headers = ConnectHeaders::default();
        let error = soon(originator.connect(addr, &expected, TARGET, &headers)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(_)), "{reason}: {error}");
        assert_eq!(failures(originator.counters().dial_failures()), [(reason, 1)]);
        assert_eq!(originator.connections(), 0);
        assert!(soon(accepting).await.unwrap());
    }
}

#[tokio::test]
async fn a_server_that_refuses_us_is_a_tls_error_without_retries() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "server")).await;
    let foreign = SpiffeId::new("other.local", "default", "waypoint").unwrap();
    let foreign = ca.issue(&foreign, HOUR).unwrap();
    let domains = TrustDomains::new(["cluster.local"]).unwrap();
    let originator = originator(Identity::new(foreign, domains), OriginatorConfig::default());
    let expected = expect(&server.identity);
    let headers = ConnectHeaders::default();
    let error =
        soon(originator.connect(server.addr, &expected, TARGET, &headers)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls(PeerRefusal::Handshake(_))), "{error}");
    assert!(soon(server.ended.recv()).await.unwrap().is_err());
    assert_eq!(server.accepted(), 1);
    assert_eq!(failures(originator.counters().dial_failures()), [("handshake", 1)]);
    assert_eq!(get(&originator.counters().connections_opened), 0);
}

#[tokio::test]
async fn a_refusal_keeps_the_connection() {
    let ca = ca();
    let server = Server::start(identity(&ca, "server"), TerminatorConfig::default(), {
        let mut count = 0;
        move |connect| {
            count += 1;
            match count {
                1 => connect.refuse(StatusCode::UNAUTHORIZED, "policy"),
                2 => connect.refuse(StatusCode::SERVICE_UNAVAILABLE, "backend"),
                _ => echo(connect),
            }
        }
    })
    .await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    for (status, is_connect_failure) in [(401, false), (503, true)] {
        let error = many(&originator, &server, 1).await.pop().unwrap().unwrap_err();
        let ConnectError::Refused { status: seen } = error else { panic!("{error}") };
        assert_eq!(seen.as_u16(), status);
        assert_eq!(error.is_connect_failure(), is_connect_failure);
    }
    echoes(&mut connect(&originator, &server).await).await;
    assert_eq!(server.accepted(), 1);
    assert_eq!(get(&originator.counters().connects_refused), 2);
}

#[tokio::test]
async fn the_connect_carries_authority_and_headers() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let config = TerminatorConfig::default();
    let server = Server::start(identity(&ca, "server"), config, on_connect).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let headers = ConnectHeaders {
        baggage: Some(HeaderValue::from_static("service.name=client")),
        x_istio_source: Some(HeaderValue::from_static("waypoint")),
        traceparent: Some(HeaderValue::from_bytes(&[b'a'; 9000]).unwrap()),
        ..Default::default()
    };
    let expected = expect(&server.identity);
    for (authority, seen) in [
        ("10.0.0.7:8080", "10.0.0.7:8080"),
        ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
        ("Web.default.svc.cluster.local:80", "web.default.svc.cluster.local:80"),
    ] {
        soon(originator.connect(server.addr, &expected, authority, &headers)).await.unwrap();
        let tunnel = soon(tunnels.recv()).await.unwrap();
        assert_eq!(tunnel.target.to_string(), seen);
        assert_eq!(tunnel.headers.baggage, headers.baggage);
        assert_eq!(tunnel.headers.x_istio_source, headers.x_istio_source);
        assert_eq!(tunnel.headers.traceparent, None);
    }
    let bad = originator.connect(server.addr, &expected, "10.0.0.7", &headers).await;
    assert!(matches!(bad, Err(ConnectError::Authority(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn goaway_in_use_fails_no_connect() {
    let ca = ca();
    let identity_of_server = identity(&ca, "server");
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let server = Server::echo(identity_of_server.clone()).await;
    let expected = expect(&identity_of_server);

    // The address must stay the same over restarts, so the listener is handed over.
    let (sender, mut servers) = tokio::sync::mpsc::channel(1);
    let mut held = connect(&originator, &server).await;
    let addr = server.addr;
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (originator, expected) = (originator.clone(), expected.clone());
            tokio::spawn(async move {
                for _ in 0..50 {
                    let headers = ConnectHeaders::default();
                    let mut stream =
                        originator.connect(addr, &expected, TARGET, &headers).await.unwrap();
                    echoes(&mut stream).await;
                    stream.writer().finish().unwrap();
                    assert!(soon(stream.reader().chunk()).await.is_none());
                }
            })
        })
        .collect();
    let rotating = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            server.drain();
        }
        let _ = sender.send(server).await;
    });
    for task in load {
        soon(task).await.unwrap();
    }
    soon(rotating).await.unwrap();
    // The tunnel that was open before the first GOAWAY still works.
    echoes(&mut held).await;
    let server = servers.recv().await.unwrap();
    assert!(server.accepted() > 1, "{}", server.accepted());
}

#[tokio::test]
async fn a_connect_that_meets_a_dying_connection_is_sent_again() {
    let ca = ca();
    // The first two connections end abruptly when the CONNECT comes.
    let server = RawServer::answering(
        identity(&ca, "server"),
        |_| {},
        |number, mut respond, request| {
            if number < 2 {
                return false;
            }
            let send = respond.send_response(Response::new(()), false).unwrap();
            tokio::spawn(echo_raw(send, request.into_body()));
            true
        },
    )
    .await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    echoes(&mut soon(server.connect(&originator)).await.unwrap()).await;
    assert_eq!(server.accepted.load(Ordering::SeqCst), 3);
    assert_eq!(get(&originator.counters().connects_retried), 2);
    assert_eq!(originator.connections(), 1);
}

#[tokio::test]
async fn retries_end() {
    let ca = ca();
    let server = RawServer::answering(identity(&ca, "server"), |_| {}, |_, _, _| false).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let error = soon(server.connect(&originator)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Reset(_)), "{error}");
    assert_eq!(server.accepted.load(Ordering::SeqCst), 3);

    let refusing = RawServer::answering(
        identity(&ca, "server"),
        |_| {},
        |_, mut respond, _| {
            respond.send_reset(Reason::REFUSED_STREAM);
            true
        },
    )
    .await;
    let error = soon(refusing.connect(&originator)).await.unwrap_err();
    let ConnectError::Reset(reset) = &error else { panic!("{error}") };
    assert_eq!(reset.reason(), Some(Reason::REFUSED_STREAM));

    // Another code is an answer, so it is not sent again.
    let before = get(&originator.counters().connects_retried);
    let resetting = RawServer::answering(
        identity(&ca, "server"),
        |_| {},
        |_, mut respond, _| {
            respond.send_reset(Reason::INTERNAL_ERROR);
            true
        },
    )
    .await;
    assert!(soon(resetting.connect(&originator)).await.is_err());
    assert_eq!(get(&originator.counters().connects_retried), before);
}

#[tokio::test]
async fn a_killed_server_is_redialled() {
    let ca = ca();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let again = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
    let id = identity(&ca, "server");
    let first = Server::start_on(
        TcpListener::from_std(listener).unwrap(),
        id.clone(),
        TerminatorConfig::default(),
        echo,
    );
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let mut stream = connect(&originator, &first).await;
    echoes(&mut stream).await;
    first.kill();
    let second = Server::start_on(again, id, TerminatorConfig::default(), echo);
    // Whether or not the death was noticed yet.
    echoes(&mut connect(&originator, &second).await).await;
    assert!(soon(stream.reader().chunk()).await.unwrap().is_err());
    assert_eq!(second.accepted(), 1);
    eventually("the dead one has left", || originator.connections() == 1).await;
}

#[tokio::test]
async fn idle_connections_are_released_and_used_ones_stay() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "server")).await;
    let config =
        OriginatorConfig { idle_timeout: Duration::from_millis(100), ..Default::default() };
    let originator = originator(identity(&ca, "waypoint"), config);
    let mut stream = connect(&originator, &server).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    echoes(&mut stream).await;
    assert_eq!(originator.connections(), 1);
    drop(stream);
    soon(server.ended.recv()).await.unwrap().unwrap();
    assert_eq!(originator.connections(), 0);
    assert_eq!(get(&originator.counters().idle_released), 1);
    eventually("closed", || get(&originator.counters().connections_closed) == 1).await;
    echoes(&mut connect(&originator, &server).await).await;
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn idle_connections_close_on_demand_and_with_the_originator() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let mut stream = connect(&originator, &server).await;
    assert_eq!(originator.close_idle(), 0);
    echoes(&mut stream).await;
    drop(stream);
    assert_eq!(originator.close_idle(), 1);
    soon(server.ended.recv()).await.unwrap().unwrap();

    // Dropping the originator ends connections when their tunnels end.
    let mut stream = connect(&originator, &server).await;
    drop(originator);
    echoes(&mut stream).await;
    drop(stream);
    soon(server.ended.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_listens() {
    let ca = ca();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let expected = ExpectedPeers::one(spiffe("server"));
    for _ in 0..2 {
        let headers = ConnectHeaders::default();
        let error = soon(originator.connect(addr, &expected, TARGET, &headers)).await.unwrap_err();
        let ConnectError::Dial(dial) = &error else { panic!("{error}") };
        assert_eq!(dial.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // A failed dial is not remembered.
    assert_eq!(get(&originator.counters().dials), 2);
}

#[tokio::test]
async fn silence_is_cut_before_tls_and_before_the_answer() {
    let ca = ca();
    let config =
        OriginatorConfig { connect_timeout: Duration::from_millis(300), ..Default::default() };
    let originator = originator(identity(&ca, "waypoint"), config);
    let expected = ExpectedPeers::one(spiffe("server"));
    let headers = ConnectHeaders::default();

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap();
    let error = soon(originator.connect(addr, &expected, TARGET, &headers)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout), "{error}");
    eventually("the dial ended", || {
        failures(originator.counters().dial_failures()) == [("timeout", 1)]
    })
    .await;

    let mute = RawServer::answering(identity(&ca, "server"), |_| {}, {
        let held = Arc::new(std::sync::Mutex::new(Vec::new()));
        move |_, respond, request| {
            held.lock().unwrap().push((respond, request));
            true
        }
    })
    .await;
    let error = soon(mute.connect(&originator)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout), "{error}");
    assert_eq!(originator.connections(), 1);
}

#[tokio::test]
async fn a_dial_survives_the_caller_that_began_it() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    let expected = expect(&server.identity);
    let headers = ConnectHeaders::default();
    {
        let mut first =
            std::pin::pin!(originator.connect(server.addr, &expected, TARGET, &headers));
        let once =
            std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx).is_pending()));
        assert!(once.await);
    }
    echoes(&mut connect(&originator, &server).await).await;
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_pool_serves_several_runtimes_and_outlives_one() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ca = ca();
    let backend =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = Arc::new(backend.block_on(Server::echo(identity(&ca, "server"))));
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());

    // Both use the connection that the first one dialled and drives.
    let first = std::thread::spawn({
        let (originator, server) = (originator.clone(), Arc::clone(&server));
        let (ready, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let second = std::thread::spawn({
            let (originator, server) = (originator.clone(), Arc::clone(&server));
            move || {
                wait.recv().unwrap();
                runtime().block_on(async {
                    let mut stream = connect(&originator, &server).await;
                    echoes(&mut stream).await;
                });
            }
        });
        move || {
            runtime().block_on(async {
                let mut stream = connect(&originator, &server).await;
                echoes(&mut stream).await;
                tokio::task::spawn_blocking(move || {
                    ready.send(()).unwrap();
                    second.join().unwrap();
                })
                .await
                .unwrap();
                echoes(&mut stream).await;
            });
        }
    });
    first.join().unwrap();
    assert_eq!(server.accepted(), 1);

    // Its runtime is gone, and the connection with it.
    assert_eq!(originator.connections(), 0);
    runtime().block_on(async {
        echoes(&mut connect(&originator, &server).await).await;
    });
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn a_rotated_certificate_keeps_connections() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let ours = identity(&ca, "waypoint");
    let originator = originator(ours.clone(), OriginatorConfig::default());
    let mut before = connect(&originator, &server).await;
    ours.publish(ca.issue(&spiffe("waypoint"), HOUR).unwrap()).unwrap();
    echoes(&mut connect(&originator, &server).await).await;
    echoes(&mut before).await;
    assert_eq!(server.accepted(), 1);

    // Another identity has connections of its own.
    ours.publish(ca.issue(&spiffe("other"), HOUR).unwrap()).unwrap();
    echoes(&mut connect(&originator, &server).await).await;
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_leaves_the_pool() {
    let ca = ca();
    let config = OriginatorConfig {
        keepalive_interval: Duration::from_millis(20),
        keepalive_timeout: Duration::from_millis(100),
        ..Default::default()
    };
    let server = identity(&ca, "server");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server.server_config());
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut sink = [0; 1024];
        while matches!(tls.read(&mut sink).await, Ok(n) if n > 0) {}
        // No second connection: the retry fails.
    });
    let originator = originator(identity(&ca, "waypoint"), config);
    let headers = ConnectHeaders::default();
    let error =
        soon(originator.connect(addr, &expect(&server), TARGET, &headers)).await.unwrap_err();
    assert!(error.is_connect_failure(), "{error}");
    assert_eq!(get(&originator.counters().keepalive_timeouts), 1);
    assert_eq!(originator.connections(), 0);
}

#[tokio::test]
async fn keys_do_not_pile_up() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "server")).await;
    let originator = originator(identity(&ca, "waypoint"), OriginatorConfig::default());
    for number in 0..200 {
        let expected =
            ExpectedPeers::new([spiffe("server"), spiffe(&format!("other-{number}"))]).unwrap();
        let headers = ConnectHeaders::default();
        let stream = soon(originator.connect(server.addr, &expected, TARGET, &headers)).await;
        drop(stream.unwrap());
        originator.close_idle();
    }
    assert_eq!(originator.connections(), 0);
    eventually("all closed", || get(&server.counters.connections_closed) == 200).await;
}
