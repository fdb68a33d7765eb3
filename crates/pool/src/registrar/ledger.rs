//! What becomes of the entries of one cluster.
//!
//! An entry is deleted once for each stream that it stands for, and never while its member answers and stays. One that
//! comes back is reported, and left: istiod has seen the member since.

use super::entry::Entry;
use super::judge::{FAILURES, MemberState, Removal, View};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Deletions that are remembered.
const MAX_REMEMBERED: usize = 10_000;
/// How long one is remembered: longer than istiod lets a stream live.
const REMEMBERED: Duration = Duration::from_secs(7200);

/// Why an entry is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its member leaves.
    Leaves(Removal),
    /// It has none.
    Leaked,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It stays.
    Keep,
    /// It is deleted, and [`Ledger::deleted`] is told.
    Delete(Why),
    /// It ought not to be there, and stays: in words.
    Conflict(&'static str),
}

/// What was done with entries of one cluster.
#[derive(Debug)]
pub struct Ledger {
    deleted: BTreeMap<String, Deleted>,
    strangers: BTreeMap<String, Stranger>,
    /// How long an entry without a member stays.
    patience: Duration,
}

#[derive(Debug)]
struct Deleted {
    connected_at: String,
    why: Why,
    at: Instant,
}

#[derive(Debug)]
struct Stranger {
    connected_at: String,
    since: Instant,
    failures: u32,
}

impl Why {
    /// For the label of a metric.
    pub fn label(self) -> &'static str {
        match self {
            Why::Leaves(removal) => removal.label(),
            Why::Leaked => "leaked",
        }
    }

    /// All labels.
    pub const LABELS: [&str; 5] = ["draining", "pod", "notice", "unreachable", "leaked"];
}

impl Ledger {
    /// An entry without a member stays for so long.
    pub fn new(patience: Duration) -> Self {
        Ledger { deleted: BTreeMap::new(), strangers: BTreeMap::new(), patience }
    }

    /// Addresses of entries that have no member, to be probed.
    pub fn strangers(entries: &[Entry], view: &View) -> Vec<IpAddr> {
        let unknown = |address: &IpAddr| !view.members.contains_key(address);
        entries.iter().filter_map(|entry| entry.address).filter(unknown).collect()
    }

    /// What becomes of each entry, in their order. `answers`: whether strangers answered.
    pub fn judge(
        &mut self,
        now: Instant,
        entries: &[Entry],
        view: &View,
        answers: &BTreeMap<IpAddr, bool>,
    ) -> Vec<Step> {
        self.strangers.retain(|name, _| entries.iter().any(|entry| entry.name == *name));
        self.deleted.retain(|_, deleted| now.saturating_duration_since(deleted.at) < REMEMBERED);
        entries.iter().map(|entry| self.step(now, entry, view, answers)).collect()
    }

    fn step(
        &mut self,
        now: Instant,
        entry: &Entry,
        view: &View,
        answers: &BTreeMap<IpAddr, bool>,
    ) -> Step {
        let Some(address) = entry.address else { return Step::Keep };
        let Some(member) = view.members.get(&address) else {
            return self.stranger(now, entry, view, answers.get(&address).copied());
        };
        self.strangers.remove(&entry.name);
        let MemberState::Leaving(removal) = member.state else {
            if member.lives()
                && self.deleted.get(&entry.name).is_some_and(|deleted| deleted.is_of(entry))
            {
                return Step::Conflict(
                    "is back on the stream for which it was deleted, and its member answers",
                );
            }
            if member.lives() {
                self.deleted.remove(&entry.name);
            }
            return Step::Keep;
        };
        match self.deleted.get(&entry.name) {
            Some(deleted) if deleted.is_of(entry) => {
                Step::Conflict("is back on the stream for which it was deleted")
            }
            Some(deleted)
                if deleted.why == Why::Leaves(Removal::Unreachable)
                    && removal == Removal::Unreachable =>
            {
                Step::Conflict(
                    "was registered anew by a member that does not answer here: is the registrar cut off from it?",
                )
            }
            _ => Step::Delete(Why::Leaves(removal)),
        }
    }

    fn stranger(
        &mut self,
        now: Instant,
        entry: &Entry,
        view: &View,
        answers: Option<bool>,
    ) -> Step {
        if self.deleted.get(&entry.name).is_some_and(|deleted| deleted.is_of(entry)) {
            return Step::Conflict("is back on the stream for which it was deleted");
        }
        let fresh =
            || Stranger { connected_at: entry.connected_at.clone(), since: now, failures: 0 };
        let stranger = self.strangers.entry(entry.name.clone()).or_insert_with(fresh);
        if stranger.connected_at != entry.connected_at {
            *stranger = fresh();
        }
        match answers {
            Some(true) => {
                stranger.failures = 0;
                return Step::Conflict(
                    "has the address of no member, and yet somebody answers there",
                );
            }
            Some(false) => stranger.failures = stranger.failures.saturating_add(1),
            None => {}
        }
        let old = now.saturating_duration_since(stranger.since) >= self.patience;
        let is_pod = entry.address.is_some_and(|address| view.pods.contains(&address));
        match old && stranger.failures >= FAILURES && view.complete && !is_pod {
            true => Step::Delete(Why::Leaked),
            false => Step::Keep,
        }
    }

    /// An entry was deleted.
    pub fn deleted(&mut self, now: Instant, entry: &Entry, why: Why) {
        self.strangers.remove(&entry.name);
        if self.deleted.len() >= MAX_REMEMBERED {
            let oldest = self.deleted.iter().min_by_key(|(_, deleted)| deleted.at);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.deleted.remove(&oldest);
            }
        }
        let deleted = Deleted { connected_at: entry.connected_at.clone(), why, at: now };
        self.deleted.insert(entry.name.clone(), deleted);
    }
}

impl Deleted {
    fn is_of(&self, entry: &Entry) -> bool {
        self.connected_at == entry.connected_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::judge::{Answer, MemberView};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn entry(connected_at: &str) -> Entry {
        Entry {
            name: "p-10.8.0.1".to_owned(),
            address: "10.8.0.1".parse().ok(),
            connected_at: connected_at.to_owned(),
            ..Entry::default()
        }
    }

    fn view(state: Option<MemberState>) -> View {
        let member = |state| MemberView {
            name: "m".to_owned(),
            uid: None,
            state,
            answer: matches!(state, MemberState::Ready).then(Answer::default),
        };
        let members = state.map(|state| (IpAddr::from([10, 8, 0, 1]), member(state)));
        View { members: members.into_iter().collect(), complete: true, ..View::default() }
    }

    fn judge(ledger: &mut Ledger, now: Instant, entry: &Entry, view: &View, answers: bool) -> Step {
        let answers = [(IpAddr::from([10, 8, 0, 1]), answers)].into();
        let steps = ledger.judge(now, std::slice::from_ref(entry), view, &answers);
        let step = steps[0];
        if let Step::Delete(why) = step {
            ledger.deleted(now, entry, why);
        }
        step
    }

    #[test]
    fn an_entry_goes_with_its_member_and_only_once_for_a_stream() {
        use MemberState::{Leaving, NotReady, Ready, Silent, Starting};
        let (now, conflict) = (Instant::now(), "conflict");
        let name = |step: Step| match step {
            Step::Keep => "keep",
            Step::Delete(why) => why.label(),
            Step::Conflict(_) => conflict,
        };
        // How the member stands, the stream of its entry, and what becomes of that, one after another.
        for course in [
            vec![
                (Ready, "t1", "keep"),
                (NotReady, "t1", "keep"),
                (Silent, "t1", "keep"),
                (Starting, "t1", "keep"),
            ],
            vec![
                (Leaving(Removal::Draining), "t1", "draining"),
                (Leaving(Removal::Draining), "t1", conflict),
            ],
            vec![
                (Leaving(Removal::Draining), "t1", "draining"),
                (Leaving(Removal::Draining), "t2", "draining"),
            ],
            vec![(Leaving(Removal::Pod), "t1", "pod"), (Leaving(Removal::Pod), "t2", "pod")],
            vec![
                (Leaving(Removal::Unreachable), "t1", "unreachable"),
                (Leaving(Removal::Unreachable), "t2", conflict),
                (Ready, "t2", "keep"),
                (Leaving(Removal::Unreachable), "t2", "unreachable"),
            ],
            vec![(Leaving(Removal::Unreachable), "t1", "unreachable"), (Ready, "t1", conflict)],
            vec![
                (Leaving(Removal::Unreachable), "t1", "unreachable"),
                (Leaving(Removal::Pod), "t2", "pod"),
            ],
        ] {
            let mut ledger = Ledger::new(PATIENCE);
            for (number, (state, stream, wanted)) in course.iter().enumerate() {
                let step = judge(&mut ledger, now, &entry(stream), &view(Some(*state)), false);
                assert_eq!(name(step), *wanted, "{number} of {course:?}");
            }
        }
    }

    #[test]
    fn a_leak_is_swept_when_it_is_old_and_nobody_answers() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let nobody = view(None);
        let sweep = |ledger: &mut Ledger, view: &View, answers: &[(u64, bool)]| {
            let steps = answers.iter().map(|(seconds, answers)| {
                judge(ledger, at(*seconds), &entry("t1"), view, *answers)
            });
            steps.last()
        };
        let ledger = || Ledger::new(PATIENCE);
        let silent = [(0, false), (2, false), (4, false), (29, false)];
        assert_eq!(sweep(&mut ledger(), &nobody, &silent), Some(Step::Keep));
        let mut swept = ledger();
        sweep(&mut swept, &nobody, &silent);
        assert_eq!(sweep(&mut swept, &nobody, &[(30, false)]), Some(Step::Delete(Why::Leaked)));
        assert!(matches!(sweep(&mut swept, &nobody, &[(32, false)]), Some(Step::Conflict(_))));
        let answers = [(0, false), (2, false), (4, false), (30, true)];
        assert!(matches!(sweep(&mut ledger(), &nobody, &answers), Some(Step::Conflict(_))));
        assert_eq!(
            sweep(&mut ledger(), &nobody, &[(0, false), (30, false)]),
            Some(Step::Keep),
            "two probes"
        );
        let old = [(0, false), (2, false), (4, false), (60, false)];
        let unsure = View { complete: false, ..nobody.clone() };
        assert_eq!(sweep(&mut ledger(), &unsure, &old), Some(Step::Keep));
        let a_pod = View { pods: [IpAddr::from([10, 8, 0, 1])].into(), ..nobody.clone() };
        assert_eq!(sweep(&mut ledger(), &a_pod, &old), Some(Step::Keep));
        // A member that registers anew meanwhile is another one.
        let mut anew = ledger();
        sweep(&mut anew, &nobody, &silent);
        assert_eq!(judge(&mut anew, at(60), &entry("t2"), &nobody, false), Step::Keep);
    }
}
