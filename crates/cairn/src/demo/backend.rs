//! The applications behind the demo's pods: HTTP/1.1 and h2c with a gRPC and a WebSocket echo,
//! and a TCP echo.

use super::grpc;
use crate::websocket::{self, Message, Role};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Names the version that answered.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-app-version");

/// Bytes of a request body that are read.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// An application.
#[derive(Debug)]
pub struct Backend {
    /// `v1`, `v2`; sent in [`VERSION_HEADER`].
    pub version: &'static str,
    /// Answers 503 to everything.
    pub broken: bool,
    /// Requests that it saw.
    pub requests: AtomicU64,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Backend {
    /// An application that works, unless it is broken.
    pub fn new(version: &'static str, broken: bool) -> Arc<Backend> {
        Arc::new(Backend { version, broken, requests: AtomicU64::new(0) })
    }

    /// Serves HTTP/1.1 or h2c until the stream ends.
    pub async fn serve_http<S>(self: Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = hyper::service::service_fn(move |request| {
            let backend = Arc::clone(&self);
            async move { Ok::<_, Infallible>(backend.answer(request).await) }
        });
        // The end of a stream, clean or not, is the client's decision.
        let _ = auto::Builder::new(TokioExecutor::new())
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut response = if self.broken {
            plain(StatusCode::SERVICE_UNAVAILABLE, "broken on purpose\n".to_owned())
        } else if is(&request, header::CONTENT_TYPE, "application/grpc") {
            say(request).await
        } else if is(&request, header::UPGRADE, "websocket") {
            upgrade(request)
        } else {
            let text = format!("hello from {} at {}\n", self.version, request.uri().path());
            plain(StatusCode::OK, text)
        };
        response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(self.version));
        response
    }
}

/// Sends back what comes, in capitals, and ends when the client has ended.
pub async fn serve_tcp<S>(mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let bytes = buffer.get_mut(..count).unwrap_or_default();
        bytes.make_ascii_uppercase();
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
    // The client may be gone already.
    let _ = stream.shutdown().await;
}

fn is(request: &Request<Incoming>, name: HeaderName, value: &str) -> bool {
    request
        .headers()
        .get(name)
        .is_some_and(|found| found.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    let value = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// A unary gRPC echo: one message and trailers.
async fn say(request: Request<Incoming>) -> Response<Body> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let (status, frames) = match grpc::text(&body) {
        Some(words) => ("0", vec![Frame::data(grpc::frame(words))]),
        None => ("3", Vec::new()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = frames.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, Infallible>);
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
    let value = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// 101, and then an echo of messages.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let Some(accept) = key.and_then(|key| HeaderValue::try_from(websocket::accept_for(key)).ok())
    else {
        return plain(StatusCode::BAD_REQUEST, "sec-websocket-key is missing\n".to_owned());
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            // The end of a stream, clean or not, is the client's decision.
            let _ = echo_messages(TokioIo::new(stream)).await;
        }
    });
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn echo_messages<S>(mut stream: S) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = websocket::read(&mut stream).await? {
        let (reply, last) = match message {
            Message::Ping(payload) => (Message::Pong(payload), false),
            Message::Pong(_) => continue,
            Message::Close(payload) => (Message::Close(payload), true),
            words => (words, false),
        };
        websocket::write(&mut stream, Role::Server, &reply).await?;
        if last {
            break;
        }
    }
    stream.shutdown().await
}
