//! The last decision with all that it was made of, for everybody who asks.

use crate::members::{Member, PollError, Roster};
use cairn_autoscale::{Decision, Demand, Fleet, FleetMean, LoadReport, MemberState, Mode};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Members that the page shows; the others are counted.
const MAX_ROWS: usize = 2_000;
/// Longest text of a member's that is shown.
const MAX_TEXT: usize = 200;

/// What was decided, and why.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When.
    pub at: Instant,
    /// After so long it is too old to be acted on.
    pub holds_for: Duration,
    /// The decision.
    pub decision: Decision,
    /// What it was made of.
    pub demand: Demand,
    /// How many members were asked for at the time, the fixed ones among them.
    pub current: u32,
    /// Whether that is what the target says, and the fixed ones; else it is the number of members.
    pub current_of_target: bool,
    /// Members that are not the target's own.
    pub fixed: u32,
    /// Most members, by the policy.
    pub max: u32,
    /// For members that rebalance.
    pub mean: FleetMean,
    /// By name.
    pub members: Vec<Row>,
    /// Members beyond what is shown.
    pub not_shown: usize,
    /// Members beyond what is polled.
    pub not_polled: usize,
    /// What is wrong with the list of members.
    pub problem: Option<String>,
}

/// One member.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of its pod, or its address.
    pub name: String,
    /// Where it is polled.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// `answering`, `silent` (counts as busy) or `starting` (carries nothing yet).
    pub state: &'static str,
    /// Why it gave no report.
    pub failure: Option<String>,
    /// Seconds from its last report to the decision.
    pub age_seconds: Option<f64>,
    /// Takes traffic, by its own word.
    pub ready: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// Largest share of its capacity.
    pub pressure: f64,
    /// Requests in flight.
    pub in_flight: f64,
    /// HBONE connections.
    pub connections: u64,
    /// Size beside the reference member.
    pub units: f64,
    /// Requests and connections that it refused for lack of room, since its start.
    pub shed_total: u64,
}

impl Snapshot {
    /// Whether it is too old to be acted on.
    pub fn is_stale(&self) -> bool {
        self.at.elapsed() > self.holds_for
    }

    /// What the target is to have; `None`: nothing can be said.
    pub fn desired_of_target(&self) -> Option<u32> {
        self.decision.desired.map(|desired| of_target(desired, self.fixed))
    }

    /// The members, with what is known of them as old as it is now.
    pub fn members_now(&self) -> Vec<Row> {
        let since = self.at.elapsed().as_secs_f64();
        let mut rows = self.members.clone();
        for age in rows.iter_mut().filter_map(|row| row.age_seconds.as_mut()) {
            *age += since;
        }
        rows
    }

    /// The mode in a word.
    pub fn mode(&self) -> &'static str {
        mode(self.decision.mode)
    }
}

/// What is left to the target of so many members: at least one, for a target of 0 is one that is off.
pub fn of_target(members: u32, fixed: u32) -> u32 {
    members.saturating_sub(fixed).max(1)
}

/// A mode in a word.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Stable => "stable",
        Mode::Panic => "panic",
        Mode::Hold => "hold",
    }
}

/// A state in a word.
pub fn state(state: MemberState) -> &'static str {
    match state {
        MemberState::Answering => "answering",
        MemberState::Silent => "silent",
        MemberState::Starting => "starting",
    }
}

/// The table of members, and how many there are beyond it.
pub fn rows(
    fleet: &Fleet,
    now: Duration,
    roster: &Roster,
    answers: &HashMap<String, Result<LoadReport, PollError>>,
) -> (Vec<Row>, usize) {
    let listed: HashMap<&str, &Member> = roster
        .members
        .iter()
        .flat_map(|members| members.iter())
        .map(|member| (member.name.as_str(), member))
        .collect();
    let mut not_shown = 0;
    let mut rows = Vec::new();
    for view in fleet.members(now) {
        if rows.len() == MAX_ROWS {
            not_shown += 1;
            continue;
        }
        let member = listed.get(view.name);
        let report = view.report;
        let zone = member.and_then(|member| member.zone.clone());
        let zone = zone.or_else(|| report.map(|report| report.zone.clone()));
        let failure = answers.get(view.name).and_then(|answer| answer.as_ref().err());
        rows.push(Row {
            name: short(view.name),
            address: member.map_or_else(String::new, |member| short(&member.authority)),
            zone: short(&zone.unwrap_or_default()),
            state: state(view.state),
            failure: failure.map(|failure| short(&failure.to_string())),
            age_seconds: view.age.map(|age| age.as_secs_f64()),
            ready: report.is_some_and(|report| report.ready),
            draining: report.is_some_and(|report| report.draining),
            pressure: view.pressure,
            in_flight: view.in_flight,
            connections: report.map_or(0, |report| report.connections.hbone),
            units: report.map_or(0.0, |report| report.capacity.size()),
            shed_total: report.map_or(0, |report| report.shed_total),
        });
    }
    (rows, not_shown)
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_gets_what_the_fixed_ones_leave() {
        for (members, fixed, left) in [
            (6, 0, 6),
            (6, 2, 4),
            (3, 2, 1),
            (2, 2, 1),
            (1, 5, 1),
            (0, 0, 1),
            (u32::MAX, u32::MAX, 1),
        ] {
            assert_eq!(of_target(members, fixed), left, "{members} with {fixed} fixed");
        }
    }
}
