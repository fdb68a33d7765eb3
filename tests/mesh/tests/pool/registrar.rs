//! The registrar between both clusters: what istiod sees late, or has forgotten.

use crate::world::World;
use cairn_mesh_tests::control::{eventually, get};
use cairn_mesh_tests::part::Part;
use cairn_test_support::metrics;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use tokio::process::Command;

/// Where its pages are: no member has this address.
const PAGES: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 8, 4, 1)), 15020);

/// A running registrar; it is killed when this is dropped.
pub struct Registrar {
    part: Part,
}

impl Registrar {
    /// Starts one for the members that run; A is the cluster with its Lease. Waits until it has looked at all of them.
    pub async fn start(world: &World) -> Self {
        let file = world.place.dir.join("registrar.yaml");
        let clusters: Vec<_> = [&world.a, &world.b]
            .map(|cluster| {
                let mut described = cluster.access.config(IpAddr::from([0, 0, 0, 0]));
                described["kubeconfig"] = json!(cluster.lab.plane.kubeconfig());
                described
            })
            .into();
        let config = json!({ "pool": { "name": "waypoint-pool" }, "clusters": clusters });
        std::fs::write(&file, config.to_string()).unwrap();
        let members: Vec<String> =
            world.members.iter().map(|member| member.ip.to_string()).collect();
        let mut command = Command::new(world.place.binary());
        command.args(["pool", "registrar", "--config"]).arg(&file);
        command.arg("--kubeconfig").arg(world.a.lab.plane.kubeconfig());
        command.args(["--namespace", "waypoint-pool", "--members", &members.join(",")]);
        command.args(["--http", &PAGES.to_string(), "--sweep-after", "5s"]);
        command.env_clear().env("HOME", &world.place.dir);
        let mut registrar =
            Registrar { part: Part::start("registrar", command, &world.place.logs) };
        eventually("the registrar leads, and has looked at all members", async || {
            registrar.part.must_run();
            registrar.count("cairn_registrar_leader", &[]).await == 1.0
                && registrar.count("cairn_registrar_members", &[("state", "ready")]).await
                    == world.members.len() as f64
        })
        .await;
        registrar
    }

    /// The sum of a metric; 0 while it does not answer.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match get(PAGES, "/stats/prometheus").await {
            Some(page) => metrics::sum(&metrics::parse(&page.text()), name, labels),
            None => 0.0,
        }
    }
}

/// A member's machine stops without a word: istiod would know for 49 s more.
pub async fn silent(world: &mut World) {
    world.three().await;
    let registrar = Registrar::start(world).await;
    let mut frozen = world.take(19);
    frozen.freeze();
    world.until_gone().await;
    let deleted = async |reason: &str| {
        registrar.count("cairn_registrar_deletions_total", &[("reason", reason)]).await
    };
    assert_eq!(deleted("unreachable").await, 2.0, "in both clusters, and by the registrar");
    assert_eq!(deleted("draining").await + deleted("leaked").await, 0.0);
    let crowds = [world.a.crowd(), world.b.crowd()];
    for crowd in &crowds {
        crowd.more(100).await;
        crowd.must_be_well();
    }
    frozen.kill().await;
    drop(registrar);
    world.three().await;
    world.is_whole().await;
}
