//! Members come and go under load.

use crate::world::{FOURTH, World};
use cairn_mesh_tests::member::POOL_TOKEN;

pub async fn drained(world: &mut World) {
    world.three().await;
    let (a, b) = (world.a.crowd(), world.b.crowd());
    let lasting = [world.a.lasting(), world.b.lasting()];
    for crowd in [&a, &b, &lasting[0], &lasting[1]] {
        crowd.more(100).await;
    }
    let opened = lasting.each_ref().map(|crowd| crowd.outcome().connections);

    world.spawn(FOURTH);
    world.all_joined().await;
    let fourth = world.members.last().unwrap();
    a.more_of(fourth.at(&world.a.user), 20).await;
    b.more_of(fourth.at(&world.b.user), 20).await;

    let mut leaver = world.take(17);
    leaver.terminate();
    world.until_gone().await;
    assert!(leaver.ended().await.success(), "SIGTERM is an orderly end: {}", leaver.output());
    for (crowd, opened) in lasting.iter().zip(opened) {
        crowd.more(100).await;
        let moved = crowd.outcome().connections - opened;
        assert!(moved > 0, "connections that last were told to go: {:#?}", crowd.outcome());
    }

    world.spawn(17);
    world.all_joined().await;
    let back = world.members.last().unwrap();
    a.more_of(back.at(&world.a.user), 20).await;
    b.more_of(back.at(&world.b.user), 20).await;

    // From elsewhere only who shows the pool's token orders anything, and nothing but a drain.
    let mut fourth = world.take(FOURTH);
    for (path, token) in [
        ("/drain", None),
        ("/drain", Some("another-token")),
        ("/quitquitquit", None),
        ("/quitquitquit", Some(POOL_TOKEN)),
    ] {
        assert_eq!(fourth.order(path, token).await.status, 403, "{path} {token:?}");
    }
    assert_eq!(fourth.order("/drain", Some(POOL_TOKEN)).await.status, 200);
    world.until_gone().await;
    assert!(fourth.ended().await.success(), "a drain order is an orderly end: {}", fourth.output());
    for crowd in [&a, &b, &lasting[0], &lasting[1]] {
        crowd.more(100).await;
        crowd.must_be_well();
    }
    world.is_whole().await;
}

pub async fn killed(world: &mut World) {
    world.three().await;
    let (a, b) = (world.a.crowd(), world.b.crowd());
    let mut victim = world.take(19);
    let (at_a, at_b) = (victim.at(&world.a.user), victim.at(&world.b.user));
    a.more_of(at_a, 20).await;
    b.more_of(at_b, 20).await;
    victim.kill().await;
    world.until_gone().await;
    // Connections that were under way when the entry went are over after one more answer of each worker.
    a.more(50).await;
    b.more(50).await;
    for (crowd, at) in [(&a, at_a), (&b, at_b)] {
        let then = crowd.outcome();
        assert!(then.only_of(at), "the others did not fail: {then:#?}");
        crowd.more(200).await;
        assert_eq!(crowd.outcome().failures, then.failures, "nobody picks it any more");
    }
    world.three().await;
    a.more_of(at_a, 20).await;
    b.more_of(at_b, 20).await;
}

pub async fn end(world: &mut World) {
    for member in &world.members {
        member.terminate();
    }
    for mut member in std::mem::take(&mut world.members) {
        assert!(member.ended().await.success(), "{}", member.output());
    }
    world.until_gone().await;
}
