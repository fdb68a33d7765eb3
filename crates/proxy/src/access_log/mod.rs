//! Access logs: what was asked for is made of the one record of a request, connection or tunnel, and put
//! where it leaves the process.

mod records;

use crate::exchange::Exchange;
use crate::instance::MeshInstance;
use crate::link::Link;
use crate::phases::view;
use crate::resolve;
use cairn_hbone::{Peer as TunnelPeer, Target};
use cairn_router::format::{Facts, FormatContext, Peer};
use cairn_router::model::Mesh;
use cairn_router::observe::{AccessLog, Entry, Stream, TunnelLogs};
use cairn_router::request::{HeaderKey, Headers, RequestView};
use cairn_telemetry::{ConnectionEvent, RequestEvent, ResponseFlags, WorkloadLabels};
use http::{HeaderMap, StatusCode, Version};
use pingora_proxy::Session;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Where it is written, and what it is made of.
struct Writing<'a> {
    logs: &'a [AccessLog],
    instance: &'a MeshInstance,
}

impl Writing<'_> {
    fn write(&self, facts: &Facts<'_>, request: Option<&RequestView<'_>>) {
        let ways = self.instance.telemetry().access_logs();
        let mut line = Vec::new();
        for log in self.logs {
            line.clear();
            match log.write(facts, request, &mut line) {
                None => {}
                Some(Entry::Line(stream)) => {
                    let lines = match stream {
                        Stream::Stdout => ways.stdout(),
                        Stream::Stderr => ways.stderr(),
                    };
                    let _full_queues_count = lines.push(&line);
                }
                Some(Entry::Otel(log)) => {
                    records::push(log, facts, self.instance.name(), ways.otel())
                }
            }
        }
    }
}

/// Writes what the chain logs of a request.
pub(crate) fn request(session: &Session, ctx: &Exchange, event: &RequestEvent<'_>) {
    let Some(observe) = ctx.chain().and_then(|chain| chain.observe.as_ref()) else { return };
    let Some(inbound) = ctx.inbound.as_ref().filter(|_| !observe.access_logs.is_empty()) else {
        return;
    };
    let head = session.req_header();
    let request = view(head);
    let response = session.response_written().map(|response| &response.headers);
    let flags = flags(event.flags);
    let failure = ctx.tries.current.as_ref().and_then(|attempt| attempt.failure());
    let failure = failure.and_then(|failure| failure.transport_reason());
    let matched = ctx.matched(request.authority);
    let ids = ctx.trace_ids();
    let begun = ctx.tries.begun_at.and_then(|at| at.checked_duration_since(ctx.started));
    let context = FormatContext {
        duration: Some(event.timings.duration),
        request_received: event.timings.request_received,
        upstream_begun: begun,
        upstream_request_sent: event.timings.upstream_request_sent,
        response_started: event.timings.upstream_response_started,
        response_ended: event.timings.upstream_response_ended,
        upstream_cluster: Some(event.cluster),
        // Envoy: one has begun before an endpoint is looked for.
        upstream_attempts: Some(
            event.attempts.max(event.flags.contains(ResponseFlags::NO_HEALTHY_UPSTREAM).into()),
        ),
        upstream_transport_failure: failure,
        virtual_host_name: matched.as_ref().map(|matched| &*matched.virtual_host.name),
        hostname: hostname(),
        response_code: Some(event.response_code),
        response_code_details: Some(event.details),
        response_flags: Some(&flags),
        grpc_status: event.grpc_status,
        bytes_received: Some(event.bytes_in),
        bytes_sent: Some(event.bytes_out),
        request_header_bytes: Some(bytes_of(&head.headers)),
        response_header_bytes: response.map(bytes_of),
        access_log_type: Some("DownstreamEnd"),
        source: source(
            &inbound.resolved.mesh,
            event.source,
            event.source_address,
            event.source_principal,
        ),
        destination: destination(&inbound.resolved.mesh, event.destination, event.upstream),
        trailers: ctx.trailers.as_deref(),
        trace_id: ids.as_ref().map(|(trace, _)| trace.as_str()),
        span_id: ids.as_ref().map(|(_, span)| span.as_str()),
        ..ctx.format_context(head.version)
    };
    let facts = Facts {
        context: &context,
        request: Some(&request),
        response: response.map(|headers| headers as &dyn Headers),
    };
    let instance = &inbound.link.instance;
    Writing { logs: &observe.access_logs, instance }.write(&facts, Some(&request));
}

/// Writes what the chain logs of a TCP connection that is over.
pub(crate) fn connection(
    link: &Link,
    mesh: &Mesh,
    logs: &[AccessLog],
    event: &ConnectionEvent<'_>,
) {
    let flags = flags(event.flags);
    let failed = event.flags.contains(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    let context = FormatContext {
        start_time: Some(event.timings.start),
        duration: Some(event.timings.duration),
        upstream_host: event.upstream,
        upstream_cluster: Some(event.cluster),
        upstream_attempts: Some(event.attempts),
        upstream_transport_failure: failed.then_some(event.details),
        response_code: Some(0),
        connection_termination_details: (!failed).then_some(event.details),
        response_flags: Some(&flags),
        bytes_received: Some(event.bytes_in),
        bytes_sent: Some(event.bytes_out),
        access_log_type: Some("TcpConnectionEnd"),
        source: source(mesh, event.source, event.source_address, event.source_principal),
        destination: destination(mesh, event.destination, event.upstream),
        ..of_tunnel(&link.peer, &link.target)
    };
    let facts = Facts { context: &context, request: None, response: None };
    Writing { logs, instance: &link.instance }.write(&facts, None);
}

/// A CONNECT that is refused.
pub(crate) struct Refused<'a> {
    pub(crate) instance: &'a MeshInstance,
    pub(crate) peer: &'a TunnelPeer,
    pub(crate) target: &'a Target,
    pub(crate) status: StatusCode,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: &'a str,
}

impl Refused<'_> {
    /// Writes what is logged of it.
    pub(crate) fn write(&self, mesh: &Mesh) {
        let Some(logs) = mesh.tunnel_logs() else { return };
        let TunnelLogs { connects, unmatched, originated: _ } = &**logs;
        let flags = flags(self.flags);
        let authority = self.target.to_string();
        let head = ConnectHead(&authority);
        let headers = HeaderMap::new();
        let request = RequestView {
            method: &http::Method::CONNECT,
            authority: &authority,
            path: "",
            query: None,
            scheme: "",
            headers: &headers,
        };
        let context = FormatContext {
            protocol: Some(Version::HTTP_2),
            start_time: Some(SystemTime::now()),
            duration: Some(std::time::Duration::ZERO),
            response_code: Some(self.status.as_u16()),
            response_code_details: Some(self.details),
            response_flags: Some(&flags),
            bytes_received: Some(0),
            bytes_sent: Some(0),
            access_log_type: Some("DownstreamEnd"),
            source: source(mesh, None, Some(self.peer.addr), self.peer.id.as_str()),
            ..of_tunnel(self.peer, self.target)
        };
        let facts = Facts { context: &context, request: Some(&head), response: None };
        let instance = self.instance;
        Writing { logs: connects, instance }.write(&facts, Some(&request));
        if self.flags.contains(ResponseFlags::NO_ROUTE_FOUND) {
            Writing { logs: unmatched, instance }.write(&facts, Some(&request));
        }
    }
}

/// Writes what is logged of a tunnel to an endpoint that did not come about.
pub(crate) fn no_tunnel(link: &Link, mesh: &Mesh, gateway: SocketAddr, reason: &str) {
    let Some(logs) = mesh.tunnel_logs().filter(|logs| !logs.originated.is_empty()) else { return };
    let flags = flags(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    let context = FormatContext {
        start_time: Some(SystemTime::now()),
        duration: Some(std::time::Duration::ZERO),
        upstream_host: Some(gateway),
        upstream_cluster: Some("connect_originate"),
        upstream_transport_failure: Some(reason),
        response_code: Some(0),
        response_flags: Some(&flags),
        bytes_received: Some(0),
        bytes_sent: Some(0),
        access_log_type: Some("TcpConnectionEnd"),
        source: source(mesh, Some(&link.source), Some(link.peer.addr), link.peer.id.as_str()),
        ..of_tunnel(&link.peer, &link.target)
    };
    let facts = Facts { context: &context, request: None, response: None };
    Writing { logs: &logs.originated, instance: &link.instance }.write(&facts, None);
}

fn of_tunnel<'a>(peer: &'a TunnelPeer, target: &Target) -> FormatContext<'a> {
    FormatContext {
        downstream_remote: Some(peer.addr),
        downstream_local: resolve::address(target),
        peer_uri_san: Some(peer.id.as_str()),
        local_uri_san: Some(peer.local_id.as_str()),
        hostname: hostname(),
        ..FormatContext::default()
    }
}

/// The head of a CONNECT: it has a method and an authority.
struct ConnectHead<'a>(&'a str);

impl Headers for ConnectHead<'_> {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        match key {
            HeaderKey::Method => Some(Cow::Borrowed(b"CONNECT")),
            HeaderKey::Authority => Some(Cow::Borrowed(self.0.as_bytes())),
            HeaderKey::Path | HeaderKey::Scheme | HeaderKey::Name(_) => None,
        }
    }
}

/// The client's workload.
pub(crate) fn source<'a>(
    mesh: &'a Mesh,
    labels: Option<&'a Arc<WorkloadLabels>>,
    address: Option<SocketAddr>,
    principal: &'a str,
) -> Option<Peer<'a>> {
    let pod = address.and_then(|address| mesh.workload_as(address.ip().to_canonical(), principal));
    let name = pod.map_or("", |pod| &*pod.name);
    match (labels, pod) {
        (Some(labels), _) => Some(Peer { name, ..peer(labels) }),
        (None, Some(pod)) => Some(Peer {
            name,
            workload: &pod.workload_name,
            cluster: &pod.cluster,
            namespace: &pod.namespace,
            service: &pod.canonical_name,
            revision: &pod.canonical_revision,
            app: &pod.canonical_name,
            version: &pod.canonical_revision,
            identity: principal,
            ..Peer::default()
        }),
        (None, None) => None,
    }
}

/// The endpoint's workload.
pub(crate) fn destination<'a>(
    mesh: &'a Mesh,
    labels: Option<&'a Arc<WorkloadLabels>>,
    address: Option<SocketAddr>,
) -> Option<Peer<'a>> {
    let pod = address.and_then(|address| mesh.workload(address.ip().to_canonical()));
    Some(Peer { name: pod.map_or("", |pod| &*pod.name), ..peer(labels?) })
}

fn peer(labels: &WorkloadLabels) -> Peer<'_> {
    Peer {
        kind: "",
        workload: &labels.workload,
        name: "",
        cluster: &labels.cluster,
        namespace: &labels.namespace,
        service: &labels.canonical_service,
        revision: &labels.canonical_revision,
        app: &labels.app,
        version: &labels.version,
        identity: &labels.principal,
    }
}

fn flags(flags: ResponseFlags) -> Cow<'static, str> {
    match flags.is_empty() {
        true => Cow::Borrowed("-"),
        false => Cow::Owned(flags.to_string()),
    }
}

/// Of names and values.
fn bytes_of(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// Kubernetes sets it to the pod's name.
fn hostname() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| std::env::var("HOSTNAME").ok()).as_deref()
}
