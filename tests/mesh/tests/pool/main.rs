//! Members of the pool on two real clusters: each has an API server and an unmodified istiod of its own, both have
//! the same VIPs, and their ztunnels are followed through istiod.
//!
//! The first steps play the members and so prove the lab; the others run `cairn pool member`. Each of them leaves
//! three members in both clusters, and can be run without those before it:
//! `cargo test -p cairn-mesh-tests --test pool -- killed root` runs those with such a name.

#![allow(clippy::unwrap_used, clippy::panic)]

mod canary;
mod churn;
mod cluster;
mod outage;
mod played;
mod registrar;
mod settings;
mod tenants;
mod world;

use cairn_mesh_tests::harness::{Need, Place, Target, run};
use cairn_mesh_tests::steps::Steps;
use std::process::ExitCode;
use world::World;

const TARGET: Target =
    Target { name: "pool", steps: 18, tmp: env!("CARGO_TARGET_TMPDIR"), needs: &[Need::Cairn] };

fn main() -> ExitCode {
    run(TARGET, all)
}

async fn all(place: Place, mut steps: Steps) -> Steps {
    let mut world = steps.run("two control planes side by side", World::start(place)).await;
    let world = &mut world;
    steps.run("without members tenants are refused", tenants::fail_closed(world)).await;
    steps.may("played members: who leaves and who dies", played::members(world)).await;
    steps.run("three members join both clusters", world.three()).await;
    steps.may("equal VIPs are each cluster's own", tenants::own_vips(world)).await;
    steps.may("certificates of A are refused at B's port", tenants::refused(world)).await;
    steps.may("an HTTPRoute of A is A's only", tenants::route(world)).await;
    steps.may("an AuthorizationPolicy of A is A's only", tenants::policy(world)).await;
    steps.may("under load one joins, and one is drained and replaced", churn::drained(world)).await;
    steps.may("under load one is killed", churn::killed(world)).await;
    steps.may("istiod of A restarts, then is away, under load", outage::istiod(world)).await;
    steps.may("B is taken from pool.yaml and given back", settings::removed(world)).await;
    steps.may("a WorkloadEntry that somebody deletes comes back", outage::entry(world)).await;
    steps.may("a canary has its share", canary::weighted(world)).await;
    steps.may("the API server of B is away while one leaves", outage::api_server(world)).await;
    steps.may("a member falls silent, and the registrar sees it", registrar::silent(world)).await;
    steps.may("B gets another root and trust domain", settings::reinstalled(world)).await;
    steps.run("an orderly end", churn::end(world)).await;
    steps
}
