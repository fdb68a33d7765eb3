//! Cross-origin requests (Envoy: `filters.http.cors`).

use crate::exchange::Exchange;
use crate::reply::LocalReply;
use crate::sink::ResponseHeaders;
use cairn_router::cors::{Cors, CorsRequest};
use cairn_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

/// Answers preflights, and notes the origin of an allowed request for its response. That says what may be seen of it,
/// preflight or not (Envoy).
pub(crate) fn judge(
    cors: &Cors,
    ctx: &mut Exchange,
    request: &RequestHeader,
) -> Result<(), LocalReply> {
    match cors.judge(&request.method, &request.headers) {
        CorsRequest::Other => Ok(()),
        CorsRequest::Actual(origin) => {
            ctx.origin = Some(origin);
            Ok(())
        }
        CorsRequest::Preflight(origin) => {
            let reply = preflight(cors, Some(&origin));
            ctx.origin = Some(origin);
            Err(reply)
        }
        CorsRequest::RefusedPreflight => Err(preflight(cors, None)),
    }
}

fn preflight(cors: &Cors, origin: Option<&HeaderValue>) -> LocalReply {
    let mut reply = LocalReply::new(StatusCode::OK, "", ResponseFlags::NONE, "cors_response");
    reply.plain = true;
    let mut headers = HeaderMap::new();
    cors.put_preflight_headers(origin, &mut headers);
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

/// Puts on a response what its client may see of it.
pub(crate) fn put_headers(ctx: &Exchange, response: &mut ResponseHeader) {
    let cors = ctx.routed.as_ref().and_then(|routed| routed.route.cors.as_ref());
    if let (Some(origin), Some(cors)) = (&ctx.origin, cors) {
        cors.put_response_headers(origin, &mut ResponseHeaders(response));
    }
}
