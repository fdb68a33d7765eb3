//! The bytes and the ends of a tunnel, our originator against our terminator.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use cairn_hbone::{
    Originator, OriginatorConfig, Probe, TerminatorConfig, Tunnel, TunnelReader, TunnelStream,
    reset_reason,
};
use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use harness::*;

const LARGE: usize = 8 << 20;

/// What must outlive the two streams.
struct Ends {
    originator: Originator,
    listener: Server,
    _tunnels: mpsc::Receiver<Tunnel>,
}

type Pair = (TunnelStream, TunnelStream, Ends);

async fn pair_with(terminator: TerminatorConfig, outer: OriginatorConfig) -> Pair {
    let ca = ca();
    let (on_connect, mut tunnels) = tunnels();
    let listener = Server::start(identity(&ca, "waypoint"), terminator, on_connect).await;
    let originator = originator(identity(&ca, "client"), outer);
    let client = connect(&originator, &listener).await;
    let server = soon(tunnels.recv()).await.unwrap().stream;
    (client, server, Ends { originator, listener, _tunnels: tunnels })
}

async fn pair() -> Pair {
    pair_with(TerminatorConfig::default(), OriginatorConfig::default()).await
}

async fn read_all(reader: &mut TunnelReader) -> io::Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(chunk) = soon(reader.chunk()).await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all.freeze())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn large_transfers_both_ways_at_once() {
    for batch in [true, false] {
        let terminator = TerminatorConfig { batch, ..Default::default() };
        let outer = OriginatorConfig { batch, ..Default::default() };
        let (client, server, ends) = pair_with(terminator, outer).await;
        let (up, down) = (pattern(LARGE, 1), pattern(LARGE, 2));
        let (mut client_reader, mut client_writer) = client.split();
        let (mut server_reader, mut server_writer) = server.split();
        let (sent_up, sent_down) = (up.clone(), down.clone());
        let uploading = tokio::spawn(async move {
            client_writer.write_chunk(sent_up).await.unwrap();
            client_writer.finish().unwrap();
        });
        let downloading = tokio::spawn(async move {
            server_writer.write_all(&sent_down).await.unwrap();
            server_writer.shutdown().await.unwrap();
        });
        let uploaded = tokio::spawn(async move { read_all(&mut server_reader).await.unwrap() });
        let mut downloaded = Vec::new();
        soon(client_reader.read_to_end(&mut downloaded)).await.unwrap();
        assert!(downloaded == down);
        assert!(soon(uploaded).await.unwrap() == up);
        soon(uploading).await.unwrap();
        soon(downloading).await.unwrap();
        drop(client_reader);
        assert_eq!(get(&ends.originator.counters().tunnels_closed), 1);
        eventually("the server's end", || get(&ends.listener.counters.tunnels_closed) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn small_windows_only_slow_it_down() {
    let terminator = TerminatorConfig {
        initial_stream_window: 1000,
        initial_connection_window: 70_000,
        max_frame_size: 0,
        max_send_buffer: 1000,
        ..Default::default()
    };
    let outer =
        OriginatorConfig { initial_stream_window: 777, max_send_buffer: 500, ..Default::default() };
    let (client, server, _ends) = pair_with(terminator, outer).await;
    tokio::spawn(echo_stream(server));
    let data = pattern(200_000, 3);
    let sent = data.clone();
    let (mut reader, mut writer) = client.split();
    tokio::spawn(async move {
        writer.write_chunk(sent).await.unwrap();
        writer.finish().unwrap();
    });
    assert!(read_all(&mut reader).await.unwrap() == data);
}

#[tokio::test]
async fn half_close_from_the_client() {
    let (mut client, mut server, _ends) = pair().await;
    client.writer().write_chunk("request".into()).await.unwrap();
    client.writer().finish().unwrap();
    client.writer().finish().unwrap();
    assert_eq!(read_all(server.reader()).await.unwrap(), "request");
    assert!(server.reader().is_end());
    // The other direction is open still.
    server.writer().write_chunk("late ".into()).await.unwrap();
    server.writer().write_chunk("answer".into()).await.unwrap();
    server.writer().finish().unwrap();
    assert_eq!(read_all(client.reader()).await.unwrap(), "late answer");
    let error = client.writer().write_chunk("more".into()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn half_close_from_the_server() {
    let (mut client, mut server, _ends) = pair().await;
    server.writer().write_chunk("banner".into()).await.unwrap();
    server.writer().finish().unwrap();
    assert_eq!(read_all(client.reader()).await.unwrap(), "banner");
    client.writer().write_chunk("upload".into()).await.unwrap();
    client.writer().finish().unwrap();
    assert_eq!(read_all(server.reader()).await.unwrap(), "upload");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_reset_arrives_with_its_code() {
    let (mut client, mut server, _ends) = pair().await;
    client.writer().reset(Reason::INTERNAL_ERROR);
    let error = read_all(server.reader()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(reset_reason(&error), Some(Reason::INTERNAL_ERROR));
    let error = server.writer().write_chunk("x".into()).await.unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::INTERNAL_ERROR));
    assert_eq!(server.reader().probe(), Probe::Closed);

    let (mut client, mut server, _ends) = pair().await;
    server.writer().reset(Reason::ENHANCE_YOUR_CALM);
    let error = read_all(client.reader()).await.unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn dropping_resets() {
    let (mut client, server, ends) = pair().await;
    drop(server);
    let error = read_all(client.reader()).await.unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::CANCEL));
    assert_eq!(get(&ends.listener.counters.tunnels_closed), 1);

    let (mut client, mut server, _ends) = pair().await;
    server.writer().write_chunk("partial".into()).await.unwrap();
    assert_eq!(soon(client.reader().chunk()).await.unwrap().unwrap(), "partial");
    drop(server);
    let error = read_all(client.reader()).await.unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::CANCEL));

    let (client, mut server, _ends) = pair().await;
    drop(client);
    let error = read_all(server.reader()).await.unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::CANCEL));
}

#[tokio::test]
async fn an_answer_without_reading_the_rest_is_a_clean_end() {
    // The server ends and drops without reading: RST_STREAM(NO_ERROR) after END_STREAM.
    let (mut client, mut server, _ends) = pair().await;
    client.writer().write_chunk("ignored".into()).await.unwrap();
    server.writer().write_chunk("answer".into()).await.unwrap();
    server.writer().finish().unwrap();
    drop(server);
    let reason = soon(poll_fn(|cx| client.writer().poll_reset(cx))).await;
    assert_eq!(reset_reason(&reason), Some(Reason::NO_ERROR));
    assert_eq!(reason.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(read_all(client.reader()).await.unwrap(), "answer");
}

#[tokio::test]
async fn a_waiting_writer_learns_of_the_reset() {
    let (client, mut server, _ends) = pair().await;
    let (client_reader, mut client_writer) = client.split();
    let stuck = tokio::spawn(async move {
        let result = client_writer.write_chunk(pattern(LARGE, 4)).await;
        drop(client_reader);
        result
    });
    assert!(soon(server.reader().chunk()).await.unwrap().is_ok());
    server.writer().reset(Reason::CANCEL);
    let error = soon(stuck).await.unwrap().unwrap_err();
    assert_eq!(reset_reason(&error), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_quiet_writer_learns_of_the_reset() {
    let (client, mut server, _ends) = pair().await;
    let (_reader, mut writer) = client.split();
    let waiting = tokio::spawn(async move { poll_fn(|cx| writer.poll_reset(cx)).await });
    tokio::task::yield_now().await;
    server.writer().reset(Reason::CANCEL);
    assert_eq!(reset_reason(&soon(waiting).await.unwrap()), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_dead_connection_is_an_error_on_both_halves() {
    let (mut client, server, ends) = pair().await;
    ends.listener.kill();
    assert!(soon(client.reader().chunk()).await.unwrap().is_err());
    assert!(soon(client.writer().write_chunk("x".into())).await.is_err());
    let error = soon(poll_fn(|cx| client.writer().poll_reset(cx))).await;
    assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
    drop(server);
}

#[tokio::test]
async fn probing_does_not_lose_bytes() {
    let (mut client, mut server, _ends) = pair().await;
    assert_eq!(client.reader().probe(), Probe::Idle);
    server.writer().write_chunk("early".into()).await.unwrap();
    let mut probe = Probe::Idle;
    eventually("readable", || {
        probe = client.reader().probe();
        probe != Probe::Idle
    })
    .await;
    assert_eq!(probe, Probe::Readable);
    assert_eq!(client.reader().probe(), Probe::Readable);
    assert!(!client.reader().is_end());
    let mut two = [0; 2];
    soon(client.read_exact(&mut two)).await.unwrap();
    assert_eq!(&two, b"ea");
    assert_eq!(client.reader().probe(), Probe::Readable);
    assert_eq!(soon(client.reader().chunk()).await.unwrap().unwrap(), "rly");
    assert_eq!(client.reader().probe(), Probe::Idle);
    server.writer().finish().unwrap();
    eventually("closed", || client.reader().probe() == Probe::Closed).await;
    assert!(client.reader().is_end());
    assert!(soon(client.reader().chunk()).await.is_none());
}

#[tokio::test]
async fn small_writes_leave_as_one_frame_per_flush() {
    let (mut client, mut server, _ends) = pair().await;
    for part in ["GET / HTTP/1.1\r\n", "host: web\r\n", "\r\n"] {
        client.write_all(part.as_bytes()).await.unwrap();
    }
    let parts = [io::IoSlice::new(b"bo"), io::IoSlice::new(b""), io::IoSlice::new(b"dy")];
    assert!(client.is_write_vectored());
    assert_eq!(client.write_vectored(&parts).await.unwrap(), 4);
    client.flush().await.unwrap();
    let frame = soon(server.reader().chunk()).await.unwrap().unwrap();
    assert_eq!(frame, "GET / HTTP/1.1\r\nhost: web\r\n\r\nbody");

    // What was gathered goes before a chunk, and END_STREAM needs no flush.
    client.write_all(b"1").await.unwrap();
    client.writer().write_chunk("2".into()).await.unwrap();
    client.write_all(b"3").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(server.reader()).await.unwrap(), "123");
    assert!(client.write_all(b"4").await.is_err());
}

#[tokio::test]
async fn gathered_bytes_are_bounded() {
    let terminator = TerminatorConfig { initial_stream_window: 1000, ..Default::default() };
    let (client, mut server, _ends) = pair_with(terminator, Default::default()).await;
    let (mut reader, mut writer) = client.split();
    let data = pattern(1 << 20, 5);
    let mut taken = 0;
    // Nobody reads at the other end, and nobody flushes.
    loop {
        let (_, rest) = data.split_at(taken);
        let write = poll_fn(|cx| {
            let write = std::pin::Pin::new(&mut writer);
            Poll::Ready(AsyncWrite::poll_write(write, cx, rest))
        });
        match write.await {
            Poll::Ready(written) => taken += written.unwrap(),
            Poll::Pending => break,
        }
    }
    assert!((64 << 10..=160 << 10).contains(&taken), "{taken}");
    writer.finish().unwrap();
    assert!(read_all(server.reader()).await.unwrap() == data.split_at(taken).0);
    server.writer().finish().unwrap();
    assert!(read_all(&mut reader).await.unwrap().is_empty());
}

#[tokio::test]
async fn empty_chunks_send_nothing() {
    let (mut client, mut server, _ends) = pair().await;
    for _ in 0..1000 {
        client.writer().write_chunk(Bytes::new()).await.unwrap();
        client.flush().await.unwrap();
    }
    client.writer().write_chunk("x".into()).await.unwrap();
    assert_eq!(soon(server.reader().chunk()).await.unwrap().unwrap(), "x");
}

#[tokio::test]
async fn a_chunk_that_does_not_fit_goes_as_far_as_the_window() {
    let terminator = TerminatorConfig { initial_stream_window: 1000, ..Default::default() };
    let (mut client, mut server, _ends) = pair_with(terminator, Default::default()).await;
    // The peer's SETTINGS must have come.
    server.writer().write_chunk("hello".into()).await.unwrap();
    soon(client.reader().chunk()).await.unwrap().unwrap();
    let mut data = pattern(5000, 6);
    let expected = data.clone();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(client.writer().poll_write_chunk(&mut cx, &mut data).is_pending());
    assert_eq!(data.len(), 4000);
    let sending = async {
        poll_fn(|cx| client.writer().poll_write_chunk(cx, &mut data)).await.unwrap();
        client.writer().finish().unwrap();
    };
    let (received, ()) = soon(async { tokio::join!(read_all(server.reader()), sending) }).await;
    assert!(received.unwrap() == expected);
}

#[tokio::test]
async fn halves_join_again() {
    let (client, server, _ends) = pair().await;
    tokio::spawn(echo_stream(server));
    let (reader, writer) = client.split();
    let mut stream = TunnelStream::join(reader, writer);
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut back = [0; 5];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"hello");
    assert!(format!("{stream:?}").contains("TunnelStream"));
}
