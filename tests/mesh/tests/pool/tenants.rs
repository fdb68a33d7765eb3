//! Tenants of one cluster have nothing to do with those of another.

use crate::cluster::Cluster;
use crate::world::World;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::hbone::Client;
use cairn_mesh_tests::identity::PodIdentity;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::view::NoPick;
use cairn_test_support::http1::Response;
use serde_json::json;

/// The pool's objects bind the tenants before there is anybody who serves them.
pub async fn fail_closed(world: &mut World) {
    for cluster in [&world.a, &world.b] {
        for service in [&cluster.app, &cluster.second] {
            eventually(&format!("{} is bound to the pool", service.host()), async || {
                cluster.pick(service) == Err(NoPick::NoMember)
            })
            .await;
            let name = format!("{}/{}", service.namespace, service.host());
            let view = cluster.ztunnel.view();
            let port = view.service(&name).and_then(|found| found.waypoint.as_ref());
            assert_eq!(port.map(|waypoint| waypoint.hbone_mtls_port), Some(15008));
        }
    }
}

/// Both clusters have 10.96.10.1 and 10.96.10.2.
pub async fn own_vips(world: &mut World) {
    for cluster in [&world.a, &world.b] {
        cluster.works().await;
        for service in [&cluster.app, &cluster.second] {
            let backends = cluster.backends(service);
            for member in cluster.members() {
                for _ in 0..10 {
                    let client = &cluster.clients[0];
                    let answer = cluster.ask(client, &member, service, "/").await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert!(backends.contains(answer.backend()), "{}", answer.backend());
                }
            }
        }
    }
}

fn tunnels(cluster: &Cluster) -> usize {
    let names = [&cluster.app, &cluster.second].map(|service| cluster.backends(service));
    names.iter().flatten().map(|name| cluster.lab.pod(name).0.seen().len()).sum()
}

/// A's client with A's certificate at B's port, whatever it trusts; B's client asks for a pod of A.
pub async fn refused(world: &mut World) {
    let World { a, b, .. } = world;
    let before = (tunnels(a), tunnels(b));
    let root = b.lab.plane.root("shop").await;
    let identity: PodIdentity = a.lab.account("shop", "buyer").await;
    let ip = a.clients[0].ip();
    let distrusts = Client::new(ip, identity.clone());
    let trusts = Client::new(ip, identity.trusting(&root));
    for member in b.members() {
        for service in [&b.app, &b.second] {
            for (client, why) in [(&distrusts, "the server's"), (&trusts, "the client's")] {
                let answer = b.ask(client, &member, service, "/").await;
                assert!(answer.is_err(), "{why} certificate is another mesh's: {answer:?}");
            }
        }
        let connection = b.clients[0].connect_to(member.at, &member.id).await.unwrap();
        let (pod, _) = a.lab.pod("a-app-1");
        let answer = connection.get(&format!("{}:8080", pod.ip()), "/", &[]).await;
        assert!(answer.is_err(), "a pod of A through B's port: {answer:?}");
    }
    assert_eq!((tunnels(a), tunnels(b)), before, "nobody was reached");
    own_vips(world).await;
}

/// A response header that says which route was taken.
fn marked(answer: &Response, mark: Option<&str>) -> bool {
    answer.status == 200 && answer.header("x-mark") == mark
}

pub async fn route(world: &mut World) {
    let World { a, b, .. } = world;
    let kube = &a.lab.plane.kube;
    let mark = json!({
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": { "set": [{ "name": "x-mark", "value": "a" }] },
    });
    let rules = json!([{
        "filters": [mark], "backendRefs": [{ "name": a.app.name, "port": 80 }],
    }]);
    let route = objects::http_route("shop", "mark", a.app.name, rules);
    kube.apply(&route).await;
    let (in_a, in_b) = ((&a.clients[0], &a.app, "/"), (&b.clients[0], &b.app, "/"));
    a.everywhere("A has the route", in_a, |answer| marked(answer, Some("a"))).await;
    b.everywhere("B has none", in_b, |answer| marked(answer, None)).await;
    kube.delete(&route).await;
    a.everywhere("the route is gone", in_a, |answer| marked(answer, None)).await;
}

pub async fn policy(world: &mut World) {
    let World { a, b, .. } = world;
    let kube = &a.lab.plane.kube;
    let rules = json!([{
        "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/other"] } }],
        "to": [{ "operation": { "paths": ["/secret*"] } }],
    }]);
    let policy = objects::authorization_policy("shop", "secret", a.app.name, "DENY", rules);
    kube.apply(&policy).await;
    let is = |status: u16| move |answer: &Response| answer.status == status;
    let other = (&a.clients[1], &a.app, "/secret/plan");
    a.everywhere("the policy denies", other, is(403)).await;
    a.everywhere("another path", (&a.clients[1], &a.app, "/"), is(200)).await;
    a.everywhere("another identity", (&a.clients[0], &a.app, "/secret/plan"), is(200)).await;
    b.everywhere("another cluster", (&b.clients[1], &b.app, "/secret/plan"), is(200)).await;
    kube.delete(&policy).await;
    a.everywhere("the policy is gone", other, is(200)).await;
}
