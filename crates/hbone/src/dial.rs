//! One outer connection of the originator: how it is established, and its driver.
//!
//! A connection counts as established when the peer's SETTINGS have come. Then two things are certain that the TLS
//! handshake alone leaves open: the peer has accepted our certificate, and we know how many streams it admits, so that
//! no CONNECT waits inside h2 for a stream that another tunnel holds.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use cairn_identity::{Identity, PeerRefusal};
use h2::Reason;
use h2::client::{Connection, SendRequest};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::counters::{HandshakeFailure, OriginatorCounters, increase};
use crate::defer::Defer;
use crate::flood::{FloodLimits, Metered, Wire, tls_refusal};
use crate::originator::{ConnectError, OriginatorConfig};
use crate::pool::{Dialing, Key, Member};
use crate::terminator::{frame_size, window};
use crate::traffic::Counted;
use crate::{keepalive, socket};

type Http2 = Connection<Metered<TlsStream<Counted<TcpStream>>>, Bytes>;

struct Established {
    request: SendRequest<Bytes>,
    http2: Http2,
    wire: Arc<Wire>,
}

/// Why there is no connection: for the counter and for the callers.
type Failure = (HandshakeFailure, ConnectError);

/// What the connections of one originator have in common.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) identity: Identity,
    pub(crate) config: OriginatorConfig,
    pub(crate) counters: Arc<OriginatorCounters>,
}

/// Counts the end of a connection.
struct Open<'a>(&'a OriginatorCounters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        increase(&self.0.connections_closed);
    }
}

impl Dialer {
    /// Dials, tells those who wait, and drives the connection until it is over.
    pub(crate) async fn run(&self, dialing: Dialing) {
        increase(&self.counters.dials);
        // Boxed: the handshake is much larger than what comes after it, and short-lived.
        let established = Box::pin(self.establish(dialing.key())).await;
        let Established { request, http2, wire } = match established {
            Ok(established) => established,
            Err((failure, error)) => {
                self.counters.dial_failed(&failure);
                dialing.fail(error);
                return;
            }
        };
        increase(&self.counters.connections_opened);
        let _open = Open(&self.counters);
        let outer = dialing.key().outer;
        if let Some(member) = dialing.succeed(request, Arc::clone(&wire))
            && let Err(error) = self.drive(http2, &member).await
        {
            self.count_flood(&error, &wire);
            tracing::debug!(%outer, %error, "outer connection ended");
        }
    }

    fn count_flood(&self, error: &h2::Error, wire: &Wire) {
        let calmed = error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        if calmed || wire.is_flooded() {
            increase(&self.counters.floods);
        }
    }

    async fn establish(&self, key: &Key) -> Result<Established, Failure> {
        let Self { identity, config, .. } = self;
        let dial = async {
            let tcp = TcpStream::connect(key.outer).await.map_err(closed)?;
            socket::prepare(&tcp).map_err(closed)?;
            let tcp = Counted::new(tcp, Arc::clone(&self.counters.traffic));
            let connector = TlsConnector::from(identity.client_config(&key.expected));
            let name = ServerName::IpAddress(key.outer.ip().into());
            let tls = connector.connect(name, tcp).await.map_err(tls_failed)?;
            let wire = Arc::<Wire>::default();
            let io = Metered::new(tls, 0, &config.flood, Arc::clone(&wire));
            let handshaken = builder(config).handshake(io).await;
            let (request, mut http2) = handshaken.map_err(|error| self.failed(error, &wire))?;
            let ended = poll_fn(|cx| match Pin::new(&mut http2).poll(cx) {
                Poll::Pending if wire.has_settings() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
                Poll::Ready(end) => Poll::Ready(Some(end)),
            });
            match ended.await {
                None => Ok(Established { request, http2, wire }),
                Some(Ok(())) => Err(closed(io::ErrorKind::UnexpectedEof.into())),
                Some(Err(error)) => Err(self.failed(error, &wire)),
            }
        };
        timeout(config.connect_timeout, dial)
            .await
            .unwrap_or(Err((HandshakeFailure::Timeout, ConnectError::Timeout)))
    }

    /// HTTP/2 ended before the peer's SETTINGS.
    fn failed(&self, error: h2::Error, wire: &Wire) -> Failure {
        self.count_flood(&error, wire);
        if let Some(refusal) = wire.refusal() {
            return refused(refusal.clone());
        }
        let failure = match error.is_io() {
            true => HandshakeFailure::Closed,
            false => HandshakeFailure::Preface,
        };
        (failure, ConnectError::Dial(crate::stream::into_io(error)))
    }

    /// Until the connection has ended: by itself, by silence, or because it was idle and its last reference left with
    /// the pool's.
    async fn drive(&self, mut http2: Http2, member: &Member) -> Result<(), h2::Error> {
        let config = &self.config;
        let mut silence = pin!(keepalive::unanswered(
            http2.ping_pong(),
            config.keepalive_interval,
            config.keepalive_timeout,
        ));
        let mut retired = pin!(member.retired(config.idle_timeout));
        let mut is_retired = false;
        let driver = poll_fn(|cx| {
            if silence.as_mut().poll(cx).is_ready() {
                increase(&self.counters.keepalive_timeouts);
                return Poll::Ready(Ok(()));
            }
            if !is_retired && retired.as_mut().poll(cx).is_ready() {
                is_retired = true;
                increase(&self.counters.idle_released);
            }
            Pin::new(&mut http2).poll(cx)
        });
        Defer::new(driver, config.batch).await
    }
}

fn closed(error: io::Error) -> Failure {
    (HandshakeFailure::Closed, ConnectError::Dial(error))
}

fn refused(refusal: PeerRefusal) -> Failure {
    (HandshakeFailure::Refused(refusal.clone()), ConnectError::Tls(refusal))
}

fn tls_failed(error: io::Error) -> Failure {
    match tls_refusal(&error) {
        Some(refusal) => refused(refusal),
        None => closed(error),
    }
}

/// The h2 settings of our side.
fn builder(config: &OriginatorConfig) -> h2::client::Builder {
    let OriginatorConfig {
        max_streams_per_connection,
        max_connections_per_peer: _,
        idle_timeout: _,
        connect_timeout: _,
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
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(*max_streams_per_connection)
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
