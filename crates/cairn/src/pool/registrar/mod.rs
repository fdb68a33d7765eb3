//! `cairn pool registrar`: keeps every cluster's entries true to the members that live.
//!
//! ```text
//! members ─ probe ─→ Watcher ─ View ─┬→ Keeper of a cluster: entries, objects, tokens
//!    ↑ EndpointSlices, Pods, notices └→ Keeper of another cluster
//! ```
//!
//! Of several registrars the one that holds the Lease acts. Requests do not need it, and nothing is kept on disk: who
//! starts anew finds out the same, only later.

mod args;
mod keeper;
mod numbers;
mod pages;
mod tokens;
mod watcher;

pub use args::{HELP, RegistrarArgs};

use super::found::{Found, Prober, pool_client};
use super::read_config;
use crate::cli::Bind;
use crate::failure::Failure;
use crate::logging::Logging;
use crate::members::Poller;
use crate::ready::Readiness;
use crate::signals::Signals;
use cairn_kube::{Election, LeaseSpec};
use cairn_pool::{PoolConfig, rbac};
use cairn_telemetry::Telemetry;
use keeper::Keeper;
use numbers::Numbers;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokens::Tokens;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use watcher::{FIRST_ROUND, Registered, Watcher};

/// How long a member may take to answer a probe, and no more than half of the interval.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// Giving the Lease up may take so long.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until it is told to stop.
pub fn run(args: &RegistrarArgs) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config)?;
    if config.clusters.is_empty() {
        return Err(Failure::new("the file has no clusters").hint("add one under `clusters`"));
    }
    if let Some(cluster) = config.clusters.iter().find(|cluster| cluster.kubeconfig.is_none()) {
        return Err(Failure::new(format!("{}: its API server is not known", cluster.name))
            .hint("give it a `kubeconfig` in the file"));
    }
    let _logging = Logging::start(args.log_format, &args.log_level).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args, config));
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &RegistrarArgs, config: PoolConfig) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let (client, namespace) = pool_client(&args.members).await?;
    let found = Found::of(&args.members, Some((&client, &namespace)))?;
    let lease = LeaseSpec {
        namespace: namespace.clone(),
        name: rbac::lease(&config.pool),
        // Two processes of one host are two candidates.
        identity: format!(
            "{}_{:08x}",
            rustix::system::uname().nodename().to_string_lossy(),
            rand::random::<u32>()
        ),
        duration: args.lease_duration,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pool = config.pool.name,
        lease = lease.name,
        namespace,
        identity = lease.identity,
        "starting"
    );
    let election = Election::start(&client, lease);
    let numbers = Arc::new(Numbers::default());
    let readiness = Arc::new(Readiness::waiting_for([FIRST_ROUND.to_owned()]));
    let registered = Registered::default();
    let (view, views) = watch::channel(None);
    let prober = Prober {
        poller: Poller::new(PROBE_TIMEOUT.min(args.interval / 2)),
        load_port: args.members.load_port,
        health_port: args.members.health_port,
    };
    let mut tasks = JoinSet::new();
    if let Bind::At(address) = args.http {
        let failed = |error: std::io::Error| {
            Failure::new(format!("registrar pages on {address}: {error}"))
                .hint("--http IP:PORT takes another address, --http off goes without")
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "registrar pages");
        let pages = pages::Pages {
            view: views.clone(),
            leadership: election.watch(),
            numbers: Arc::clone(&numbers),
            readiness: Arc::clone(&readiness),
            telemetry: Telemetry::new(1),
        };
        tasks.spawn(Arc::new(pages).serve(listener));
    }
    for cluster in &config.clusters {
        numbers.add(&cluster.name);
        let keeper = Keeper {
            cluster: cluster.clone(),
            pool: config.pool.clone(),
            view: views.clone(),
            leadership: election.watch(),
            prober: prober.clone(),
            patience: args.sweep_after,
            registered: Arc::clone(&registered),
            tokens: Tokens::new((client.clone(), namespace.clone())),
            numbers: Arc::clone(&numbers),
        };
        tasks.spawn(keeper.run());
    }
    let watcher = Watcher {
        found,
        client: (client, namespace),
        prober,
        interval: args.interval,
        patience: args.sweep_after,
        token_file: config.pool.token_file.clone(),
        leadership: election.watch(),
        registered,
        view,
        numbers,
        readiness: Arc::clone(&readiness),
    };
    tasks.spawn(watcher.run());
    let signal = tokio::select! {
        signal = signals.next() => signal,
        ended = tasks.join_next() => {
            // None of them ends by itself.
            let reason = ended.and_then(Result::err).map_or("a task ended".to_owned(), |error| error.to_string());
            return Err(Failure::new(format!("the registrar cannot go on: {reason}")));
        }
    };
    tracing::info!(signal, "ending");
    readiness.drain();
    tasks.shutdown().await;
    let _late = tokio::time::timeout(RELEASE_TIMEOUT, election.release()).await;
    Ok(ExitCode::SUCCESS)
}
