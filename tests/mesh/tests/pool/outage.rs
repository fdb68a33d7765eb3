//! One cluster's control plane is away, or loses what it knew; the other does not notice.

use crate::registrar::Registrar;
use crate::world::World;
use cairn_mesh_tests::control::eventually;

/// Answers that must be had while istiod is away.
const MEANWHILE: u64 = 300;

pub async fn istiod(world: &mut World) {
    world.three().await;
    let (in_a, in_b) = (world.a.crowd(), world.b.crowd());
    let lasting = world.a.lasting();
    in_a.more(50).await;
    let wanted = world.at(&world.a);
    for away in [0, MEANWHILE] {
        let a = &mut world.a;
        let mut before = Vec::new();
        for member in &wanted {
            before.push(a.registered(*member).await.unwrap());
        }
        let (streams, of_b) = (a.ztunnel.streams(), world.b.ztunnel.streams());
        a.lab.plane.kill_istiod().await;
        if away > 0 {
            in_a.more(away).await;
            in_b.more(away).await;
            a.everywhere("new connections are served", (&a.clients[0], &a.app, "/"), |answer| {
                answer.status == 200
            })
            .await;
        }
        a.lab.plane.start_istiod().await;
        eventually("ztunnel connects again", async || a.ztunnel.streams() > streams).await;
        for (member, before) in wanted.iter().zip(&before) {
            eventually(&format!("{member} registers again"), async || {
                a.registered(*member).await.is_some_and(|at| at != *before)
            })
            .await;
        }
        a.until_members(&wanted).await;
        assert_eq!(world.b.ztunnel.streams(), of_b, "B's istiod has nothing to do with it");
    }
    for crowd in [&in_a, &in_b, &lasting] {
        crowd.more(50).await;
        crowd.must_be_well();
    }
    crate::tenants::route(world).await; // changes are followed again
    world.is_whole().await;
}

/// istiod does not make an entry again for a stream that is open: the member has to see that it is gone.
pub async fn entry(world: &mut World) {
    world.three().await;
    let (in_a, in_b) = (world.a.crowd(), world.b.crowd());
    in_a.more(50).await;
    let all = world.at(&world.a);
    let lost = all[1];
    let entry = world.a.entry(lost).await.unwrap();
    world.a.lab.plane.kube.delete(&entry).await;
    let rest: Vec<_> = all.iter().copied().filter(|at| *at != lost).collect();
    world.a.until_members(&rest).await;
    assert_eq!(world.b.members().len(), all.len(), "B has it still");
    world.a.until_members(&all).await;
    in_a.more_of(lost, 20).await;
    in_b.more(50).await;
    in_a.must_be_well();
    in_b.must_be_well();
    world.is_whole().await;
}

/// istiod cannot take the entry away, and forgets it: until somebody else does, B's clients go to who has left.
pub async fn api_server(world: &mut World) {
    world.three().await;
    let in_a = world.a.crowd();
    in_a.more(50).await;
    world.b.lab.plane.kill_api().await;
    let mut leaver = world.take(18);
    let (at_a, at_b) = (leaver.at(&world.a.user), leaver.at(&world.b.user));
    leaver.terminate();
    world.a.until_members(&world.at(&world.a)).await;
    assert!(leaver.ended().await.success(), "{}", leaver.output());
    world.b.lab.plane.start_api().await;
    let entry = world.b.entry(at_b).await.unwrap();
    assert!(world.b.members().iter().any(|seen| seen.at == at_b), "B's ztunnels were not told");
    in_a.more(50).await;
    in_a.must_be_well();

    // istiod would keep it for 45 min.
    let registrar = Registrar::start(world).await;
    world.until_gone().await;
    assert_eq!(registrar.count("cairn_registrar_swept_total", &[]).await, 1.0, "{entry}");
    drop(registrar);
    let in_b = world.b.crowd();
    in_b.more(100).await;
    in_b.must_be_well();

    world.three().await;
    in_a.more_of(at_a, 20).await;
    in_b.more_of(at_b, 20).await;
    in_a.must_be_well();
    in_b.must_be_well();
    world.is_whole().await;
}
