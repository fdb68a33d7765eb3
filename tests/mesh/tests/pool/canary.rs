//! A namespace moves to the pool by and by.

use crate::cluster::Cluster;
use crate::world::World;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::lab::Service;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::view::{NoPick, Seen};
use serde_json::{Value, json};

/// The waypoint that the namespace comes from: nobody is behind it.
const FORMER: &str = "former";

fn former() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {
            "namespace": "trial", "name": FORMER,
            "labels": { "istio.io/waypoint-for": "service" },
        },
        "spec": {
            "gatewayClassName": "istio-remote",
            "addresses": [{ "type": "Hostname", "value": "former.trial.svc.cluster.local" }],
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    })
}

fn namespace(weight: &str) -> Value {
    let mut namespace = objects::namespace(
        "trial",
        &[
            ("istio.io/dataplane-mode", "ambient"),
            ("istio.io/use-waypoint", FORMER),
            ("istio.io/use-waypoint-canary", "waypoint-pool"),
            ("istio.io/use-waypoint-canary-namespace", "waypoint-pool"),
        ],
    );
    namespace["metadata"]["annotations"] = json!({ "istio.io/use-waypoint-canary-weight": weight });
    namespace
}

/// Of 100 connections, those that the pool gets.
async fn share(cluster: &Cluster, service: &Service) -> usize {
    let mut pool = 0;
    for _ in 0..100 {
        match cluster.pick(service) {
            Ok(pick) => {
                pool += 1;
                let member = Seen { at: pick.member, id: pick.id, weight: 1, hbone: true };
                let answer = cluster.ask(&cluster.clients[0], &member, service, "/").await;
                let answer = answer.unwrap();
                assert_eq!((answer.status, answer.backend()), (200, "a-trial-1"));
            }
            Err(why) => assert_eq!(why, NoPick::UnknownWaypoint),
        }
    }
    pool
}

pub async fn weighted(world: &mut World) {
    world.three().await;
    let a = &mut world.a;
    a.lab.plane.kube.apply(&namespace("50")).await;
    a.lab.plane.kube.apply(&former()).await;
    let labels = [("app", "trial")];
    a.lab.add_pod("trial", "a-trial-1", "trial", "10.244.1.41", &labels).await;
    let service =
        Service { namespace: "trial", name: "trial", vip: "10.96.10.3", selector: labels.to_vec() };
    a.lab.serve(&service, &[("a-trial-1", true)]).await;
    for (weight, good) in [("50", 20..81), ("100", 100..101), ("0", 0..1)] {
        a.lab.plane.kube.apply(&namespace(weight)).await;
        let wanted: u32 = weight.parse().unwrap();
        eventually(&format!("ztunnel has the weight {weight}"), async || {
            let view = a.ztunnel.view();
            let found = view.service(&format!("trial/{}", service.host()));
            found.is_some_and(|found| {
                found.weighted_waypoints.iter().map(|one| one.weight).collect::<Vec<_>>()
                    == [100 - wanted, wanted]
            })
        })
        .await;
        if weight == "50" {
            let one = (&a.clients[0], &service, "/");
            // Members may get the service a moment after ztunnels have its waypoint.
            until_served(a, one.1).await;
        }
        let share = share(a, &service).await;
        assert!(good.contains(&share), "{share} of 100 with the weight {weight}");
    }
    a.lab.withdraw(&service).await;
    world.is_whole().await;
}

async fn until_served(cluster: &Cluster, service: &Service) {
    let client = &cluster.clients[0];
    for member in cluster.members() {
        eventually(&format!("{} serves {}", member.at, service.host()), async || {
            let answer = cluster.ask(client, &member, service, "/").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }
}
