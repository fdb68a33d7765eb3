//! From translated configuration to what requests are handled by.
//!
//! Istiod pushes in bursts: what comes shortly after one another becomes one snapshot, and under a
//! constant stream there is one every [`LONGEST_WAIT`]. Compiling runs on the configuration's own thread.

use super::feeder::{Feeder, Yield};
use arc_swap::ArcSwap;
use cairn_identity::{Identity, TrustDomains};
use cairn_proxy::MeshInstance;
use cairn_router::compile::Compiler;
use cairn_router::spec::Resources;
use cairn_xds::translate::{Facts, Unsupported};
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
            let latest = tokio::time::Instant::now() + LONGEST_WAIT;
            loop {
                tokio::select! {
                    () = self.feeder.changed() => {}
                    () = sleep(QUIET) => break,
                    () = sleep_until(latest) => break,
                }
            }
            // A defect must not end the configuration: the last snapshot stays, and the next starts afresh.
            if catch_unwind(AssertUnwindSafe(|| self.publish())).is_err() {
                tracing::error!("making a snapshot failed, the last one stays");
                self.compiler = Compiler::new(self.instance.name());
            }
            // Answers that came in the meantime are taken before the next.
            tokio::task::yield_now().await;
        }
    }

    /// Publishes what there is.
    pub fn publish(&mut self) {
        let began = Instant::now();
        let Yield { revision, resources, facts, unsupported, degraded } = self.feeder.take();
        set_trust_domains(self.instance.identity(), &facts);
        let mesh = self.compiler.compile_lossy(&resources);
        let findings = unsupported.iter().map(|finding| ("fails closed", finding));
        let findings = findings.chain(degraded.iter().map(|finding| ("done in another way", finding)));
        let findings = findings.map(|(what, Unsupported { kind, name, reason })| {
            format!("{kind} {name}: {what}: {reason}")
        });
        let found: Vec<String> = findings.chain(mesh.warnings().iter().cloned()).collect();
        self.resources.store(Arc::new(resources));
        let unusable = self.instance.publish(mesh).into_iter().map(|(cluster, reason)| {
            format!("cluster {cluster} is not dialled, its TLS settings cannot be used: {reason}")
        });
        self.say(found.into_iter().chain(unusable).collect());
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

/// Whose clients are let in. A listener that names nobody lets everybody of the mesh's roots in at Envoy;
/// here those of our own trust domain stay.
fn set_trust_domains(identity: &Identity, facts: &Facts) {
    if facts.trust_domains.is_empty() {
        return;
    }
    match TrustDomains::new(facts.trust_domains.iter().cloned()) {
        Ok(domains) => {
            if identity.set_trust_domains(domains) {
                tracing::info!(trust_domains = ?facts.trust_domains, "clients of these are let in");
            }
        }
        Err(error) => tracing::error!(
            trust_domains = ?facts.trust_domains, %error,
            "the listener's trust domains cannot be used, those before stay"
        ),
    }
}
