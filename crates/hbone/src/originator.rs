//! The sending side: tunnels over pooled connections to other HBONE endpoints.
//!
//! A tunnel is one stream of an outer connection. Connections are shared by all tunnels with the same identities on
//! both ends and the same outer address; one dial at a time serves all callers that wait for it. A CONNECT whose
//! connection goes away before the answer is sent again on another one, since no byte of the tunnel has been sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_identity::{ExpectedPeers, Identity, PeerRefusal};
use h2::Reason;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri, Version};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::authority::{AuthorityError, Target};
use crate::counters::{OriginatorCounters, increase};
use crate::dial::Dialer;
use crate::flood::FloodLimits;
use crate::headers::ConnectHeaders;
use crate::pool::{Key, Outcome, Pick, Pool, Slot};
use crate::stream::TunnelStream;

/// How often a CONNECT is sent again after its connection went away before the answer.
const MAX_RETRIES: u32 = 2;

/// How often a caller takes over a dial whose runtime stopped under it.
const MAX_LOST_DIALS: u32 = 3;

/// Bounds of an [`Originator`]. Values that HTTP/2 does not allow are moved to the nearest one that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginatorConfig {
    /// Tunnels in one connection, as in ztunnel; less when the peer admits less. Default 100.
    pub max_streams_per_connection: usize,
    /// Connections to one peer. When all are full, callers wait for a tunnel to end. Default 64.
    pub max_connections_per_peer: usize,
    /// A connection without a tunnel is closed after this, as in ztunnel. Default 5 min.
    pub idle_timeout: Duration,
    /// For a dial (TCP, TLS, the peer's SETTINGS), and for a whole [`Originator::connect`] including the answer to the CONNECT. Default 10 s.
    pub connect_timeout: Duration,
    /// What the peer may send on one stream before we take it, in bytes. Default 512 KiB.
    pub initial_stream_window: u32,
    /// What the peer may send on all streams together before we take it, in bytes. Default 64 MiB: more than all streams
    /// of a connection have together, because they carry the responses of different clients, of whom those that do not
    /// read must not stop the others.
    pub initial_connection_window: u32,
    /// The largest DATA frame that the peer may send, in bytes, from 16 KiB. Default 64 KiB.
    pub max_frame_size: u32,
    /// The largest header list of an answer, in bytes as HPACK counts them. Default 16 KiB, as in ztunnel.
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
    /// call: see [`Defer`](crate::Defer). Default on.
    pub batch: bool,
}

impl Default for OriginatorConfig {
    fn default() -> Self {
        Self {
            max_streams_per_connection: 100,
            max_connections_per_peer: 64,
            idle_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            initial_stream_window: 512 * 1024,
            initial_connection_window: 64 * 1024 * 1024,
            max_frame_size: 64 * 1024,
            max_header_list_size: 16 * 1024,
            max_send_buffer: 256 * 1024,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            flood: FloodLimits::default(),
            batch: true,
        }
    }
}

/// Why there is no tunnel. Nothing of it was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The authority given cannot be one.
    #[error("cannot connect: {0}")]
    Authority(#[from] AuthorityError),
    /// The outer connection was not made, or ended before the peer's first HTTP/2 frame.
    #[error("the outer connection was not established: {0}")]
    Dial(#[source] io::Error),
    /// The dial or the answer to the CONNECT took longer than
    /// [`connect_timeout`](OriginatorConfig::connect_timeout).
    #[error("no tunnel within the connect timeout")]
    Timeout,
    /// The peer is not who it should be, or it refused us.
    #[error("TLS with the peer failed: {0}")]
    Tls(#[source] PeerRefusal),
    /// The peer answered the CONNECT with another status than 200. ztunnel: 400 and 503 for targets that it does not
    /// serve, 503 when the backend cannot be reached, 401 when a policy denies.
    #[error("the peer answered the CONNECT with {status}")]
    Refused {
        /// What it answered.
        status: StatusCode,
    },
    /// The stream was reset, or its connection ended, before the answer.
    #[error("the CONNECT ended before its answer: {0}")]
    Reset(#[source] h2::Error),
    /// Every connection that was tried was going away.
    #[error("the peer is going away")]
    Draining,
}

impl ConnectError {
    /// Whether the peer could not be reached, as opposed to having said no: then another endpoint may do. ztunnel
    /// answers 503 when its own connect to the backend fails.
    pub fn is_connect_failure(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Timeout | Self::Tls(_) | Self::Reset(_) | Self::Draining => true,
            Self::Refused { status } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Authority(_) => false,
        }
    }

    /// The same for another caller of the same dial.
    fn duplicate(&self) -> Self {
        match self {
            Self::Authority(error) => Self::Authority(*error),
            Self::Dial(error) => Self::Dial(duplicate(error)),
            Self::Timeout => Self::Timeout,
            Self::Tls(refusal) => Self::Tls(refusal.clone()),
            Self::Refused { status } => Self::Refused { status: *status },
            Self::Reset(error) => {
                Self::Reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR).into())
            }
            Self::Draining => Self::Draining,
        }
    }
}

/// Opens tunnels. Clones share the pool.
///
/// Connections are driven by tasks of the runtime whose caller dialled them; when that runtime ends, they end too, and
/// the next caller dials anew.
#[derive(Debug, Clone)]
pub struct Originator {
    dialer: Arc<Dialer>,
    pool: Arc<Pool>,
}

/// A CONNECT without a tunnel: the reason, and whether it may be sent again.
struct Failed {
    error: ConnectError,
    again: bool,
}

/// Keeps the slot and counts the end of the tunnel.
struct Open {
    _slot: Slot,
    counters: Arc<OriginatorCounters>,
}

impl Drop for Open {
    fn drop(&mut self) {
        increase(&self.counters.tunnels_closed);
    }
}

impl Originator {
    /// An originator with an empty pool, presenting `identity` as it is at each dial.
    pub fn new(
        identity: Identity,
        config: OriginatorConfig,
        counters: Arc<OriginatorCounters>,
    ) -> Self {
        let pool = Pool::new(config.max_streams_per_connection, config.max_connections_per_peer);
        Self { dialer: Arc::new(Dialer { identity, config, counters }), pool }
    }

    /// A tunnel to `authority` through the HBONE endpoint at `outer`, whose certificate must name exactly one of
    /// `expected`. Needs a tokio runtime with I/O and time.
    ///
    /// Dropping the future gives up: a CONNECT that was sent is reset, a dial goes on for others. Dropping the stream
    /// frees its place in the pool.
    ///
    /// # Errors
    ///
    /// Within [`connect_timeout`](OriginatorConfig::connect_timeout), see [`ConnectError`].
    pub async fn connect(
        &self,
        outer: SocketAddr,
        expected: &ExpectedPeers,
        authority: &str,
        headers: &ConnectHeaders,
    ) -> Result<TunnelStream, ConnectError> {
        let request = connect_request(authority, headers)?;
        let key = Key {
            local: self.dialer.identity.current().id.clone(),
            expected: expected.clone(),
            outer,
        };
        timeout(self.dialer.config.connect_timeout, self.attempts(&key, request))
            .await
            .unwrap_or(Err(ConnectError::Timeout))
    }

    /// Closes the connections that carry no tunnel. Returns how many.
    pub fn close_idle(&self) -> usize {
        self.pool.close_idle()
    }

    /// Connections in the pool, used and idle.
    pub fn connections(&self) -> usize {
        self.pool.len()
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<OriginatorCounters> {
        &self.dialer.counters
    }

    async fn attempts(
        &self,
        key: &Key,
        request: Request<()>,
    ) -> Result<TunnelStream, ConnectError> {
        let mut retries = 0;
        loop {
            let (send, slot) = self.slot(key).await?;
            match self.open(send, slot, request.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(Failed { again: true, .. }) if retries < MAX_RETRIES => {
                    retries += 1;
                    increase(&self.dialer.counters.connects_retried);
                }
                Err(Failed { error, .. }) => return Err(error),
            }
        }
    }

    /// A slot, dialling where that is needed.
    async fn slot(&self, key: &Key) -> Result<(SendRequest<Bytes>, Slot), ConnectError> {
        let mut lost = 0;
        loop {
            let outcome = match self.pool.pick(key) {
                Pick::Slot(send, slot) => return Ok((send, slot)),
                Pick::Wait(outcome) => outcome,
                Pick::Dial(dialing, outcome) => {
                    let dialer = Arc::clone(&self.dialer);
                    tokio::spawn(async move { dialer.run(dialing).await });
                    outcome
                }
                Pick::Full(place) => {
                    place.wait().await;
                    continue;
                }
            };
            match dialled(outcome).await {
                Some(result) => result?,
                None if lost < MAX_LOST_DIALS => lost += 1,
                None => return Err(ConnectError::Dial(io::ErrorKind::Interrupted.into())),
            }
        }
    }

    /// Sends the CONNECT and waits for its answer.
    async fn open(
        &self,
        mut send: SendRequest<Bytes>,
        slot: Slot,
        request: Request<()>,
    ) -> Result<TunnelStream, Failed> {
        let (response, body) = send.send_request(request, false).map_err(Failed::of)?;
        drop(send);
        let response = response.await.map_err(Failed::of)?;
        let counters = &self.dialer.counters;
        let status = response.status();
        if status != StatusCode::OK {
            increase(&counters.connects_refused);
            return Err(Failed { error: ConnectError::Refused { status }, again: false });
        }
        increase(&counters.tunnels_opened);
        let wire = Arc::clone(slot.wire());
        let open = Open { _slot: slot, counters: Arc::clone(counters) };
        Ok(TunnelStream::new(body, response.into_body(), Arc::new(open), Some(wire)))
    }
}

impl Failed {
    fn of(error: h2::Error) -> Self {
        if error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR) {
            return Self { error: ConnectError::Draining, again: true };
        }
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        let again = refused || error.is_io() || error.is_go_away();
        Self { error: ConnectError::Reset(error), again }
    }
}

/// How the dial ended; `None` when its task was dropped.
async fn dialled(mut outcome: watch::Receiver<Outcome>) -> Option<Result<(), ConnectError>> {
    let outcome = outcome.wait_for(Option::is_some).await.ok()?;
    outcome.as_ref().map(|result| match result {
        Ok(()) => Ok(()),
        Err(error) => Err(error.duplicate()),
    })
}

fn connect_request(authority: &str, headers: &ConnectHeaders) -> Result<Request<()>, ConnectError> {
    let target = Target::parse(authority)?;
    let uri = Uri::builder()
        .authority(target.to_string())
        .build()
        .map_err(|_| AuthorityError::BadHost)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    headers.write_to(request.headers_mut());
    Ok(request)
}

fn duplicate(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
