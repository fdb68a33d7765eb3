//! More weight for a member that has just started, until it carries what the others do.
//!
//! Clients choose a member for each new connection and keep it; without this a new member gets its share only as old
//! connections end.

use super::entry::Entry;
use super::judge::{MemberState, MemberView, View};
use std::collections::BTreeMap;

/// How many times the usual weight.
pub const TIMES: u64 = 3;
/// Seconds from a member's start for which it may have it.
pub const FOR_SECONDS: f64 = 180.0;
/// Share of the others' mean load at which it has enough.
pub const ENOUGH: f64 = 0.85;

/// Who had enough.
#[derive(Debug, Default)]
pub struct Weights {
    /// Entries, and the run of the member that has enough.
    settled: BTreeMap<String, String>,
}

/// Mean load of those that take traffic and are no new ones; `None`: there are none.
pub fn mean(view: &View) -> Option<f64> {
    let loads: Vec<f64> = view
        .members
        .values()
        .filter(|member| member.state == MemberState::Ready)
        .filter_map(|member| member.answer.as_ref())
        .filter(|answer| answer.uptime.is_some_and(|uptime| uptime >= FOR_SECONDS))
        .filter_map(|answer| answer.load)
        .collect();
    (!loads.is_empty()).then(|| loads.iter().sum::<f64>() / loads.len() as f64)
}

impl Weights {
    /// The weight that an entry of this member is to have; `usual`: that of the WorkloadGroup. 0: none. What a person
    /// has set stays.
    pub fn wanted(
        &mut self,
        entry: &Entry,
        usual: u64,
        member: &MemberView,
        mean: Option<f64>,
    ) -> u64 {
        let more = TIMES * usual.max(1);
        if entry.weight != usual && entry.weight != more && entry.weight > 1 {
            return entry.weight;
        }
        let Some(answer) = member.answer.as_ref().filter(|_| member.state == MemberState::Ready)
        else {
            return entry.weight;
        };
        let (Some(uptime), Some(load)) = (answer.uptime, answer.load) else { return entry.weight };
        if self.settled.get(&entry.name) == Some(&answer.instance) {
            return usual;
        }
        let enough = mean.is_none_or(|mean| load >= ENOUGH * mean);
        if uptime >= FOR_SECONDS || enough {
            self.settled.insert(entry.name.clone(), answer.instance.clone());
            return usual;
        }
        more
    }

    /// Forgets entries that are gone.
    pub fn keep(&mut self, entries: &[Entry]) {
        self.settled.retain(|name, _| entries.iter().any(|entry| entry.name == *name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::judge::Answer;

    fn member(uptime: f64, load: f64) -> MemberView {
        let answer = Answer {
            ready: true,
            instance: "run-1".to_owned(),
            uptime: Some(uptime),
            load: Some(load),
            ..Answer::default()
        };
        MemberView {
            name: "m".to_owned(),
            uid: None,
            state: MemberState::Ready,
            answer: Some(answer),
        }
    }

    fn entry(weight: u64) -> Entry {
        Entry { name: "e".to_owned(), weight, ..Entry::default() }
    }

    #[test]
    fn only_the_new_and_idle_get_more() {
        for (weight, usual, uptime, load, mean, wanted) in [
            (0, 0, 10.0, 0.0, Some(40.0), 3),
            (3, 0, 20.0, 33.0, Some(40.0), 3),
            (3, 0, 20.0, 34.0, Some(40.0), 0),
            (3, 0, 180.0, 0.0, Some(40.0), 0),
            (0, 0, 500.0, 0.0, Some(40.0), 0),
            (0, 0, 10.0, 0.0, Some(0.0), 0),
            (0, 0, 10.0, 0.0, None, 0),
            (2, 2, 10.0, 0.0, Some(40.0), 6),
            (6, 2, 190.0, 0.0, Some(40.0), 2),
            (7, 0, 10.0, 0.0, Some(40.0), 7),
        ] {
            let got = Weights::default().wanted(&entry(weight), usual, &member(uptime, load), mean);
            assert_eq!(got, wanted, "{weight} {usual} {uptime} {load} {mean:?}");
        }
    }

    #[test]
    fn who_had_enough_does_not_get_more_again() {
        let mut weights = Weights::default();
        let mut wanted =
            |entry: &Entry, member: &MemberView| weights.wanted(entry, 0, member, Some(40.0));
        assert_eq!(wanted(&entry(0), &member(10.0, 0.0)), 3);
        assert_eq!(wanted(&entry(3), &member(12.0, 40.0)), 0);
        assert_eq!(wanted(&entry(0), &member(14.0, 0.0)), 0, "less load later changes nothing");
        let mut restarted = member(2.0, 0.0);
        restarted.answer =
            restarted.answer.map(|answer| Answer { instance: "run-2".to_owned(), ..answer });
        assert_eq!(wanted(&entry(0), &restarted), 3, "another run of it");
        let silent = MemberView { answer: None, ..member(1.0, 0.0) };
        assert_eq!(wanted(&entry(3), &silent), 3, "of who does not answer nothing is changed");
    }

    #[test]
    fn new_members_are_not_of_the_mean() {
        let of = |members: Vec<MemberView>| {
            let numbered = (0..).map(|number| std::net::IpAddr::from([10, 8, 0, number]));
            mean(&View { members: numbered.zip(members).collect(), ..View::default() })
        };
        assert_eq!(
            of(vec![member(200.0, 30.0), member(200.0, 50.0), member(5.0, 0.0)]),
            Some(40.0)
        );
        assert_eq!(of(vec![member(5.0, 0.0)]), None);
    }
}
