//! The phases of a request, as Pingora's hooks:
//!
//! authenticate (the tunnel did) → normalise → authorize → admit → route → connect →
//! relay → record. A phase that ends the request leaves a [`LocalReply`] and an error;
//! the answer is sent in one place, the record is written in one place.

use crate::cors;
use crate::downstream::ANSWERED_EARLY;
use crate::exchange::Exchange;
use crate::fault;
use crate::filters;
use crate::grpc;
use crate::headers;
use crate::inbound::{Inbound, inbound_of};
use crate::mirror::Mirror;
use crate::phases::{
    Admitted, admit, apply_response_ops, begin_try, choose_cluster, choose_endpoint,
    finalize_request, finalize_response, finish_response, local_answer, normalise, route,
    take_operation, tell_timeout, timeout_of, unsupported, wait_for_endpoint, wait_for_room,
};
use crate::record;
use crate::reply::{self, Form, LocalReply};
use crate::retry;
use crate::trace;
use async_trait::async_trait;
use bytes::Bytes;
use cairn_router::destination::HttpChain;
use cairn_router::route::Route;
use cairn_telemetry::ResponseFlags;
use http::{HeaderMap, StatusCode, header};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::tls::CustomALPN;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// The hooks. They hold nothing: what they need comes with the session.
pub(crate) struct Hooks;

/// Ends the request with `reply`.
fn answer(ctx: &mut Exchange, reply: LocalReply) -> Box<Error> {
    ctx.reply = Some(reply);
    Error::explain(ErrorType::new("LocalReply"), "answered by the proxy")
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "a request without its tunnel")
}

fn inbound(ctx: &Exchange) -> Result<Arc<Inbound>> {
    ctx.inbound.clone().ok_or_else(gone)
}

fn chain_of(inbound: &Inbound) -> Result<&Arc<HttpChain>> {
    inbound.resolved.destination.http.as_ref().ok_or_else(gone)
}

/// Sends the reply that a phase has left.
async fn send_reply(session: &mut Session, ctx: &mut Exchange, reply: &LocalReply) -> Result<()> {
    ctx.flags |= reply.flags;
    ctx.details = reply.details.clone();
    let request = session.req_header();
    let form = Form { grpc: ctx.grpc && !reply.plain, request };
    let (mut head, body) = reply.render(form)?;
    if form.grpc {
        ctx.grpc_status = Some(reply.grpc_status());
    }
    if !reply.plain {
        // Envoy: a route's changes are made to local replies, too, whichever filter made them.
        apply_response_ops(ctx, &mut head, request);
    }
    match ctx.chain() {
        Some(chain) => finish_response(ctx, chain, &mut head)?,
        None => head.insert_header(header::SERVER, "istio-envoy")?,
    }
    reply::send(session, head, body).await
}

/// What a route does before its action: faults, then what other origins may.
async fn before_action(
    route: &Route,
    inbound: &Inbound,
    session: &mut Session,
    ctx: &mut Exchange,
) -> Result<()> {
    if let Some(fault) = &route.fault
        && let Some(reply) = fault::inject(fault, session, ctx).await?
    {
        // So that the record names the service, whatever may be wrong with its cluster.
        let _it_is_aborted_anyway = choose_cluster(ctx, inbound);
        return Err(answer(ctx, reply));
    }
    if let Some(cors) = &route.cors {
        cors::judge(cors, ctx, session.req_header()).map_err(|reply| answer(ctx, reply))?;
    }
    Ok(())
}

/// Whether the client has got the head of a final response already.
fn is_answered(session: &Session) -> bool {
    session.response_written().is_some_and(|head| {
        !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
    })
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::new()
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<()> {
        let inbound = inbound_of(session.digest()).cloned().ok_or_else(gone)?;
        ctx.inbound = Some(Arc::clone(&inbound));
        let chain = chain_of(&inbound)?;
        let request = session.req_header_mut();
        ctx.original = request.uri.clone();
        ctx.grpc = grpc::is_grpc(&request.headers);
        ctx.head_bytes = record::request_head_bytes(request);
        if let Some(reason) = &chain.broken {
            return Err(answer(ctx, unsupported(reason)));
        }
        headers::drop_nominated(request);
        normalise(request, chain, ctx.grpc).map_err(|reply| answer(ctx, reply))?;
        let operation = take_operation(ctx, request);
        headers::sanitize(request, chain, inbound.link.target.port())?;
        trace::begin(ctx, &inbound, request, operation);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<bool> {
        let inbound = inbound(ctx)?;
        let chain = chain_of(&inbound)?;
        if session.is_upgrade_req() {
            let upgrade = session.req_header().headers.get(header::UPGRADE);
            let token = upgrade.and_then(|token| token.to_str().ok()).unwrap_or_default();
            if !chain.allows_upgrade(token) {
                let reply = LocalReply::new(
                    StatusCode::FORBIDDEN,
                    "",
                    ResponseFlags::NONE,
                    "upgrade_failed",
                );
                return Err(answer(ctx, reply));
            }
        }
        if let Err(reply) = filters::run(ctx, &inbound, chain, session.req_header_mut()) {
            // The response has the name of the route's operation all the same, and the record that of the service.
            ctx.routed = route(chain, session.req_header()).ok();
            let _it_is_refused_anyway = choose_cluster(ctx, &inbound);
            return Err(answer(ctx, reply));
        }
        let admitted = match admit(ctx, &inbound) {
            Ok(Admitted::Now) => Ok(()),
            // Boxed: it is rare.
            Ok(Admitted::NotYet) => Box::pin(wait_for_room(ctx, &inbound)).await,
            Err(reply) => Err(reply),
        };
        if let Err(reply) = admitted {
            ctx.routed = route(chain, session.req_header()).ok();
            let _it_is_refused_anyway = choose_cluster(ctx, &inbound);
            return Err(answer(ctx, reply));
        }
        let routed = route(chain, session.req_header()).map_err(|reply| answer(ctx, reply))?;
        let extras = routed.route.fault.is_some() || routed.route.cors.is_some();
        let extras = extras.then(|| Arc::clone(&routed.route));
        let forward = routed.forward.clone();
        ctx.routed = Some(routed);
        if let Some(route) = extras {
            // Boxed: few routes have them.
            Box::pin(before_action(&route, &inbound, session, ctx)).await?;
        }
        ctx.admitted = true;
        ctx.messages = ctx.grpc.then(Box::default);
        let local =
            ctx.routed.as_ref().and_then(|routed| local_answer(routed, session.req_header()));
        if let Some(reply) = local {
            return Err(answer(ctx, reply));
        }
        let Some(forward) = forward else {
            return Err(gone());
        };
        if let Some(timeout) = forward.idle_timeout {
            inbound.bound_silence(timeout);
        }
        if forward.retry.is_some() {
            inbound.keep_for_replay(inbound.link.instance.limits().max_replay);
        }
        if session.is_body_empty() && !session.is_upgrade_req() {
            ctx.request_received = Some(ctx.started.elapsed());
            let headers = &session.req_header().headers;
            if let Some(timeout) = timeout_of(&forward, ctx.grpc, headers) {
                inbound.start_timeout(timeout);
            }
        }
        Ok(false)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Exchange,
    ) -> Result<()> {
        if let (Some(mirror), Some(data)) = (ctx.mirror.as_mut(), body.as_ref()) {
            mirror.keep(data);
        }
        if let (Some(messages), Some(data)) = (ctx.messages.as_mut(), body.as_ref()) {
            messages.request(data);
            record::stream(ctx);
        }
        if !end_of_stream || session.was_upgraded() || ctx.request_received.is_some() {
            return Ok(());
        }
        ctx.request_received = Some(ctx.started.elapsed());
        if let Some(mirror) = ctx.mirror.take() {
            mirror.start();
        }
        let inbound = inbound(ctx)?;
        let timeout = ctx
            .forward()
            .and_then(|forward| timeout_of(forward, ctx.grpc, &session.req_header().headers));
        if let Some(timeout) = timeout {
            inbound.start_timeout(timeout);
            // The side that reads the response waits in this same task: it has to look at the deadline.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Exchange,
    ) -> Result<Box<HttpPeer>> {
        if let Some(pause) = ctx.tries.pause.take() {
            tokio::time::sleep(pause).await;
        }
        let inbound = inbound(ctx)?;
        choose_cluster(ctx, &inbound).map_err(|reply| answer(ctx, reply))?;
        let endpoint = match choose_endpoint(ctx, &inbound) {
            Ok(endpoint) => endpoint,
            Err(none) => Box::pin(wait_for_endpoint(ctx, &inbound, none))
                .await
                .map_err(|reply| answer(ctx, reply))?,
        };
        let version = session.req_header().version;
        begin_try(ctx, inbound, endpoint, version).map_err(|reply| answer(ctx, reply))?;
        let attempt = ctx.tries.current.as_ref().ok_or_else(gone)?;
        let mut peer = HttpPeer::new(attempt.endpoint.address, false, String::new());
        peer.options.alpn = ALPN::Custom(CustomALPN::new(b"cairn".to_vec()));
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let attempt = ctx.tries.current.clone().ok_or_else(gone)?;
        headers::strip_hop(request, session.is_upgrade_req())?;
        finalize_request(ctx, request, session.req_header());
        let inbound = &attempt.inbound;
        if let Some(forward) = ctx.forward() {
            let told = !chain_of(inbound)?.suppress_envoy_headers;
            tell_timeout(forward, ctx.grpc, told, request)?;
        }
        trace::begin_try(ctx, request)?;
        if ctx.tries.begun == 1
            && let Some(forward) = ctx.forward()
            && !session.is_upgrade_req()
            && let Some(mut mirror) = Mirror::of(forward, inbound, request)
        {
            trace::tell_mirror(ctx, mirror.head_mut());
            if session.is_body_empty() {
                mirror.start();
            } else {
                ctx.mirror = Some(mirror);
            }
        }
        request.extensions_mut().insert(attempt);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(());
        }
        if retry::after_response(session, response, ctx) {
            let mut error =
                Error::explain(ErrorType::new("Retry"), "the response is retried").into_up();
            error.set_retry(true);
            return Err(error);
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS
            && let Some(underway) = &mut ctx.underway
        {
            underway.became_stream();
        }
        ctx.response_started = Some(ctx.started.elapsed());
        ctx.details = Cow::Borrowed("via_upstream");
        if ctx.grpc {
            ctx.grpc_status = grpc::status_in(&response.headers);
            trace::note_fields(ctx, &response.headers);
        }
        if let Some(messages) = ctx.messages.as_mut() {
            messages.answered(response);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
        {
            return headers::strip_response_hop(response);
        }
        let inbound = inbound(ctx)?;
        finalize_response(ctx, chain_of(&inbound)?, response, session.req_header())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Exchange,
    ) -> Result<Option<Duration>> {
        if let (Some(messages), Some(data)) = (ctx.messages.as_mut(), body.as_ref()) {
            messages.response(data);
            record::stream(ctx);
        }
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Exchange,
    ) -> Result<Option<Bytes>> {
        if ctx.grpc {
            ctx.grpc_status = grpc::status_in(trailers).or(ctx.grpc_status);
            trace::note_fields(ctx, trailers);
        }
        if ctx.is_logged() {
            ctx.trailers = Some(Box::new(trailers.clone()));
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Exchange,
        _reused: bool,
    ) -> Box<Error> {
        if matches!(error.etype(), ErrorType::Custom("Retry")) {
            return error;
        }
        error.set_retry(false);
        if *error.esource() == ErrorSource::Upstream && !is_answered(session) {
            let again = retry::after_failure(session, ctx);
            error.set_retry(again);
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Exchange,
    ) -> FailToProxy {
        let nothing = FailToProxy { error_code: 0, can_reuse_downstream: true };
        if *error.etype() == ANSWERED_EARLY {
            return nothing;
        }
        if is_answered(session) {
            record::cut_short(ctx, error);
            return nothing;
        }
        if ctx.reply.is_none() && *error.esource() == ErrorSource::Downstream {
            if matches!(error.etype(), ErrorType::InvalidHTTPHeader) {
                ctx.reply = Some(LocalReply::new(
                    StatusCode::BAD_REQUEST,
                    "",
                    ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
                    "http1.codec_error",
                ));
            } else {
                record::cut_short(ctx, error);
                return nothing;
            }
        }
        let reply = ctx.reply.take().unwrap_or_else(|| {
            LocalReply::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "",
                ResponseFlags::NONE,
                "internal_error",
            )
        });
        if let Err(error) = send_reply(session, ctx, &reply).await {
            record::cut_short(ctx, &error);
        }
        FailToProxy { error_code: reply.status.as_u16(), can_reuse_downstream: true }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Exchange) {
        record::request(session, ctx);
        trace::end(session, ctx);
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Exchange, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Exchange,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
