//! A request, or a try, as a span: Envoy's tags (`HttpTracerUtility`), then the configuration's.

use super::{CLIENT_TRACE_ID, Trace, Try};
use crate::access_log;
use crate::exchange::Exchange;
use crate::grpc;
use crate::headers::{FORWARDED_PROTO, REQUEST_ID};
use crate::instance::destination_labels;
use crate::retry;
use crate::sink::Seen;
use cairn_router::observe::tracing::{TraceProvider, Tracing, Value};
use cairn_telemetry::ResponseFlags;
use cairn_telemetry::trace::{Annotation, Kind, Span, Tags};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora_proxy::Session;
use std::borrow::Cow;

/// gRPC codes that are the server's fault (Envoy: `addGrpcResponseTags`).
const GRPC_ERRORS: [u32; 7] = [2, 4, 8, 12, 13, 14, 15];
/// Name of the span without a name of the operation (Envoy: OpenTelemetry).
const INGRESS: &str = "ingress";

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
}

/// The span of the request.
pub(super) fn of_request(session: &Session, ctx: &Exchange, trace: &Trace) -> Span {
    let request = session.req_header();
    let headers = &request.headers;
    let or_dash = |name: &HeaderName| text(headers, name).map_or(Cow::Borrowed("-"), owned);
    let written = session.response_written();
    let status = written.map(|head| head.status.as_u16());
    let tracing = trace.tracing();
    let mut tags = Tags::with_capacity(20 + tracing.map_or(0, |tracing| tracing.tags.len()));
    if let Some(inbound) = &ctx.inbound {
        let node = inbound.link.instance.node();
        if !node.id.is_empty() {
            tags.set("node_id", node.id.clone());
            tags.set("zone", node.zone.clone());
        }
    }
    if let Some(id) = text(headers, &REQUEST_ID) {
        tags.set("guid:x-request-id", owned(id));
    }
    let longest = tracing.map_or(256, |tracing| tracing.max_path_tag_length);
    tags.set("http.url", url(session, longest));
    tags.set("http.method", request.method.as_str().to_owned());
    // The header that Envoy takes it from is not let in.
    tags.set("downstream_cluster", "-");
    tags.set("user_agent", or_dash(&header::USER_AGENT));
    tags.set("http.protocol", protocol(request.version));
    if let Some(inbound) = &ctx.inbound {
        tags.set("peer.address", inbound.link.peer.addr.ip().to_string());
    }
    if let Some(id) = text(headers, &CLIENT_TRACE_ID) {
        tags.set("guid:x-client-trace-id", owned(id));
    }
    if ctx.grpc {
        for (tag, value) in [
            ("grpc.path", Some(String::from_utf8_lossy(request.raw_path()))),
            ("grpc.authority", text(headers, &header::HOST)),
            ("grpc.content_type", text(headers, &header::CONTENT_TYPE)),
            ("grpc.timeout", text(headers, &grpc::TIMEOUT)),
        ] {
            if let Some(value) = value {
                tags.set(tag, owned(value));
            }
        }
    }
    tags.set("request_size", session.body_bytes_read().to_string());
    tags.set("response_size", session.body_bytes_sent().to_string());
    common(&mut tags, ctx, status, ctx.flags);
    configured(&mut tags, session, ctx, tracing, status, ctx.flags);
    if let Some(code) = ctx.grpc_status {
        tags.set("grpc.status_code", code.to_string());
        let message = trace.message.as_ref().or_else(|| written?.headers.get("grpc-message"));
        if let Some(message) = message {
            tags.set("grpc.message", lossy(message));
        }
        if GRPC_ERRORS.contains(&code) {
            tags.set("error", "true");
        }
    }
    Span {
        context: trace.context,
        shared: trace.shared,
        remote_parent: trace.remote,
        trace_state: text(headers, &HeaderName::from_static("tracestate"))
            .filter(|_| trace.remote)
            .map(Cow::into_owned)
            .unwrap_or_default(),
        kind: Kind::Server,
        name: name(session, ctx, trace),
        start: ctx.start_time,
        duration: ctx.started.elapsed(),
        tags,
        annotations: tracing.map_or_else(Vec::new, |tracing| annotations(ctx, tracing)),
    }
}

/// The span of a try, which came to `status` or to a failure.
pub(super) fn of_try(
    session: &Session,
    ctx: &Exchange,
    trace: &Trace,
    attempt: &Try,
    status: Option<u16>,
) -> Span {
    let tracing = trace.tracing();
    let mut tags = Tags::with_capacity(12 + tracing.map_or(0, |tracing| tracing.tags.len()));
    if attempt.number > 1 {
        tags.set("retry.count", (attempt.number - 1).to_string());
    }
    let current = ctx.tries.current.as_ref();
    let failure = current.and_then(|current| current.failure());
    let http2 = current.is_some_and(|current| current.http2);
    tags.set(
        "http.protocol",
        match status {
            None => "-",
            Some(_) if http2 => "HTTP/2",
            Some(_) => "HTTP/1.1",
        },
    );
    if let Some(current) = current {
        let address = current.endpoint.address.to_string();
        tags.set("upstream_address", address.clone());
        tags.set("peer.address", address);
    }
    let mut flags = ResponseFlags::NONE;
    if let Some(failure) = failure {
        let (reason, flag) = retry::words(failure);
        tags.set("error.reason", reason);
        flags = flag;
    }
    common(&mut tags, ctx, status, flags);
    configured(&mut tags, session, ctx, tracing, status, flags);
    let cluster = current.map_or("", |current| &current.cluster.name);
    Span {
        context: attempt.context,
        shared: false,
        remote_parent: false,
        trace_state: String::new(),
        kind: Kind::Client,
        name: format!("router {cluster} egress"),
        start: attempt.start,
        duration: attempt.began.elapsed(),
        tags,
        annotations: Vec::new(),
    }
}

/// Tags of both.
fn common(tags: &mut Tags, ctx: &Exchange, status: Option<u16>, flags: ResponseFlags) {
    tags.set("component", "proxy");
    if let Some(cluster) = ctx.routed.as_ref().and_then(|routed| routed.cluster.as_ref()) {
        tags.set("upstream_cluster", cluster.name.to_string());
        tags.set("upstream_cluster.name", cluster.name.to_string());
    }
    tags.set("http.status_code", status.unwrap_or(0).to_string());
    tags.set("response_flags", flags.to_string());
    if status.is_none_or(|status| status >= 500) {
        tags.set("error", "true");
    }
}

/// The configuration's tags.
fn configured(
    tags: &mut Tags,
    session: &Session,
    ctx: &Exchange,
    tracing: Option<&Tracing>,
    status: Option<u16>,
    flags: ResponseFlags,
) {
    let Some(tracing) = tracing.filter(|tracing| !tracing.tags.is_empty()) else {
        return;
    };
    let request = session.req_header();
    let flags = flags.to_string();
    let mut context = ctx.format_context(request.version);
    context.response_code = status;
    context.response_code_details = Some(&ctx.details);
    context.response_flags = Some(&flags);
    context.bytes_received = Some(session.body_bytes_read() as u64);
    context.bytes_sent = Some(session.body_bytes_sent() as u64);
    context.grpc_status = ctx.grpc_status;
    let labels =
        ctx.tries.current.as_ref().zip(ctx.inbound.as_ref()).and_then(|(attempt, inbound)| {
            destination_labels(&inbound.resolved.mesh, &attempt.endpoint)
        });
    if let Some(inbound) = &ctx.inbound {
        let (mesh, link) = (&inbound.resolved.mesh, &inbound.link);
        let (address, id) = (Some(link.peer.addr), link.peer.id.as_str());
        context.source = access_log::source(mesh, Some(&link.source), address, id);
        context.destination = access_log::destination(mesh, labels.as_ref(), context.upstream_host);
    }
    let ids = ctx.trace_ids();
    context.trace_id = ids.as_ref().map(|(trace, _)| trace.as_str());
    context.span_id = ids.as_ref().map(|(_, span)| span.as_str());
    let seen = Seen(request);
    let response = session.response_written().map(|head| &head.headers);
    for tag in &tracing.tags {
        let value = match &tag.value {
            Value::Text(text) => text.to_string(),
            Value::Header(key, default) => {
                match cairn_router::request::Headers::first(&seen, key) {
                    Some(value) => String::from_utf8_lossy(&value).into_owned(),
                    None => default.to_string(),
                }
            }
            Value::Format(format) => {
                let response =
                    response.map(|headers| headers as &dyn cairn_router::request::Headers);
                let bytes = format.render(&context, Some(&seen), response);
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        if !value.is_empty() {
            tags.set_configured(&tag.name, value);
        }
    }
}

/// `http://host/path?query`, with so many bytes of the path.
fn url(session: &Session, longest: usize) -> String {
    let request = session.req_header();
    let scheme = text(&request.headers, &FORWARDED_PROTO).unwrap_or(Cow::Borrowed("http"));
    let host = text(&request.headers, &header::HOST).unwrap_or_default();
    let path = request.raw_path();
    let path = String::from_utf8_lossy(path.get(..longest).unwrap_or(path));
    format!("{scheme}://{host}{path}")
}

/// What the client calls the operation, or the route, or a name for all.
fn name(session: &Session, ctx: &Exchange, trace: &Trace) -> String {
    let decorator = ctx.routed.as_ref().and_then(|routed| routed.route.decorator.as_ref());
    if let Some(named) = trace.operation.as_ref().or(decorator) {
        return lossy(named);
    }
    match trace.tracing().and_then(|tracing| tracing.provider.as_ref()) {
        Some(TraceProvider::Zipkin(_)) => {
            text(&session.req_header().headers, &header::HOST).map(Cow::into_owned)
        }
        _ => None,
    }
    .unwrap_or_else(|| INGRESS.to_owned())
}

/// Times of a request's phases, as far as they are taken (Envoy: `annotateVerbose`).
fn annotations(ctx: &Exchange, tracing: &Tracing) -> Vec<Annotation> {
    if !tracing.verbose {
        return Vec::new();
    }
    [
        ("last_downstream_rx_byte_received", ctx.request_received),
        ("first_upstream_rx_byte_received", ctx.response_started),
        ("last_downstream_tx_byte_sent", Some(ctx.started.elapsed())),
    ]
    .into_iter()
    .filter_map(|(what, after)| Some(Annotation { at: ctx.start_time + after?, what }))
    .collect()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn owned(text: Cow<'_, str>) -> Cow<'static, str> {
    Cow::Owned(text.into_owned())
}
