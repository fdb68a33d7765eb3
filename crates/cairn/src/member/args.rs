//! Arguments of `cairn pool member`.

use crate::cli::{LogFormat, duration};
use crate::load::LoadSettings;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// After `cairn pool member --help`.
pub const HELP: &str = "\
Ports that are not a cluster's: 15000 on loopback for people, 15020 metrics and /load, 15021 health,
15090 metrics. CAIRN_PORTS moves them as it does for a waypoint.

The end (SIGTERM, POST /drain, a drain order that shows the pool's token):
  deregister everywhere → go on accepting until the clusters' ztunnels have heard → GOAWAY, finish → exit 0

Variables: POD_NAME, POD_IP or INSTANCE_IP where pool.yaml does not say them; CAIRN_PORTS, CAIRN_RESOLVE;
GOMEMLIMIT: bytes that the pod may use, where its control group does not say.";

/// Arguments of `pool member`.
#[derive(Debug, Clone, Args)]
#[command(after_help = HELP)]
pub struct MemberArgs {
    /// The pool and its clusters; looked at again every second
    #[arg(long, value_name = "FILE", default_value = "/etc/cairn/pool.yaml")]
    pub config: PathBuf,
    /// Worker threads [default: one for each CPU]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// After deregistering, tunnels are accepted for so long: until every ztunnel has heard it
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub drain_accept: Duration,
    /// Where the cluster's istiod shows that the entry is gone, for so long after that
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub drain_confirmed: Duration,
    /// What is in flight then is told to end over so long, so that clients do not all come back at once
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub drain_spread: Duration,
    /// The whole end takes so long at most; what is left is cut
    #[arg(long, value_name = "TIME", default_value = "145s", value_parser = duration)]
    pub drain_limit: Duration,
    /// What this member can do, such as in-flight=800,connections=8000,cpu=2
    #[arg(long, value_name = "LIST", value_parser = load)]
    pub capacity: Option<LoadSettings>,
    /// Requests in flight at once; beyond it tenants wait for their share [default: four times what --capacity has]
    #[arg(long, value_name = "N")]
    pub max_in_flight: Option<u32>,
    /// How old connections inside of tunnels become, more or less a fifth, before clients are told to open others
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub max_connection_age: Duration,
    /// Part of the memory limit above which new tunnels are refused, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 85)]
    pub memory_percent: u64,
    /// Log filter, for example `info` or `cairn_proxy=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

fn load(list: &str) -> Result<LoadSettings, String> {
    let mut settings = LoadSettings::default();
    settings.put(list).map_err(|error| error.to_string())?;
    Ok(settings)
}
