//! One HBONE connection of the load generator, and the ways in which things fail.

use crate::certs::Files;
use anyhow::Result;
use cairn_hbone::{
    ConnectError, ConnectHeaders, Originator, OriginatorConfig, OriginatorCounters, TunnelStream,
};
use cairn_identity::{ExpectedPeers, Identity};
use http::HeaderValue;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

/// What ztunnel says of the source with every CONNECT.
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                       service.name=web,service.version=v1";
/// And of the application's own connection.
const FORWARDED: &str = "for=\"10.244.9.9:39052\";host=app.shop.svc.cluster.local";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// An HBONE connection to the proxy, opened with its first tunnel.
#[derive(Debug, Clone)]
pub struct Lane {
    originator: Originator,
    outer: SocketAddr,
    expected: ExpectedPeers,
    headers: Arc<ConnectHeaders>,
}

/// Why a request was not answered as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(Cow<'static, str>);

impl Failure {
    /// With words that are equal for equal failures.
    pub fn new(kind: impl Into<Cow<'static, str>>) -> Failure {
        Failure(kind.into())
    }

    /// The words.
    pub fn kind(&self) -> &str {
        &self.0
    }

    /// Of a tunnel that broke.
    pub fn of_io(error: &std::io::Error) -> Failure {
        Failure::new(match error.kind() {
            std::io::ErrorKind::ConnectionReset => "tunnel reset",
            std::io::ErrorKind::BrokenPipe => "tunnel closed for writing",
            std::io::ErrorKind::ConnectionAborted => "connection going away",
            _ => "connection broken",
        })
    }

    /// Of an HTTP/2 stream or connection inside a tunnel.
    pub fn of_h2(error: &h2::Error) -> Failure {
        Failure::new(match error.reason() {
            Some(reason) => Cow::Owned(format!("h2 {reason:?}")),
            None => Cow::Borrowed("h2 connection broken"),
        })
    }

    /// The proxy ended a tunnel that is needed.
    pub const CLOSED: Failure = Failure(Cow::Borrowed("tunnel closed"));
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        Failure::new(match error {
            ConnectError::Refused { status } => Cow::Owned(format!("CONNECT {}", status.as_u16())),
            ConnectError::Dial(error) => Cow::Owned(format!("dial: {:?}", error.kind())),
            ConnectError::Timeout => Cow::Borrowed("CONNECT timeout"),
            ConnectError::Tls(refusal) => Cow::Owned(format!("TLS: {}", refusal.label())),
            ConnectError::Reset(_) => Cow::Borrowed("CONNECT reset"),
            ConnectError::Draining => Cow::Borrowed("connection going away"),
            ConnectError::Authority(_) => Cow::Borrowed("bad authority"),
        })
    }
}

/// Who opens connections, and whom it expects to find.
pub struct Lanes {
    identity: Identity,
    outer: SocketAddr,
    expected: ExpectedPeers,
    headers: Arc<ConnectHeaders>,
}

impl Lanes {
    /// To the proxy at `outer`, which must prove to be `expect`.
    pub fn new(certs: &Files, outer: SocketAddr, expect: &str) -> Result<Lanes> {
        let text = |text| Some(HeaderValue::from_static(text));
        Ok(Lanes {
            identity: certs.identity()?,
            outer,
            expected: ExpectedPeers::parse([expect])?,
            headers: Arc::new(ConnectHeaders {
                baggage: text(BAGGAGE),
                forwarded: text(FORWARDED),
                traceparent: text(TRACEPARENT),
                ..ConnectHeaders::default()
            }),
        })
    }

    /// One more, that shares nothing with others. Windows and frames are ztunnel's.
    pub fn lane(&self) -> Lane {
        let config = OriginatorConfig {
            max_streams_per_connection: usize::MAX,
            max_connections_per_peer: 1,
            initial_stream_window: 4 << 20,
            initial_connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            ..OriginatorConfig::default()
        };
        let counters = Arc::new(OriginatorCounters::default());
        Lane {
            originator: Originator::new(self.identity.clone(), config, counters),
            outer: self.outer,
            expected: self.expected.clone(),
            headers: Arc::clone(&self.headers),
        }
    }
}

impl Lane {
    /// A tunnel to `authority`.
    pub async fn open(&self, authority: &str) -> Result<TunnelStream, Failure> {
        Ok(self.originator.connect(self.outer, &self.expected, authority, &self.headers).await?)
    }

    /// Closes the connection when no tunnel is left in it; the next tunnel opens a new one.
    pub fn close(&self) {
        self.originator.close_idle();
    }
}
