//! From translated configuration to what requests are handled by.
//!
//! Istiod pushes in bursts: what comes shortly after one another becomes one snapshot, and under a
//! constant stream there is one every [`LONGEST_WAIT`]. Compiling runs on the configuration's own thread.

mod ahead;

use self::ahead::ahead;
use super::feeder::{Feeder, Yield};
use arc_swap::ArcSwap;
use cairn_identity::{Identity, TrustDomains};
use cairn_proxy::MeshInstance;
use cairn_router::compile::Compiler;
use cairn_router::spec::Resources;
use cairn_xds::translate::{Facts, MAX_FINDINGS, Unsupported};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

/// A snapshot is made when nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(5);
/// A snapshot is made so long after the first change that it does not have.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// A snapshot waits so long for the endpoints of clusters that are in it for the first time: routes lead there at once,
/// and the push that brought them does not bring endpoints along. Envoy: such a cluster is warming, and routes to it
/// answer 503.
const LONGEST_WARMING: Duration = Duration::from_secs(2);
/// A snapshot waits so long for the listeners that belong to clusters that went: routes still lead to those clusters, and
/// would answer 503. Istio sends CDS before LDS.
const LONGEST_TORN: Duration = Duration::from_secs(1);
/// Findings that are logged for one snapshot; all are on the admin page.
const MAX_LOGGED: usize = 20;
/// Findings that are remembered, so that each is logged once.
const MAX_REMEMBERED: usize = 4096;

/// What was published last, for those who look.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Snapshots so far.
    pub snapshots: u64,
    /// Changes of the feeder that are in the last one.
    pub revision: u64,
    /// From the first to the last step of making the last one.
    pub took: Duration,
    /// What holds for the whole waypoint.
    pub facts: Arc<Facts>,
    /// What fails closed.
    pub unsupported: Arc<Vec<Unsupported>>,
    /// What is done in another way than asked for.
    pub degraded: Arc<Vec<Unsupported>>,
}

/// Makes snapshots.
pub struct Publisher {
    feeder: Feeder,
    compiler: Compiler,
    instance: Arc<MeshInstance>,
    resources: Arc<ArcSwap<Resources>>,
    report: watch::Sender<Published>,
    said: BTreeSet<String>,
    /// Endpoint lists that the last snapshot did without; it is not waited for them again.
    missing: BTreeSet<String>,
}

impl Publisher {
    /// For what `feeder` is fed; `resources` is what the snapshot was compiled from.
    pub fn new(
        feeder: Feeder,
        instance: Arc<MeshInstance>,
        resources: Arc<ArcSwap<Resources>>,
    ) -> Self {
        Publisher {
            feeder,
            compiler: Compiler::new(instance.name()),
            instance,
            resources,
            report: watch::Sender::default(),
            said: BTreeSet::new(),
            missing: BTreeSet::new(),
        }
    }

    /// For those who look.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.report.subscribe()
    }

    /// Publishes whatever changes, for ever.
    pub async fn run(mut self) {
        loop {
            self.feeder.changed().await;
            let first = tokio::time::Instant::now();
            self.settled(first + LONGEST_WAIT).await;
            let torn = first + LONGEST_TORN;
            while self.feeder.is_torn() && tokio::time::Instant::now() < torn {
                tokio::select! {
                    () = self.feeder.changed() => {}
                    () = sleep_until(torn) => self.feeder.give_up_torn(),
                }
            }
            let warm = first + LONGEST_WARMING;
            while self.is_warming() && tokio::time::Instant::now() < warm {
                self.guarded(Publisher::publish_ahead);
                tokio::select! {
                    () = self.feeder.changed() => {}
                    () = sleep_until(warm) => {}
                }
            }
            // A warm start has published what it was told of.
            if self.has_all() {
                continue;
            }
            self.guarded(Publisher::publish);
            // Answers that came in the meantime are taken before the next.
            tokio::task::yield_now().await;
        }
    }

    /// A defect must not end the configuration: the last snapshot stays, and the next starts afresh.
    fn guarded(&mut self, publish: fn(&mut Publisher)) {
        if catch_unwind(AssertUnwindSafe(|| publish(self))).is_err() {
            tracing::error!("making a snapshot failed, the last one stays");
            self.start_afresh();
        }
    }

    /// Nothing has changed for [`QUIET`], or it is `latest`.
    async fn settled(&self, latest: tokio::time::Instant) {
        loop {
            tokio::select! {
                () = self.feeder.changed() => {}
                () = sleep(QUIET) => return,
                () = sleep_until(latest) => return,
            }
        }
    }

    /// The last snapshot has every change.
    fn has_all(&self) -> bool {
        let last = self.report.borrow();
        last.snapshots > 0 && last.revision == self.feeder.revision()
    }

    /// Endpoints of clusters that the last snapshot did not have are on their way.
    fn is_warming(&self) -> bool {
        self.report.borrow().snapshots > 0
            && !self.feeder.awaited_endpoints().is_subset(&self.missing)
    }

    /// Forgets what was compiled.
    pub fn start_afresh(&mut self) {
        self.compiler = Compiler::new(self.instance.name());
    }

    /// Publishes what is no longer allowed, while all else waits.
    fn publish_ahead(&mut self) {
        let Yield { resources, facts, .. } = self.feeder.take();
        set_trust_domains(&self.instance.identity().clone(), &facts, Step::Before);
        if let Some(resources) = ahead(&self.resources.load(), &resources) {
            let mesh = self.compiler.compile_lossy(&resources);
            self.resources.store(Arc::new(resources));
            let _said_with_the_whole = self.instance.publish(mesh);
        }
    }

    /// Publishes what there is.
    pub fn publish(&mut self) {
        let began = Instant::now();
        self.missing = self.feeder.awaited_endpoints();
        let Yield { revision, resources, facts, mut unsupported, degraded } = self.feeder.take();
        let identity = self.instance.identity().clone();
        // Whoever goes, goes before the policies; whoever comes, comes after them.
        set_trust_domains(&identity, &facts, Step::Before);
        let mesh = self.compiler.compile_lossy(&resources);
        let room = MAX_FINDINGS.saturating_sub(unsupported.len());
        unsupported.extend(mesh.warnings().iter().take(room).map(|text| of_compiler(text)));
        let findings = unsupported.iter().map(|finding| ("fails closed", finding));
        let findings =
            findings.chain(degraded.iter().map(|finding| ("done in another way", finding)));
        let findings = findings.map(|(what, Unsupported { kind, name, reason })| {
            format!("{kind} {name}: {what}: {reason}")
        });
        let mut found: BTreeSet<String> = findings.collect();
        self.resources.store(Arc::new(resources));
        let unusable = self.instance.publish(mesh).into_iter();
        let unusable: Vec<Unsupported> = unusable
            .map(|(cluster, reason)| Unsupported {
                kind: "cluster",
                name: cluster.as_ref().to_owned(),
                reason: format!("its TLS settings cannot be used, so it is not dialled: {reason}"),
            })
            .collect();
        found.extend(unusable.iter().map(|of| format!("cluster {}: {}", of.name, of.reason)));
        unsupported.extend(unusable);
        unsupported.truncate(MAX_FINDINGS);
        set_trust_domains(&identity, &facts, Step::After);
        self.say(found);
        self.report.send_modify(|published| {
            *published = Published {
                snapshots: published.snapshots + 1,
                revision,
                took: began.elapsed(),
                facts: Arc::new(facts),
                unsupported: Arc::new(unsupported),
                degraded: Arc::new(degraded),
            }
        });
    }

    /// Logs what was not said before; what is gone may be said again.
    fn say(&mut self, found: BTreeSet<String>) {
        let news: Vec<&String> = found.difference(&self.said).collect();
        for finding in news.iter().take(MAX_LOGGED) {
            tracing::warn!("{finding}");
        }
        if news.len() > MAX_LOGGED {
            tracing::warn!("{} more, see /unsupported on the admin port", news.len() - MAX_LOGGED);
        }
        self.said = found.into_iter().take(MAX_REMEMBERED).collect();
    }
}

/// What the compiler does not honour, listed beside what the translation does not. Its text begins with a path.
fn of_compiler(warning: &str) -> Unsupported {
    let (place, reason) = warning.split_once(": ").unwrap_or(("", warning));
    Unsupported { kind: "configuration", name: place.to_owned(), reason: reason.to_owned() }
}

/// When trust domains are set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Before new policies: what is no longer named goes.
    Before,
    /// After them: what is named comes.
    After,
}

/// Whose clients are let in. A listener that names nobody lets everybody of the mesh's roots in at Envoy;
/// here those of our own trust domain stay.
fn set_trust_domains(identity: &Identity, facts: &Facts, step: Step) {
    if facts.trust_domains.is_empty() {
        return;
    }
    let current = identity.trust_domains();
    let stays = |domain: &&String| {
        step == Step::After || current.iter().any(|known| known == domain.as_str())
    };
    let named: Vec<String> = facts.trust_domains.iter().filter(stays).cloned().collect();
    if named.is_empty() {
        return;
    }
    match TrustDomains::new(named) {
        Ok(domains) => {
            if identity.set_trust_domains(domains) && step == Step::After {
                tracing::info!(trust_domains = ?facts.trust_domains, "clients of these are let in");
            }
        }
        Err(error) => tracing::error!(
            trust_domains = ?facts.trust_domains, %error,
            "the listener's trust domains cannot be used, those before stay"
        ),
    }
}
