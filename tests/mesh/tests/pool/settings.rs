//! `pool.yaml` changes while members run.

use crate::world::World;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::identity::spiffe_in;
use cairn_mesh_tests::member::Access;
use tokio::net::TcpStream;

pub async fn removed(world: &mut World) {
    world.three().await;
    let (in_a, lasting) = (world.a.crowd(), world.a.lasting());
    in_a.more(50).await;
    let ports = world.at(&world.b);
    world.serve(std::slice::from_ref(&world.a.access));
    world.b.until_members(&[]).await;
    for port in &ports {
        eventually(&format!("{port} is closed"), async || TcpStream::connect(port).await.is_err())
            .await;
    }
    in_a.more(100).await;
    in_a.must_be_well();

    world.serve(&world.accesses());
    world.all_joined().await;
    world.b.works().await;
    let in_b = world.b.crowd();
    in_b.more(100).await;
    for crowd in [&in_a, &in_b, &lasting] {
        crowd.more(50).await;
        crowd.must_be_well();
    }
    world.is_whole().await;
}

/// As if the mesh of B had been installed anew: every certificate of it is void.
pub async fn reinstalled(world: &mut World) {
    const DOMAIN: &str = "b.example";
    world.three().await;
    let in_a = world.a.crowd();
    in_a.more(50).await;

    let b = &mut world.b;
    b.lab.plane.reinstall(DOMAIN).await;
    b.ztunnel.trust(b.lab.plane.caller("istio-system", "ztunnel").await);
    b.lab.renew_pods().await;
    b.clients = b.new_clients().await;
    b.access = Access::give(&b.lab.plane, &b.user, &world.place.dir.join("b")).await;
    world.serve(&world.accesses());

    let id = spiffe_in(DOMAIN, "waypoint-pool", "waypoint-pool");
    let all = world.at(&world.b);
    world.b.until_members(&all).await;
    eventually("ztunnel expects the other trust domain", async || {
        world.b.members().iter().all(|seen| seen.id == id)
    })
    .await;
    world.b.works().await;
    let in_b = world.b.crowd();
    in_b.more(100).await;
    in_a.more(50).await;
    in_a.must_be_well();
    in_b.must_be_well();
    for cluster in [&world.a, &world.b] {
        let name = cluster.backends(&cluster.app).into_iter().next().unwrap();
        let (pod, _) = cluster.lab.pod(&name);
        let domain = if pod.id().contains(DOMAIN) { DOMAIN } else { "cluster.local" };
        let wanted = spiffe_in(domain, "waypoint-pool", "waypoint-pool");
        assert_eq!(pod.seen().last().unwrap().client, wanted);
    }
    world.is_whole().await;
}
