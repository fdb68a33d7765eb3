//! The members' side: finds, probes and judges them, and tells those to drain whose machine is taken away.

use super::super::cluster::{EVENT, POD};
use super::super::found::{Found, Prober};
use super::numbers::Numbers;
use crate::ready::Readiness;
use crate::scaler::read_token;
use cairn_kube::{Client, Error, Leadership, Selection};
use cairn_pool::registrar::{Judge, MemberState, PodFact, Probe, Removal, Round, View};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// What readiness waits for.
pub const FIRST_ROUND: &str = "the first look at all members";
/// Members that are asked at a time.
const AT_A_TIME: usize = 256;
/// Between two looks at the Lease while another registrar leads.
const STANDBY: Duration = Duration::from_millis(500);
/// A member that was told to drain and does not is told again after so long.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// Reason of the event by which a machine is announced to be taken away. Alibaba Cloud: ECI.
const NOTICE: &str = "reason=SpotToBeReleased,involvedObject.kind=Pod";

/// Addresses for which a cluster has an entry, by cluster.
pub type Registered = Arc<Mutex<BTreeMap<String, BTreeSet<IpAddr>>>>;

/// Finds, probes and judges.
pub struct Watcher {
    /// Where members come from.
    pub found: Found,
    /// The members' cluster and their namespace there.
    pub client: (Client, String),
    /// Asks them.
    pub prober: Prober,
    /// Between two rounds.
    pub interval: Duration,
    /// How long who has never answered counts as starting.
    pub patience: Duration,
    /// The pool's token, for drain orders.
    pub token_file: Option<PathBuf>,
    /// Whether we lead.
    pub leadership: watch::Receiver<Leadership>,
    /// Who has an entry.
    pub registered: Registered,
    /// Told how members stand; `None`: we do not lead.
    pub view: watch::Sender<Option<Arc<View>>>,
    /// Counts.
    pub numbers: Arc<Numbers>,
    /// Told when the first round is over.
    pub readiness: Arc<Readiness>,
}

/// What is remembered while we lead.
struct Memory {
    judge: Judge,
    /// Names that the guard refused in the last round.
    refused: BTreeSet<String>,
    /// When a pod was told to drain, by its uid.
    told: HashMap<String, Instant>,
    problem: Option<String>,
    states: BTreeMap<IpAddr, MemberState>,
}

impl Watcher {
    /// Goes on until it is dropped.
    pub async fn run(self) {
        let mut lease_problem = None;
        loop {
            while !self.leads() {
                self.wait(&mut lease_problem);
                tokio::time::sleep(STANDBY).await;
            }
            tracing::info!("holds the Lease: this registrar acts");
            let mut memory = Memory {
                judge: Judge::new(self.patience),
                refused: BTreeSet::new(),
                told: HashMap::new(),
                problem: None,
                states: BTreeMap::new(),
            };
            let mut ticks = tokio::time::interval(self.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while self.leads() {
                ticks.tick().await;
                self.round(&mut memory).await;
            }
            tracing::warn!("does not hold the Lease any more: this registrar waits");
            self.view.send_replace(None);
            self.numbers.of_members(None);
        }
    }

    /// Says why it only waits; `before`: what was wrong with the Lease when it was looked at last.
    fn wait(&self, before: &mut Option<String>) {
        let leadership = self.leadership.borrow().clone();
        if !leadership.holder.is_empty() {
            self.readiness.arrived(FIRST_ROUND);
        }
        let problem = leadership.problem.map(|problem| problem.to_string());
        if let Some(problem) = &problem {
            self.readiness.still_missing(FIRST_ROUND, problem);
            if before.as_ref() != Some(problem) {
                tracing::warn!(problem, "the Lease cannot be had");
            }
        }
        *before = problem;
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().holds()
    }

    async fn round(&self, memory: &mut Memory) {
        let (members, of_list) = self.found.now();
        let listed = members.iter().flatten().map(|member| member.address);
        let addresses: BTreeSet<IpAddr> = memory.judge.addresses().chain(listed).collect();
        let probes = futures::stream::iter(addresses)
            .map(|address| async move { (address, self.prober.probe(address).await) })
            .buffer_unordered(AT_A_TIME)
            .collect::<BTreeMap<IpAddr, Probe>>();
        let (probes, pods) = tokio::join!(probes, self.pods());
        let (pods, of_pods) = pods;
        let problems: Vec<String> = of_list.into_iter().chain(of_pods).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        let registered = self.registered.lock().values().flatten().copied().collect();
        let waits = members.is_none();
        let round = Round { members, pods, probes, registered };
        let view = memory.judge.round(std::time::Instant::now(), &round);
        self.tell(memory, &view, problem.as_ref());
        self.numbers.of_members(problem.as_deref());
        self.numbers.round();
        match (waits, &problem) {
            (true, Some(problem)) => self.readiness.still_missing(FIRST_ROUND, problem),
            (true, None) => {}
            (false, _) => self.readiness.arrived(FIRST_ROUND),
        }
        let view = Arc::new(view);
        if self.leads() {
            self.view.send_replace(Some(Arc::clone(&view)));
            self.drain(memory, &view).await;
        }
    }

    /// Pods of the members' namespace by name, and what is wrong; `None`: members are no pods, or these are not known.
    async fn pods(&self) -> (Option<BTreeMap<String, PodFact>>, Vec<String>) {
        if !self.found.are_pods {
            return (None, Vec::new());
        }
        let (client, namespace) = &self.client;
        let all = Selection { namespace, ..Selection::default() };
        let notices = Selection { fields: NOTICE, ..all };
        let asked = async { tokio::join!(client.list(&POD, all), client.list(&EVENT, notices)) };
        // A round does not wait for an API server that is away.
        let Ok((pods, notices)) = tokio::time::timeout(self.interval, asked).await else {
            let late = format!("the members' cluster does not answer within {:?}", self.interval);
            return (None, vec![late]);
        };
        let problems = [pods.as_ref().err(), notices.as_ref().err()];
        let problems = problems.into_iter().flatten().map(Error::to_string).collect();
        // Without notices pods are known all the same.
        let notices = notices.unwrap_or_default();
        let facts = |pods: Vec<Value>| pods.iter().filter_map(|pod| fact(pod, &notices)).collect();
        (pods.ok().map(facts), problems)
    }

    /// Logs what has changed.
    fn tell(&self, memory: &mut Memory, view: &View, problem: Option<&String>) {
        if memory.problem.as_ref() != problem {
            match problem {
                Some(problem) => tracing::warn!(problem, "members are not fully known"),
                None => tracing::info!("members are known again"),
            }
            memory.problem = problem.cloned();
        }
        let refused: BTreeSet<String> = view.refused.iter().cloned().collect();
        for member in refused.difference(&memory.refused) {
            self.numbers.refused();
            tracing::warn!(
                member,
                "does not answer, and stays: too many fall silent at once, or nobody answers"
            );
        }
        memory.refused = refused;
        let before = std::mem::take(&mut memory.states);
        for (address, member) in &view.members {
            if before.get(address) != Some(&member.state) {
                let state = member.state.label();
                let reason = match member.state {
                    MemberState::Leaving(removal) => removal.label(),
                    _ => "",
                };
                tracing::info!(member = member.name, %address, state, reason, "member");
            }
            memory.states.insert(*address, member.state);
        }
    }

    /// Tells those to drain whose machine is taken away, until they do.
    async fn drain(&self, memory: &mut Memory, view: &View) {
        let now = Instant::now();
        memory
            .told
            .retain(|uid, _| view.members.values().any(|member| member.uid.as_ref() == Some(uid)));
        let due: Vec<(IpAddr, String, String)> = view
            .members
            .iter()
            .filter(|(_, member)| member.state == MemberState::Leaving(Removal::Notice))
            .filter(|(_, member)| !member.answer.as_ref().is_some_and(|answer| answer.draining))
            .filter_map(|(address, member)| {
                Some((*address, member.name.clone(), member.uid.clone()?))
            })
            .filter(|(_, _, uid)| {
                memory.told.get(uid).is_none_or(|at| now.duration_since(*at) >= TOLD_AGAIN)
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let token = match &self.token_file {
            Some(file) => read_token(file).await,
            None => Err("the file has no pool.token_file".to_owned()),
        };
        let token = match token {
            Ok(token) => token,
            Err(reason) => {
                tracing::warn!(reason, "members cannot be told to drain");
                return;
            }
        };
        let orders = due.into_iter().map(|(address, name, uid)| {
            let pages = self.prober.pages(address);
            let token = &token;
            async move { (name, uid, self.prober.poller.drain(&pages, token).await) }
        });
        for (member, uid, answer) in futures::future::join_all(orders).await {
            match answer {
                Ok(200..=299) => {
                    self.numbers.drained();
                    tracing::info!(member, "was told to drain: its machine will be taken away");
                    memory.told.insert(uid, now);
                }
                Ok(status) => tracing::warn!(member, status, "refuses to drain"),
                Err(error) => tracing::warn!(member, %error, "cannot be told to drain"),
            }
        }
    }
}

fn fact(pod: &Value, notices: &[Value]) -> Option<(String, PodFact)> {
    let metadata = &pod["metadata"];
    let name = metadata["name"].as_str()?;
    let uid = metadata["uid"].as_str()?;
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let notice = notices.iter().any(|event| {
        let of = &event["involvedObject"];
        of["name"] == name && of["uid"].as_str().is_none_or(|of| of.is_empty() || of == uid)
    });
    let fact = PodFact {
        uid: uid.to_owned(),
        ends: over || metadata["deletionTimestamp"].is_string(),
        notice,
        address: pod["status"]["podIP"].as_str().and_then(|address| address.parse().ok()),
    };
    Some((name.to_owned(), fact))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pods_object_says() {
        let pod = |metadata: Value, phase: &str| {
            let mut pod = json!({
                "metadata": { "name": "m", "uid": "u" },
                "status": { "podIP": "10.8.0.1", "phase": phase },
            });
            let fields = metadata.as_object().unwrap().clone();
            pod["metadata"].as_object_mut().unwrap().extend(fields);
            pod
        };
        let event =
            |name: &str, uid: Value| json!({ "involvedObject": { "name": name, "uid": uid } });
        for (pod, events, ends, notice) in [
            (pod(json!({}), "Running"), vec![], false, false),
            (pod(json!({ "deletionTimestamp": "t" }), "Running"), vec![], true, false),
            (pod(json!({}), "Failed"), vec![], true, false),
            (pod(json!({}), "Running"), vec![event("m", "u".into())], false, true),
            (pod(json!({}), "Running"), vec![event("m", Value::Null)], false, true),
            // The pod that had its name before, and another one.
            (pod(json!({}), "Running"), vec![event("m", "old".into())], false, false),
            (pod(json!({}), "Running"), vec![event("n", Value::Null)], false, false),
        ] {
            let (name, fact) = fact(&pod, &events).unwrap();
            assert_eq!(
                (name.as_str(), fact.ends, fact.notice),
                ("m", ends, notice),
                "{pod} {events:?}"
            );
            assert_eq!(fact.address, "10.8.0.1".parse().ok());
        }
    }
}
