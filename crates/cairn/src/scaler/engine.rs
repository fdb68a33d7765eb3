//! Poll, reckon, decide, again and again.

use super::numbers::Numbers;
use super::snapshot::{self, Snapshot};
use super::target::Acting;
use crate::members::{Poller, Source};
use crate::ready::Readiness;
use cairn_autoscale::{Answer, Autoscaler, Decision, Fleet, FleetMean, TenantCaps};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// What readiness waits for.
pub const FIRST_DECISION: &str = "the first decision";
/// A member that is going and has not answered so often is gone.
const GONE_AFTER: u32 = 3;
/// A decision is too old after so many intervals, and not before [`LEAST_AGE`].
const STALE_INTERVALS: u32 = 5;
const LEAST_AGE: Duration = Duration::from_secs(10);

/// Everything that a decision is made of.
pub struct Engine {
    /// Who is polled.
    pub source: Source,
    /// How.
    pub poller: Poller,
    /// How often.
    pub interval: Duration,
    /// How it is decided.
    pub autoscaler: Autoscaler,
    /// Most members, by its policy.
    pub max: u32,
    /// How much a tenant may ask for.
    pub caps: TenantCaps,
    /// Members that are not the target's own.
    pub fixed: u32,
    /// What is scaled, if we know.
    pub acting: Option<watch::Receiver<Acting>>,
    /// Gets each decision.
    pub latest: watch::Sender<Option<Arc<Snapshot>>>,
    /// Counts.
    pub numbers: Arc<Numbers>,
    /// Told of the first decision.
    pub readiness: Arc<Readiness>,
}

#[derive(Default)]
struct State {
    fleet: Fleet,
    /// Polls in a row that a member has not answered.
    failures: HashMap<String, u32>,
    knows_target: bool,
    /// What was wrong with the list of members.
    problem: Option<String>,
    last: Option<(Option<u32>, &'static str)>,
}

impl Engine {
    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut state = State::default();
        let start = Instant::now();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.round(&mut state, start).await;
        }
    }

    async fn round(&mut self, state: &mut State, start: Instant) {
        let roster = self.source.roster();
        if roster.problem != state.problem {
            match &roster.problem {
                Some(problem) => {
                    tracing::warn!(problem, "no list of members; the last one stays");
                }
                None => tracing::info!("members are listed again"),
            }
            state.problem.clone_from(&roster.problem);
        }
        let Some(members) = &roster.members else {
            let why = roster.problem.as_deref().unwrap_or("no list of members has come yet");
            self.readiness.still_missing(FIRST_DECISION, why);
            return;
        };
        let answers = self.poller.round(members, self.interval).await;
        let now = start.elapsed();
        for answer in answers.values() {
            self.numbers.polled(answer.as_ref().err());
        }
        let failed = |name: &str| answers.get(name).is_none_or(Result::is_err);
        let before = std::mem::take(&mut state.failures);
        state.failures = members
            .iter()
            .filter(|member| failed(&member.name))
            .map(|member| {
                let count = before.get(&member.name).copied().unwrap_or(0);
                (member.name.clone(), count.saturating_add(1))
            })
            .collect();
        let there = members.iter().filter(|member| {
            let failures = state.failures.get(&member.name).copied().unwrap_or(0);
            !(member.terminating && failures >= GONE_AFTER)
        });
        state.fleet.poll(
            now,
            there.map(|member| {
                let answer = match answers.get(&member.name) {
                    Some(Ok(report)) => Answer::Report(Box::new(report.clone())),
                    _ if member.starting => Answer::Starting,
                    _ => Answer::Silent,
                };
                (member.name.as_str(), answer)
            }),
        );
        let demand = state.fleet.demand(&self.caps);

        let counted = members.iter().filter(|member| !member.terminating).count();
        let counted = u32::try_from(counted).unwrap_or(u32::MAX);
        let Some(wanted) = self.wanted().await else { return };
        let current = wanted.unwrap_or(counted);
        if wanted.is_some() && !state.knows_target {
            // Pods that have no address yet are in no list: only now is it known what there is to be.
            state.knows_target = true;
            self.autoscaler.hold(now, current);
        }
        let decision = self.autoscaler.decide(now, &demand, current);
        self.numbers.decided(decision.mode);
        say(state, &decision, current);
        let (rows, not_shown) = snapshot::rows(&state.fleet, now, &roster, &answers);
        self.latest.send_replace(Some(Arc::new(Snapshot {
            at: Instant::now(),
            holds_for: (self.interval * STALE_INTERVALS).max(LEAST_AGE),
            mean: FleetMean::of(&state.fleet, now),
            decision,
            demand,
            current,
            current_of_target: wanted.is_some(),
            fixed: self.fixed,
            max: self.max,
            members: rows,
            not_shown,
            not_polled: roster.dropped,
            problem: roster.problem,
        })));
        self.readiness.arrived(FIRST_DECISION);
    }

    /// What the target is to have, and the members beside it: `Some(None)` where there is none or it cannot be read. `None`: the
    /// scaler is going.
    async fn wanted(&mut self) -> Option<Option<u32>> {
        let Some(acting) = &mut self.acting else { return Some(None) };
        // The first decision must not count members while a moment later the target would be known.
        let known = acting.wait_for(|acting| acting.asked).await.ok()?;
        Some(known.scale.as_ref().map(|scale| scale.wanted.saturating_add(self.fixed)))
    }
}

fn say(state: &mut State, decision: &Decision, current: u32) {
    let mode = snapshot::mode(decision.mode);
    if state.last != Some((decision.desired, mode)) {
        state.last = Some((decision.desired, mode));
        let desired =
            decision.desired.map_or("what there is".to_owned(), |desired| desired.to_string());
        tracing::info!(desired, current, mode, reason = decision.reason, "decided");
    }
}
