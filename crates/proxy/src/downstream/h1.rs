//! HTTP/1.1 inside a tunnel: one request after the other on one stream.
//!
//! Between requests nothing is kept but the two halves of the stream and what was
//! read beyond the last request: a parked tunnel costs a few KiB.

use super::{Inbound, Link, Replay, digest_for};
use crate::engine::Engine;
use crate::framing::{BodyDecoder, BodyEncoder, BodyLength, Decoded, FramingError, put_header};
use crate::head::{self, HeadBuffer, HeadError, HeadLimits, RequestHead};
use crate::reply;
use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use cairn_hbone::{TunnelReader, TunnelStream, TunnelWriter};
use crossbeam_queue::ArrayQueue;
use futures::Stream;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::{CustomMessageWrite, server::Session};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// A request body that nobody has read is skipped up to so many bytes that are at hand already.
const MAX_SKIP: usize = 64 * 1024;
/// Gathered bytes are sent from this size on.
const FLUSH: usize = 64 * 1024;

/// A connection between requests.
struct Conn {
    reader: TunnelReader,
    writer: TunnelWriter,
    rest: Bytes,
    out: BytesMut,
}

/// Where a session leaves its connection for the next request.
type Slot = ArrayQueue<Conn>;

/// Serves the requests of one tunnel until it ends, fails or is drained.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    link: Arc<Link>,
    stream: TunnelStream,
    first: Bytes,
) {
    let (reader, writer) = stream.split();
    let slot = Arc::new(Slot::new(1));
    let mut conn = Conn { reader, writer, rest: first, out: BytesMut::new() };
    loop {
        if conn.rest.is_empty() && !park(&mut conn, &link).await {
            let _peer_is_gone = conn.writer.finish();
            return;
        }
        let head = match read_head(&mut conn, &link).await {
            Ok(Some(head)) => head,
            Ok(None) => {
                let _peer_is_gone = conn.writer.finish();
                return;
            }
            Err(error) => return refuse(conn, &link, error).await,
        };
        let Some(resolved) = link.resolve() else {
            // The destination is gone: the client connects again and is told so.
            return;
        };
        let Some(chain) = resolved.destination.http.as_ref() else {
            return;
        };
        if head.version == Version::HTTP_10 && !chain.accept_http_10 {
            return refuse(conn, &link, HeadError::Http10).await;
        }
        let inbound = Arc::new(Inbound::new(Arc::clone(&link), resolved));
        let session = H1Session::new(conn, head, inbound, Arc::clone(&slot));
        engine.process(Box::new(session)).await;
        match slot.pop() {
            Some(back) => conn = back,
            None => return,
        }
    }
}

/// Waits for the next request. `false`: there will be none.
async fn park(conn: &mut Conn, link: &Link) -> bool {
    let idle = link.instance.limits().http_idle_timeout;
    tokio::select! {
        biased;
        chunk = conn.reader.chunk() => match chunk {
            Some(Ok(chunk)) => {
                conn.rest = chunk;
                true
            }
            _ => false,
        },
        () = link.drain.started() => false,
        () = tokio::time::sleep(idle) => false,
    }
}

/// Reads one head. `Ok(None)`: the stream has ended in front of it.
async fn read_head(conn: &mut Conn, link: &Link) -> Result<Option<RequestHead>, HeadError> {
    let limits = link.instance.limits();
    let bounds = HeadLimits { bytes: limits.max_request_head, fields: limits.max_request_headers };
    if let Some(head) = head::parse_request(&mut conn.rest, bounds)? {
        return Ok(Some(head));
    }
    let mut buffer = HeadBuffer::new(std::mem::take(&mut conn.rest));
    let more = async {
        while let Some(Ok(chunk)) = conn.reader.chunk().await {
            buffer.push(chunk);
            let mut bytes = buffer.take();
            if let Some(head) = head::parse_request(&mut bytes, bounds)? {
                conn.rest = bytes;
                return Ok(Some(head));
            }
            buffer.restore(bytes);
        }
        if buffer.is_empty() { Ok(None) } else { Err(HeadError::Malformed) }
    };
    tokio::time::timeout(limits.request_head_timeout, more).await.unwrap_or(Err(HeadError::Timeout))
}

/// Answers a request whose head is no good, and ends the connection.
async fn refuse(mut conn: Conn, link: &Link, error: HeadError) {
    reply::record_refused_head(link, error);
    let answer = reply::refused_head(error);
    if conn.writer.write_chunk(answer).await.is_ok() {
        let _peer_is_gone = conn.writer.finish();
        // The rest of what the client sends is read and dropped for a moment: a reset would take the answer away.
        let drain = async { while let Some(Ok(_)) = conn.reader.chunk().await {} };
        let _late = tokio::time::timeout(Duration::from_secs(1), drain).await;
    }
}

/// One request and its response.
struct H1Session {
    conn: Option<Conn>,
    slot: Arc<Slot>,
    request: RequestHeader,
    inbound: Arc<Inbound>,
    digest: Digest,
    client: SocketAddr,
    server: SocketAddr,
    decoder: BodyDecoder,
    body_empty: bool,
    replay: Replay,
    wants_upgrade: bool,
    upgraded: bool,
    wants_trailers: bool,
    keep_alive: bool,
    response: Option<Box<ResponseHeader>>,
    encoder: BodyEncoder,
    complete: bool,
    failed: bool,
    sent: usize,
    read: usize,
}

impl H1Session {
    fn new(conn: Conn, head: RequestHead, inbound: Arc<Inbound>, slot: Arc<Slot>) -> Self {
        let RequestHead { method, uri, version, headers, body, keep_alive, upgrade } = head;
        let wants_trailers = headers
            .get_all(header::TE)
            .iter()
            .any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = method;
        parts.uri = uri;
        parts.version = version;
        parts.headers = headers;
        if !conn.rest.is_empty() && body != BodyLength::Empty {
            inbound.set_body_waits();
        }
        let addr = |addr| super::pingora_addr(addr);
        H1Session {
            conn: Some(conn),
            slot,
            request: RequestHeader::from(parts),
            digest: digest_for(Arc::clone(&inbound)),
            client: addr(inbound.link.peer.addr),
            server: addr(inbound.link.peer.local_addr),
            inbound,
            decoder: BodyDecoder::new(body),
            body_empty: body == BodyLength::Empty,
            replay: Replay::default(),
            wants_upgrade: upgrade,
            upgraded: false,
            wants_trailers,
            keep_alive,
            response: None,
            encoder: BodyEncoder::new(BodyLength::Empty),
            complete: false,
            failed: false,
            sent: 0,
            read: 0,
        }
    }

    fn conn(&mut self) -> Result<&mut Conn> {
        self.conn
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::ConnectionClosed, "the stream is gone"))
    }

    async fn next_data(&mut self) -> Result<Option<Bytes>> {
        loop {
            let limit = self.inbound.replay_limit();
            let Some(conn) = self.conn.as_mut() else {
                return Ok(None);
            };
            match self.decoder.decode(&mut conn.rest).map_err(bad_body)? {
                Decoded::Data(data) => {
                    self.inbound.touch();
                    self.read += data.len();
                    self.replay.keep(&data, limit);
                    return Ok(Some(data));
                }
                Decoded::End(trailers) => {
                    if let Some(trailers) = trailers {
                        self.inbound.put_trailers(trailers);
                    }
                    return Ok(None);
                }
                Decoded::NeedMore => match conn.reader.chunk().await {
                    Some(Ok(chunk)) => conn.rest = chunk,
                    Some(Err(error)) => return Err(read_failed(error)),
                    None => self.decoder.end_of_stream().map_err(bad_body)?,
                },
            }
        }
    }

    /// Puts the head into the outgoing bytes.
    fn put_head(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        let status = response.status;
        let interim = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if self.inbound.link.drain.is_started() {
            self.keep_alive = false;
        }
        let length = self.response_length(response, end, interim);
        if length == BodyLength::UntilClose {
            self.keep_alive = false;
        }
        let (keep_alive, upgraded) = (self.keep_alive, self.upgraded);
        let http_10 = self.request.version == Version::HTTP_10;
        let bodiless = self.request.method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        let out = &mut self.conn()?.out;
        out.reserve(512);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(response.get_reason_phrase().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\n");
        for (name, value) in &response.headers {
            let skip = match *name {
                header::TRANSFER_ENCODING => true,
                header::CONNECTION | header::UPGRADE => !upgraded,
                header::CONTENT_LENGTH => {
                    !(matches!(length, BodyLength::Sized(_)) || bodiless) || interim
                }
                _ => false,
            };
            if !skip {
                put_header(out, name, value);
            }
        }
        match length {
            BodyLength::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
            BodyLength::Sized(0) if !response.headers.contains_key(header::CONTENT_LENGTH) => {
                out.put_slice(b"content-length: 0\r\n");
            }
            _ => {}
        }
        if !interim && !upgraded {
            if !keep_alive {
                out.put_slice(b"connection: close\r\n");
            } else if http_10 {
                out.put_slice(b"connection: keep-alive\r\n");
            }
        }
        out.put_slice(b"\r\n");
        if !interim {
            self.encoder = BodyEncoder::new(length);
            self.response = Some(Box::new(response.clone()));
        }
        Ok(())
    }

    fn response_length(
        &mut self,
        response: &ResponseHeader,
        end: bool,
        interim: bool,
    ) -> BodyLength {
        let status = response.status;
        if status == StatusCode::SWITCHING_PROTOCOLS && self.wants_upgrade {
            self.upgraded = true;
            self.decoder = BodyDecoder::new(BodyLength::UntilClose);
            return BodyLength::UntilClose;
        }
        if interim
            || self.request.method == Method::HEAD
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
        {
            return BodyLength::Empty;
        }
        let announced = response
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        match announced {
            Some(length) => BodyLength::Sized(length),
            None if end => BodyLength::Sized(0),
            None if self.request.version == Version::HTTP_11 => BodyLength::Chunked,
            None => BodyLength::UntilClose,
        }
    }

    /// Encodes part of the body; large parts and what is gathered behind them leave at once.
    async fn put_data(&mut self, data: Bytes) -> Result<()> {
        self.sent += data.len();
        if matches!(self.response.as_deref(), Some(head) if bodiless(&self.request.method, head.status))
        {
            return Ok(());
        }
        let Some(conn) = self.conn.as_mut() else {
            return Ok(());
        };
        let large = self.encoder.data(&mut conn.out, data).map_err(bad_response)?;
        if let Some(large) = large {
            conn.flush().await?;
            conn.writer.write_chunk(large).await.map_err(write_failed)?;
            self.encoder.after_large(&mut conn.out);
        } else if conn.out.len() >= FLUSH {
            conn.flush().await?;
        }
        Ok(())
    }

    /// Ends the response.
    async fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<()> {
        if self.complete || self.response.is_none() {
            return Ok(());
        }
        let trailers = trailers.filter(|_| self.wants_trailers);
        let upgraded = self.upgraded;
        let Some(conn) = self.conn.as_mut() else {
            return Ok(());
        };
        if let Err(error) = self.encoder.finish(&mut conn.out, trailers) {
            self.failed = true;
            return Err(bad_response(error));
        }
        conn.flush().await?;
        if upgraded {
            conn.writer.finish().map_err(write_failed)?;
        }
        self.complete = true;
        Ok(())
    }

    async fn put_tasks(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut over = false;
        for task in tasks {
            match task {
                HttpTask::Header(head, end) => {
                    self.put_head(&head, end)?;
                    if end && !head.status.is_informational() {
                        self.end(None).await?;
                        over = true;
                    }
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    if let Some(data) = data {
                        self.put_data(data).await?;
                    }
                    if end {
                        self.end(None).await?;
                        over = true;
                    }
                }
                HttpTask::Trailer(trailers) => {
                    self.end(trailers.as_deref()).await?;
                    over = true;
                }
                HttpTask::Done => {
                    self.end(None).await?;
                    over = true;
                }
                HttpTask::Failed(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        self.conn()?.flush().await?;
        Ok(over)
    }

    /// Skips what is at hand of a body that nobody wanted. `false`: some of it is still to come.
    fn skip_body(&mut self) -> bool {
        let Some(conn) = self.conn.as_mut() else {
            return false;
        };
        let mut skipped = 0;
        while skipped < MAX_SKIP {
            match self.decoder.decode(&mut conn.rest) {
                Ok(Decoded::Data(data)) => skipped += data.len(),
                Ok(Decoded::End(_)) => return true,
                Ok(Decoded::NeedMore) | Err(_) => return false,
            }
        }
        false
    }
}

impl Conn {
    async fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = self.out.split().freeze();
        self.writer.write_chunk(out).await.map_err(write_failed)
    }
}

impl Drop for H1Session {
    /// Leaves the connection for the next request, ends it, or, in the middle of a response, resets it.
    fn drop(&mut self) {
        if !self.complete || self.failed || self.upgraded {
            return;
        }
        let body_is_over = self.decoder.is_done() || self.skip_body();
        let Some(mut conn) = self.conn.take() else {
            return;
        };
        if self.keep_alive && body_is_over {
            let _slot_is_ours_alone = self.slot.push(conn);
        } else {
            let _peer_is_gone = conn.writer.finish();
        }
    }
}

fn bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

fn bad_body(error: FramingError) -> Box<Error> {
    Error::because(ErrorType::InvalidHTTPHeader, "request body", error).into_down()
}

fn bad_response(error: FramingError) -> Box<Error> {
    Error::because(
        ErrorType::InvalidHTTPHeader,
        "response body does not have the announced length",
        error,
    )
    .into_up()
}

fn read_failed(error: io::Error) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, "reading the request", error).into_down()
}

fn write_failed(error: io::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, "writing the response", error).into_down()
}

#[async_trait]
impl Session for H1Session {
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
        self.write_response_header_ref(&response, end).await
    }

    async fn write_response_header_ref(
        &mut self,
        response: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        self.put_head(response, end)?;
        if end {
            self.end(None).await?;
        }
        Ok(())
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.put_data(data).await?;
        if end {
            self.end(None).await?;
        }
        Ok(())
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.end(Some(&trailers)).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.put_tasks(tasks).await
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
        self.failed = true;
        self.conn = None;
    }

    fn is_body_done(&mut self) -> bool {
        self.decoder.is_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.end(None).await
    }

    fn is_body_empty(&mut self) -> bool {
        self.body_empty
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let reading = !no_body_expected && !self.decoder.is_done();
        if reading && self.complete && !self.upgraded {
            return Err(super::answered_early());
        }
        let Self { conn, inbound, .. } = self;
        let Some(conn) = conn.as_mut() else {
            return Err(
                Error::explain(ErrorType::ConnectionClosed, "the stream is gone").into_down()
            );
        };
        // END_STREAM is no abort: the client still waits for its response. RST_STREAM is one.
        let go_on = std::future::poll_fn(|cx| {
            if conn.writer.poll_reset(cx).is_ready() {
                return Poll::Ready(false);
            }
            match inbound.poll_flush(cx) {
                Poll::Ready(()) if reading => Poll::Ready(true),
                _ => Poll::Pending,
            }
        })
        .await;
        if go_on {
            return self.next_data().await;
        }
        Err(Error::explain(ErrorType::ConnectionClosed, "the client has reset the stream")
            .into_down())
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

    fn is_upgrade_req(&self) -> bool {
        self.wants_upgrade
    }

    fn was_upgraded(&self) -> bool {
        self.upgraded
    }
}
