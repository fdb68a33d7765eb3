//! `deploy/helm` and `deploy/manifests` on a real kube-apiserver with a real istiod: all that is rendered is taken with
//! strict validation, what is wrong in the values is refused, what selects is selected, and a release comes and goes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod admitted;
mod joined;
mod manifests;
mod monitored;
mod refused;
mod release;
mod rendered;
mod scaled;
mod selected;
mod started;
mod swapped;
mod variants;
mod world;

use cairn_mesh_tests::harness::{Need, Place, Target, run};
use cairn_mesh_tests::steps::Steps;
use std::process::ExitCode;
use world::World;

const TARGET: Target = Target {
    name: "charts",
    steps: 18,
    tmp: env!("CARGO_TARGET_TMPDIR"),
    needs: &[Need::Cairn, Need::Keda, Need::PrometheusOperator],
};

fn main() -> ExitCode {
    run(TARGET, all)
}

async fn all(place: Place, mut steps: Steps) -> Steps {
    let world = World::start(&place).await;
    let w = &world;
    steps.may("charts are linted, by themselves and with each example", rendered::lint(w)).await;
    steps.may("values that are wrong are refused by name", refused::all(w)).await;
    let rendered = steps.run("every example and more is rendered", variants::render(w)).await;
    let all = &rendered;
    steps.may("each has the objects that it asks for", async { rendered::counts(all) }).await;
    steps.may("the API server takes all of them", rendered::taken(w, all)).await;
    steps.may("platforms take the pods", async { admitted::charts(all) }).await;
    steps.may("what selects is selected", async { selected::all(all) }).await;
    steps.may("who needs a port reaches it, and nobody else", async { selected::ports(all) }).await;
    steps.may("what scales has the scaler's bounds", async { scaled::all(all) }).await;
    steps.may("pods can be started with what they have", started::all(w, all)).await;
    steps.may("what is monitored is what we have", async { monitored::all(all) }).await;
    steps.may("cairn-join is `cairn pool install`", joined::all(w)).await;
    steps.may("manifests are what the chart gives", manifests::made(w)).await;
    steps.may("each kustomization is taken", manifests::taken(w)).await;
    steps.may("each component is what the chart gives", manifests::components(w)).await;
    steps.may("the pool's release comes, changes and goes", release::pool(w)).await;
    steps.may("the release of cairn-join comes, changes and goes", release::join(w)).await;
    steps.may("istiod deploys what the overlay says", swapped::all(w)).await;
    steps
}
