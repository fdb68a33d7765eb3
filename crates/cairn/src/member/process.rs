//! The process of a member: the file is followed, clusters come and go, and in the end all of them are left at once.

use super::args::MemberArgs;
use super::balance;
use super::cluster::{Ending, House, Membership, Parts, Scarce};
use super::numbers;
use super::pages::Pages;
use super::roster::{A_CLUSTER, Roster};
use super::settings::{Source, Who};
use super::state::Status;
use crate::admin::{Door, Started};
use crate::cgroup::Cpu;
use crate::failure::Failure;
use crate::istiod;
use crate::load::{self, Began, Reporter, Sources};
use crate::logging::Logging;
use crate::ready::Readiness;
use crate::scaler::PoolToken;
use crate::signals::Signals;
use crate::waypoint::ports::{self, Ports};
use crate::waypoint::{MemoryGuard, NEXT_STEP, Used, memory_limit, of_process};
use cairn_autoscale::Capacity;
use cairn_identity::istiod::Overrides;
use cairn_pool::PoolConfig;
use cairn_pool::config::Cluster;
use cairn_proxy::{Overload, OverloadConfig, Placement, Workers};
use cairn_telemetry::Telemetry;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often readiness is brought up to date.
const LOOK: Duration = Duration::from_millis(100);
/// Requests in flight that are let in, by those that a member is good for: the scaler acts long before.
const ROOM: f64 = 4.0;
/// How often memory is looked at.
const MEMORY: Duration = Duration::from_millis(250);

/// The memberships, and those that are on their way out.
struct Memberships {
    house: House,
    ending: Ending,
    roster: Arc<Roster>,
    there: BTreeMap<String, Membership>,
    leaving: JoinSet<(String, usize)>,
    /// Begin when the one of the same name is over.
    next: BTreeMap<String, Cluster>,
    /// What is shown of those that leave.
    shown: BTreeMap<String, (Arc<Status>, Arc<Parts>)>,
}

/// Runs until it is told to stop.
pub fn run(args: &MemberArgs) -> Result<ExitCode, Failure> {
    let filter = std::env::var("CAIRN_LOG").unwrap_or_else(|_| args.log_level.clone());
    let logging = Logging::start(args.log_format, &filter).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args, logging));
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &MemberArgs, logging: Logging) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let var = |name: &str| std::env::var(name).ok();
    let (mut source, config) = Source::open(&args.config)?;
    let who = Who::of(&config, var)?;
    let ports = Ports::parse(&var("CAIRN_PORTS").unwrap_or_default()).map_err(Failure::new)?;
    let resolve = Overrides::parse(&var("CAIRN_RESOLVE").unwrap_or_default())
        .map_err(|error| Failure::new(format!("CAIRN_RESOLVE: {error}")))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), name = who.name, address = %who.address,
        pool = config.pool.name, clusters = config.clusters.len(), "starting"
    );
    let threads = args
        .workers
        .map(usize::from)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let telemetry = Telemetry::new(threads);
    let workers = Workers::start(threads, Placement::Local)
        .map_err(|error| Failure::new(format!("worker threads do not start: {error}")))?;
    let workers = Arc::new(workers);
    let readiness = Arc::new(Readiness::waiting_for([A_CLUSTER.to_owned()]));
    let roster = Arc::<Roster>::default();
    let quit = Arc::new(Notify::new());
    let (scarce, memory) = watch::channel(Scarce::default());
    let capacity = args.capacity.clone().unwrap_or_default();
    let memory_most = memory_limit(var("GOMEMLIMIT").and_then(|bytes| bytes.parse().ok()));
    let capacity = load::capacities(&capacity, &Cpu::find(Path::new("/")), threads, memory_most);
    let most = args.max_in_flight.unwrap_or((capacity.in_flight * ROOM).max(1.0) as u32);
    let overload = Overload::new(OverloadConfig::new(most));
    let house = House {
        pool: config.pool.clone(),
        who: who.clone(),
        siblings: config.siblings.clone(),
        resolve,
        workers: Arc::clone(&workers),
        telemetry: Arc::clone(&telemetry),
        logging: logging.clone(),
        started: Started::now(),
        readiness: Arc::clone(&readiness),
        quit: Arc::clone(&quit),
        loopback_endpoints: var("CAIRN_LOOPBACK_ENDPOINTS").as_deref() == Some("on"),
        overload: Arc::clone(&overload),
        max_connection_age: args.max_connection_age,
        memory,
    };
    let reporter = reporter(args, capacity, &house, &roster);
    tokio::spawn(Arc::clone(&reporter).run());
    let token = match &config.pool.token_file {
        Some(file) => PoolToken::follow(file).await,
        None => PoolToken::default(),
    };
    let pages = Arc::new(Pages {
        roster: Arc::clone(&roster),
        readiness: Arc::clone(&readiness),
        telemetry: Arc::clone(&telemetry),
        load: Arc::clone(&reporter),
        quit: Arc::clone(&quit),
        token,
        logging,
    });
    open_pages(&pages, &ports, &who).await?;
    let memory = watch_memory(memory_most, args.memory_percent, scarce);
    let (shown, listed) = (Arc::clone(&readiness), Arc::clone(&roster));
    telemetry.register(Box::new(move |writer| {
        of_process(writer, shown.check().is_ok(), &memory, memory_most);
        numbers::write(&listed, writer);
        numbers::write_overload(overload.reading(), writer);
    }));
    if let (Some(scaler), Some(file)) = (&config.pool.scaler, &config.pool.token_file) {
        let balance = balance::Balance {
            url: format!("{}/fleet", scaler.trim_end_matches('/')),
            token: file.clone(),
            load: Arc::clone(&reporter),
            roster: Arc::clone(&roster),
        };
        tokio::spawn(balance.run());
    }
    let ending = Ending {
        accept: args.drain_accept,
        confirmed: args.drain_confirmed,
        spread: args.drain_spread,
        limit: args.drain_limit,
    };
    let mut memberships = Memberships::new(house, ending, roster);
    memberships.follow(config);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let why = loop {
        tokio::select! {
            config = source.changed() => memberships.follow(config),
            Some(left) = memberships.leaving.join_next() => memberships.left(left.ok()),
            _ = look.tick() => memberships.look(&readiness),
            signal = signals.next() => break signal,
            () = quit.notified() => break "told to drain",
        }
    };
    readiness.drain();
    tracing::info!(why, ?ending, "draining");
    tokio::select! {
        cut = memberships.leave_all() => {
            tracing::info!(cut, "drained");
        }
        signal = signals.next() => {
            tracing::warn!(signal, "second signal, ending at once");
            return Ok(ExitCode::FAILURE);
        }
    }
    telemetry.access_logs().flush_soon().await;
    Ok(ExitCode::SUCCESS)
}

/// What tells the autoscaler how busy the process is.
fn reporter(
    args: &MemberArgs,
    capacity: Capacity,
    house: &House,
    roster: &Arc<Roster>,
) -> Arc<Reporter> {
    let cpu = Cpu::find(Path::new("/"));
    let settings = args.capacity.clone().unwrap_or_default();
    let (meshes, answers, clusters) = (Arc::clone(roster), Arc::clone(roster), Arc::clone(roster));
    let sources = Sources {
        began: Began::of_process(),
        instance: load::instance_name(Some(&house.who.name)),
        locality: house.who.locality.clone(),
        zone: settings.config.zone.clone(),
        readiness: Arc::clone(&house.readiness),
        meshes: Box::new(move || {
            let all = meshes.all();
            all.iter().filter_map(|(_, parts)| parts.instance.get().cloned()).collect()
        }),
        answers: Box::new(move || oldest_answers(&answers)),
        clusters: Box::new(move || {
            let all = clusters.all();
            let load = |(status, parts): &(Arc<Status>, Arc<Parts>)| {
                let (age, in_flight) = parts.numbers();
                status.load(age, in_flight)
            };
            all.iter().map(load).collect()
        }),
        delays: house.workers.delays(),
        capacity,
        cpu,
        tenants: settings.tenants(),
    };
    Reporter::new(sources, &house.telemetry)
}

/// By type of resource, of the cluster whose istiod is silent for longest.
fn oldest_answers(roster: &Roster) -> BTreeMap<String, f64> {
    let mut oldest = BTreeMap::new();
    for (_, parts) in roster.all() {
        let Some(ads) = parts.ads.get() else { continue };
        for (kind, age) in istiod::answer_ages(&ads.borrow()) {
            let place = oldest.entry(kind).or_insert(age);
            *place = f64::max(*place, age);
        }
    }
    oldest
}

async fn open_pages(pages: &Arc<Pages>, ports: &Ports, who: &Who) -> Result<(), Failure> {
    let everywhere = ports::everywhere(&[who.address]);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for (door, what, ip, port) in [
        (Door::Status, "health pages", everywhere, ports::STATUS),
        (Door::Agent, "metrics pages", everywhere, ports::AGENT),
        (Door::Prometheus, "prometheus pages", everywhere, ports::PROMETHEUS),
        (Door::Admin, "admin pages", loopback, ports::ADMIN),
    ] {
        let address = ports.at(ip, port);
        let failed = |error: std::io::Error| {
            Failure::new(format!("{what} on {address}: {error}"))
                .hint(format!("CAIRN_PORTS={port}=PORT takes another port"))
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, port, "{what}");
        tokio::spawn(pages.serve(door, listener));
    }
    Ok(())
}

/// Refuses new tunnels of all clusters while memory runs short, and gives memory back when it runs out.
fn watch_memory(limit: Option<u64>, percent: u64, scarce: watch::Sender<Scarce>) -> Used {
    let used = Used::default();
    let guard = |percent| limit.and_then(|limit| MemoryGuard::new(limit, percent));
    let (mut refuse, mut end) = (guard(percent), guard(percent.saturating_add(NEXT_STEP)));
    let looks = used.clone();
    tokio::spawn(async move {
        let mut look = tokio::time::interval(MEMORY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let Some(bytes) = looks.look() else { continue };
            let decide = |guard: &mut Option<MemoryGuard>| guard.as_mut()?.decide(bytes);
            let (refuse, end) = (decide(&mut refuse), decide(&mut end));
            if refuse.is_some() || end.is_some() {
                scarce.send_modify(|scarce| {
                    scarce.refuse = refuse.unwrap_or(scarce.refuse);
                    scarce.end = end.unwrap_or(scarce.end);
                });
                tracing::warn!(bytes, scarce = ?*scarce.borrow(), "memory and its limit");
            }
        }
    });
    used
}

impl Memberships {
    fn new(house: House, ending: Ending, roster: Arc<Roster>) -> Self {
        Memberships {
            house,
            ending,
            roster,
            there: BTreeMap::new(),
            leaving: JoinSet::new(),
            next: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Does what the file says: clusters that it does not name are left, those that are new begin, those that are
    /// described otherwise begin anew. Nothing happens to the others.
    fn follow(&mut self, config: PoolConfig) {
        let PoolConfig { pool, member, siblings, clusters } = config;
        if pool.name != self.house.pool.name
            || pool.token_file != self.house.pool.token_file
            || pool.scaler != self.house.pool.scaler
            || member.address.is_some_and(|address| address != self.house.who.address)
        {
            tracing::warn!(
                "what pool.yaml says of the pool and of this member holds after a restart"
            );
        }
        self.house.siblings = siblings;
        self.next.clear();
        let mut wanted: BTreeMap<String, Cluster> =
            clusters.into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect();
        let there: Vec<String> = self.there.keys().cloned().collect();
        for name in there {
            let same = self
                .there
                .get(&name)
                .is_some_and(|membership| wanted.get(&name) == Some(&membership.cluster));
            if same {
                wanted.remove(&name);
            } else {
                tracing::info!(cluster = name, again = wanted.contains_key(&name), "leaving");
                self.leave(&name);
            }
        }
        for (name, cluster) in wanted {
            if self.shown.contains_key(&name) {
                self.next.insert(name, cluster);
            } else {
                self.begin(cluster);
            }
        }
        self.show();
    }

    fn begin(&mut self, cluster: Cluster) {
        tracing::info!(cluster = cluster.name, listen = %cluster.listen, istiod = cluster.istiod, "joining");
        let name = cluster.name.clone();
        self.there.insert(name, Membership::begin(cluster, self.house.clone()));
    }

    fn leave(&mut self, name: &str) {
        let Some(mut membership) = self.there.remove(name) else { return };
        membership.end(self.ending);
        let shown = (Arc::clone(&membership.status), Arc::clone(membership.parts()));
        self.shown.insert(name.to_owned(), shown);
        let name = name.to_owned();
        self.leaving.spawn(async move { (name, membership.over().await) });
    }

    /// A membership is over.
    fn left(&mut self, left: Option<(String, usize)>) {
        let Some((name, _cut)) = left else { return };
        self.shown.remove(&name);
        if let Some(cluster) = self.next.remove(&name) {
            self.begin(cluster);
        }
        self.show();
    }

    fn show(&self) {
        let there = self.there.values();
        let there = there.map(|one| (Arc::clone(&one.status), Arc::clone(one.parts())));
        let mut all: Vec<_> = there.chain(self.shown.values().cloned()).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        self.roster.show(all);
    }

    /// The process is ready while one cluster can be served.
    fn look(&self, readiness: &Readiness) {
        let serving = self.there.values().any(|membership| membership.status.is_serving());
        if serving {
            readiness.arrived(A_CLUSTER);
        } else {
            let lines = self.there.values().map(|membership| membership.status.line());
            let lines: Vec<String> = lines.collect();
            let why =
                if lines.is_empty() { "pool.yaml names none".to_owned() } else { lines.join("; ") };
            readiness.gone(A_CLUSTER, &why);
        }
    }

    /// Leaves every cluster at once. Returns how many connections had to be cut.
    async fn leave_all(&mut self) -> usize {
        self.next.clear();
        let there: Vec<String> = self.there.keys().cloned().collect();
        for name in there {
            self.leave(&name);
        }
        self.show();
        let mut all = 0;
        while let Some(left) = self.leaving.join_next().await {
            all += left.map_or(0, |(_, cut)| cut);
        }
        all
    }
}
