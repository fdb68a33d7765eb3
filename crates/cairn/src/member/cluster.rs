//! One cluster's membership, from its begin to its end.
//!
//! certificate → (siblings) → configuration → port → register, stay registered … → deregister → accept → finish.
//!
//! A member is registered only while it could serve: with a certificate that is valid, an open port, and a
//! configuration. Whether it is registered is what the cluster's istiod tells everybody: our own entry among the
//! workloads of the mesh.

use super::node;
use super::process::A_CLUSTER;
use super::registration::{Registration, StayAway};
use super::settings::Who;
use super::sibling::{self, Question};
use super::state::{Phase, Registered, Status};
use crate::admin::{Actions, AdminView, Bound, EnvoyPages, Started};
use crate::istiod::{self, Before, Control, Exchange, Feeder};
use crate::logging::Logging;
use crate::ready::{Readiness, Step};
use arc_swap::ArcSwap;
use cairn_identity::ca::{CaClient, CaConfig, RunningCa};
use cairn_identity::istiod::{Istiod, Overrides, Roots};
use cairn_identity::{Identity, SpiffeId};
use cairn_pool::config::{Cluster, ISTIOD_NAME, Pool};
use cairn_proto::envoy::envoy::config::core::v3 as core;
use cairn_proxy::{
    DrainPlan, InstanceConfig, Limits, MeshInstance, NodeInfo, Overload, Running, Workers,
};
use cairn_router::spec::Resources;
use cairn_telemetry::Telemetry;
use cairn_xds::ads::{AdsConfig, AdsStatus};
use cairn_xds::store::{Imported, Owner, Store};
use cairn_xds::translate::{EndpointIdentity, Settings, Translator};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What readiness calls the certificate.
const CERTIFICATE: &str = "certificate";
/// How often the registration is looked at, besides each snapshot.
const LOOK: Duration = Duration::from_millis(250);
/// An entry that is gone for so long was taken away: istiod may replace one with two pushes.
const GONE: Duration = Duration::from_secs(2);
/// How long the end of a registration stream may take.
const WITHDRAW: Duration = Duration::from_secs(1);

/// How a membership ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Tunnels are accepted for so long after deregistering.
    pub accept: Duration,
    /// For so long after istiod shows that the entry is gone.
    pub confirmed: Duration,
    /// Telling clients to go is spread over so long.
    pub spread: Duration,
    /// All of it takes no longer.
    pub limit: Duration,
}

/// What all memberships of a process share.
#[derive(Clone)]
pub struct House {
    /// What holds for all members.
    pub pool: Pool,
    /// Who this member is.
    pub who: Who,
    /// Other members.
    pub siblings: Vec<String>,
    /// Addresses instead of DNS.
    pub resolve: Overrides,
    /// Threads that serve.
    pub workers: Arc<Workers>,
    /// Metrics and logs.
    pub telemetry: Arc<Telemetry>,
    /// For the pages.
    pub logging: Logging,
    /// For the pages.
    pub started: Started,
    /// Readiness of the process: how its start goes.
    pub readiness: Arc<Readiness>,
    /// Told when the process shall end.
    pub quit: Arc<Notify>,
    /// Endpoints may be on loopback (`CAIRN_LOOPBACK_ENDPOINTS=on`), where the administration pages are.
    pub loopback_endpoints: bool,
    /// Shares of tenants when there is not room for all.
    pub overload: Arc<Overload>,
    /// How old connections inside of tunnels become.
    pub max_connection_age: Duration,
    /// Memory runs short.
    pub memory: watch::Receiver<Scarce>,
}

/// What is done because memory runs short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scarce {
    /// New tunnels are refused.
    pub refuse: bool,
    /// Connections that carry nothing end.
    pub end: bool,
}

/// A membership.
pub struct Membership {
    /// As in the file.
    pub cluster: Cluster,
    /// What is to be seen.
    pub status: Arc<Status>,
    parts: Arc<Parts>,
    ending: watch::Sender<Option<Ending>>,
    task: JoinHandle<()>,
}

/// What there is of it so far, for those who look.
#[derive(Default)]
pub struct Parts {
    /// The mesh.
    pub instance: OnceLock<Arc<MeshInstance>>,
    /// Its pages.
    pub pages: OnceLock<EnvoyPages>,
    /// Its numbers.
    pub sources: OnceLock<istiod::Sources>,
    /// The exchange with istiod.
    pub ads: OnceLock<watch::Receiver<AdsStatus>>,
}

/// The task.
struct Course {
    cluster: Cluster,
    house: House,
    status: Arc<Status>,
    parts: Arc<Parts>,
    ending: watch::Receiver<Option<Ending>>,
}

/// What serves.
struct Serving {
    identity: Identity,
    instance: Arc<MeshInstance>,
    control: Control,
    running: Running,
    _ca: RunningCa,
}

impl Membership {
    /// Begins.
    pub fn begin(cluster: Cluster, house: House) -> Membership {
        let awaited = std::iter::once(CERTIFICATE).chain(istiod::awaited()).map(str::to_owned);
        let readiness = Arc::new(Readiness::waiting_for(awaited));
        let status = Status::new(&cluster.name, readiness);
        let parts = Arc::<Parts>::default();
        let (ending, ends) = watch::channel(None);
        let course = Course {
            cluster: cluster.clone(),
            house,
            status: Arc::clone(&status),
            parts: Arc::clone(&parts),
            ending: ends,
        };
        let task = tokio::spawn(course.run());
        Membership { cluster, status, parts, ending, task }
    }

    /// Tells it to end. The first word counts, but for a limit that is shorter.
    pub fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|told| match told {
            Some(_) => false,
            None => {
                *told = Some(ending);
                true
            }
        });
    }

    /// What there is of it so far.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Resolves when it is over. Returns how many had to be cut.
    pub async fn over(&mut self) -> usize {
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!(cluster = self.cluster.name, "the membership failed");
        }
        self.status.enter(Phase::Closed);
        self.status.seen().cut
    }
}

impl Parts {
    /// Seconds since istiod was heard last, and what is in flight.
    pub fn numbers(&self) -> (Option<f64>, f64) {
        let age = self.ads.get().and_then(|ads| {
            let ages = istiod::answer_ages(&ads.borrow());
            ages.into_values().reduce(f64::min)
        });
        let in_flight = self.instance.get().map_or(0.0, |instance| {
            let load = instance.load();
            load.totals(&load.sum(), Instant::now()).in_flight
        });
        (age, in_flight)
    }
}

impl Course {
    async fn run(mut self) {
        let mut ending = self.ending.clone();
        let ends = async move {
            let told = ending.wait_for(Option::is_some).await;
            told.ok().and_then(|told| *told)
        };
        let serving = tokio::select! {
            serving = self.start() => serving,
            _ = ends => {
                self.status.enter(Phase::Closed);
                return;
            }
        };
        self.status.enter(Phase::Serving);
        self.house.readiness.arrived(A_CLUSTER);
        let (ending, was_known) = self.stay(&serving).await;
        self.leave(serving, ending, was_known).await;
        self.status.enter(Phase::Closed);
    }

    fn istiod(&self, identity: Option<Identity>) -> Istiod {
        let name = self.cluster.server_name.clone().unwrap_or_else(|| ISTIOD_NAME.to_owned());
        Istiod {
            address: self.cluster.istiod.clone(),
            server_name: Some(name),
            roots: Roots::File(self.cluster.root_file.clone()),
            resolve: self.house.resolve.clone(),
            token: self.cluster.token_file.clone(),
            cluster_id: self.cluster.cluster_id.clone().unwrap_or_default(),
            identity,
            plaintext: false,
        }
    }

    /// Certificate, configuration, port. Waits for each as long as it takes.
    async fn start(&self) -> Serving {
        let readiness = &self.status.readiness;
        let (identity, ca) = self.certificate().await;
        readiness.arrived(CERTIFICATE);
        self.house.readiness.reached(Step::Certificate);
        let node = node::asking(&self.cluster, &self.house.pool, &self.house.who);
        let instance = self.instance(&identity, &node);
        let _set_once = self.parts.instance.set(Arc::clone(&instance));
        let owner = sibling::owner(&self.cluster.name, &identity);
        let told = self.ask_siblings(&identity, &owner).await;
        let (store, before) = match told {
            Some((store, imported)) => {
                self.status.warm();
                (store, Before::Told(imported))
            }
            None => (Arc::new(Store::new()), Before::Nothing),
        };
        let feeder = self.feeder();
        let resources: Arc<ArcSwap<Resources>> = Arc::default();
        let control = loop {
            let exchange = Exchange {
                ads: AdsConfig::new(self.istiod(Some(identity.clone())), node.clone()),
                feeder: feeder.clone(),
                instance: Arc::clone(&instance),
                resources: Arc::clone(&resources),
                store: Arc::clone(&store),
                before: match &before {
                    Before::Told(imported) => Before::Told(imported.clone()),
                    Before::Nothing | Before::Kept(..) => Before::Nothing,
                },
            };
            match Control::start(exchange).await {
                Ok(control) => break control,
                Err(error) => tracing::error!(cluster = self.cluster.name, %error, "no thread"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let _set_once = self.parts.ads.set(control.ads.clone());
        let (asking, wants) = (feeder.clone(), Arc::clone(&control.wants));
        instance.set_identity_wait(Arc::new(move |address| {
            if asking.ask(address) {
                wants.notify_one();
            }
        }));
        self.follow_connection(control.ads.clone());
        let _set_once = self.parts.sources.set(istiod::Sources {
            mesh: Some(self.cluster.name.clone()),
            identity: identity.clone(),
            ca: Some(ca.subscribe()),
            ads: control.ads.clone(),
            store: Arc::clone(&store),
            published: control.published.clone(),
            feeder: feeder.clone(),
        });
        let view = self.view(&control, &store, resources, (&node, &instance));
        let _set_once = self.parts.pages.set(EnvoyPages::new(view));
        istiod::configured(&control, &feeder, &self.cluster.istiod, readiness).await;
        self.house.readiness.reached(Step::Config);
        let running = istiod::listen(&instance, &self.house.workers, readiness).await;
        if self.house.pool.warm_start {
            sibling::tell(&instance, store, owner);
        }
        let course = self.house.readiness.course();
        tracing::info!(
            cluster = self.cluster.name,
            address = %running.local_addr,
            warm = control.warm,
            first = course.ready.is_none(),
            "could serve"
        );
        Serving { identity, instance, control, running, _ca: ca }
    }

    async fn certificate(&self) -> (Identity, RunningCa) {
        let (cluster, pool) = (&self.cluster, &self.house.pool);
        let account = cluster.service_account(pool);
        let id = loop {
            match SpiffeId::new(&cluster.trust_domain, cluster.namespace(pool), account) {
                Ok(id) => break id,
                Err(error) => {
                    let reason = format!("no identity: {error}; correct pool.yaml");
                    self.status.readiness.still_missing(CERTIFICATE, &reason);
                }
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        let wait = |reason: String| {
            tracing::warn!(cluster = cluster.name, "{reason}");
            self.status.readiness.still_missing(CERTIFICATE, &reason);
        };
        CaClient::start(CaConfig::new(self.istiod(None), id), wait).await
    }

    fn instance(&self, identity: &Identity, node: &core::Node) -> Arc<MeshInstance> {
        let config = InstanceConfig {
            name: self.cluster.name.clone(),
            listen: self.cluster.listen,
            limits: Limits {
                max_connection_age: Some(self.house.max_connection_age),
                ..Limits::of_pool()
            },
        };
        let telemetry = Arc::clone(&self.house.telemetry);
        let instance = MeshInstance::new(config, identity.clone(), telemetry);
        instance.set_overload(Arc::clone(&self.house.overload));
        let [_, zone, _] = node::place(&self.cluster, &self.house.who).unwrap_or_default();
        instance.set_node(NodeInfo {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            zone,
            address: Some(self.address()),
        });
        let mut memory = self.house.memory.clone();
        memory.mark_changed();
        let weak = Arc::downgrade(&instance);
        tokio::spawn(async move {
            while memory.changed().await.is_ok() {
                let Some(instance) = weak.upgrade() else { return };
                let Scarce { refuse, end } = *memory.borrow_and_update();
                instance.refuse_tunnels(refuse);
                instance.end_keep_alive(end);
            }
        });
        instance
    }

    fn address(&self) -> IpAddr {
        node::address(&self.cluster, &self.house.who)
    }

    fn feeder(&self) -> Feeder {
        let network = self.cluster.network.clone().unwrap_or_default();
        let translator = Translator::new(Settings {
            trust_domain: self.cluster.trust_domain.clone(),
            network: network.clone(),
            endpoint_identity: EndpointIdentity::Workload,
            loopback_endpoints: self.house.loopback_endpoints,
        });
        Feeder::new(translator, &network)
    }

    async fn ask_siblings(
        &self,
        identity: &Identity,
        owner: &Owner,
    ) -> Option<(Arc<Store>, Imported)> {
        if !self.house.pool.warm_start {
            return None;
        }
        let question = Question {
            identity: identity.clone(),
            siblings: self.house.siblings.clone(),
            own: self.address(),
            port: self.cluster.advertised_port(),
            owner: owner.clone(),
            max_age: self.cluster.max_stale().unwrap_or_default(),
        };
        question.ask().await
    }

    /// Shows whether there is a stream to istiod, for as long as there is somebody who keeps one up.
    fn follow_connection(&self, mut ads: watch::Receiver<AdsStatus>) {
        let status = Arc::clone(&self.status);
        tokio::spawn(async move {
            loop {
                status.connected(ads.borrow_and_update().connected);
                if ads.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn view(
        &self,
        control: &Control,
        store: &Arc<Store>,
        resources: Arc<ArcSwap<Resources>>,
        (node, instance): (&core::Node, &Arc<MeshInstance>),
    ) -> AdminView {
        let (ads, published) = (control.ads.clone(), control.published.clone());
        let (unsupported, degraded) = (control.published.clone(), control.published.clone());
        let quit = Arc::clone(&self.house.quit);
        AdminView {
            node: node.clone(),
            started: self.house.started,
            store: Arc::clone(store),
            instance: Arc::clone(instance),
            resources,
            listeners: vec![Bound {
                name: "connect_terminate".to_owned(),
                address: self.cluster.listen,
            }],
            readiness: Arc::clone(&self.status.readiness),
            logging: self.house.logging.clone(),
            stats: Box::new(move || istiod::envoy_stats(&ads.borrow(), &published.borrow())),
            unsupported: Box::new(move || unsupported.borrow().unsupported.to_vec()),
            degraded: Box::new(move || degraded.borrow().degraded.to_vec()),
            actions: Actions {
                fail_health: Box::new(|_| {}),
                drain_listeners: Box::new(|| {}),
                quit: Box::new(move || quit.notify_one()),
            },
        }
    }

    /// Registers, and stays registered until it is told to end. Returns how, and whether anybody may know of us.
    async fn stay(&mut self, serving: &Serving) -> (Ending, bool) {
        let mut away = StayAway::default();
        let mut was_known = false;
        loop {
            let registration = self.register(serving);
            let mut published = serving.control.published.clone();
            let mut known: Option<Instant> = None;
            let mut gone: Option<Instant> = None;
            let lasted = loop {
                let status = registration.status();
                was_known |= status.streams > 0;
                let istiod = serving.control.ads.borrow().connected;
                if !self.could_serve(serving) {
                    break None;
                }
                if self.is_known(serving) {
                    known.get_or_insert_with(Instant::now);
                    gone = None;
                    self.status.registered(Registered::Yes, None);
                } else if let Some(since) = known {
                    // Only who hears istiod, and is connected, can tell that the entry was taken away.
                    let taken = istiod && status.connected;
                    let gone_since = *gone.get_or_insert_with(Instant::now);
                    if !taken {
                        gone = None;
                    } else if gone_since.elapsed() >= GONE {
                        break Some(since.elapsed());
                    }
                } else {
                    let trouble = (!status.connected).then(|| status.last_error.clone()).flatten();
                    self.status.registered(Registered::Asking, trouble);
                }
                tokio::select! {
                    told = self.told() => {
                        self.withdraw(registration).await;
                        return (told, was_known);
                    }
                    changed = published.changed() => {
                        if changed.is_err() {
                            tokio::time::sleep(LOOK).await;
                        }
                    }
                    () = tokio::time::sleep(LOOK) => {}
                }
            };
            self.withdraw(registration).await;
            let wait = match lasted {
                Some(lasted) => {
                    let wait = away.after(lasted);
                    tracing::warn!(
                        cluster = self.cluster.name,
                        again_in_s = wait.as_secs(),
                        "somebody has deleted this member's WorkloadEntry"
                    );
                    let reason = format!("deleted by somebody; again in {} s", wait.as_secs());
                    self.status.registered(Registered::Withdrawn, Some(reason));
                    wait
                }
                None => {
                    let reason = "the certificate has expired".to_owned();
                    self.status.registered(Registered::No, Some(reason));
                    LOOK
                }
            };
            if let Some(told) = self.told_within(wait, serving).await {
                return (told, was_known);
            }
        }
    }

    fn register(&self, serving: &Serving) -> Registration {
        let node = node::registering(&self.cluster, &self.house.pool, &self.house.who);
        Registration::open(self.istiod(Some(serving.identity.clone())), node)
    }

    /// Withdrawn at the latest when the connection is dropped.
    async fn withdraw(&self, registration: Registration) {
        let _late = tokio::time::timeout(WITHDRAW, registration.withdraw()).await;
    }

    /// Our entry is among the workloads of the mesh.
    fn is_known(&self, serving: &Serving) -> bool {
        let id = serving.identity.current().id.to_string();
        serving.instance.mesh().workload_as(self.address(), &id).is_some()
    }

    fn could_serve(&self, serving: &Serving) -> bool {
        serving.identity.current().not_after > SystemTime::now()
    }

    /// Resolves when it is told to end.
    async fn told(&mut self) -> Ending {
        match self.ending.wait_for(Option::is_some).await.map(|told| *told) {
            Ok(Some(ending)) => ending,
            // Whoever could tell has gone, and with it the process.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Waits, at least until it could serve again. `Some`: it was told to end.
    async fn told_within(&mut self, wait: Duration, serving: &Serving) -> Option<Ending> {
        let mut until = Instant::now() + wait;
        loop {
            if let Ok(told) = tokio::time::timeout_at(until.into(), self.told()).await {
                return Some(told);
            }
            if self.could_serve(serving) {
                return None;
            }
            until = Instant::now() + LOOK;
        }
    }

    /// Accepts until everybody has heard, finishes, and closes.
    async fn leave(&self, serving: Serving, ending: Ending, was_known: bool) {
        let began = Instant::now();
        let Ending { accept, confirmed, spread, limit } = ending;
        self.status.enter(Phase::Deregistering);
        self.status.registered(Registered::No, None);
        if was_known {
            let unknown = self.unknown(&serving, confirmed);
            let _everybody_has_heard = tokio::time::timeout(accept.min(limit), unknown).await;
        }
        self.status.enter(Phase::Finishing);
        let left = limit.saturating_sub(began.elapsed());
        let cut = serving.running.drain_by(DrainPlan { spread, limit: left }).await.cut;
        self.status.cut(cut);
        tracing::info!(cluster = self.cluster.name, cut, took = ?began.elapsed(), "drained");
        serving.control.shutdown().await;
    }

    /// Resolves a while after istiod has told everybody that we are gone.
    async fn unknown(&self, serving: &Serving, confirmed: Duration) {
        while self.is_known(serving) || !serving.control.ads.borrow().connected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!(cluster = self.cluster.name, "istiod shows that the entry is gone");
        tokio::time::sleep(confirmed).await;
    }
}
