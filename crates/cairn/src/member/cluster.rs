//! One cluster's membership, from its begin to its end.
//!
//! certificate → (siblings) → configuration → port (`start`) → register, stay registered (`stay`) … → deregister → accept →
//! finish (`leave`).

use super::roster::A_CLUSTER;
use super::settings::Who;
use super::state::{Phase, Status};
use crate::admin::{EnvoyPages, Started};
use crate::istiod::{self, Control};
use crate::logging::Logging;
use crate::ready::Readiness;
use cairn_identity::Identity;
use cairn_identity::ca::RunningCa;
use cairn_identity::istiod::Overrides;
use cairn_pool::config::{Cluster, Pool};
use cairn_proxy::{MeshInstance, Overload, Running, Workers};
use cairn_telemetry::Telemetry;
use cairn_xds::ads::AdsStatus;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What readiness calls the certificate.
pub(super) const CERTIFICATE: &str = "certificate";

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
pub(super) struct Course {
    pub(super) cluster: Cluster,
    pub(super) house: House,
    pub(super) status: Arc<Status>,
    pub(super) parts: Arc<Parts>,
    pub(super) ending: watch::Receiver<Option<Ending>>,
}

/// What serves.
pub(super) struct Serving {
    pub(super) identity: Identity,
    pub(super) instance: Arc<MeshInstance>,
    pub(super) control: Control,
    pub(super) running: Running,
    /// Keeps the certificate fresh.
    pub(super) _ca: RunningCa,
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
}
