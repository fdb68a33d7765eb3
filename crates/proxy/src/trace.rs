//! The trace of a request: what is decided when it comes, told to the endpoint, and sent when it is over.
//!
//! A chain without tracing costs one check. A request that is not traced costs its headers: no span is built.

mod span;

use crate::exchange::Exchange;
use crate::headers::REQUEST_ID;
use crate::inbound::Inbound;
use crate::instance::MeshInstance;
use cairn_router::observe::Observe;
use cairn_router::observe::tracing::{
    GrpcCollector, HttpCollector, OtlpCollector, TraceProvider, Tracing,
};
use cairn_telemetry::export::{Content, Queue, Spans, Target};
use cairn_telemetry::trace::b3::Multi;
use cairn_telemetry::trace::sampling::{Decision, Question, Sampling};
use cairn_telemetry::trace::w3c::TraceParent;
use cairn_telemetry::trace::zipkin::Endpoint;
use cairn_telemetry::trace::{Context, Incoming, Origin, Propagation, Span, otlp};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");

/// Bound of one message to a collector that has none of its own (Envoy: `tracing.zipkin.request_timeout`).
const TIMEOUT: Duration = Duration::from_secs(5);
/// Variable with attributes of the resource.
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

/// The trace of one request.
pub(crate) struct Trace {
    /// Holds the settings, of which there are some.
    observe: Arc<Observe>,
    context: Context,
    origin: Origin,
    remote: bool,
    shared: bool,
    /// What the client calls the operation.
    operation: Option<HeaderValue>,
    /// `grpc-message` of the response.
    message: Option<HeaderValue>,
    attempt: Option<Try>,
}

/// A try at an endpoint that is under way, where tries have spans of their own.
struct Try {
    context: Context,
    number: u32,
    start: SystemTime,
    began: Instant,
}

impl Trace {
    /// Id of the trace and of our span, for logs.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    fn tracing(&self) -> Option<&Tracing> {
        self.observe.tracing.as_ref()
    }
}

fn tracing_of(inbound: &Inbound) -> Option<(&Arc<Observe>, &Tracing)> {
    let observe = inbound.resolved.destination.http.as_ref()?.observe.as_ref()?;
    Some((observe, observe.tracing.as_ref()?))
}

/// Decides whether the request is traced, says so in its `x-request-id`, and begins its span.
pub(crate) fn begin(
    ctx: &mut Exchange,
    inbound: &Inbound,
    request: &mut RequestHeader,
    operation: Option<HeaderValue>,
) {
    let Some((observe, tracing)) = tracing_of(inbound) else {
        return;
    };
    let traced = decide(tracing, request);
    let Some((how, shared)) = propagation(tracing) else {
        return;
    };
    let begun = how.begin(&incoming(&request.headers), traced, rand::random);
    ctx.trace = begun.map(|begun| {
        Box::new(Trace {
            observe: Arc::clone(observe),
            context: begun.context,
            origin: begun.origin,
            remote: begun.remote,
            shared: shared && begun.remote,
            operation: operation.filter(|text| !text.is_empty()),
            message: None,
            attempt: None,
        })
    });
}

fn propagation(tracing: &Tracing) -> Option<(Propagation, bool)> {
    Some(match tracing.provider.as_ref()? {
        TraceProvider::OpenTelemetry(_) => (Propagation::W3c, false),
        TraceProvider::Zipkin(zipkin) => {
            let shared = zipkin.shared_span_context;
            let how = Propagation::B3 { w3c: zipkin.w3c, shared, long: zipkin.trace_id_128bit };
            (how, shared)
        }
    })
}

fn decide(tracing: &Tracing, request: &mut RequestHeader) -> bool {
    let cairn_router::observe::tracing::Sampling { client, random, overall, by_request_id, pack } =
        tracing.sampling;
    let sampling = Sampling { client, random, overall, by_request_id, pack };
    let id = request.headers.get(&REQUEST_ID);
    let Decision { traced, write } = sampling.decide(Question {
        request_id: id.map(HeaderValue::as_bytes),
        client_trace_id: request.headers.contains_key(&CLIENT_TRACE_ID),
        draw: rand::random(),
    });
    if let (Some(mark), Some(id)) = (write, id) {
        let mut bytes = id.as_bytes().to_vec();
        if let Some(place) = bytes.get_mut(Decision::PLACE) {
            *place = mark;
        }
        if let Ok(id) = HeaderValue::from_bytes(&bytes) {
            let _it_was_there_before = request.insert_header(REQUEST_ID, id);
        }
    }
    traced
}

fn incoming(headers: &HeaderMap) -> Incoming<'_> {
    let get = |name: &HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    Incoming {
        traceparent: get(&TRACEPARENT).map(<[u8]>::trim_ascii),
        b3: get(&B3),
        multi: Multi {
            trace_id: get(&B3_TRACE_ID),
            span_id: get(&B3_SPAN_ID),
            parent: get(&B3_PARENT),
            sampled: get(&B3_SAMPLED),
        },
    }
}

/// Begins a try: tells the endpoint whose child it is.
pub(crate) fn begin_try(ctx: &mut Exchange, request: &mut RequestHeader) -> Result<()> {
    let number = ctx.tries.begun;
    let Some(trace) = ctx.trace.as_deref_mut() else {
        return Ok(());
    };
    let observe = Arc::clone(&trace.observe);
    let Some(tracing) = observe.tracing.as_ref() else {
        return Ok(());
    };
    let mut context = trace.context;
    if tracing.spawn_upstream_span {
        context = context.child(rand::random);
        trace.attempt =
            Some(Try { context, number, start: SystemTime::now(), began: Instant::now() });
    }
    if tracing.no_context_propagation {
        return Ok(());
    }
    tell(tracing, trace.origin, &context, request)
}

/// Writes the headers by which the endpoint knows its parent.
fn tell(
    tracing: &Tracing,
    origin: Origin,
    context: &Context,
    request: &mut RequestHeader,
) -> Result<()> {
    let Context { trace_id, span_id, parent, sampled } = *context;
    let w3c = match &tracing.provider {
        Some(TraceProvider::OpenTelemetry(_)) => true,
        Some(TraceProvider::Zipkin(zipkin)) => zipkin.w3c,
        None => return Ok(()),
    };
    if w3c {
        request
            .insert_header(TRACEPARENT, TraceParent { trace_id, span_id, sampled }.to_string())?;
    }
    if !matches!(tracing.provider, Some(TraceProvider::Zipkin(_))) {
        return Ok(());
    }
    let flag = if sampled { "1" } else { "0" };
    if origin == Origin::Single {
        let parent = parent.map(|parent| format!("-{parent}")).unwrap_or_default();
        request.insert_header(B3, format!("{trace_id:x}-{span_id}-{flag}{parent}"))?;
        return Ok(());
    }
    request.insert_header(B3_TRACE_ID, format!("{trace_id:x}"))?;
    request.insert_header(B3_SPAN_ID, span_id.to_string())?;
    match parent {
        Some(parent) => request.insert_header(B3_PARENT, parent.to_string())?,
        None => drop(request.remove_header(&B3_PARENT)),
    }
    request.insert_header(B3_SAMPLED, HeaderValue::from_static(flag))?;
    Ok(())
}

/// Says in a copy of a request that it is not recorded (Istio: mirrors have `trace_sampled: false`).
pub(crate) fn tell_mirror(ctx: &Exchange, copy: &mut RequestHeader) {
    let Some(trace) = ctx.trace.as_deref() else {
        return;
    };
    let Some(tracing) = trace.tracing().filter(|tracing| !tracing.no_context_propagation) else {
        return;
    };
    let context = Context { sampled: false, ..trace.context.child(rand::random) };
    let _the_original_had_the_same = tell(tracing, trace.origin, &context, copy);
}

/// Notes what a response says of its call, in its head or its trailers.
pub(crate) fn note_fields(ctx: &mut Exchange, fields: &HeaderMap) {
    if let Some(trace) = ctx.trace.as_deref_mut()
        && trace.context.sampled
        && let Some(message) = fields.get("grpc-message")
    {
        trace.message = Some(message.clone());
    }
}

/// Ends a try with its response, if there is one; `again`: another try follows.
pub(crate) fn end_try(
    session: &Session,
    ctx: &mut Exchange,
    response: Option<&ResponseHeader>,
    again: bool,
) {
    let Some(attempt) = ctx.trace.as_deref_mut().and_then(|trace| trace.attempt.take()) else {
        return;
    };
    if let Some(trace) = ctx.trace.as_deref().filter(|trace| trace.context.sampled)
        && let Some(queue) = queue(trace, ctx)
    {
        let status = response.map(|head| head.status.as_u16());
        let mut span = span::of_try(session, ctx, trace, &attempt, status);
        if again && status.is_some() {
            // Envoy: the rest of a response that is thrown away is not waited for.
            span.tags.set("canceled", "true");
        }
        queue.push(span);
    }
}

/// Ends the request's span, and that of its last try.
pub(crate) fn end(session: &Session, ctx: &mut Exchange) {
    if !ctx.trace.as_deref().is_some_and(|trace| trace.context.sampled) {
        return;
    }
    let response = session.response_written().filter(|_| ctx.response_started.is_some());
    end_try(session, ctx, response, false);
    if let Some(trace) = ctx.trace.as_deref()
        && let Some(queue) = queue(trace, ctx)
    {
        queue.push(span::of_request(session, ctx, trace));
    }
}

/// The way to the collector; made when the first span needs it.
fn queue<'a>(trace: &'a Trace, ctx: &Exchange) -> Option<&'a Arc<Queue<Span>>> {
    let tracing = trace.tracing()?;
    let provider = tracing.provider.as_ref()?;
    let link = &ctx.inbound.as_ref()?.link;
    Some(tracing.state.get_or_init(|| {
        let (target, form) = target(provider, &link.instance);
        link.instance.span_queue(target, form, link.worker)
    }))
}

fn target(provider: &TraceProvider, instance: &MeshInstance) -> (Target, Spans) {
    match provider {
        TraceProvider::Zipkin(zipkin) => {
            let node = instance.node();
            let endpoint = Endpoint { service: node.cluster.clone(), address: node.address };
            (to_http(&zipkin.collector, Content::Json), Spans::Zipkin(endpoint))
        }
        TraceProvider::OpenTelemetry(otel) => {
            let target = match &otel.collector {
                OtlpCollector::Grpc(grpc) => to_grpc(grpc, otlp::GRPC_PATH),
                OtlpCollector::Http(http) => to_http(http, Content::Protobuf),
            };
            (target, Spans::Otlp(resource(&otel.service_name, otel.environment)))
        }
    }
}

/// Attributes of who sends, as Envoy has them but for the names of the software.
fn resource(service_name: &str, environment: bool) -> Vec<(String, String)> {
    let mut attributes = vec![
        ("telemetry.sdk.language".to_owned(), "rust".to_owned()),
        ("telemetry.sdk.name".to_owned(), "cairn".to_owned()),
        ("telemetry.sdk.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    if environment && let Ok(text) = std::env::var(RESOURCE_ATTRIBUTES) {
        attributes.extend(otlp::resource_attributes(&text));
    }
    if !service_name.is_empty() {
        attributes.retain(|(key, _)| key != "service.name");
        attributes.push(("service.name".to_owned(), service_name.to_owned()));
    }
    attributes
}

fn to_http(from: &HttpCollector, content: Content) -> Target {
    let HttpCollector { cluster, host, path, timeout, headers } = from.clone();
    let timeout = timeout.unwrap_or(TIMEOUT);
    Target { cluster, authority: host, path, headers, timeout, content }
}

fn to_grpc(from: &GrpcCollector, path: &str) -> Target {
    let GrpcCollector { cluster, authority, timeout, headers } = from.clone();
    let timeout = timeout.unwrap_or(TIMEOUT);
    Target { cluster, authority, path: path.to_owned(), headers, timeout, content: Content::Grpc }
}
