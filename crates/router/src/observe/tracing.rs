//! How requests are traced, compiled: shares of 10,000, names that are header names, texts that are parsed.

use crate::error::Context;
use crate::extensions::Extensions;
use crate::format::Format;
use crate::request::HeaderKey;
use crate::spec::{self, TagValue};
use std::sync::Arc;

pub use crate::spec::{
    GrpcCollector, HttpCollector, OpenTelemetry, OtlpCollector, TraceProvider, Zipkin,
};

/// Most bytes of a path that a tag can have.
const MAX_PATH_TAG_LENGTH: u32 = 64 << 10;

/// How requests are traced.
#[derive(Debug)]
pub struct Tracing {
    /// Which requests.
    pub sampling: Sampling,
    /// Spans have the times of a request's phases as annotations.
    pub verbose: bool,
    /// Bytes of the path in the tag `http.url`.
    pub max_path_tag_length: usize,
    /// Each try at an endpoint is a span of its own.
    pub spawn_upstream_span: bool,
    /// Headers of the trace reach the endpoint as they came.
    pub no_context_propagation: bool,
    /// Tags besides Envoy's own; a later one of the same name counts.
    pub tags: Vec<Tag>,
    /// Where spans go. `None`: nowhere, and nothing is changed but `x-request-id`.
    pub provider: Option<TraceProvider>,
    /// What the proxy keeps beside it: the queue to the provider.
    pub state: Extensions,
}

/// Which requests are traced: shares of 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Of the requests with `x-client-trace-id`.
    pub client: u32,
    /// Of the others.
    pub random: u32,
    /// Of all.
    pub overall: u32,
    /// `x-request-id` decides; otherwise all are traced.
    pub by_request_id: bool,
    /// The decision is written into `x-request-id`.
    pub pack: bool,
}

/// A tag.
#[derive(Debug)]
pub struct Tag {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: Value,
}

/// Where the value of a tag comes from.
#[derive(Debug)]
pub enum Value {
    /// This text, which is not empty.
    Text(Arc<str>),
    /// The first value of a header, or this text.
    Header(HeaderKey, Box<str>),
    /// A text with operators.
    Format(Format),
}

impl Tracing {
    pub(super) fn compile(from: &spec::Tracing, at: &mut Context) -> Option<Self> {
        let spec::Tracing {
            client_sampling,
            random_sampling,
            overall_sampling,
            by_request_id,
            pack_trace_reason,
            verbose,
            max_path_tag_length,
            spawn_upstream_span,
            no_context_propagation,
            custom_tags,
            provider,
        } = from;
        let mut share = |name, percent: f64| at.field(name, |at| share(percent, at));
        let client = share("client_sampling", *client_sampling);
        let random = share("random_sampling", *random_sampling);
        let overall = share("overall_sampling", *overall_sampling);
        let tags = at.each("custom_tags", custom_tags, Tag::compile)?;
        Some(Tracing {
            sampling: Sampling {
                client: client?,
                random: random?,
                overall: overall?,
                by_request_id: *by_request_id,
                pack: *pack_trace_reason,
            },
            verbose: *verbose,
            max_path_tag_length: (*max_path_tag_length).min(MAX_PATH_TAG_LENGTH) as usize,
            spawn_upstream_span: *spawn_upstream_span,
            no_context_propagation: *no_context_propagation,
            tags: tags.into_iter().flatten().collect(),
            provider: provider.clone(),
            state: Extensions::default(),
        })
    }
}

/// Envoy: percent times 100, without what is behind the point.
fn share(percent: f64, at: &mut Context) -> Option<u32> {
    if !(0.0..=100.0).contains(&percent) {
        return at.reject(format!("{percent} is no percentage"));
    }
    // The range was checked above.
    Some((percent * 100.0) as u32)
}

impl Tag {
    /// `None` in it: no span has it.
    fn compile(from: &spec::CustomTag, at: &mut Context) -> Option<Option<Self>> {
        let spec::CustomTag { tag, value } = from;
        if tag.is_empty() {
            return at.field("tag", |at| at.reject("is empty"));
        }
        let text = |text: &str| (!text.is_empty()).then(|| Value::Text(text.into()));
        let value = match value {
            TagValue::Literal(literal) => text(literal),
            TagValue::Environment(spec::Named { name, default }) => {
                text(&std::env::var(name).unwrap_or_else(|_| default.clone()))
            }
            TagValue::RequestHeader(spec::Named { name, default }) => {
                let key = at.field("value", |at| match HeaderKey::parse(name) {
                    Ok(key) => Some(key),
                    Err(reason) => at.reject(reason),
                });
                Some(Value::Header(key?, default.as_str().into()))
            }
            // What is not understood has no value, as in access logs.
            TagValue::Format(format) => Some(Value::Format(Format::parse_for_log(format).0)),
        };
        Some(value.map(|value| Tag { name: tag.as_str().into(), value }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn compile(from: serde_json::Value) -> Result<Tracing, String> {
        let from: spec::Tracing = serde_json::from_value(from).unwrap();
        let mut at = Context::new();
        Tracing::compile(&from, &mut at).ok_or_else(|| format!("{:?}", at.reason_since(0)))
    }

    #[test]
    fn shares_are_of_ten_thousand() {
        let tracing = compile(json!({ "random_sampling": 12.345, "client_sampling": 0 })).unwrap();
        let Sampling { client, random, overall, by_request_id, pack } = tracing.sampling;
        assert_eq!((client, random, overall), (0, 1234, 10_000));
        assert!(by_request_id && pack);
        assert_eq!(tracing.max_path_tag_length, 256);
        for bad in [-0.1, 100.5] {
            assert!(compile(json!({ "random_sampling": bad })).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags() {
        let tag = |value| json!({ "custom_tags": [{ "tag": "t", "value": value }] });
        let one = |value| compile(tag(value)).unwrap().tags.pop();
        let text = |tag: Option<Tag>| match tag.map(|tag| tag.value) {
            Some(Value::Text(text)) => Some(text.to_string()),
            _ => None,
        };
        assert_eq!(text(one(json!({ "literal": "x" }))).as_deref(), Some("x"));
        assert!(one(json!({ "literal": "" })).is_none(), "an empty tag is none");
        let missing =
            json!({ "environment": { "name": "NO_SUCH_VARIABLE_AT_ALL", "default": "d" } });
        assert_eq!(text(one(missing)).as_deref(), Some("d"));
        let path = std::env::var("PATH").unwrap();
        assert_eq!(text(one(json!({ "environment": { "name": "PATH" } }))), Some(path));
        let header = one(json!({ "request_header": { "name": "x-a", "default": "d" } })).unwrap();
        assert!(matches!(header.value, Value::Header(_, default) if &*default == "d"));
        let format = one(json!({ "format": "%REQ(x-a)%!" })).unwrap();
        assert!(matches!(format.value, Value::Format(_)));
        let bad = json!({ "request_header": { "name": "a b" } });
        assert!(compile(tag(bad)).is_err());
    }
}
