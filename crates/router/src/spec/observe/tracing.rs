//! How requests are traced. Envoy: `HttpConnectionManager.Tracing`.

use crate::spec::duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How requests are traced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// Percent of the requests with `x-client-trace-id` that are traced for it.
    pub client_sampling: f64,
    /// Percent of the other requests that are traced, drawn by `x-request-id`.
    pub random_sampling: f64,
    /// Percent of all requests that may be traced at all, drawn by `x-request-id`.
    pub overall_sampling: f64,
    /// `x-request-id` decides (default); otherwise every request is traced unless its caller says no.
    pub by_request_id: bool,
    /// The decision is written into `x-request-id` (default). Envoy: `pack_trace_reason`.
    pub pack_trace_reason: bool,
    /// Spans have the times of a request's phases as annotations.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verbose: bool,
    /// Bytes of the path in the tag `http.url`.
    pub max_path_tag_length: u32,
    /// Each try at an endpoint is a span of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spawn_upstream_span: bool,
    /// Headers of the trace are not changed on the way to the endpoint.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_context_propagation: bool,
    /// Tags besides Envoy's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub custom_tags: Vec<CustomTag>,
    /// Where spans are sent; absent: nowhere, and headers of traces pass as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<TraceProvider>,
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing {
            client_sampling: 100.0,
            random_sampling: 100.0,
            overall_sampling: 100.0,
            by_request_id: true,
            pack_trace_reason: true,
            verbose: false,
            max_path_tag_length: 256,
            spawn_upstream_span: false,
            no_context_propagation: false,
            custom_tags: Vec::new(),
            provider: None,
        }
    }
}

/// A tag of every span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomTag {
    /// Its name.
    pub tag: String,
    /// Its value; a span for which it is empty does not have the tag.
    pub value: TagValue,
}

/// Where the value of a tag comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TagValue {
    /// This text.
    Literal(String),
    /// A variable of this process's environment.
    Environment(Named),
    /// The first value of a header of the request.
    RequestHeader(Named),
    /// A text with `%OPERATORS%`.
    Format(String),
}

/// The name of something that may not be there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What counts without it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default: String,
}

/// Where spans are sent, and how the trace is told to the endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TraceProvider {
    /// Zipkin's JSON, and B3 headers.
    Zipkin(Zipkin),
    /// The OpenTelemetry protocol, and W3C headers.
    OpenTelemetry(OpenTelemetry),
}

/// A collector that speaks Zipkin's API v2. Envoy: `ZipkinConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zipkin {
    /// The collector.
    pub collector: HttpCollector,
    /// Ids of traces that begin here have 128 bits; otherwise 64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trace_id_128bit: bool,
    /// Our span has the id of the caller's (default); otherwise it is its child.
    #[serde(default = "yes")]
    pub shared_span_context: bool,
    /// W3C headers are read where there are none of B3, and written beside them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub w3c: bool,
}

/// A collector that speaks the OpenTelemetry protocol. Envoy: `OpenTelemetryConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenTelemetry {
    /// The collector.
    pub collector: OtlpCollector,
    /// `service.name` of the resource.
    #[serde(default)]
    pub service_name: String,
    /// The resource has the attributes in `OTEL_RESOURCE_ATTRIBUTES`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub environment: bool,
}

/// One of the two forms of the OpenTelemetry protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OtlpCollector {
    /// gRPC.
    Grpc(GrpcCollector),
    /// HTTP with protobuf in its body.
    Http(HttpCollector),
}

/// A gRPC service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcCollector {
    /// Name of the cluster.
    pub cluster: String,
    /// `:authority`; absent: the cluster's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// Bound of one message; absent: 5 seconds.
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Metadata of every call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// An HTTP service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCollector {
    /// Name of the cluster.
    pub cluster: String,
    /// `Host`; absent: the cluster's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Path and query of the POST.
    pub path: String,
    /// Bound of one message; absent: 5 seconds.
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Headers of every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

fn yes() -> bool {
    true
}
