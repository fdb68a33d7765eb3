//! Arguments of the measurements of the pool.

use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;

/// Which Cairn.
#[derive(Debug, Clone, Args)]
pub struct Build {
    /// A build of Cairn to run, instead of this workspace's
    #[arg(long, value_name = "FILE")]
    pub cairn: Option<PathBuf>,
    /// The profile in which Cairn is built
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,
}

/// Arguments of `pool-soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Events, one after the other
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub events: u32,
    /// Pods in each cluster, with five applications each
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = RangedU64ValueParser::<usize>::new().range(1..=200))]
    pub clients: usize,
    /// Repeats the events of another run [default: any]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Which Cairn.
    #[command(flatten)]
    pub build: Build,
}

/// Arguments of `pool-balance`.
#[derive(Debug, Clone, Args)]
pub struct BalanceArgs {
    /// Connections of applications
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = RangedU64ValueParser::<usize>::new().range(16..=20_000))]
    pub connections: usize,
    /// Members at first; as many join them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(2..=50))]
    pub members: usize,
    /// Seconds after which it is not waited any longer
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    pub limit: u64,
    /// Which Cairn.
    #[command(flatten)]
    pub build: Build,
}

/// Arguments of `pool-fairness`.
#[derive(Debug, Clone, Args)]
pub struct FairnessArgs {
    /// Requests that the member can have in flight; the share of each of the two tenants is half of them
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = RangedU64ValueParser::<usize>::new().range(8..=2_000))]
    pub in_flight: usize,
    /// Seconds of each of the two phases
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Which Cairn.
    #[command(flatten)]
    pub build: Build,
}

/// Arguments of `pool-warm`.
#[derive(Debug, Clone, Args)]
pub struct WarmArgs {
    /// Members that start by what a sibling tells
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub rounds: u8,
    /// Which Cairn.
    #[command(flatten)]
    pub build: Build,
}
