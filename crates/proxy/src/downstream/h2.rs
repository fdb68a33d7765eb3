//! HTTP/2 with prior knowledge inside a tunnel: many requests at once, gRPC among them.

use super::session::{Codec, RequestSession, Shared, read_failed, write_failed};
use crate::counters::Raised;
use crate::engine::Engine;
use crate::inbound::Inbound;
use crate::io::Rewind;
use crate::link::Link;
use crate::reply;
use bytes::Bytes;
use cairn_hbone::TunnelStream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
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

/// How long resets have to leave when a tunnel is cut.
const CUT: Duration = Duration::from_millis(500);

/// Serves the requests of one tunnel until it ends, fails, is told to end or is cut.
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
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(limits.terminator.handshake_timeout, handshake) => shaken,
        () = link.entry.cut_short() => return,
    };
    let Ok(Ok(mut connection)) = shaken else {
        return;
    };
    let mut requests = JoinSet::new();
    let (mut told, mut was_idle) = (false, false);
    loop {
        let idle = requests.is_empty();
        if idle != was_idle {
            was_idle = idle;
            if idle { link.entry.quiet(link.instance.roll().now()) } else { link.entry.busy() }
        }
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => start(&engine, &link, &mut requests, request, respond),
                Some(Err(_)) | None => break,
            },
            Some(_) = requests.join_next(), if !idle => {}
            () = link.entry.told(), if !told => {
                told = true;
                connection.graceful_shutdown();
            }
            () = link.entry.cut_short(), if told => {
                requests.shutdown().await;
                let resets = async { while connection.accept().await.is_some() {} };
                let _what_is_not_sent_by_then_is_lost = tokio::time::timeout(CUT, resets).await;
                return;
            }
            () = tokio::time::sleep(link.http_idle_timeout()), if idle => {
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
    let session = H2::session(parts, body, respond, inbound);
    let engine = Arc::clone(engine);
    let open = Raised::new(Arc::clone(link.instance.counters()), |counters| &counters.streams);
    requests.spawn(async move {
        engine.process(Box::new(session)).await;
        drop(open);
    });
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
        (None, Some(host)) => crate::head::check_host(&host).ok()?,
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

/// HTTP/2's side of one request.
struct H2 {
    body: RecvStream,
    body_done: bool,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
}

impl H2 {
    fn session(
        parts: http::request::Parts,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        inbound: Arc<Inbound>,
    ) -> RequestSession<H2> {
        let body_done = body.is_end_stream();
        let shared = Shared::new(parts, inbound, body_done);
        RequestSession::new(shared, H2 { body, body_done, respond, send: None })
    }
}

impl Codec for H2 {
    async fn next_data(&mut self, shared: &mut Shared) -> Result<Option<Bytes>> {
        if self.body_done {
            return Ok(None);
        }
        let Some(data) = self.body.data().await else {
            let trailers = self.body.trailers().await.map_err(read_failed)?;
            if let Some(trailers) = trailers {
                shared.inbound.put_trailers(Box::new(trailers));
            }
            self.body_done = true;
            return Ok(None);
        };
        let data = data.map_err(read_failed)?;
        self.body.flow_control().release_capacity(data.len()).map_err(read_failed)?;
        shared.was_read(&data);
        self.body_done = self.body.is_end_stream();
        Ok(Some(data))
    }

    fn is_body_done(&self) -> bool {
        self.body_done
    }

    fn discard_body(&mut self) {}

    async fn put_head(
        &mut self,
        shared: &mut Shared,
        head: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        if shared.response.is_some() {
            return Ok(());
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "101 to an HTTP/2 request");
            return Err(error.into_up());
        }
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers.clone();
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            response.headers_mut().remove(name);
        }
        if head.status.is_informational() {
            return self.respond.send_informational(response).map_err(write_failed);
        }
        let end = end || shared.request.method == Method::HEAD;
        let send = self.respond.send_response(response, end).map_err(write_failed)?;
        shared.complete = end;
        self.send = (!end).then_some(send);
        shared.response = Some(Box::new(head.clone()));
        Ok(())
    }

    async fn put_data(&mut self, shared: &mut Shared, mut data: Bytes, end: bool) -> Result<()> {
        shared.sent += data.len();
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
                    None => return Err(write_failed("the client has gone")),
                };
            }
            if room == 0 {
                continue;
            }
            let part = data.split_to(room.min(data.len()));
            let last = end && data.is_empty();
            send.send_data(part, last).map_err(write_failed)?;
            if last {
                shared.complete = true;
                self.send = None;
                return Ok(());
            }
        }
        if end { self.end(shared, None).await } else { Ok(()) }
    }

    async fn end(&mut self, shared: &mut Shared, trailers: Option<HeaderMap>) -> Result<()> {
        shared.complete = shared.complete || shared.response.is_some();
        let Some(mut send) = self.send.take() else {
            return Ok(());
        };
        match trailers {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        }
        .map_err(write_failed)
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn poll_reset(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        let reset = match self.send.as_mut() {
            Some(send) => send.poll_reset(cx),
            None if shared.complete => Poll::Pending,
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(reason) => read_failed(h2::Error::from(reason)),
            Err(error) => read_failed(error),
        })
    }

    fn wants_upgrade(&self) -> bool {
        false
    }

    fn was_upgraded(&self) -> bool {
        false
    }

    fn abandon(&mut self) {
        self.respond.send_reset(Reason::INTERNAL_ERROR);
    }

    /// A response that was not finished must not look like one.
    fn close(&mut self, shared: &mut Shared) {
        if !shared.complete {
            let cut = shared.inbound.link.entry.is_cut();
            self.respond.send_reset(if cut { Reason::CANCEL } else { Reason::INTERNAL_ERROR });
        }
    }
}
