//! Scripted members on a clock that the test moves: reports in, decisions out.

#![allow(clippy::unwrap_used)]

use cairn_autoscale::{
    Answer, Autoscaler, Capacity, ColdStart, Decision, Fleet, LoadReport, Mode, Policy, TenantCaps,
    TenantLoad,
};
use std::time::Duration;

/// Seconds between polls, and from when a member is asked for to when it answers.
const POLL: u64 = 2;
const COLD_START: u64 = 10;

/// A pool that does at once what is decided, but for cold starts.
struct Pool {
    scaler: Autoscaler,
    fleet: Fleet,
    caps: TenantCaps,
    second: u64,
    /// When each was asked for, and the integral of what was in flight in it.
    members: Vec<(u64, f64)>,
    /// Members, the first ones, that do not answer.
    silent: usize,
    /// Members, the last ones, that drain.
    draining: usize,
}

/// Requests in flight in the whole pool, by tenant.
type Load = &'static [(&'static str, f64)];

impl Pool {
    fn new(members: usize, caps: TenantCaps) -> Self {
        Pool {
            scaler: Autoscaler::new(Policy::default()).unwrap(),
            fleet: Fleet::default(),
            caps,
            second: COLD_START,
            members: vec![(0, 0.0); members],
            silent: 0,
            draining: 0,
        }
    }

    fn restart(&mut self) {
        self.scaler = Autoscaler::new(Policy::default()).unwrap();
        self.fleet = Fleet::default();
    }

    /// One poll, the decision, and what comes of it.
    fn poll(&mut self, load: Load) -> Decision {
        self.second += POLL;
        let now = self.second;
        let is_ready = |since: u64| since + COLD_START <= now;
        let ready = self.members.iter().filter(|(since, _)| is_ready(*since)).count() as f64;
        let (silent, draining, count) = (self.silent, self.draining, self.members.len());
        let mut answers = Vec::new();
        for (number, (since, integral)) in self.members.iter_mut().enumerate() {
            let in_flight: f64 = load.iter().map(|(_, in_flight)| in_flight / ready).sum();
            if is_ready(*since) {
                *integral += in_flight * POLL as f64;
            }
            let report = LoadReport {
                version: cairn_autoscale::load::SCHEMA_VERSION,
                instance: format!("{number}-{since}"),
                uptime_seconds: (now - *since) as f64,
                ready: true,
                draining: number >= count - draining,
                capacity: Capacity { in_flight: 100.0, ..Capacity::default() },
                in_flight,
                in_flight_seconds_total: *integral,
                cold_start: Some(ColdStart {
                    ready_milliseconds: 1000.0 * COLD_START as f64,
                    ..ColdStart::default()
                }),
                tenants: load
                    .iter()
                    .map(|(namespace, in_flight)| TenantLoad {
                        mesh: "m".to_owned(),
                        namespace: (*namespace).to_owned(),
                        in_flight: in_flight / ready,
                        ..TenantLoad::default()
                    })
                    .collect(),
                ..LoadReport::default()
            };
            let answer = match is_ready(*since) {
                false => Answer::Starting,
                true if number < silent => Answer::Silent,
                true => Answer::from(Some(report)),
            };
            answers.push((format!("member-{number}"), answer));
        }
        let clock = Duration::from_secs(now);
        self.fleet
            .poll(clock, answers.iter().map(|(name, answer)| (name.as_str(), answer.clone())));
        let demand = self.fleet.demand(&self.caps);
        let decision = self.scaler.decide(clock, &demand, u32::try_from(count).unwrap());
        if let Some(desired) = decision.desired {
            self.members.resize(desired as usize, (now, 0.0));
        }
        decision
    }

    /// The numbers that are decided in so many seconds, without repetitions.
    fn run(&mut self, seconds: u64, load: Load) -> Vec<u32> {
        let mut course: Vec<u32> =
            (0..seconds / POLL).map(|_| self.poll(load).desired.unwrap()).collect();
        course.dedup();
        course
    }
}

#[test]
fn a_burst_brings_what_it_needs_and_no_more() {
    let mut pool = Pool::new(4, TenantCaps::default());
    pool.run(600, &[("shop", 150.0)]);
    let course = pool.run(120, &[("shop", 1200.0)]);
    assert!(course.is_sorted(), "{course:?}");
    // 12 units at 0.6 are 20 members; headroom is half of that at most, and a step up is more than a
    // tenth.
    assert!((20..=34).contains(course.last().unwrap()), "{course:?}");
    let after = pool.run(1800, &[("shop", 150.0)]);
    assert!(after.windows(2).all(|two| two[0] > two[1]), "it only goes down: {after:?}");
    assert!(after.windows(2).all(|two| two[0] - two[1] <= two[0] / 10 + 1), "in steps: {after:?}");
    assert!(*after.last().unwrap() <= 6, "{after:?}");
}

#[test]
fn a_tenant_beyond_its_cap_does_not_make_the_pool_grow() {
    let calm: Load = &[("loud", 100.0), ("shop", 100.0)];
    let loud: Load = &[("loud", 1000.0), ("shop", 100.0)];
    let caps = TenantCaps { default: Some(2.0), ..TenantCaps::default() };
    let mut capped = Pool::new(5, caps);
    let mut free = Pool::new(5, TenantCaps::default());
    capped.run(400, calm);
    free.run(400, calm);
    let course = capped.run(200, loud);
    // 2 units for it and 1 for the other.
    assert!(*course.last().unwrap() <= 8, "{course:?}");
    let decision = capped.poll(loud);
    assert!((capped.fleet.demand(&capped.caps).capped_units - 8.0).abs() < 0.5, "{decision:?}");
    assert!(*free.run(200, loud).last().unwrap() >= 18);
}

#[test]
fn silent_members_keep_everybody() {
    let mut pool = Pool::new(10, TenantCaps::default());
    let load: Load = &[("shop", 500.0)];
    pool.run(600, load);
    let before = pool.members.len();
    pool.silent = before * 3 / 10;
    let course = pool.run(1200, &[("shop", 20.0)]);
    assert_eq!(course, [u32::try_from(before).unwrap()], "nobody goes");
    assert_eq!(pool.poll(&[("shop", 20.0)]).mode, Mode::Hold);
    pool.silent = before * 6 / 10;
    let decision = pool.poll(&[("shop", 20.0)]);
    assert_eq!((decision.desired, decision.mode), (None, Mode::Hold));
    assert!(decision.reason.contains("members answer"), "{}", decision.reason);
    pool.silent = 0;
    assert!(*pool.run(1200, &[("shop", 20.0)]).last().unwrap() < 5);
}

#[test]
fn silent_members_are_as_busy_as_the_others() {
    let mut pool = Pool::new(10, TenantCaps::default());
    pool.run(400, &[("shop", 300.0)]);
    pool.silent = 2;
    let course = pool.run(200, &[("shop", 900.0)]);
    assert!(*course.last().unwrap() >= 15, "9 units, though only 8 members say so: {course:?}");
}

#[test]
fn a_restart_holds_what_there_is_for_its_windows() {
    let mut pool = Pool::new(4, TenantCaps::default());
    pool.run(400, &[("shop", 900.0)]);
    let before = u32::try_from(pool.members.len()).unwrap();
    for _ in 0..3 {
        pool.restart();
        assert_eq!(pool.run(290, &[("shop", 10.0)]), [before]);
    }
    pool.restart();
    let course = pool.run(100, &[("shop", 2000.0)]);
    assert!(*course.last().unwrap() > before, "and still it grows: {course:?}");
}

#[test]
fn a_member_that_drains_goes_before_another_does() {
    let mut pool = Pool::new(10, TenantCaps::default());
    pool.draining = 1;
    let course = pool.run(1200, &[("shop", 50.0)]);
    assert_eq!(course, [10]);
    pool.draining = 0;
    let course = pool.run(130, &[("shop", 50.0)]);
    assert!(course.len() >= 2 && course.windows(2).all(|two| two[0] > two[1]), "{course:?}");
}
