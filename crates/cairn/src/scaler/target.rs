//! What is scaled: its replicas are read before each decision, and changed by the one scaler that
//! holds the Lease.
//!
//! A change is made only on a decision that is fresh and was made about the number that the target has
//! at this moment, and only if nobody changes the target between our reading and writing it. Whatever
//! fails, deciding goes on.

use super::numbers::Numbers;
use super::snapshot::Snapshot;
use crate::terminal::say;
use cairn_kube::{Cause, Client, Error, Leadership, Scale, Target};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What becomes of decisions.
#[derive(Debug, Clone, Default)]
pub struct Acting {
    /// The API server was asked at least once.
    pub asked: bool,
    /// What the target said last.
    pub scale: Option<Scale>,
    /// In words.
    pub doing: String,
    /// Why the target cannot be read or changed at present.
    pub problem: Option<String>,
}

/// How far we go.
pub enum Mode {
    /// Only read.
    Read,
    /// Print what would be done.
    DryRun,
    /// Do it while the Lease is ours.
    Apply(watch::Receiver<Leadership>),
}

/// Carries decisions out.
pub struct Actuator {
    /// The API server.
    pub client: Client,
    /// What is scaled.
    pub target: Target,
    /// How far we go.
    pub mode: Mode,
    /// How often the target is read, where no decisions come.
    pub interval: Duration,
    /// Decisions.
    pub latest: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Told what becomes of them.
    pub state: watch::Sender<Acting>,
    /// Counts.
    pub numbers: Arc<Numbers>,
}

/// What is to be done about a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing, and why.
    Nothing(String),
    /// So many.
    Set(u32),
}

impl Actuator {
    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut printed = None;
        let mut lead = Lead::default();
        loop {
            let found = self.client.scale(&self.target).await;
            // The decision that led to this turn; the next one has the number that is read now.
            let snapshot = self.latest.borrow_and_update().clone();
            let outcome = match found {
                Ok(scale) => self.act(scale, snapshot.as_deref(), &mut printed).await,
                Err(error) => {
                    self.numbers.applied(false);
                    Err(error)
                }
            };
            self.tell(outcome);
            if let Mode::Apply(leadership) = &self.mode {
                lead.tell(&leadership.borrow().clone());
            }
            tokio::select! {
                changed = self.latest.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.interval) => {}
            }
        }
    }

    async fn act(
        &mut self,
        scale: Scale,
        snapshot: Option<&Snapshot>,
        printed: &mut Option<(u32, u32)>,
    ) -> Result<(Scale, String), Error> {
        let members = match step(&scale, snapshot) {
            Step::Nothing(why) => return Ok((scale, why)),
            Step::Set(members) => members,
        };
        let from = scale.wanted;
        let reason = snapshot.map_or("", |snapshot| snapshot.decision.reason.as_str());
        match &self.mode {
            Mode::Read => Ok((scale, "only reads: --apply is not given".to_owned())),
            Mode::DryRun => {
                let text = format!("would set {} from {from} to {members}: {reason}", self.target);
                if printed.replace((from, members)) != Some((from, members)) {
                    say!("{text}");
                }
                Ok((scale, text))
            }
            Mode::Apply(leadership) => {
                let leadership = leadership.borrow().clone();
                if !leadership.holds() {
                    let holder = leadership.holder;
                    let problem = leadership.problem.map(|problem| format!(" ({problem})"));
                    let problem = problem.unwrap_or_default();
                    return Ok((
                        scale,
                        format!("does nothing: the Lease is held by `{holder}`{problem}"),
                    ));
                }
                let set =
                    self.client.set_scale(&self.target, members, &scale.resource_version).await;
                match set {
                    Ok(scale) => {
                        self.numbers.applied(true);
                        tracing::info!(from, to = members, target = %self.target, reason, "scaled");
                        Ok((
                            scale,
                            format!("set {} from {from} to {members}: {reason}", self.target),
                        ))
                    }
                    Err(error) if error.cause == Cause::Conflict => Ok((
                        scale,
                        "somebody else changed the target; the next decision counts".to_owned(),
                    )),
                    Err(error) => {
                        self.numbers.applied(false);
                        Err(error)
                    }
                }
            }
        }
    }

    fn tell(&self, outcome: Result<(Scale, String), Error>) {
        let before = self.state.borrow().problem.clone();
        let problem = outcome.as_ref().err().map(ToString::to_string);
        match (&before, &problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                tracing::warn!(problem, target = %self.target, "cannot act; deciding goes on");
            }
            (Some(_), None) => tracing::info!(target = %self.target, "can act again"),
            _ => {}
        }
        self.state.send_modify(|state| {
            state.asked = true;
            match outcome {
                Ok((scale, doing)) => {
                    state.scale = Some(scale);
                    state.doing = doing;
                }
                Err(_) => "does nothing: the target cannot be read or changed"
                    .clone_into(&mut state.doing),
            }
            state.problem = problem;
        });
    }
}

/// What was said of the Lease.
#[derive(Default)]
struct Lead {
    holds: bool,
    problem: Option<String>,
}

impl Lead {
    fn tell(&mut self, now: &Leadership) {
        if now.holds() != self.holds {
            self.holds = now.holds();
            if self.holds {
                tracing::info!("holds the Lease: this scaler acts");
            } else {
                let holder = now.holder.as_str();
                tracing::warn!(
                    holder,
                    "does not hold the Lease any more: this scaler only decides"
                );
            }
        }
        let problem = now.problem.as_ref().map(ToString::to_string);
        if problem != self.problem {
            if let Some(problem) = &problem {
                tracing::warn!(problem, "the Lease cannot be had");
            }
            self.problem = problem;
        }
    }
}

fn step(scale: &Scale, snapshot: Option<&Snapshot>) -> Step {
    let nothing = |why: &str| Step::Nothing(why.to_owned());
    if scale.wanted == 0 {
        // As an HPA does: who sets 0 means it.
        return nothing("scaling is off: the target is set to 0");
    }
    let Some(snapshot) = snapshot else { return nothing("no decision yet") };
    if snapshot.is_stale() {
        return nothing("the last decision is too old");
    }
    let Some(desired) = snapshot.desired_of_target() else {
        return nothing("nothing can be said: what there is stays");
    };
    if desired == scale.wanted {
        return nothing("the target is as it is to be");
    }
    let there = scale.wanted.saturating_add(snapshot.fixed);
    if !snapshot.current_of_target || snapshot.current != there {
        return nothing("the target was changed since the decision; the next one counts");
    }
    Step::Set(desired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_autoscale::{Decision, Demand, FleetMean};
    use tokio::time::Instant;

    fn scale(wanted: u32) -> Scale {
        Scale { wanted, present: wanted, resource_version: "1".to_owned() }
    }

    fn snapshot(desired: Option<u32>, current: u32) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            holds_for: Duration::from_secs(10),
            decision: Decision {
                desired,
                mode: cairn_autoscale::Mode::Stable,
                stable_units: 0.0,
                panic_units: 0.0,
                headroom_units: 0.0,
                slope: 0.0,
                cold_start: Duration::ZERO,
                by_stable: 0,
                by_panic: 0,
                reason: String::new(),
            },
            demand: Demand::default(),
            current,
            current_of_target: true,
            fixed: 0,
            max: 200,
            mean: FleetMean::default(),
            members: Vec::new(),
            not_shown: 0,
            not_polled: 0,
            problem: None,
        }
    }

    #[tokio::test]
    async fn only_a_fresh_decision_about_what_there_is_counts() {
        assert_eq!(step(&scale(4), Some(&snapshot(Some(6), 4))), Step::Set(6));
        let old = Snapshot { holds_for: Duration::ZERO, ..snapshot(Some(6), 4) };
        tokio::time::sleep(Duration::from_millis(1)).await;
        let counted = Snapshot { current_of_target: false, ..snapshot(Some(6), 4) };
        for (scale, snapshot) in [
            (scale(0), Some(snapshot(Some(6), 0))),
            (scale(4), None),
            (scale(4), Some(snapshot(None, 4))),
            (scale(4), Some(snapshot(Some(4), 4))),
            (scale(5), Some(snapshot(Some(6), 4))),
            (scale(4), Some(old)),
            (scale(4), Some(counted)),
        ] {
            assert!(matches!(step(&scale, snapshot.as_ref()), Step::Nothing(_)), "{snapshot:?}");
        }
    }

    #[tokio::test]
    async fn members_beside_the_target_are_not_asked_of_it() {
        for (target, desired, fixed, wanted) in [
            (2, 6, 2, Some(4)),
            (4, 6, 2, None),
            (6, 4, 3, Some(1)),
            (1, 3, 2, None),
            (1, 2, 2, None),
            (3, 2, 5, Some(1)),
            (0, 6, 2, None),
        ] {
            let decided = Snapshot { fixed, ..snapshot(Some(desired), target + fixed) };
            let step = step(&scale(target), Some(&decided));
            let set = if let Step::Set(members) = step { Some(members) } else { None };
            assert_eq!(set, wanted, "{target} and {fixed} beside it, {desired} desired: {step:?}");
        }
        let of_the_target_alone = Snapshot { fixed: 2, ..snapshot(Some(6), 4) };
        assert!(matches!(step(&scale(4), Some(&of_the_target_alone)), Step::Nothing(_)));
    }
}
