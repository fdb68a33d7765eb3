//! HTTP/2 with prior knowledge inside a tunnel: many requests at once, gRPC among them.

use super::{Inbound, Link, Replay, digest_for};
use crate::engine::Engine;
use crate::io::Rewind;
use crate::reply;
use async_trait::async_trait;
use bytes::Bytes;
use cairn_hbone::TunnelStream;
use futures::Stream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::{CustomMessageWrite, server::Session};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::task::JoinSet;

/// Window of one request's body, bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Window of all bodies of one tunnel, bytes.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Unsent response bytes that one stream may hold.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams that the client has reset and that are still remembered: the bound against rapid reset.
const MAX_RESET_STREAMS: usize = 64;

/// Serves the requests of one tunnel until it ends, fails or is drained.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    link: Arc<Link>,
    stream: TunnelStream,
    first: Bytes,
) {
    let limits = link.instance.limits();
    let list_size = u32::try_from(limits.max_request_head * 2).unwrap_or(u32::MAX);
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(limits.max_inner_streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(list_size)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .handshake::<_, Bytes>(Rewind::new(first, stream));
    let Ok(Ok(mut connection)) =
        tokio::time::timeout(limits.terminator.handshake_timeout, handshake).await
    else {
        return;
    };
    let mut requests = JoinSet::new();
    let mut draining = false;
    loop {
        let idle = requests.is_empty();
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => start(&engine, &link, &mut requests, request, respond),
                Some(Err(_)) | None => break,
            },
            Some(_) = requests.join_next(), if !idle => {}
            () = link.drain.started(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = tokio::time::sleep(limits.http_idle_timeout), if idle => {
                connection.graceful_shutdown();
            }
        }
    }
}

fn start(
    engine: &Arc<Engine>,
    link: &Arc<Link>,
    requests: &mut JoinSet<()>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let limits = link.instance.limits();
    let (parts, body) = request.into_parts();
    let head_size: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if parts.headers.len() > limits.max_request_headers || head_size > limits.max_request_head {
        reply::record_refused_head(link, crate::head::HeadError::TooLarge);
        refuse(&mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        return;
    }
    let Some(parts) = normal_form(parts) else {
        reply::record_refused_head(link, crate::head::HeadError::Malformed);
        refuse(&mut respond, StatusCode::BAD_REQUEST);
        return;
    };
    let Some(resolved) = link.resolve() else {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    let inbound = Arc::new(Inbound::new(Arc::clone(link), resolved));
    let session = H2Session::new(parts, body, respond, inbound);
    let engine = Arc::clone(engine);
    requests.spawn(async move { engine.process(Box::new(session)).await });
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let _client_is_gone = respond.send_response(response, true);
}

/// `:authority` becomes `Host`, the URI its origin form; what HTTP/1 would refuse is refused too.
fn normal_form(mut parts: http::request::Parts) -> Option<http::request::Parts> {
    if parts.method == Method::CONNECT {
        return None;
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return None;
    }
    match (parts.uri.authority(), host) {
        (Some(authority), Some(host))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return None;
        }
        (Some(authority), _) if authority.as_str().contains('@') => return None,
        (Some(authority), _) => {
            let value = HeaderValue::from_str(authority.as_str()).ok()?;
            parts.headers.insert(header::HOST, value);
        }
        (None, Some(_)) => {}
        (None, None) => return None,
    }
    if !cookies_joined(&mut parts.headers) {
        return None;
    }
    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_2;
    Some(parts)
}

/// HTTP/2 may split `cookie`; one field goes on (RFC 9113 §8.2.3). `false`: no valid value.
fn cookies_joined(headers: &mut HeaderMap) -> bool {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return true;
    }
    let mut joined = Vec::new();
    for cookie in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(cookie.as_bytes());
    }
    match HeaderValue::from_bytes(&joined) {
        Ok(value) => {
            headers.insert(header::COOKIE, value);
            true
        }
        Err(_) => false,
    }
}

/// One request and its response.
struct H2Session {
    request: RequestHeader,
    inbound: Arc<Inbound>,
    digest: Digest,
    client: SocketAddr,
    server: SocketAddr,
    body: RecvStream,
    body_done: bool,
    body_empty: bool,
    replay: Replay,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    response: Option<Box<ResponseHeader>>,
    complete: bool,
    sent: usize,
    read: usize,
}

impl H2Session {
    fn new(
        parts: http::request::Parts,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        inbound: Arc<Inbound>,
    ) -> Self {
        let body_done = body.is_end_stream();
        H2Session {
            request: RequestHeader::from(parts),
            digest: digest_for(Arc::clone(&inbound)),
            client: super::pingora_addr(inbound.link.peer.addr),
            server: super::pingora_addr(inbound.link.peer.local_addr),
            inbound,
            body,
            body_done,
            body_empty: body_done,
            replay: Replay::default(),
            respond,
            send: None,
            response: None,
            complete: false,
            sent: 0,
            read: 0,
        }
    }

    async fn next_data(&mut self) -> Result<Option<Bytes>> {
        if self.body_done {
            return Ok(None);
        }
        let Some(data) = self.body.data().await else {
            let trailers = self.body.trailers().await.map_err(read_failed)?;
            if let Some(trailers) = trailers {
                self.inbound.put_trailers(Box::new(trailers));
            }
            self.body_done = true;
            return Ok(None);
        };
        let data = data.map_err(read_failed)?;
        self.body.flow_control().release_capacity(data.len()).map_err(read_failed)?;
        self.inbound.touch();
        self.read += data.len();
        self.replay.keep(&data, self.inbound.replay_limit());
        self.body_done = self.body.is_end_stream();
        Ok(Some(data))
    }

    fn put_head(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        if self.response.is_some() {
            return Ok(());
        }
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers.clone();
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            response.headers_mut().remove(name);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(
                Error::explain(ErrorType::InvalidHTTPHeader, "101 to an HTTP/2 request").into_up()
            );
        }
        if head.status.is_informational() {
            return self.respond.send_informational(response).map_err(write_failed);
        }
        let end = end || self.request.method == Method::HEAD;
        let send = self.respond.send_response(response, end).map_err(write_failed)?;
        self.complete = end;
        self.send = (!end).then_some(send);
        self.response = Some(Box::new(head.clone()));
        Ok(())
    }

    async fn put_data(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        self.sent += data.len();
        let Some(send) = self.send.as_mut() else {
            return Ok(());
        };
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let mut room = send.capacity();
            if room == 0 {
                room = match poll_fn(|cx| send.poll_capacity(cx)).await {
                    Some(Ok(room)) => room,
                    Some(Err(error)) => return Err(write_failed(error)),
                    None => {
                        return Err(Error::explain(
                            ErrorType::ConnectionClosed,
                            "the client has gone",
                        )
                        .into_down());
                    }
                };
            }
            if room == 0 {
                continue;
            }
            let part = data.split_to(room.min(data.len()));
            let last = end && data.is_empty();
            send.send_data(part, last).map_err(write_failed)?;
            if last {
                self.complete = true;
                self.send = None;
                return Ok(());
            }
        }
        if end { self.end(None) } else { Ok(()) }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<()> {
        self.complete = self.complete || self.response.is_some();
        let Some(mut send) = self.send.take() else {
            return Ok(());
        };
        match trailers {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        }
        .map_err(write_failed)
    }
}

impl Drop for H2Session {
    /// A response that was not finished must not look like one.
    fn drop(&mut self) {
        if !self.complete {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

fn read_failed(error: h2::Error) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, "reading the request", error).into_down()
}

fn write_failed(error: h2::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, "writing the response", error).into_down()
}

#[async_trait]
impl Session for H2Session {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.next_data().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        while self.next_data().await?.is_some() {}
        Ok(())
    }

    async fn write_response_header(
        &mut self,
        response: Box<ResponseHeader>,
        end: bool,
    ) -> Result<()> {
        self.put_head(&response, end)
    }

    async fn write_response_header_ref(
        &mut self,
        response: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        self.put_head(response, end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.put_data(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.end(Some(trailers))
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut over = false;
        let mut tasks = tasks.into_iter().peekable();
        while let Some(task) = tasks.next() {
            match task {
                HttpTask::Header(head, end) => {
                    self.put_head(&head, end)?;
                    over |= end && !head.status.is_informational();
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    let end = end || matches!(tasks.peek(), Some(HttpTask::Done));
                    self.put_data(data.unwrap_or_default(), end).await?;
                    over |= end;
                }
                HttpTask::Trailer(trailers) => {
                    self.end(trailers.map(|trailers| *trailers))?;
                    over = true;
                }
                HttpTask::Done => {
                    self.end(None)?;
                    over = true;
                }
                HttpTask::Failed(error) => return Err(error),
            }
        }
        Ok(over)
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_write_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_total_drain_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.request.method, self.request.uri)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.response.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.respond.send_reset(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        self.body_done
    }

    async fn finish(&mut self) -> Result<()> {
        self.end(None)
    }

    fn is_body_empty(&mut self) -> bool {
        self.body_empty
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let reading = !no_body_expected && !self.body_done;
        if reading && self.complete {
            return Err(super::answered_early());
        }
        let Self { inbound, send, respond, complete, .. } = self;
        let reset = poll_fn(|cx| {
            let reset = match send.as_mut() {
                Some(send) => send.poll_reset(cx),
                None if *complete => Poll::Pending,
                None => respond.poll_reset(cx),
            };
            if let Poll::Ready(reset) = reset {
                return Poll::Ready(Some(reset));
            }
            match inbound.poll_flush(cx) {
                Poll::Ready(()) if reading => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await;
        match reset {
            None => self.next_data().await,
            Some(Ok(reason)) => Err(read_failed(h2::Error::from(reason))),
            Some(Err(error)) => Err(read_failed(error)),
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        Some(&self.client)
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        Some(&self.server)
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.replay.enabled = self.inbound.replay_limit() > 0;
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.replay.truncated || (!self.replay.enabled && self.read > 0)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.replay.take()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(futures::stream::empty()))
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
