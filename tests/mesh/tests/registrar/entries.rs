//! The steps in which entries go, and those in which they stay.

use crate::places;
use crate::played::Played;
use crate::world::{MEMBERS, Registrar, TOKEN, World, ip, pod};
use cairn_mesh_tests::control::eventually;
use serde_json::json;
use std::collections::BTreeSet;

/// Entries deleted for this reason.
pub async fn deletions(registrar: &Registrar, reason: &str) -> f64 {
    registrar.count("cairn_registrar_deletions_total", &[("reason", reason)]).await
}

/// The API server knows of a deletion before the registrar has counted it.
pub async fn until_deleted(registrar: &Registrar, reason: &str, count: f64) {
    let what = format!("{count} are deleted as {reason}");
    eventually(&what, async || deletions(registrar, reason).await >= count).await;
    assert_eq!(deletions(registrar, reason).await, count);
}

/// A member that hangs.
pub async fn dead_member(world: &mut World, registrar: &Registrar) {
    let before = registrar.judged().await;
    world.members[&5].says(|state| state.hangs = true);
    world.until_gone(5).await;
    let rounds = registrar.judged().await - before;
    assert!((3.0..=6.0).contains(&rounds), "after {rounds} rounds");
    until_deleted(registrar, "unreachable", 1.0).await;
    assert_eq!(world.registered(&[1, 2, 3, 4]).await, [1, 2, 3, 4]);
}

/// Entries that come back.
pub async fn conflict(world: &mut World, registrar: &Registrar) {
    let conflicts =
        async || registrar.count("cairn_registrar_conflicts", &[("cluster", "east")]).await;
    assert_eq!(conflicts().await, 0.0);
    // The same stream, and then another one: istiod says that the member lives.
    for stream in ["t1", "t2"] {
        world.register(5, stream).await;
        eventually("it is reported", async || conflicts().await == 1.0).await;
        registrar.rounds(4).await;
        assert!(world.entry(5).await.is_some(), "{stream}");
    }
    until_deleted(registrar, "unreachable", 1.0).await;
    world.members[&5].says(|state| state.hangs = false);
    eventually("it answers again", async || conflicts().await == 0.0).await;
    assert!(world.entry(5).await.is_some());
    world.forget(5).await;
    world.until_gone(5).await;
}

/// A member that says so.
pub async fn draining(world: &mut World, registrar: &Registrar) {
    world.add(6).await;
    registrar.until_ready(5).await;
    world.members[&6].says(|state| state.not_ready = Some("waiting for istiod"));
    registrar
        .until("it is not ready", |state| {
            state["members"].as_array().unwrap().iter().any(|member| member["state"] == "not_ready")
        })
        .await;
    registrar.rounds(4).await;
    assert!(world.entry(6).await.is_some());
    let before = registrar.judged().await;
    world.members[&6].says(|state| state.not_ready = Some("draining"));
    world.until_gone(6).await;
    let rounds = registrar.judged().await - before;
    assert!(rounds <= 2.0, "after {rounds} rounds");
    until_deleted(registrar, "draining", 1.0).await;
    world.forget(6).await;
}

/// Pods that end and are gone.
pub async fn pods(world: &mut World, registrar: &Registrar) {
    let before = deletions(registrar, "pod").await;
    world.add(7).await;
    world.add(8).await;
    registrar.until_ready(6).await;
    // kubelet, which would let it go, is not there: it ends, and still answers.
    let place = format!("/api/v1/namespaces/{MEMBERS}/pods/{}", pod(7));
    let (status, answer) = world.api.kube.call("DELETE", &place, "", b"").await;
    assert!(matches!(status, 200 | 202), "{answer}");
    world.until_gone(7).await;
    // A list that lacks a member is no evidence against it; that there is no pod, is.
    world.unlist(8).await;
    registrar.rounds(4).await;
    assert!(world.entry(8).await.is_some());
    world.delete_pod(8).await;
    world.until_gone(8).await;
    until_deleted(registrar, "pod", before + 2.0).await;
    world.forget(7).await;
    world.forget(8).await;
}

/// Two of four fall silent.
pub async fn guard(world: &mut World, registrar: &Registrar) {
    // The one that was given up before is out of the window by then, or the guard would let nobody go.
    let window = 60;
    registrar.rounds(window).await;
    let before = deletions(registrar, "unreachable").await;
    world.members.remove(&3);
    world.members.remove(&4);
    eventually("one is given up", async || world.registered(&[3, 4]).await.len() == 1).await;
    registrar.rounds(8).await;
    assert_eq!(world.registered(&[1, 2, 3, 4]).await.len(), 3, "and no other");
    until_deleted(registrar, "unreachable", before + 1.0).await;
    assert!(registrar.count("cairn_registrar_refused_total", &[]).await >= 1.0);
    // Pods are evidence of their own.
    for number in [3, 4] {
        world.forget(number).await;
        world.until_gone(number).await;
    }
    let places = places(world, &[1, 2]).await;
    assert!(places.iter().all(|place| *place == BTreeSet::from([1, 2])), "{places:?}");
}

/// A machine that will be taken away.
pub async fn notice(world: &mut World, registrar: &Registrar) {
    world.add(9).await;
    registrar.until_ready(3).await;
    world.members[&9].says(|state| state.drain_status = 500);
    let found = world.api.kube.get("v1", "Pod", MEMBERS, &pod(9)).await.unwrap();
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": "spot", "namespace": MEMBERS },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": MEMBERS, "name": pod(9), "uid": found["metadata"]["uid"],
        },
        "reason": "SpotToBeReleased", "type": "Warning", "message": "in three minutes",
    });
    world.api.kube.apply(&event).await;
    world.until_gone(9).await;
    until_deleted(registrar, "notice", 1.0).await;
    let drains = || world.members[&9].state().drains;
    eventually("it is told again while it refuses", async || drains().len() >= 2).await;
    world.members[&9].says(|state| state.drain_status = 200);
    eventually("it takes the order", async || {
        registrar.count("cairn_registrar_drains_total", &[]).await >= 1.0
    })
    .await;
    world.members[&9].says(|state| state.not_ready = Some("draining"));
    assert!(drains().iter().all(|shown| *shown == format!("Bearer {TOKEN}")), "{:?}", drains());
    assert!(world.members[&1].state().drains.is_empty());
    registrar.rounds(2).await;
    let told = drains().len();
    registrar.rounds(12).await;
    assert_eq!(drains().len(), told, "who drains is not told again");
    world.forget(9).await;
    world.api.kube.delete(&event).await;
}

/// Entries that istiod forgot.
pub async fn leaks(world: &mut World, registrar: &Registrar) {
    let swept = async || registrar.count("cairn_registrar_swept_total", &[]).await;
    let before = swept().await;
    let stranger = Played::start(&ip(31)).await;
    world.register(30, "t1").await;
    world.register(31, "t1").await;
    world.until_gone(30).await;
    until_deleted(registrar, "leaked", before + 1.0).await;
    assert_eq!(swept().await, before + 1.0);
    registrar.rounds(3).await;
    assert!(world.entry(31).await.is_some(), "somebody answers there");
    assert_eq!(registrar.count("cairn_registrar_conflicts", &[("cluster", "east")]).await, 1.0);
    drop(stranger);
    world.until_gone(31).await;
}
