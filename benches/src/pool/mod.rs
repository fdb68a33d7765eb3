//! The pool at work: members that are real processes, clusters with fake istiods, clients that choose members as
//! ztunnel does.
//!
//! `soak` lets things happen to the members, `balance` doubles their number, `fairness` gives one of them a tenant
//! that wants too much, `warm` starts members that ask a sibling. Clusters and clients are in this process.

pub mod args;
mod balance;
mod events;
mod fairness;
mod ground;
mod member;
mod pod;
mod random;
mod session;
mod soak;
mod tally;
mod warm;

use crate::binaries::build_cairn;
use crate::compare::prepare;
use anyhow::{Context, Result};
use args::{BalanceArgs, Build, FairnessArgs, SoakArgs, WarmArgs};
use ground::Ground;
use member::Launch;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who members are, in every cluster.
const ID: &str = "spiffe://cluster.local/ns/waypoint-pool/sa/waypoint-pool";
/// The pool's token.
const POOL_TOKEN: &str = "the-pools-token";
/// The token of the members' service account.
const ISTIO_TOKEN: &str = "a-token-of-the-pool";
/// An answer that has not come after so long never will.
const PATIENCE: Duration = Duration::from_secs(10);

/// `benches pool-soak`.
pub fn soak(args: &SoakArgs) -> Result<()> {
    runtime()?.block_on(async {
        let program = program(&args.build).await?;
        soak::run(&program, soak::Course::of(args)).await
    })
}

/// `benches pool-balance`.
pub fn balance(args: &BalanceArgs) -> Result<()> {
    runtime()?.block_on(async { balance::run(&program(&args.build).await?, args).await })
}

/// `benches pool-fairness`.
pub fn fairness(args: &FairnessArgs) -> Result<()> {
    runtime()?.block_on(async { fairness::run(&program(&args.build).await?, args).await })
}

/// `benches pool-warm`.
pub fn warm(args: &WarmArgs) -> Result<()> {
    runtime()?.block_on(async { warm::run(&program(&args.build).await?, args).await })
}

/// Three events, for `benches smoke`.
pub async fn smoke(program: &Path) -> Result<()> {
    soak::run(program, soak::Course::brief()).await
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn program(build: &Build) -> Result<PathBuf> {
    match &build.cairn {
        Some(program) => Ok(program.clone()),
        None => build_cairn(&build.profile).await,
    }
}

/// Clusters with these services each, for members that are started with these further arguments. What earlier runs of
/// this name have left is removed.
async fn ground(name: &str, program: &Path, args: &[&str], services: &[&[&str]]) -> Result<Ground> {
    let dir = prepare()?.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let launch = Launch {
        program: program.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
    };
    Ground::start(launch, &dir, services).await
}
