//! One cluster: its entries are kept true to the members, and the pool's objects in place.
//!
//! Each cluster has a keeper of its own, so that one whose API server is away holds up no other. Nothing is watched:
//! each round starts from what the API server has, and a deletion counts only for the version that was judged.

use super::super::cluster::{self, ENTRY, GATEWAY, GROUP, NAMESPACE, kind_of, place, title};
use super::super::found::Prober;
use super::numbers::Numbers;
use super::tokens::Tokens;
use super::watcher::Registered;
use cairn_kube::{Cause, Client, Error, Kind, Leadership, Selection, Version};
use cairn_pool::config::{Cluster, Pool};
use cairn_pool::objects::{self, FIELD_MANAGER};
use cairn_pool::registrar::{Entry, Ledger, Probe, Step, View, Weights, shards, weight};
use futures::StreamExt;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two looks at the pool's objects.
const OBJECTS_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after an API server did not answer; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Strangers that are probed at a time.
const AT_A_TIME: usize = 64;

/// Keeps one cluster.
pub struct Keeper {
    /// The cluster.
    pub cluster: Cluster,
    /// The pool.
    pub pool: Pool,
    /// Members as they stand; `None`: we do not lead.
    pub view: watch::Receiver<Option<Arc<View>>>,
    /// Whether we lead.
    pub leadership: watch::Receiver<Leadership>,
    /// Asks strangers.
    pub prober: Prober,
    /// How long an entry without a member stays.
    pub patience: Duration,
    /// Told who has an entry.
    pub registered: Registered,
    /// The Secret with the members' tokens.
    pub tokens: Tokens,
    /// Counts.
    pub numbers: Arc<Numbers>,
}

/// What is remembered while we lead.
struct Memory {
    ledger: Ledger,
    weights: Weights,
    /// Weight of the WorkloadGroup.
    usual: u64,
    objects_due: Instant,
    conflicts: BTreeSet<(String, String)>,
    pause: Duration,
    hold: Instant,
    /// Gateways that were given an address, by uid.
    addressed: BTreeSet<String>,
}

impl Keeper {
    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut client = self.client().await;
        let mut memory = self.fresh();
        while self.view.changed().await.is_ok() {
            let view = self.view.borrow_and_update().clone();
            let Some(view) = view else {
                memory = self.fresh();
                self.tokens.forget();
                continue;
            };
            if Instant::now() < memory.hold {
                continue;
            }
            match self.round(&client, &mut memory, &view).await {
                Ok(()) => memory.pause = PAUSE,
                Err(_held) => {
                    memory.hold =
                        Instant::now() + memory.pause.mul_f64(rand::random_range(0.8..1.2));
                    memory.pause = (memory.pause * 2).min(LONGEST_PAUSE);
                    // Another address or token may be in the kubeconfig by now.
                    client = self.client().await;
                }
            }
        }
    }

    fn fresh(&self) -> Memory {
        let now = Instant::now();
        Memory {
            ledger: Ledger::new(self.patience),
            weights: Weights::default(),
            usual: 0,
            objects_due: now,
            conflicts: BTreeSet::new(),
            pause: PAUSE,
            hold: now,
            addressed: BTreeSet::new(),
        }
    }

    /// A client, as soon as its kubeconfig can be read.
    async fn client(&self) -> Client {
        let mut pause = PAUSE;
        loop {
            match cluster::client(&self.cluster).await {
                Ok(client) => {
                    self.told("access", None);
                    return client;
                }
                Err(failure) => self.told("access", Some(failure.message().to_owned())),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Notes what came of something, and logs it where it is news. `Err`: the API server is away, or knows us no more.
    fn note(&self, part: &'static str, outcome: Result<(), Failures>) -> Result<(), Away> {
        match outcome {
            Ok(()) => {
                self.told(part, None);
                Ok(())
            }
            Err(failures) => {
                self.numbers.failed(&self.cluster.name);
                self.told(part, Some(failures.text()));
                if failures.0.iter().any(is_away) { Err(Away) } else { Ok(()) }
            }
        }
    }

    fn told(&self, part: &'static str, problem: Option<String>) {
        let cluster = self.cluster.name.as_str();
        if self.numbers.outcome(cluster, part, problem.clone()) {
            match problem {
                Some(problem) => {
                    tracing::warn!(
                        cluster,
                        part,
                        problem,
                        "something is wrong there; other clusters go on"
                    )
                }
                None => tracing::info!(cluster, part, "can act there again"),
            }
        }
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().holds()
    }

    async fn round(
        &mut self,
        client: &Client,
        memory: &mut Memory,
        view: &View,
    ) -> Result<(), Away> {
        let outcome = self.entries(client, memory, view).await;
        self.note("entries", outcome)?;
        if Instant::now() >= memory.objects_due {
            memory.objects_due = Instant::now() + OBJECTS_INTERVAL;
            let outcome = self.objects(client, memory).await;
            self.note("objects", outcome)?;
            if !self.leads() {
                return Ok(());
            }
            let minted = self.tokens.keep(client, &self.cluster, &self.pool).await;
            let minted = minted.map(|expires| {
                if let Some(expires) = expires {
                    self.numbers.token(&self.cluster.name, expires);
                }
            });
            // Of the Secret another API server decides than of all else here: it holds nothing up.
            let _reported = self.note("tokens", minted.map_err(Failures::from));
        }
        Ok(())
    }

    /// Lists, judges and changes the entries.
    async fn entries(
        &self,
        client: &Client,
        memory: &mut Memory,
        view: &View,
    ) -> Result<(), Failures> {
        if self.cluster.address.is_some() {
            // Entries have an address there by which no member is known here.
            return Ok(());
        }
        let namespace = self.cluster.namespace(&self.pool);
        let listed = client.list(&ENTRY, Selection { namespace, ..Selection::default() }).await?;
        let group = self.cluster.workload_group(&self.pool);
        let (objects, entries): (Vec<&Value>, Vec<Entry>) =
            listed.iter().filter_map(|object| Some((object, Entry::read(object, group)?))).unzip();
        let addresses = entries.iter().filter_map(|entry| entry.address).collect();
        self.registered.lock().insert(self.cluster.name.clone(), addresses);
        let strangers = futures::stream::iter(Ledger::strangers(&entries, view))
            .map(|address| async move {
                (address, matches!(self.prober.probe(address).await, Probe::Answers(_)))
            })
            .buffer_unordered(AT_A_TIME)
            .collect::<BTreeMap<IpAddr, bool>>()
            .await;
        let now = std::time::Instant::now();
        let steps = memory.ledger.judge(now, &entries, view, &strangers);
        self.report(memory, &entries, &steps);
        let mut failures = Failures::default();
        let mut stay = Vec::new();
        for ((object, entry), step) in objects.into_iter().zip(entries).zip(steps) {
            let Step::Delete(why) = step else {
                stay.push(entry);
                continue;
            };
            if !self.leads() {
                return Ok(());
            }
            match client.delete(&ENTRY, namespace, &entry.name, &Version::of(object)).await {
                Ok(()) => {
                    memory.ledger.deleted(now, &entry, why);
                    self.numbers.deleted(why);
                    tracing::info!(
                        cluster = self.cluster.name,
                        entry = entry.name,
                        reason = why.label(),
                        "deleted"
                    );
                }
                // It has changed since: the next round judges it anew.
                Err(error) if error.cause == Cause::Conflict => {}
                Err(error) => failures.add(error),
            }
        }
        memory.weights.keep(&stay);
        if let Err(error) = self.change(client, memory, view, &stay).await {
            failures.add(error);
        }
        failures.outcome()
    }

    /// Weights and shards of the entries that stay.
    async fn change(
        &self,
        client: &Client,
        memory: &mut Memory,
        view: &View,
        entries: &[Entry],
    ) -> Result<(), Error> {
        let member = |entry: &Entry| view.members.get(&entry.address?);
        let living: BTreeSet<IpAddr> = entries
            .iter()
            .filter(|entry| member(entry).is_some_and(|member| member.lives()))
            .filter_map(|entry| entry.address)
            .collect();
        let gateway = self.cluster.gateway(&self.pool);
        let labels = shards::changes(gateway, &self.cluster.shards, entries, &living);
        let mean = weight::mean(view);
        let namespace = self.cluster.namespace(&self.pool);
        for (entry, labels) in entries.iter().zip(labels) {
            let mut change = Map::new();
            if !labels.is_empty() {
                let labels: Map<String, Value> = labels
                    .into_iter()
                    .map(|(label, add)| (label, if add { "true".into() } else { Value::Null }))
                    .collect();
                change.insert("metadata".to_owned(), json!({ "labels": labels }));
            }
            if let Some(member) = member(entry) {
                let wanted = memory.weights.wanted(entry, memory.usual, member, mean);
                if wanted != entry.weight {
                    let wanted = if wanted == 0 { Value::Null } else { wanted.into() };
                    change.insert("spec".to_owned(), json!({ "weight": wanted }));
                }
            }
            if change.is_empty() {
                continue;
            }
            if !self.leads() {
                return Ok(());
            }
            let change = Value::Object(change);
            match client.merge(&ENTRY, namespace, &entry.name, &change).await {
                Ok(()) => {
                    tracing::info!(cluster = self.cluster.name, entry = entry.name, %change, "changed");
                }
                Err(error) if error.cause == Cause::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Logs each conflict once, and counts those that there are.
    fn report(&self, memory: &mut Memory, entries: &[Entry], steps: &[Step]) {
        let mut conflicts = BTreeSet::new();
        for (entry, step) in entries.iter().zip(steps) {
            let Step::Conflict(what) = step else { continue };
            let key = (entry.name.clone(), entry.connected_at.clone());
            if !memory.conflicts.contains(&key) {
                tracing::warn!(
                    cluster = self.cluster.name,
                    entry = entry.name,
                    connected_at = entry.connected_at,
                    "{what}; it stays"
                );
            }
            conflicts.insert(key);
        }
        self.numbers.entries(&self.cluster.name, entries.len(), conflicts.len());
        memory.conflicts = conflicts;
    }

    /// Makes the pool's objects that are missing, and gives Gateways their address. What is somebody else's is let be.
    async fn objects(&self, client: &Client, memory: &mut Memory) -> Result<(), Failures> {
        let mut failures = Failures::default();
        let mut foreign = Vec::new();
        for wanted in objects::of(&self.cluster, &self.pool) {
            let Some(kind) = kind_of(&wanted).filter(|kind| **kind != NAMESPACE) else { continue };
            if !self.leads() {
                return Ok(());
            }
            match self.made(client, kind, &wanted).await {
                Ok(found) if !objects::is_ours(&found) => foreign.push(title(&wanted)),
                Ok(found) => {
                    if *kind == GROUP {
                        memory.usual = found["spec"]["template"]["weight"].as_u64().unwrap_or(0);
                    }
                    if *kind == GATEWAY && objects::lacks_address(&found) {
                        let given = self.give_address(client, memory, &found).await;
                        given.unwrap_or_else(|error| failures.add(error));
                    }
                }
                // Another request would not be answered either.
                Err(error) if is_away(&error) => return Err(error.into()),
                Err(error) => failures.add(error),
            }
        }
        let problem = (!foreign.is_empty()).then(|| {
            format!(
                "not the pool's: {}; cairn pool install --apply --adopt takes it over",
                foreign.join(", ")
            )
        });
        self.told("foreign", problem);
        failures.outcome()
    }

    /// The object as it is, or as it is made.
    async fn made(&self, client: &Client, kind: &Kind, wanted: &Value) -> Result<Value, Error> {
        let (namespace, name) = place(wanted);
        if let Some(found) = client.object(kind, namespace, name).await? {
            return Ok(found);
        }
        let (cluster, object) = (self.cluster.name.as_str(), title(wanted));
        tracing::warn!(cluster, object, "is missing, and is made");
        client.apply(kind, wanted, FIELD_MANAGER, false).await
    }

    /// Until a Gateway has an address it binds nobody, and no policy holds.
    async fn give_address(
        &self,
        client: &Client,
        memory: &mut Memory,
        gateway: &Value,
    ) -> Result<(), Error> {
        let (cluster, object) = (self.cluster.name.as_str(), title(gateway));
        let statuses = objects::statuses(&self.cluster, &self.pool);
        let Some(status) = statuses.iter().find(|status| place(status) == place(gateway)) else {
            return Ok(());
        };
        client.apply_status(&GATEWAY, status, FIELD_MANAGER).await?;
        let uid = gateway["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if memory.addressed.insert(uid) {
            tracing::info!(cluster, object, "has its address");
        } else {
            tracing::warn!(
                cluster,
                object,
                "somebody had taken its address away: nobody was policed"
            );
        }
        Ok(())
    }
}

/// An API server that does not answer, or not to us.
struct Away;

fn is_away(error: &Error) -> bool {
    matches!(error.cause, Cause::Unreachable(_) | Cause::Unauthorized(_))
}

/// Requests that failed, one of each kind: of several rights that are missing all are named.
#[derive(Default)]
struct Failures(Vec<Error>);

impl Failures {
    fn add(&mut self, error: Error) {
        let of = |error: &Error| (error.request.verb, error.request.resource.clone());
        if !self.0.iter().any(|known| of(known) == of(&error)) {
            self.0.push(error);
        }
    }

    fn outcome(self) -> Result<(), Failures> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    fn text(&self) -> String {
        self.0.iter().map(Error::to_string).collect::<Vec<_>>().join("; ")
    }
}

impl From<Error> for Failures {
    fn from(error: Error) -> Self {
        Failures(vec![error])
    }
}
