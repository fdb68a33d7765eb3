//! docs/deploy.md, command by command: two clusters, one with a mesh and one for the pool, whose Deployments are run from
//! the image's root filesystem. After a block it is seen that what the page promises is so.

#![allow(clippy::unwrap_used, clippy::panic)]

mod world;

use cairn_mesh_tests::guide::{Block, blocks, count};
use cairn_mesh_tests::harness::{self, Need, Place, Target};
use cairn_mesh_tests::steps::Steps;
use std::process::ExitCode;
use world::World;

const PAGE: &str = include_str!("../../../../docs/deploy.md");

const TARGET: Target = Target {
    name: "guide",
    steps: 2 + count(PAGE),
    tmp: env!("CARGO_TARGET_TMPDIR"),
    needs: &[Need::Keda, Need::Rootfs],
};

fn main() -> ExitCode {
    harness::run(TARGET, all)
}

async fn all(place: Place, mut steps: Steps) -> Steps {
    let blocks = blocks(PAGE);
    steps.run("what is not run says why", async { marks(&blocks) }).await;
    let mut world = steps.run("two clusters, one with a mesh", World::start(&place)).await;
    for block in blocks.iter().filter(|block| !block.marked) {
        let name = format!("line {}: {}", block.line, block.heading);
        steps.run(&name, world.follow(block)).await;
    }
    steps
}

fn marks(blocks: &[Block]) {
    for block in blocks {
        assert_eq!(block.marked, block.above.starts_with("Not run ("), "line {}", block.line);
    }
    assert!(blocks.iter().filter(|block| !block.marked).count() > 10);
}
