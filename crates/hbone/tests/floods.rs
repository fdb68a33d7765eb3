//! Peers that misbehave: bounded memory, and the others keep being served.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use cairn_hbone::{
    ConnectHeaders, OriginatorConfig, ServeError, TerminatorConfig, TunnelWriter, reset_reason,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use harness::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
const PRIORITY: &[u8] = &[0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
const UNKNOWN: &[u8] = &[0, 0, 0, 0xbb, 0, 0, 0, 0, 0];

async fn bystander(ca: &cairn_identity::dev::DevCa, server: &Server) -> RawClient {
    let mut client = RawClient::connect(&identity(ca, "bystander"), server).await;
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
    client
}

#[tokio::test]
async fn floods_of_control_frames_cut_the_connection_alone() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "waypoint")).await;
    let mut bystander = bystander(&ca, &server).await;
    let client = identity(&ca, "client");
    for frame in [PING, SETTINGS, PRIORITY, UNKNOWN] {
        let (mut read, mut write) = tokio::io::split(tls(&client, &server).await.unwrap());
        write.write_all(PREFACE).await.unwrap();
        write.write_all(SETTINGS).await.unwrap();
        let reader = tokio::spawn(async move {
            let mut sink = vec![0; 1 << 16];
            while matches!(read.read(&mut sink).await, Ok(n) if n > 0) {}
        });
        let writer = tokio::spawn(async move {
            let many = frame.repeat(100);
            while write.write_all(&many).await.is_ok() {}
        });
        let end = soon(server.ended.recv()).await.unwrap();
        assert!(matches!(end, Err(ServeError::Flood)), "{end:?}");
        soon(reader).await.unwrap();
        soon(writer).await.unwrap();
        assert_eq!(soon(bystander.status(connect_to(TARGET))).await.unwrap(), 200);
    }
    assert_eq!(get(&server.counters.floods), 4);
}

#[tokio::test]
async fn a_flood_of_pings_without_reading_is_not_buffered() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "waypoint")).await;
    let mut bystander = bystander(&ca, &server).await;
    let mut flood = tls(&identity(&ca, "client"), &server).await.unwrap();
    flood.write_all(PREFACE).await.unwrap();
    flood.write_all(SETTINGS).await.unwrap();
    let many = PING.repeat(100);
    let writer = tokio::spawn(async move { while flood.write_all(&many).await.is_ok() {} });
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::Flood)), "{end:?}");
    soon(writer).await.unwrap();
    assert_eq!(soon(bystander.status(connect_to(TARGET))).await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn rapid_reset_cuts_the_connection_alone() {
    let ca = ca();
    let mut server = Server::echo(identity(&ca, "waypoint")).await;
    let mut bystander = bystander(&ca, &server).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let mut opened = 0_u64;
    let error = soon(async {
        loop {
            match client.open(connect_to(TARGET)) {
                Ok((response, mut body)) => {
                    opened += 1;
                    body.send_reset(h2::Reason::CANCEL);
                    drop(response);
                }
                Err(error) => return error,
            }
            if opened.is_multiple_of(50) {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::Flood)), "{end:?} after {opened}, {error}");
    assert_eq!(soon(bystander.status(connect_to(TARGET))).await.unwrap(), 200);
    let counters = &server.counters;
    eventually("no tunnel is left", || {
        get(&counters.tunnels_closed) + 2 >= get(&counters.tunnels_opened)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn short_tunnels_with_traffic_are_no_flood() {
    let ca = ca();
    let server = Server::echo(identity(&ca, "waypoint")).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    // Each ends with RST_STREAM, more of them than the burst that a flood is allowed.
    for _ in 0..30 {
        let mut open = Vec::new();
        for _ in 0..100 {
            let (response, mut body) = client.open(connect_to(TARGET)).unwrap();
            body.send_data(Bytes::from_static(b"x"), false).unwrap();
            open.push((response, body));
        }
        for (response, mut body) in open {
            let mut recv = soon(response).await.unwrap().into_body();
            assert_eq!(soon(recv.data()).await.unwrap().unwrap(), "x");
            body.send_reset(h2::Reason::CANCEL);
        }
    }
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
    assert_eq!(get(&server.counters.floods), 0);
}

#[tokio::test]
async fn more_refused_streams_than_fit_do_not_end_the_connection() {
    let ca = ca();
    let (on_connect, _tunnels) = tunnels();
    let waypoint = identity(&ca, "waypoint");
    let server = Server::start(waypoint, TerminatorConfig::default(), on_connect).await;
    let mut client = RawClient::connect(&identity(&ca, "client"), &server).await;
    let opened: Vec<_> = (0..3000).map(|_| client.open(connect_to(TARGET)).unwrap()).collect();
    let mut accepted = 0;
    let mut kept = Vec::new();
    for (response, body) in opened {
        if let Ok(response) = soon(response).await {
            accepted += 1;
            kept.push((response, body));
        }
    }
    assert_eq!(accepted, 200);
    assert!(!client.driver.is_finished());
}

/// Writes until the writer has to wait, and returns how much was taken.
async fn write_until_stuck(writer: &mut TunnelWriter) -> usize {
    let chunk = Bytes::from(vec![7; 16 * 1024]);
    let mut taken = 0;
    // Not more than a test may take, should nothing ever stop it.
    while taken < 1 << 30 {
        match timeout(Duration::from_secs(1), writer.write_chunk(chunk.clone())).await {
            Ok(written) => written.unwrap(),
            Err(_) => break,
        }
        taken += chunk.len();
    }
    taken
}

#[tokio::test]
async fn a_peer_that_does_not_take_its_data_stops_the_writer() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let waypoint = identity(&ca, "waypoint");
    let server = Server::start(waypoint, TerminatorConfig::default(), on_connect).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
    let mut client = RawClient::with(&identity(&ca, "client"), &server, &builder).await;
    let (response, _body) = client.open(connect_to(TARGET)).unwrap();
    let mut recv = soon(response).await.unwrap().into_body();
    let mut tunnel = soon(tunnels.recv()).await.unwrap();

    // The window is the bound: nothing waits beside it.
    let taken = write_until_stuck(tunnel.stream.writer()).await;
    assert!((1 << 20..=(1 << 20) + 16 * 1024).contains(&taken), "{taken}");

    // Other streams of the connection go on, and this one does when its data is taken.
    assert_eq!(soon(client.status(connect_to(TARGET))).await.unwrap(), 200);
    let reader = tokio::spawn(async move {
        let mut read = 0;
        while read < taken + (1 << 20) {
            let chunk = recv.data().await.unwrap().unwrap();
            recv.flow_control().release_capacity(chunk.len()).unwrap();
            read += chunk.len();
        }
    });
    soon(tunnel.stream.writer().write_chunk(vec![7; 2 << 20].into())).await.unwrap();
    soon(reader).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_socket_stops_the_writer() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let waypoint = identity(&ca, "waypoint");
    let server = Server::start(waypoint, TerminatorConfig::default(), on_connect).await;
    let mut bystander = RawClient::connect(&identity(&ca, "bystander"), &server).await;

    // By hand: SETTINGS with the largest window, the same for the connection, one CONNECT, and then nothing.
    let mut client = tls(&identity(&ca, "client"), &server).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]).await.unwrap();
    client.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0]).await.unwrap();
    client.write_all(&connect_frame(1)).await.unwrap();
    let mut tunnel = soon(tunnels.recv()).await.unwrap();

    // The send buffer and what the two sockets hold.
    let taken = write_until_stuck(tunnel.stream.writer()).await;
    assert!(taken < 32 << 20, "{taken}");
    assert_eq!(soon(bystander.status(connect_to(TARGET))).await.unwrap(), 200);
}

/// HEADERS of a CONNECT with literal header fields (RFC 7541 section 6.2.2).
fn connect_frame(stream: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":authority", TARGET)] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frame = vec![0, 0, block.len() as u8, 1, 4, 0, 0, 0, stream];
    frame.extend(block);
    frame
}

#[tokio::test]
async fn a_peer_that_sends_more_than_its_window_is_reset() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let config = TerminatorConfig { initial_stream_window: 65_535, ..Default::default() };
    let server = Server::start(identity(&ca, "waypoint"), config, on_connect).await;
    let mut client = tls(&identity(&ca, "client"), &server).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(SETTINGS).await.unwrap();
    // The acknowledgement of the server's SETTINGS.
    client.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await.unwrap();
    client.write_all(&connect_frame(1)).await.unwrap();
    let mut tunnel = soon(tunnels.recv()).await.unwrap();
    let mut frame = vec![0, 0x40, 0, 0, 0, 0, 0, 0, 1];
    frame.extend(vec![7; 16 * 1024]);
    for _ in 0..5 {
        client.write_all(&frame).await.unwrap();
    }
    // Nothing is taken before the violation, so no window is given back.
    let reset = soon(poll_fn(|cx| tunnel.stream.writer().poll_reset(cx))).await;
    assert_eq!(reset_reason(&reset), Some(h2::Reason::FLOW_CONTROL_ERROR), "{reset}");
    let mut read = 0;
    let error = loop {
        match soon(tunnel.stream.reader().chunk()).await.unwrap() {
            Ok(chunk) => read += chunk.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(read, 3 * 16 * 1024);
    assert_eq!(reset_reason(&error), Some(h2::Reason::FLOW_CONTROL_ERROR), "{error}");
}

#[tokio::test]
async fn unread_small_frames_are_bounded() {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let mut config = TerminatorConfig::default();
    config.flood.small_frame_bytes = 100 * 1024;
    let mut server = Server::start(identity(&ca, "waypoint"), config, on_connect).await;
    let mut client = tls(&identity(&ca, "client"), &server).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(SETTINGS).await.unwrap();
    client.write_all(&connect_frame(1)).await.unwrap();
    let _tunnel = soon(tunnels.recv()).await.unwrap();
    let many = [0, 0, 1, 0, 0, 0, 0, 0, 1, 7].repeat(100);
    let writer = tokio::spawn(async move { while client.write_all(&many).await.is_ok() {} });
    let end = soon(server.ended.recv()).await.unwrap();
    assert!(matches!(end, Err(ServeError::Flood)), "{end:?}");
    soon(writer).await.unwrap();
}

#[tokio::test]
async fn a_flooding_server_loses_its_connection() {
    let ca = ca();
    let waypoint = identity(&ca, "waypoint");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(waypoint.server_config());
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        tls.write_all(SETTINGS).await.unwrap();
        let many = PING.repeat(100);
        while tls.write_all(&many).await.is_ok() {}
    });
    let originator = originator(identity(&ca, "client"), OriginatorConfig::default());
    let (expected, headers) = (expect(&waypoint), ConnectHeaders::default());
    let connecting = originator.connect(addr, &expected, TARGET, &headers);
    // The listener takes no second connection, so the retry fails to dial.
    assert!(soon(connecting).await.unwrap_err().is_connect_failure());
    assert_eq!(get(&originator.counters().floods), 1);
}
