//! The HTTP/1.1 side of the backend.

use super::{Backend, Framing, PART, Recorded, Reply, pattern};
use crate::websocket::{ACCEPT, KEY, frame, opcode, read_frame};
use crate::wire::{Fields, Wire};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    backend: &Backend,
    io: S,
    head: &[u8],
    connection: u64,
) -> io::Result<()> {
    let mut wire = Wire::with_prefix(io, head);
    let mut closing = backend.inner.closing.subscribe();
    loop {
        let line = tokio::select! {
            line = wire.line() => line?,
            _ = closing.changed() => None,
        };
        let Some(line) = line else {
            return wire.io().shutdown().await;
        };
        let headers = wire.fields().await?;
        let mut parts = line.split(' ').map(str::to_owned);
        let mut seen = Recorded {
            method: parts.next().unwrap_or_default(),
            target: parts.next().unwrap_or_default(),
            authority: headers.get("host").unwrap_or_default().to_owned(),
            version: "HTTP/1.1",
            headers,
            body: Bytes::new(),
            body_len: 0,
            trailers: Fields::default(),
            connection,
        };
        if seen.headers.has_token("upgrade", "websocket") && !seen.path().starts_with("/status/") {
            backend.record(&seen);
            return websocket(backend, wire, &seen).await;
        }
        if seen.path() == "/early" {
            backend.record(&seen);
            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly";
            wire.send(reply).await?;
            wire.io().shutdown().await?;
            while wire.some().await.is_ok_and(|bytes| !bytes.is_empty()) {}
            return Ok(());
        }
        if seen.headers.has("expect") {
            if seen.path() == "/expect-refuse" {
                backend.record(&seen);
                let reply = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 7\r\nconnection: close\r\n\r\nrefused";
                wire.send(reply).await?;
                return wire.io().shutdown().await;
            }
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        body(&mut wire, &mut seen).await?;
        backend.record(&seen);
        let reply = backend
            .reply(&seen, async { while !matches!(wire.fill().await, Ok(0) | Err(_)) {} })
            .await;
        if !write(backend, &mut wire, &seen, reply).await? {
            return wire.io().shutdown().await;
        }
    }
}

async fn body<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    seen: &mut Recorded,
) -> io::Result<()> {
    let mut kept = BytesMut::new();
    let mut keep = |data: &[u8], total: &mut u64| {
        *total += data.len() as u64;
        let room = (1usize << 20).saturating_sub(kept.len()).min(data.len());
        kept.extend_from_slice(&data[..room]);
    };
    if seen.headers.has_token("transfer-encoding", "chunked") {
        loop {
            match wire.chunk().await? {
                Ok(data) => keep(&data, &mut seen.body_len),
                Err(trailers) => break seen.trailers = trailers,
            }
        }
    } else {
        let length = seen.headers.get("content-length").and_then(|text| text.parse().ok());
        let mut left: usize = length.unwrap_or(0);
        while left > 0 {
            let part = left.min(1 << 16);
            keep(&wire.exact(part).await?, &mut seen.body_len);
            left -= part;
        }
    }
    seen.body = kept.freeze();
    Ok(())
}

/// Returns whether the connection stays open.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    backend: &Backend,
    wire: &mut Wire<S>,
    seen: &Recorded,
    reply: Reply,
) -> io::Result<bool> {
    let aborted = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let (status, headers, body, framing) = match reply {
        Reply::Full { status, headers, body, framing } => (status, headers, body, framing),
        Reply::Abort => return Err(aborted()),
        Reply::Cut { gate } => {
            wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789").await?;
            backend.wait(&gate, std::future::pending()).await;
            return Err(aborted());
        }
        Reply::Raw(bytes) => {
            wire.send(&bytes).await?;
            return Ok(true);
        }
        Reply::Bytes { headers, count } => {
            let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
            for (name, value) in &headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str(&format!("content-length: {count}\r\n\r\n"));
            wire.send(head.as_bytes()).await?;
            let part = pattern(PART);
            let mut left = if seen.method == "HEAD" { 0 } else { count };
            while left > 0 {
                let size = left.min(PART);
                wire.send(&part.as_bytes()[..size]).await?;
                left -= size;
            }
            return Ok(true);
        }
        Reply::Gated { gate } => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nx-backend: {}\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst \r\n",
                backend.name()
            );
            wire.send(head.as_bytes()).await?;
            let gone = async { while !matches!(wire.fill().await, Ok(0) | Err(_)) {} };
            if !backend.wait(&gate, gone).await {
                return Err(aborted());
            }
            wire.send(b"6\r\nsecond\r\n0\r\n\r\n").await?;
            return Ok(true);
        }
    };
    let mut text = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in &headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let bodiless = seen.method == "HEAD" || status == 204 || status == 304;
    let stays = match framing {
        _ if status == 204 || status == 304 => true,
        Framing::Length => {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
            true
        }
        Framing::LengthThenClose => {
            text.push_str(&format!("content-length: {}\r\nconnection: close\r\n", body.len()));
            false
        }
        Framing::Chunked => {
            text.push_str("transfer-encoding: chunked\r\ntrailer: x-trailer\r\n");
            true
        }
        Framing::UntilClose => {
            text.push_str("connection: close\r\n");
            false
        }
    };
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    if !bodiless {
        if framing == Framing::Chunked {
            for part in body.chunks(4) {
                bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                bytes.extend_from_slice(part);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\nx-trailer: end\r\n\r\n");
        } else {
            bytes.extend_from_slice(&body);
        }
    }
    wire.send(&bytes).await?;
    Ok(stays && !seen.headers.has_token("connection", "close"))
}

async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(
    backend: &Backend,
    mut wire: Wire<S>,
    seen: &Recorded,
) -> io::Result<()> {
    let accept = match seen.headers.get("sec-websocket-key") {
        Some(KEY) => ACCEPT,
        _ => "unknown-key",
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nx-backend: {}\r\n\r\n",
        backend.name()
    );
    wire.send(head.as_bytes()).await?;
    loop {
        let (code, payload) = read_frame(&mut wire).await?;
        wire.send(&frame(code, &payload, None)).await?;
        if code == opcode::CLOSE {
            return wire.io().shutdown().await;
        }
    }
}
