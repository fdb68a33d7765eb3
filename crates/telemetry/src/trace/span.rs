//! A span: what is told of one request, or of one try at an endpoint.

use super::propagation::Context;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Which end of a request it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that came.
    Server,
    /// A request that was sent.
    Client,
}

/// Name of a tag: one of Envoy's, or one of the configuration's.
#[derive(Debug, Clone)]
pub enum TagName {
    /// One of Envoy's.
    Known(&'static str),
    /// One of the configuration's.
    Configured(Arc<str>),
}

impl TagName {
    /// As text.
    pub fn as_str(&self) -> &str {
        match self {
            TagName::Known(name) => name,
            TagName::Configured(name) => name,
        }
    }
}

/// Tags, each name once: one that is set again replaces the value and keeps its place (Envoy).
#[derive(Debug, Clone, Default)]
pub struct Tags(Vec<(TagName, Cow<'static, str>)>);

impl Tags {
    /// Without any, and room for `count`.
    pub fn with_capacity(count: usize) -> Self {
        Tags(Vec::with_capacity(count))
    }

    /// Sets a tag of Envoy's.
    pub fn set(&mut self, name: &'static str, value: impl Into<Cow<'static, str>>) {
        self.put(TagName::Known(name), value.into());
    }

    /// Sets a tag of the configuration's.
    pub fn set_configured(&mut self, name: &Arc<str>, value: impl Into<Cow<'static, str>>) {
        self.put(TagName::Configured(Arc::clone(name)), value.into());
    }

    fn put(&mut self, name: TagName, value: Cow<'static, str>) {
        match self.0.iter_mut().find(|(known, _)| known.as_str() == name.as_str()) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a tag.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.as_str() == name).map(|(_, value)| &**value)
    }

    /// In the order in which they were set first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), &**value))
    }
}

/// When something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// When.
    pub at: SystemTime,
    /// What.
    pub what: &'static str,
}

/// A span that is over.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its ids.
    pub context: Context,
    /// Its id is that of the caller's span, too (Zipkin).
    pub shared: bool,
    /// The parent is a span of another process.
    pub remote_parent: bool,
    /// `tracestate` of the request.
    pub trace_state: String,
    /// Which end.
    pub kind: Kind,
    /// What was asked for.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Its tags.
    pub tags: Tags,
    /// What happened meanwhile.
    pub annotations: Vec<Annotation>,
}

impl Span {
    /// It has failed (Envoy: by its tag `error`).
    pub fn failed(&self) -> bool {
        self.tags.get("error") == Some("true")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_one_value() {
        let mut tags = Tags::with_capacity(2);
        tags.set("http.method", "GET");
        tags.set("component", "proxy");
        tags.set_configured(&"http.method".into(), "other".to_owned());
        let all: Vec<_> = tags.iter().collect();
        assert_eq!(all, [("http.method", "other"), ("component", "proxy")]);
        assert_eq!((tags.get("component"), tags.get("none")), (Some("proxy"), None));
    }
}
