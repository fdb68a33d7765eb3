//! The request in question, which filters and routes may change.

use super::question::Asked;
use cairn_router::destination::HttpChain;
use cairn_router::header_ops::{HeaderSink, RequestSink};
use cairn_router::path;
use cairn_router::request::{HeaderKey, Headers, RequestView};
use cairn_router::spec::EscapedSlashes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::borrow::Cow;
use std::fmt::{self, Display};

/// A request's head.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// `:authority`
    pub authority: String,
    /// Path and query.
    pub target: String,
    /// Without pseudo-headers.
    pub headers: HeaderMap,
}

/// Why a request is answered before any filter sees it.
pub enum Refused {
    /// 400.
    Bad(String),
    /// A redirect there.
    Redirect(String),
}

impl Request {
    /// As the client sends it.
    pub fn new(asked: &Asked, default_authority: &str) -> Self {
        Request {
            method: asked.method.clone(),
            authority: asked.authority.clone().unwrap_or_else(|| default_authority.to_owned()),
            target: asked.path.clone(),
            headers: asked.headers.clone(),
        }
    }

    /// Brings the path into the form that filters and routes see.
    pub fn normalise(&mut self, chain: &HttpChain) -> Result<(), Refused> {
        let escaped = path::unescape_slashes(&self.target);
        match (chain.escaped_slashes, escaped) {
            (EscapedSlashes::KeepUnchanged, _) | (_, None) => {}
            (EscapedSlashes::RejectRequest, Some(_)) => {
                return Err(Refused::Bad("the path has an escaped slash".to_owned()));
            }
            (EscapedSlashes::UnescapeAndForward, Some(path)) => self.target = path,
            (EscapedSlashes::UnescapeAndRedirect, Some(path)) => {
                return Err(Refused::Redirect(path));
            }
        }
        let normal = if chain.normalize_path {
            let normal = path::normalize(&self.target, chain.merge_slashes);
            normal.map_err(|error| Refused::Bad(error.to_string()))?.into_owned()
        } else if chain.merge_slashes {
            path::merge_slashes(&self.target).into_owned()
        } else {
            return Ok(());
        };
        self.target = normal;
        Ok(())
    }

    /// As policies and routes see it.
    pub fn view(&self) -> RequestView<'_> {
        let (path, query) = path::split(&self.target);
        let proto = self.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        RequestView {
            method: &self.method,
            authority: &self.authority,
            path,
            query,
            scheme: proto.unwrap_or("http"),
            headers: &self.headers,
        }
    }

    /// What `self` has and `before` has not, and the other way round.
    pub fn changes_since(&self, before: &Request) -> Vec<String> {
        let mut changes = Vec::new();
        for (what, old, new) in [
            (":authority", &before.authority, &self.authority),
            (":path", &before.target, &self.target),
        ] {
            if old != new {
                changes.push(format!("{what}: {old} becomes {new}"));
            }
        }
        let all = |headers: &HeaderMap, name: &HeaderName| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        };
        for name in before.headers.keys() {
            if !self.headers.contains_key(name) {
                changes.push(format!("{name} is removed"));
            }
        }
        for name in self.headers.keys() {
            let (old, new) = (all(&before.headers, name), all(&self.headers, name));
            if old != new {
                changes.push(format!("{name} is set to {}", new.join(", ")));
            }
        }
        changes
    }
}

impl Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} host {}", self.method, self.target, self.authority)
    }
}

impl Headers for Request {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        let text = match key {
            HeaderKey::Method => self.method.as_str(),
            HeaderKey::Authority => &self.authority,
            HeaderKey::Path => &self.target,
            HeaderKey::Scheme => self.view().scheme,
            HeaderKey::Name(_) => return self.headers.first(key),
        };
        Some(Cow::Owned(text.as_bytes().to_vec()))
    }
}

impl HeaderSink for Request {
    fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        self.headers.append(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.headers.remove(name);
    }
}

impl RequestSink for Request {
    fn set_authority(&mut self, authority: &HeaderValue) {
        self.authority = String::from_utf8_lossy(authority.as_bytes()).into_owned();
    }

    fn set_path(&mut self, path_and_query: &str) {
        path_and_query.clone_into(&mut self.target);
    }
}
