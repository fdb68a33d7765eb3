#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn demand(units: f64, members: usize) -> Demand {
    Demand { units, members, answering: members, ready: members, ..Demand::default() }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two-second polls of `units(second)` from `from` to `to`; members are there at once.
fn run(
    scaler: &mut Autoscaler,
    current: &mut u32,
    seconds: std::ops::Range<u64>,
    units: impl Fn(u64) -> f64,
) -> Vec<u32> {
    let mut course = Vec::new();
    for second in seconds.step_by(2) {
        let decision =
            scaler.decide(secs(second), &demand(units(second), *current as usize), *current);
        *current = decision.desired.unwrap();
        course.push(*current);
    }
    course
}

#[test]
fn a_steady_load_gets_what_it_needs_and_room_for_one() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 10;
    run(&mut scaler, &mut current, 0..1200, |_| 3.0);
    assert_eq!(current, 6, "3 units at 0.6 are 5 members, and one is headroom");
}

#[test]
fn a_burst_is_panic_and_panic_never_shrinks() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 4;
    run(&mut scaler, &mut current, 0..400, |_| 1.5);
    let calm = current;
    let course = run(&mut scaler, &mut current, 400..440, |_| 12.0);
    assert!(course.first().unwrap() > &calm, "the first poll of the burst counts");
    assert!(current >= 20, "{course:?}");
    assert!(course.windows(2).all(|two| two[0] <= two[1]), "{course:?}");
    let after = run(&mut scaler, &mut current, 440..498, |_| 1.5);
    assert!(after.iter().all(|members| *members >= *course.last().unwrap()), "{after:?}");
}

#[test]
fn members_leave_slowly() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 50;
    run(&mut scaler, &mut current, 0..60, |_| 25.0);
    let before = current;
    let course = run(&mut scaler, &mut current, 60..1000, |_| 3.0);
    assert!(course.iter().take(149).all(|members| *members == before), "the delay holds");
    let steps: Vec<u32> =
        course.windows(2).map(|two| two[0] - two[1]).filter(|step| *step > 0).collect();
    assert!(!steps.is_empty() && steps.iter().all(|step| *step <= 5), "{steps:?}");
    let moments: Vec<usize> = (1..course.len()).filter(|at| course[*at] < course[at - 1]).collect();
    assert!(moments.windows(2).all(|two| (two[1] - two[0]) * 2 >= 60), "{moments:?}");
}

#[test]
fn a_restart_holds_what_there_is() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 12;
    let course = run(&mut scaler, &mut current, 0..300, |_| 0.1);
    assert!(course.iter().all(|members| *members == 12), "{course:?}");
}

#[test]
fn nobody_goes_while_many_are_silent() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    for second in (0..2000).step_by(2) {
        let silent = Demand { answering: 7, ..demand(0.5, 10) };
        let decision = scaler.decide(secs(second), &silent, 10);
        assert_eq!(decision.desired, Some(10));
        assert!(second < 400 || decision.mode == Mode::Hold, "{decision:?}");
    }
    let few = Demand { answering: 4, ..demand(0.5, 10) };
    let decision = scaler.decide(secs(2000), &few, 10);
    assert_eq!((decision.desired, decision.mode), (None, Mode::Hold));
}

#[test]
fn a_draining_member_goes_first() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    for second in (0..2000).step_by(2) {
        let draining = Demand { draining: 1, ..demand(0.5, 10) };
        assert_eq!(scaler.decide(secs(second), &draining, 10).desired, Some(10));
    }
}

#[test]
fn overload_grows_whatever_the_shares_say() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 4;
    run(&mut scaler, &mut current, 0..500, |_| 1.8);
    let before = current;
    for second in (500..510).step_by(2) {
        let overloaded = Demand { overloaded: true, ..demand(1.8, current as usize) };
        current = scaler.decide(secs(second), &overloaded, current).desired.unwrap();
    }
    assert!(current > before);
}

/// An HPA looks each 15 s, does what the largest wish of its window says, and pods take a while.
#[test]
fn who_acts_late_finds_the_same_step_each_time() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 20;
    let mut wishes = std::collections::VecDeque::new();
    let mut course = vec![current];
    for second in (0..2400).step_by(2) {
        let wish = scaler.decide(secs(second), &demand(1.5, current as usize), current).desired;
        if second % 15 < 2 {
            wishes.push_back(wish.unwrap());
            if wishes.len() > 4 {
                wishes.pop_front();
            }
            let most = *wishes.iter().max().unwrap();
            // A difference of a tenth is none to an HPA.
            if f64::from(most) < 0.9 * f64::from(current) {
                current = most;
                course.push(current);
            }
        }
    }
    assert!(current < 12, "it shrinks: {course:?}");
    assert!(course.windows(2).all(|two| two[0] - two[1] <= 3), "a tenth and one: {course:?}");
}

/// As where a quota is used up.
#[test]
fn a_wish_that_nobody_can_fulfil_ends_with_its_reason() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut last = None;
    for second in (0..2000).step_by(2) {
        let units = if (200..400).contains(&second) { 3.0 } else { 0.9 };
        last = scaler.decide(secs(second), &demand(units, 3), 3).desired;
        assert!(!(250..700).contains(&second) || last > Some(3), "{second}: {last:?}");
    }
    assert!(last <= Some(3), "{last:?}");
}

#[test]
fn overload_asks_once_per_cold_start() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut current = 10;
    run(&mut scaler, &mut current, 0..500, |_| 4.0);
    let before = current;
    let mut course = Vec::new();
    for second in (500..540).step_by(2) {
        // What was asked for is wanted at once and ready only after its cold start.
        let overloaded = Demand { overloaded: true, ..demand(4.0, before as usize) };
        current = scaler.decide(secs(second), &overloaded, current).desired.unwrap();
        course.push(current);
    }
    course.dedup();
    assert_eq!(
        course.len(),
        3,
        "two steps in 34 s of overload with a cold start of 20 s: {course:?}"
    );
}

#[test]
fn nobody_goes_where_nobody_is_there_yet() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    for second in (0..2000).step_by(2) {
        let starting = Demand { members: 5, starting: 5, ..Demand::default() };
        let decision = scaler.decide(secs(second), &starting, 5);
        assert_eq!(decision.desired, Some(5), "{decision:?}");
    }
    let mut empty = Autoscaler::new(Policy::default()).unwrap();
    assert_eq!(empty.decide(secs(0), &Demand::default(), 0).desired, Some(2), "the floor");
}

/// Members that are asked for do not count as busy before they have come.
#[test]
fn starting_members_do_not_feed_the_demand() {
    use crate::fleet::{Answer, Fleet, TenantCaps};
    use crate::load::{Capacity, LoadReport, SCHEMA_VERSION};
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    let mut fleet = Fleet::default();
    let mut current = 4;
    for second in (0..200).step_by(2) {
        let answers: Vec<(String, Answer)> = (0..current)
            .map(|number| {
                let report = LoadReport {
                    version: SCHEMA_VERSION,
                    instance: format!("m{number}"),
                    uptime_seconds: second as f64 + 1.0,
                    ready: true,
                    in_flight: 90.0,
                    in_flight_seconds_total: 90.0 * second as f64,
                    capacity: Capacity { in_flight: 100.0, ..Capacity::default() },
                    ..LoadReport::default()
                };
                let answer = if number < 4 { Answer::from(Some(report)) } else { Answer::Starting };
                (format!("m{number}"), answer)
            })
            .collect();
        fleet.poll(
            secs(second),
            answers.iter().map(|(name, answer)| (name.as_str(), answer.clone())),
        );
        let demand = fleet.demand(&TenantCaps::default());
        assert!((demand.units - 3.6).abs() < 1e-9, "{demand:?}");
        current = scaler.decide(secs(second), &demand, current).desired.unwrap();
    }
    assert_eq!(current, 7, "3.6 units at 0.6 are 6 members, and one is headroom");
}

#[test]
fn what_was_learnt_late_is_held_as_well() {
    let mut scaler = Autoscaler::new(Policy::default()).unwrap();
    assert_eq!(scaler.decide(secs(0), &demand(0.5, 3), 3).desired, Some(3));
    scaler.hold(secs(10), 20);
    for second in (10..310).step_by(2) {
        assert_eq!(scaler.decide(secs(second), &demand(0.5, 3), 20).desired, Some(20));
    }
}

#[test]
fn the_bounds_hold() {
    let mut scaler = Autoscaler::new(Policy { min: 3, max: 5, ..Policy::default() }).unwrap();
    let mut current = 3;
    let course =
        run(&mut scaler, &mut current, 0..200, |second| if second < 100 { 0.0 } else { 99.0 });
    assert!(course.iter().all(|members| (3..=5).contains(members)));
    assert_eq!(current, 5);
}

#[test]
fn policies_are_checked() {
    for (policy, field) in [
        (Policy { target: 0.0, ..Policy::default() }, "target"),
        (Policy { target: 1.1, ..Policy::default() }, "target"),
        (Policy { min: 0, ..Policy::default() }, "min"),
        (Policy { max: 1, ..Policy::default() }, "max"),
        (Policy { panic_threshold: 1.0, ..Policy::default() }, "panic_threshold"),
        (Policy { down_share: f64::NAN, ..Policy::default() }, "down_share"),
    ] {
        assert_eq!(Autoscaler::new(policy).unwrap_err().field, field);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn decisions_are_in_bounds_and_the_same_again(
        course in prop::collection::vec((0.0f64..1e6, 0usize..300, 0usize..300, any::<bool>()), 1..200)
    ) {
        let mut first = Autoscaler::new(Policy::default()).unwrap();
        let mut second = Autoscaler::new(Policy::default()).unwrap();
        let mut current = 2;
        for (step, (units, members, answering, overloaded)) in course.into_iter().enumerate() {
            let demand = Demand {
                answering: answering.min(members),
                overloaded,
                ..demand(units, members)
            };
            let now = secs(2 * step as u64);
            let one = first.decide(now, &demand, current);
            prop_assert_eq!(&one, &second.decide(now, &demand, current));
            if let Some(desired) = one.desired {
                prop_assert!((2..=200).contains(&desired));
                current = desired;
            }
        }
    }
}
