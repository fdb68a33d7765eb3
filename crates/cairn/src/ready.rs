//! Whether the process is ready, and if not, what it waits for.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// Shared by those who start things and those who answer probes.
#[derive(Debug)]
pub struct Readiness {
    state: Mutex<State>,
}

/// Why the process must get no traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// Things that are not there yet, each with the reason.
    Waiting(Vec<String>),
    /// It is shutting down.
    Draining,
    /// Somebody said so on the admin page.
    Failed,
}

/// How the start went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// When there was a certificate.
    pub certificate: Option<Instant>,
    /// When there was a configuration.
    pub config: Option<Instant>,
    /// When nothing was waited for any more.
    pub ready: Option<Instant>,
}

/// A step of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is a certificate.
    Certificate,
    /// There is a configuration.
    Config,
}

#[derive(Debug)]
struct State {
    /// Reasons by what is waited for.
    waits_for: BTreeMap<String, String>,
    draining: bool,
    failed: bool,
    course: Course,
}

impl Readiness {
    /// Waits for `what` from the start, so that it is never ready too early.
    pub fn waiting_for(what: impl IntoIterator<Item = String>) -> Self {
        let waits_for = what.into_iter().map(|what| (what, "starting".to_owned())).collect();
        let course = Course::default();
        let mut state = State { waits_for, draining: false, failed: false, course };
        state.look();
        Readiness { state: Mutex::new(state) }
    }

    /// Says why `what` is not there yet. Nothing happens where it is there already: who was ready
    /// once is not made unready by what comes later.
    pub fn still_missing(&self, what: &str, why: &str) {
        if let Some(reason) = self.state.lock().waits_for.get_mut(what) {
            why.clone_into(reason);
        }
    }

    /// `what` is there, or not wanted any more.
    pub fn arrived(&self, what: &str) {
        let mut state = self.state.lock();
        state.waits_for.remove(what);
        state.look();
    }

    /// `what` is not there any more.
    pub fn gone(&self, what: &str, why: &str) {
        self.state.lock().waits_for.insert(what.to_owned(), why.to_owned());
    }

    /// A step of the start is done. Of several meshes the last one counts; after the start none does.
    pub fn reached(&self, step: Step) {
        let mut state = self.state.lock();
        if state.course.ready.is_none() {
            let place = match step {
                Step::Certificate => &mut state.course.certificate,
                Step::Config => &mut state.course.config,
            };
            *place = Some(Instant::now());
        }
    }

    /// How the start went so far.
    pub fn course(&self) -> Course {
        self.state.lock().course
    }

    /// Never ready again.
    pub fn drain(&self) {
        self.state.lock().draining = true;
    }

    /// Not ready while `failed`, whatever else holds.
    pub fn fail(&self, failed: bool) {
        self.state.lock().failed = failed;
    }

    /// `Ok` when traffic is welcome.
    pub fn check(&self) -> Result<(), NotReady> {
        let state = self.state.lock();
        if state.draining {
            Err(NotReady::Draining)
        } else if state.failed {
            Err(NotReady::Failed)
        } else if state.waits_for.is_empty() {
            Ok(())
        } else {
            let waits_for = state.waits_for.iter().map(|(what, why)| format!("{what} ({why})"));
            Err(NotReady::Waiting(waits_for.collect()))
        }
    }
}

impl State {
    fn look(&mut self) {
        if self.waits_for.is_empty() && self.course.ready.is_none() {
            self.course.ready = Some(Instant::now());
        }
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReady::Waiting(names) => write!(f, "waiting for {}", names.join(", ")),
            NotReady::Draining => f.write_str("draining"),
            NotReady::Failed => f.write_str("failed by POST /healthcheck/fail"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_course_of_the_start_is_kept() {
        let readiness = Readiness::waiting_for(["a".to_owned()]);
        assert_eq!(readiness.course(), Course::default());
        readiness.reached(Step::Certificate);
        readiness.reached(Step::Config);
        let first = readiness.course();
        assert!(first.certificate.is_some() && first.config >= first.certificate);
        readiness.arrived("a");
        let ready = readiness.course();
        assert!(ready.ready >= ready.config && ready.ready.is_some());
        readiness.reached(Step::Config);
        readiness.arrived("b");
        assert_eq!(readiness.course(), ready, "the start is over");
        assert!(Readiness::waiting_for([]).course().ready.is_some());
    }

    #[test]
    fn ready_when_everything_arrived_and_never_again_after_drain() {
        let readiness = Readiness::waiting_for(["mesh a".to_owned(), "mesh b".to_owned()]);
        readiness.still_missing("mesh a", "no certificate");
        let reason = readiness.check().map_err(|reason| reason.to_string());
        assert_eq!(reason, Err("waiting for mesh a (no certificate), mesh b (starting)".into()));
        readiness.arrived("mesh a");
        readiness.arrived("mesh b");
        assert_eq!(readiness.check(), Ok(()));
        readiness.still_missing("mesh c", "came later");
        assert_eq!(readiness.check(), Ok(()));
        readiness.fail(true);
        assert_eq!(readiness.check(), Err(NotReady::Failed));
        readiness.fail(false);
        assert_eq!(readiness.check(), Ok(()));
        readiness.drain();
        assert_eq!(readiness.check(), Err(NotReady::Draining));
    }
}
