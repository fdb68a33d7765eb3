//! The middle of a membership: the member is registered, and stays so.
//!
//! It is registered only while it could serve: with a certificate that is valid, an open port, and a configuration. Whether
//! it is registered is what the cluster's istiod tells everybody: our own entry among the workloads of the mesh.

use super::cluster::{Course, Ending, Serving};
use super::node;
use super::registration::{Registration, StayAway};
use super::state::Registered;
use std::time::{Duration, Instant, SystemTime};

/// How often the registration is looked at, besides each snapshot.
const LOOK: Duration = Duration::from_millis(250);
/// An entry that is gone for so long was taken away: istiod may replace one with two pushes.
const GONE: Duration = Duration::from_secs(2);
/// How long the end of a registration stream may take.
const WITHDRAW: Duration = Duration::from_secs(1);

impl Course {
    /// Registers, and stays registered until it is told to end. Returns how, and whether anybody may know of us.
    pub(super) async fn stay(&mut self, serving: &Serving) -> (Ending, bool) {
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
                        self.status.registered(Registered::Asking, status.last_error);
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
    pub(super) fn is_known(&self, serving: &Serving) -> bool {
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
}
