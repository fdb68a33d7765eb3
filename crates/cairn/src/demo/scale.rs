//! `cairn demo --scale` and `--pool`: members of a pool, a wave of load, and the scaler's decisions as they happen.
//!
//! A pool serves one cluster, or several whose services have the same addresses: each has its own CA and its own port at
//! every member, and an answer from another cluster's service counts as wrong.
//!
//! Everything is in this process and on loopback, and nothing is pretended: clients choose a member for each request
//! as ztunnel does, members report their load by HTTP, the scaler polls it, and what it decides is done: members start,
//! and those that are to go deregister, go on accepting until clients have heard it, and drain. Only the windows are shorter than a real pool's, so that it fits a minute.

use super::client::Client;
use crate::admin::Admin;
use crate::exchange::{Ask, Exchange, Wire};
use crate::failure::Failure;
use crate::fleet::{Fleet, NewMesh};
use crate::load::{Configured, LoadSettings};
use crate::logging::Logging;
use crate::members::{Member as Polled, Poller};
use crate::ready::Readiness;
use crate::signals::Signals;
use crate::terminal::say;
use arc_swap::ArcSwap;
use cairn_autoscale::{Answer, Autoscaler, Decision, Demand, Fleet as Pool, Policy, TenantCaps};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{Identity, SpiffeId};
use cairn_proxy::{Placement, Workers};
use cairn_telemetry::Telemetry;
use cairn_xds::{Format, MeshConfig};
use http::uri::PathAndQuery;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The clusters of a pool: their names, which their services answer with.
const CLUSTERS: [&str; 2] = ["east", "west"];
/// The one cluster of a fleet that scales.
const ALONE: [&str; 1] = ["demo"];
/// Every request takes a quarter of a second, so that so many are in flight as there are clients.
const CONFIG: &str = "
meshes:
- name: NAME
  listen: 127.0.0.1:0
  identity: {dev: {id: spiffe://cluster.local/ns/shop/sa/waypoint}}
  destinations:
  - name: app
    namespace: shop
    addresses: [10.96.0.10]
    port: 80
    http:
      routes:
        virtual_hosts:
        - name: app
          domains: ['*']
          routes:
          - match: {path: {prefix: /}}
            fault: {delay: {fixed: 250ms, percent: 100}}
            direct_response: {status: 200, body: NAME}
";
const SERVICE: &str = "10.96.0.10:80";
const TRUST_DOMAIN: &str = "cluster.local";
/// Members at least, and at most.
const FEW: u32 = 3;
const MANY: u32 = 8;
/// Requests in flight that a member is good for.
const IN_FLIGHT: f64 = 20.0;
/// Clients before and after the wave, and in it.
const CALM: usize = 12;
const WAVE: usize = 80;
/// When the wave begins, and when it ends.
const BEGINS: Duration = Duration::from_secs(5);
const ENDS: Duration = Duration::from_secs(20);
/// A wave and what comes after it takes no longer.
const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(500);
/// Clients hear so late which members there are.
const HEARD: Duration = Duration::from_millis(500);
/// A member that has deregistered accepts for so long.
const ACCEPT: Duration = Duration::from_secs(1);
/// In-flight requests of a member that goes.
const DRAIN: Duration = Duration::from_secs(10);
const MAX_BODY_BYTES: usize = 1 << 10;
const BAR: usize = 24;

fn failed<E: Display>(what: &str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(format!("{what}: {error}"))
}

/// Windows of seconds instead of minutes.
fn policy() -> Policy {
    Policy {
        min: FEW,
        max: MANY,
        stable_window: Duration::from_secs(5),
        panic_window: Duration::from_secs(1),
        overload_for: Duration::from_secs(1),
        down_delay: Duration::from_secs(5),
        down_share: 0.34,
        down_period: Duration::from_secs(2),
        ..Policy::default()
    }
}

/// One member: a waypoint of every cluster with a thread of its own, and its pages.
struct Member {
    /// Its port for each cluster.
    hbone: Vec<SocketAddr>,
    page: SocketAddr,
    fleet: Fleet,
    readiness: Arc<Readiness>,
    tasks: Vec<JoinHandle<()>>,
}

/// A cluster: what a member serves it with.
struct Cluster {
    config: MeshConfig,
    identity: Identity,
}

/// What members are made of.
struct Maker {
    clusters: Vec<Cluster>,
    logging: Logging,
}

impl Maker {
    async fn member(&mut self) -> Result<Member, Failure> {
        let telemetry = Telemetry::new(1);
        let workers = Workers::start(1, Placement::default()).map_err(failed("a thread"))?;
        let delays = workers.delays();
        let mut fleet = Fleet::new(workers, Arc::clone(&telemetry));
        let mut hbone = Vec::new();
        for Cluster { config, identity } in &self.clusters {
            let new = NewMesh {
                config: config.clone(),
                resources: config.resources().clone(),
                identity: identity.clone(),
                watch: None,
            };
            hbone.push(fleet.start(new).await.map_err(failed("a member"))?);
        }
        let readiness = Arc::new(Readiness::waiting_for([]));
        let mut settings = LoadSettings::default();
        settings.config.in_flight = Some(IN_FLIGHT);
        settings.config.units = Some(1.0);
        // They share the CPUs of this process, so that no one's use of them can be told.
        settings.config.cpu = Some(1e3);
        let load = Configured {
            settings,
            workers: 1,
            delays,
            readiness: Arc::clone(&readiness),
            roster: fleet.roster(),
        };
        let load = load.reporter(&telemetry);
        let admin = Arc::new(Admin {
            readiness: Arc::clone(&readiness),
            load: Arc::clone(&load),
            telemetry,
            roster: fleet.roster(),
            logging: self.logging.clone(),
            quit: Arc::new(Notify::new()),
        });
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let listener = TcpListener::bind(loopback).await.map_err(failed("a member's pages"))?;
        let page = listener.local_addr().map_err(failed("a member's pages"))?;
        let tasks = vec![tokio::spawn(load.run()), tokio::spawn(admin.serve_metrics(listener))];
        Ok(Member { hbone, page, fleet, readiness, tasks })
    }
}

impl Member {
    /// It is in no list any more: accepts until clients have heard it, finishes what it has, then ends.
    async fn leave(self) -> usize {
        self.readiness.drain();
        tokio::time::sleep(ACCEPT).await;
        let cut = self.fleet.drain(DRAIN).await;
        self.tasks.iter().for_each(JoinHandle::abort);
        cut
    }
}

/// Clients of one cluster in a closed loop: each sends its next request when the last is answered.
struct Load {
    /// The cluster, and what its service answers.
    name: &'static str,
    /// Which of a member's ports is the cluster's.
    place: usize,
    members: ArcSwap<Vec<SocketAddr>>,
    client: Client,
    waypoint: SpiffeId,
    wanted: AtomicUsize,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// The ports of members for this cluster.
    fn addresses(&self, members: &[Member]) -> Vec<SocketAddr> {
        members.iter().filter_map(|member| member.hbone.get(self.place).copied()).collect()
    }

    async fn request(&self) -> Result<(), Box<dyn std::error::Error>> {
        let members = self.members.load_full();
        let number = rand::random_range(0..members.len().max(1));
        let member = members.get(number).ok_or("no member")?;
        let tunnel = self.client.open(*member, &self.waypoint, SERVICE).await?;
        let mut exchange = Exchange::open(tunnel, Wire::Http1).await?;
        let ask = Ask::get(SERVICE, PathAndQuery::from_static("/"));
        let answer = exchange.ask(&ask, MAX_BODY_BYTES).await?;
        match answer.head.status.as_u16() {
            200 if answer.body == self.name.as_bytes() => Ok(()),
            200 => Err("answered by another cluster's service".into()),
            status => Err(format!("answered {status}").into()),
        }
    }

    async fn client(self: Arc<Self>, number: usize) {
        loop {
            if number >= self.wanted.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            match self.request().await {
                Ok(()) => self.answered.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    tracing::warn!(cluster = self.name, %error, "a request failed");
                    self.failed.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    }
}

/// The scaler: polls, reckons, decides.
struct Scaler {
    poller: Poller,
    pool: Pool,
    autoscaler: Autoscaler,
    start: Instant,
}

impl Scaler {
    async fn round(&mut self, members: &[Member]) -> (Demand, Decision) {
        let polled: Vec<Polled> =
            members.iter().map(|member| Polled::at(member.page.to_string())).collect();
        let answers = self.poller.round(&polled, POLL).await;
        let now = self.start.elapsed();
        self.pool.poll(
            now,
            polled.iter().map(|member| {
                let answer = match answers.get(&member.name) {
                    Some(Ok(report)) => Answer::Report(Box::new(report.clone())),
                    _ => Answer::Silent,
                };
                (member.name.as_str(), answer)
            }),
        );
        let demand = self.pool.demand(&TenantCaps::default());
        let current = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let decision = self.autoscaler.decide(now, &demand, current);
        (demand, decision)
    }
}

/// What a wave came to.
#[derive(Debug, Default)]
struct Outcome {
    most: usize,
    left: usize,
    cut: usize,
}

/// Plays waves: one with `once`, else until a signal.
pub async fn show(
    once: bool,
    pool: bool,
    logging: Logging,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    let names: &[&'static str] = if pool { &CLUSTERS } else { &ALONE };
    let share = names.len();
    say!("Cairn demo: a pool that scales, everything in this process, on loopback.\n");
    if pool {
        say!("  {share} clusters, {}: both have a service at {SERVICE}", names.join(" and "));
        say!("  each has its own CA, and its own port at every member");
    }
    say!(
        "  {FEW} to {MANY} members, each good for {IN_FLIGHT} requests in flight, to be {:.0} % busy",
        policy().target * 100.0
    );
    say!("  {CALM} clients, {WAVE} in the wave; every request takes 250 ms");
    say!(
        "  clients hear {} ms late which members there are; who leaves accepts for {} ms more",
        HEARD.as_millis(),
        ACCEPT.as_millis()
    );
    say!("  polled every {} ms; windows of seconds instead of minutes\n", POLL.as_millis());
    let mut clusters = Vec::new();
    let mut loads = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let (cluster, load) = cluster(name, place, CALM / share)?;
        clusters.push(cluster);
        loads.push(Arc::new(load));
    }
    let mut maker = Maker { clusters, logging };
    let mut members = Vec::new();
    for _ in 0..FEW {
        members.push(maker.member().await?);
    }
    let mut clients = Vec::new();
    for load in &loads {
        load.members.store(Arc::new(load.addresses(&members)));
        let client = |number| tokio::spawn(Arc::clone(load).client(number));
        clients.extend((0..WAVE / share).map(client));
    }
    say!(
        "  {:>5}  {:>7}  {:>9}  {:>6}  {:>6}  {:>7}  decision",
        "time",
        "clients",
        "in flight",
        "demand",
        "wanted",
        "members"
    );
    let mut good = true;
    loop {
        let played = tokio::select! {
            played = wave(&mut maker, &mut members, &loads) => played?,
            _ = signals.next() => break,
        };
        let sum = |of: fn(&Load) -> &AtomicU64| -> u64 {
            loads.iter().map(|load| of(load).load(Ordering::Relaxed)).sum()
        };
        let (answered, failures) = (sum(|load| &load.answered), sum(|load| &load.failed));
        for load in loads.iter().filter(|_| pool) {
            let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let (answered, failed) = (of(&load.answered), of(&load.failed));
            say!(
                "\n  {}: {answered} answered by its own service, {failed} failed or by another's",
                load.name
            );
        }
        say!(
            "\n  {answered} requests answered, {failures} failed; at most {} members, {} at the end, {} tunnels cut",
            played.most,
            played.left,
            played.cut
        );
        good = failures == 0
            && played.cut == 0
            && played.most > FEW as usize
            && played.left == FEW as usize;
        if once {
            break;
        }
        say!("\n  The next wave; Ctrl-C ends the demo.\n");
    }
    clients.iter().for_each(JoinHandle::abort);
    say!(
        "{}",
        if good {
            "All as expected."
        } else {
            "Something is not as expected; --log-level debug says more."
        }
    );
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A cluster with a CA of its own, and its clients.
fn cluster(name: &'static str, place: usize, wanted: usize) -> Result<(Cluster, Load), Failure> {
    let ca = DevCa::new(TRUST_DOMAIN).map_err(failed("the CA"))?;
    let issue = |account: &str| {
        let id = ca.id("shop", account).map_err(failed("an identity"))?;
        let bundle = ca.issue_pem(&id, IssueOptions::default()).map_err(failed("a certificate"))?;
        let credentials = bundle.credentials().map_err(failed("a certificate"))?;
        Ok::<_, Failure>((id, Identity::fixed(credentials)))
    };
    let (waypoint, identity) = issue("waypoint")?;
    let config = cairn_xds::parse_bytes(Format::Yaml, CONFIG.replace("NAME", name).as_bytes())
        .map_err(|errors| crate::check::broken(&errors))?;
    let config =
        config.meshes.into_iter().next().ok_or_else(|| Failure::new("the demo has no mesh"))?;
    let load = Load {
        name,
        place,
        members: ArcSwap::from_pointee(Vec::new()),
        client: Client::new(issue("web")?.1),
        waypoint,
        wanted: AtomicUsize::new(wanted),
        answered: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    Ok((Cluster { config, identity }, load))
}

/// Clients hear which members there are, a little late.
fn tell(loads: &[Arc<Load>], members: &[Member]) {
    for load in loads {
        let (load, list) = (Arc::clone(load), load.addresses(members));
        tokio::spawn(async move {
            tokio::time::sleep(HEARD).await;
            load.members.store(Arc::new(list));
        });
    }
}

/// One wave, and the calm after it.
async fn wave(
    maker: &mut Maker,
    members: &mut Vec<Member>,
    loads: &[Arc<Load>],
) -> Result<Outcome, Failure> {
    let autoscaler = Autoscaler::new(policy()).map_err(failed("the policy"))?;
    let start = Instant::now();
    let mut scaler = Scaler { poller: Poller::new(POLL), pool: Pool::default(), autoscaler, start };
    let mut outcome = Outcome::default();
    let mut leaving = tokio::task::JoinSet::new();
    let mut said = Instant::now();
    let mut last = (0, 0);
    let mut ticks = tokio::time::interval(POLL);
    loop {
        ticks.tick().await;
        let elapsed = start.elapsed();
        let clients = if (BEGINS..ENDS).contains(&elapsed) { WAVE } else { CALM };
        for load in loads {
            load.wanted.store(clients / loads.len(), Ordering::Relaxed);
        }
        let (demand, decision) = scaler.round(members).await;
        let wanted = decision.desired.map_or(members.len(), |wanted| wanted as usize);
        if (clients, wanted) != last || said.elapsed() >= Duration::from_secs(2) {
            last = (clients, wanted);
            said = Instant::now();
            let filled = (demand.in_flight / WAVE as f64 * BAR as f64).round() as usize;
            let bar = "#".repeat(filled.min(BAR));
            say!(
                "  {:>4.0}s  {clients:>7}  {:>9.0}  {:>6.1}  {wanted:>6}  {:>7}  {bar:<BAR$}  {}",
                elapsed.as_secs_f64(),
                demand.in_flight,
                demand.units,
                members.len(),
                decision.reason
            );
        }
        while members.len() < wanted {
            members.push(maker.member().await?);
        }
        // The youngest goes.
        let gone = members.split_off(wanted.min(members.len()));
        tell(loads, members);
        for member in gone {
            leaving.spawn(member.leave());
        }
        outcome.most = outcome.most.max(members.len());
        outcome.left = members.len();
        let calm = elapsed > ENDS + Duration::from_secs(2) && members.len() <= FEW as usize;
        if calm || elapsed > LIMIT {
            break;
        }
    }
    while let Some(left) = leaving.join_next().await {
        outcome.cut += left.map_err(failed("a member's end"))?;
    }
    Ok(outcome)
}
