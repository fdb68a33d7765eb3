//! What a member has to know of the others to tell whether it carries more than its share:
//! `GET :15020/fleet` of the scaler.

use crate::fleet::{Fleet, MemberState};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Version of the schema. Fields may be added to one.
pub const SCHEMA_VERSION: u32 = 1;

/// The fleet's load per capacity unit, over the members that answer, are ready and do not drain. A
/// member's fair share is the mean times its own size
/// ([`Capacity::size`](crate::load::Capacity::size)).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetMean {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// Members that there are.
    pub members: usize,
    /// Members that the means are of; 0: there are no means.
    pub counted: usize,
    /// Their size beside the reference member.
    pub capacity_units: f64,
    /// HBONE connections per unit.
    pub hbone_connections: f64,
    /// Tunnels per unit.
    pub tunnels: f64,
    /// Requests in flight per unit.
    pub in_flight: f64,
    /// Largest share of anything a member can run out of, weighted by size.
    pub pressure: f64,
    /// Seconds since these numbers were taken.
    pub age_seconds: f64,
}

impl FleetMean {
    /// The means of now.
    pub fn of(fleet: &Fleet, now: Duration) -> Self {
        let mut mean = FleetMean { version: SCHEMA_VERSION, ..FleetMean::default() };
        for member in fleet.members(now) {
            mean.members += 1;
            let Some(report) = member.report else { continue };
            if member.state != MemberState::Answering || !report.ready || report.draining {
                continue;
            }
            mean.counted += 1;
            let size = report.capacity.size();
            mean.capacity_units += size;
            mean.hbone_connections += report.connections.hbone as f64;
            mean.tunnels += report.connections.tunnels as f64;
            mean.in_flight += member.in_flight;
            mean.pressure += member.pressure * size;
        }
        if mean.capacity_units > 0.0 {
            for sum in [
                &mut mean.hbone_connections,
                &mut mean.tunnels,
                &mut mean.in_flight,
                &mut mean.pressure,
            ] {
                *sum /= mean.capacity_units;
            }
        }
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Capacity, Connections, LoadReport};

    fn report(hbone: u64, units: f64, ready: bool) -> Option<LoadReport> {
        Some(LoadReport {
            version: crate::load::SCHEMA_VERSION,
            instance: format!("{hbone}"),
            uptime_seconds: 1.0,
            ready,
            in_flight: hbone as f64,
            capacity: Capacity { in_flight: 100.0, units, ..Capacity::default() },
            connections: Connections { hbone, tunnels: 2 * hbone, ..Connections::default() },
            ..LoadReport::default()
        })
    }

    #[test]
    fn a_mean_is_by_size_and_of_those_that_work() {
        let mut fleet = Fleet::default();
        let answers = [
            ("a", report(10, 1.0, true)),
            ("b", report(50, 2.0, true)),
            ("c", report(900, 1.0, false)),
            ("d", None),
        ];
        fleet.poll(Duration::ZERO, answers);
        let mean = FleetMean::of(&fleet, Duration::ZERO);
        assert_eq!((mean.members, mean.counted, mean.capacity_units), (4, 2, 3.0));
        assert_eq!((mean.hbone_connections, mean.tunnels, mean.in_flight), (20.0, 40.0, 20.0));
        assert!((mean.pressure - (0.1 + 2.0 * 0.5) / 3.0).abs() < 1e-9);
        assert_eq!(FleetMean::of(&Fleet::default(), Duration::ZERO).pressure, 0.0);
    }
}
