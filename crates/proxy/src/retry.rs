//! Whether a request is tried again, and what is answered when it is not.

use crate::breakers::{self, Overflow};
use crate::exchange::Exchange;
use crate::grpc;
use crate::reply::LocalReply;
use crate::trace;
use crate::upstream::Failure;
use cairn_router::retry::RetryPolicy;
use cairn_telemetry::ResponseFlags;
use http::{HeaderName, Method, StatusCode};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use std::borrow::Cow;
use tokio::time::Instant;

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// Repetitions on another connection because a pooled one turned out dead: not counted as retries.
const MAX_STALE: u32 = 3;

/// What a policy says of a failed try.
enum Verdict {
    /// No condition fits.
    No,
    /// One does, but all retries are used up.
    UsedUp,
    /// Again.
    Yes,
}

/// The body can be sent again.
fn is_replayable(session: &Session) -> bool {
    !session.as_ref().retry_buffer_truncated()
}

fn decide(
    session: &Session,
    ctx: &mut Exchange,
    response: Option<&ResponseHeader>,
    fits: impl FnOnce(&RetryPolicy) -> bool,
) -> Verdict {
    let Some(forward) = ctx.forward().cloned() else {
        return Verdict::No;
    };
    let Some(policy) = forward.retry.as_ref().filter(|policy| fits(policy)) else {
        return Verdict::No;
    };
    let late = ctx
        .inbound
        .as_ref()
        .and_then(|inbound| inbound.deadline())
        .is_some_and(|deadline| deadline <= Instant::now());
    if late || !is_replayable(session) {
        return Verdict::No;
    }
    if ctx.tries.retries >= policy.attempts {
        return Verdict::UsedUp;
    }
    ctx.tries.retry = None;
    let cluster = ctx.routed.as_ref().and_then(|routed| routed.cluster.as_ref());
    match cluster.map_or(Ok(None), |cluster| breakers::retry(cluster)) {
        Ok(held) => ctx.tries.retry = held,
        Err(Overflow) => {
            ctx.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
            return Verdict::No;
        }
    }
    ctx.tries.retries += 1;
    ctx.tries.pause = Some(policy.backoff(ctx.tries.retries, rand::random()));
    trace::end_try(session, ctx, response, true);
    again(ctx);
    if let Some(inbound) = &ctx.inbound {
        inbound.link.instance.counters().retries.add_one();
    }
    Verdict::Yes
}

/// Leaves the current try behind.
fn again(ctx: &mut Exchange) {
    ctx.tries.active = None;
    if let Some(attempt) = ctx.tries.current.take() {
        ctx.tries.endpoints.push(attempt.endpoint.id());
    }
}

/// Whether a response is thrown away and the request tried again.
pub(crate) fn after_response(
    session: &Session,
    response: &ResponseHeader,
    ctx: &mut Exchange,
) -> bool {
    let status = response.status.as_u16();
    let grpc_status = ctx.grpc.then(|| grpc::status_in(&response.headers)).flatten();
    let limited = response.headers.contains_key(&RATE_LIMITED);
    let verdict = decide(session, ctx, Some(response), |policy| {
        if limited { policy.on_rate_limited() } else { policy.on_status(status, grpc_status) }
    });
    if matches!(verdict, Verdict::UsedUp) {
        ctx.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    }
    matches!(verdict, Verdict::Yes)
}

/// Whether the request is tried again after a try without a response; if not, the reply is left in `ctx`.
pub(crate) fn after_failure(session: &Session, ctx: &mut Exchange) -> bool {
    let Some(attempt) = ctx.tries.current.clone() else {
        return false;
    };
    let Some(failure) = attempt.failure().cloned() else {
        return false;
    };
    if failure != Failure::Overflow {
        attempt.endpoint.state.record_failure();
    }
    tracing::debug!(
        mesh = attempt.inbound.link.instance.name(), cluster = &*attempt.cluster.name,
        endpoint = %attempt.endpoint.address, ?failure, "try failed"
    );
    let stale = match failure {
        Failure::Unprocessed => true,
        Failure::Reset { reused } => reused && is_idempotent(&session.req_header().method),
        _ => false,
    };
    if stale && ctx.tries.stale < MAX_STALE && is_replayable(session) {
        ctx.tries.stale += 1;
        trace::end_try(session, ctx, None, true);
        ctx.tries.active = None;
        ctx.tries.current = None;
        return true;
    }
    let verdict = decide(session, ctx, None, |policy| match &failure {
        Failure::Connect(_) | Failure::ConnectTimeout => policy.on_connect_failure(),
        Failure::Reset { .. }
        | Failure::StreamReset
        | Failure::Unprocessed
        | Failure::PerTryTimeout => policy.on_reset(false),
        Failure::RefusedStream => policy.on_refused_stream(),
        Failure::Protocol(_) => policy.on_reset(false),
        Failure::Truncated | Failure::Timeout | Failure::Idle | Failure::Overflow => false,
    });
    let used_up = match verdict {
        Verdict::Yes => return true,
        Verdict::UsedUp => true,
        Verdict::No => false,
    };
    ctx.reply = Some(match failure {
        Failure::Overflow => breakers::overflow(ctx.chain().map(AsRef::as_ref)),
        failure => reply_to(&failure, used_up, ctx.tries.retries > 0),
    });
    false
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Why a try failed, in Envoy's words, and the flag for it.
pub(crate) fn words(failure: &Failure) -> (&'static str, ResponseFlags) {
    match failure {
        Failure::Timeout => ("response timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::PerTryTimeout => ("per try timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::Idle => ("stream timeout", ResponseFlags::STREAM_IDLE_TIMEOUT),
        Failure::Connect(_) => {
            ("remote connection failure", ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
        }
        Failure::ConnectTimeout => {
            ("connection timeout", ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
        }
        Failure::Reset { .. } | Failure::Unprocessed | Failure::Truncated => {
            ("connection termination", ResponseFlags::UPSTREAM_CONNECTION_TERMINATION)
        }
        Failure::StreamReset => ("remote reset", ResponseFlags::UPSTREAM_REMOTE_RESET),
        Failure::RefusedStream => {
            ("remote refused stream reset", ResponseFlags::UPSTREAM_REMOTE_RESET)
        }
        Failure::Protocol(_) => ("protocol error", ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
        Failure::Overflow => ("overflow", ResponseFlags::UPSTREAM_OVERFLOW),
    }
}

/// Envoy's words (`Router::Filter::onUpstreamAbort`).
fn reply_to(failure: &Failure, used_up: bool, retried: bool) -> LocalReply {
    match failure {
        Failure::Timeout => {
            return LocalReply::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream request timeout",
                ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
                "response_timeout",
            );
        }
        Failure::Idle => {
            return LocalReply::new(
                StatusCode::REQUEST_TIMEOUT,
                "stream timeout",
                ResponseFlags::STREAM_IDLE_TIMEOUT,
                "stream_idle_timeout",
            );
        }
        Failure::PerTryTimeout => {
            let flags = ResponseFlags::UPSTREAM_REQUEST_TIMEOUT;
            return LocalReply::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream request timeout",
                if used_up { flags | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED } else { flags },
                "upstream_per_try_timeout",
            );
        }
        _ => {}
    }
    let (reason, flag) = words(failure);
    let status = match failure {
        Failure::Protocol(_) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let tried = if retried { "retried and the latest " } else { "" };
    let flags = if used_up { flag | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED } else { flag };
    LocalReply::new(
        status,
        format!(
            "upstream connect error or disconnect/reset before headers. {tried}reset reason: {reason}"
        ),
        flags,
        Cow::Owned(format!(
            "upstream_reset_before_response_started{{{}}}",
            reason.replace(' ', "_")
        )),
    )
}
