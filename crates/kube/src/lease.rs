//! One of several processes holds a Lease (`coordination.k8s.io/v1`) and acts; the others wait.
//!
//! The rules are those of client-go's leader election: the holder renews; whoever sees for a whole
//! duration that nobody renewed takes over; every write is conditional on the version that was read, so
//! that of two only one succeeds. A holder that cannot renew stops being one before others may take
//! over. Clocks of machines are never compared: each measures by its own how long it saw no change.

use crate::client::{Client, answer};
use crate::error::{Cause, Error, Request};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec as Spec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Which Lease, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSpec {
    /// Namespace.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Our name; no two processes may have the same.
    pub identity: String,
    /// How long a Lease holds that is not renewed, from 1 s; whole seconds count. Usual: 15 s.
    pub duration: Duration,
}

/// Who leads.
#[derive(Debug, Clone, Default)]
pub struct Leadership {
    /// We do, until then; `None`: we do not.
    until: Option<Instant>,
    /// Who holds the Lease as far as is known; empty: nobody.
    pub holder: String,
    /// Why the Lease cannot be read or written at present.
    pub problem: Option<Arc<Error>>,
}

/// A candidacy that goes on until it is released or dropped.
#[derive(Debug)]
pub struct Election {
    state: watch::Receiver<Leadership>,
    release: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Leadership {
    /// Whether we lead at this moment.
    pub fn holds(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

impl Election {
    /// Starts to stand for election.
    pub fn start(client: &Client, spec: LeaseSpec) -> Self {
        let (sender, state) = watch::channel(Leadership::default());
        let (release, released) = oneshot::channel();
        let candidate = Candidate {
            api: client.api(&spec.namespace),
            duration: spec.duration.max(Duration::from_secs(1)),
            spec,
            seen: None,
        };
        let task = tokio::spawn(candidate.run(sender, released));
        Election { state, release: Some(release), task }
    }

    /// The state of now.
    pub fn leadership(&self) -> Leadership {
        self.state.borrow().clone()
    }

    /// The state, and its changes.
    pub fn watch(&self) -> watch::Receiver<Leadership> {
        self.state.clone()
    }

    /// Gives the Lease up, so that another can take over at once.
    pub async fn release(mut self) {
        if let Some(release) = self.release.take() {
            let _gone = release.send(());
        }
        let _ended = (&mut self.task).await;
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Candidate {
    api: Api<Lease>,
    spec: LeaseSpec,
    duration: Duration,
    /// The version of another's Lease, and when we saw it first.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    async fn run(mut self, state: watch::Sender<Leadership>, mut released: oneshot::Receiver<()>) {
        // As client-go's defaults are to each other: 15 s, 10 s, 2 s.
        let deadline = self.duration * 2 / 3;
        let pause = self.duration * 2 / 15;
        loop {
            let asked = Instant::now();
            // A call that hangs must not make us believe in a Lease that has run out.
            let tried = tokio::select! {
                tried = tokio::time::timeout(deadline, self.attempt()) => tried,
                _ = &mut released => break,
            };
            let until = asked + deadline;
            state.send_modify(|leadership| match tried {
                Ok(Ok(holder)) => {
                    leadership.until = (holder == self.spec.identity).then_some(until);
                    leadership.holder = holder;
                    leadership.problem = None;
                }
                Ok(Err(error)) => {
                    if error.cause == Cause::Conflict {
                        leadership.until = None;
                    }
                    leadership.problem = Some(Arc::new(error));
                }
                Err(_elapsed) => {
                    let cause = Cause::Unreachable(format!("not within {deadline:?}"));
                    let error = Error { request: self.request("update"), cause };
                    leadership.problem = Some(Arc::new(error));
                }
            });
            let jitter = rand::random_range(0.8..1.2);
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
                _ = &mut released => break,
            }
        }
        let held = state.borrow().holds();
        state.send_modify(|leadership| leadership.until = None);
        if held && let Err(error) = self.give_up().await {
            tracing::warn!(%error, "the Lease could not be given up; it runs out by itself");
        }
    }

    /// Renews, takes or leaves the Lease; returns its holder.
    async fn attempt(&mut self) -> Result<String, Error> {
        let found = answer(|| self.request("get"), self.api.get_opt(&self.spec.name)).await?;
        let Some(lease) = found else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.spec.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.ours(&Spec::default())),
            };
            let params = PostParams::default();
            answer(|| self.request("create"), self.api.create(&params, &lease)).await?;
            return Ok(self.spec.identity.clone());
        };
        let old = lease.spec.clone().unwrap_or_default();
        let holder = old.holder_identity.clone().unwrap_or_default();
        if holder != self.spec.identity && !holder.is_empty() && !self.has_run_out(&lease, &old) {
            return Ok(holder);
        }
        let mut mine = lease;
        mine.spec = Some(self.ours(&old));
        self.replace(&mine).await?;
        self.seen = None;
        Ok(self.spec.identity.clone())
    }

    /// Whether we have seen no change for as long as its holder promised to renew it.
    fn has_run_out(&mut self, lease: &Lease, spec: &Spec) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let promised = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let promised = promised.map_or(self.duration, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() >= promised,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn ours(&self, old: &Spec) -> Spec {
        let now = || Some(MicroTime(Timestamp::now()));
        let kept = old.holder_identity.as_deref() == Some(self.spec.identity.as_str());
        Spec {
            holder_identity: Some(self.spec.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            renew_time: now(),
            acquire_time: if kept { old.acquire_time.clone() } else { now() },
            lease_transitions: match (kept, old.holder_identity.is_some()) {
                (false, true) => Some(old.lease_transitions.unwrap_or(0).saturating_add(1)),
                _ => old.lease_transitions.or(Some(0)),
            },
            ..old.clone()
        }
    }

    /// The version in the object's metadata makes it conditional.
    async fn replace(&self, lease: &Lease) -> Result<(), Error> {
        let params = PostParams::default();
        let call = self.api.replace(&self.spec.name, &params, lease);
        answer(|| self.request("update"), call).await.map(drop)
    }

    async fn give_up(&self) -> Result<(), Error> {
        let found = answer(|| self.request("get"), self.api.get_opt(&self.spec.name)).await?;
        let Some(mut lease) = found else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.spec.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.replace(&lease).await
    }

    fn request(&self, verb: &'static str) -> Request {
        Request {
            verb,
            group: "coordination.k8s.io".to_owned(),
            resource: "leases".to_owned(),
            namespace: self.spec.namespace.clone(),
            name: self.spec.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
