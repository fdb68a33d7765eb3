//! HBONE: TCP streams as CONNECT streams of one HTTP/2 connection over mutual TLS, as Istio's ambient mesh speaks it.
//!
//! Two doors:
//!
//! * [`Terminator`] serves one accepted TCP connection: TLS 1.3 with a required client certificate, HTTP/2, and one
//!   [`Connect`] for each well-formed CONNECT. The caller accepts it (200) and gets a [`Tunnel`], or refuses it.
//! * [`Originator`] opens tunnels to other HBONE endpoints over pooled connections, and demands that the other side's
//!   certificate names exactly one of the expected identities.
//!
//! Both give a [`TunnelStream`]: chunks without a copy, or tokio's `AsyncRead` and `AsyncWrite`.
//!
//! Invariants:
//!
//! * The peer's identity comes from its certificate, is parsed once per connection and is never read from a header.
//! * Nothing is buffered beyond the flow-control windows and the bounds in [`TerminatorConfig`] and
//!   [`OriginatorConfig`].
//! * A stream that ends abnormally ends with RST_STREAM, never with END_STREAM.
#![forbid(unsafe_code)]

mod authority;
mod baggage;
mod connect;
mod counters;
mod defer;
mod dial;
mod drain;
mod flood;
mod forwarded;
mod headers;
mod keepalive;
mod originator;
mod pool;
mod socket;
mod stream;
mod terminator;
mod traffic;

pub use authority::{AuthorityError, Target};
pub use baggage::SourceWorkload;
pub use connect::{Connect, Peer, Tunnel, TunnelError};
pub use counters::{HandshakeFailure, OriginatorCounters, TerminatorCounters};
pub use defer::Defer;
pub use drain::{Drain, DrainWatch};
pub use flood::FloodLimits;
pub use forwarded::Forwarded;
pub use headers::{ConnectHeaders, MAX_HEADER_BYTES};
pub use originator::{ConnectError, Originator, OriginatorConfig};
pub use stream::{Probe, TunnelReader, TunnelStream, TunnelWriter, reset_reason};
pub use terminator::{MAX_CONCURRENT_STREAMS, ServeError, Terminator, TerminatorConfig};
pub use traffic::{Counted, Traffic};
