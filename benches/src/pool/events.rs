//! What happens to a pool at work, each from its begin until all is well again.
//!
//! A member that goes is replaced before it goes, as a Deployment does it with `maxUnavailable: 0`.

use super::ground::{Cluster, GRACE, Ground, until};
use super::random::Random;
use super::session::REVISION;
use anyhow::{Context, Result};
use cairn_proto::envoy::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use cairn_test_support::istiod::shapes;
use std::iter::repeat_n;
use std::sync::Arc;
use std::time::Duration;

/// More members are not added.
const MOST: usize = 5;
/// How long an istiod is away.
const AWAY: Duration = Duration::from_secs(1);
/// How long a member is not a cluster's.
const APART: Duration = Duration::from_secs(1);

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A member joins.
    Join,
    /// A member is replaced and gets SIGTERM.
    Terminate,
    /// A member is replaced and gets a drain order that shows the pool's token.
    Order,
    /// All members are replaced, one after the other.
    Roll,
    /// The istiod of one cluster is away for a moment.
    Restart,
    /// A cluster is taken out of one member's `pool.yaml` and put back.
    Leave,
    /// The routes of a service change.
    Route,
}

/// How often each happens among as many events as these are together.
const OFTEN: [(Event, usize); 7] = [
    (Event::Join, 2),
    (Event::Terminate, 4),
    (Event::Order, 4),
    (Event::Roll, 1),
    (Event::Restart, 2),
    (Event::Leave, 3),
    (Event::Route, 3),
];

/// How a member is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    BySignal,
    ByOrder,
}

/// Makes events happen.
pub struct Events {
    /// What they happen to.
    pub ground: Ground,
    /// Which, to whom.
    pub random: Random,
    /// What is still to happen before anything happens more often.
    bag: Vec<Event>,
    revision: u64,
}

impl Events {
    /// On this ground.
    pub fn new(ground: Ground, random: Random) -> Events {
        Events { ground, random, bag: Vec::new(), revision: 0 }
    }

    /// What happens next.
    pub fn next(&mut self) -> Event {
        loop {
            if self.bag.is_empty() {
                let all = OFTEN.iter().flat_map(|(event, times)| repeat_n(*event, *times));
                self.bag.extend(all);
            }
            let event = self.bag.swap_remove(self.random.below(self.bag.len()));
            if event != Event::Join || self.ground.members.len() < MOST {
                return event;
            }
        }
    }

    /// Lets it happen, and waits until all is well again; tells what it was.
    pub async fn happen(&mut self, event: Event) -> Result<String> {
        let what = match event {
            Event::Join => {
                let place = self.ground.start_member()?;
                self.ground.registered(place).await?;
                "a member joins".to_owned()
            }
            Event::Terminate => {
                let place = self.random.below(self.ground.members.len());
                self.replace(place, Told::BySignal).await?;
                "a member is replaced by SIGTERM".to_owned()
            }
            Event::Order => {
                let place = self.random.below(self.ground.members.len());
                self.replace(place, Told::ByOrder).await?;
                "a member is replaced by POST /drain".to_owned()
            }
            Event::Roll => {
                let count = self.ground.members.len();
                for _ in 0..count {
                    // Those that are new are at the end.
                    self.replace(0, Told::BySignal).await?;
                }
                format!("all {count} members are replaced")
            }
            Event::Restart => {
                let cluster = self.any_cluster()?;
                self.restart(&cluster).await?;
                format!("the istiod of {} restarts", cluster.name)
            }
            Event::Leave => {
                let cluster = self.any_cluster()?;
                self.leave(&cluster).await?;
                format!("a member leaves {} and comes back", cluster.name)
            }
            Event::Route => {
                let cluster = self.any_cluster()?;
                self.route(&cluster).await?;
                format!("a route of {} changes", cluster.name)
            }
        };
        self.ground.check_alive()?;
        Ok(what)
    }

    fn any_cluster(&mut self) -> Result<Arc<Cluster>> {
        let place = self.random.below(self.ground.clusters.len());
        self.ground.clusters.get(place).cloned().context("there are no clusters")
    }

    async fn replace(&mut self, place: usize, told: Told) -> Result<()> {
        let fresh = self.ground.start_member()?;
        self.ground.registered(fresh).await?;
        let old = self.ground.members.remove(place);
        match told {
            Told::BySignal => old.terminate()?,
            Told::ByOrder => old.order_drain().await?,
        }
        old.ended().await
    }

    /// istiod keeps entries in Kubernetes while it is away, and takes no member for gone that comes back.
    async fn restart(&self, cluster: &Cluster) -> Result<()> {
        let members = self.ground.members.len();
        {
            let mut mesh = cluster.mesh.lock().await;
            mesh.istiod.registration_grace(Duration::from_secs(60));
            mesh.istiod.stop().await;
            tokio::time::sleep(AWAY).await;
            mesh.istiod.registration_grace(GRACE);
            mesh.istiod.start_again().await;
        }
        until("all members are back at their istiod", async || {
            Ok(cluster.mesh.lock().await.istiod.registered() == members)
        })
        .await
    }

    async fn leave(&mut self, cluster: &Cluster) -> Result<()> {
        let place = self.random.below(self.ground.members.len());
        let ip = self.ground.members.get(place).context("there is no member")?.ip;
        let (without, with) =
            (self.ground.file(ip, Some(&cluster.name)), self.ground.file(ip, None));
        let member = self.ground.members.get_mut(place).context("there is no member")?;
        member.rewrite(&without)?;
        until(&format!("member {ip} has left {}", cluster.name), async || {
            let rows = member.clusters().await?;
            Ok(!rows.is_empty() && !rows.iter().any(|row| row["name"] == cluster.name))
        })
        .await?;
        tokio::time::sleep(APART).await;
        member.rewrite(&with)?;
        self.ground.registered(place).await
    }

    /// The answers say which routes they took.
    async fn route(&mut self, cluster: &Cluster) -> Result<()> {
        self.revision += 1;
        let revision = self.revision;
        cluster.forget_revisions();
        {
            let mut mesh = cluster.mesh.lock().await;
            let name = mesh.services.first().map(|service| service.name.clone());
            mesh.edit(&name.context("there are no services")?, |manager| {
                let header = HeaderValue {
                    key: REVISION.to_owned(),
                    value: revision.to_string(),
                    ..HeaderValue::default()
                };
                let option = HeaderValueOption { header: Some(header), ..Default::default() };
                shapes::routes(manager).response_headers_to_add = vec![option];
            });
        }
        let members: Vec<_> = self.ground.members.iter().map(|member| member.ip).collect();
        until("all members answer by the new route", async || {
            Ok(members.iter().all(|member| cluster.has_revision(*member, revision)))
        })
        .await
    }
}
