//! `cairn pool`: members, what a user's cluster needs to use them, what is wrong there, and who keeps it right.

mod args;
mod cluster;
mod found;
mod install;
mod lint;
mod registrar;
mod status;
mod uninstall;

pub use args::{PoolArgs, PoolCommand};

use crate::failure::Failure;
use crate::member;
use crate::waypoint::yaml;
use cairn_pool::PoolConfig;
use cairn_pool::config::Cluster;
use std::path::Path;
use std::process::ExitCode;

/// Most bytes of pool.yaml.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Exit code when things are not as they should be.
const WRONG: u8 = 3;

/// Does what is asked.
pub fn run(args: &PoolArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        PoolCommand::Member(args) => member::run(args),
        PoolCommand::Install(args) => install::run(args),
        PoolCommand::Uninstall(args) => uninstall::run(args),
        PoolCommand::Lint(args) => lint::run(args),
        PoolCommand::Status(args) => status::run(args),
        PoolCommand::Registrar(args) => registrar::run(args),
    }
}

/// Reads pool.yaml.
fn read_config(file: &Path) -> Result<PoolConfig, Failure> {
    let failed = |reason: String| Failure::new(format!("{}: {reason}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(failed(format!("has {size} bytes, more than {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let document = yaml::parse(&text).map_err(failed)?;
    PoolConfig::of(document).map_err(|error| failed(error.to_string()))
}

/// The clusters of these names; all, where there are none.
fn clusters<'a>(config: &'a PoolConfig, names: &[String]) -> Result<Vec<&'a Cluster>, Failure> {
    if config.clusters.is_empty() {
        return Err(Failure::new("the file has no clusters").hint("add one under `clusters`"));
    }
    if names.is_empty() {
        return Ok(config.clusters.iter().collect());
    }
    let known = || {
        let names: Vec<&str> =
            config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        names.join(", ")
    };
    let find = |name: &String| {
        config.cluster(name).ok_or_else(|| {
            Failure::new(format!("--cluster {name}: there is none of that name"))
                .hint(format!("the file has {}", known()))
        })
    };
    names.iter().map(find).collect()
}

/// Runs a command that asks API servers and members.
fn asking<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}
