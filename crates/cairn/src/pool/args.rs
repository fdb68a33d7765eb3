//! Arguments of `cairn pool`.

use super::registrar::{self, RegistrarArgs};
use cairn_pool::AllowedNamespaces;
use clap::{Args, Subcommand};
use std::net::IpAddr;
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
    /// Run as a member of the pool: a waypoint of every cluster in pool.yaml
    Member(Box<crate::member::MemberArgs>),
    /// Print or apply the objects that a user's cluster needs
    #[command(after_help = INSTALL_HELP)]
    Install(InstallArgs),
    /// Remove the pool's objects from a user's cluster
    ///
    /// Says first who uses the pool there: these fall back to plain L4, and no L7 policy holds for them.
    #[command(after_help = UNINSTALL_HELP)]
    Uninstall(UninstallArgs),
    /// Find what would keep the pool from working in a cluster, or traffic from being policed
    #[command(after_help = LINT_HELP)]
    Lint(LintArgs),
    /// Show which member is registered in which cluster, and how each stands
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Keep every cluster's entries true to the members that live
    ///
    /// Members register themselves; the registrar makes it faster and tidier. It deletes entries of members that died
    /// or leave, sweeps those that istiod forgot, gives new members more of the load, spreads members over shards,
    /// keeps the pool's objects in place, and mints the tokens with which members start.
    #[command(after_help = registrar::HELP)]
    Registrar(Box<RegistrarArgs>),
}

const INSTALL_HELP: &str = "\
Exit codes:
  0   printed, or applied
  1   wrong arguments, an API server that refuses, or objects that are somebody else's

Examples:
  cairn pool install --port 21001 | kubectl apply -f -
  cairn pool install --config pool.yaml --cluster east --apply
  cairn pool install --config pool.yaml --rbac";

const UNINSTALL_HELP: &str = "\
Exit codes:
  0   removed
  1   wrong arguments, or an API server that refuses
  3   nothing was removed: --yes is not given

Example:
  cairn pool uninstall --config pool.yaml --cluster east";

const LINT_HELP: &str = "\
Exit codes:
  0   nothing is wrong, or only warnings
  1   wrong arguments or unreadable files
  3   traffic fails, or is not policed

Examples:
  cairn pool lint --config pool.yaml --cluster east
  kubectl get -A -o json gateways.gateway.networking.k8s.io,services,namespaces,pods,workloadgroups,workloadentries,authorizationpolicies |
      cairn pool lint --port 21001 -";

const STATUS_HELP: &str = "\
Exit codes:
  0   every member answers, is ready and registered in every cluster
  1   wrong arguments, or no member is known
  3   a member or a cluster is not as it should be

Example:
  cairn pool status --config pool.yaml --members 10.8.3.17,10.8.3.18";

/// The file that describes the pool.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The pool and its clusters: pool.yaml
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only this cluster of it; may be repeated
    #[arg(long = "cluster", value_name = "NAME")]
    pub clusters: Vec<String>,
}

/// How the pool is called in a user's cluster.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Port on which members listen for this cluster; another one for each cluster
    #[arg(
        long,
        value_name = "PORT",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    pub port: Option<u16>,
    /// Namespace of the pool's objects
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool", conflicts_with = "config")]
    pub namespace: String,
    /// Name of Gateway, Service and WorkloadGroup
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool", conflicts_with = "config")]
    pub name: String,
    /// Service account of members in this cluster
    #[arg(long, value_name = "NAME", default_value = "waypoint-pool", conflicts_with = "config")]
    pub service_account: String,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", conflicts_with = "config")]
    pub domain: String,
    /// Namespaces that may use the pool: `all`, or those with the label KEY=VALUE
    #[arg(long, value_name = "WHICH", default_value = "all", conflicts_with = "config")]
    pub allow: AllowedNamespaces,
    /// Clients prefer members of their zone: for two members or more in each
    #[arg(long, conflicts_with = "config")]
    pub prefer_close: bool,
}

/// Arguments of `pool install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The pool and its clusters, instead of --port and what goes with it: pool.yaml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only this cluster of it; may be repeated
    #[arg(long = "cluster", value_name = "NAME", requires = "config", conflicts_with = "port")]
    pub clusters: Vec<String>,
    /// Apply the objects instead of printing them, by each cluster's kubeconfig
    #[arg(long, requires = "config", conflicts_with = "port")]
    pub apply: bool,
    /// Take over objects of these names that are not the pool's
    #[arg(long, requires = "apply")]
    pub adopt: bool,
    /// Print the registrar's rights instead, for the clusters and for that of the members
    #[arg(long, requires = "config", conflicts_with_all = ["apply", "port"])]
    pub rbac: bool,
    /// Namespace of the members in their cluster, with --rbac [default: the pool's name]
    #[arg(long, value_name = "NAME", requires = "rbac")]
    pub members_namespace: Option<String>,
    /// How the pool is called there.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `pool uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Which clusters.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `pool lint`.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// The pool and its clusters: looks at the cluster itself instead of files
    #[arg(long, value_name = "FILE", requires = "in_config")]
    pub config: Option<PathBuf>,
    /// The cluster of it
    #[arg(long = "cluster", value_name = "NAME", requires = "config", conflicts_with = "port")]
    pub in_config: Option<String>,
    /// How the pool is called there.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Trust domain of the mesh
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", conflicts_with = "config")]
    pub trust_domain: String,
    /// The cluster's objects as JSON, lists too; `-` for standard input
    #[arg(required_unless_present = "config", conflicts_with = "config", value_name = "FILE")]
    pub objects: Vec<PathBuf>,
}

/// Where the members are.
#[derive(Debug, Args)]
pub struct MembersArgs {
    /// Members: the pods behind this Service
    #[arg(
        long,
        value_name = "NAME",
        env = "CAIRN_POOL_SERVICE",
        required_unless_present = "members",
        conflicts_with = "members"
    )]
    pub service: Option<String>,
    /// Members: these addresses; may be repeated
    #[arg(long, value_name = "IP", env = "CAIRN_POOL_MEMBERS", value_delimiter = ',')]
    pub members: Vec<IpAddr>,
    /// Namespace of the members, the Lease and the tokens [default: that of the pod or kubeconfig]
    #[arg(long, value_name = "NAME", env = "CAIRN_POOL_NAMESPACE")]
    pub namespace: Option<String>,
    /// Kubeconfig of the members' cluster [default: as the pod's service account]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Port of the members' /load
    #[arg(long, value_name = "PORT", default_value = "15020")]
    pub load_port: u16,
    /// Port of the members' /healthz/ready
    #[arg(long, value_name = "PORT", default_value = "15021")]
    pub health_port: u16,
}

/// Arguments of `pool status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which clusters.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Which members.
    #[command(flatten)]
    pub members: MembersArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn a_cluster_is_described_by_a_file_or_by_flags() {
        for (line, good) in [
            ("install --port 21001", true),
            ("install", false),
            ("install --config p.yaml", true),
            ("install --config p.yaml --cluster a --cluster b --apply --adopt", true),
            ("install --config p.yaml --port 21001", false),
            ("install --config p.yaml --name other", false),
            ("install --config p.yaml --adopt", false),
            ("install --config p.yaml --rbac --members-namespace m", true),
            ("install --config p.yaml --rbac --apply", false),
            ("install --port 21001 --apply", false),
            ("install --port 21001 --rbac", false),
            ("install --port 21001 --cluster a", false),
            ("lint --port 21001 --cluster a -", false),
            ("uninstall --config p.yaml --yes", true),
            ("uninstall --cluster a", false),
            ("lint --port 21001 -", true),
            ("lint --port 21001", false),
            ("lint --config p.yaml --cluster a", true),
            ("lint --config p.yaml", false),
            ("lint --config p.yaml --cluster a file", false),
            ("status --config p.yaml --members 10.8.0.1,10.8.0.2", true),
            ("status --config p.yaml", false),
            ("status --config p.yaml --members one", false),
            ("registrar --config p.yaml --service s --namespace n", true),
            ("registrar --config p.yaml --service s --members 10.8.0.1", false),
            ("registrar --config p.yaml --service s --interval 1ms", false),
        ] {
            let words = ["cairn", "pool"].into_iter().chain(line.split(' '));
            assert_eq!(Cli::try_parse_from(words).is_ok(), good, "{line}");
        }
    }
}
