//! The phases of a request, as Pingora's hooks:
//!
//! authenticate (the tunnel did) → normalise → authorize → admit → route → connect →
//! relay → record. A phase that ends the request leaves a [`LocalReply`] and an error;
//! the answer is sent in one place, the record is written in one place.

use crate::counters::Raised;
use crate::date;
use crate::downstream::{ANSWERED_EARLY, Inbound, inbound_of};
use crate::exchange::{Exchange, Routed};
use crate::grpc;
use crate::headers;
use crate::mirror::Mirror;
use crate::record;
use crate::reply::{self, Form, LocalReply};
use crate::retry;
use crate::sink::{RequestHeaders, ResponseHeaders, Seen};
use crate::upstream::Attempt;
use async_trait::async_trait;
use bytes::Bytes;
use cairn_router::action::Forward;
use cairn_router::destination::{HttpChain, HttpFilter};
use cairn_router::path;
use cairn_router::request::RequestView;
use cairn_router::route::RouteAction;
use cairn_router::spec::ClusterProtocol;
use cairn_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::tls::CustomALPN;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Bytes of a body that are kept, without a retry policy, for an HTTP/2 endpoint whose GOAWAY leaves the request out.
const UNPROCESSED_REPLAY: usize = 64 * 1024;

/// The hooks. They hold nothing: what they need comes with the session.
pub(crate) struct Hooks;

/// The head as policies and routes see it.
fn view<'a>(request: &'a RequestHeader) -> RequestView<'a> {
    let text = |value: Option<&'a HeaderValue>| value.and_then(|value| value.to_str().ok());
    RequestView {
        method: &request.method,
        authority: text(request.headers.get(header::HOST)).unwrap_or_default(),
        path: request.uri.path(),
        query: request.uri.query(),
        scheme: text(request.headers.get(headers::FORWARDED_PROTO)).unwrap_or("http"),
        headers: &request.headers,
    }
}

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

/// Brings the path into the one form that everything after this sees.
fn normalise(request: &mut RequestHeader, chain: &HttpChain) -> Result<(), LocalReply> {
    let bad = || {
        LocalReply::new(
            StatusCode::BAD_REQUEST,
            "",
            ResponseFlags::NONE,
            "path_normalization_failed",
        )
    };
    let raw = request.uri.path();
    let normal = if chain.normalize_path {
        path::normalize(raw, chain.merge_slashes).map_err(|_| bad())?
    } else if chain.merge_slashes {
        path::merge_slashes(raw)
    } else {
        Cow::Borrowed(raw)
    };
    if normal == raw {
        return Ok(());
    }
    let target = match request.uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    let uri = Uri::try_from(target).map_err(|_| bad())?;
    request.set_uri(uri);
    Ok(())
}

/// Policies in order; the first refusal ends the request.
fn authorize(
    inbound: &Inbound,
    chain: &HttpChain,
    request: &RequestHeader,
) -> Result<(), LocalReply> {
    let connection = inbound.link.connection();
    let request = view(request);
    for filter in &chain.filters {
        match filter {
            HttpFilter::Rbac(rbac) => {
                let verdict = rbac.check_request(&connection, &request);
                if verdict.is_denied() {
                    return Err(LocalReply::new(
                        StatusCode::FORBIDDEN,
                        "RBAC: access denied",
                        ResponseFlags::NONE,
                        verdict.details().unwrap_or_default(),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Whether there is room for one more request.
fn admit(ctx: &mut Exchange, inbound: &Inbound) -> Result<(), LocalReply> {
    let instance = &inbound.link.instance;
    let counters = instance.counters();
    counters.requests.add_one();
    if counters.requests_in_flight.get() >= instance.limits().max_requests_in_flight {
        let mut reply = LocalReply::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overflow",
            ResponseFlags::UPSTREAM_OVERFLOW,
            "overload_manager_max_requests",
        );
        reply.headers.push((
            HeaderName::from_static("x-envoy-overloaded"),
            HeaderValue::from_static("true"),
        ));
        return Err(reply);
    }
    ctx.in_flight =
        Some(Raised::new(Arc::clone(counters), |counters| &counters.requests_in_flight));
    Ok(())
}

/// The first route that matches.
fn route(chain: &HttpChain, request: &RequestHeader) -> Result<Routed, LocalReply> {
    let Some(found) = chain.routes.find(&view(request)) else {
        return Err(LocalReply::new(
            StatusCode::NOT_FOUND,
            "",
            ResponseFlags::NO_ROUTE_FOUND,
            "route_not_found",
        ));
    };
    Ok(Routed {
        route: Arc::clone(found.route),
        forward: match &found.route.action {
            RouteAction::Forward(forward) => Some(Arc::clone(forward)),
            _ => None,
        },
        draw: rand::random(),
        cluster: None,
    })
}

/// Redirects and fixed responses. `None`: the request is forwarded.
fn local_answer(routed: &Routed, request: &RequestHeader) -> Option<LocalReply> {
    match &routed.route.action {
        RouteAction::Forward(_) => None,
        RouteAction::Redirect(redirect) => {
            let location = redirect.location(&routed.route, &view(request));
            let mut reply =
                LocalReply::new(redirect.status, "", ResponseFlags::NONE, "direct_response");
            if let Ok(location) = HeaderValue::from_str(&location) {
                reply.headers.push((header::LOCATION, location));
            }
            Some(reply)
        }
        RouteAction::DirectResponse(direct) => Some(LocalReply::new(
            direct.status,
            String::from_utf8_lossy(&direct.body).into_owned(),
            ResponseFlags::NONE,
            "direct_response",
        )),
    }
}

/// The route's timeout, or the client's gRPC deadline where the route honours it.
fn timeout_of(forward: &Forward, grpc: bool, headers: &HeaderMap) -> Option<Duration> {
    if grpc { forward.grpc_timeout(grpc::timeout_in(headers)) } else { forward.timeout }
}

/// Draws the cluster, once per request.
fn choose_cluster(ctx: &mut Exchange, inbound: &Inbound) -> Result<(), LocalReply> {
    let Some(routed) = ctx.routed.as_mut() else {
        return Ok(());
    };
    if routed.cluster.is_some() {
        return Ok(());
    }
    let Some(forward) = routed.forward.as_ref() else {
        return Ok(());
    };
    let (name, _) = forward.pick_cluster(routed.draw);
    match inbound.resolved.mesh.cluster(name) {
        Some(cluster) => {
            routed.cluster = Some(Arc::clone(cluster));
            Ok(())
        }
        None => Err(LocalReply::new(
            forward.cluster_not_found_status,
            "",
            ResponseFlags::NO_CLUSTER_FOUND,
            "cluster_not_found",
        )),
    }
}

fn no_endpoint() -> LocalReply {
    LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no healthy upstream",
        ResponseFlags::NO_HEALTHY_UPSTREAM,
        "no_healthy_upstream",
    )
}

/// Picks an endpoint and begins a try at it.
fn begin_try(
    ctx: &mut Exchange,
    inbound: Arc<Inbound>,
    version: Version,
) -> Result<(), LocalReply> {
    let Some((cluster, forward)) = ctx.routed.as_ref().and_then(|routed| {
        Some((Arc::clone(routed.cluster.as_ref()?), Arc::clone(routed.forward.as_ref()?)))
    }) else {
        return Err(no_endpoint());
    };
    let retry = forward.retry.as_ref();
    let draws = retry.map_or(1, |retry| retry.host_selection_attempts);
    let avoided: &[u64] = if retry.is_none_or(|retry| retry.avoid_previous_hosts) {
        &ctx.tries.endpoints
    } else {
        &[]
    };
    let endpoint = cluster.pick(rand::random, avoided, draws).cloned().ok_or_else(no_endpoint)?;
    let http2 = match cluster.protocol {
        ClusterProtocol::Http1 => false,
        ClusterProtocol::Http2 => true,
        ClusterProtocol::Downstream => version == Version::HTTP_2,
    };
    if http2 && retry.is_none() {
        inbound.keep_for_replay(UNPROCESSED_REPLAY);
    }
    let now = Instant::now();
    let per_try =
        retry.and_then(|retry| retry.per_try_timeout).map(|timeout| (now + timeout).into());
    ctx.tries.active = Some(endpoint.begin());
    ctx.tries.begun += 1;
    ctx.tries.begun_at = Some(now);
    let attempt = Attempt::new(inbound, cluster, endpoint, http2, per_try)
        .on_fresh_connection(ctx.tries.stale > 0);
    ctx.tries.current = Some(Arc::new(attempt));
    Ok(())
}

/// Everything that the route changes in the request (Envoy: `finalizeRequestHeaders`).
fn finalize_request(ctx: &Exchange, request: &mut RequestHeader, client: &RequestHeader) {
    let view = view(client);
    if let Some(matched) = ctx.matched(view.authority) {
        let mut context = ctx.format_context(client.version);
        context.virtual_host_name = Some(&matched.virtual_host.name);
        matched.finalize_request(ctx.weighted(), &mut RequestHeaders(request), &context);
    }
}

/// Everything that we and the route change in a response.
fn finalize_response(
    ctx: &Exchange,
    chain: &HttpChain,
    response: &mut ResponseHeader,
    client: &RequestHeader,
) -> Result<()> {
    headers::strip_response_hop(response)?;
    response.insert_header(header::SERVER, chain.server.clone())?;
    if !response.headers.contains_key(header::DATE) {
        response.insert_header(header::DATE, date::now())?;
    }
    if let Some(begun) = ctx.tries.begun_at {
        let millis = begun.elapsed().as_millis();
        response.insert_header(
            SERVICE_TIME,
            HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)),
        )?;
    }
    apply_response_ops(ctx, response, client);
    Ok(())
}

fn apply_response_ops(ctx: &Exchange, response: &mut ResponseHeader, client: &RequestHeader) {
    let view = view(client);
    if let Some(matched) = ctx.matched(view.authority) {
        let mut context = ctx.format_context(client.version);
        context.virtual_host_name = Some(&matched.virtual_host.name);
        context.response_code = Some(response.status.as_u16());
        matched.finalize_response(
            ctx.weighted(),
            &mut ResponseHeaders(response),
            &Seen(client),
            &context,
        );
    }
}

/// Sends the reply that a phase has left.
async fn send_reply(session: &mut Session, ctx: &mut Exchange, reply: &LocalReply) -> Result<()> {
    ctx.flags |= reply.flags;
    ctx.details = reply.details.clone();
    let server = match ctx.inbound.as_ref().map(|inbound| chain_of(inbound)) {
        Some(Ok(chain)) => chain.server.clone(),
        _ => HeaderValue::from_static("istio-envoy"),
    };
    let request = session.req_header();
    let direct = reply.details == "direct_response";
    let form = Form { grpc: ctx.grpc, method: &request.method, server: &server };
    let (mut head, body) = reply.render(form)?;
    if ctx.grpc {
        ctx.grpc_status = Some(grpc::status_of(reply.status));
    }
    if direct {
        apply_response_ops(ctx, &mut head, request);
    }
    reply::send(session, head, body).await
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
        normalise(request, chain).map_err(|reply| answer(ctx, reply))?;
        headers::sanitize(request)
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
        authorize(&inbound, chain, session.req_header()).map_err(|reply| answer(ctx, reply))?;
        admit(ctx, &inbound).map_err(|reply| answer(ctx, reply))?;
        let routed = route(chain, session.req_header()).map_err(|reply| answer(ctx, reply))?;
        let local = local_answer(&routed, session.req_header());
        let forward = routed.forward.clone();
        ctx.routed = Some(routed);
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
        let version = session.req_header().version;
        begin_try(ctx, inbound, version).map_err(|reply| answer(ctx, reply))?;
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
        let timeout =
            ctx.forward().and_then(|forward| timeout_of(forward, ctx.grpc, &request.headers));
        let per_try = ctx.forward().and_then(|forward| forward.retry.as_ref()?.per_try_timeout);
        if let Some(expected) = per_try.or(timeout).filter(|timeout| !timeout.is_zero()) {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            request.insert_header(EXPECTED_TIMEOUT, HeaderValue::from(millis))?;
        }
        if ctx.tries.begun == 1
            && let Some(forward) = ctx.forward()
            && !session.is_upgrade_req()
            && let Some(mirror) = Mirror::of(forward, inbound, request)
        {
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
        ctx.response_started = Some(ctx.started.elapsed());
        ctx.details = Cow::Borrowed("via_upstream");
        if ctx.grpc {
            ctx.grpc_status = grpc::status_in(&response.headers);
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

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Exchange,
    ) -> Result<Option<Bytes>> {
        if ctx.grpc {
            ctx.grpc_status = grpc::status_in(trailers).or(ctx.grpc_status);
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
