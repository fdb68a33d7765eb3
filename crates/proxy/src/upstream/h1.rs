//! One request on an HTTP/1.1 connection to an endpoint.

use super::attempt::{Attempt, Failure};
use super::dial::{Destination, dial, pool_of};
use super::pool::{EndpointPool, H1Connection};
use crate::breakers::{self, Held};
use crate::framing::{BodyDecoder, BodyEncoder, BodyLength, Decoded, put_header};
use crate::head::{self, HeadBuffer, HeadLimits};
use crate::io::ByteReader;
use crate::outgoing::{Outgoing, Sink};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;

/// The receiving side of one request; the sending one is the request's [`Outgoing`].
pub(super) struct H1Exchange {
    reader: ByteReader,
    rest: Bytes,
    method: Method,
    decoder: BodyDecoder,
    ahead: Option<Bytes>,
    trailers: Option<Box<HeaderMap>>,
    keep_alive: bool,
    head_seen: bool,
    served: u32,
    pool: Arc<EndpointPool>,
    /// Where the cluster's connections are bounded.
    _place: Option<Held>,
}

impl H1Exchange {
    /// Takes or makes a connection and writes the head; with a body at hand, as far as it leaves with it.
    pub(super) async fn start(
        attempt: &Arc<Attempt>,
        request: &RequestHeader,
        end: bool,
    ) -> Result<Self, Failure> {
        let place = match attempt.cluster.circuit_breakers {
            None => None,
            Some(_) => {
                let instance = &attempt.inbound.link.instance;
                let place = breakers::place(&attempt.cluster, &instance.loads().waits);
                Box::pin(place).await.inspect_err(|_| instance.counters().overflows.add_one())?
            }
        };
        let pool = pool_of(attempt);
        let connection = connect(attempt, &pool).await?;
        let H1Connection { reader, writer, rest, mut out, served } = connection;
        let length = put_head(&mut out, request, end);
        let ended = length == BodyLength::Empty;
        let mut outgoing =
            Outgoing::new(Sink::H1 { writer, out, encoder: BodyEncoder::new(length) }, ended);
        if ended || !attempt.inbound.body_waits() {
            std::future::poll_fn(|cx| {
                let _rest_is_flushed_later = outgoing.poll_flush(cx);
                std::task::Poll::Ready(())
            })
            .await;
        }
        attempt.inbound.set_outgoing(outgoing);
        Ok(H1Exchange {
            reader,
            rest,
            method: request.method.clone(),
            decoder: BodyDecoder::new(BodyLength::Empty),
            ahead: None,
            trailers: None,
            keep_alive: false,
            head_seen: false,
            served,
            pool,
            _place: place,
        })
    }

    /// The next head: interim ones come one by one, then the final one.
    pub(super) async fn head(&mut self, attempt: &Attempt) -> Result<ResponseHeader, Failure> {
        let limits = attempt.inbound.link.instance.limits();
        let bounds =
            HeadLimits { bytes: limits.max_response_head, fields: limits.max_response_headers };
        let mut buffer = HeadBuffer::new(std::mem::take(&mut self.rest));
        let head = loop {
            let mut bytes = buffer.take();
            let parsed = head::parse_response(&mut bytes, bounds, &self.method)
                .map_err(|error| Failure::Protocol(error.to_string()))?;
            if let Some(head) = parsed {
                self.rest = bytes;
                break head;
            }
            let started = !bytes.is_empty();
            buffer.restore(bytes);
            match self.reader.chunk().await {
                Some(Ok(chunk)) => buffer.push(chunk),
                _ if started || self.head_seen => return Err(Failure::Reset { reused: false }),
                _ => {
                    return Err(Failure::Reset { reused: self.served > 0 });
                }
            }
        };
        self.head_seen = true;
        if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.decoder = BodyDecoder::new(head.body);
            self.keep_alive = head.keep_alive;
        }
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = head.status;
        parts.version = Version::HTTP_11;
        parts.headers = head.headers;
        Ok(ResponseHeader::from(parts))
    }

    /// The next part of the body; `None` after the last.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(data) = self.ahead.take() {
            self.look_ahead()?;
            return Ok(Some(data));
        }
        loop {
            match self.decode()? {
                Decoded::Data(data) => {
                    self.look_ahead()?;
                    return Ok(Some(data));
                }
                Decoded::End(_) => return Ok(None),
                Decoded::NeedMore => match self.reader.chunk().await {
                    Some(Ok(chunk)) => self.rest = chunk,
                    Some(Err(_)) => return Err(Failure::Truncated),
                    None => {
                        self.keep_alive = false;
                        self.decoder.end_of_stream().map_err(|_| Failure::Truncated)?;
                    }
                },
            }
        }
    }

    /// Whether the body is over shows behind its last byte: that is looked at while it is at hand.
    fn look_ahead(&mut self) -> Result<(), Failure> {
        if self.rest.is_empty() || self.decoder.is_done() {
            return Ok(());
        }
        if let Decoded::Data(data) = self.decode()? {
            self.ahead = Some(data);
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<Decoded, Failure> {
        let decoded = self
            .decoder
            .decode(&mut self.rest)
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        if let Decoded::End(Some(trailers)) = &decoded {
            self.trailers = Some(trailers.clone());
        }
        Ok(decoded)
    }

    /// Everything was handed over but trailers.
    pub(super) fn is_finished(&self) -> bool {
        self.head_seen && self.decoder.is_done() && self.ahead.is_none() && self.trailers.is_none()
    }

    pub(super) fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Puts the connection back if request and response are both over.
    pub(super) fn release(self, attempt: &Attempt) {
        let outgoing = attempt.inbound.take_outgoing();
        let reusable = self.keep_alive && self.is_finished() && self.rest.is_empty();
        let Some((writer, out)) = outgoing.filter(|_| reusable).and_then(Outgoing::into_writer)
        else {
            return;
        };
        let served = self.served.saturating_add(1);
        let cluster = &attempt.cluster;
        if cluster.max_requests_per_connection.is_some_and(|most| served >= most) {
            return;
        }
        let link = &attempt.inbound.link;
        let connection =
            H1Connection { reader: self.reader, writer, rest: Bytes::new(), out, served };
        let most = link.instance.limits().max_idle_per_endpoint;
        self.pool.put_h1(link.worker, connection, cluster.idle_timeout, most);
    }
}

/// A connection from the pool, or a new one: whichever is there first.
async fn connect(attempt: &Arc<Attempt>, pool: &EndpointPool) -> Result<H1Connection, Failure> {
    let worker = attempt.inbound.link.worker;
    if !attempt.fresh
        && let Some(connection) = pool.take_h1(worker)
    {
        return Ok(connection);
    }
    // Boxed: it is much larger than all the rest, and rare.
    let mut dialling = Box::pin(dial(Destination { attempt, pool, http2: false }));
    loop {
        tokio::select! {
            biased;
            dialled = &mut dialling => {
                let (reader, writer) = dialled?.split();
                let (rest, out) = (Bytes::new(), BytesMut::new());
                return Ok(H1Connection { reader, writer, rest, out, served: 0 });
            }
            () = pool.h1_returned(worker), if !attempt.fresh => {
                if let Some(connection) = pool.take_h1(worker) {
                    return Ok(connection);
                }
            }
        }
    }
}

/// Where no body has to be announced, too (RFC 9110 §8.6; Envoy: `requestShouldHaveNoBody`).
fn may_have_body(method: &Method) -> bool {
    !matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
    )
}

/// Encodes the head; returns how the body is framed.
fn put_head(out: &mut BytesMut, request: &RequestHeader, end: bool) -> BodyLength {
    let upgrade = request.headers.contains_key(header::UPGRADE);
    out.reserve(1024);
    out.put_slice(request.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(request.raw_path());
    out.put_slice(b" HTTP/1.1\r\n");
    let mut announced = None;
    for (name, value) in &request.headers {
        match *name {
            header::TRANSFER_ENCODING => continue,
            header::CONTENT_LENGTH => {
                announced = value.to_str().ok().and_then(|length| length.parse().ok());
            }
            _ => {}
        }
        put_header(out, name, value);
    }
    let length = match announced {
        Some(0) => BodyLength::Empty,
        Some(length) => BodyLength::Sized(length),
        None if end || upgrade => {
            if !upgrade && may_have_body(&request.method) {
                out.put_slice(b"content-length: 0\r\n");
            }
            BodyLength::Empty
        }
        None => {
            out.put_slice(b"transfer-encoding: chunked\r\n");
            BodyLength::Chunked
        }
    };
    out.put_slice(b"\r\n");
    length
}
