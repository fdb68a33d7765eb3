//! Who may do what, and which namespaces a waypoint serves.

use crate::routing::{from, nothing_failed, status};
use crate::world::World;
use cairn_mesh_tests::load::Load;
use cairn_mesh_tests::objects;
use serde_json::json;

pub async fn policy(world: &mut World) {
    let kube = &world.lab.plane.kube;
    let mine = world.talk(&world.web);
    let theirs = world.talk_as(&world.other, &world.web);
    assert_eq!(theirs.status("/secret/plan").await, "200", "nothing forbids it");
    let load = Load::start(&world.client, mine.target(), 2);
    let rules = json!([{
        "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/other"] } }],
        "to": [{ "operation": { "paths": ["/secret*"] } }],
    }]);
    let policy = objects::authorization_policy("shop", "secret", "web", "DENY", rules);
    kube.apply(&policy).await;
    theirs.until("the policy denies", "/secret/plan", &[], |a| status(a, 403)).await;
    let denied = theirs.get("/secret/plan", &[]).await.unwrap();
    assert_eq!(denied.text(), "RBAC: access denied");
    assert_eq!(theirs.status("/").await, "200", "another path");
    assert_eq!(mine.status("/secret/plan").await, "200", "another identity");
    kube.delete(&policy).await;
    theirs.until("the policy is gone", "/secret/plan", &[], |a| status(a, 200)).await;
    nothing_failed(load).await;
}

pub async fn two_namespaces(world: &mut World) {
    let kube = &world.lab.plane.kube;
    let teller = world.talk_as(&world.teller, &world.ledger);
    let stranger = world.talk(&world.ledger);
    let web = world.talk(&world.web);
    teller.until("ledger answers", "/", &[], |a| from(a, "ledger-1")).await;
    assert!(from(&stranger.get("/", &[]).await, "ledger-1"));
    let rules = json!([{ "from": [{ "source": { "namespaces": ["bank"] } }] }]);
    let policy = objects::authorization_policy("bank", "tellers", "ledger", "ALLOW", rules);
    kube.apply(&policy).await;
    stranger.until("bank's policy denies", "/", &[], |a| status(a, 403)).await;
    assert!(from(&teller.get("/", &[]).await, "ledger-1"), "its own namespace may");
    assert_eq!(web.status("/").await, "200", "the policy is not for shop");
    kube.delete(&policy).await;
    stranger.until("bank's policy is gone", "/", &[], |a| from(a, "ledger-1")).await;
    let (pod, _) = world.lab.pod("ledger-1");
    assert_eq!(pod.seen().last().unwrap().client, world.waypoint.id);
}

pub async fn allowed_routes(world: &mut World) {
    let kube = &world.lab.plane.kube;
    let teller = world.talk_as(&world.teller, &world.ledger);
    let web = world.talk(&world.web);
    let load = Load::start(&world.client, web.target(), 2);
    kube.apply(&objects::waypoint("shop", "waypoint", "Same")).await;
    teller.until("bank is no longer served", "/", &[], |a| !status(a, 200)).await;
    assert_eq!(web.status("/").await, "200", "the waypoint's own namespace is");
    kube.apply(&objects::waypoint("shop", "waypoint", "All")).await;
    teller.until("bank is served again", "/", &[], |a| from(a, "ledger-1")).await;
    nothing_failed(load).await;
}
