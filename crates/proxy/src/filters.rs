//! The steps of a chain before routing, in their order.

use crate::exchange::Exchange;
use crate::inbound::Inbound;
use crate::phases::view;
use crate::reply::LocalReply;
use crate::sink::RequestHeaders;
use cairn_router::destination::{HttpChain, HttpFilter};
use cairn_router::rbac::CompiledRbac;
use cairn_router::request::{ConnectionView, RequestView};
use cairn_telemetry::ResponseFlags;
use http::StatusCode;
use pingora_http::RequestHeader;

/// Policies and changes to headers; the first refusal ends the request.
pub(crate) fn run(
    ctx: &Exchange,
    inbound: &Inbound,
    chain: &HttpChain,
    request: &mut RequestHeader,
) -> Result<(), LocalReply> {
    let connection = inbound.link.connection();
    // Policies that follow each other see the same request.
    let are_policies = |one: &HttpFilter, next: &HttpFilter| {
        matches!((one, next), (HttpFilter::Rbac(_), HttpFilter::Rbac(_)))
    };
    for alike in chain.filters.chunk_by(are_policies) {
        if let [HttpFilter::RequestHeaders(changes)] = alike {
            let context = ctx.format_context(request.version);
            changes.apply_to_request(&mut RequestHeaders(request), &context);
            continue;
        }
        let request = view(request);
        for filter in alike {
            match filter {
                HttpFilter::Rbac(rbac) => authorize(rbac, &connection, &request)?,
                HttpFilter::RequestHeaders(_) => {}
            }
        }
    }
    Ok(())
}

fn authorize(
    rbac: &CompiledRbac,
    connection: &ConnectionView<'_>,
    request: &RequestView<'_>,
) -> Result<(), LocalReply> {
    match rbac.check_request(connection, request).details() {
        None => Ok(()),
        Some(details) => Err(LocalReply::new(
            StatusCode::FORBIDDEN,
            "RBAC: access denied",
            ResponseFlags::NONE,
            details,
        )),
    }
}
