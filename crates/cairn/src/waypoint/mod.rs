//! `cairn proxy waypoint`: the process that istiod's template starts in a waypoint's pod.
//!
//! It is told who it is by arguments, variables and files ([`environment`], [`node`], [`settings`]), gets
//! its certificate from the mesh's CA ([`identity`]) and its configuration from istiod ([`crate::istiod`]), and
//! serves until kubelet says stop ([`process`]). `docs/istio.md` is this for users.

mod announce;
mod args;
mod environment;
mod front;
mod identity;
mod log_levels;
mod memory;
mod metrics;
pub mod node;
mod paths;
mod pilot_agent;
mod pod_info;
pub mod ports;
mod process;
mod proxy_config;
mod settings;
pub mod yaml;

pub use front::Front;
pub use memory::{MemoryGuard, NEXT_STEP, Used, limit as memory_limit};
pub use metrics::of_process;

use crate::failure::Failure;
use crate::terminal::say;
use std::process::ExitCode;

const HELP: &str = "\
Runs as a waypoint that istiod configures, in the pod that istiod's template makes.

Usage: cairn proxy waypoint [FLAGS]

  --domain DOMAIN                DNS domain of the namespace [default: NAMESPACE.svc.cluster.local]
  --serviceCluster NAME          name of the node's cluster [default: GATEWAY.NAMESPACE]
  --concurrency N                worker threads; 0: one for each CPU [default: the CPU limit]
  --log_output_level LEVELS      levels of Istio's scopes [default: default:info]
  --proxyLogLevel LEVEL          level for what handles traffic [default: warning]
  --proxyComponentLogLevel LIST  levels of Envoy's components
  --log_as_json                  one JSON object per line

Flags that are not known are warned about and have no effect. Everything else comes from the pod's
variables and files; docs/istio.md lists them.";

/// Does what a command line of Istio's says.
pub fn run(front: Front) -> Result<ExitCode, Failure> {
    match front {
        Front::Waypoint(args) if args.help => {
            say!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Front::Waypoint(args) => process::run(args),
        Front::Request(request) => request.run(),
    }
}
