//! What is known of one request while it is handled: the context of Pingora's hooks.

use crate::breakers::Held;
use crate::counters::{Counters, Raised};
use crate::inbound::Inbound;
use crate::load::Underway;
use crate::messages::Messages;
use crate::mirror::Mirror;
use crate::reply::LocalReply;
use crate::trace::Trace;
use crate::upstream::Attempt;
use cairn_router::action::Forward;
use cairn_router::action::WeightedCluster;
use cairn_router::cluster::Cluster;
use cairn_router::destination::HttpChain;
use cairn_router::endpoint::ActiveGuard;
use cairn_router::format::FormatContext;
use cairn_router::route::{Matched, Route};
use cairn_telemetry::ResponseFlags;
use http::{HeaderMap, HeaderValue, Uri, Version};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// One request, from its head to its record.
pub(crate) struct Exchange {
    pub(crate) inbound: Option<Arc<Inbound>>,
    pub(crate) started: Instant,
    pub(crate) start_time: SystemTime,
    pub(crate) in_flight: Option<Raised<Arc<Counters>>>,
    /// Part of its tenant's load.
    pub(crate) underway: Option<Underway>,
    pub(crate) grpc: bool,
    /// No policy or fault has ended it: Envoy's metrics see what it is only then.
    pub(crate) admitted: bool,
    /// Bytes of the head that the client sent.
    pub(crate) head_bytes: u64,
    /// What passes of a gRPC request.
    pub(crate) messages: Option<Box<Messages>>,
    /// The client has given the operation a name.
    pub(crate) names_operation: bool,
    /// The target as the client sent it.
    pub(crate) original: Uri,
    pub(crate) routed: Option<Routed>,
    /// Origin of a cross-origin request that the route allows.
    pub(crate) origin: Option<HeaderValue>,
    pub(crate) tries: Tries,
    /// What is to be answered instead of a response.
    pub(crate) reply: Option<LocalReply>,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: Cow<'static, str>,
    pub(crate) mirror: Option<Box<Mirror>>,
    /// Where the chain traces, and what the caller tells of the trace is valid.
    pub(crate) trace: Option<Box<Trace>>,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) request_received: Option<Duration>,
    pub(crate) response_started: Option<Duration>,
    /// The response's, where something is logged.
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

/// Which route a request takes.
pub(crate) struct Routed {
    pub(crate) route: Arc<Route>,
    pub(crate) forward: Option<Arc<Forward>>,
    /// The number by which one of weighted clusters is drawn: the same one each time it is asked.
    pub(crate) draw: u64,
    pub(crate) cluster: Option<Arc<Cluster>>,
}

/// Tries at endpoints so far.
#[derive(Default)]
pub(crate) struct Tries {
    /// How many were begun.
    pub(crate) begun: u32,
    /// How many of them were retries by the route's policy.
    pub(crate) retries: u32,
    /// How many were repeated because a pooled connection turned out dead.
    pub(crate) stale: u32,
    /// Endpoints that failed.
    pub(crate) endpoints: Vec<u64>,
    /// Pause before the next.
    pub(crate) pause: Option<Duration>,
    pub(crate) current: Option<Arc<Attempt>>,
    pub(crate) active: Option<ActiveGuard>,
    /// Room of the retry that is under way, where retries are bounded.
    pub(crate) retry: Option<Held>,
    /// When the current one was begun.
    pub(crate) begun_at: Option<Instant>,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Exchange {
            inbound: None,
            started: Instant::now(),
            start_time: SystemTime::now(),
            in_flight: None,
            underway: None,
            grpc: false,
            admitted: false,
            head_bytes: 0,
            messages: None,
            names_operation: false,
            original: Uri::default(),
            routed: None,
            origin: None,
            tries: Tries::default(),
            reply: None,
            flags: ResponseFlags::NONE,
            details: Cow::Borrowed(""),
            mirror: None,
            trace: None,
            grpc_status: None,
            request_received: None,
            response_started: None,
            trailers: None,
        }
    }

    pub(crate) fn forward(&self) -> Option<&Arc<Forward>> {
        self.routed.as_ref()?.forward.as_ref()
    }

    /// Whether something is logged of it.
    pub(crate) fn is_logged(&self) -> bool {
        let observe = self.chain().and_then(|chain| chain.observe.as_ref());
        observe.is_some_and(|observe| !observe.access_logs.is_empty())
    }

    /// Ids of its trace and span in hexadecimal digits, where the chain traces.
    pub(crate) fn trace_ids(&self) -> Option<(String, String)> {
        let context = self.trace.as_deref()?.context();
        Some((context.trace_id.to_string(), context.span_id.to_string()))
    }

    /// The chain that handles it.
    pub(crate) fn chain(&self) -> Option<&Arc<HttpChain>> {
        self.inbound.as_ref()?.resolved.destination.http.as_ref()
    }

    /// Where the route is, by the `authority` that the client sent.
    pub(crate) fn matched<'a>(&'a self, authority: &str) -> Option<Matched<'a>> {
        Some(Matched {
            virtual_host: self.chain()?.routes.virtual_host(authority)?,
            route: &self.routed.as_ref()?.route,
        })
    }

    /// Which of weighted clusters was drawn.
    pub(crate) fn weighted(&self) -> Option<&WeightedCluster> {
        let routed = self.routed.as_ref()?;
        routed.forward.as_ref()?.pick_cluster(routed.draw).1
    }

    /// Values for `%OPERATORS%`.
    pub(crate) fn format_context<'a>(&'a self, version: Version) -> FormatContext<'a> {
        let link = self.inbound.as_ref().map(|inbound| &inbound.link);
        let attempt = self.tries.current.as_ref();
        let routed = self.routed.as_ref();
        FormatContext {
            protocol: Some(version),
            start_time: Some(self.start_time),
            duration: Some(self.started.elapsed()),
            downstream_remote: link.map(|link| link.peer.addr),
            downstream_local: link.and_then(|link| crate::resolve::address(&link.target)),
            peer_uri_san: link.map(|link| link.peer.id.as_str()),
            local_uri_san: link.map(|link| link.peer.local_id.as_str()),
            upstream_host: attempt.map(|attempt| attempt.endpoint.address),
            upstream_cluster: attempt.map(|attempt| &*attempt.cluster.name),
            route_name: routed.map(|routed| routed.route.name.as_ref()),
            ..FormatContext::default()
        }
    }
}
