//! `cairn proxy`: from a configuration to running meshes, until a signal says stop.
//!
//! This thread is the control plane: configuration, certificates, admin pages, signals. Traffic
//! runs on the workers' threads, so nothing here delays it.
//!
//! Start: log → signals → configuration → admin, metrics and health listeners (which answer 503
//! with what is missing) → meshes. End: not ready → grace → drain up to a limit → exit code 0.

mod identity;
mod reconcile;

use crate::admin::Admin;
use crate::check::broken;
use crate::cli::{Bind, ProxyArgs};
use crate::failure::Failure;
use crate::fleet::Fleet;
use crate::load::{Configured, LoadSettings};
use crate::logging::Logging;
use crate::ready::Readiness;
use crate::signals::Signals;
use cairn_proxy::{Placement, Workers};
use cairn_telemetry::Telemetry;
use cairn_xds::{Config, DrainConfig, FileSource};
use reconcile::{Reconciler, mesh_label};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How often a mesh that could not start is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub fn run(args: &ProxyArgs) -> Result<ExitCode, Failure> {
    let logging = Logging::start(args.log_format, &args.log_level).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args, logging));
    // A read of a file that hangs shall not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ProxyArgs, logging: Logging) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let (mut source, config) = FileSource::open(&args.config).map_err(|errors| broken(&errors))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %args.config.display(),
        meshes = config.meshes.len(),
        "starting"
    );

    let threads = threads(args, &config);
    let telemetry = Telemetry::new(threads);
    let placement = match config.placement {
        cairn_xds::Placement::Local => Placement::Local,
        cairn_xds::Placement::Spread => Placement::Spread,
    };
    let workers = Workers::start(threads, placement)
        .map_err(|error| Failure::new(format!("worker threads do not start: {error}")))?;
    tracing::info!(threads, "workers run");
    let delays = workers.delays();
    let fleet = Fleet::new(workers, Arc::clone(&telemetry));
    let names = config.meshes.iter().map(|mesh| mesh_label(&mesh.name));
    let readiness = Arc::new(Readiness::waiting_for(names));
    let quit = Arc::new(Notify::new());
    let load = Configured {
        settings: load_settings(args, &config),
        workers: threads,
        delays,
        readiness: Arc::clone(&readiness),
        roster: fleet.roster(),
    };
    let load = load.reporter(&telemetry);
    tokio::spawn(Arc::clone(&load).run());
    let admin = Arc::new(Admin {
        load,
        readiness: Arc::clone(&readiness),
        telemetry: Arc::clone(&telemetry),
        roster: fleet.roster(),
        logging,
        quit: Arc::clone(&quit),
    });
    open_pages(args, &config, &admin).await?;

    let mut meshes = Reconciler::new(fleet, Arc::clone(&readiness), &config);
    meshes.start(&source, &config).await?;
    let mut retry = tokio::time::interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let why = loop {
        tokio::select! {
            changed = source.changed() => match changed {
                Ok(config) => meshes.follow(&source, &config).await,
                Err(errors) => reconcile::log_errors(&errors),
            },
            _ = retry.tick(), if meshes.is_waiting() => {
                let config = Arc::clone(source.config());
                meshes.retry(&source, &config).await;
            }
            signal = signals.next() => break signal,
            () = quit.notified() => break "quitquitquit",
        }
    };

    let DrainConfig { grace, limit } = source.config().drain;
    let limit = args.drain_limit.unwrap_or(limit);
    tracing::info!(why, ?grace, ?limit, "draining");
    readiness.drain();
    let drained = async {
        tokio::time::sleep(grace).await;
        meshes.drain(limit).await
    };
    tokio::select! {
        cut = drained => {
            if cut > 0 {
                tracing::warn!(cut, "drained, but some had to be cut at the limit");
            } else {
                tracing::info!("drained");
            }
            telemetry.access_logs().flush_soon().await;
            Ok(ExitCode::SUCCESS)
        }
        signal = signals.next() => {
            tracing::warn!(signal, "second signal, ending at once");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What was said of what the process can do: the command line comes first.
fn load_settings(args: &ProxyArgs, config: &Config) -> LoadSettings {
    let told = args.capacity.clone().unwrap_or_default();
    let mut settings = LoadSettings { config: config.load.clone() }.overridden(told);
    settings.config.bandwidth = args.bandwidth.or(settings.config.bandwidth);
    settings
}

fn threads(args: &ProxyArgs, config: &Config) -> usize {
    match args.workers {
        Some(workers) => usize::from(workers),
        None if config.workers > 0 => config.workers,
        None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

/// Opens the listeners for people, Prometheus and probes.
async fn open_pages(args: &ProxyArgs, config: &Config, admin: &Arc<Admin>) -> Result<(), Failure> {
    let configured = &config.admin;
    if let Some(listener) = open("admin", args.admin, configured.address).await? {
        tokio::spawn(admin.serve_admin(listener));
    }
    if let Some(listener) = open("metrics", args.metrics, configured.metrics).await? {
        tokio::spawn(admin.serve_metrics(listener));
    }
    if let Some(listener) = open("health", args.health, configured.health).await? {
        tokio::spawn(admin.serve_health(listener));
    }
    Ok(())
}

async fn open(
    what: &'static str,
    told: Option<Bind>,
    configured: SocketAddr,
) -> Result<Option<TcpListener>, Failure> {
    let Bind::At(address) = told.unwrap_or(Bind::At(configured)) else { return Ok(None) };
    let failed = |error: std::io::Error| {
        Failure::new(format!("{what} pages on {address}: {error}"))
            .hint(format!("--{what} IP:PORT takes another address, --{what} off goes without"))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "{what} pages");
    Ok(Some(listener))
}
