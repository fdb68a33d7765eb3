//! istiod goes away and comes back; credentials change.

use crate::routing::{nothing_failed, status};
use crate::world::{POD, World};
use cairn_mesh_tests::control::{ControlPlane, eventually};
use cairn_mesh_tests::load::Load;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::waypoint::token_holder;
use serde_json::json;
use std::path::Path;

/// Requests that must succeed while istiod is away.
const MEANWHILE: u64 = 300;

/// istiod knows the waypoint as connected.
async fn connected(plane: &ControlPlane) -> bool {
    let page = plane.debug("/debug/syncz").await;
    let proxies = page.as_array().cloned().unwrap_or_default();
    proxies.iter().any(|proxy| {
        proxy["proxy"].as_str().is_some_and(|id| id.contains(POD))
            && proxy["listener_acked"].as_str().is_some_and(|nonce| !nonce.is_empty())
    })
}

/// A change that istiod pushes is seen in traffic, and so is its end.
async fn follows(world: &World, mark: &str) {
    let kube = &world.lab.plane.kube;
    let talk = world.talk(&world.web);
    let header = json!([{ "name": "x-after", "value": mark }]);
    let filter = json!({
        "type": "ResponseHeaderModifier", "responseHeaderModifier": { "set": header },
    });
    let rules =
        json!([{ "filters": [filter], "backendRefs": [{ "name": world.web.name, "port": 80 }] }]);
    let route = objects::http_route("shop", "after", "web", rules);
    kube.apply(&route).await;
    let header =
        |answer: &cairn_test_support::http1::Response| answer.header("x-after").map(str::to_owned);
    talk.until("a change is followed", "/", &[], |answer| {
        answer.as_ref().is_ok_and(|answer| header(answer).as_deref() == Some(mark))
    })
    .await;
    kube.delete(&route).await;
    talk.until("its end is followed", "/", &[], |answer| {
        answer.as_ref().is_ok_and(|answer| answer.status == 200 && header(answer).is_none())
    })
    .await;
}

/// Workloads that Cairn holds, by its metrics.
async fn workloads(world: &World) -> usize {
    let page = world.waypoint.admin("/stats/prometheus").await.text();
    let line = page.lines().find(|line| line.starts_with("cairn_xds_resources{type=\"wds\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}

pub async fn istiod(world: &mut World) {
    let held = workloads(world).await;
    world.lab.add_client("shop", "leaving", "10.244.1.40").await;
    eventually("the workload is known", async || workloads(world).await == held + 1).await;
    let load = Load::start(&world.client, world.talk(&world.web).target(), 4);
    load.more(20).await;
    world.lab.plane.kill_istiod().await;
    load.more(MEANWHILE).await;
    assert_eq!(world.talk(&world.web).status("/").await, "200", "new connections are served");
    world.lab.plane.kube.delete(&objects::pod("shop", "leaving", "leaving", &[])).await;
    world.lab.plane.start_istiod().await;
    eventually("Cairn connects again", async || connected(&world.lab.plane).await).await;
    eventually("who left meanwhile is forgotten", async || workloads(world).await == held).await;
    follows(world, "outage").await;
    nothing_failed(load).await;
}

/// The first token is made void: whatever istiod is asked from here on, it is asked with the second,
/// or with the certificate.
pub async fn token(world: &mut World, binary: &Path) {
    let load = Load::start(&world.client, world.talk(&world.web).target(), 2);
    let plane = &world.lab.plane;
    let second = token_holder(plane, "shop", "second-token").await;
    world.waypoint.rotate_token(plane, &second).await;
    plane.kube.delete(&objects::secret("shop", &world.placed.bound.name)).await;
    world.lab.plane.kill_istiod().await;
    world.lab.plane.start_istiod().await;
    eventually("Cairn connects again", async || connected(&world.lab.plane).await).await;
    follows(world, "token").await;
    nothing_failed(load).await;

    // Nothing is in memory any more: the first call has nothing but the token in the file.
    world.waypoint.terminate();
    assert!(world.waypoint.wait().await.success(), "SIGTERM is an orderly end");
    let World { lab, placed, waypoint, .. } = world;
    *waypoint = placed.run_again(&lab.plane, binary, &lab.dir, &lab.logs).await;
    waypoint.ready().await;
    let talk = world.talk(&world.web);
    talk.until("web answers again", "/", &[], |answer| status(answer, 200)).await;
}
