//! The h2c side of the backend, gRPC included.

use super::{Backend, DATE, Framing, PART, Recorded, Reply, pattern};
use crate::h2c::{fields, grpc_frame, send_all, take_message};
use crate::wire::Fields;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of which some bytes were read already.
struct Rewound<S> {
    prefix: Bytes,
    io: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let count = self.prefix.len().min(out.remaining());
        out.put_slice(&self.prefix.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

pub(super) async fn serve<S>(backend: &Backend, io: S, head: &[u8], connection: u64)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = Rewound { prefix: Bytes::copy_from_slice(head), io };
    let handshake = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(io)
        .await;
    let Ok(mut h2) = handshake else {
        return;
    };
    let mut closing = backend.inner.closing.subscribe();
    loop {
        tokio::select! {
            request = h2.accept() => match request {
                Some(Ok((request, respond))) => {
                    let backend = backend.clone();
                    tokio::spawn(async move {
                        let _ = answer(&backend, request, respond, connection).await;
                    });
                }
                _ => return,
            },
            Ok(()) = closing.changed() => h2.graceful_shutdown(),
        }
    }
}

async fn answer(
    backend: &Backend,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    connection: u64,
) -> Result<(), h2::Error> {
    let (head, mut recv) = request.into_parts();
    let mut seen = Recorded {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or(String::new(), |target| target.to_string()),
        authority: head.uri.authority().map_or(String::new(), |name| name.to_string()),
        version: "HTTP/2.0",
        headers: fields(&head.headers),
        body: Bytes::new(),
        body_len: 0,
        trailers: Fields::default(),
        connection,
    };
    let grpc =
        seen.headers.get("content-type").is_some_and(|kind| kind.starts_with("application/grpc"));
    if grpc && seen.path() == "/test.Echo/Bidi" {
        backend.record(&seen);
        return bidi(backend, &seen, recv, respond).await;
    }
    if seen.path() == "/early" {
        backend.record(&seen);
        let mut send = respond.send_response(Response::new(()), false)?;
        send.send_data(Bytes::from_static(b"early"), true)?;
        respond.send_reset(Reason::NO_ERROR);
        return Ok(());
    }
    if seen.headers.has("expect") {
        respond.send_informational(Response::builder().status(100).body(()).unwrap())?;
    }
    let mut kept = BytesMut::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        let _ = recv.flow_control().release_capacity(data.len());
        seen.body_len += data.len() as u64;
        let room = (1usize << 20).saturating_sub(kept.len()).min(data.len());
        kept.extend_from_slice(&data[..room]);
    }
    seen.trailers = recv.trailers().await?.as_ref().map(fields).unwrap_or_default();
    seen.body = kept.freeze();
    backend.record(&seen);
    if grpc {
        return unary(backend, &seen, respond).await;
    }
    let gone = async {
        let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    };
    match backend.reply(&seen, gone).await {
        Reply::Full { status, headers, body, framing } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let bodiless =
                seen.method == "HEAD" || status == 204 || status == 304 || body.is_empty();
            let response = response.body(()).unwrap();
            let mut send = respond.send_response(response, bodiless)?;
            if bodiless {
                return Ok(());
            }
            let trailers = framing == Framing::Chunked;
            send_all(&mut send, body, !trailers).await?;
            if trailers {
                let mut fields = HeaderMap::new();
                fields.insert("x-trailer", HeaderValue::from_static("end"));
                send.send_trailers(fields)?;
            }
        }
        Reply::Bytes { headers, count } => {
            let mut response = Response::builder().header("content-length", count);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let bodiless = seen.method == "HEAD" || count == 0;
            let mut send = respond.send_response(response.body(()).unwrap(), bodiless)?;
            let part = Bytes::from(pattern(PART));
            let mut left = if bodiless { 0 } else { count };
            while left > 0 {
                let size = left.min(PART);
                left -= size;
                send_all(&mut send, part.slice(..size), left == 0).await?;
            }
        }
        Reply::Gated { gate } => {
            let response =
                Response::builder().header("x-backend", backend.name()).body(()).unwrap();
            let mut send = respond.send_response(response, false)?;
            send.send_data(Bytes::from_static(b"first "), false)?;
            let gone = async {
                let _ = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
            };
            if backend.wait(&gate, gone).await {
                send.send_data(Bytes::from_static(b"second"), true)?;
            }
        }
        Reply::Cut { gate } => {
            let response = Response::builder().header("content-length", 100).body(()).unwrap();
            let mut send = respond.send_response(response, false)?;
            send_all(&mut send, Bytes::from_static(b"0123456789"), false).await?;
            backend.wait(&gate, std::future::pending()).await;
            send.send_reset(Reason::INTERNAL_ERROR);
        }
        Reply::Abort | Reply::Raw(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
    Ok(())
}

fn grpc_head(backend: &Backend) -> http::response::Builder {
    Response::builder()
        .header("content-type", "application/grpc")
        .header("x-backend", backend.name())
        .header("date", DATE)
}

fn trailers(status: u32, seen: &Recorded) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    trailers.insert("x-trailer", HeaderValue::from_static("end"));
    if let Some(timeout) = seen.headers.get("grpc-timeout") {
        trailers.insert("x-seen-timeout", HeaderValue::from_str(timeout).unwrap());
    }
    trailers
}

async fn bidi(
    backend: &Backend,
    seen: &Recorded,
    mut recv: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut send = respond.send_response(grpc_head(backend).body(()).unwrap(), false)?;
    let mut buf = BytesMut::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        let _ = recv.flow_control().release_capacity(data.len());
        buf.extend_from_slice(&data);
        while let Some(message) = take_message(&mut buf) {
            send_all(&mut send, grpc_frame(&message), false).await?;
        }
    }
    send.send_trailers(trailers(0, seen))
}

async fn unary(
    backend: &Backend,
    seen: &Recorded,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let number = |name: &str, default| {
        seen.headers.get(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let fails = match seen.path() {
        "/test.Echo/Fail" => Some(number("x-status", 5)),
        "/test.Echo/FailFirst" => {
            (backend.attempt(seen) <= number("x-fail-first", 1)).then(|| number("x-status", 14))
        }
        _ => None,
    };
    if let Some(status) = fails {
        let head = grpc_head(backend)
            .header("grpc-status", status)
            .header("grpc-message", "told to fail")
            .body(())
            .unwrap();
        respond.send_response(head, true)?;
        return Ok(());
    }
    if seen.path() == "/test.Echo/Hold" {
        let gate = seen.headers.get("x-gate").unwrap_or_default().to_owned();
        let gone = async {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        };
        if !backend.wait(&gate, gone).await {
            return Ok(());
        }
    }
    let mut send = respond.send_response(grpc_head(backend).body(()).unwrap(), false)?;
    let mut body = BytesMut::from(seen.body.as_ref());
    while let Some(message) = take_message(&mut body) {
        send_all(&mut send, grpc_frame(&message), false).await?;
    }
    let status = if seen.path() == "/test.Echo/FailAfter" { 13 } else { 0 };
    send.send_trailers(trailers(status, seen))
}
