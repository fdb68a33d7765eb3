//! The members of a pool, as the scaler and the registrar find and ask them.

pub mod poll;

pub use poll::{PollError, Poller};

use cairn_kube::Endpoints;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a name is looked up.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);
/// How long that may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);

/// Somebody to poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name of its pod, or its address.
    pub name: String,
    /// `host:port` of its pages.
    pub authority: String,
    /// Its zone, where that is known before it answers.
    pub zone: Option<String>,
    /// It is known to take no traffic yet.
    pub starting: bool,
    /// It is going.
    pub terminating: bool,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    /// `None`: no list has come yet. The last one stays while there is no newer.
    pub members: Option<Arc<[Member]>>,
    /// Members that are too many to be polled.
    pub dropped: usize,
    /// Why there is no newer list.
    pub problem: Option<String>,
}

/// Where they come from.
pub enum Source {
    /// A Service, and the port of its endpoints' pages.
    Service(watch::Receiver<Endpoints>, u16),
    /// A name of DNS, or a list.
    Other(watch::Receiver<Roster>),
}

impl Source {
    /// A list that does not change.
    pub fn fixed(members: &[String]) -> Self {
        let mut names: Vec<&String> = members.iter().collect();
        names.sort();
        names.dedup();
        let members = names.into_iter().map(|address| Member::at(address.clone()));
        let roster = Roster { members: Some(members.collect()), ..Roster::default() };
        Source::Other(watch::channel(roster).1)
    }

    /// All addresses of `host:port`, until nobody listens.
    pub fn dns(name: String) -> Self {
        let (sender, receiver) = watch::channel(Roster::default());
        tokio::spawn(async move {
            loop {
                let found = lookup(&name).await;
                sender.send_modify(|roster| match found {
                    Ok(members) => {
                        *roster = Roster { members: Some(members), ..Roster::default() };
                    }
                    Err(problem) => roster.problem = Some(problem),
                });
                tokio::select! {
                    () = tokio::time::sleep(LOOKUP_INTERVAL) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Source::Other(receiver)
    }

    /// Those of now.
    pub fn roster(&self) -> Roster {
        match self {
            Source::Other(receiver) => receiver.borrow().clone(),
            Source::Service(receiver, port) => {
                let state = receiver.borrow().clone();
                let member = |endpoint: &cairn_kube::Endpoint| Member {
                    name: endpoint.name.clone(),
                    authority: SocketAddr::new(endpoint.address, *port).to_string(),
                    zone: endpoint.zone.clone(),
                    starting: !endpoint.ready && !endpoint.serving && !endpoint.terminating,
                    terminating: endpoint.terminating,
                };
                Roster {
                    members: state.list.map(|list| list.iter().map(member).collect()),
                    dropped: state.dropped,
                    problem: state.problem.map(|problem| problem.to_string()),
                }
            }
        }
    }
}

impl Member {
    /// One of which nothing is known but where its pages are.
    pub fn at(address: String) -> Self {
        Member {
            name: address.clone(),
            authority: address,
            zone: None,
            starting: false,
            terminating: false,
        }
    }
}

/// A name without addresses is a problem, not an empty fleet: its members are busy until they are
/// known to be gone.
async fn lookup(name: &str) -> Result<Arc<[Member]>, String> {
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(name))
        .await
        .map_err(|_elapsed| format!("{name}: DNS does not answer within {LOOKUP_TIMEOUT:?}"))?
        .map_err(|error| format!("{name}: {error}"))?;
    let mut addresses: Vec<SocketAddr> = found.take(cairn_autoscale::fleet::MAX_MEMBERS).collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(format!("{name} has no address"));
    }
    Ok(addresses.into_iter().map(|address| Member::at(address.to_string())).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_is_what_it_says_once() {
        let source = Source::fixed(&["b:1".to_owned(), "a:1".to_owned(), "b:1".to_owned()]);
        let members = source.roster().members.unwrap();
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a:1", "b:1"]);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_a_bad_one_is_a_problem() {
        let members = lookup("localhost:15020").await.unwrap();
        assert!(members.iter().any(|member| member.authority == "127.0.0.1:15020"));
        let problem = lookup("no-such-name.invalid:1").await.unwrap_err();
        assert!(problem.contains("no-such-name.invalid"), "{problem}");
    }

    #[test]
    fn endpoints_become_members() {
        let endpoint = cairn_kube::Endpoint {
            name: "pod".to_owned(),
            uid: None,
            address: "fd00::1".parse().unwrap(),
            ready: false,
            serving: false,
            terminating: false,
            zone: Some("z1".to_owned()),
        };
        let state = Endpoints { list: Some([endpoint].into()), dropped: 3, problem: None };
        let roster = Source::Service(watch::channel(state).1, 15020).roster();
        let members = roster.members.unwrap();
        assert_eq!(members[0].authority, "[fd00::1]:15020");
        assert!(members[0].starting && roster.dropped == 3);
    }
}
