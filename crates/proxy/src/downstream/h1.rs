//! HTTP/1.1 inside a tunnel: one request after the other on one stream.
//!
//! Between requests nothing is kept but the two halves of the stream and what was
//! read beyond the last request: a parked tunnel costs a few KiB.

use super::session::{Codec, RequestSession, Shared, read_failed, write_failed};
use crate::engine::Engine;
use crate::framing::{BodyDecoder, BodyEncoder, BodyLength, Decoded, FramingError, put_header};
use crate::head::{self, HeadBuffer, HeadError, HeadLimits, RequestHead};
use crate::inbound::Inbound;
use crate::link::Link;
use crate::reply;
use crate::roll::Carries;
use bytes::{BufMut, Bytes, BytesMut};
use cairn_hbone::{TunnelReader, TunnelStream, TunnelWriter};
use crossbeam_queue::ArrayQueue;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A request body that nobody has read is skipped up to so many bytes that are at hand already.
const MAX_SKIP: usize = 64 * 1024;
/// How long a tunnel without a request is kept when it is to end.
pub(crate) const DRAIN_SILENCE: Duration = Duration::from_secs(1);
/// How long a client may go on sending after an answer that ends the connection (Envoy: `delayed_close_timeout`).
const LINGER: Duration = Duration::from_secs(1);
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

/// Serves the requests of one tunnel until it ends, fails or is told to end.
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
            Err(error) => return Box::pin(refuse(conn, &link, error)).await,
        };
        let Some(resolved) = link.resolve() else {
            // The destination is gone: the client connects again and is told so.
            return;
        };
        let Some(chain) = resolved.destination.http.as_ref() else {
            return;
        };
        if head.version == Version::HTTP_10 && !chain.accept_http_10 {
            return Box::pin(refuse(conn, &link, HeadError::Http10)).await;
        }
        link.entry.busy();
        let inbound = Arc::new(Inbound::new(Arc::clone(&link), resolved));
        let session = H1::session(conn, head, inbound, Arc::clone(&slot));
        engine.process(Box::new(session)).await;
        match slot.pop() {
            Some(back) => conn = back,
            None => return,
        }
    }
}

/// Waits for the next request. `false`: there will be none.
///
/// A tunnel that is told to end waits for some more silence: a request may be on its way, and a tunnel that has just
/// been opened was opened for one.
async fn park(conn: &mut Conn, link: &Link) -> bool {
    link.entry.quiet(link.instance.roll().now());
    let idle = link.http_idle_timeout();
    let told = async {
        link.entry.told().await;
        tokio::time::sleep(DRAIN_SILENCE).await;
    };
    tokio::select! {
        biased;
        chunk = conn.reader.chunk() => match chunk {
            Some(Ok(chunk)) => {
                conn.rest = chunk;
                true
            }
            _ => false,
        },
        () = told => false,
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
    // Boxed: a head that comes in pieces is rare.
    let more = Box::pin(read_pieces(conn, bounds));
    tokio::time::timeout(limits.request_head_timeout, more).await.unwrap_or(Err(HeadError::Timeout))
}

/// Reads a head of which not all is at hand.
async fn read_pieces(
    conn: &mut Conn,
    bounds: HeadLimits,
) -> Result<Option<RequestHead>, HeadError> {
    let mut buffer = HeadBuffer::new(std::mem::take(&mut conn.rest));
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
}

/// Answers a request whose head is no good, and ends the connection.
async fn refuse(mut conn: Conn, link: &Link, error: HeadError) {
    reply::record_refused_head(link, error);
    let answer = reply::refused_head(error);
    if conn.writer.write_chunk(answer).await.is_ok() {
        linger(conn).await;
    }
}

/// Ends our direction, and reads and drops for a moment what the client still sends: a reset would take the answer
/// away from it.
async fn linger(mut conn: Conn) {
    if conn.writer.finish().is_ok() {
        let drain = async { while let Some(Ok(_)) = conn.reader.chunk().await {} };
        let _late = tokio::time::timeout(LINGER, drain).await;
    }
}

/// HTTP/1.1's side of one request.
struct H1 {
    conn: Option<Conn>,
    slot: Arc<Slot>,
    decoder: BodyDecoder,
    encoder: BodyEncoder,
    wants_upgrade: bool,
    upgraded: bool,
    wants_trailers: bool,
    keep_alive: bool,
    failed: bool,
}

impl H1 {
    fn session(
        conn: Conn,
        head: RequestHead,
        inbound: Arc<Inbound>,
        slot: Arc<Slot>,
    ) -> RequestSession<H1> {
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
        let codec = H1 {
            conn: Some(conn),
            slot,
            decoder: BodyDecoder::new(body),
            encoder: BodyEncoder::new(BodyLength::Empty),
            wants_upgrade: upgrade,
            upgraded: false,
            wants_trailers,
            keep_alive,
            failed: false,
        };
        RequestSession::new(Shared::new(parts, inbound, body == BodyLength::Empty), codec)
    }

    /// Encodes the head into the outgoing bytes.
    fn encode_head(
        &mut self,
        shared: &mut Shared,
        response: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        let status = response.status;
        let interim = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if shared.inbound.link.is_ending() {
            self.keep_alive = false;
        }
        let length = self.response_length(shared, response, end, interim);
        if length == BodyLength::UntilClose {
            self.keep_alive = false;
        }
        let bodiless = shared.request.method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        let Some(conn) = self.conn.as_mut() else {
            return Err(gone());
        };
        let out = &mut conn.out;
        out.reserve(512);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(response.get_reason_phrase().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\n");
        for (name, value) in &response.headers {
            let skip = match *name {
                header::TRANSFER_ENCODING => true,
                header::CONNECTION | header::UPGRADE => !self.upgraded,
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
        if !interim && !self.upgraded {
            if !self.keep_alive {
                out.put_slice(b"connection: close\r\n");
            } else if shared.request.version == Version::HTTP_10 {
                out.put_slice(b"connection: keep-alive\r\n");
            }
        }
        out.put_slice(b"\r\n");
        if !interim {
            self.encoder = BodyEncoder::new(length);
            shared.response = Some(Box::new(response.clone()));
        }
        Ok(())
    }

    fn response_length(
        &mut self,
        shared: &Shared,
        response: &ResponseHeader,
        end: bool,
        interim: bool,
    ) -> BodyLength {
        let status = response.status;
        if status == StatusCode::SWITCHING_PROTOCOLS && self.wants_upgrade {
            self.upgraded = true;
            shared.inbound.link.entry.set_carries(Carries::Opaque);
            self.decoder = BodyDecoder::new(BodyLength::UntilClose);
            return BodyLength::UntilClose;
        }
        if interim || bodiless(&shared.request.method, status) {
            return BodyLength::Empty;
        }
        let announced = response
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        match announced {
            Some(length) => BodyLength::Sized(length),
            None if end => BodyLength::Sized(0),
            None if shared.request.version == Version::HTTP_11 => BodyLength::Chunked,
            None => BodyLength::UntilClose,
        }
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

impl Codec for H1 {
    async fn next_data(&mut self, shared: &mut Shared) -> Result<Option<Bytes>> {
        loop {
            let Some(conn) = self.conn.as_mut() else {
                return Ok(None);
            };
            match self.decoder.decode(&mut conn.rest).map_err(bad_body)? {
                Decoded::Data(data) => {
                    shared.was_read(&data);
                    return Ok(Some(data));
                }
                Decoded::End(trailers) => {
                    if let Some(trailers) = trailers {
                        shared.inbound.put_trailers(trailers);
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

    fn is_body_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// What is not at hand yet is not waited for: the answer says that the connection ends.
    fn discard_body(&mut self) {
        if !self.decoder.is_done() && !self.skip_body() {
            self.keep_alive = false;
        }
    }

    async fn put_head(
        &mut self,
        shared: &mut Shared,
        head: &ResponseHeader,
        end: bool,
    ) -> Result<()> {
        self.encode_head(shared, head, end)?;
        if end && shared.response.is_some() { self.end(shared, None).await } else { Ok(()) }
    }

    /// Large parts, and what is gathered in front of them, leave at once.
    async fn put_data(&mut self, shared: &mut Shared, data: Bytes, end: bool) -> Result<()> {
        shared.sent += data.len();
        let skip = shared
            .response
            .as_deref()
            .is_some_and(|head| bodiless(&shared.request.method, head.status));
        if let Some(conn) = self.conn.as_mut().filter(|_| !skip) {
            let large = self.encoder.data(&mut conn.out, data).map_err(bad_response)?;
            if let Some(large) = large {
                conn.flush().await?;
                conn.writer.write_chunk(large).await.map_err(write_failed)?;
                self.encoder.after_large(&mut conn.out);
            } else if conn.out.len() >= FLUSH {
                conn.flush().await?;
            }
        }
        if end { self.end(shared, None).await } else { Ok(()) }
    }

    async fn end(&mut self, shared: &mut Shared, trailers: Option<HeaderMap>) -> Result<()> {
        if shared.complete || shared.response.is_none() {
            return Ok(());
        }
        let trailers = trailers.filter(|_| self.wants_trailers);
        let Some(conn) = self.conn.as_mut() else {
            return Ok(());
        };
        if let Err(error) = self.encoder.finish(&mut conn.out, trailers.as_ref()) {
            self.failed = true;
            return Err(bad_response(error));
        }
        conn.flush().await?;
        if self.upgraded {
            conn.writer.finish().map_err(write_failed)?;
        }
        shared.complete = true;
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        match self.conn.as_mut() {
            Some(conn) => conn.flush().await,
            None => Err(gone()),
        }
    }

    fn poll_reset(&mut self, _shared: &Shared, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        match self.conn.as_mut() {
            Some(conn) => conn.writer.poll_reset(cx).map(read_failed),
            None => Poll::Ready(gone()),
        }
    }

    fn wants_upgrade(&self) -> bool {
        self.wants_upgrade
    }

    fn was_upgraded(&self) -> bool {
        self.upgraded
    }

    fn abandon(&mut self) {
        self.failed = true;
    }

    /// Leaves the connection for the next request, ends it, or, in the middle of a response, resets it.
    fn close(&mut self, shared: &mut Shared) {
        if !shared.complete || self.failed || self.upgraded {
            return;
        }
        let body_is_over = self.decoder.is_done() || self.skip_body();
        let Some(mut conn) = self.conn.take() else {
            return;
        };
        if self.keep_alive && body_is_over {
            let _slot_is_ours_alone = self.slot.push(conn);
        } else if body_is_over {
            let _peer_is_gone = conn.writer.finish();
        } else {
            tokio::spawn(linger(conn));
        }
    }
}

fn bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the stream is gone").into_down()
}

fn bad_body(error: FramingError) -> Box<Error> {
    Error::because(ErrorType::InvalidHTTPHeader, "request body", error).into_down()
}

fn bad_response(error: FramingError) -> Box<Error> {
    let context = "response body does not have the announced length";
    Error::because(ErrorType::InvalidHTTPHeader, context, error).into_up()
}
