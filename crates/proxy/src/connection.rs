//! One TCP connection: what passes, and how it is counted.
//!
//! Envoy's metrics take a connection's labels once, and so do we: when it is reported for the first time, after
//! Istio's `tcp_reporting_duration` or at its end. What moves bytes only adds to a number.

use crate::access_log;
use crate::counted::{self, Counted};
use crate::instance::{destination_labels, service_labels};
use crate::link::Link;
use crate::resolve::{self, Resolved};
use crate::upstream::Attempt;
use cairn_router::cluster::Cluster;
use cairn_router::format::{Facts, FormatContext};
use cairn_router::observe::{Metrics, REPORT_INTERVAL};
use cairn_telemetry::{ConnectionEvent, ResponseFlags, SecurityPolicy, Timings, WorkloadLabels};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// Bytes that have passed, and when the last did.
pub(crate) struct Meter {
    pub(crate) started: Instant,
    pub(crate) from_client: AtomicU64,
    pub(crate) to_client: AtomicU64,
    last: AtomicU64,
}

impl Meter {
    fn new() -> Self {
        Meter {
            started: Instant::now(),
            from_client: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    pub(crate) fn passed(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last.store(self.elapsed_millis(), Ordering::Relaxed);
    }

    fn elapsed_millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Resolves when so much time has passed since the start, if that is bounded.
    pub(crate) async fn lasted(&self, bound: Option<Duration>) {
        match bound {
            Some(bound) => tokio::time::sleep_until((self.started + bound).into()).await,
            None => std::future::pending().await,
        }
    }

    /// Resolves when nothing has passed for `timeout`.
    pub(crate) async fn silent_for(&self, timeout: Duration) {
        loop {
            let since = self.elapsed_millis() - self.last.load(Ordering::Relaxed);
            let Some(left) =
                timeout.checked_sub(Duration::from_millis(since)).filter(|left| !left.is_zero())
            else {
                return;
            };
            tokio::time::sleep(left).await;
        }
    }
}

/// A connection from its beginning to its record.
pub(crate) struct Connection {
    pub(crate) link: Arc<Link>,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) meter: Meter,
    /// Where it is to go.
    pub(crate) cluster: Option<Arc<Cluster>>,
    attempt: Option<Arc<Attempt>>,
    started: SystemTime,
    /// Its labels as they stay.
    labels: OnceLock<Labels>,
    /// Bytes that are counted: from the client, and to it.
    counted: (AtomicU64, AtomicU64),
}

/// What does not change any more.
struct Labels {
    destination: Option<Arc<WorkloadLabels>>,
    flags: ResponseFlags,
    dimensions: Vec<String>,
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>, resolved: Arc<Resolved>) -> Self {
        Connection {
            link,
            resolved,
            meter: Meter::new(),
            cluster: None,
            attempt: None,
            started: SystemTime::now(),
            labels: OnceLock::new(),
            counted: Default::default(),
        }
    }

    fn settings(&self) -> Option<&Metrics> {
        let chain = self.resolved.destination.tcp.as_ref()?;
        counted::settings(chain.observe.as_ref())
    }

    fn is_off(&self) -> bool {
        self.settings().is_some_and(|settings| settings.off)
    }

    /// The upstream is connected.
    pub(crate) fn open(&mut self, attempt: &Arc<Attempt>) {
        self.cluster = Some(Arc::clone(&attempt.cluster));
        self.attempt = Some(Arc::clone(attempt));
    }

    /// Fixes the labels and counts that it began, the first time.
    fn begin(&self, flags: ResponseFlags) {
        if self.labels.get().is_some() {
            return;
        }
        let endpoint = self.attempt.as_ref().map(|attempt| &attempt.endpoint);
        let destination =
            endpoint.and_then(|endpoint| destination_labels(&self.resolved.mesh, endpoint));
        let text = flags.to_string();
        let context = FormatContext {
            start_time: Some(self.started),
            downstream_remote: Some(self.link.peer.addr),
            downstream_local: resolve::address(&self.link.target),
            peer_uri_san: Some(self.link.peer.id.as_str()),
            local_uri_san: Some(self.link.peer.local_id.as_str()),
            upstream_host: endpoint.map(|endpoint| endpoint.address),
            upstream_cluster: self.cluster.as_ref().map(|cluster| &*cluster.name),
            response_flags: Some(&text),
            source: Some(counted::peer(&self.link.source)),
            destination: destination.as_deref().map(counted::peer),
            ..FormatContext::default()
        };
        let facts = Facts { context: &context, request: None, response: None };
        let dimensions = Counted::by(self.settings(), &facts).dimensions;
        let _first_stays = self.labels.set(Labels { destination, flags, dimensions });
        if !self.is_off() {
            self.link.metrics.connection_opened(&self.event());
        }
    }

    /// What is known of it, by the labels that stay.
    fn event(&self) -> ConnectionEvent<'_> {
        let link = &self.link;
        let labels = self.labels.get();
        let endpoint = self.attempt.as_ref().map(|attempt| &attempt.endpoint);
        ConnectionEvent {
            mesh: link.instance.name(),
            tenant: &self.resolved.destination.tenant.namespace,
            source: Some(&link.source),
            source_principal: link.peer.id.as_str(),
            source_address: Some(link.peer.addr),
            security: SecurityPolicy::of_tunnel(link.peer.id.as_str(), link.peer.local_id.as_str()),
            target: &link.target_text,
            destination: labels.and_then(|labels| labels.destination.as_ref()),
            service: self.cluster.as_ref().map(|cluster| service_labels(cluster)),
            cluster: self.cluster.as_ref().map_or("", |cluster| &cluster.name),
            upstream: endpoint.map(|endpoint| endpoint.address),
            attempts: u32::from(endpoint.is_some()),
            flags: labels.map_or(ResponseFlags::NONE, |labels| labels.flags),
            rules: self.settings().and_then(counted::rules_of),
            dimensions: labels.map_or(&[], |labels| &labels.dimensions),
            ..ConnectionEvent::default()
        }
    }

    /// Counts what has passed since it was counted last.
    fn count_passed(&self) {
        let fresh = |passed: &AtomicU64, counted: &AtomicU64| {
            let passed = passed.load(Ordering::Relaxed);
            passed - counted.swap(passed, Ordering::Relaxed)
        };
        let received = fresh(&self.meter.from_client, &self.counted.0);
        let sent = fresh(&self.meter.to_client, &self.counted.1);
        self.link.metrics.connection_moved(&self.event(), sent, received);
    }

    /// Counts from time to time what has passed.
    pub(crate) async fn count(&self) -> Infallible {
        let settings = self.settings();
        let interval = settings.map_or(REPORT_INTERVAL, |settings| settings.report_interval);
        if interval.is_zero() || self.is_off() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(interval).await;
            self.begin(ResponseFlags::NONE);
            self.count_passed();
        }
    }

    /// Counts the end, and hands the record to telemetry.
    pub(crate) fn over(self, flags: ResponseFlags, details: &str) {
        self.begin(flags);
        let event = ConnectionEvent {
            flags,
            details,
            bytes_in: self.meter.from_client.load(Ordering::Relaxed),
            bytes_out: self.meter.to_client.load(Ordering::Relaxed),
            timings: Timings {
                start: self.started,
                duration: self.meter.started.elapsed(),
                ..Timings::default()
            },
            ..self.event()
        };
        if !self.is_off() {
            self.count_passed();
            self.link.metrics.connection_closed(&self.event());
        }
        let chain = self.resolved.destination.tcp.as_ref();
        if let Some(observe) = chain.and_then(|chain| chain.observe.as_ref())
            && !observe.access_logs.is_empty()
        {
            access_log::connection(&self.link, &self.resolved.mesh, &observe.access_logs, &event);
        }
    }
}
