//! Spans in the OpenTelemetry protocol.

use super::span::{Kind, Span};
use cairn_proto::opentelemetry::proto::collector::trace::v1 as pb;
use cairn_proto::opentelemetry::proto::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, Resource, any_value,
};
use cairn_proto::prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

/// Path of the gRPC method.
pub const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Methods that OpenTelemetry knows by name; others are `_OTHER` (semantic conventions, `http.request.method`).
const METHODS: [&str; 9] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// It is known whether the parent is of another process.
const REMOTE_KNOWN: u32 = 0x100;
/// It is.
const REMOTE: u32 = 0x200;

/// Who sends: attributes of the resource.
pub(crate) fn resource(attributes: &[(String, String)]) -> Resource {
    Resource { attributes: attributes.iter().map(|(key, value)| text(key, value)).collect() }
}

/// What made the records.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "cairn".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}

/// One attribute.
pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

/// Nanoseconds since the epoch; 0 before it.
pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `ExportTraceServiceRequest` of these spans; `attributes` tell who sends.
pub fn encode(attributes: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let request = pb::ExportTraceServiceRequest {
        resource_spans: vec![pb::ResourceSpans {
            resource: Some(resource(attributes)),
            scope_spans: vec![pb::ScopeSpans {
                scope: Some(scope()),
                spans: spans.iter().map(span).collect(),
            }],
        }],
    };
    request.encode_to_vec()
}

fn span(from: &Span) -> pb::Span {
    let Span {
        context,
        shared: _,
        remote_parent,
        trace_state,
        kind,
        name,
        start,
        duration,
        tags,
        annotations,
    } = from;
    let attribute = |(key, value): (&str, &str)| match key {
        "http.method" if !METHODS.contains(&value) => text(key, "_OTHER"),
        _ => text(key, value),
    };
    let remote = if *remote_parent { REMOTE } else { 0 };
    pb::Span {
        trace_id: context.trace_id.to_bytes().to_vec(),
        span_id: context.span_id.to_bytes().to_vec(),
        trace_state: trace_state.clone(),
        parent_span_id: context.parent.map_or_else(Vec::new, |id| id.to_bytes().to_vec()),
        flags: u32::from(context.sampled) | REMOTE_KNOWN | remote,
        name: name.clone(),
        kind: match kind {
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: nanos(*start),
        end_time_unix_nano: nanos(*start + *duration),
        attributes: tags.iter().map(attribute).collect(),
        events: annotations
            .iter()
            .map(|annotation| pb::Event {
                time_unix_nano: nanos(annotation.at),
                name: annotation.what.to_owned(),
                attributes: Vec::new(),
            })
            .collect(),
        status: from.failed().then(|| pb::Status { message: String::new(), code: 2 }),
    }
}

/// The attributes in `OTEL_RESOURCE_ATTRIBUTES`: `key=value,key=value`, values percent-encoded. What has no `=` or no
/// key is left out.
pub fn resource_attributes(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), decode(value.trim())))
        .filter(|(key, _)| !key.is_empty())
        .collect()
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|digits| *first == b'%' && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Annotation, Context, SpanId, Tags, TraceId};
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_span_as_it_is_sent() {
        let mut tags = Tags::default();
        tags.set("http.method", "BREW");
        tags.set("error", "true");
        let start = UNIX_EPOCH + Duration::from_secs(2);
        let span = Span {
            context: Context {
                trace_id: TraceId::new(1 << 64 | 2).unwrap(),
                span_id: SpanId::new(3).unwrap(),
                parent: SpanId::new(4),
                sampled: true,
            },
            shared: false,
            remote_parent: true,
            trace_state: "a=b".to_owned(),
            kind: Kind::Client,
            name: "router app egress".to_owned(),
            start,
            duration: Duration::from_millis(5),
            tags,
            annotations: vec![Annotation { at: start, what: "first_upstream_tx_byte_sent" }],
        };
        let bytes = encode(&[("service.name".to_owned(), "s".to_owned())], &[span]);
        let sent = pb::ExportTraceServiceRequest::decode(bytes.as_slice()).unwrap();
        let [all] = sent.resource_spans.as_slice() else { unreachable!() };
        assert_eq!(all.resource.as_ref().unwrap().attributes, [text("service.name", "s")]);
        let [span] = all.scope_spans.first().unwrap().spans.as_slice() else { unreachable!() };
        assert_eq!(span.trace_id, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!((span.kind, span.flags, span.trace_state.as_str()), (3, 0x301, "a=b"));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 5_000_000);
        assert_eq!(span.attributes, [text("http.method", "_OTHER"), text("error", "true")]);
        assert_eq!(span.status.as_ref().unwrap().code, 2);
        assert_eq!(span.events.first().unwrap().time_unix_nano, 2_000_000_000);
    }

    #[test]
    fn attributes_of_the_environment() {
        let pairs = |text| resource_attributes(text);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs("a=b, c = d%20e ,=x,nothing"), [pair("a", "b"), pair("c", "d e")]);
        assert_eq!(pairs("a=%zz%4"), [pair("a", "%zz%4")]);
        assert_eq!(pairs("a=b=c"), [pair("a", "b=c")]);
        assert_eq!(pairs(""), []);
    }
}
