//! One request on an HTTP/2 connection to an endpoint.

use super::attempt::{Attempt, Failure};
use super::dial::{Destination, Dialled, dial, pool_of};
use super::pool::{EndpointPool, H2Lease, H2Limits};
use crate::io::Duplex;
use crate::outgoing::{Outgoing, Sink};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Request, Response, Version, header};
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// Window of one response, bytes.
const STREAM_WINDOW: u32 = 512 * 1024;
/// Window of all responses of one connection, bytes: more than all streams together, because clients that do not read
/// must not stop the others.
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Bytes of a response's head.
const MAX_HEAD: u32 = 64 * 1024;
/// Unsent request bytes that one stream may hold.
const SEND_BUFFER: usize = 256 * 1024;

/// The receiving side of one request; the sending one is the request's [`Outgoing`].
pub(super) struct H2Exchange {
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    finished: bool,
    _lease: H2Lease,
}

impl H2Exchange {
    /// Takes or makes a connection and opens a stream on it.
    pub(super) async fn start(
        attempt: &Arc<Attempt>,
        request: &RequestHeader,
        end: bool,
    ) -> Result<Self, Failure> {
        let pool = pool_of(attempt);
        let head =
            head_of(request).ok_or_else(|| Failure::Protocol("request target".to_owned()))?;
        // A pooled connection may have died unnoticed; nothing was sent on it, so another is taken.
        for _ in 0..3 {
            let lease = lease(attempt, &pool).await?;
            let Ok(mut send) = lease.0.send.clone().ready().await else {
                lease.0.retire();
                continue;
            };
            match send.send_request(head.clone(), end) {
                Ok((response, stream)) => {
                    attempt.inbound.set_outgoing(Outgoing::new(Sink::H2(stream), end));
                    return Ok(H2Exchange {
                        response: Some(response),
                        body: None,
                        finished: false,
                        _lease: lease,
                    });
                }
                Err(_) => lease.0.retire(),
            }
        }
        Err(Failure::Unprocessed)
    }

    /// The next head: interim ones come one by one, then the final one.
    pub(super) async fn head(&mut self) -> Result<ResponseHeader, Failure> {
        let Some(response) = self.response.as_mut() else {
            return Err(Failure::Reset { reused: false });
        };
        let reused = self._lease.is_reused();
        let head = poll_fn(|cx| {
            if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                return Poll::Ready(Ok(Err(interim)));
            }
            Pin::new(&mut *response).poll(cx).map_ok(Ok)
        })
        .await;
        let (parts, ()) = match head {
            Ok(Err(interim)) => interim.into_parts(),
            Ok(Ok(response)) => {
                self.response = None;
                let (parts, body) = response.into_parts();
                self.finished = body.is_end_stream();
                self.body = Some(body);
                (parts, ())
            }
            Err(error) => {
                if error.is_go_away() || error.is_io() {
                    self._lease.0.retire();
                }
                return Err(match error.reason() {
                    _ if error.is_go_away() && error.is_remote() => Failure::Unprocessed,
                    Some(Reason::REFUSED_STREAM) => Failure::RefusedStream,
                    Some(_) if error.is_reset() && error.is_remote() => Failure::StreamReset,
                    _ => Failure::Reset { reused: reused && error.is_io() },
                });
            }
        };
        let (mut normal, ()) = Response::new(()).into_parts();
        normal.status = parts.status;
        normal.version = Version::HTTP_11;
        normal.headers = parts.headers;
        Ok(ResponseHeader::from(normal))
    }

    /// The next part of the body; `None` after the last.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(body) = self.body.as_mut() else {
            return Ok(None);
        };
        match body.data().await {
            Some(Ok(data)) => {
                let _stream_may_be_over = body.flow_control().release_capacity(data.len());
                self.finished = body.is_end_stream();
                Ok(Some(data))
            }
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                self.finished = true;
                Ok(None)
            }
            Some(Err(_)) => Err(Failure::Truncated),
            None => Ok(None),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) async fn trailers(&mut self) -> Result<Option<HeaderMap>, Failure> {
        let Some(body) = self.body.as_mut() else {
            return Ok(None);
        };
        let trailers = body.trailers().await.map_err(|_| Failure::Truncated)?;
        self.finished = true;
        Ok(trailers)
    }
}

async fn lease(attempt: &Arc<Attempt>, pool: &EndpointPool) -> Result<H2Lease, Failure> {
    let link = &attempt.inbound.link;
    let limits = H2Limits {
        streams: link.instance.limits().max_upstream_streams,
        requests: attempt
            .cluster
            .max_requests_per_connection
            .map_or(usize::MAX, |most| most as usize),
    };
    if let Some(lease) = pool.take_h2(link.worker, limits) {
        return Ok(lease);
    }
    let _one_at_a_time = pool.dialling(link.worker).await;
    if let Some(lease) = pool.take_h2(link.worker, limits) {
        return Ok(lease);
    }
    let dialled = dial(Destination { attempt, pool, http2: true }).await?;
    let closed = Arc::new(AtomicBool::new(false));
    let handshake = async {
        match dialled {
            Dialled::Tunnel(io) => handshake(io, Arc::clone(&closed)).await,
            Dialled::Socket(io) => handshake(io, Arc::clone(&closed)).await,
        }
    };
    let send = tokio::time::timeout(attempt.cluster.connect_timeout, handshake)
        .await
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|error| {
            Failure::Connect(format!("HTTP/2 to {}: {error}", attempt.endpoint.address))
        })?;
    Ok(pool.put_h2(link.worker, send, closed, attempt.cluster.idle_timeout))
}

async fn handshake(
    io: impl Duplex + 'static,
    closed: Arc<AtomicBool>,
) -> Result<SendRequest<Bytes>, h2::Error> {
    let (send, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(io)
        .await?;
    tokio::spawn(async move {
        let _over = connection.await;
        closed.store(true, Ordering::Relaxed);
    });
    Ok(send)
}

/// The head as HTTP/2 has it: `Host` becomes `:authority`, what belongs to one HTTP/1 hop goes.
fn head_of(request: &RequestHeader) -> Option<Request<()>> {
    let mut headers = request.headers.clone();
    let authority = headers.remove(header::HOST);
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    let authority = Authority::try_from(authority?.as_bytes()).ok()?;
    let path =
        request.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path);
    let mut head = Request::new(());
    *head.method_mut() = request.method.clone();
    *head.uri_mut() = Uri::from_parts(parts).ok()?;
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = headers;
    Some(head)
}
