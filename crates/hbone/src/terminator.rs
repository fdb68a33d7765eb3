//! The receiving side: one accepted TCP connection from TLS to its last stream.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use cairn_identity::{Identity, PeerRefusal, peer_identity};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authority::{AuthorityError, Target};
use crate::connect::{Connect, Peer, answer};
use crate::counters::{HandshakeFailure, TerminatorCounters, increase};
use crate::defer::Defer;
use crate::drain::DrainWatch;
use crate::flood::{FloodLimits, Metered, PREFACE_BYTES, Wire, tls_refusal};
use crate::headers::ConnectHeaders;
use crate::socket::Socket;
use crate::traffic::Counted;
use crate::{keepalive, socket};

/// Streams of one connection at the same time, always. ztunnel opens up to 100 whatever is advertised, and advertises
/// 200 itself; a stream above it is refused with REFUSED_STREAM and the connection stays.
pub const MAX_CONCURRENT_STREAMS: u32 = 200;

/// How long the first stream of a connection that began in a drain may take until GOAWAY. A peer that has dialled means to
/// open one, and does not try again when it cannot.
const FIRST: Duration = Duration::from_secs(2);

/// How long a peer may take to close a connection that has ended well.
const LINGER: Duration = Duration::from_secs(1);

/// Bounds of a [`Terminator`]. Values that HTTP/2 does not allow are moved to the nearest one that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminatorConfig {
    /// For TLS and the HTTP/2 preface together. Default 10 s.
    pub handshake_timeout: Duration,
    /// What the peer may send on one stream before we take it, in bytes. Default 1 MiB.
    pub initial_stream_window: u32,
    /// What the peer may send on all streams together before we take it, in bytes. Default 4 MiB.
    pub initial_connection_window: u32,
    /// The largest DATA frame that the peer may send, in bytes, from 16 KiB. Default 64 KiB.
    pub max_frame_size: u32,
    /// The largest header list of a CONNECT, in bytes as HPACK counts them. A larger one is answered with 431.
    /// Default 64 KiB.
    pub max_header_list_size: u32,
    /// Bytes of one stream that wait for the peer's socket; a writer waits beyond it. Default 256 KiB.
    pub max_send_buffer: u32,
    /// A PING after so long since the previous answer. Default 10 s.
    pub keepalive_interval: Duration,
    /// The connection is cut when a PING is not answered within this. Default 20 s.
    pub keepalive_timeout: Duration,
    /// Bounds against floods.
    pub flood: FloodLimits,
    /// Lets the connection's driver wait one scheduler round, so that the writes of many streams share one system
    /// call: see [`Defer`]. Default on.
    pub batch: bool,
}

impl Default for TerminatorConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            initial_stream_window: 1024 * 1024,
            initial_connection_window: 4 * 1024 * 1024,
            max_frame_size: 64 * 1024,
            max_header_list_size: 64 * 1024,
            max_send_buffer: 256 * 1024,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            flood: FloodLimits::default(),
            batch: true,
        }
    }
}

/// How a connection ended, when not by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS was refused, by us or by the peer.
    #[error("TLS handshake refused: {0}")]
    Refused(#[source] PeerRefusal),
    /// TLS and the HTTP/2 preface were not complete in time.
    #[error("the handshake was not complete in time")]
    HandshakeTimeout,
    /// The peer closed or reset the connection during the handshake.
    #[error("the connection ended during the handshake: {0}")]
    HandshakeClosed(#[source] io::Error),
    /// What came after TLS was not the HTTP/2 preface.
    #[error("no HTTP/2 preface: {0}")]
    Preface(#[source] h2::Error),
    /// The peer violated HTTP/2, or its connection broke.
    #[error("the connection failed: {0}")]
    Http2(#[source] h2::Error),
    /// The peer sent more frames without data than it may: see [`FloodLimits`].
    #[error("the peer flooded the connection with control frames")]
    Flood,
    /// The peer did not answer a PING.
    #[error("the peer did not answer a PING in time")]
    KeepaliveTimeout,
}

impl ServeError {
    /// Why the connection never came to HTTP/2; `None` for one that did.
    pub fn handshake_failure(&self) -> Option<HandshakeFailure> {
        match self {
            Self::Refused(refusal) => Some(HandshakeFailure::Refused(refusal.clone())),
            Self::HandshakeTimeout => Some(HandshakeFailure::Timeout),
            Self::HandshakeClosed(_) => Some(HandshakeFailure::Closed),
            Self::Preface(_) => Some(HandshakeFailure::Preface),
            Self::Http2(_) | Self::Flood | Self::KeepaliveTimeout => None,
        }
    }
}

/// Serves HBONE connections of one identity. Clones share it.
#[derive(Debug, Clone)]
pub struct Terminator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: Identity,
    config: TerminatorConfig,
    counters: Arc<TerminatorCounters>,
}

type Http2 = h2::server::Connection<Metered<TlsStream<Counted<Socket>>>, Bytes>;

/// Counts the end of a connection.
struct Open<'a>(&'a TerminatorCounters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        increase(&self.0.connections_closed);
    }
}

impl Terminator {
    /// A terminator that presents `identity` as it is at each handshake.
    pub fn new(
        identity: Identity,
        config: TerminatorConfig,
        counters: Arc<TerminatorCounters>,
    ) -> Self {
        Self(Arc::new(Shared { identity, config, counters }))
    }

    /// Serves one connection until it is over. Dropping the future cuts it.
    ///
    /// `on_connect` gets every well-formed CONNECT, within this task, so it must not block: it spawns, accepts or
    /// refuses. Anything else is answered with 400 here (a request that even HTTP/2 forbids, like an extended CONNECT,
    /// with RST_STREAM). When `drain` starts, the peer is told to open no more streams, and the connection ends with
    /// the last one. One that begins in the drain is told with its first stream.
    ///
    /// # Errors
    ///
    /// Everything but a regular end, for the log and for nothing else: it is counted already.
    pub async fn serve<F>(
        &self,
        tcp: TcpStream,
        peer_addr: SocketAddr,
        drain: DrainWatch,
        mut on_connect: F,
    ) -> Result<(), ServeError>
    where
        F: FnMut(Connect) + Send,
    {
        let Shared { config, counters, .. } = &*self.0;
        increase(&counters.connections_opened);
        let _open = Open(counters);

        // Boxed: it is much larger than what comes after it, and short-lived.
        let socket = Socket::new(tcp);
        let (mut http2, peer, wire) =
            match Box::pin(self.handshake(socket.clone(), peer_addr)).await {
                Ok(handshaken) => handshaken,
                Err(error) => {
                    if let Some(failure) = error.handshake_failure() {
                        counters.handshake_failed(&failure);
                    }
                    return Err(error);
                }
            };
        increase(&counters.handshakes);

        let mut silence = pin!(keepalive::unanswered(
            http2.ping_pong(),
            config.keepalive_interval,
            config.keepalive_timeout,
        ));
        let late = drain.is_started();
        let mut drained = pin!(async {
            if late {
                Box::pin(tokio::time::sleep(FIRST)).await;
            } else {
                drain.started().await;
            }
        });
        let mut draining = false;
        let driver = poll_fn(|cx| {
            if !draining && drained.as_mut().poll(cx).is_ready() {
                draining = true;
                http2.graceful_shutdown();
            }
            if silence.as_mut().poll(cx).is_ready() {
                increase(&counters.keepalive_timeouts);
                return Poll::Ready(Err(ServeError::KeepaliveTimeout));
            }
            loop {
                match http2.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        if let Some(connect) = self.receive(&peer, request, respond) {
                            on_connect(connect);
                        }
                        if late && !draining {
                            draining = true;
                            http2.graceful_shutdown();
                        }
                    }
                    // A peer that closes as soon as it is told to is no failure.
                    Poll::Ready(Some(Err(error))) if draining && error.is_io() => {
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(self.ended(error, &wire)));
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let end = Defer::new(driver, config.batch).await;
        drop(http2);
        if end.is_ok() {
            Box::pin(socket.linger(LINGER)).await;
        }
        end
    }

    async fn handshake(
        &self,
        socket: Socket,
        peer_addr: SocketAddr,
    ) -> Result<(Http2, Arc<Peer>, Arc<Wire>), ServeError> {
        let Shared { identity, config, counters, .. } = &*self.0;
        let wire = Arc::<Wire>::default();
        let shake = async {
            socket::prepare(socket.tcp()).map_err(ServeError::HandshakeClosed)?;
            let local_addr = socket.tcp().local_addr().map_err(ServeError::HandshakeClosed)?;
            let socket = Counted::new(socket, Arc::clone(&counters.traffic));
            let acceptor = TlsAcceptor::from(identity.server_config());
            let tls = acceptor.accept(socket).await.map_err(tls_error)?;
            let (_, session) = tls.get_ref();
            let id = peer_identity(session.peer_certificates().unwrap_or_default())
                .map_err(ServeError::Refused)?;
            let peer = Arc::new(Peer {
                id,
                addr: peer_addr,
                local_addr,
                local_id: identity.current().id.clone(),
            });
            let io = Metered::new(tls, PREFACE_BYTES, &config.flood, Arc::clone(&wire));
            let http2 = builder(config).handshake(io).await.map_err(preface_error)?;
            Ok((http2, peer))
        };
        let (http2, peer) = timeout(config.handshake_timeout, shake)
            .await
            .unwrap_or(Err(ServeError::HandshakeTimeout))?;
        Ok((http2, peer, wire))
    }

    /// A request as a CONNECT, or its answer.
    fn receive(
        &self,
        peer: &Arc<Peer>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Option<Connect> {
        let (head, recv) = request.into_parts();
        if head.method != Method::CONNECT || head.extensions.get::<h2::ext::Protocol>().is_some() {
            tracing::debug!(peer = %peer.id, method = %head.method, "not a CONNECT");
            increase(&self.0.counters.connects_malformed);
            answer(respond, StatusCode::BAD_REQUEST);
            return None;
        }
        let authority = head.uri.authority().map_or("", |authority| authority.as_str());
        match Target::parse(authority) {
            Ok(target) => Some(Connect::new(
                Arc::clone(peer),
                target,
                ConnectHeaders::from_headers(&head.headers),
                (recv, respond),
                Arc::clone(&self.0.counters),
            )),
            Err(error) => {
                self.malformed(peer, authority, error, respond);
                None
            }
        }
    }

    fn malformed(
        &self,
        peer: &Peer,
        authority: &str,
        error: AuthorityError,
        respond: SendResponse<Bytes>,
    ) {
        tracing::debug!(peer = %peer.id, authority, %error, "CONNECT without a good authority");
        increase(&self.0.counters.connects_malformed);
        answer(respond, StatusCode::BAD_REQUEST);
    }

    fn ended(&self, error: h2::Error, wire: &Wire) -> ServeError {
        let calmed = error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        if calmed || wire.is_flooded() {
            increase(&self.0.counters.floods);
            return ServeError::Flood;
        }
        ServeError::Http2(error)
    }
}

/// The h2 settings of our side.
fn builder(config: &TerminatorConfig) -> h2::server::Builder {
    let TerminatorConfig {
        handshake_timeout: _,
        initial_stream_window,
        initial_connection_window,
        max_frame_size,
        max_header_list_size,
        max_send_buffer,
        keepalive_interval: _,
        keepalive_timeout: _,
        flood,
        batch: _,
    } = config;
    let FloodLimits {
        control_frame_burst: _,
        control_frames_per_second: _,
        pending_resets,
        faulty_streams,
        small_frame_bytes,
        remembered_resets,
        remember_resets,
    } = flood;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_window_size(window(*initial_stream_window))
        .initial_connection_window_size(window(*initial_connection_window))
        .max_frame_size(frame_size(*max_frame_size))
        .max_header_list_size(*max_header_list_size)
        .max_send_buffer_size(*max_send_buffer as usize)
        .max_pending_accept_reset_streams(*pending_resets)
        .max_local_error_reset_streams(Some(*faulty_streams))
        .data_frame_budget(*small_frame_bytes)
        .max_concurrent_reset_streams(*remembered_resets)
        .reset_stream_duration(*remember_resets);
    builder
}

/// RFC 9113 section 6.9.1: at most 2^31-1.
pub(crate) fn window(bytes: u32) -> u32 {
    bytes.min((1 << 31) - 1)
}

/// RFC 9113 section 6.5.2: from 2^14 to 2^24-1.
pub(crate) fn frame_size(bytes: u32) -> u32 {
    bytes.clamp(1 << 14, (1 << 24) - 1)
}

fn tls_error(error: io::Error) -> ServeError {
    match tls_refusal(&error) {
        Some(refusal) => ServeError::Refused(refusal),
        None => ServeError::HandshakeClosed(error),
    }
}

fn preface_error(error: h2::Error) -> ServeError {
    if error.is_io() {
        ServeError::HandshakeClosed(crate::stream::into_io(error))
    } else {
        ServeError::Preface(error)
    }
}
