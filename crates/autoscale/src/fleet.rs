//! One figure for a fleet: how many reference members' worth of work there is.
//!
//! A member's pressure is the largest share of anything that it can run out of. A member that does
//! not answer is busy, never gone: it counts with what it said last, and with no less than those that
//! answer. One that is known to be starting and has never answered carries nothing yet.

use crate::load::{LoadReport, SCHEMA_VERSION, TenantLoad};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Tasks that could run waited so long at the busiest member: it is in need, whatever its shares say.
pub const HARD_DELAY_MILLISECONDS: f64 = 20.0;
/// Starts of which the cold start is a percentile.
const REMEMBERED_STARTS: usize = 50;
/// Members that are kept apart; what is beyond is not looked at and said so.
pub const MAX_MEMBERS: usize = 10_000;

/// How much of the fleet a tenant may ask for, in capacity units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TenantCaps {
    /// Of a tenant without a cap of its own; `None`: no bound.
    pub default: Option<f64>,
    /// By mesh and namespace.
    pub of: BTreeMap<(String, String), f64>,
}

/// What one poll of a member gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Its report. One of another schema is no answer.
    Report(Box<LoadReport>),
    /// Nothing, though it should take traffic.
    Silent,
    /// Nothing, and nobody says that it takes traffic already.
    Starting,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// Answered the last poll.
    Answering,
    /// Did not, and counts as busy.
    Silent,
    /// Has never answered and takes no traffic yet.
    Starting,
}

/// One member, for people.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemberView<'a> {
    /// Its address or name.
    pub name: &'a str,
    /// How it stands.
    pub state: MemberState,
    /// Since its last report; `None`: there was none.
    pub age: Option<Duration>,
    /// Its last report.
    pub report: Option<&'a LoadReport>,
    /// Largest share of its capacity, between its last two reports.
    pub pressure: f64,
    /// Requests in flight, on average between them.
    pub in_flight: f64,
}

/// What is known of the members.
#[derive(Debug, Default)]
pub struct Fleet {
    members: BTreeMap<String, Member>,
    /// Milliseconds from exec to ready of the last starts.
    starts: Vec<f64>,
    started: BTreeSet<String>,
}

#[derive(Debug)]
struct Member {
    /// When its last report was read, and the report.
    last: Option<(Duration, LoadReport)>,
    /// What it used between its last two reports.
    usage: Option<Usage>,
    state: MemberState,
}

#[derive(Debug, Clone, Default)]
struct Usage {
    /// Largest share of its capacity.
    pressure: f64,
    size: f64,
    in_flight: f64,
    tenants: Vec<TenantUsage>,
    capacity_in_flight: f64,
    shed: u64,
    delay: f64,
    ready: bool,
    draining: bool,
}

#[derive(Debug, Clone)]
struct TenantUsage {
    /// Mesh and namespace.
    tenant: (String, String),
    in_flight: f64,
    shed: u64,
}

/// What the fleet has to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    /// In capacity units: 3.2 keeps 3.2 reference members wholly busy.
    pub units: f64,
    /// What tenants asked for beyond their caps, and which `units` does not hold.
    pub capped_units: f64,
    /// Members by their addresses or names.
    pub members: usize,
    /// Those that answered.
    pub answering: usize,
    /// Those that take traffic, as far as they are known.
    pub ready: usize,
    /// Those that finish what they have.
    pub draining: usize,
    /// Those that have never answered and take no traffic yet; the others are judged by.
    pub starting: usize,
    /// Requests in flight, for people.
    pub in_flight: f64,
    /// Something was refused for lack of room since the previous poll, or tasks wait too long. What
    /// a tenant beyond its cap was refused does not count.
    pub overloaded: bool,
    /// 95th percentile of the last starts, exec to ready.
    pub cold_start: Option<Duration>,
}

impl From<Option<LoadReport>> for Answer {
    fn from(report: Option<LoadReport>) -> Self {
        report.map_or(Answer::Silent, |report| Answer::Report(Box::new(report)))
    }
}

impl Fleet {
    /// Takes in what one round of polls gave, for each member that there is. Members that are not
    /// named any more are forgotten.
    pub fn poll<'a, A: Into<Answer>>(
        &mut self,
        now: Duration,
        answers: impl IntoIterator<Item = (&'a str, A)>,
    ) {
        let mut there = BTreeSet::new();
        for (name, answer) in answers {
            if there.len() == MAX_MEMBERS {
                break;
            }
            there.insert(name.to_owned());
            let member = self.members.entry(name.to_owned()).or_insert(Member {
                last: None,
                usage: None,
                state: MemberState::Starting,
            });
            let report = match answer.into() {
                Answer::Report(report) if report.version == SCHEMA_VERSION => *report,
                // Who has answered once has taken traffic, whatever is said of it.
                Answer::Starting if member.last.is_none() => {
                    member.state = MemberState::Starting;
                    continue;
                }
                Answer::Report(_) | Answer::Silent | Answer::Starting => {
                    member.state = MemberState::Silent;
                    continue;
                }
            };
            member.state = MemberState::Answering;
            if let Some(start) = &report.cold_start
                && report.ready
                && start.ready_milliseconds > 0.0
                && self.started.insert(report.instance.clone())
            {
                if self.starts.len() == REMEMBERED_STARTS {
                    self.starts.remove(0);
                }
                self.starts.push(start.ready_milliseconds);
            }
            member.take(now, report);
        }
        self.members.retain(|name, _| there.contains(name));
        let living: BTreeSet<&str> = self
            .members
            .values()
            .filter_map(|member| Some(member.last.as_ref()?.1.instance.as_str()))
            .collect();
        self.started.retain(|instance| living.contains(instance.as_str()));
    }

    /// What all of it comes to.
    pub fn demand(&self, caps: &TenantCaps) -> Demand {
        let mut demand = Demand {
            members: self.members.len(),
            cold_start: self.cold_start(),
            ..Demand::default()
        };
        let known = || self.members.values().filter_map(|member| member.usage.as_ref());
        let answering = || {
            self.members
                .values()
                .filter(|member| member.answers())
                .filter_map(|member| member.usage.as_ref())
        };
        let sizes: f64 = answering().map(|usage| usage.size).sum();
        let mean = if sizes > 0.0 {
            answering().map(|usage| usage.pressure * usage.size).sum::<f64>() / sizes
        } else {
            0.0
        };
        let mean_size = match known().count() {
            0 => 1.0,
            count => known().map(|usage| usage.size).sum::<f64>() / count as f64,
        };
        let beyond = self.beyond_caps(caps);
        for member in self.members.values() {
            demand.answering += usize::from(member.answers());
            demand.starting += usize::from(member.state == MemberState::Starting);
            match &member.usage {
                Some(usage) => {
                    let pressure =
                        if member.answers() { usage.pressure } else { usage.pressure.max(mean) };
                    demand.units += pressure * usage.size;
                    demand.in_flight += usage.in_flight;
                    demand.ready += usize::from(usage.ready && !usage.draining);
                    demand.draining += usize::from(usage.draining);
                    demand.overloaded |= member.answers()
                        && (usage.shed_within_caps(&beyond) > 0
                            || usage.delay > HARD_DELAY_MILLISECONDS);
                }
                None if member.state == MemberState::Starting => {}
                None => demand.units += mean * mean_size,
            }
        }
        demand.capped_units = beyond.values().fold(0.0, |sum, units| sum + units).min(demand.units);
        demand.units -= demand.capped_units;
        demand
    }

    /// The members by their names.
    pub fn members(&self, now: Duration) -> impl Iterator<Item = MemberView<'_>> {
        self.members.iter().map(move |(name, member)| MemberView {
            name,
            state: member.state,
            age: member.last.as_ref().map(|(at, _)| now.saturating_sub(*at)),
            report: member.last.as_ref().map(|(_, report)| report),
            pressure: member.usage.as_ref().map_or(0.0, |usage| usage.pressure),
            in_flight: member.usage.as_ref().map_or(0.0, |usage| usage.in_flight),
        })
    }

    /// Capacity units that tenants ask for beyond their caps, measured by requests in flight.
    fn beyond_caps(&self, caps: &TenantCaps) -> BTreeMap<&(String, String), f64> {
        let mut units: BTreeMap<&(String, String), f64> = BTreeMap::new();
        if caps.default.is_none() && caps.of.is_empty() {
            return units;
        }
        for usage in self.members.values().filter_map(|member| member.usage.as_ref()) {
            if usage.capacity_in_flight > 0.0 {
                for TenantUsage { tenant, in_flight, shed: _ } in &usage.tenants {
                    *units.entry(tenant).or_default() +=
                        in_flight / usage.capacity_in_flight * usage.size;
                }
            }
        }
        units.retain(|tenant, units| {
            let cap = caps.of.get(*tenant).copied().or(caps.default);
            *units -= cap.unwrap_or(f64::INFINITY);
            *units > 0.0
        });
        units
    }

    fn cold_start(&self) -> Option<Duration> {
        let mut starts = self.starts.clone();
        starts.sort_by(f64::total_cmp);
        let rank = (starts.len() as f64 * 0.95).ceil() as usize;
        let milliseconds = starts.get(rank.checked_sub(1)?)?;
        Duration::try_from_secs_f64(milliseconds / 1000.0).ok()
    }
}

impl Member {
    fn answers(&self) -> bool {
        self.state == MemberState::Answering
    }

    fn take(&mut self, now: Duration, report: LoadReport) {
        let before = self.last.take().filter(|(at, before)| {
            before.instance == report.instance
                && *at < now
                && before.uptime_seconds < report.uptime_seconds
        });
        self.usage = Some(Usage::between(before.as_ref().map(|(_, report)| report), &report));
        self.last = Some((now, report));
    }
}

impl Usage {
    /// From totals where there are two reports of one process, else from what is open now: the first
    /// report of a process says nothing about rates.
    fn between(before: Option<&LoadReport>, now: &LoadReport) -> Self {
        let seconds = before.map_or(0.0, |before| now.uptime_seconds - before.uptime_seconds);
        let rate = |total: fn(&LoadReport) -> f64| match before {
            Some(before) if seconds > 0.0 => ((total(now) - total(before)) / seconds).max(0.0),
            _ => 0.0,
        };
        let in_flight = match before {
            Some(_) if seconds > 0.0 => rate(|report| report.in_flight_seconds_total),
            _ => now.in_flight,
        };
        let bytes =
            rate(|report| report.received_bytes_total as f64 + report.sent_bytes_total as f64);
        let capacity = &now.capacity;
        let shares = [
            (in_flight, capacity.in_flight),
            (rate(|report| report.cpu_seconds_total), capacity.cpu),
            (bytes, capacity.bytes_per_second),
            (now.connections.hbone as f64, capacity.connections),
            (now.memory_bytes as f64, capacity.memory_bytes as f64),
        ];
        let pressure = shares
            .into_iter()
            .filter(|(value, most)| value.is_finite() && *most > 0.0)
            .map(|(value, most)| value / most)
            .fold(0.0, f64::max);
        Usage {
            pressure,
            size: capacity.size(),
            in_flight,
            tenants: now
                .tenants
                .iter()
                .filter(|tenant| tenant.namespace != "*")
                .map(|tenant| TenantUsage::between(before, tenant, seconds))
                .collect(),
            capacity_in_flight: capacity.in_flight,
            shed: before.map_or(0, |before| now.shed_total.saturating_sub(before.shed_total)),
            delay: now.executor_delay_p99_milliseconds,
            ready: now.ready,
            draining: now.draining,
        }
    }

    /// What was refused since the report before, but for tenants that ask for more than they may.
    fn shed_within_caps(&self, beyond: &BTreeMap<&(String, String), f64>) -> u64 {
        let theirs = self.tenants.iter().filter(|usage| beyond.contains_key(&usage.tenant));
        self.shed.saturating_sub(theirs.map(|usage| usage.shed).sum())
    }
}

impl TenantUsage {
    fn between(before: Option<&LoadReport>, now: &TenantLoad, seconds: f64) -> Self {
        let same =
            |before: &&TenantLoad| before.mesh == now.mesh && before.namespace == now.namespace;
        // A tenant that was among the others before is not blamed for what they were refused.
        let known = before.and_then(|before| before.tenants.iter().find(same));
        // As for the instance; a report without integrals has the gauge.
        let average =
            known.filter(|_| seconds > 0.0 && now.in_flight_seconds_total > 0.0).map(|known| {
                let total = now.in_flight_seconds_total - known.in_flight_seconds_total;
                (total / seconds).max(0.0)
            });
        TenantUsage {
            tenant: (now.mesh.clone(), now.namespace.clone()),
            in_flight: average.unwrap_or(now.in_flight),
            shed: known.map_or(0, |known| now.shed_total.saturating_sub(known.shed_total)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Capacity, ColdStart};

    fn report(instance: &str, uptime: f64, integral: f64) -> LoadReport {
        LoadReport {
            version: SCHEMA_VERSION,
            instance: instance.to_owned(),
            uptime_seconds: uptime,
            ready: true,
            in_flight: 50.0,
            in_flight_seconds_total: integral,
            capacity: Capacity { in_flight: 100.0, cpu: 2.0, units: 1.0, ..Capacity::default() },
            ..LoadReport::default()
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn demand(fleet: &Fleet) -> Demand {
        fleet.demand(&TenantCaps::default())
    }

    #[test]
    fn the_average_between_polls_counts() {
        let mut fleet = Fleet::default();
        fleet.poll(secs(0), [("a", Some(report("a", 10.0, 0.0)))]);
        assert_eq!(demand(&fleet).units, 0.5, "the first poll has only the gauge");
        fleet.poll(secs(2), [("a", Some(report("a", 12.0, 40.0)))]);
        assert_eq!(demand(&fleet).units, 0.2);
    }

    #[test]
    fn the_largest_share_is_the_pressure() {
        let mut fleet = Fleet::default();
        let before = report("a", 10.0, 0.0);
        let after = LoadReport { cpu_seconds_total: 3.0, ..report("a", 12.0, 40.0) };
        fleet.poll(secs(0), [("a", Some(before))]);
        fleet.poll(secs(2), [("a", Some(after))]);
        assert_eq!(demand(&fleet).units, 0.75);
    }

    #[test]
    fn a_restart_is_no_negative_load() {
        let mut fleet = Fleet::default();
        fleet.poll(secs(0), [("a", Some(report("a-1", 100.0, 900.0)))]);
        fleet.poll(secs(2), [("a", Some(report("a-2", 1.0, 1.0)))]);
        assert_eq!(demand(&fleet).units, 0.5);
    }

    #[test]
    fn the_silent_are_busy_and_the_unlisted_are_gone() {
        let mut fleet = Fleet::default();
        fleet.poll(
            secs(0),
            [("a", Some(report("a", 1.0, 0.0))), ("b", Some(report("b", 1.0, 0.0)))],
        );
        let busy = report("b", 3.0, 160.0);
        fleet.poll(secs(2), [("a", None), ("b", Some(busy)), ("never", None)]);
        let found = demand(&fleet);
        assert!((found.units - 3.0 * 0.8).abs() < 1e-9, "all as busy as the one that answers");
        assert_eq!((found.members, found.answering, found.ready), (3, 1, 2));
        fleet.poll(secs(4), [("b", Some(report("b", 5.0, 320.0)))]);
        assert_eq!(demand(&fleet).members, 1);
    }

    #[test]
    fn who_starts_carries_nothing_until_it_has_answered() {
        let mut fleet = Fleet::default();
        let busy = || Answer::from(Some(report("a", 1.0, 0.0)));
        fleet.poll(secs(0), [("a", busy()), ("new", Answer::Starting), ("lost", Answer::Silent)]);
        let found = demand(&fleet);
        assert_eq!(found.units, 1.0, "one that works, one that counts as it");
        assert_eq!((found.members, found.answering, found.starting), (3, 1, 1));
        fleet.poll(secs(2), [("a", Answer::Starting), ("new", Answer::Silent)]);
        let found = demand(&fleet);
        assert_eq!((found.starting, found.answering), (0, 0), "it has taken traffic");
        let views: Vec<_> = fleet.members(secs(5)).collect();
        let [a, new] = views.as_slice() else { unreachable!() };
        assert_eq!((a.state, a.age, a.in_flight), (MemberState::Silent, Some(secs(5)), 50.0));
        assert_eq!((new.state, new.age), (MemberState::Silent, None));
    }

    #[test]
    fn what_a_tenant_beyond_its_cap_is_refused_is_no_need() {
        let caps = TenantCaps { default: Some(0.3), ..TenantCaps::default() };
        let shed = |uptime, loud, all| {
            let tenant = TenantLoad {
                mesh: "m".to_owned(),
                namespace: "loud".to_owned(),
                in_flight: 80.0,
                shed_total: loud,
                ..TenantLoad::default()
            };
            LoadReport { tenants: vec![tenant], shed_total: all, ..report("a", uptime, 0.0) }
        };
        let mut fleet = Fleet::default();
        fleet.poll(secs(0), [("a", Some(shed(1.0, 5, 5)))]);
        fleet.poll(secs(2), [("a", Some(shed(3.0, 9, 9)))]);
        assert!(!fleet.demand(&caps).overloaded, "the loud one alone");
        assert!(demand(&fleet).overloaded, "without a cap it is need");
        fleet.poll(secs(4), [("a", Some(shed(5.0, 9, 10)))]);
        assert!(fleet.demand(&caps).overloaded, "somebody else");
    }

    #[test]
    fn another_schema_is_no_answer() {
        let mut fleet = Fleet::default();
        let other = LoadReport { version: 2, ..report("a", 1.0, 0.0) };
        fleet.poll(secs(0), [("a", Some(other))]);
        assert_eq!(demand(&fleet).answering, 0);
    }

    #[test]
    fn a_tenant_asks_for_its_cap_at_most() {
        let mut fleet = Fleet::default();
        let tenant = |namespace: &str, in_flight| TenantLoad {
            mesh: "m".to_owned(),
            namespace: namespace.to_owned(),
            in_flight,
            ..TenantLoad::default()
        };
        let report = LoadReport {
            in_flight: 90.0,
            tenants: vec![tenant("loud", 80.0), tenant("calm", 10.0)],
            ..report("a", 1.0, 0.0)
        };
        fleet.poll(secs(0), [("a", Some(report))]);
        let caps = TenantCaps { default: Some(0.3), ..TenantCaps::default() };
        let found = fleet.demand(&caps);
        assert!((found.units - 0.4).abs() < 1e-9 && (found.capped_units - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_tenants_average_between_polls_counts() {
        let mut fleet = Fleet::default();
        let with = |uptime, total| {
            let tenant = TenantLoad {
                mesh: "m".to_owned(),
                namespace: "loud".to_owned(),
                in_flight: 50.0,
                in_flight_seconds_total: total,
                ..TenantLoad::default()
            };
            LoadReport { tenants: vec![tenant], ..report("a", uptime, total) }
        };
        let caps = TenantCaps { default: Some(0.1), ..TenantCaps::default() };
        fleet.poll(secs(0), [("a", Some(with(1.0, 10.0)))]);
        assert!((fleet.demand(&caps).capped_units - 0.4).abs() < 1e-9, "there is only the gauge");
        fleet.poll(secs(2), [("a", Some(with(3.0, 50.0)))]);
        assert!((fleet.demand(&caps).capped_units - 0.1).abs() < 1e-9, "20 of 100 on average");
    }

    #[test]
    fn shedding_and_delay_are_need() {
        let mut fleet = Fleet::default();
        fleet.poll(secs(0), [("a", Some(report("a", 1.0, 0.0)))]);
        assert!(!demand(&fleet).overloaded);
        let shed = LoadReport { shed_total: 1, ..report("a", 3.0, 1.0) };
        fleet.poll(secs(2), [("a", Some(shed.clone()))]);
        assert!(demand(&fleet).overloaded);
        fleet.poll(secs(4), [("a", Some(LoadReport { uptime_seconds: 5.0, ..shed.clone() }))]);
        assert!(!demand(&fleet).overloaded, "only what was shed since the last poll");
        let slow =
            LoadReport { uptime_seconds: 7.0, executor_delay_p99_milliseconds: 21.0, ..shed };
        fleet.poll(secs(6), [("a", Some(slow))]);
        assert!(demand(&fleet).overloaded);
    }

    #[test]
    fn cold_start_is_a_percentile_of_starts_seen_once() {
        let mut fleet = Fleet::default();
        for round in 0..3 {
            let members: Vec<(String, LoadReport)> = (0..20)
                .map(|number| {
                    let name = format!("m{number}");
                    let start = ColdStart {
                        ready_milliseconds: 100.0 * f64::from(number + 1),
                        ..ColdStart::default()
                    };
                    let report = LoadReport {
                        cold_start: Some(start),
                        ..report(&name, f64::from(round + 1), 0.0)
                    };
                    (name, report)
                })
                .collect();
            fleet.poll(
                secs(round as u64),
                members.iter().map(|(name, report)| (name.as_str(), Some(report.clone()))),
            );
        }
        assert_eq!(fleet.starts.len(), 20);
        assert_eq!(demand(&fleet).cold_start, Some(Duration::from_millis(1900)));
    }
}
