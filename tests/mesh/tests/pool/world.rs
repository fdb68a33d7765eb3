//! Both clusters and the members that run.

use crate::cluster::{A, B, Cluster};
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::identity::spiffe;
use cairn_mesh_tests::member::{Access, Member};
use std::net::SocketAddr;

/// Members that a step begins and ends with.
const USUAL: [u8; 3] = [17, 18, 19];
/// One more, while a step wants it.
pub const FOURTH: u8 = 20;

pub struct World {
    pub place: Place,
    pub a: Cluster,
    pub b: Cluster,
    pub members: Vec<Member>,
}

impl World {
    pub async fn start(place: Place) -> Self {
        let (a, b) = tokio::join!(Cluster::start(&place, &A), Cluster::start(&place, &B));
        World { place, a, b, members: Vec::new() }
    }

    /// Both clusters, as members have to know them.
    pub fn accesses(&self) -> Vec<Access> {
        vec![self.a.access.clone(), self.b.access.clone()]
    }

    /// Starts a member that serves both clusters.
    pub fn spawn(&mut self, number: u8) {
        let siblings: Vec<u8> = USUAL.into_iter().filter(|&other| other != number).collect();
        let member = Member::start(&self.place, number, &siblings, &self.accesses());
        self.members.push(member);
    }

    /// Takes a member out of the list: what happens to it is the step's to say.
    pub fn take(&mut self, number: u8) -> Member {
        let place = self.members.iter().position(|member| member.number == number).unwrap();
        self.members.remove(place)
    }

    /// Waits until all members are ready, and both clusters' ztunnels know them and nobody else.
    pub async fn all_joined(&mut self) {
        for member in &mut self.members {
            member.ready().await;
        }
        for cluster in [&self.a, &self.b] {
            cluster.until_members(&self.at(cluster)).await;
        }
    }

    /// Where the members serve a cluster.
    pub fn at(&self, cluster: &Cluster) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.at(&cluster.user)).collect()
    }

    /// Three members, registered in both clusters with the right ports and identities.
    pub async fn three(&mut self) {
        for number in USUAL {
            if !self.members.iter().any(|member| member.number == number) {
                self.spawn(number);
            }
        }
        self.all_joined().await;
        for (cluster, port) in [(&self.a, 21001), (&self.b, 21002)] {
            for seen in cluster.members() {
                assert_eq!(seen.at.port(), port, "the port is the cluster's");
                assert_eq!(seen.id, spiffe("waypoint-pool", "waypoint-pool"));
                assert!(seen.hbone, "{seen:?}");
            }
            cluster.works().await;
        }
        for member in &self.members {
            assert!(member.load().await.is_object(), "{} has no load", member.name);
        }
    }

    /// Waits until that member is gone from both ztunnels, the others being there.
    pub async fn until_gone(&self) {
        for cluster in [&self.a, &self.b] {
            cluster.until_members(&self.at(cluster)).await;
        }
    }

    /// All members write down the same clusters.
    pub fn serve(&self, clusters: &[Access]) {
        for member in &self.members {
            member.serve(clusters);
        }
    }

    /// Nobody has ended, and nothing is registered but who runs.
    pub async fn is_whole(&mut self) {
        for member in &mut self.members {
            member.must_run();
        }
        eventually("exactly the members are registered", async || {
            [&self.a, &self.b].into_iter().all(|cluster| {
                let mut wanted = self.at(cluster);
                wanted.sort();
                wanted == cluster.members().into_iter().map(|seen| seen.at).collect::<Vec<_>>()
            })
        })
        .await;
    }
}
