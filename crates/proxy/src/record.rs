//! The one record of a request, made when it is over.

use crate::access_log;
use crate::counted::{self, Counted};
use crate::exchange::Exchange;
use crate::headers::REQUEST_ID;
use crate::instance::{destination_labels, service_labels};
use crate::link::Link;
use crate::messages::{Messages, Parties};
use crate::sink::Seen;
use cairn_router::format::{Facts, FormatContext};
use cairn_router::observe::REPORT_INTERVAL;
use cairn_router::request::Headers;
use cairn_telemetry::{Protocol, RequestEvent, ResponseFlags, SecurityPolicy, Timings};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora_error::{Error, ErrorSource};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use std::borrow::Cow;
use std::sync::Arc;

/// Notes that a response, or the wait for one, ended in the middle.
pub(crate) fn cut_short(ctx: &mut Exchange, error: &Error) {
    let (flag, details) = match error.esource() {
        ErrorSource::Downstream => {
            (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect")
        }
        ErrorSource::Upstream => (
            ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            "upstream_reset_after_response_started{connection_termination}",
        ),
        _ => (ResponseFlags::LOCAL_RESET, "internal_error"),
    };
    ctx.flags |= flag;
    ctx.details = Cow::Borrowed(details);
}

/// Bytes of a request's head as HTTP/1.1 writes it.
pub(crate) fn request_head_bytes(request: &RequestHeader) -> u64 {
    let line = request.method.as_str().len() + request.raw_path().len() + "  HTTP/1.1\r\n".len();
    (line + fields_bytes(&request.headers)) as u64
}

/// Bytes of a response's head as HTTP/1.1 writes it.
fn response_head_bytes(response: &ResponseHeader) -> u64 {
    let reason = response.status.canonical_reason().unwrap_or_default();
    let line = "HTTP/1.1 200 \r\n".len() + reason.len();
    (line + fields_bytes(&response.headers)) as u64
}

fn fields_bytes(headers: &HeaderMap) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    headers.iter().map(field).sum::<usize>() + "\r\n".len()
}

/// Has the messages of a gRPC stream counted while it is open, once there are more of them than a call has.
pub(crate) fn stream(ctx: &mut Exchange) {
    if ctx.messages.as_ref().is_some_and(|messages| messages.is_new_stream()) {
        begin_stream(ctx);
    }
}

fn begin_stream(ctx: &mut Exchange) {
    let Some(inbound) = ctx.inbound.as_ref() else {
        return;
    };
    let settings = counted::settings(ctx.chain().and_then(|chain| chain.observe.as_ref()));
    let interval = settings.map_or(REPORT_INTERVAL, |settings| settings.report_interval);
    if interval.is_zero() || settings.is_some_and(|settings| settings.off) {
        return;
    }
    let attempt = ctx.tries.current.as_ref();
    let mesh = &inbound.resolved.mesh;
    let destination = attempt.and_then(|attempt| destination_labels(mesh, &attempt.endpoint));
    let context = FormatContext {
        source: Some(counted::peer(&inbound.link.source)),
        destination: destination.as_deref().map(counted::peer),
        ..ctx.format_context(Version::HTTP_2)
    };
    let facts = Facts { context: &context, request: None, response: None };
    let counted = Counted::by(settings, &facts);
    let cluster = ctx.routed.as_ref().and_then(|routed| routed.cluster.as_ref());
    let parties = Parties {
        link: Arc::clone(&inbound.link),
        tenant: Arc::clone(&inbound.resolved.destination.tenant.namespace),
        service: cluster.map(|cluster| Arc::clone(service_labels(cluster))),
        rules: counted.rules.cloned(),
        dimensions: counted.dimensions,
        destination,
    };
    if let Some(messages) = ctx.messages.as_mut() {
        messages.count_every(interval, parties);
    }
}

/// Hands the record to telemetry.
pub(crate) fn request(session: &Session, ctx: &mut Exchange) {
    let mut messages = ctx.messages.take();
    let Some(inbound) = ctx.inbound.as_ref() else {
        return;
    };
    let link = &inbound.link;
    let attempt = ctx.tries.current.as_ref();
    let mesh = &inbound.resolved.mesh;
    let routed = ctx.routed.as_ref();
    let cluster = routed.and_then(|routed| routed.cluster.as_ref());
    let destination = attempt.and_then(|attempt| destination_labels(mesh, &attempt.endpoint));
    let request = session.req_header();
    let response = session.response_written();
    let text = |name: &HeaderName| {
        request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let path = ctx.original.path_and_query().map_or("", |path_and_query| path_and_query.as_str());
    let authority = text(&header::HOST);
    let settings = counted::settings(ctx.chain().and_then(|chain| chain.observe.as_ref()));
    let fallback = counted::fallback(settings, cluster, authority);
    let (messages_in, messages_out) = messages.as_ref().map_or((0, 0), |all| all.passed());
    let mut event = RequestEvent {
        mesh: link.instance.name(),
        tenant: &inbound.resolved.destination.tenant.namespace,
        source: Some(&link.source),
        source_principal: link.peer.id.as_str(),
        source_address: Some(link.peer.addr),
        security: SecurityPolicy::of_tunnel(link.peer.id.as_str(), link.peer.local_id.as_str()),
        target: &link.target_text,
        destination: destination.as_ref(),
        service: fallback.as_ref().or(cluster.map(|cluster| service_labels(cluster))),
        route: routed.map_or("", |routed| &routed.route.name),
        cluster: cluster.map_or("", |cluster| &cluster.name),
        upstream: attempt.map(|attempt| attempt.endpoint.address),
        attempts: ctx.tries.begun,
        protocol: if ctx.grpc && ctx.admitted { Protocol::Grpc } else { Protocol::Http },
        method: request.method.as_str(),
        path,
        authority,
        request_id: text(&REQUEST_ID),
        user_agent: text(&header::USER_AGENT),
        response_code: response.map_or(0, |head| head.status.as_u16()),
        grpc_status: ctx.grpc_status,
        flags: ctx.flags,
        details: &ctx.details,
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
        head_bytes_in: ctx.head_bytes,
        head_bytes_out: response.map_or(0, response_head_bytes),
        messages_in,
        messages_out,
        timings: Timings {
            start: ctx.start_time,
            duration: ctx.started.elapsed(),
            request_received: ctx.request_received,
            upstream_response_started: ctx.response_started,
            ..Timings::default()
        },
        ..RequestEvent::default()
    };
    inbound.resolved.tenant.add_bytes(link.worker, event.bytes_in + event.bytes_out);
    // Only labels of a chain's own look further than the event.
    if settings.is_none_or(|settings| settings.dimensions.is_empty()) {
        if !settings.is_some_and(|settings| settings.off) {
            event.rules = settings.and_then(counted::rules_of);
            count(link, &event, messages.as_deref_mut());
        }
        access_log::request(session, ctx, &event);
        return;
    }
    let flags = event.flags.to_string();
    let context = FormatContext {
        virtual_host_name: ctx.matched(authority).map(|matched| &*matched.virtual_host.name),
        response_code: (event.response_code > 0).then_some(event.response_code),
        response_code_details: Some(event.details),
        response_flags: Some(&flags),
        grpc_status: event.grpc_status,
        bytes_received: Some(event.bytes_in),
        bytes_sent: Some(event.bytes_out),
        request_header_bytes: Some(event.head_bytes_in),
        response_header_bytes: Some(event.head_bytes_out),
        request_received: event.timings.request_received,
        response_started: event.timings.upstream_response_started,
        upstream_attempts: Some(event.attempts),
        source: Some(counted::peer(&link.source)),
        destination: destination.as_deref().map(counted::peer),
        ..ctx.format_context(request.version)
    };
    let response = response.map(|head| &head.headers as &dyn Headers);
    let facts = Facts { context: &context, request: Some(&Seen(request)), response };
    let counted = Counted::by(settings, &facts);
    if !counted.off {
        event.rules = counted.rules;
        event.dimensions = &counted.dimensions;
        count(link, &event, messages.as_deref_mut());
    }
    access_log::request(session, ctx, &event);
}

/// Counts a request that is over, and its messages that are not counted yet.
fn count(link: &Link, event: &RequestEvent<'_>, messages: Option<&mut Messages>) {
    link.metrics.record_request(event);
    if let Some(messages) = messages {
        // Istio: with the first message of either side both series begin.
        let any = messages.passed() != (0, 0);
        let (from_client, to_client) = messages.rest();
        if any {
            link.metrics.record_messages(event, from_client, to_client);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_as_long_as_http_1_1_writes_them() {
        let mut request = RequestHeader::build("GET", b"/a?b=c", None).unwrap();
        request.insert_header("host", "app.test").unwrap();
        let text = "GET /a?b=c HTTP/1.1\r\nhost: app.test\r\n\r\n";
        assert_eq!(request_head_bytes(&request), text.len() as u64);
        let mut response = ResponseHeader::build(404, None).unwrap();
        response.insert_header("server", "x").unwrap();
        let text = "HTTP/1.1 404 Not Found\r\nserver: x\r\n\r\n";
        assert_eq!(response_head_bytes(&response), text.len() as u64);
    }
}
