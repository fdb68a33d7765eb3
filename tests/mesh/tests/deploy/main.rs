//! Cairn's image where the charts and istiod put it: every pod is the image's root filesystem, with the command line,
//! files, user and rights that its template gives it.
//!
//! One cluster is all of them: the one whose waypoints are swapped, the pool's, and one that uses the pool. kubelet, the
//! controllers of Deployments and EndpointSlices, and ztunnel are played.

#![allow(clippy::unwrap_used, clippy::panic)]

#[allow(dead_code)] // the target registrar uses all of it
#[path = "../registrar/played.rs"]
mod played;
mod pool;
mod rights;
mod scaler;
mod swap;
mod world;

use cairn_mesh_tests::harness::{Need, Target, run};
use std::process::ExitCode;

const TARGET: Target =
    Target { name: "deploy", steps: 15, tmp: env!("CARGO_TARGET_TMPDIR"), needs: &[Need::Rootfs] };

fn main() -> ExitCode {
    run(TARGET, world::run)
}
