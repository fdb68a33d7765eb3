//! The memberships in metrics, with what each mesh has to tell.

use super::roster::Roster;
use super::state::{Phase, Registered};
use cairn_proxy::OverloadReading;
use cairn_telemetry::Writer;

/// Writes them.
pub fn write(roster: &Roster, writer: &mut Writer) {
    let memberships = roster.all();
    let help = "Clusters that this member is told to serve.";
    writer.gauge("cairn_pool_clusters", help, &[], memberships.len() as f64);
    for (status, parts) in memberships {
        let seen = status.seen();
        let mesh = status.name.as_str();
        let yes = |is: bool| f64::from(u8::from(is));
        for phase in Phase::ALL {
            let name = phase.to_string();
            let labels = [("mesh", mesh), ("phase", name.as_str())];
            let help = "1 for where the membership is between its begin and its end.";
            writer.gauge("cairn_pool_phase", help, &labels, yes(seen.phase == phase));
        }
        let labels = [("mesh", mesh)];
        let help = "1 while the cluster's istiod shows this member to its ztunnels.";
        let registered = yes(seen.registered == Registered::Yes);
        writer.gauge("cairn_pool_registered", help, &labels, registered);
        let help = "Times that the cluster's istiod showed this member for the first time.";
        writer.counter("cairn_pool_registrations_total", help, &labels, seen.registrations);
        let help = "Times that somebody else deleted this member's entry.";
        writer.counter("cairn_pool_taken_away_total", help, &labels, seen.taken_away);
        let help = "1 when the membership began with what a sibling told.";
        writer.gauge("cairn_pool_warm_start", help, &labels, yes(seen.warm));
        let help = "Seconds in the phase.";
        writer.gauge("cairn_pool_phase_seconds", help, &labels, seen.seconds);
        if let Some(sources) = parts.sources.get() {
            sources.write(writer);
        }
        if let (Some(age), _) = parts.numbers() {
            let help = "Since the cluster's istiod was heard last.";
            writer.gauge("cairn_pool_config_age_seconds", help, &labels, age);
        }
    }
}

/// What is under way of all clusters, and what waits.
pub fn write_overload(reading: OverloadReading, writer: &mut Writer) {
    let OverloadReading { capacity, in_flight, waiting, active_tenants } = reading;
    for (name, help, value) in [
        ("cairn_overload_capacity", "Requests in flight that are let in.", capacity),
        (
            "cairn_overload_in_flight",
            "Requests in flight, and a tenth for each opaque connection.",
            in_flight,
        ),
        ("cairn_overload_waiting", "Requests that wait for their tenant's share.", waiting as f64),
        ("cairn_overload_active_tenants", "Tenants that have a share.", active_tenants as f64),
    ] {
        writer.gauge(name, help, &[], value);
    }
}
