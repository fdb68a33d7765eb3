//! Requests out of a tunnel: HTTP/1.1 and h2c as Pingora sessions of our own.
//!
//! Pingora's stock sessions read heads leniently, rewrite `Date` and `Connection`,
//! drop trailers and keep 64 KiB for replays; these follow Envoy (docs/differences.md).

mod h1;
mod h2;
mod session;

pub(crate) use h1::{DRAIN_SILENCE, serve as serve_h1};
pub(crate) use h2::serve as serve_h2;

use pingora_error::{Error, ErrorType};
use std::net::SocketAddr;

/// The part of a request's body that is kept for another try.
#[derive(Debug, Default)]
struct Replay {
    kept: bytes::BytesMut,
    enabled: bool,
    truncated: bool,
}

impl Replay {
    fn keep(&mut self, data: &[u8], limit: usize) {
        if !self.enabled || self.truncated {
            return;
        }
        if self.kept.len() + data.len() > limit {
            self.truncated = true;
            self.kept = bytes::BytesMut::new();
        } else {
            self.kept.extend_from_slice(data);
        }
    }

    fn take(&self) -> Option<bytes::Bytes> {
        if self.truncated || self.kept.is_empty() {
            None
        } else {
            Some(bytes::Bytes::copy_from_slice(&self.kept))
        }
    }
}

/// The response is over and the request is not: the rest of it is of no use to anybody.
fn answered_early() -> Box<Error> {
    Error::explain(ANSWERED_EARLY, "answered before the request was over").into_down()
}

/// How [`answered_early`] is told from a client that has gone.
pub(crate) const ANSWERED_EARLY: ErrorType = ErrorType::new("AnsweredEarly");

/// Pingora's form of an address.
fn pingora_addr(addr: SocketAddr) -> pingora_core::protocols::l4::socket::SocketAddr {
    pingora_core::protocols::l4::socket::SocketAddr::Inet(addr)
}
