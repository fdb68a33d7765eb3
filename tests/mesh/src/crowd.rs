//! A cluster's clients at work: each connection of an application goes to the member that ztunnel picks, does some
//! requests and ends, and another takes its place. The next request is made when the last one is answered.
//!
//! Clients are good ones: they open another connection when theirs says `Connection: close` or GOAWAY, and only
//! then. Nothing is tried again: whatever is not a 200 of one of the right backends is counted, with the member.

use crate::control;
use crate::hbone::{Client, Connection, Failure};
use crate::outer::{Outer, Tunnel};
use crate::view::Pick;
use crate::ztunnel::Ztunnel;
use cairn_test_support::h2c::H2c;
use cairn_test_support::http1::Http1;
use cairn_test_support::stream::H2Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two requests of one connection.
const INTERVAL: Duration = Duration::from_millis(10);
/// Before the next connection, when there was no member.
const NO_MEMBER: Duration = Duration::from_millis(50);
/// A request that is not answered by then has failed; far above what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Distinct failures that are kept apart.
const KINDS: usize = 200;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Aim {
    /// VIP and port.
    pub vip: SocketAddr,
    /// `Host`.
    pub host: String,
    /// Who may answer.
    pub backends: BTreeSet<String>,
    /// Requests of one connection.
    pub requests: usize,
}

/// What an application speaks to the waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1 with keep-alive.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// What became of the requests so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answered with 200 by a right backend, by member.
    pub good: BTreeMap<SocketAddr, u64>,
    /// Everything else.
    pub failures: BTreeMap<Failed, u64>,
    /// Connections of applications that were opened.
    pub connections: u64,
    /// HBONE connections that were dialled.
    pub dialled: u64,
}

/// One way to fail.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failed {
    /// Who was picked, if somebody was.
    pub member: Option<SocketAddr>,
    /// What happened.
    pub what: String,
}

impl Outcome {
    /// All good answers.
    pub fn count(&self) -> u64 {
        self.good.values().sum()
    }

    /// Failures of this member only.
    pub fn only_of(&self, member: SocketAddr) -> bool {
        self.failures.keys().all(|failed| failed.member == Some(member))
    }
}

/// A load; it ends when this is dropped.
pub struct Crowd {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    ztunnel: Arc<Ztunnel>,
    aim: Aim,
    stop: AtomicBool,
    outcome: Mutex<Outcome>,
    outers: Vec<Arc<Outer>>,
}

impl Crowd {
    /// For each client, a connection at a time for each of `speaks`.
    pub fn start(ztunnel: &Arc<Ztunnel>, clients: &[Client], aim: Aim, speaks: &[Speaks]) -> Self {
        let outers: Vec<Arc<Outer>> =
            clients.iter().map(|client| Arc::new(Outer::new(client.clone()))).collect();
        let shared = Arc::new(Shared {
            ztunnel: ztunnel.clone(),
            aim,
            stop: AtomicBool::new(false),
            outcome: Mutex::default(),
            outers: outers.clone(),
        });
        let workers = outers.iter().flat_map(|outer| speaks.iter().map(move |one| (outer, *one)));
        let tasks = workers
            .map(|(outer, speaks)| tokio::spawn(drive(shared.clone(), outer.clone(), speaks)))
            .collect();
        Crowd { shared, tasks }
    }

    /// So far.
    pub fn outcome(&self) -> Outcome {
        let mut outcome = self.shared.outcome.lock().unwrap().clone();
        outcome.dialled = self.shared.outers.iter().map(|outer| outer.dialled()).sum();
        outcome
    }

    /// Waits until so many more requests have been answered well.
    ///
    /// # Panics
    /// When they are not, with what failed.
    pub async fn more(&self, count: u64) {
        self.reach(count, Outcome::count).await;
    }

    /// Waits until that member has answered so many more requests.
    ///
    /// # Panics
    /// When it does not, with what failed.
    pub async fn more_of(&self, member: SocketAddr, count: u64) {
        self.reach(count, |outcome| outcome.good.get(&member).copied().unwrap_or_default()).await;
    }

    async fn reach(&self, count: u64, of: impl Fn(&Outcome) -> u64) {
        let goal = of(&self.outcome()) + count;
        let reached = async {
            while of(&self.outcome()) < goal {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        if tokio::time::timeout(control::PATIENCE, reached).await.is_err() {
            panic!("not {count} more good answers: {:#?}", self.outcome());
        }
    }

    /// # Panics
    /// When anything has failed.
    pub fn must_be_well(&self) {
        let outcome = self.outcome();
        assert!(outcome.failures.is_empty(), "{outcome:#?}");
    }

    /// Ends it after the requests under way.
    pub async fn stop(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        self.outcome()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn good(&self, member: SocketAddr) {
        *self.outcome.lock().unwrap().good.entry(member).or_default() += 1;
    }

    fn fail(&self, member: Option<SocketAddr>, what: String) {
        let failed = Failed { member, what };
        let failures = &mut self.outcome.lock().unwrap().failures;
        let other = Failed { member, what: "others".to_owned() };
        let known = failures.len() < KINDS || failures.contains_key(&failed);
        *failures.entry(if known { failed } else { other }).or_default() += 1;
    }
}

async fn drive(shared: Arc<Shared>, outer: Arc<Outer>, speaks: Speaks) {
    while !shared.stopped() {
        match shared.ztunnel.pick(outer.client().ip(), shared.aim.vip) {
            Ok(pick) => {
                if let Err(what) = connection(&shared, &outer, &pick, speaks).await {
                    shared.fail(Some(pick.member), what);
                    tokio::time::sleep(INTERVAL).await;
                }
            }
            Err(why) => {
                shared.fail(None, format!("{why:?}"));
                tokio::time::sleep(NO_MEMBER).await;
            }
        }
    }
}

/// One connection of an application, to its end.
async fn connection(
    shared: &Shared,
    outer: &Outer,
    pick: &Pick,
    speaks: Speaks,
) -> Result<(), String> {
    let Shared { aim, .. } = shared;
    let mut inner = within(Inner::open(outer, pick, aim.vip, speaks)).await?;
    shared.outcome.lock().unwrap().connections += 1;
    for _ in 0..aim.requests {
        if shared.stopped() || !inner.is_ready().await {
            return Ok(());
        }
        let (status, backend, closes) = within(inner.request(&aim.host)).await?;
        match (status, aim.backends.contains(&backend)) {
            (200, true) => shared.good(pick.member),
            (200, false) => shared.fail(Some(pick.member), format!("answered by {backend}")),
            (status, _) => shared.fail(Some(pick.member), format!("status {status}")),
        }
        if closes {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

async fn within<T>(step: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(result) => result,
        Err(_) => Err(format!("nothing in {PATIENCE:?}")),
    }
}

/// A connection of an application, in a tunnel.
struct Inner {
    http: Http,
    /// What the tunnel is in, which ends when nobody has it.
    _outer: Arc<Connection>,
}

enum Http {
    One(Http1<H2Stream>),
    Two(H2c),
}

impl Inner {
    async fn open(
        outer: &Outer,
        pick: &Pick,
        vip: SocketAddr,
        speaks: Speaks,
    ) -> Result<Self, String> {
        let tunnel = outer.open(pick, &vip.to_string()).await;
        let Tunnel { stream, connection } = tunnel.map_err(|failure| match failure {
            Failure::Connect(why) => format!("connect: {why}"),
            Failure::Refused(status) => format!("CONNECT refused with {status}"),
            Failure::Broken(why) => format!("CONNECT broken: {why}"),
        })?;
        let http = match speaks {
            Speaks::Http1 => Http::One(Http1::new(stream)),
            Speaks::Http2 => {
                Http::Two(H2c::connect(stream).await.map_err(|error| format!("h2c: {error}"))?)
            }
        };
        Ok(Inner { http, _outer: connection })
    }

    /// It has not been told to go away.
    async fn is_ready(&self) -> bool {
        match &self.http {
            Http::One(_) => true,
            Http::Two(h2) => h2.sender().ready().await.is_ok(),
        }
    }

    /// Status, backend, and whether this was the last one.
    async fn request(&mut self, host: &str) -> Result<(u16, String, bool), String> {
        match &mut self.http {
            Http::One(http) => {
                let answer = http.request("GET", "/crowd", &[("Host", host)], b"").await;
                let answer = answer.map_err(|error| format!("HTTP/1.1: {error}"))?;
                let closes = answer.headers.has_token("connection", "close");
                Ok((answer.status, answer.backend().to_owned(), closes))
            }
            Http::Two(h2) => {
                let answer = h2.request("GET", "/crowd", &[("host", host)], b"").await;
                let answer = answer.map_err(|error| format!("h2: {error}"))?;
                let backend = answer.header("x-backend").unwrap_or("nobody").to_owned();
                Ok((answer.status, backend, false))
            }
        }
    }
}
