//! Where requests go.

use crate::world::World;
use cairn_mesh_tests::hbone::Failure;
use cairn_mesh_tests::lab::Service;
use cairn_mesh_tests::load::Load;
use cairn_mesh_tests::objects;
use cairn_test_support::http1::Response;
use serde_json::{Value, json};

/// Answered with 200 by that backend.
pub fn from(answer: &Result<Response, Failure>, backend: &str) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.status == 200 && answer.backend() == backend)
}

/// Answered with that status.
pub fn status(answer: &Result<Response, Failure>, status: u16) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.status == status)
}

pub async fn plain(world: &mut World) {
    let talk = world.talk(&world.web);
    talk.until("web answers", "/", &[], |answer| status(answer, 200)).await;
    talk.until_backends("/", &["web-v1", "web-v2"]).await;
    for (name, authority) in [("web-v1", "10.244.1.11:8080"), ("web-v2", "10.244.1.12:8080")] {
        let (pod, backend) = world.lab.pod(name);
        let seen = pod.seen();
        let connect = seen.last().unwrap();
        assert_eq!(connect.authority, authority);
        assert_eq!(connect.client, world.waypoint.id, "the waypoint is who it says");
        assert_eq!(backend.last("/").authority, world.web.host());
    }
}

fn route(world: &World, mark: &str, two: &Service) -> Value {
    let mark = json!({
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": { "set": [{ "name": "x-mark", "value": mark }] },
    });
    let rules = json!([
        {
            "matches": [{ "path": { "type": "PathPrefix", "value": "/two" } }],
            "filters": [mark],
            "backendRefs": [{ "name": two.name, "port": 80 }],
        },
        { "backendRefs": [{ "name": world.web_one.name, "port": 80 }] },
    ]);
    objects::http_route("shop", "web", "web", rules)
}

pub async fn http_route(world: &mut World) {
    let kube = &world.lab.plane.kube;
    let talk = world.talk(&world.web);
    let load = Load::start(&world.client, talk.target(), 2);
    kube.apply(&route(world, "first", &world.web_two)).await;
    let marked = |answer: &Result<Response, Failure>, mark: &str, backend: &str| {
        from(answer, backend)
            && answer.as_ref().is_ok_and(|answer| answer.header("x-mark") == Some(mark))
    };
    talk.until("the route is taken", "/two/x", &[], |a| marked(a, "first", "web-v2")).await;
    talk.until_backends("/", &["web-v1"]).await;

    let changed = route(world, "second", &world.web_one);
    kube.apply(&changed).await;
    talk.until("the changed route is taken", "/two", &[], |a| marked(a, "second", "web-v1")).await;

    kube.delete(&changed).await;
    talk.until_backends("/two", &["web-v1", "web-v2"]).await;
    nothing_failed(load).await;
}

pub async fn subsets(world: &mut World) {
    let kube = &world.lab.plane.kube;
    let talk = world.talk(&world.cart);
    talk.until_backends("/", &["cart-v1", "cart-v2"]).await;
    let host = world.cart.host();
    let subset = |name: &str| json!({ "name": name, "labels": { "version": name } });
    let rule = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": { "host": host, "subsets": [subset("v1"), subset("v2")] },
    });
    let to = |name: &str| json!([{ "destination": { "host": host, "subset": name } }]);
    let service = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": {
            "hosts": [host],
            "http": [
                { "match": [{ "headers": { "x-version": { "exact": "v2" } } }], "route": to("v2") },
                { "route": to("v1") },
            ],
        },
    });
    kube.apply(&rule).await;
    kube.apply(&service).await;
    talk.until_backends("/", &["cart-v1"]).await;
    let two = [("x-version", "v2")];
    talk.until("the other subset answers", "/", &two, |a| from(a, "cart-v2")).await;
    for _ in 0..10 {
        assert!(from(&talk.get("/", &two).await, "cart-v2"));
        assert!(from(&talk.get("/", &[]).await, "cart-v1"));
    }
    kube.delete(&service).await;
    kube.delete(&rule).await;
    talk.until_backends("/", &["cart-v1", "cart-v2"]).await;
}

pub async fn readiness(world: &mut World) {
    let talk = world.talk(&world.web);
    let load = Load::start(&world.client, talk.target(), 2);
    world.lab.serve(&world.web, &[("web-v1", true), ("web-v2", false)]).await;
    talk.until_backends("/", &["web-v1"]).await;
    world.lab.serve(&world.web, &[("web-v1", true), ("web-v2", true)]).await;
    talk.until_backends("/", &["web-v1", "web-v2"]).await;
    nothing_failed(load).await;
}

pub async fn service(world: &mut World) {
    let labels = [("app", "fresh")];
    world.lab.add_pod("shop", "fresh-1", "fresh", "10.244.1.15", &labels).await;
    let fresh =
        Service { namespace: "shop", name: "fresh", vip: "10.96.0.130", selector: labels.to_vec() };
    let talk = world.talk(&fresh);
    assert!(!status(&talk.get("/", &[]).await, 200), "there is no such service");
    world.lab.serve(&fresh, &[("fresh-1", true)]).await;
    talk.until("the new service answers", "/", &[], |a| from(a, "fresh-1")).await;
    world.lab.withdraw(&fresh).await;
    talk.until("the service is gone", "/", &[], |a| !status(a, 200)).await;
    assert_eq!(world.talk(&world.web).status("/").await, "200", "the others are served");
}

/// Ends the load, none of whose requests may have failed.
pub async fn nothing_failed(load: Load) {
    load.more(20).await;
    let outcome = load.stop().await;
    assert!(outcome.failures.is_empty(), "{outcome:#?}");
}
