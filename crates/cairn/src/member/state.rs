//! What is to be seen of one cluster's membership.

use crate::ready::Readiness;
use cairn_autoscale::load::ClusterLoad;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Where a membership is between its begin and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Something that it needs is not there.
    Starting,
    /// It could serve, and registers or is registered.
    Serving,
    /// The registration is withdrawn; tunnels are accepted until every ztunnel has heard it.
    Deregistering,
    /// Clients are told to go; what is in flight finishes.
    Finishing,
    /// Over.
    Closed,
}

/// Whether ztunnels find this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// Nobody was asked.
    No,
    /// istiod was asked, and does not show an entry.
    Asking,
    /// istiod shows our entry.
    Yes,
    /// Somebody has taken the entry away; it is asked for again after a while.
    Withdrawn,
}

/// What is to be seen. Shared by the one that changes it and those who look.
#[derive(Debug)]
pub struct Status {
    /// Name of the cluster.
    pub name: String,
    /// What the start waits for.
    pub readiness: Arc<Readiness>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    registered: Registered,
    registrations: u64,
    taken_away: u64,
    trouble: Option<String>,
    warm: bool,
    connected: bool,
    cut: usize,
}

/// All of it at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where it is.
    pub phase: Phase,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Whether ztunnels find it.
    pub registered: Registered,
    /// Times that it was registered.
    pub registrations: u64,
    /// Times that somebody took the entry away.
    pub taken_away: u64,
    /// What is wrong with the registration.
    pub trouble: Option<String>,
    /// It began with what a sibling told.
    pub warm: bool,
    /// There is a stream to its istiod.
    pub connected: bool,
    /// Connections and tunnels that had to be cut at its end.
    pub cut: usize,
}

impl Status {
    /// At its begin.
    pub fn new(name: &str, readiness: Arc<Readiness>) -> Arc<Self> {
        let state = State {
            phase: Phase::Starting,
            since: Instant::now(),
            registered: Registered::No,
            registrations: 0,
            taken_away: 0,
            trouble: None,
            warm: false,
            connected: false,
            cut: 0,
        };
        Arc::new(Status { name: name.to_owned(), readiness, state: Mutex::new(state) })
    }

    /// It is in another phase.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state.lock();
        if state.phase != phase {
            tracing::info!(cluster = self.name, from = %state.phase, to = %phase, "membership");
            state.phase = phase;
            state.since = Instant::now();
        }
    }

    /// Whether ztunnels find it; and why not.
    pub fn registered(&self, registered: Registered, trouble: Option<String>) {
        let mut state = self.state.lock();
        if state.registered != registered {
            match registered {
                Registered::Yes => state.registrations += 1,
                Registered::Withdrawn => state.taken_away += 1,
                Registered::No | Registered::Asking => {}
            }
            tracing::info!(cluster = self.name, registered = %registered, trouble, "registration");
        }
        state.registered = registered;
        state.trouble = trouble;
    }

    /// It begins with what a sibling told.
    pub fn warm(&self) {
        self.state.lock().warm = true;
    }

    /// There is a stream to its istiod, or none.
    pub fn connected(&self, connected: bool) {
        self.state.lock().connected = connected;
    }

    /// So many had to be cut.
    pub fn cut(&self, cut: usize) {
        self.state.lock().cut = cut;
    }

    /// At this moment.
    pub fn seen(&self) -> Seen {
        let state = self.state.lock();
        Seen {
            phase: state.phase,
            seconds: state.since.elapsed().as_secs_f64(),
            registered: state.registered.clone(),
            registrations: state.registrations,
            taken_away: state.taken_away,
            trouble: state.trouble.clone(),
            warm: state.warm,
            connected: state.connected,
            cut: state.cut,
        }
    }

    /// Traffic of this cluster is welcome.
    pub fn is_serving(&self) -> bool {
        self.seen().phase == Phase::Serving
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let seen = self.seen();
        let mut line = format!("{}: {}", self.name, seen.phase);
        match (seen.phase, self.readiness.check()) {
            (Phase::Starting, Err(reason)) => line.push_str(&format!(", {reason}")),
            (Phase::Serving, _) => line.push_str(&format!(", registered: {}", seen.registered)),
            _ => {}
        }
        if let Some(trouble) = &seen.trouble {
            line.push_str(&format!(" ({trouble})"));
        }
        if seen.phase == Phase::Serving && !seen.connected {
            line.push_str(", its istiod is away: the last configuration is served");
        }
        line
    }

    /// For `/load`; `age` is the configuration's.
    pub fn load(&self, age: Option<f64>, in_flight: f64) -> ClusterLoad {
        let seen = self.seen();
        ClusterLoad {
            name: self.name.clone(),
            phase: seen.phase.to_string(),
            ready: seen.phase == Phase::Serving,
            registered: seen.registered == Registered::Yes,
            istiod_connected: seen.connected,
            config_age_seconds: age.unwrap_or_default(),
            in_flight,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Deregistering => "deregistering",
            Phase::Finishing => "finishing",
            Phase::Closed => "closed",
        })
    }
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 5] =
        [Phase::Starting, Phase::Serving, Phase::Deregistering, Phase::Finishing, Phase::Closed];
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Registered::No => "no",
            Registered::Asking => "asking",
            Registered::Yes => "yes",
            Registered::Withdrawn => "taken away",
        })
    }
}
