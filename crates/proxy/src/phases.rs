//! The phases of a request as plain functions: each takes what it needs and answers with a value, or with
//! the reply that ends the request.

use crate::breakers;
use crate::choose::{self, NoEndpoint, choose};
use crate::cors;
use crate::counters::Raised;
use crate::date;
use crate::exchange::{Exchange, Routed};
use crate::grpc;
use crate::headers;
use crate::inbound::Inbound;
use crate::load::{REQUEST, Underway};
use crate::reply::LocalReply;
use crate::sink::{RequestHeaders, ResponseHeaders, Seen};
use crate::upstream::Attempt;
use cairn_router::action::Forward;
use cairn_router::destination::HttpChain;
use cairn_router::endpoint::Endpoint;
use cairn_router::path;
use cairn_router::request::RequestView;
use cairn_router::route::RouteAction;
use cairn_router::spec::{ClusterProtocol, EscapedSlashes};
use cairn_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Bytes of a body that are kept, without a retry policy, for an HTTP/2 endpoint whose GOAWAY leaves the request out.
const UNPROCESSED_REPLAY: usize = 64 * 1024;

/// The head as policies and routes see it.
pub(crate) fn view<'a>(request: &'a RequestHeader) -> RequestView<'a> {
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

/// Brings the path into the one form that everything after this sees.
pub(crate) fn normalise(
    request: &mut RequestHeader,
    chain: &HttpChain,
    grpc: bool,
) -> Result<(), LocalReply> {
    let bad = || {
        LocalReply::new(
            StatusCode::BAD_REQUEST,
            "",
            ResponseFlags::NONE,
            "path_normalization_failed",
        )
    };
    let raw = request.uri.path();
    let unescaped = match chain.escaped_slashes {
        EscapedSlashes::KeepUnchanged => None,
        EscapedSlashes::RejectRequest
        | EscapedSlashes::UnescapeAndForward
        | EscapedSlashes::UnescapeAndRedirect => path::unescape_slashes(raw),
    };
    let path = unescaped.as_deref().unwrap_or(raw);
    let normal = if chain.normalize_path {
        path::normalize(path, chain.merge_slashes).map_err(|_| bad())?
    } else if chain.merge_slashes {
        path::merge_slashes(path)
    } else {
        Cow::Borrowed(path)
    };
    if normal == raw {
        return Ok(());
    }
    let target = match request.uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    if unescaped.is_some() {
        match chain.escaped_slashes {
            EscapedSlashes::RejectRequest => return Err(bad()),
            // gRPC knows no redirects (Envoy), and what begins with two slashes names another host.
            EscapedSlashes::UnescapeAndRedirect if grpc || target.starts_with("//") => {
                return Err(bad());
            }
            EscapedSlashes::UnescapeAndRedirect => {
                let mut reply = bad();
                reply.status = StatusCode::TEMPORARY_REDIRECT;
                let location = HeaderValue::from_str(&target).map_err(|_| bad())?;
                reply.headers.push((header::LOCATION, location));
                return Err(reply);
            }
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::KeepUnchanged => {}
        }
    }
    let uri = Uri::try_from(target).map_err(|_| bad())?;
    request.set_uri(uri);
    Ok(())
}

/// The answer of a chain or cluster whose configuration cannot be honoured.
pub(crate) fn unsupported(reason: &str) -> LocalReply {
    LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        reason.to_owned(),
        ResponseFlags::NONE,
        "unsupported_config",
    )
}

/// Takes the client's name of the operation; with one, the response does not have the route's.
pub(crate) fn take_operation(
    ctx: &mut Exchange,
    request: &mut RequestHeader,
) -> Option<HeaderValue> {
    let operation = request.remove_header(&DECORATOR)?;
    ctx.names_operation = !operation.is_empty();
    Some(operation)
}

/// Whether a request that there is no bound against has room at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It has.
    Now,
    /// It has to [wait](wait_for_room).
    NotYet,
}

/// Whether there is room for one more request.
pub(crate) fn admit(ctx: &mut Exchange, inbound: &Inbound) -> Result<Admitted, LocalReply> {
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
        breakers::mark_overloaded(&mut reply, ctx.chain().map(AsRef::as_ref));
        counters.requests_shed.add_one();
        inbound.resolved.tenant.count_shed(inbound.link.worker);
        return Err(reply);
    }
    if let Some(share) = inbound.resolved.tenant.share() {
        if !share.take(REQUEST) {
            return Ok(Admitted::NotYet);
        }
        begin(ctx, inbound, Underway::admitted);
    } else {
        begin(ctx, inbound, |underway| underway);
    }
    Ok(Admitted::Now)
}

/// Counts the request from here on.
fn begin(ctx: &mut Exchange, inbound: &Inbound, with: impl FnOnce(Underway) -> Underway) {
    let instance = &inbound.link.instance;
    let tenant = &inbound.resolved.tenant;
    ctx.underway = Some(with(instance.loads().begin(tenant, inbound.link.worker, REQUEST)));
    ctx.in_flight =
        Some(Raised::new(Arc::clone(instance.counters()), |counters| &counters.requests_in_flight));
}

/// Waits in the tenant's line for room in the process.
pub(crate) async fn wait_for_room(ctx: &mut Exchange, inbound: &Inbound) -> Result<(), LocalReply> {
    let instance = &inbound.link.instance;
    let counters = instance.counters();
    let Some(share) = inbound.resolved.tenant.share() else { return Ok(()) };
    counters.requests_queued.add_one();
    let waits = instance.loads().waits.for_room();
    let granted = share.wait().await;
    drop(waits);
    match granted {
        Ok(()) => {
            begin(ctx, inbound, Underway::admitted);
            Ok(())
        }
        Err(why) => {
            counters.requests_shed.add_one();
            counters.requests_shed_by_share.add_one();
            inbound.resolved.tenant.count_shed(inbound.link.worker);
            Err(breakers::no_room(why, ctx.chain().map(AsRef::as_ref)))
        }
    }
}

/// The first route that matches.
pub(crate) fn route(chain: &HttpChain, request: &RequestHeader) -> Result<Routed, LocalReply> {
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
pub(crate) fn local_answer(routed: &Routed, request: &RequestHeader) -> Option<LocalReply> {
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
pub(crate) fn timeout_of(forward: &Forward, grpc: bool, headers: &HeaderMap) -> Option<Duration> {
    if grpc { forward.grpc_timeout(grpc::timeout_in(headers)) } else { forward.timeout }
}

/// Says in the request how long the endpoint may take; `told`: by Envoy's header, too. A gRPC endpoint is told where the
/// route bounds deadlines (Envoy: `FilterUtility::setTimeoutHeaders`).
pub(crate) fn tell_timeout(
    forward: &Forward,
    grpc: bool,
    told: bool,
    request: &mut RequestHeader,
) -> Result<()> {
    let bounded = |timeout: &Duration| !timeout.is_zero();
    let all = timeout_of(forward, grpc, &request.headers).filter(bounded);
    let one = forward.retry.as_ref().and_then(|retry| retry.per_try_timeout).filter(bounded);
    let one = one.filter(|one| all.is_none_or(|all| *one < all));
    let Some(expected) = one.or(all) else { return Ok(()) };
    if told {
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        request.insert_header(EXPECTED_TIMEOUT, HeaderValue::from(millis))?;
    }
    if grpc && forward.max_grpc_timeout.is_some() {
        request.insert_header(grpc::TIMEOUT, grpc::timeout(expected))?;
    }
    Ok(())
}

/// Draws the cluster, once per request.
pub(crate) fn choose_cluster(ctx: &mut Exchange, inbound: &Inbound) -> Result<(), LocalReply> {
    let Some(routed) = ctx.routed.as_mut() else {
        return Ok(());
    };
    let Some(forward) = routed.forward.as_ref() else {
        return Ok(());
    };
    if routed.cluster.is_none() {
        let (name, _) = forward.pick_cluster(routed.draw);
        routed.cluster = inbound.resolved.mesh.cluster(name).cloned();
    }
    match &routed.cluster {
        Some(cluster) => match &cluster.broken {
            None => Ok(()),
            Some(reason) => Err(unsupported(reason)),
        },
        None => Err(LocalReply::new(
            forward.cluster_not_found_status,
            "",
            ResponseFlags::NO_CLUSTER_FOUND,
            "cluster_not_found",
        )),
    }
}

fn no_endpoint(none: &NoEndpoint) -> LocalReply {
    LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no healthy upstream",
        ResponseFlags::NO_HEALTHY_UPSTREAM,
        none.details(),
    )
}

/// The endpoint of the next try.
pub(crate) fn choose_endpoint(
    ctx: &Exchange,
    inbound: &Inbound,
) -> Result<Arc<Endpoint>, NoEndpoint> {
    let routed = ctx.routed.as_ref().ok_or(NoEndpoint::Unhealthy)?;
    let cluster = routed.cluster.as_ref().ok_or(NoEndpoint::Unhealthy)?;
    let retry = routed.forward.as_ref().and_then(|forward| forward.retry.as_ref());
    let draws = retry.map_or(1, |retry| retry.host_selection_attempts);
    let avoided: &[u64] = if retry.is_none_or(|retry| retry.avoid_previous_hosts) {
        &ctx.tries.endpoints
    } else {
        &[]
    };
    choose(&inbound.link, &inbound.resolved.mesh, cluster, avoided, draws)
}

/// The endpoint of the next try after all, if it is only a matter of knowing who is there.
pub(crate) async fn wait_for_endpoint(
    ctx: &mut Exchange,
    inbound: &Inbound,
    none: NoEndpoint,
) -> Result<Arc<Endpoint>, LocalReply> {
    let Some(routed) = ctx.routed.as_mut() else {
        return Err(no_endpoint(&none));
    };
    let Some(cluster) = routed.cluster.clone() else {
        return Err(no_endpoint(&none));
    };
    let (cluster, endpoint) =
        choose::wait(&inbound.link, &cluster, none).await.map_err(|none| no_endpoint(&none))?;
    routed.cluster = Some(cluster);
    Ok(endpoint)
}

/// Begins a try at an endpoint of the chosen cluster.
pub(crate) fn begin_try(
    ctx: &mut Exchange,
    inbound: Arc<Inbound>,
    endpoint: Arc<Endpoint>,
    version: Version,
) -> Result<(), LocalReply> {
    let Some((cluster, forward)) = ctx.routed.as_ref().and_then(|routed| {
        Some((Arc::clone(routed.cluster.as_ref()?), Arc::clone(routed.forward.as_ref()?)))
    }) else {
        return Err(no_endpoint(&NoEndpoint::Unhealthy));
    };
    // The room of the try before is free already.
    let room = breakers::request(&cluster).map_err(|breakers::Overflow| {
        inbound.link.instance.counters().overflows.add_one();
        breakers::overflow(ctx.chain().map(AsRef::as_ref))
    })?;
    let retry = forward.retry.as_ref();
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
        .in_room(room)
        .on_fresh_connection(ctx.tries.stale > 0);
    ctx.tries.current = Some(Arc::new(attempt));
    Ok(())
}

/// Everything that the route changes in the request (Envoy: `finalizeRequestHeaders`).
pub(crate) fn finalize_request(
    ctx: &Exchange,
    request: &mut RequestHeader,
    client: &RequestHeader,
) {
    let view = view(client);
    if let Some(matched) = ctx.matched(view.authority) {
        let mut context = ctx.format_context(client.version);
        context.virtual_host_name = Some(&matched.virtual_host.name);
        matched.finalize_request(ctx.weighted(), &mut RequestHeaders(request), &context);
    }
    if ctx.chain().is_some_and(|chain| chain.suppress_envoy_headers) {
        request.remove_header(&ORIGINAL_PATH);
        request.remove_header(&ORIGINAL_HOST);
    }
}

/// Everything that we and the route change in a response.
pub(crate) fn finalize_response(
    ctx: &Exchange,
    chain: &HttpChain,
    response: &mut ResponseHeader,
    client: &RequestHeader,
) -> Result<()> {
    headers::strip_response_hop(response)?;
    if !response.headers.contains_key(header::DATE) {
        response.insert_header(header::DATE, date::now())?;
    }
    if let Some(begun) = ctx.tries.begun_at.filter(|_| !chain.suppress_envoy_headers) {
        let millis = begun.elapsed().as_millis();
        response.insert_header(
            SERVICE_TIME,
            HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)),
        )?;
    }
    apply_response_ops(ctx, response, client);
    finish_response(ctx, chain, response)
}

/// What comes after the route's changes: cross-origin headers, the route's name, who answers.
pub(crate) fn finish_response(
    ctx: &Exchange,
    chain: &HttpChain,
    response: &mut ResponseHeader,
) -> Result<()> {
    if ctx.origin.is_some() {
        cors::put_headers(ctx, response);
    }
    if !ctx.names_operation
        && let Some(operation) =
            ctx.routed.as_ref().and_then(|routed| routed.route.decorator.as_ref())
    {
        response.insert_header(DECORATOR, operation.clone())?;
    }
    headers::put_server(response, chain)
}

pub(crate) fn apply_response_ops(
    ctx: &Exchange,
    response: &mut ResponseHeader,
    client: &RequestHeader,
) {
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
