//! Cairn in a real mesh: an unmodified istiod on a real API server renders it, signs for it and
//! configures it; every change is seen to take effect in traffic.
//!
//! One lab for all steps, because starting it takes longer than they do; they run in order.

#![allow(clippy::unwrap_used, clippy::panic)]

mod operators;
mod outage;
mod routing;
mod security;
mod telemetry;
mod world;

use cairn_mesh_tests::harness::{Need, Target, run};
use std::process::ExitCode;

const TARGET: Target =
    Target { name: "mesh", steps: 17, tmp: env!("CARGO_TARGET_TMPDIR"), needs: &[Need::Cairn] };

fn main() -> ExitCode {
    run(TARGET, world::run)
}
