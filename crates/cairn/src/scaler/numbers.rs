//! `cairn_scaler_*`.

use super::snapshot::Snapshot;
use crate::members::PollError;
use cairn_autoscale::{MemberState, Mode};
use cairn_telemetry::Writer;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::snapshot::{mode, state};

const MODES: [Mode; 3] = [Mode::Stable, Mode::Panic, Mode::Hold];
const STATES: [MemberState; 3] =
    [MemberState::Answering, MemberState::Silent, MemberState::Starting];

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Numbers {
    polls: AtomicU64,
    /// By [`PollError::LABELS`].
    poll_failures: [AtomicU64; 5],
    /// By [`MODES`].
    decisions: [AtomicU64; 3],
    applied: AtomicU64,
    apply_failures: AtomicU64,
    keda_answers: AtomicU64,
    keda_errors: AtomicU64,
}

impl Numbers {
    /// One member was polled.
    pub fn polled(&self, failure: Option<&PollError>) {
        self.polls.fetch_add(1, Relaxed);
        let Some(failure) = failure else { return };
        let counters = PollError::LABELS.iter().zip(&self.poll_failures);
        for (_, counter) in counters.filter(|(label, _)| **label == failure.label()) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// It was decided.
    pub fn decided(&self, mode: Mode) {
        for (_, counter) in MODES.iter().zip(&self.decisions).filter(|(known, _)| **known == mode) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The target was changed, or could not be.
    pub fn applied(&self, well: bool) {
        if well { &self.applied } else { &self.apply_failures }.fetch_add(1, Relaxed);
    }

    /// KEDA asked for a value.
    pub fn answered_keda(&self, well: bool) {
        if well { &self.keda_answers } else { &self.keda_errors }.fetch_add(1, Relaxed);
    }

    /// Writes all of them, and the last decision's. `leads`: whether we hold the Lease, where there
    /// is one.
    pub fn write(&self, writer: &mut Writer, snapshot: Option<&Snapshot>, leads: Option<bool>) {
        let Numbers {
            polls,
            poll_failures,
            decisions,
            applied,
            apply_failures,
            keda_answers,
            keda_errors,
        } = self;
        writer.counter("cairn_scaler_polls_total", "Polls of members.", &[], polls.load(Relaxed));
        for (label, counter) in PollError::LABELS.iter().zip(poll_failures) {
            let help = "Polls that gave no load report.";
            let labels = [("reason", *label)];
            writer.counter(
                "cairn_scaler_poll_failures_total",
                help,
                &labels,
                counter.load(Relaxed),
            );
        }
        for (kind, counter) in MODES.iter().zip(decisions) {
            let labels = [("mode", mode(*kind))];
            let help = "Decisions by how they came about.";
            writer.counter("cairn_scaler_decisions_total", help, &labels, counter.load(Relaxed));
        }
        for (name, help, counter) in [
            (
                "cairn_scaler_applied_total",
                "Times that the target's replicas were changed.",
                applied,
            ),
            (
                "cairn_scaler_apply_failures_total",
                "Times that the target could not be read or changed.",
                apply_failures,
            ),
            ("cairn_scaler_keda_answers_total", "Values that KEDA was given.", keda_answers),
            (
                "cairn_scaler_keda_errors_total",
                "Values that KEDA asked for and was not given.",
                keda_errors,
            ),
        ] {
            writer.counter(name, help, &[], counter.load(Relaxed));
        }
        if let Some(leads) = leads {
            let help = "1 while this scaler holds the Lease.";
            writer.gauge("cairn_scaler_lease_held", help, &[], f64::from(u8::from(leads)));
        }
        if let Some(snapshot) = snapshot {
            decision(writer, snapshot);
        }
    }
}

fn decision(writer: &mut Writer, snapshot: &Snapshot) {
    let Snapshot { decision, demand, current, fixed, max, .. } = snapshot;
    let said = (decision.desired, snapshot.desired_of_target());
    if let (Some(members), Some(replicas)) = said
        && !snapshot.is_stale()
    {
        let help = "Replicas that the target is to have; absent while nothing can be said.";
        writer.gauge("cairn_scaler_desired_replicas", help, &[], f64::from(replicas));
        let help = "Members that there are to be, fixed ones and the target's; absent while nothing can be said.";
        writer.gauge("cairn_scaler_desired_members", help, &[], f64::from(members));
    }
    let panic = f64::from(u8::from(decision.mode == Mode::Panic));
    for (name, help, value) in [
        (
            "cairn_scaler_current_replicas",
            "Replicas that the target is asked for, or members that are listed, without fixed ones.",
            f64::from(current.saturating_sub(*fixed)),
        ),
        ("cairn_scaler_fixed_members", "Members that are not the target's own.", f64::from(*fixed)),
        ("cairn_scaler_max_members", "Most members, by the policy.", f64::from(*max)),
        ("cairn_scaler_ready_members", "Members that take traffic.", demand.ready as f64),
        (
            "cairn_scaler_draining_members",
            "Members that finish what they have.",
            demand.draining as f64,
        ),
        ("cairn_scaler_panic", "1 while bursts rule and nobody goes.", panic),
        ("cairn_scaler_demand_units", "Demand of the last poll, in capacity units.", demand.units),
        ("cairn_scaler_demand_stable_units", "Its stable average.", decision.stable_units),
        ("cairn_scaler_demand_panic_units", "Its short average.", decision.panic_units),
        (
            "cairn_scaler_capped_units",
            "Capacity units that tenants ask for beyond their caps.",
            demand.capped_units,
        ),
        ("cairn_scaler_headroom_units", "Units added for what is coming.", decision.headroom_units),
        ("cairn_scaler_slope_units_per_second", "Growth of the demand.", decision.slope),
        (
            "cairn_scaler_cold_start_seconds",
            "Cold start that is reckoned with.",
            decision.cold_start.as_secs_f64(),
        ),
        (
            "cairn_scaler_list_known",
            "1 while the list of members is the one of now.",
            f64::from(u8::from(snapshot.problem.is_none())),
        ),
        (
            "cairn_scaler_decision_age_seconds",
            "Since the last decision.",
            snapshot.at.elapsed().as_secs_f64(),
        ),
    ] {
        writer.gauge(name, help, &[], value);
    }
    let silent = demand.members.saturating_sub(demand.answering + demand.starting);
    for (kind, count) in STATES.iter().zip([demand.answering, silent, demand.starting]) {
        let help = "Members by how they stand; a silent one counts as busy.";
        writer.gauge("cairn_scaler_members", help, &[("state", state(*kind))], count as f64);
    }
}
