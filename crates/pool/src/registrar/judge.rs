//! Who of the members lives, by what was seen in each round: probes, pods, and notices.
//!
//! A probe that fails says little, three in a row that the member cannot be reached, or that we cannot reach it: such
//! evidence passes a [`Guard`]. What a pod's object says, and what the member says of itself, needs no guard.

use super::guard::Guard;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Probes in a row that fail.
pub const FAILURES: u32 = 3;
/// Members that are kept in mind; more are not looked at.
pub const MAX_MEMBERS: usize = 10_000;
/// How long a member is kept in mind after its pod is gone, for clusters that cannot be reached meanwhile.
const KEPT: Duration = Duration::from_secs(900);

/// What came of asking a member.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// Something, be it a refusal.
    Answers(Answer),
    /// Nothing: no connection, or no answer in time.
    Fails,
}

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Takes traffic.
    pub ready: bool,
    /// Finishes what it has.
    pub draining: bool,
    /// Name of this run of it, where its load is known.
    pub instance: String,
    /// Seconds since its start, where its load is known.
    pub uptime: Option<f64>,
    /// Requests in flight, where its load is known.
    pub in_flight: Option<f64>,
    /// The same per unit of its size.
    pub load: Option<f64>,
    /// Seconds since its configuration changed, where its load is known.
    pub config_age: Option<f64>,
}

/// A member as a list of them has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name; that of its pod.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// It is a pod: the list of pods has it, unless it is gone.
    pub is_pod: bool,
}

/// A pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFact {
    /// `metadata.uid`.
    pub uid: String,
    /// It has a deletionTimestamp, or has ended.
    pub ends: bool,
    /// A notice says that its machine will be taken away.
    pub notice: bool,
    /// `status.podIP`.
    pub address: Option<IpAddr>,
}

/// All that was seen in one round.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// Members of the list; `None`: there is none.
    pub members: Option<Vec<Seen>>,
    /// Pods by name; `None`: they are not known.
    pub pods: Option<BTreeMap<String, PodFact>>,
    /// Answers by address, of those in [`Judge::addresses`] and in `members`.
    pub probes: BTreeMap<IpAddr, Probe>,
    /// Addresses for which any cluster has an entry.
    pub registered: BTreeSet<IpAddr>,
}

/// Why a member's entries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removal {
    /// It says that it drains.
    Draining,
    /// Its pod ends or is gone.
    Pod,
    /// A notice says that its machine will be taken away.
    Notice,
    /// It does not answer.
    Unreachable,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// Answers and takes traffic.
    Ready,
    /// Answers and takes none.
    NotReady,
    /// Has never answered, and is not known to be dead.
    Starting,
    /// Does not answer.
    Silent,
    /// Its entries go.
    Leaving(Removal),
}

/// A member, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its pod, where it is one.
    pub uid: Option<String>,
    /// How it stands.
    pub state: MemberState,
    /// The last answer; `None`: it did not answer this time.
    pub answer: Option<Answer>,
}

/// All members, judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// By address.
    pub members: BTreeMap<IpAddr, MemberView>,
    /// Addresses of pods, members or not.
    pub pods: BTreeSet<IpAddr>,
    /// The lists of members and pods are those of now, and somebody answers: who is in none of them is nobody.
    pub complete: bool,
    /// Members that the guard did not let go this time.
    pub refused: Vec<String>,
}

/// Remembers what was seen.
#[derive(Debug)]
pub struct Judge {
    members: BTreeMap<IpAddr, Known>,
    guard: Guard,
    /// How long who has never answered counts as starting.
    patience: Duration,
}

#[derive(Debug)]
struct Known {
    name: String,
    is_pod: bool,
    uid: Option<String>,
    since: Instant,
    gone: Option<Instant>,
    answered: bool,
    /// What its last answer made of it.
    said: MemberState,
    failures: u32,
    given_up: bool,
    listed: bool,
}

impl Removal {
    /// For the label of a metric.
    pub fn label(self) -> &'static str {
        match self {
            Removal::Draining => "draining",
            Removal::Pod => "pod",
            Removal::Notice => "notice",
            Removal::Unreachable => "unreachable",
        }
    }
}

impl MemberState {
    /// For the label of a metric.
    pub fn label(self) -> &'static str {
        match self {
            MemberState::Ready => "ready",
            MemberState::NotReady => "not_ready",
            MemberState::Starting => "starting",
            MemberState::Silent => "silent",
            MemberState::Leaving(_) => "leaving",
        }
    }

    /// All labels.
    pub const LABELS: [&str; 5] = ["ready", "not_ready", "starting", "silent", "leaving"];
}

impl MemberView {
    /// Has answered lately, and stays.
    pub fn lives(&self) -> bool {
        matches!(self.state, MemberState::Ready | MemberState::NotReady)
    }
}

impl Judge {
    /// Who has never answered counts as starting for this long.
    pub fn new(patience: Duration) -> Self {
        Judge { members: BTreeMap::new(), guard: Guard::default(), patience }
    }

    /// Whom to probe, besides the members of the list.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.members.iter().filter(|(_, known)| known.gone.is_none()).map(|(address, _)| *address)
    }

    /// Judges all members by what was seen now.
    pub fn round(&mut self, now: Instant, round: &Round) -> View {
        self.meet(now, round);
        let Round { members, pods, probes, registered } = round;
        let answers = |address: &IpAddr| match probes.get(address) {
            Some(Probe::Answers(answer)) => Some(answer),
            Some(Probe::Fails) | None => None,
        };
        let answering = self.members.keys().filter(|address| answers(address).is_some()).count();
        let counted = self
            .members
            .iter()
            .filter(|(address, known)| {
                known.gone.is_none() && (known.answered || registered.contains(address))
            })
            .count();
        let mut view = View::default();
        for (address, known) in &mut self.members {
            let fact = pods.as_ref().and_then(|pods| known.fact(pods));
            if known.is_pod && pods.is_some() && fact.is_none() && known.gone.is_none() {
                known.gone = Some(now);
            }
            let answer = answers(address);
            let state = if known.gone.is_some() || fact.is_some_and(|fact| fact.ends) {
                MemberState::Leaving(Removal::Pod)
            } else if fact.is_some_and(|fact| fact.notice) {
                MemberState::Leaving(Removal::Notice)
            } else if let Some(answer) = answer {
                known.answered = true;
                known.failures = 0;
                known.given_up = false;
                known.said = match (answer.draining, answer.ready) {
                    (true, _) => MemberState::Leaving(Removal::Draining),
                    (false, true) => MemberState::Ready,
                    (false, false) => MemberState::NotReady,
                };
                known.said
            } else {
                if probes.contains_key(address) {
                    known.failures = known.failures.saturating_add(1);
                }
                let waited = now.saturating_duration_since(known.since) >= self.patience;
                let drained = known.said == MemberState::Leaving(Removal::Draining);
                if known.failures < FAILURES || drained || !(known.answered || waited) {
                    // A probe that fails says nothing yet, and who drains goes silent at the end.
                    known.said
                } else {
                    if !known.given_up && registered.contains(address) {
                        known.given_up = self.guard.admits(now, counted, answering);
                        if !known.given_up {
                            view.refused.push(known.name.clone());
                        }
                    }
                    match known.given_up {
                        true => MemberState::Leaving(Removal::Unreachable),
                        false => MemberState::Silent,
                    }
                }
            };
            view.members.insert(
                *address,
                MemberView {
                    name: known.name.clone(),
                    uid: known.uid.clone(),
                    state,
                    answer: answer.cloned(),
                },
            );
        }
        view.pods = pods.iter().flatten().filter_map(|(_, fact)| fact.address).collect();
        let of_pods = self.members.values().any(|known| known.is_pod);
        view.complete = members.is_some() && answering > 0 && (pods.is_some() || !of_pods);
        view
    }

    /// Takes in who is listed, and forgets who is gone for long.
    fn meet(&mut self, now: Instant, round: &Round) {
        let Some(listed) = &round.members else { return };
        self.members.values_mut().for_each(|known| known.listed = false);
        for seen in listed {
            let fact = round.pods.as_ref().and_then(|pods| pods.get(&seen.name));
            let uid = fact.map(|fact| fact.uid.clone());
            let same = self.members.get(&seen.address).is_some_and(|known| {
                known.name == seen.name
                    && (known.uid.is_none() || uid.is_none() || known.uid == uid)
            });
            if same && let Some(known) = self.members.get_mut(&seen.address) {
                known.listed = true;
                known.uid = known.uid.take().or(uid);
            } else if self.members.len() < MAX_MEMBERS {
                let known = Known {
                    name: seen.name.clone(),
                    is_pod: seen.is_pod,
                    uid,
                    since: now,
                    gone: None,
                    answered: false,
                    said: MemberState::Starting,
                    failures: 0,
                    given_up: false,
                    listed: true,
                };
                self.members.insert(seen.address, known);
            }
        }
        self.members.retain(|_, known| match known.gone {
            Some(gone) => now.saturating_duration_since(gone) < KEPT,
            // Of who is no pod the list alone says whether there is one.
            None => known.listed || known.is_pod,
        });
    }
}

impl Known {
    /// Its pod, unless that is gone, or another one has its name.
    fn fact<'a>(&self, pods: &'a BTreeMap<String, PodFact>) -> Option<&'a PodFact> {
        let fact = pods.get(&self.name)?;
        (self.is_pod && self.uid.as_ref().is_none_or(|uid| *uid == fact.uid)).then_some(fact)
    }
}

#[cfg(test)]
mod tests;
