//! The lab without the product: played members register, ztunnels pick them, crowds go through them.

use crate::cluster::Cluster;
use crate::world::World;
use cairn_mesh_tests::crowd::{Crowd, Speaks};
use cairn_mesh_tests::identity::spiffe;
use cairn_mesh_tests::member::address;
use cairn_mesh_tests::played::Played;
use cairn_mesh_tests::view::NoPick;
use cairn_test_support::app::App;
use std::collections::BTreeMap;

/// Answers for the first pod of each service, without routing.
async fn join(cluster: &Cluster, number: u8) -> Played {
    let apps = [&cluster.app, &cluster.second].map(|service| {
        let backends = cluster.backends(service);
        let (_, backend) = cluster.lab.pod(backends.first().unwrap());
        (Cluster::vip(service), App::from(backend))
    });
    let ip = address(number).into();
    Played::join(&cluster.lab.plane, &cluster.user, ip, BTreeMap::from(apps)).await
}

pub async fn members(world: &mut World) {
    let World { a, b, .. } = world;
    let (stays, leaves, dies) = tokio::join!(join(a, 101), join(a, 102), join(a, 103));
    let of_b = join(b, 101).await;
    a.until_members(&[stays.at, leaves.at, dies.at]).await;
    b.until_members(&[of_b.at]).await;
    for (cluster, port) in [(&*a, 21001), (&*b, 21002)] {
        for seen in cluster.members() {
            assert_eq!((seen.at.port(), seen.weight, seen.hbone), (port, 1, true));
            assert_eq!(seen.id, spiffe("waypoint-pool", "waypoint-pool"));
        }
    }
    let (crowd, in_b) = (a.crowd(), b.crowd());
    for member in [&stays, &leaves, &dies] {
        crowd.more_of(member.at, 20).await;
    }
    in_b.more(20).await;
    crowd.must_be_well();

    // Who deregisters, serves on until nobody picks it, and then says GOAWAY, loses nothing. Who dies is missed until
    // its entry is gone.
    leaves.deregister();
    let (left, dead) = (leaves.at, dies.at);
    drop(dies);
    a.until_members(&[stays.at]).await;
    crowd.more(100).await; // those that were picked before are over
    let tunnels = leaves.tunnels();
    leaves.drain().await;
    assert_eq!(leaves.tunnels(), tunnels, "nobody picks it any more");
    drop(leaves);
    let outcome = crowd.outcome();
    assert!(outcome.only_of(dead) && !outcome.failures.is_empty(), "{outcome:#?}");
    assert!(outcome.good.contains_key(&left));
    crowd.more(200).await;
    let after = crowd.stop().await;
    assert_eq!(after.failures, outcome.failures, "nobody picks them any more");

    // The lab sees a wrong backend.
    let mut aim = a.aim(&a.app);
    aim.backends = b.backends(&b.app);
    let wrong = Crowd::start(&a.ztunnel, &a.clients, aim, &[Speaks::Http1]);
    cairn_mesh_tests::control::eventually("wrong answers are seen", async || {
        !wrong.outcome().failures.is_empty()
    })
    .await;
    let outcome = wrong.stop().await;
    assert_eq!(outcome.count(), 0);
    assert!(outcome.failures.keys().all(|failed| failed.what == "answered by a-app-1"));

    in_b.more(20).await;
    in_b.must_be_well();
    drop(in_b);
    drop((stays, of_b));
    for cluster in [&*a, &*b] {
        cluster.until_members(&[]).await;
        assert_eq!(cluster.pick(&cluster.app), Err(NoPick::NoMember), "fails closed");
    }
}
