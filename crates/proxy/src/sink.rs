//! Pingora's messages as the router's header changes see them.

use cairn_router::header_ops::{HeaderSink, RequestSink};
use cairn_router::request::{HeaderKey, Headers};
use http::{HeaderName, HeaderValue, Uri, header};
use pingora_http::{RequestHeader, ResponseHeader};
use std::borrow::Cow;

/// A request that can be changed.
pub(crate) struct RequestHeaders<'a>(pub(crate) &'a mut RequestHeader);

/// A response that can be changed.
pub(crate) struct ResponseHeaders<'a>(pub(crate) &'a mut ResponseHeader);

/// A request that is only looked at.
pub(crate) struct Seen<'a>(pub(crate) &'a RequestHeader);

impl Headers for Seen<'_> {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        let request = self.0;
        Some(Cow::Borrowed(match key {
            HeaderKey::Method => request.method.as_str().as_bytes(),
            HeaderKey::Authority => request.headers.get(header::HOST)?.as_bytes(),
            HeaderKey::Path => request.raw_path(),
            HeaderKey::Scheme => request.headers.get("x-forwarded-proto")?.as_bytes(),
            HeaderKey::Name(name) => request.headers.get(name)?.as_bytes(),
        }))
    }
}

impl Headers for RequestHeaders<'_> {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        let value = Seen(self.0).first(key)?.into_owned();
        Some(Cow::Owned(value))
    }
}

impl HeaderSink for RequestHeaders<'_> {
    fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        let _only_full_maps_refuse = self.0.insert_header(name.clone(), value);
    }

    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        let _only_full_maps_refuse = self.0.append_header(name.clone(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }
}

impl RequestSink for RequestHeaders<'_> {
    fn set_authority(&mut self, authority: &HeaderValue) {
        let _only_full_maps_refuse = self.0.insert_header(header::HOST, authority.clone());
    }

    fn set_path(&mut self, path_and_query: &str) {
        if let Ok(uri) = Uri::try_from(path_and_query) {
            self.0.set_uri(uri);
        }
    }
}

impl Headers for ResponseHeaders<'_> {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        self.0.headers.first(key)
    }
}

impl HeaderSink for ResponseHeaders<'_> {
    fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        let _only_full_maps_refuse = self.0.insert_header(name.clone(), value);
    }

    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        let _only_full_maps_refuse = self.0.append_header(name.clone(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.0.remove_header(name);
    }
}
