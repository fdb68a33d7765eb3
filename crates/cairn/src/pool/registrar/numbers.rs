//! `cairn_registrar_*`, and what `/state` shows.

use cairn_kube::Leadership;
use cairn_pool::registrar::ledger::Why;
use cairn_pool::registrar::{MemberState, View};
use cairn_telemetry::Writer;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::time::Instant;

/// What was counted, and how each cluster stands.
#[derive(Debug, Default)]
pub struct Numbers {
    /// By [`Why::LABELS`].
    deletions: [AtomicU64; 5],
    refused: AtomicU64,
    drains: AtomicU64,
    rounds: AtomicU64,
    /// Why members are not fully known.
    members_problem: Mutex<Option<String>>,
    clusters: Mutex<BTreeMap<String, OfCluster>>,
}

#[derive(Debug, Clone, Default)]
struct OfCluster {
    entries: usize,
    conflicts: usize,
    errors: u64,
    token_expires: Option<Instant>,
    /// By what could not be done.
    problems: BTreeMap<&'static str, String>,
}

impl Numbers {
    /// A cluster that there is, so that it is shown from the start.
    pub fn add(&self, cluster: &str) {
        self.clusters.lock().insert(cluster.to_owned(), OfCluster::default());
    }

    fn change<T>(&self, cluster: &str, change: impl FnOnce(&mut OfCluster) -> T) -> Option<T> {
        self.clusters.lock().get_mut(cluster).map(change)
    }

    /// All members were judged.
    pub fn round(&self) {
        self.rounds.fetch_add(1, Relaxed);
    }

    /// Why members are not fully known.
    pub fn of_members(&self, problem: Option<&str>) {
        *self.members_problem.lock() = problem.map(str::to_owned);
    }

    /// An entry was deleted.
    pub fn deleted(&self, why: Why) {
        let counters = Why::LABELS.iter().zip(&self.deletions);
        for (_, counter) in counters.filter(|(label, _)| **label == why.label()) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The guard did not let a member go.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// A member was told to drain.
    pub fn drained(&self) {
        self.drains.fetch_add(1, Relaxed);
    }

    /// Entries of a cluster, and how many of them ought not to be there.
    pub fn entries(&self, cluster: &str, entries: usize, conflicts: usize) {
        self.change(cluster, |of| {
            of.entries = entries;
            of.conflicts = conflicts;
        });
    }

    /// A token was minted.
    pub fn token(&self, cluster: &str, expires: Instant) {
        self.change(cluster, |of| of.token_expires = Some(expires));
    }

    /// The API server of a cluster refused something, or did not answer.
    pub fn failed(&self, cluster: &str) {
        self.change(cluster, |of| of.errors += 1);
    }

    /// Something is as it should be again, or is not. Returns whether that is news.
    pub fn outcome(&self, cluster: &str, part: &'static str, problem: Option<String>) -> bool {
        let news = self.change(cluster, |of| match problem {
            Some(problem) => of.problems.insert(part, problem.clone()).as_ref() != Some(&problem),
            None => of.problems.remove(part).is_some(),
        });
        news.unwrap_or(false)
    }

    /// Writes all of them.
    pub fn write(&self, writer: &mut Writer, view: Option<&View>, leads: bool) {
        let Numbers { deletions, refused, drains, rounds, members_problem, clusters } = self;
        let leader = f64::from(u8::from(leads));
        writer.gauge(
            "cairn_registrar_leader",
            "1 while this registrar holds the Lease.",
            &[],
            leader,
        );
        let count = |state: &str| {
            let members = view.into_iter().flat_map(|view| view.members.values());
            members.filter(|member| member.state.label() == state).count()
        };
        for state in MemberState::LABELS {
            let help = "Members by how they stand.";
            writer.gauge("cairn_registrar_members", help, &[("state", state)], count(state) as f64);
        }
        for (label, counter) in Why::LABELS.iter().zip(deletions) {
            let help = "Entries deleted, by reason.";
            let labels = [("reason", *label)];
            writer.counter("cairn_registrar_deletions_total", help, &labels, counter.load(Relaxed));
        }
        let swept =
            Why::LABELS.iter().zip(deletions).find(|(label, _)| **label == Why::Leaked.label());
        for (name, help, value) in [
            (
                "cairn_registrar_rounds_total",
                "Times that all members were judged.",
                rounds.load(Relaxed),
            ),
            (
                "cairn_registrar_swept_total",
                "Entries deleted that had no member.",
                swept.map_or(0, |(_, counter)| counter.load(Relaxed)),
            ),
            (
                "cairn_registrar_refused_total",
                "Members that fall silent and were not given up, because too many did.",
                refused.load(Relaxed),
            ),
            (
                "cairn_registrar_drains_total",
                "Members that were told to drain.",
                drains.load(Relaxed),
            ),
        ] {
            writer.counter(name, help, &[], value);
        }
        let unknown = f64::from(u8::from(leads && members_problem.lock().is_some()));
        let help =
            "1 while list, pods or notices of members are not those of now; 0 while another leads.";
        writer.gauge("cairn_registrar_members_problem", help, &[], unknown);
        for (name, of) in clusters.lock().iter() {
            let labels = [("cluster", name.as_str())];
            // Who led before knows only what was.
            let now = |count: usize| if leads { count as f64 } else { 0.0 };
            let help = "Entries of members; 0 while another leads, as the next two.";
            writer.gauge("cairn_registrar_entries", help, &labels, now(of.entries));
            let help = "Entries that ought not to be there and are left.";
            writer.gauge("cairn_registrar_conflicts", help, &labels, now(of.conflicts));
            let help = "Things that cannot be done in the cluster.";
            writer.gauge("cairn_registrar_problems", help, &labels, now(of.problems.len()));
            let help = "What the API server refused or did not answer.";
            writer.counter("cairn_registrar_api_errors_total", help, &labels, of.errors);
            if let Some(expires) = of.token_expires.filter(|_| leads) {
                let left = expires.saturating_duration_since(Instant::now()).as_secs_f64();
                let help = "Until the token for members that start runs out.";
                writer.gauge("cairn_registrar_token_remaining_seconds", help, &labels, left);
            }
        }
    }

    /// `/state`.
    pub fn state(&self, view: Option<&View>, leadership: &Leadership) -> Value {
        let members: Vec<Value> = view
            .into_iter()
            .flat_map(|view| &view.members)
            .map(|(address, member)| {
                let reason = match member.state {
                    MemberState::Leaving(removal) => Some(removal.label()),
                    _ => None,
                };
                json!({
                    "name": member.name, "address": address, "state": member.state.label(), "reason": reason,
                })
            })
            .collect();
        let clusters: serde_json::Map<String, Value> = self
            .clusters
            .lock()
            .iter()
            .map(|(name, of)| {
                let value = json!({
                    "entries": of.entries, "conflicts": of.conflicts, "problems": of.problems,
                });
                (name.clone(), value)
            })
            .collect();
        json!({
            "leader": leadership.holds(), "holder": leadership.holder,
            "problem": leadership.problem.as_ref().map(ToString::to_string),
            "members": members, "members_problem": *self.members_problem.lock(), "clusters": clusters,
        })
    }
}
