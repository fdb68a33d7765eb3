//! A small HTTP/1.1 server for pages that are made from what is in memory, at once or in pieces.
//!
//! One request per connection, at most [`MAX_CONNECTIONS`] at a time, each for at most a bound of the
//! listener's: a slow or greedy visitor cannot keep probes and scrapes out for long.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

/// Connections at a time on one listener; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// From accept to the end of the answer, where pages are small.
pub const SHORT: Duration = Duration::from_secs(20);
/// From accept to the end of the answer, where pages can be large.
pub const LONG: Duration = Duration::from_secs(120);
/// From accept to the end of the request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer. One that breaks off ends its connection.
pub type Page = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Who asks; among the extensions of each request.
#[derive(Debug, Clone, Copy)]
pub struct Visitor(pub IpAddr);

impl Visitor {
    /// On this machine.
    pub fn is_local(self) -> bool {
        self.0.to_canonical().is_loopback()
    }
}

/// Answers until the task is aborted; each connection ends after `lifetime`.
pub async fn serve<A>(listener: TcpListener, lifetime: Duration, answer: A)
where
    A: Fn(&Parts) -> Page + Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, visitor) = match listener.accept().await {
            Ok((stream, peer)) => (stream, Visitor(peer.ip())),
            Err(error) => {
                tracing::warn!(%error, "accept on an admin listener failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (mut parts, _body) = request.into_parts();
                parts.extensions.insert(visitor);
                std::future::ready(Ok::<_, Infallible>(answer(&parts)))
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // A visitor that breaks off or dawdles is nobody's problem but its own.
            let _ = tokio::time::timeout(lifetime, connection).await;
            drop(slot);
        });
    }
}

/// Plain text.
pub fn text(status: StatusCode, body: impl Into<String>) -> Page {
    page(status, "text/plain; charset=utf-8", body.into())
}

/// With a content type.
pub fn page(status: StatusCode, content_type: &'static str, body: String) -> Page {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    with_headers(status, content_type, body.boxed_unsync())
}

/// 200, in a coding that the visitor takes.
pub fn encoded(content_type: &'static str, coding: &'static str, body: Vec<u8>) -> Page {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    let mut page = with_headers(StatusCode::OK, content_type, body.boxed_unsync());
    page.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    page
}

/// 200, made of pieces as they come; an error breaks it off.
pub fn streamed(content_type: &'static str, pieces: mpsc::Receiver<io::Result<Bytes>>) -> Page {
    let frames = futures::stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((piece.map(Frame::data), pieces))
    });
    with_headers(StatusCode::OK, content_type, StreamBody::new(frames).boxed_unsync())
}

fn with_headers(
    status: StatusCode,
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, io::Error>,
) -> Page {
    let mut page = Response::new(body);
    *page.status_mut() = status;
    let headers = page.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    page
}

/// 404.
pub fn not_found() -> Page {
    text(StatusCode::NOT_FOUND, "there is no such page\n")
}

/// 405 with what is allowed.
pub fn method_not_allowed(allowed: &'static str) -> Page {
    let mut page = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
    page.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    page
}

/// GET or HEAD.
pub fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn start() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, SHORT, |parts| text(StatusCode::OK, parts.uri.path())));
        address
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_once_and_closes() {
        let answer = ask(start().await, "GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n/a"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn too_many_connections_are_closed_and_the_rest_still_works() {
        let address = start().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        assert!(matches!(refused.read(&mut byte).await, Ok(0) | Err(_)));
        drop(silent);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ask(address, "GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await.ends_with("/b"));
    }

    #[tokio::test]
    async fn an_oversized_head_is_refused() {
        let request =
            format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        let mut stream = TcpStream::connect(start().await).await.unwrap();
        // The server may close before it has read all of it.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
