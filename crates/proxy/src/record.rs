//! The one record of a request, made when it is over.

use crate::access_log;
use crate::exchange::Exchange;
use crate::headers::REQUEST_ID;
use crate::instance::{destination_labels, service_labels};
use cairn_telemetry::{Protocol, RequestEvent, ResponseFlags, SecurityPolicy, Timings};
use http::header;
use pingora_error::{Error, ErrorSource};
use pingora_proxy::Session;
use std::borrow::Cow;

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

/// Hands the record to telemetry.
pub(crate) fn request(session: &Session, ctx: &mut Exchange) {
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
    let text = |name: &http::HeaderName| {
        request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let path = ctx.original.path_and_query().map_or("", |path_and_query| path_and_query.as_str());
    let event = RequestEvent {
        mesh: link.instance.name(),
        tenant: &inbound.resolved.destination.tenant.namespace,
        source: Some(&link.source),
        source_principal: link.peer.id.as_str(),
        source_address: Some(link.peer.addr),
        security: SecurityPolicy::of_tunnel(link.peer.id.as_str(), link.peer.local_id.as_str()),
        target: &link.target_text,
        destination: destination.as_ref(),
        service: cluster.map(|cluster| service_labels(cluster)),
        route: routed.map_or("", |routed| &routed.route.name),
        cluster: cluster.map_or("", |cluster| &cluster.name),
        upstream: attempt.map(|attempt| attempt.endpoint.address),
        attempts: ctx.tries.begun,
        protocol: if ctx.grpc { Protocol::Grpc } else { Protocol::Http },
        method: request.method.as_str(),
        path,
        authority: text(&header::HOST),
        request_id: text(&REQUEST_ID),
        user_agent: text(&header::USER_AGENT),
        response_code: session.response_written().map_or(0, |head| head.status.as_u16()),
        grpc_status: ctx.grpc_status,
        flags: ctx.flags,
        details: &ctx.details,
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
        messages_in: 0,
        messages_out: 0,
        timings: Timings {
            start: ctx.start_time,
            duration: ctx.started.elapsed(),
            request_received: ctx.request_received,
            upstream_response_started: ctx.response_started,
            ..Timings::default()
        },
    };
    inbound.resolved.tenant.add_bytes(link.worker, event.bytes_in + event.bytes_out);
    link.metrics.record_request(&event);
    access_log::request(session, ctx, &event);
}
