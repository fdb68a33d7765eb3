//! One mesh: everything that is known and counted about it hangs on its [`MeshInstance`].

use crate::counters::Counters;
use crate::deliver::Courier;
use crate::limits::Limits;
use crate::load::{Load, LoadReading, Tenant};
use crate::metrics;
use crate::overload::Overload;
use crate::roll::Roll;
use crate::upstream::{ClusterTls, EndpointPool};
use arc_swap::{ArcSwap, Guard};
use cairn_hbone::{Originator, OriginatorCounters, Peer, TerminatorCounters, Traffic, Tunnel};
use cairn_identity::Identity;
use cairn_router::cluster::Cluster;
use cairn_router::endpoint::Endpoint;
use cairn_router::model::Mesh;
use cairn_router::workload::Workload;
use cairn_telemetry::export::logs::{self, LogCounts, LogFlush};
use cairn_telemetry::export::{Queue, Registry, Spans, Target};
use cairn_telemetry::trace::Span;
use cairn_telemetry::{ServiceLabels, Telemetry, WorkloadLabels};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// What an instance is made with.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// Name of the mesh, in tenants, metrics and logs.
    pub name: String,
    /// Where HBONE is served.
    pub listen: SocketAddr,
    /// Bounds.
    pub limits: Limits,
}

/// Serves a tunnel inside the process instead of an endpoint.
pub type LocalHandler = Arc<dyn Fn(Tunnel) + Send + Sync>;

/// Is told of addresses whose identity a request needs and no snapshot has. Called from the
/// request's task, again and again: it must not block, and find out for itself what it was told before.
pub type IdentityWait = Arc<dyn Fn(IpAddr) + Send + Sync>;

/// Who we are to the control plane, for those who are told of requests.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Id of the node, such as `waypoint~10.1.0.1~waypoint-1.shop~shop.svc.cluster.local`.
    pub id: String,
    /// Name of the node's cluster, such as `waypoint.shop`.
    pub cluster: String,
    /// Zone that it runs in.
    pub zone: String,
    /// Its address.
    pub address: Option<IpAddr>,
}

/// One mesh of this process. Several are kept apart: own identity, snapshot, pools and counters.
pub struct MeshInstance {
    config: InstanceConfig,
    identity: Identity,
    telemetry: Arc<Telemetry>,
    mesh: ArcSwap<Mesh>,
    published: Notify,
    identity_wait: OnceLock<IdentityWait>,
    local: ArcSwap<HashMap<String, LocalHandler>>,
    originators: OnceLock<Box<[Originator]>>,
    pools: Mutex<Vec<Weak<EndpointPool>>>,
    mirrors: AtomicUsize,
    refusing: AtomicBool,
    load: Load,
    roll: Arc<Roll>,
    traffic: Arc<Traffic>,
    published_at: Mutex<Option<Instant>>,
    node: OnceLock<NodeInfo>,
    exports: Registry,
    log_export: OnceLock<LogFlush>,
    log_counts: Arc<LogCounts>,
    counters: Arc<Counters>,
    terminator_counters: Arc<TerminatorCounters>,
    originator_counters: Arc<OriginatorCounters>,
}

impl MeshInstance {
    /// Without any destination until a snapshot is published.
    pub fn new(config: InstanceConfig, identity: Identity, telemetry: Arc<Telemetry>) -> Arc<Self> {
        let instance = Arc::new(MeshInstance {
            config,
            identity,
            telemetry,
            mesh: ArcSwap::from_pointee(Mesh::empty()),
            published: Notify::new(),
            identity_wait: OnceLock::new(),
            local: ArcSwap::default(),
            originators: OnceLock::new(),
            pools: Mutex::new(Vec::new()),
            mirrors: AtomicUsize::new(0),
            refusing: AtomicBool::new(false),
            load: Load::new(),
            roll: Roll::new(),
            traffic: Arc::default(),
            published_at: Mutex::new(None),
            node: OnceLock::new(),
            exports: Registry::default(),
            log_export: OnceLock::new(),
            log_counts: Arc::default(),
            counters: Arc::default(),
            terminator_counters: Arc::default(),
            originator_counters: Arc::default(),
        });
        metrics::register(&instance);
        instance
    }

    /// Makes `mesh` the snapshot by which requests are handled from here on; those in flight keep theirs.
    /// Clusters whose TLS settings cannot be used are reported as `(cluster, reason)`: their endpoints are
    /// not dialled.
    pub fn publish(&self, mesh: Mesh) -> Vec<(Arc<str>, String)> {
        let unusable = mesh
            .clusters()
            .filter_map(|cluster| {
                let settings = cluster.tls.as_ref()?;
                let reason = ClusterTls::of(&cluster.state, settings).err()?;
                Some((Arc::clone(&cluster.name), reason))
            })
            .collect();
        self.mesh.store(Arc::new(mesh));
        self.published.notify_waiters();
        *self.published_at.lock() = Some(Instant::now());
        self.counters.snapshots.add_one();
        unusable
    }

    /// From here on a request to a cluster whose endpoints are unusable only because nobody knows
    /// who they are tells `ask` their addresses, and waits up to 250 ms for a snapshot that knows.
    /// Without it, and after that time, it gets 503. The first one that is set stays.
    pub fn set_identity_wait(&self, ask: IdentityWait) {
        let _first_stays = self.identity_wait.set(ask);
    }

    pub(crate) fn identity_wait(&self) -> Option<&IdentityWait> {
        self.identity_wait.get()
    }

    /// Resolves at the next [`publish`](Self::publish).
    pub(crate) fn published(&self) -> Notified<'_> {
        self.published.notified()
    }

    /// When the current snapshot was published; `None`: none was.
    pub fn published_at(&self) -> Option<Instant> {
        *self.published_at.lock()
    }

    /// The current snapshot.
    pub fn mesh(&self) -> Arc<Mesh> {
        self.mesh.load_full()
    }

    pub(crate) fn mesh_guard(&self) -> Guard<Arc<Mesh>> {
        self.mesh.load()
    }

    /// Name of the mesh.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Where HBONE is to be served.
    pub fn listen(&self) -> SocketAddr {
        self.config.listen
    }

    /// Bounds.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// From here on the tenants of this mesh have their shares of `overload`, which all meshes of a process have in common.
    /// To be set before the mesh is served; the first one that is set stays. Without one nothing but
    /// [`Limits::max_requests_in_flight`] bounds what is under way.
    pub fn set_overload(&self, overload: Arc<Overload>) {
        self.load.tenants.set_overload(overload);
    }

    /// Says who we are to the control plane. The first one that is set stays; without one the mesh's name stands for
    /// the node's cluster.
    pub fn set_node(&self, node: NodeInfo) {
        let _first_stays = self.node.set(node);
    }

    pub(crate) fn node(&self) -> &NodeInfo {
        self.node
            .get_or_init(|| NodeInfo { cluster: self.config.name.clone(), ..NodeInfo::default() })
    }

    /// What is on its way to collectors.
    pub fn exports(&self) -> &Registry {
        &self.exports
    }

    /// Counts of records of access logs on their way to collectors.
    pub(crate) fn log_counts(&self) -> &LogCounts {
        &self.log_counts
    }

    /// Begins to send records of access logs to this mesh's collectors. The task ends with the instance.
    pub(crate) fn export_logs(
        self: &Arc<Self>,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
    ) {
        let otel = Arc::clone(self.telemetry.access_logs().otel());
        let mesh = self.name().to_owned();
        let mine = move |target: &cairn_telemetry::access_log::LogTarget| target.mesh == mesh;
        let (flush, task) =
            logs::exporter(otel, Courier::new(self, 0), mine, Arc::clone(&self.log_counts));
        if self.log_export.set(flush).is_ok() {
            spawn(Box::pin(task));
        }
    }

    /// Sends what waits for collectors, within `limit`.
    pub(crate) async fn flush_exports(&self, limit: Duration) {
        let flush = async {
            if let Some(logs) = self.log_export.get() {
                logs.flush().await;
            }
            self.exports.flush(limit).await;
        };
        let _late_is_lost = tokio::time::timeout(limit, flush).await;
    }

    /// The queue of spans for a target; for one that has none it is made, and emptied by the calling worker.
    pub(crate) fn span_queue(
        self: &Arc<Self>,
        target: Target,
        form: Spans,
        worker: usize,
    ) -> Arc<Queue<Span>> {
        let deliver = || Courier::new(self, worker) as _;
        self.exports.spans(target, form, deliver, |task| drop(tokio::spawn(task)))
    }

    /// Who this instance is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where events go.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// What was done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What is under way, by tenant, and what waits.
    pub fn load(&self) -> LoadReading {
        self.load.read()
    }

    /// Bytes read from and written to the network, TLS and framing included: HBONE on both sides, and
    /// connections straight to endpoints.
    pub fn bytes(&self) -> (u64, u64) {
        let all =
            [&self.terminator_counters.traffic, &self.originator_counters.traffic, &self.traffic];
        all.iter().fold((0, 0), |(received, sent), traffic| {
            (received + traffic.received(), sent + traffic.sent())
        })
    }

    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    pub(crate) fn loads(&self) -> &Load {
        &self.load
    }

    pub(crate) fn tenant(&self, namespace: &Arc<str>) -> Arc<Tenant> {
        self.load.tenants.of(namespace, self.workers())
    }

    /// Whose load our own requests are: no tenant's.
    pub(crate) fn nobody(&self) -> Arc<Tenant> {
        self.load.tenants.nobody()
    }

    /// What the incoming side of the tunnel layer has done.
    pub fn terminator_counters(&self) -> &Arc<TerminatorCounters> {
        &self.terminator_counters
    }

    /// What the outgoing side of the tunnel layer has done.
    pub fn originator_counters(&self) -> &Arc<OriginatorCounters> {
        &self.originator_counters
    }

    /// Serves CONNECTs for `authority` (in lower case, `host:port`) in the process, in front of all destinations.
    pub fn add_local(&self, authority: &str, handler: LocalHandler) {
        self.local.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(authority.to_ascii_lowercase(), Arc::clone(&handler));
            known
        });
    }

    pub(crate) fn local(&self, authority: &str) -> Option<LocalHandler> {
        let known = self.local.load();
        if known.is_empty() {
            return None;
        }
        known.get(authority).cloned()
    }

    /// From here on new tunnels are refused with 503 (`true`), for example because memory runs short, or
    /// let in again. Those that are open go on.
    pub fn refuse_tunnels(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::Relaxed);
    }

    pub(crate) fn refuses_tunnels(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// While it is on, keep-alive ends: HTTP/1.1 tunnels end with each response, and those of HTTP/1.1 and HTTP/2 that
    /// have no request under way end, so that their memory is given back. For a process whose memory runs out in
    /// spite of [`refuse_tunnels`](Self::refuse_tunnels). No request is lost.
    pub fn end_keep_alive(&self, end: bool) {
        self.roll.end_keep_alive(end);
    }

    /// Tells the clients of up to `count` tunnels of requests to open others, which may lead to another waypoint: the
    /// least recently used ones, by GOAWAY or by `connection: close` on the next response, and those that are silent
    /// for a second by their end. No request is lost. Returns how many were told; those that knew are not counted.
    pub fn shed(&self, count: usize) -> usize {
        let told = self.roll.tell_some(count);
        self.counters.tunnels_rebalanced.add(told as u64);
        told
    }

    pub(crate) fn roll(&self) -> &Arc<Roll> {
        &self.roll
    }

    /// Makes the per-worker parts. The number of workers does not change afterwards.
    pub(crate) fn prepare(&self, workers: usize) {
        self.roll.prepare(workers);
        self.originators.get_or_init(|| {
            (0..workers.max(1))
                .map(|_| {
                    Originator::new(
                        self.identity.clone(),
                        self.config.limits.originator.clone(),
                        Arc::clone(&self.originator_counters),
                    )
                })
                .collect()
        });
    }

    /// Workers that were prepared for; 1 before that.
    pub(crate) fn workers(&self) -> usize {
        self.originators.get().map_or(1, |all| all.len())
    }

    pub(crate) fn originator(&self, worker: usize) -> &Originator {
        let all = self.originators.get_or_init(|| {
            Box::new([Originator::new(
                self.identity.clone(),
                self.config.limits.originator.clone(),
                Arc::clone(&self.originator_counters),
            )])
        });
        &all[worker % all.len()]
    }

    /// The connections of an endpoint. Made at the first use, and kept as long as the endpoint is.
    pub(crate) fn pool(&self, endpoint: &Endpoint) -> Arc<EndpointPool> {
        let pool: &Arc<EndpointPool> = endpoint.state.extension(|| {
            let pool = Arc::new(EndpointPool::new(self.workers()));
            let mut pools = self.pools.lock();
            pools.retain(|pool| pool.strong_count() > 0);
            pools.push(Arc::downgrade(&pool));
            pool
        });
        Arc::clone(pool)
    }

    /// How often [`sweep`](Self::sweep) is to be called.
    pub(crate) fn sweep_interval(&self) -> Duration {
        let age = self.config.limits.max_connection_age.map(|age| age / 20);
        age.unwrap_or(SWEEP).clamp(Duration::from_millis(20), SWEEP)
    }

    /// Closes connections to endpoints that have been idle for too long, and tells clients whose tunnels are too old.
    pub(crate) fn sweep(&self) {
        if let Some(age) = self.config.limits.max_connection_age {
            self.counters.tunnels_aged.add(self.roll.tell_aged(age) as u64);
        }
        self.roll.tell_quiet();
        if let Some(overload) = self.load.tenants.overload() {
            overload.look_after();
        }
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        for pool in pools {
            pool.sweep();
        }
    }

    /// Idle HTTP/1 and open HTTP/2 connections to endpoints.
    pub fn pooled(&self) -> (usize, usize) {
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        pools.iter().fold((0, 0), |(h1, h2), pool| {
            let (idle, open) = pool.size();
            (h1 + idle, h2 + open)
        })
    }

    /// Room for one more mirrored request; given back by [`Self::end_mirror`].
    pub(crate) fn begin_mirror(&self) -> bool {
        let most = self.config.limits.max_mirrors;
        self.mirrors
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                (now < most).then_some(now + 1)
            })
            .is_ok()
    }

    pub(crate) fn end_mirror(&self) {
        self.mirrors.fetch_sub(1, Ordering::Relaxed);
    }

    /// Labels of the peer: by its address and identity, else by its identity alone.
    pub(crate) fn source_labels(&self, mesh: &Mesh, peer: &Peer) -> Arc<WorkloadLabels> {
        match mesh.workload_as(peer.addr.ip(), peer.id.as_str()) {
            Some(workload) => Arc::new(labels_of(workload)),
            None => Arc::new(WorkloadLabels {
                namespace: peer.id.namespace().into(),
                principal: peer.id.as_str().into(),
                ..WorkloadLabels::default()
            }),
        }
    }
}

/// Labels of the workload behind an endpoint, made once per workload.
pub(crate) fn destination_labels(mesh: &Mesh, endpoint: &Endpoint) -> Option<Arc<WorkloadLabels>> {
    struct Known(ArcSwap<(Option<Arc<Workload>>, Arc<WorkloadLabels>)>);

    let workload = mesh.workload(endpoint.address.ip())?;
    let known = endpoint.state.extension(|| Known(ArcSwap::from_pointee((None, Arc::default()))));
    let current = known.0.load();
    if let Some(described) = &current.0
        && Arc::ptr_eq(described, workload)
    {
        return Some(Arc::clone(&current.1));
    }
    let labels = Arc::new(labels_of(workload));
    known.0.store(Arc::new((Some(Arc::clone(workload)), Arc::clone(&labels))));
    Some(labels)
}

/// Labels of a cluster's service, made once per cluster.
pub(crate) fn service_labels(cluster: &Cluster) -> &Arc<ServiceLabels> {
    cluster.state.extension(|| {
        Arc::new(ServiceLabels {
            host: Arc::clone(&cluster.service),
            name: Arc::clone(&cluster.service_name),
            namespace: Arc::clone(&cluster.service_namespace),
        })
    })
}

fn labels_of(workload: &Workload) -> WorkloadLabels {
    WorkloadLabels {
        workload: Arc::clone(&workload.workload_name),
        namespace: Arc::clone(&workload.namespace),
        canonical_service: Arc::clone(&workload.canonical_name),
        canonical_revision: Arc::clone(&workload.canonical_revision),
        cluster: Arc::clone(&workload.cluster),
        principal: workload.principal.clone().unwrap_or_default(),
        app: Arc::clone(&workload.canonical_name),
        version: Arc::clone(&workload.canonical_revision),
    }
}
