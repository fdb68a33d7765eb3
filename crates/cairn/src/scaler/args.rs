//! Arguments of `cairn scaler`.

use super::simulate;
use crate::cli::{Bind, LogFormat, duration};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// After `cairn scaler --help`.
pub const HELP: &str = "\
Fields of --policy, with their defaults:
  target=0.6               share of its capacity that a member is to be busy
  min=2, max=200           members at least and at most
  stable_window=60s        window of the stable average
  panic_window=6s          window of the average for bursts
  panic_threshold=2        panic when the short average asks for so many times the ready members
  overload_for=6s          overload that lasts so long is panic, too
  down_delay=300s          the largest decision of this long holds
  down_share=0.1           share of the members that may go at once, at least one; a tenth and one
  down_period=60s          pause between two steps down
  headroom_share=0.5       most that headroom may add to the short average
  headroom_deviations=2    standard deviations of the demand that headroom holds

Examples:
  cairn scaler --service waypoint-pool/waypoint --policy min=3,max=50
  cairn scaler --service waypoint-pool/waypoint --target deployments/waypoint --apply
  cairn scaler --service waypoint-pool/waypoint --target deployments/waypoint-spot --fixed 2
  cairn scaler --member 127.0.0.1:15020 --target deployments/waypoint --apply --dry-run";

/// What the scaler is to do instead of running.
#[derive(Debug, Subcommand)]
pub enum ScalerCommand {
    /// Replay a recorded load against the scaler's algorithm and against HPAs
    ///
    /// No cluster is needed. Prints how long each of them left the fleet overloaded, what that cost,
    /// and what each asked for over time.
    #[command(after_help = simulate::HELP)]
    Simulate(simulate::SimulateArgs),
}

/// Arguments of `scaler`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ScalerArgs {
    /// Something else than to run.
    #[command(subcommand)]
    pub command: Option<ScalerCommand>,
    /// Members: the endpoints of this Service
    #[arg(long, value_name = "NAMESPACE/NAME", env = "CAIRN_SCALER_SERVICE", group = "source")]
    pub service: Option<String>,
    /// Members: all addresses of this name, looked up again and again
    #[arg(long, value_name = "HOST:PORT", env = "CAIRN_SCALER_DNS", group = "source")]
    pub dns: Option<String>,
    /// Members: this one; may be repeated
    #[arg(
        long = "member",
        value_name = "HOST:PORT",
        env = "CAIRN_SCALER_MEMBERS",
        value_delimiter = ',',
        group = "source"
    )]
    pub members: Vec<String>,
    /// Port of the members' /load, with --service
    #[arg(long, value_name = "PORT", default_value = "15020", env = "CAIRN_SCALER_LOAD_PORT")]
    pub load_port: u16,
    /// How often members are polled, from 500ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = poll_interval)]
    pub poll_interval: Duration,
    /// How long a member may take to answer, at most the interval
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub poll_timeout: Duration,
    /// Policy and tenants' caps: a YAML file; what is given here counts more
    #[arg(long, value_name = "FILE", env = "CAIRN_SCALER_CONFIG")]
    pub config: Option<PathBuf>,
    /// One or more fields of the policy; may be repeated
    #[arg(
        long = "policy",
        value_name = "FIELD=VALUE",
        env = "CAIRN_SCALER_POLICY",
        value_delimiter = ','
    )]
    pub policy: Vec<String>,
    /// Capacity units that a tenant may ask for: UNITS for all, or MESH/NAMESPACE=UNITS; may be repeated
    #[arg(
        long = "tenant-cap",
        value_name = "[MESH/NAMESPACE=]UNITS",
        env = "CAIRN_SCALER_TENANT_CAPS",
        value_delimiter = ','
    )]
    pub tenant_caps: Vec<String>,
    /// Name of the pool: a trigger of KEDA whose metadata has another `pool` is refused
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool", env = "CAIRN_SCALER_POOL")]
    pub pool: String,
    /// KEDA's external scaler, gRPC. `off` for none
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:9090", env = "CAIRN_SCALER_GRPC")]
    pub grpc: Bind,
    /// Pages: /decision, /fleet, metrics, readiness. `off` for none
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15020", env = "CAIRN_SCALER_HTTP")]
    pub http: Bind,
    /// What is scaled: its replicas are read, and written with --apply. deployments/NAME, statefulsets/NAME or RESOURCE.VERSION.GROUP/NAME
    #[arg(long, value_name = "RESOURCE/NAME", env = "CAIRN_SCALER_TARGET")]
    pub target: Option<String>,
    /// Members that are not the target's own, such as on-demand ones beside spot: what is decided is about all, and the target gets the rest, at least one
    #[arg(long, value_name = "COUNT", default_value = "0", env = "CAIRN_SCALER_FIXED")]
    pub fixed: u32,
    /// Namespace of the target and the Lease [default: of --service, else of the pod or kubeconfig]
    #[arg(long, value_name = "NAME", env = "CAIRN_SCALER_NAMESPACE")]
    pub namespace: Option<String>,
    /// Scale the target, without KEDA; of several scalers the one that holds the Lease does
    #[arg(long, requires = "target", env = "CAIRN_SCALER_APPLY")]
    pub apply: bool,
    /// Print what --apply would do, and do nothing
    #[arg(long, requires = "apply")]
    pub dry_run: bool,
    /// Name of the Lease [default: cairn-scaler-POOL]
    #[arg(long, value_name = "NAME", env = "CAIRN_SCALER_LEASE")]
    pub lease: Option<String>,
    /// How long the Lease holds that is not renewed, from 5s to 5m
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub lease_duration: Duration,
    /// Kubernetes by a kubeconfig [default: as the pod's service account]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubernetes by its address, with --api-token and --api-ca
    #[arg(long, value_name = "URL", requires_all = ["api_token", "api_ca"])]
    pub api_server: Option<String>,
    /// File with the token for --api-server
    #[arg(long, value_name = "FILE", requires = "api_server")]
    pub api_token: Option<PathBuf>,
    /// PEM file with the CA of --api-server
    #[arg(long, value_name = "FILE", requires = "api_server")]
    pub api_ca: Option<PathBuf>,
    /// File with the pool's token: who shows it may read /fleet; read again when it changes
    #[arg(long, value_name = "FILE", env = "CAIRN_SCALER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log filter, for example `info` or `cairn=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

fn poll_interval(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(500), Duration::from_secs(60))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::super::settings;
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    const DEPLOYMENT: &str = include_str!("../../../../deploy/keda/scaler.yaml");

    #[test]
    fn the_deployment_starts_it_as_it_can_be_started() {
        let (_, args) = DEPLOYMENT.split_once("          args:\n").unwrap();
        let words = args.lines().map_while(|line| line.strip_prefix("            - "));
        let Command::Scaler(args) =
            Cli::try_parse_from(["cairn"].into_iter().chain(words)).unwrap().command
        else {
            panic!("another command")
        };
        assert_eq!(args.service.as_deref(), Some("waypoint-pool/waypoint-pool"));
        assert_eq!(args.target.as_deref(), Some("deployments/waypoint-pool"));
        let policy = settings::settings(&args).unwrap().policy;
        assert_eq!((policy.min, policy.max), (2, 200));
        assert!(args.command.is_none() && !args.apply);
    }

    #[test]
    fn a_simulation_is_no_run() {
        let line = ["cairn", "scaler", "simulate", "--trace", "a.csv", "--policy", "min=3,max=9"];
        let Command::Scaler(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command")
        };
        let Some(ScalerCommand::Simulate(args)) = args.command else { panic!("it runs") };
        assert_eq!(args.policy, ["min=3", "max=9"]);
        assert!(Cli::try_parse_from(["cairn", "scaler", "--apply", "simulate"]).is_err());
    }
}
