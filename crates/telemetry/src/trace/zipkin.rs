//! Spans in Zipkin's API v2: a JSON list.

use super::span::{Kind, Span};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whom Zipkin's spans are of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name of the service; Envoy: the node's cluster, such as `waypoint.shop`.
    pub service: String,
    /// Our address.
    pub address: Option<IpAddr>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: &'a str,
    kind: &'static str,
    timestamp: u64,
    /// Zipkin has no durations of 0.
    duration: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
    local_endpoint: Local<'a>,
    annotations: Vec<Event>,
    tags: TagMap<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Local<'a> {
    service_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    port: u16,
}

#[derive(Serialize)]
struct Event {
    timestamp: u64,
    value: &'static str,
}

struct TagMap<'a>(&'a Span);

impl Serialize for TagMap<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        // Envoy leaves empty ones out here.
        for (name, value) in self.0.tags.iter().filter(|(_, value)| !value.is_empty()) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The spans as a JSON list.
pub fn encode(endpoint: &Endpoint, spans: &[Span]) -> Vec<u8> {
    let list: Vec<Json<'_>> = spans.iter().map(|span| json(endpoint, span)).collect();
    // Texts and numbers always have a JSON form.
    serde_json::to_vec(&list).unwrap_or_else(|_| b"[]".to_vec())
}

fn json<'a>(endpoint: &'a Endpoint, span: &'a Span) -> Json<'a> {
    let (kind, end) = match span.kind {
        Kind::Server => ("SERVER", "ss"),
        Kind::Client => ("CLIENT", "cr"),
    };
    let mut annotations: Vec<Event> = span
        .annotations
        .iter()
        .map(|annotation| Event { timestamp: micros(annotation.at), value: annotation.what })
        .collect();
    annotations.push(Event { timestamp: micros(span.start + span.duration), value: end });
    Json {
        trace_id: format!("{:x}", span.context.trace_id),
        id: span.context.span_id.to_string(),
        parent_id: span.context.parent.map(|parent| parent.to_string()),
        name: &span.name,
        kind,
        timestamp: micros(span.start),
        duration: u64::try_from(span.duration.as_micros()).unwrap_or(u64::MAX).max(1),
        shared: span.shared,
        local_endpoint: Local {
            service_name: &endpoint.service,
            ipv4: endpoint.address.filter(IpAddr::is_ipv4).map(|address| address.to_string()),
            ipv6: endpoint.address.filter(IpAddr::is_ipv6).map(|address| address.to_string()),
            port: 0,
        },
        annotations,
        tags: TagMap(span),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Context, SpanId, Tags, TraceId};
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    #[test]
    fn a_span_as_it_is_sent() {
        let mut tags = Tags::default();
        tags.set("component", "proxy");
        tags.set("zone", "");
        let span = Span {
            context: Context {
                trace_id: TraceId::new(0xab).unwrap(),
                span_id: SpanId::new(0xab).unwrap(),
                parent: None,
                sampled: true,
            },
            shared: true,
            remote_parent: false,
            trace_state: String::new(),
            kind: Kind::Server,
            name: "app:80/*".to_owned(),
            start: UNIX_EPOCH + Duration::from_micros(7),
            duration: Duration::ZERO,
            tags,
            annotations: Vec::new(),
        };
        let endpoint = Endpoint {
            service: "waypoint.shop".to_owned(),
            address: Some("10.0.0.1".parse().unwrap()),
        };
        let sent: Value = serde_json::from_slice(&encode(&endpoint, &[span])).unwrap();
        assert_eq!(
            sent,
            json!([{
                "traceId": "00000000000000ab", "id": "00000000000000ab", "name": "app:80/*",
                "kind": "SERVER", "timestamp": 7, "duration": 1, "shared": true,
                "localEndpoint": { "serviceName": "waypoint.shop", "ipv4": "10.0.0.1", "port": 0 },
                "annotations": [{ "timestamp": 7, "value": "ss" }],
                "tags": { "component": "proxy" },
            }])
        );
    }
}
