//! Arguments of `cairn pool`.

use cairn_pool::AllowedNamespaces;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `pool`.
#[derive(Debug, Args)]
pub struct PoolArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PoolCommand,
}

/// What to do about a pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Print the objects that a user's cluster needs
    Install(ClusterArgs),
    /// Run as a member of the pool: a waypoint of every cluster in pool.yaml
    Member(Box<crate::member::MemberArgs>),
    /// Find what would keep the pool from working in a cluster, or traffic from being policed
    #[command(after_help = LINT_HELP)]
    Lint(LintArgs),
}

const LINT_HELP: &str = "\
Exit codes:
  0   nothing is wrong, or only warnings
  1   wrong arguments or unreadable files
  3   traffic fails, or is not policed

Example:
  kubectl get -A -o json gateways.gateway.networking.k8s.io,services,namespaces,pods,workloadgroups,workloadentries,authorizationpolicies |
      cairn pool lint --port 21001 -";

/// How the pool is called in a user's cluster.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Port on which members listen for this cluster; another one for each cluster
    #[arg(long, value_name = "PORT")]
    pub port: u16,
    /// Namespace of the pool's objects
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool")]
    pub namespace: String,
    /// Name of Gateway, Service and WorkloadGroup
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool")]
    pub name: String,
    /// Service account of members in this cluster
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool")]
    pub service_account: String,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub domain: String,
    /// Namespaces that may use the pool: `all`, or those with the label KEY=VALUE
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub allow: AllowedNamespaces,
    /// Clients prefer members of their zone: for two members or more in each
    #[arg(long)]
    pub prefer_close: bool,
}

/// Arguments of `pool lint`.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// How the pool is called there.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Trust domain of the mesh
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The cluster's objects as JSON, lists too; `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    pub objects: Vec<PathBuf>,
}
