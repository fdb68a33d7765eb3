//! A recorded load against this algorithm and against HPAs, without a cluster.
//!
//! The model: demand is spread evenly over ready members; a member that is asked for is ready after
//! the cold start; one that is given up is gone at once. A fleet is overloaded while the demand
//! exceeds what its ready members can do.

use crate::decide::{Autoscaler, Policy, PolicyError};
use crate::fleet::Demand;
use std::collections::VecDeque;
use std::time::Duration;

/// Demand over time, in capacity units.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// One value per second.
    pub units: Vec<f64>,
}

/// A line of a trace that is no `seconds,units`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceError {
    /// From 1; 0: the whole.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// A bound on the demand of a trace, in units.
pub const MAX_UNITS: f64 = 1e6;

/// Who decides.
#[derive(Debug, Clone, PartialEq)]
pub enum Who {
    /// This crate, which changes the number of members itself as soon as it has decided.
    Cairn(Policy),
    /// This crate, through an HPA that reads its decision as a metric, as KEDA makes one: with the
    /// behaviour of `deploy/keda`.
    Keda(Policy),
    /// A horizontal pod autoscaler with its default behaviour.
    Hpa(Hpa),
}

/// The model of an HPA.
#[derive(Debug, Clone, PartialEq)]
pub struct Hpa {
    /// What it looks at.
    pub signal: Signal,
    /// Share of a member's capacity.
    pub target: f64,
    /// Members at least.
    pub min: u32,
    /// Members at most.
    pub max: u32,
}

/// What an HPA looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// CPU time by its request: never more than 100 %, however much waits, and half a minute old.
    Cpu,
    /// Requests in flight per member.
    InFlight,
}

/// One second of a simulation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Demand in units.
    pub units: f64,
    /// Members that are asked for.
    pub desired: u32,
    /// Members that take traffic.
    pub ready: u32,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// One per second.
    pub moments: Vec<Moment>,
    /// Seconds in which the demand exceeded what was ready.
    pub overloaded_seconds: u64,
    /// Members by the time they were there or starting, in hours.
    pub instance_hours: f64,
}

/// Longest trace, in seconds: two weeks.
pub const MAX_SECONDS: usize = 14 * 24 * 3600;

impl std::fmt::Display for TraceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Reads `seconds,units` lines; a value holds until the next. Empty lines and those that begin with
    /// `#` are skipped.
    ///
    /// # Errors
    ///
    /// The first line that cannot be read, and a trace without an end or longer than
    /// [`MAX_SECONDS`].
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut points: Vec<(usize, f64)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line_number = number + 1;
            let fails =
                |message: &str| TraceError { line: line_number, message: message.to_owned() };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (second, units) =
                line.split_once(',').ok_or_else(|| fails("is not `seconds,units`"))?;
            let second: usize =
                second.trim().parse().map_err(|_| fails("the seconds are no whole number"))?;
            let units: f64 = units.trim().parse().map_err(|_| fails("the units are no number"))?;
            if !(0.0..=MAX_UNITS).contains(&units) {
                return Err(fails("the units must be from 0 to 1,000,000"));
            }
            if second > MAX_SECONDS {
                return Err(fails("is later than two weeks"));
            }
            if points.last().is_some_and(|(last, _)| *last >= second) {
                return Err(fails("is not later than the line before"));
            }
            points.push((second, units));
        }
        let Some((end, _)) = points.last().copied() else {
            return Err(TraceError {
                line: 0,
                message: "there is no point in the trace".to_owned(),
            });
        };
        let mut units = Vec::with_capacity(end + 1);
        let mut next = points.iter().peekable();
        let mut now = 0.0;
        for second in 0..=end {
            if let Some((_, value)) = next.next_if(|(at, _)| *at == second) {
                now = *value;
            }
            units.push(now);
        }
        Ok(Trace { units })
    }

    /// Calm, then eight times as much at once, then calm. It begins between two looks of an HPA.
    pub fn burst() -> Self {
        Trace::burst_at(608)
    }

    fn burst_at(begin: usize) -> Self {
        let burst = begin..begin + 600;
        let units = (0..1800).map(|second| if burst.contains(&second) { 12.0 } else { 1.5 });
        Trace { units: units.collect() }
    }

    /// A day in two hours.
    pub fn diurnal() -> Self {
        let units = (0..7200).map(|second| {
            let phase = f64::from(second) / 7200.0 * std::f64::consts::TAU;
            6.0 - 5.0 * phase.cos() + 0.4 * (f64::from(second) / 37.0).sin()
        });
        Trace { units: units.map(|units: f64| units.max(0.0)).collect() }
    }

    /// Up for five minutes and down at once, again and again.
    pub fn sawtooth() -> Self {
        Trace { units: (0..3600).map(|second| 1.5 + f64::from(second % 300) / 30.0).collect() }
    }
}

impl Moment {
    /// More is to be done than the members that are there can do.
    pub fn overloaded(&self) -> bool {
        self.units > f64::from(self.ready)
    }
}

impl Outcome {
    /// The longest overload without a pause, in seconds.
    pub fn longest_overload(&self) -> usize {
        let spells = self.moments.split(|moment| !moment.overloaded());
        spells.map(<[Moment]>::len).max().unwrap_or(0)
    }

    /// Members that were asked for at most.
    pub fn most(&self) -> u32 {
        self.moments.iter().map(|moment| moment.desired).max().unwrap_or(0)
    }

    /// How often the number that was asked for rose, and fell.
    pub fn changes(&self) -> (usize, usize) {
        let pairs =
            || self.moments.windows(2).filter_map(|pair| Some((pair.first()?, pair.last()?)));
        (
            pairs().filter(|(before, after)| before.desired < after.desired).count(),
            pairs().filter(|(before, after)| before.desired > after.desired).count(),
        )
    }
}

/// Runs a trace. A fleet of `start` members is ready at its beginning.
///
/// # Errors
///
/// A policy that cannot be followed.
pub fn run(
    trace: &Trace,
    who: &Who,
    cold_start: Duration,
    start: u32,
) -> Result<Outcome, PolicyError> {
    let mut decider = match who {
        Who::Cairn(policy) => Decider::Cairn(Box::new(Autoscaler::new(policy.clone())?)),
        Who::Keda(policy) => Decider::Keda {
            scaler: Box::new(Autoscaler::new(policy.clone())?),
            latest: None,
            steps: VecDeque::new(),
        },
        Who::Hpa(hpa) => Decider::Hpa { hpa: hpa.clone(), wanted: VecDeque::new() },
    };
    let cold = usize::try_from(cold_start.as_secs()).unwrap_or(usize::MAX);
    let mut ready = start;
    let mut starting: VecDeque<(usize, u32)> = VecDeque::new();
    let mut desired = start;
    let mut outcome = Outcome {
        moments: Vec::with_capacity(trace.units.len()),
        overloaded_seconds: 0,
        instance_hours: 0.0,
    };
    let mut member_seconds = 0_u64;
    for (second, &units) in trace.units.iter().enumerate() {
        while let Some((_, members)) = starting.pop_front_if(|(at, _)| *at <= second) {
            ready += members;
        }
        let now = Moment { units, desired, ready };
        if let Some(wish) = decider.decide(second, &outcome.moments, now, cold_start) {
            let coming: u32 = starting.iter().map(|(_, members)| *members).sum();
            let there = ready + coming;
            if wish > there {
                starting.push_back((second + cold.max(1), wish - there));
            }
            let mut surplus = there.saturating_sub(wish);
            while surplus > 0 {
                let Some((at, members)) = starting.pop_back() else { break };
                let kept = members.saturating_sub(surplus);
                surplus -= members - kept;
                if kept > 0 {
                    starting.push_back((at, kept));
                }
            }
            ready -= surplus.min(ready);
            desired = wish;
        }
        let moment = Moment { units, desired, ready };
        outcome.overloaded_seconds += u64::from(moment.overloaded());
        outcome.moments.push(moment);
        member_seconds +=
            u64::from(ready) + starting.iter().map(|(_, members)| u64::from(*members)).sum::<u64>();
    }
    outcome.instance_hours = member_seconds as f64 / 3600.0;
    Ok(outcome)
}

enum Decider {
    Cairn(Box<Autoscaler>),
    Keda { scaler: Box<Autoscaler>, latest: Option<u32>, steps: VecDeque<u32> },
    Hpa { hpa: Hpa, wanted: VecDeque<u32> },
}

/// How often each looks, in seconds.
const POLL: usize = 2;
const HPA_SYNC: usize = 15;
/// Age of the CPU figures that an HPA sees (metrics-server), in seconds.
const CPU_AGE: usize = 30;
/// Decisions of an HPA's default scale-down window of 300 s.
const HPA_DOWN: usize = 300 / HPA_SYNC;
/// Decisions of a minute, in which the HPA of `deploy/keda` takes a tenth at most.
const KEDA_DOWN: usize = 60 / HPA_SYNC;
/// What an HPA takes for no difference.
const TOLERANCE: f64 = 0.1;

impl Decider {
    fn decide(
        &mut self,
        second: usize,
        before: &[Moment],
        now: Moment,
        cold_start: Duration,
    ) -> Option<u32> {
        match self {
            Decider::Cairn(scaler) if second.is_multiple_of(POLL) => {
                decide(scaler, second, before, now, cold_start)
            }
            Decider::Keda { scaler, latest, steps } => {
                if second.is_multiple_of(POLL) {
                    *latest = decide(scaler, second, before, now, cold_start).or(*latest);
                }
                if !second.is_multiple_of(HPA_SYNC) {
                    return None;
                }
                let wish = (*latest)?;
                steps.push_back(now.desired);
                if steps.len() > KEDA_DOWN {
                    steps.pop_front();
                }
                let ratio = f64::from(wish) / f64::from(now.desired.max(1));
                if (ratio - 1.0).abs() <= TOLERANCE {
                    return None;
                }
                let up = now.desired.saturating_mul(5).max(now.desired.saturating_add(40));
                // A tenth of what there was at the beginning of the last minute, at least one.
                let before = steps.iter().copied().max().unwrap_or(now.desired);
                let down = before - (before / 10).max(1).min(before);
                Some(wish.min(up).max(down.min(now.desired)))
            }
            Decider::Hpa { hpa, wanted } if second.is_multiple_of(HPA_SYNC) => {
                let ready = f64::from(now.ready.max(1));
                let share = match hpa.signal {
                    Signal::InFlight => now.units / ready,
                    Signal::Cpu => {
                        let then = second
                            .checked_sub(CPU_AGE)
                            .and_then(|at| before.get(at))
                            .unwrap_or(&now);
                        (then.units / f64::from(then.ready.max(1))).min(1.0)
                    }
                };
                let ratio = share / hpa.target;
                let wish = if (ratio - 1.0).abs() <= TOLERANCE {
                    now.ready
                } else {
                    (ready * ratio).ceil() as u32
                };
                wanted.push_back(wish);
                if wanted.len() > HPA_DOWN {
                    wanted.pop_front();
                }
                let wish = if wish < now.desired {
                    wanted.iter().copied().max().unwrap_or(wish).min(now.desired)
                } else {
                    wish.min(now.desired.saturating_mul(2).max(now.desired.saturating_add(4)))
                };
                Some(wish.clamp(hpa.min, hpa.max))
            }
            _ => None,
        }
    }
}

fn decide(
    scaler: &mut Autoscaler,
    second: usize,
    before: &[Moment],
    now: Moment,
    cold_start: Duration,
) -> Option<u32> {
    let members = now.ready as usize;
    // A poll sees the average since the one before. What exceeds the members' capacity waits in
    // them, and is in flight.
    let since = before.get(second.saturating_sub(POLL)..).unwrap_or_default();
    let units = match since.len() {
        0 => now.units,
        count => since.iter().map(|moment| moment.units).sum::<f64>() / count as f64,
    };
    let demand = Demand {
        units,
        members,
        answering: members,
        ready: members,
        cold_start: Some(cold_start),
        ..Demand::default()
    };
    scaler.decide(Duration::from_secs(second as u64), &demand, now.desired).desired
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cairn() -> Who {
        Who::Cairn(Policy::default())
    }

    fn hpa(signal: Signal) -> Who {
        Who::Hpa(Hpa { signal, target: 0.6, min: 2, max: 200 })
    }

    #[test]
    fn a_burst_lasts_a_cold_start() {
        for cold in [5, 15, 30, 60] {
            let cold_start = Duration::from_secs(cold);
            let run = |who: &Who| run(&Trace::burst(), who, cold_start, 4).unwrap();
            let ours = run(&cairn());
            assert!(ours.overloaded_seconds <= cold + 2, "{cold}: {}", ours.overloaded_seconds);
            assert!(run(&hpa(Signal::Cpu)).overloaded_seconds > ours.overloaded_seconds);
            assert!(run(&hpa(Signal::InFlight)).overloaded_seconds > ours.overloaded_seconds);
        }
    }

    /// Least and most seconds of overload, whichever second the burst begins at.
    fn over_phases(who: &Who, cold: u64) -> (u64, u64) {
        let of = |begin: usize| {
            let mut trace = Trace::burst_at(begin);
            trace.units.drain(..400);
            trace.units.truncate(300);
            run(&trace, who, Duration::from_secs(cold), 4).unwrap()
        };
        let seconds: Vec<u64> = (600..630).map(|begin| of(begin).overloaded_seconds).collect();
        (*seconds.iter().min().unwrap(), *seconds.iter().max().unwrap())
    }

    #[test]
    fn the_order_does_not_depend_on_when_a_burst_begins() {
        let keda = Who::Keda(Policy::default());
        // docs/autoscaling.md tells these.
        assert_eq!(over_phases(&cairn(), 15), (16, 17));
        assert_eq!(over_phases(&keda, 15), (16, 31));
        assert_eq!(over_phases(&hpa(Signal::InFlight), 15), (30, 44));
        assert_eq!(over_phases(&hpa(Signal::Cpu), 15), (71, 89));
    }

    #[test]
    fn keda_takes_a_tenth_in_a_minute() {
        let keda = Who::Keda(Policy::default());
        let keda = run(&Trace::burst(), &keda, Duration::from_secs(15), 4).unwrap();
        // No more than a tenth of a minute ago may go within a minute.
        for (second, moment) in keda.moments.iter().enumerate().skip(60) {
            let before = keda.moments[second - 60].desired;
            assert!(moment.desired >= before - (before / 10).max(1), "at {second}");
        }
    }

    #[test]
    fn an_outcome_is_told_in_numbers() {
        let moments = [(1.0, 2, 2), (3.0, 2, 2), (3.0, 4, 2), (1.0, 3, 4), (5.0, 3, 3)]
            .map(|(units, desired, ready)| Moment { units, desired, ready });
        let outcome =
            Outcome { moments: moments.to_vec(), overloaded_seconds: 3, instance_hours: 0.0 };
        assert_eq!(outcome.longest_overload(), 2);
        assert_eq!(outcome.most(), 4);
        assert_eq!(outcome.changes(), (1, 1));
    }

    #[test]
    fn a_slow_day_is_no_overload() {
        let outcome = run(&Trace::diurnal(), &cairn(), Duration::from_secs(15), 4).unwrap();
        assert_eq!(outcome.overloaded_seconds, 0);
    }

    #[test]
    fn traces_are_read() {
        let trace = Trace::parse("# a\n0,1\n 2 , 3.5\n\n4,0\n").unwrap();
        assert_eq!(trace.units, [1.0, 1.0, 3.5, 3.5, 0.0]);
        for (text, line) in [
            ("", 0),
            ("0 1", 1),
            ("0,1\n0,2", 2),
            ("0,x", 1),
            ("-1,1", 1),
            ("0,NaN", 1),
            ("0,1e7", 1),
            ("9999999,1", 1),
        ] {
            assert_eq!(Trace::parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
