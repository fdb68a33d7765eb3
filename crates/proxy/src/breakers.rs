//! Circuit breakers: how much may be under way at a cluster at once. Envoy: `CircuitBreakers`.
//!
//! What is under way is counted beside the cluster's state, so that a push forgets none of it. A
//! cluster without bounds is not counted at all.

use crate::load::Waits;
use crate::overload::Refused;
use crate::reply::LocalReply;
use crate::upstream::Failure;
use cairn_router::cluster::Cluster;
use cairn_router::destination::HttpChain;
use cairn_router::spec::CircuitBreakers;
use cairn_telemetry::ResponseFlags;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// What is under way at one cluster.
#[derive(Debug, Default)]
struct Underway {
    requests: AtomicU32,
    retries: AtomicU32,
    /// HTTP/1 requests and TCP connections that have a connection, or may make one.
    places: AtomicU32,
    /// Those that wait for a place.
    waiting: AtomicU32,
    freed: Notify,
}

/// Something that is under way; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    underway: Arc<Underway>,
    counter: fn(&Underway) -> &AtomicU32,
}

/// A bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow;

impl Held {
    fn take(
        cluster: &Cluster,
        most: Option<u32>,
        counter: fn(&Underway) -> &AtomicU32,
    ) -> Result<Option<Held>, Overflow> {
        let Some(most) = most else { return Ok(None) };
        let underway: &Arc<Underway> = cluster.state.extension(Arc::default);
        let raised = counter(underway).fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (count < most).then_some(count + 1)
        });
        match raised {
            Ok(_) => Ok(Some(Held { underway: Arc::clone(underway), counter })),
            Err(_) => Err(Overflow),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.counter)(&self.underway).fetch_sub(1, Ordering::SeqCst);
        if self.underway.waiting.load(Ordering::SeqCst) > 0 {
            self.underway.freed.notify_one();
        }
    }
}

/// A request at the cluster. `None`: they are not bounded.
pub(crate) fn request(cluster: &Cluster) -> Result<Option<Held>, Overflow> {
    match &cluster.circuit_breakers {
        None => Ok(None),
        Some(bounds) => Held::take(cluster, bounds.max_requests, |underway| &underway.requests),
    }
}

/// A retry at the cluster. `None`: they are not bounded.
pub(crate) fn retry(cluster: &Cluster) -> Result<Option<Held>, Overflow> {
    match &cluster.circuit_breakers {
        None => Ok(None),
        Some(bounds) => Held::take(cluster, bounds.max_retries, |underway| &underway.retries),
    }
}

/// Leave to have a connection, for which it waits up to the cluster's connect timeout. `None`:
/// connections are not bounded.
pub(crate) async fn place(cluster: &Cluster, waits: &Waits) -> Result<Option<Held>, Failure> {
    let Some(bounds) = &cluster.circuit_breakers else { return Ok(None) };
    let CircuitBreakers { max_connections, max_pending_requests, .. } = bounds;
    let Some(most) = *max_connections else { return Ok(None) };
    let take = || Held::take(cluster, Some(most), |underway| &underway.places);
    let underway: &Arc<Underway> = cluster.state.extension(Arc::default);
    // Who waits comes first.
    if underway.waiting.load(Ordering::SeqCst) == 0
        && let Ok(held) = take()
    {
        return Ok(held);
    }
    let pending = Some(max_pending_requests.unwrap_or(u32::MAX));
    let waiting = Held::take(cluster, pending, |underway| &underway.waiting);
    let _waiting = waiting.map_err(|Overflow| Failure::Overflow)?;
    let _counted = waits.for_connection();
    let wait = async {
        loop {
            let freed = underway.freed.notified();
            let mut freed = std::pin::pin!(freed);
            freed.as_mut().enable();
            if let Ok(held) = take() {
                return held;
            }
            freed.await;
        }
    };
    tokio::time::timeout(cluster.connect_timeout, wait).await.map_err(|_| Failure::Overflow)
}

/// What is answered when a bound is reached (Envoy).
pub(crate) fn overflow(chain: Option<&HttpChain>) -> LocalReply {
    let mut reply = LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        ResponseFlags::UPSTREAM_OVERFLOW,
        "upstream_reset_before_response_started{overflow}",
    );
    mark_overloaded(&mut reply, chain);
    reply
}

/// What is answered when the process has no room for a request of this tenant. Clients are told to come back after 1 to 3
/// seconds, so that they do not do so together. For gRPC it is UNAVAILABLE, as Envoy's overload manager has it.
pub(crate) fn no_room(why: Refused, chain: Option<&HttpChain>) -> LocalReply {
    let details = match why {
        Refused::Full => "overload_tenant_share{full}",
        Refused::Delay => "overload_tenant_share{delay}",
        Refused::Timeout => "overload_tenant_share{timeout}",
    };
    let mut reply = LocalReply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        ResponseFlags::UPSTREAM_OVERFLOW,
        details,
    );
    let after = HeaderValue::from(rand::random_range(1_u16..=3));
    reply.headers.push((RETRY_AFTER, after));
    mark_overloaded(&mut reply, chain);
    reply
}

/// Says that the reply is for want of room, unless the chain keeps Envoy's headers to itself.
pub(crate) fn mark_overloaded(reply: &mut LocalReply, chain: Option<&HttpChain>) {
    if chain.is_none_or(|chain| !chain.suppress_envoy_headers) {
        reply.headers.push((OVERLOADED, HeaderValue::from_static("true")));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load::Load;
    use cairn_router::compile::Compiler;
    use futures::FutureExt;

    async fn place(cluster: &Cluster) -> Result<Option<Held>, Failure> {
        super::place(cluster, &Load::new().waits).await
    }

    fn clusters(breakers: &[(&str, u32)]) -> Arc<Cluster> {
        let mut bounds = CircuitBreakers::default();
        for (name, most) in breakers {
            let bound = match *name {
                "connections" => &mut bounds.max_connections,
                "pending" => &mut bounds.max_pending_requests,
                "requests" => &mut bounds.max_requests,
                _ => &mut bounds.max_retries,
            };
            *bound = Some(*most);
        }
        let cluster = cairn_router::spec::Cluster {
            name: "app".into(),
            service: String::new(),
            service_name: String::new(),
            service_namespace: String::new(),
            lb: Default::default(),
            protocol: Default::default(),
            connect_timeout: std::time::Duration::from_secs(3600),
            tls: None,
            idle_timeout: std::time::Duration::from_secs(3600),
            max_requests_per_connection: None,
            circuit_breakers: bounds,
            original_destination: None,
            broken: None,
        };
        let resources = cairn_router::spec::Resources {
            clusters: vec![Arc::new(cluster)],
            ..Default::default()
        };
        Arc::clone(Compiler::new("mesh").compile(&resources).unwrap().cluster("app").unwrap())
    }

    #[test]
    fn requests_and_retries_are_counted_while_they_last() {
        let cluster = clusters(&[("requests", 2), ("retries", 0)]);
        let (first, second) = (request(&cluster).unwrap(), request(&cluster).unwrap());
        assert!(first.is_some() && second.is_some());
        assert_eq!(request(&cluster).unwrap_err(), Overflow);
        drop(first);
        assert!(request(&cluster).is_ok());
        assert_eq!(retry(&cluster).unwrap_err(), Overflow);
        let unbounded = clusters(&[]);
        assert!(request(&unbounded).unwrap().is_none() && retry(&unbounded).unwrap().is_none());
        assert!(place(&unbounded).now_or_never().unwrap().unwrap().is_none());
        assert!(request(&clusters(&[("requests", u32::MAX)])).unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_waited_for_in_turn() {
        let cluster = clusters(&[("connections", 1), ("pending", 2)]);
        let first = place(&cluster).await.unwrap();
        let mut second = Box::pin(place(&cluster));
        let mut third = Box::pin(place(&cluster));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(place(&cluster).await.unwrap_err(), Failure::Overflow);
        drop(first);
        // Nobody overtakes.
        let mut late = Box::pin(place(&cluster));
        assert_eq!(late.as_mut().now_or_never().unwrap().unwrap_err(), Failure::Overflow);
        let second = second.await.unwrap();
        drop(third);
        assert!(second.is_some());
        drop(second);
        assert!(place(&cluster).now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_leaves_passes_its_turn_on() {
        let cluster = clusters(&[("connections", 1)]);
        let first = place(&cluster).await.unwrap();
        let mut second = Box::pin(place(&cluster));
        let mut third = Box::pin(place(&cluster));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(third.await.unwrap().is_some());
        let held = place(&cluster).await.unwrap();
        assert_eq!(place(&cluster).await.unwrap_err(), Failure::Overflow, "in vain");
        drop(held);
    }
}
