//! `/decision`: the last decision in words and numbers.

use super::snapshot::{Row, Snapshot};
use super::target::Acting;
use cairn_autoscale::Decision;
use cairn_kube::Leadership;
use serde_json::{Value, json};
use std::fmt::Write;

/// Version of the JSON. Fields may be added to one.
const SCHEMA_VERSION: u32 = 1;

/// Everything that is said.
pub struct Report<'a> {
    /// Name of the pool.
    pub pool: &'a str,
    /// The decision, if there is one.
    pub snapshot: Option<&'a Snapshot>,
    /// What the scaler waits for.
    pub waits_for: Option<String>,
    /// What becomes of decisions, where there is a target.
    pub acting: Option<&'a Acting>,
    /// Who acts, where there is a Lease.
    pub leadership: Option<&'a Leadership>,
}

impl Report<'_> {
    /// For programs.
    pub fn json(&self) -> Value {
        let Report { pool, snapshot, waits_for, acting, leadership } = self;
        let mut report = json!({
            "version": SCHEMA_VERSION,
            "pool": pool,
            "waits_for": waits_for,
            "target": acting.map(|acting| json!({
                "wanted": acting.scale.as_ref().map(|scale| scale.wanted),
                "present": acting.scale.as_ref().map(|scale| scale.present),
                "doing": acting.doing,
                "problem": acting.problem,
            })),
            "lease": leadership.map(|leadership| json!({
                "held": leadership.holds(),
                "holder": leadership.holder,
                "problem": leadership.problem.as_ref().map(ToString::to_string),
            })),
        });
        let (Some(snapshot), Some(fields)) = (snapshot, report.as_object_mut()) else {
            return report;
        };
        let Decision {
            desired,
            mode: _,
            stable_units,
            panic_units,
            headroom_units,
            slope,
            cold_start,
            by_stable,
            by_panic,
            reason,
        } = &snapshot.decision;
        let demand = &snapshot.demand;
        let more = json!({
            "age_seconds": snapshot.at.elapsed().as_secs_f64(),
            "stale": snapshot.is_stale(),
            "desired": desired,
            "desired_of_target": snapshot.desired_of_target(),
            "fixed": snapshot.fixed,
            "current": snapshot.current,
            "current_is": if snapshot.current_of_target { "target" } else { "members" },
            "mode": snapshot.mode(),
            "reason": reason,
            "demand": {
                "units": demand.units,
                "stable_units": stable_units,
                "panic_units": panic_units,
                "headroom_units": headroom_units,
                "slope_units_per_second": slope,
                "capped_units": demand.capped_units,
                "in_flight": demand.in_flight,
                "overloaded": demand.overloaded,
            },
            "by_stable": by_stable,
            "by_panic": by_panic,
            "cold_start_seconds": cold_start.as_secs_f64(),
            "cold_start_measured": demand.cold_start.is_some(),
            "counts": {
                "members": demand.members,
                "answering": demand.answering,
                "starting": demand.starting,
                "ready": demand.ready,
                "draining": demand.draining,
                "not_shown": snapshot.not_shown,
                "not_polled": snapshot.not_polled,
            },
            "members_problem": snapshot.problem,
            "members": snapshot.members_now(),
        });
        if let Value::Object(more) = more {
            fields.extend(more);
        }
        report
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Report { pool, snapshot, waits_for, acting, leadership } = self;
        writeln!(out, "pool {pool}")?;
        if let Some(why) = waits_for {
            writeln!(out, "waits: {why}")?;
        }
        if let Some(snapshot) = snapshot {
            numbers(out, snapshot)?;
        }
        if let Some(acting) = acting {
            writeln!(out, "target: {}", acting.doing)?;
            if let Some(problem) = &acting.problem {
                writeln!(out, "  {problem}")?;
            }
        }
        if let Some(leadership) = leadership {
            let held = if leadership.holds() { "ours" } else { "not ours" };
            writeln!(out, "lease: {held}; holder `{}`", leadership.holder)?;
            if let Some(problem) = &leadership.problem {
                writeln!(out, "  {problem}")?;
            }
        }
        if let Some(snapshot) = snapshot {
            table(out, snapshot)?;
        }
        Ok(())
    }
}

fn numbers(out: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    let Snapshot { decision, demand, current, .. } = snapshot;
    let age = snapshot.at.elapsed().as_secs_f64();
    match decision.desired {
        Some(desired) => write!(out, "{desired} members are to be there")?,
        None => write!(out, "nothing can be said")?,
    }
    if let Some(replicas) = snapshot.desired_of_target().filter(|_| snapshot.fixed > 0) {
        write!(out, ", {} of them fixed: {replicas} for the target", snapshot.fixed)?;
    }
    let whose = if snapshot.current_of_target { "asked for" } else { "listed" };
    writeln!(out, "; {current} are {whose} ({age:.1} s ago)")?;
    writeln!(out, "{}: {}", snapshot.mode(), decision.reason)?;
    writeln!(
        out,
        "demand: {:.2} units now, {:.2} stable ({} members), {:.2} short ({} members), {:.2} headroom, \
         {:.3} units/s growth",
        demand.units,
        decision.stable_units,
        decision.by_stable,
        decision.panic_units,
        decision.by_panic,
        decision.headroom_units,
        decision.slope,
    )?;
    if demand.capped_units > 0.0 {
        writeln!(out, "tenants ask for {:.2} units beyond their caps", demand.capped_units)?;
    }
    let measured = if demand.cold_start.is_some() { "measured" } else { "assumed" };
    writeln!(out, "cold start: {:.1} s, {measured}", decision.cold_start.as_secs_f64())?;
    writeln!(
        out,
        "members: {}, of which {} answer, {} start, {} are ready, {} drain",
        demand.members, demand.answering, demand.starting, demand.ready, demand.draining
    )?;
    if let Some(problem) = &snapshot.problem {
        writeln!(out, "the list of members may be old: {problem}")?;
    }
    if snapshot.not_polled > 0 {
        writeln!(out, "{} members are too many to be polled", snapshot.not_polled)?;
    }
    Ok(())
}

fn table(out: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    let width =
        snapshot.members.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(6);
    writeln!(
        out,
        "\n{:width$}  {:9}  {:>7}  {:>8}  {:>9}  {:>11}  notes",
        "member", "state", "age s", "pressure", "in flight", "connections"
    )?;
    for row in &snapshot.members_now() {
        let Row { name, state, age_seconds, pressure, in_flight, connections, .. } = row;
        let age = age_seconds.map_or("never".to_owned(), |age| format!("{age:.1}"));
        let mut notes = Vec::new();
        if row.draining {
            notes.push("drains");
        } else if !row.ready && age_seconds.is_some() {
            notes.push("not ready");
        }
        notes.extend(row.failure.as_deref());
        let notes = notes.join("; ");
        let line = format!(
            "{name:width$}  {state:9}  {age:>7}  {pressure:>8.2}  {in_flight:>9.1}  {connections:>11}  {notes}"
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    if snapshot.not_shown > 0 {
        writeln!(out, "… and {} more", snapshot.not_shown)?;
    }
    Ok(())
}
