//! Requests that go on while the test changes things.

use crate::hbone::{Client, Connection, Failure};
use cairn_test_support::http1::Http1;
use cairn_test_support::stream::H2Stream;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two requests of one connection.
const INTERVAL: Duration = Duration::from_millis(10);

/// A steady load of keep-alive connections, each in a tunnel of its own; it ends when this is
/// dropped.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    good: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// What became of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Answered with 200.
    pub good: u64,
    /// All others: what happened, and how often.
    pub failures: BTreeMap<String, u64>,
}

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The waypoint's address.
    pub waypoint: IpAddr,
    /// Who it must be.
    pub id: String,
    /// VIP and port.
    pub authority: String,
    /// `Host`.
    pub host: String,
}

impl Load {
    /// Starts so many connections.
    pub fn start(client: &Client, target: &Target, connections: usize) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let tasks = (0..connections)
            .map(|_| tokio::spawn(drive(client.clone(), target.clone(), shared.clone())))
            .collect();
        Load { shared, tasks }
    }

    /// Requests that were answered with 200 so far.
    pub fn good(&self) -> u64 {
        self.shared.good.load(Ordering::SeqCst)
    }

    /// Waits until so many more have been answered with 200.
    pub async fn more(&self, count: u64) {
        let goal = self.good() + count;
        crate::control::eventually("the load goes on", async || self.good() >= goal).await;
    }

    /// Ends it after the requests under way.
    pub async fn stop(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        let failures = self.shared.failures.lock().unwrap().clone();
        Outcome { good: self.good(), failures }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn drive(client: Client, target: Target, shared: Arc<Shared>) {
    let mut open: Option<(Connection, Http1<H2Stream>)> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        match request(&client, &target, &mut open).await {
            Ok(200) => drop(shared.good.fetch_add(1, Ordering::SeqCst)),
            Ok(status) => shared.fail(format!("status {status}")),
            Err(failure) => {
                shared.fail(format!("{failure:?}"));
                open = None;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn request(
    client: &Client,
    target: &Target,
    open: &mut Option<(Connection, Http1<H2Stream>)>,
) -> Result<u16, Failure> {
    let (_, http) = match open {
        Some(open) => open,
        None => {
            let connection = client.connect(target.waypoint, &target.id).await?;
            let stream = connection.open(&target.authority).await?;
            open.insert((connection, Http1::new(stream)))
        }
    };
    let answer = http.request("GET", "/load", &[("Host", &target.host)], b"").await;
    let answer = answer.map_err(|error| Failure::Broken(error.to_string()))?;
    if answer.headers.has_token("connection", "close") {
        *open = None;
    }
    Ok(answer.status)
}

impl Shared {
    fn fail(&self, what: String) {
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < 100 || failures.contains_key(&what) {
            *failures.entry(what).or_default() += 1;
        }
    }
}
