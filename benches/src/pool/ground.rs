//! Clusters whose services have equal addresses, and the members that serve all of them.

use super::member::{Launch, Member, token_of};
use super::pod::Pod;
use super::random::Random;
use super::session::{Plan, Session};
use super::tally::Tally;
use super::{ID, ISTIO_TOKEN};
use anyhow::{Context, Result, bail, ensure};
use cairn_test_support::mesh::Mesh;
use parking_lot::Mutex as Lock;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

/// A ztunnel hears of members so much later than istiod.
const LAG: Duration = Duration::from_millis(100);
/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// An entry stays so long after its stream: istiod's 10 s, made shorter.
pub const GRACE: Duration = Duration::from_secs(2);

/// A cluster: a fake istiod, services of one pod each, and what its ztunnels see.
pub struct Cluster {
    /// Its name in `pool.yaml`.
    pub name: String,
    /// Port of members for it.
    pub port: u16,
    /// The mesh. Locked while its istiod is away: ztunnels see what they saw last.
    pub mesh: Arc<Mutex<Mesh>>,
    /// What `pool.yaml` says of it, without its port.
    described: Value,
    seen: watch::Receiver<Vec<(IpAddr, u32)>>,
    revisions: Lock<BTreeMap<IpAddr, u64>>,
}

impl Cluster {
    /// The one of this number, from 1, with these services.
    async fn start(number: u8, services: &[&str]) -> Arc<Cluster> {
        let mut mesh = Mesh::numbered(number).await;
        mesh.istiod.accept_token(ISTIO_TOKEN, ID);
        mesh.istiod.write_token(ISTIO_TOKEN);
        mesh.istiod.registration_grace(GRACE);
        for service in services {
            mesh.add(service).await;
        }
        let name = char::from(b'a' + number.saturating_sub(1)).to_string();
        let described = json!({
            "name": name,
            "istiod": mesh.istiod.address().to_string(),
            "root_file": mesh.istiod.roots_file(),
            "token_file": mesh.istiod.token_file(),
        });
        let mesh = Arc::new(Mutex::new(mesh));
        let (show, seen) = watch::channel(Vec::new());
        let watched = Arc::downgrade(&mesh);
        tokio::spawn(async move {
            while let Some(mesh) = watched.upgrade() {
                let entries = mesh.lock().await.istiod.weighted_entries();
                drop(mesh);
                tokio::time::sleep(LAG).await;
                if show.send(entries).is_err() {
                    return;
                }
            }
        });
        let port = 21000 + u16::from(number);
        Arc::new(Cluster { name, port, mesh, described, seen, revisions: Lock::default() })
    }

    /// Members as ztunnels see them, with their weights.
    pub fn view(&self) -> Vec<(IpAddr, u32)> {
        self.seen.borrow().clone()
    }

    /// This member has answered by the configuration of this number.
    pub fn revised(&self, member: IpAddr, revision: u64) {
        let mut revisions = self.revisions.lock();
        let last = revisions.entry(member).or_default();
        *last = revision.max(*last);
    }

    /// Whether the member has answered by this configuration or a later one.
    pub fn has_revision(&self, member: IpAddr, revision: u64) -> bool {
        self.revisions.lock().get(&member).is_some_and(|last| *last >= revision)
    }

    /// Nobody has answered by any.
    pub fn forget_revisions(&self) {
        self.revisions.lock().clear();
    }

    /// Pods that have certificates of this mesh.
    pub async fn pods(self: &Arc<Self>, account: &str, count: usize) -> Vec<Arc<Pod>> {
        let cert = self.mesh.lock().await.cert(account);
        (0..count).map(|_| Pod::new(self, &cert)).collect()
    }
}

/// The clusters, their members, and where files are.
pub struct Ground {
    /// Clusters.
    pub clusters: Vec<Arc<Cluster>>,
    /// Members that are there.
    pub members: Vec<Member>,
    launch: Launch,
    scaler: Option<SocketAddr>,
    dir: PathBuf,
    next: u16,
}

impl Ground {
    /// Clusters with these services each; files go to `dir`.
    pub async fn start(launch: Launch, dir: &Path, services: &[&[&str]]) -> Result<Ground> {
        let mut clusters = Vec::new();
        for (number, services) in (1..).zip(services) {
            clusters.push(Cluster::start(number, services).await);
        }
        let dir = dir.to_owned();
        Ok(Ground { clusters, members: Vec::new(), launch, scaler: None, dir, next: 0 })
    }

    /// Where files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Members that start from here on ask this scaler.
    pub fn ask_scaler(&mut self, at: SocketAddr) {
        self.scaler = Some(at);
    }

    /// An address that nobody else has: another run at the same time has other ones.
    pub fn address(&mut self) -> Result<IpAddr> {
        const EACH: u16 = 250;
        let block = 64 + 4 * (std::process::id() % 48) as u16 + self.next / EACH;
        let place = 1 + self.next % EACH;
        ensure!(self.next < 4 * EACH, "there are no more addresses for members");
        self.next += 1;
        Ok(Ipv4Addr::new(127, 8, u8::try_from(block)?, u8::try_from(place)?).into())
    }

    /// Starts a member; its place among the members.
    pub fn start_member(&mut self) -> Result<usize> {
        let ip = self.address()?;
        self.start_member_at(ip)
    }

    /// The same, at an address.
    pub fn start_member_at(&mut self, ip: IpAddr) -> Result<usize> {
        let file = self.file(ip, None);
        self.members.push(Member::start(&self.launch, &self.dir, ip, &file)?);
        Ok(self.members.len() - 1)
    }

    /// `pool.yaml` of a member, perhaps without one of the clusters.
    pub fn file(&self, ip: IpAddr, without: Option<&str>) -> String {
        let clusters = self.clusters.iter().filter(|one| Some(one.name.as_str()) != without);
        let clusters: Vec<Value> = clusters
            .map(|cluster| {
                let mut described = cluster.described.clone();
                described["listen"] = json!(SocketAddr::new(ip, cluster.port).to_string());
                described
            })
            .collect();
        let mut pool = json!({ "token_file": token_of(&self.dir, ip) });
        if let Some(scaler) = self.scaler {
            pool["scaler"] = json!(format!("http://{scaler}"));
        }
        let member = json!({ "name": format!("member-{ip}"), "address": ip, "locality": "r1/z1" });
        json!({ "pool": pool, "member": member, "clusters": clusters }).to_string()
    }

    /// Waits until the member is registered everywhere, and ztunnels see it.
    pub async fn registered(&mut self, place: usize) -> Result<()> {
        let clusters = self.clusters.clone();
        let member = self.members.get_mut(place).context("there is no such member")?;
        let ip = member.ip;
        until(&format!("member {ip} is registered"), async || {
            let rows = member.clusters().await?;
            let yes = |name: &str| {
                rows.iter().any(|row| row["name"] == name && row["registered"] == "yes")
            };
            let seen = |cluster: &Cluster| cluster.view().iter().any(|(shown, _)| *shown == ip);
            Ok(clusters.iter().all(|cluster| yes(&cluster.name) && seen(cluster)))
        })
        .await
    }

    /// Starts so many members, and waits until all of them are registered.
    pub async fn add_members(&mut self, count: usize) -> Result<()> {
        let mut places = Vec::new();
        for _ in 0..count {
            places.push(self.start_member()?);
        }
        for place in places {
            self.registered(place).await?;
        }
        Ok(())
    }

    /// An error when a member has ended that should be there.
    pub fn check_alive(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::check_alive)
    }
}

/// Clients at work.
pub struct Crowd {
    over: watch::Sender<bool>,
    sessions: JoinSet<()>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new() -> Crowd {
        Crowd { over: watch::Sender::new(false), sessions: JoinSet::new() }
    }

    /// One more place.
    pub fn join(&mut self, pod: &Arc<Pod>, plan: &Plan, tally: &Arc<Tally>, random: Random) {
        let session = Session {
            pod: Arc::clone(pod),
            plan: plan.clone(),
            tally: Arc::clone(tally),
            random,
            over: self.over.subscribe(),
        };
        self.sessions.spawn(session.run());
    }

    /// Lets all finish what they have asked for, and waits for them.
    pub async fn leave(mut self) -> Result<()> {
        self.over.send_replace(true);
        while let Some(session) = self.sessions.join_next().await {
            session.context("a client has broken")?;
        }
        Ok(())
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition().await? {
        if start.elapsed() > LIMIT {
            bail!("did not happen within {} s: {what}", LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
