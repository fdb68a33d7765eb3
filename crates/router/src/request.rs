//! What is known of a request and of the connection that it came in on.
//!
//! Both are borrowed views: matching allocates nothing. The path of a [`RequestView`] went through
//! [`path::normalize`](crate::path::normalize), so that policies, routes and the endpoint see the
//! same one.

use http::{HeaderMap, HeaderName, Method};
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A request's head.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a Method,
    /// `:authority`, with its port if it has one.
    pub authority: &'a str,
    /// Normalised path without the query.
    pub path: &'a str,
    /// Query without the `?`.
    pub query: Option<&'a str>,
    /// `:scheme`.
    pub scheme: &'a str,
    /// Headers without pseudo-headers.
    pub headers: &'a HeaderMap,
}

/// The tunnel that a request or byte stream came in on.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionView<'a> {
    /// The peer's SPIFFE URI; `None` never matches an identity.
    pub peer_id: Option<&'a str>,
    /// Address of the HBONE peer.
    pub source: SocketAddr,
    /// Address that CONNECT named; `None` when it named a host.
    pub destination: Option<SocketAddr>,
    /// Port that CONNECT named: the service's.
    pub port: u16,
}

/// A header, or one of the pseudo-headers that matchers and formats can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:authority`, and `host` too (Envoy).
    Authority,
    /// `:path`, query included.
    Path,
    /// `:scheme`
    Scheme,
    /// Any other.
    Name(HeaderName),
}

/// Something that has headers.
pub trait Headers {
    /// First value. `None` if there is none, and for pseudo-headers of what is no request.
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>>;
}

impl HeaderKey {
    /// Takes a name in any case; the error says what is wrong with it.
    pub fn parse(name: &str) -> Result<HeaderKey, String> {
        if let Some(pseudo) = name.strip_prefix(':') {
            return match pseudo.to_ascii_lowercase().as_str() {
                "method" => Ok(HeaderKey::Method),
                "authority" => Ok(HeaderKey::Authority),
                "path" => Ok(HeaderKey::Path),
                "scheme" => Ok(HeaderKey::Scheme),
                _ => Err(format!(
                    "`{name}` is not known; there are `:method`, `:authority`, `:path` and `:scheme`"
                )),
            };
        }
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(http::header::HOST) => Ok(HeaderKey::Authority),
            Ok(name) => Ok(HeaderKey::Name(name)),
            Err(_) => Err(format!("`{name}` is no header name")),
        }
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        match self {
            HeaderKey::Method => ":method",
            HeaderKey::Authority => ":authority",
            HeaderKey::Path => ":path",
            HeaderKey::Scheme => ":scheme",
            HeaderKey::Name(name) => name.as_str(),
        }
    }
}

impl<'a> RequestView<'a> {
    /// Path and query as they are sent.
    pub fn path_and_query(&self) -> Cow<'a, str> {
        match self.query {
            Some(query) => Cow::Owned(format!("{}?{query}", self.path)),
            None => Cow::Borrowed(self.path),
        }
    }

    /// The last address of `x-forwarded-for`: the client's, if who sent the request is trusted
    /// (Envoy: `use_remote_address: false` with no trusted hops). `None`: there is none.
    pub fn forwarded_for(&self) -> Option<IpAddr> {
        let last = self.headers.get_all(X_FORWARDED_FOR).iter().next_back()?;
        let last = last.to_str().ok()?.rsplit(',').next()?.trim_ascii();
        last.parse::<IpAddr>().ok().map(|address| address.to_canonical())
    }
}

impl Headers for RequestView<'_> {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        let text = match key {
            HeaderKey::Method => self.method.as_str(),
            HeaderKey::Authority => self.authority,
            HeaderKey::Scheme => self.scheme,
            HeaderKey::Path => {
                return Some(match self.path_and_query() {
                    Cow::Borrowed(path) => Cow::Borrowed(path.as_bytes()),
                    Cow::Owned(path) => Cow::Owned(path.into_bytes()),
                });
            }
            HeaderKey::Name(name) => {
                return self.headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()));
            }
        };
        Some(Cow::Borrowed(text.as_bytes()))
    }
}

impl Headers for HeaderMap {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        match key {
            HeaderKey::Name(name) => self.get(name).map(|value| Cow::Borrowed(value.as_bytes())),
            HeaderKey::Method | HeaderKey::Authority | HeaderKey::Path | HeaderKey::Scheme => None,
        }
    }
}

impl ConnectionView<'_> {
    /// Address of the HBONE peer; IPv4 also where the socket says `::ffff:a.b.c.d`.
    pub fn source_ip(&self) -> IpAddr {
        self.source.ip().to_canonical()
    }

    /// Address that CONNECT named; IPv4 also where it said `::ffff:a.b.c.d`.
    pub fn destination_ip(&self) -> Option<IpAddr> {
        self.destination.map(|address| address.ip().to_canonical())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names() {
        assert_eq!(HeaderKey::parse(":Method"), Ok(HeaderKey::Method));
        assert_eq!(HeaderKey::parse("Host"), Ok(HeaderKey::Authority));
        assert_eq!(HeaderKey::parse("X-A").unwrap().as_str(), "x-a");
        assert!(HeaderKey::parse(":status").unwrap_err().contains(":authority"));
        assert_eq!(HeaderKey::parse("a b"), Err("`a b` is no header name".to_owned()));
        assert!(HeaderKey::parse("").is_err());
    }

    #[test]
    fn path_has_its_query() {
        let headers = HeaderMap::new();
        let mut view = RequestView {
            method: &Method::GET,
            authority: "a",
            path: "/x",
            query: Some("y=1"),
            scheme: "http",
            headers: &headers,
        };
        assert_eq!(view.first(&HeaderKey::Path).as_deref(), Some("/x?y=1".as_bytes()));
        view.query = None;
        assert!(matches!(view.first(&HeaderKey::Path), Some(Cow::Borrowed(b"/x"))));
        assert_eq!(headers.first(&HeaderKey::Path), None);
    }
}
