//! Arguments of `cairn pool registrar`.

use super::super::args::MembersArgs;
use crate::cli::{Bind, LogFormat, duration};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// After `cairn pool registrar --help`.
pub const HELP: &str = "\
Exit codes:
  0   told to stop
  1   wrong arguments, or no access to the members' cluster

What it may do: cairn pool install --config pool.yaml --rbac.

Example:
  cairn pool registrar --config pool.yaml --namespace waypoint-pool --service waypoint-pool";

/// Arguments of `pool registrar`.
#[derive(Debug, Args)]
pub struct RegistrarArgs {
    /// The pool and its clusters: pool.yaml
    #[arg(long, value_name = "FILE", env = "CAIRN_POOL_CONFIG")]
    pub config: PathBuf,
    /// Which members.
    #[command(flatten)]
    pub members: MembersArgs,
    /// Pages: /state, metrics, readiness. `off` for none
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15020")]
    pub http: Bind,
    /// How often members are probed and clusters are looked at, from 500ms to 10s
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    /// How long an entry stays whose member is not known, from 5s to 10m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = sweep_after)]
    pub sweep_after: Duration,
    /// How long the Lease holds that is not renewed, from 5s to 5m
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub lease_duration: Duration,
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log filter, for example `info` or `cairn=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

fn interval(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(500), Duration::from_secs(10))
}

fn sweep_after(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(5), Duration::from_secs(600))
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(5), Duration::from_secs(300))
}

fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < least || value > most {
        return Err(format!("must be from {least:?} to {most:?}"));
    }
    Ok(value)
}
