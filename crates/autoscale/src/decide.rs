//! From the course of the demand to a number of members.
//!
//! Two averages of the demand are looked at: a stable one, and a short one for bursts. When the short
//! one asks for a multiple of what there is, or members refuse work, the fleet is in panic: it grows
//! by the short average and the demand of now, and it does not shrink until a whole stable window was
//! calm. Headroom is added for what will come while a new member starts. Shrinking follows the
//! largest decision of the last minutes, slowly, and not at all while too few members answer.

use crate::fleet::Demand;
use crate::window::Window;
use std::time::Duration;

/// Cold start while none was measured.
pub const ASSUMED_COLD_START: Duration = Duration::from_secs(20);

/// How a fleet is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Share of its capacity that a member is to be busy, more than 0 and at most 1. Default 0.6.
    pub target: f64,
    /// Members at least, from 1. Default 2.
    pub min: u32,
    /// Members at most. Default 200.
    pub max: u32,
    /// Window of the stable average. Default 60 s.
    pub stable_window: Duration,
    /// Window of the average for bursts. Default 6 s.
    pub panic_window: Duration,
    /// The short average asks for so many times the ready members: panic. Default 2.
    pub panic_threshold: f64,
    /// Overload has to last so long to be a reason for panic. Default 6 s.
    pub overload_for: Duration,
    /// The largest decision of this long holds. Default 300 s.
    pub down_delay: Duration,
    /// Share of the members that may go at once, at least one. Default 0.1, which from 10 members on
    /// is one more: an HPA that acts for us ignores a tenth.
    pub down_share: f64,
    /// Pause between two steps down. Default 60 s.
    pub down_period: Duration,
    /// Largest share of the short average that headroom may add. Default 0.5.
    pub headroom_share: f64,
    /// Standard deviations of the demand that headroom holds. Default 2.
    pub headroom_deviations: f64,
}

/// What is wrong with a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// Name of the field.
    pub field: &'static str,
    /// What it has to be.
    pub message: &'static str,
}

/// Why the number is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By the stable average.
    Stable,
    /// By the short one and, while that tells a burst, by the demand of now; never down.
    Panic,
    /// Nothing goes: too few members answer, or one drains.
    Hold,
}

/// A decision, and the numbers that led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// How many members there are to be; `None`: so few answered that nothing can be said, and what
    /// there is has to stay.
    pub desired: Option<u32>,
    /// How it came about.
    pub mode: Mode,
    /// Average of the demand over the stable window, in capacity units.
    pub stable_units: f64,
    /// Average over the short window.
    pub panic_units: f64,
    /// Units added for what will come while a member starts.
    pub headroom_units: f64,
    /// Growth of the demand in units per second; never negative.
    pub slope: f64,
    /// Cold start that was reckoned with.
    pub cold_start: Duration,
    /// Members by the stable average.
    pub by_stable: u32,
    /// Members by the short one.
    pub by_panic: u32,
    /// In words.
    pub reason: String,
}

/// Decides for one fleet.
#[derive(Debug)]
pub struct Autoscaler {
    policy: Policy,
    demand: Window,
    decisions: Window,
    started: bool,
    panic_until: Option<Duration>,
    panic_most: u32,
    overloaded_since: Option<Duration>,
    /// Members that overload asked for, and when.
    overload_step: Option<(Duration, u32)>,
    /// Members that the last step down leaves, and when it was decided.
    step_down: Option<(Duration, u32)>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            target: 0.6,
            min: 2,
            max: 200,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            overload_for: Duration::from_secs(6),
            down_delay: Duration::from_secs(300),
            down_share: 0.1,
            down_period: Duration::from_secs(60),
            headroom_share: 0.5,
            headroom_deviations: 2.0,
        }
    }
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.field, self.message)
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), PolicyError> {
        let fails = |field, message| Err(PolicyError { field, message });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.target) || self.target > 1.0 {
            return fails("target", "must be more than 0 and at most 1");
        }
        if self.min == 0 {
            return fails("min", "must be 1 or more: nobody could wake a fleet of none");
        }
        if self.max < self.min {
            return fails("max", "must not be less than `min`");
        }
        if self.panic_window.is_zero() || self.stable_window < self.panic_window {
            return fails(
                "stable_window",
                "must not be shorter than `panic_window`, and both more than 0",
            );
        }
        if !positive(self.panic_threshold) || self.panic_threshold <= 1.0 {
            return fails("panic_threshold", "must be more than 1");
        }
        if !positive(self.down_share) || self.down_share > 1.0 {
            return fails("down_share", "must be more than 0 and at most 1");
        }
        if !self.headroom_share.is_finite() || self.headroom_share < 0.0 {
            return fails("headroom_share", "must be 0 or more");
        }
        if !self.headroom_deviations.is_finite() || self.headroom_deviations < 0.0 {
            return fails("headroom_deviations", "must be 0 or more");
        }
        Ok(())
    }
}

/// Longest history that headroom is reckoned from.
const DEVIATION_WINDOW: Duration = Duration::from_secs(600);
/// Averages of this length are compared for the slope, so far apart.
const SLOPE_WINDOW: Duration = Duration::from_secs(5);
const SLOPE_APART: Duration = Duration::from_secs(15);
/// Bounds of the cold start that is reckoned with.
const COLD_START: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// A slope is followed for no longer than this.
const LOOK_AHEAD: Duration = Duration::from_secs(30);
/// Shares of the members that have to answer: to shrink, and to say anything.
const ANSWER_TO_SHRINK: f64 = 0.8;
const ANSWER_TO_DECIDE: f64 = 0.5;
/// Share by which the wished number has to differ before an HPA does anything.
const HPA_TOLERANCE: f64 = 0.1;

impl Autoscaler {
    /// A scaler that knows nothing yet.
    ///
    /// # Errors
    ///
    /// A policy that cannot be followed.
    pub fn new(policy: Policy) -> Result<Self, PolicyError> {
        policy.check()?;
        Ok(Autoscaler {
            demand: Window::new(DEVIATION_WINDOW.max(policy.stable_window)),
            decisions: Window::new(policy.down_delay),
            policy,
            started: false,
            panic_until: None,
            panic_most: 0,
            overloaded_since: None,
            overload_step: None,
            step_down: None,
        })
    }

    /// How it scales.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Begins anew with what there is: nothing of `current` goes before a stable window and the delay
    /// are over. The first decision does so by itself; a caller does when it learns only later how
    /// many members there were.
    pub fn hold(&mut self, now: Duration, current: u32) {
        self.started = true;
        if current > 0 {
            self.panic_until = Some(now + self.policy.stable_window);
            self.panic_most = self.panic_most.max(current);
            self.decisions.add(now, f64::from(current));
        }
    }

    /// Takes in the demand of now and decides. `current` is how many members are asked for at present
    /// (the `spec.replicas` of whatever makes them).
    ///
    /// The first decision of a scaler that finds a fleet holds what there is for a stable window: the
    /// history is lost, not the load.
    pub fn decide(&mut self, now: Duration, demand: &Demand, current: u32) -> Decision {
        let policy = self.policy.clone();
        // Who starts says nothing; where all do, nobody goes.
        let judged = demand.members.saturating_sub(demand.starting);
        let share = match judged {
            0 => ANSWER_TO_DECIDE,
            judged => demand.answering as f64 / judged as f64,
        };
        let readable = share >= ANSWER_TO_DECIDE;
        if readable && judged > 0 {
            self.demand.add(now, demand.units);
        }
        if !self.started {
            self.hold(now, current);
        }
        self.overloaded_since = demand.overloaded.then(|| self.overloaded_since.unwrap_or(now));

        let stable = self.demand.average(now, policy.stable_window).unwrap_or_default();
        let short = self.demand.average(now, policy.panic_window).unwrap_or_default();
        let cold_start =
            demand.cold_start.unwrap_or(ASSUMED_COLD_START).clamp(COLD_START.0, COLD_START.1);
        let slope = self.slope(now);
        let headroom = self.headroom(now, slope, cold_start, short);
        let members = |units: f64| {
            let members = ((units + headroom) / policy.target - 1e-9).ceil();
            if members.is_finite() { members.clamp(0.0, f64::from(u32::MAX)) as u32 } else { 0 }
        };
        let (by_stable, by_panic) = (members(stable), members(short));

        let ready = u32::try_from(demand.ready).unwrap_or(u32::MAX);
        let long_overloaded =
            self.overloaded_since.is_some_and(|since| now - since >= policy.overload_for);
        let burst = f64::from(by_panic) >= policy.panic_threshold * f64::from(ready.max(1))
            && by_panic > policy.min;
        if burst || long_overloaded {
            self.panic_until = Some(now + policy.stable_window);
        }
        let panic = self.panic_until.is_some_and(|until| now < until);
        let mut reason;
        let mut mode;
        let mut desired;
        if panic {
            // In a burst the short average lags by its length; what there is now does not.
            let by_now = if burst && readable { members(demand.units) } else { 0 };
            desired =
                self.panic_most.max(by_now).max(by_panic).max(by_stable).max(ready.min(current));
            if long_overloaded {
                // Once per cold start: who was asked for has to come before it is known whether it
                // is enough.
                let step = match self.overload_step {
                    Some((at, members)) if now - at < cold_start => members,
                    _ => grown(current),
                };
                if self.overload_step.is_none_or(|(at, _)| now - at >= cold_start) {
                    self.overload_step = Some((now, step));
                }
                desired = desired.max(step);
            }
            self.panic_most = desired;
            mode = Mode::Panic;
            reason = match (burst, long_overloaded) {
                (true, _) => format!(
                    "the last {} s ask for {by_panic} members, {ready} are ready",
                    policy.panic_window.as_secs()
                ),
                (false, true) => "members refuse work or are late".to_owned(),
                (false, false) => "not calm for a whole window yet".to_owned(),
            };
        } else {
            self.panic_until = None;
            self.panic_most = 0;
            self.overload_step = None;
            mode = Mode::Stable;
            desired = by_stable;
            reason = format!("{stable:.2} units and {headroom:.2} of headroom");
        }
        let wish = desired;
        self.decisions.add(now, f64::from(desired));
        if let Some(most) = self.decisions.max(now, policy.down_delay)
            && most as u32 > desired
            && mode == Mode::Stable
        {
            desired = most as u32;
            reason =
                format!("{reason}; the most of the last {} s holds", policy.down_delay.as_secs());
        }
        desired = desired.clamp(policy.min, policy.max);
        if desired < current {
            let holds = if judged == 0 {
                Some("no member is there yet")
            } else if share < ANSWER_TO_SHRINK {
                Some("too few members answer")
            } else if demand.draining > 0 {
                Some("a member drains")
            } else {
                None
            };
            if let Some(why) = holds {
                desired = current;
                mode = Mode::Hold;
                reason = format!("{why}: nothing goes");
            } else {
                let lowest = shrunk(current, policy.down_share);
                // A step stands for its whole period, so that whoever acts on it sooner or later,
                // as an HPA does, finds the same number each time that it asks.
                let floor = match self.step_down {
                    Some((at, floor)) if now - at < policy.down_period => {
                        floor.max(lowest).min(current)
                    }
                    _ => {
                        self.step_down = Some((now, lowest.max(desired)));
                        lowest
                    }
                };
                if desired < floor {
                    reason = format!("{reason}; {} at a time", current - lowest);
                }
                desired = desired.max(floor);
            }
            desired = desired.clamp(policy.min, policy.max);
        } else if desired > current && desired < policy.max {
            // An HPA that acts for us ignores a tenth.
            desired = desired.max(grown(current)).min(policy.max);
            // What is only held still must not be held anew: where nobody can act on it, it would
            // never end.
            if wish > current {
                self.decisions.add(now, f64::from(desired));
                if panic {
                    self.panic_most = self.panic_most.max(desired);
                }
            }
        }
        Decision {
            desired: readable.then_some(desired),
            mode: if readable { mode } else { Mode::Hold },
            stable_units: stable,
            panic_units: short,
            headroom_units: headroom,
            slope,
            cold_start,
            by_stable,
            by_panic,
            reason: if readable {
                reason
            } else {
                format!(
                    "{} of {} members answer: what there is has to stay",
                    demand.answering, demand.members
                )
            },
        }
    }

    fn slope(&self, now: Duration) -> f64 {
        let (Some(begins), Some(before)) = (self.demand.begins(), now.checked_sub(SLOPE_APART))
        else {
            return 0.0;
        };
        if begins > before {
            return 0.0;
        }
        let at = |end| self.demand.average(end, SLOPE_WINDOW).unwrap_or_default();
        ((at(now) - at(before)) / SLOPE_APART.as_secs_f64()).max(0.0)
    }

    fn headroom(&self, now: Duration, slope: f64, cold_start: Duration, short: f64) -> f64 {
        let policy = &self.policy;
        let ahead = slope * cold_start.min(LOOK_AHEAD).as_secs_f64();
        let deviation = self.demand.deviation(now, DEVIATION_WINDOW, cold_start);
        // One member's worth at its target, so that losing one is no event.
        let one = policy.target;
        let headroom = one.max(ahead).max(policy.headroom_deviations * deviation);
        headroom.min(policy.headroom_share * short)
    }
}

/// A step down from `current`; one of a tenth is made larger than that.
fn shrunk(current: u32, share: f64) -> u32 {
    let step = (f64::from(current) * share).floor() as u32;
    let ignored = f64::from(step) <= f64::from(current) * HPA_TOLERANCE;
    current.saturating_sub(step + u32::from(ignored))
}

/// More than a tenth above `current`.
fn grown(current: u32) -> u32 {
    (f64::from(current) * (1.0 + HPA_TOLERANCE)).floor() as u32 + 1
}

#[cfg(test)]
mod tests;
