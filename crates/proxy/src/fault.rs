//! Injected faults: delays, then aborts (Envoy: `filters.http.fault`).

use crate::exchange::Exchange;
use crate::reply::LocalReply;
use cairn_router::fault::{Abort, AbortAnswer, Delay, Fault};
use cairn_telemetry::ResponseFlags;
use http::StatusCode;
use pingora_error::Result;
use pingora_proxy::Session;

/// Delays the request if it is drawn, and gives the answer if it is to be aborted. The error: the
/// client has gone meanwhile.
pub(crate) async fn inject(
    fault: &Fault,
    session: &mut Session,
    ctx: &mut Exchange,
) -> Result<Option<LocalReply>> {
    let Fault { delay, abort } = fault;
    if let Some(Delay { fixed, .. }) = delay.filter(|delay| delay.share.applies(rand::random())) {
        ctx.flags |= ResponseFlags::DELAY_INJECTED;
        tokio::select! {
            gone = client_gone(session) => gone?,
            () = tokio::time::sleep(fixed) => {}
        }
    }
    Ok(abort.filter(|abort| abort.share.applies(rand::random())).map(reply_to))
}

/// Resolves, with an error, when the client resets its stream.
async fn client_gone(session: &mut Session) -> Result<()> {
    match session.as_downstream_mut().as_custom_mut() {
        Some(session) => session.read_body_or_idle(true).await.map(|_| ()),
        None => std::future::pending().await,
    }
}

fn reply_to(abort: Abort) -> LocalReply {
    let (status, grpc_status) = match abort.answer {
        AbortAnswer::Http(status) => (status, None),
        AbortAnswer::Grpc(status) => (StatusCode::OK, Some(status)),
    };
    let mut reply = LocalReply::new(
        status,
        "fault filter abort",
        ResponseFlags::FAULT_INJECTED,
        "fault_filter_abort",
    );
    reply.grpc_status = grpc_status;
    reply
}
