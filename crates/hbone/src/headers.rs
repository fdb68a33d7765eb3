//! The headers of a CONNECT that are kept and passed on. All of them describe, none of them authorises.

use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::baggage::SourceWorkload;
use crate::forwarded::Forwarded;

/// The largest value of one of these headers, in bytes. A larger one is dropped, as if it had not been sent.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = http::header::FORWARDED;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
const X_ISTIO_SOURCE: HeaderName = HeaderName::from_static("x-istio-source");

/// The headers that HBONE peers send with a CONNECT, each at most [`MAX_HEADER_BYTES`].
///
/// ztunnel sends `baggage`, `forwarded` and `traceparent`, and `x-forwarded-network` to another network; Envoy
/// waypoints and gateways send `x-istio-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// The source workload: see [`SourceWorkload`].
    pub baggage: Option<HeaderValue>,
    /// The application's own address and the service that it addressed: see [`Forwarded`].
    pub forwarded: Option<HeaderValue>,
    /// W3C trace context.
    pub traceparent: Option<HeaderValue>,
    /// The network of the source, where it is another one.
    pub x_forwarded_network: Option<HeaderValue>,
    /// What kind of proxy the peer is: `waypoint`, `gateway` or `sidecar`.
    pub x_istio_source: Option<HeaderValue>,
}

impl ConnectHeaders {
    /// Keeps the known headers of a CONNECT. The lists (`baggage`, `forwarded`) may stand on several lines, which are
    /// joined; of the others the first line counts.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            baggage: joined(headers, &BAGGAGE),
            forwarded: joined(headers, &FORWARDED),
            traceparent: first(headers, &TRACEPARENT),
            x_forwarded_network: first(headers, &X_FORWARDED_NETWORK),
            x_istio_source: first(headers, &X_ISTIO_SOURCE),
        }
    }

    /// Writes them into the headers of a CONNECT. Values above [`MAX_HEADER_BYTES`] are left out.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        let Self { baggage, forwarded, traceparent, x_forwarded_network, x_istio_source } = self;
        for (name, value) in [
            (BAGGAGE, baggage),
            (FORWARDED, forwarded),
            (TRACEPARENT, traceparent),
            (X_FORWARDED_NETWORK, x_forwarded_network),
            (X_ISTIO_SOURCE, x_istio_source),
        ] {
            if let Some(value) = value.as_ref().filter(|value| fits(value)) {
                headers.insert(name, value.clone());
            }
        }
    }

    /// The application's address by `forwarded: for=`, with port 0 where none is given.
    pub fn forwarded_for(&self) -> Option<SocketAddr> {
        self.forwarded().client
    }

    /// What `forwarded` says; empty when the header is absent or not text.
    pub fn forwarded(&self) -> Forwarded {
        text(self.forwarded.as_ref()).map(Forwarded::parse).unwrap_or_default()
    }

    /// What `baggage` says of the source workload; empty when the header is absent or not text.
    pub fn source(&self) -> SourceWorkload {
        text(self.baggage.as_ref()).map(SourceWorkload::parse).unwrap_or_default()
    }
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

fn fits(value: &HeaderValue) -> bool {
    value.len() <= MAX_HEADER_BYTES
}

fn first(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    headers.get(name).filter(|value| fits(value)).cloned()
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    let mut rest = lines.peekable();
    if rest.peek().is_none() {
        return fits(line).then(|| line.clone());
    }
    let mut list = line.as_bytes().to_vec();
    for line in rest {
        list.push(b',');
        list.extend_from_slice(line.as_bytes());
        if list.len() > MAX_HEADER_BYTES {
            return None;
        }
    }
    HeaderValue::from_bytes(&list).ok().filter(fits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn kept_and_written_back() {
        let mut headers = HeaderMap::new();
        headers.insert("baggage", HeaderValue::from_static("service.name=a"));
        headers.append("baggage", HeaderValue::from_static("service.version=v2"));
        headers.insert("forwarded", HeaderValue::from_static("for=\"10.0.0.1:2\""));
        headers.insert("traceparent", HeaderValue::from_static("00-1-2-00"));
        headers.append("traceparent", HeaderValue::from_static("00-3-4-00"));
        headers.insert("x-forwarded-network", HeaderValue::from_static("n2"));
        headers.insert("x-istio-source", HeaderValue::from_static("gateway"));
        headers.insert("authorization", HeaderValue::from_static("secret"));

        let kept = ConnectHeaders::from_headers(&headers);
        assert_eq!(kept.forwarded_for(), Some("10.0.0.1:2".parse().unwrap()));
        assert_eq!(kept.source().service.as_deref(), Some("a"));
        assert_eq!(kept.source().revision.as_deref(), Some("v2"));
        assert_eq!(kept.traceparent.as_ref().unwrap(), "00-1-2-00");

        let mut written = HeaderMap::new();
        kept.write_to(&mut written);
        assert_eq!(written.len(), 5);
        assert_eq!(ConnectHeaders::from_headers(&written), kept);
    }

    #[test]
    fn too_large_is_dropped() {
        let large = HeaderValue::from_bytes(&vec![b'a'; MAX_HEADER_BYTES + 1]).unwrap();
        let half = HeaderValue::from_bytes(&vec![b'a'; MAX_HEADER_BYTES / 2]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", large.clone());
        headers.insert("forwarded", large);
        headers.insert("baggage", half.clone());
        headers.append("baggage", half);
        assert_eq!(ConnectHeaders::from_headers(&headers), ConnectHeaders::default());
    }
}
