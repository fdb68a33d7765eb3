//! `cairn scaler`: how many members a pool needs, decided every two seconds.
//!
//! ```text
//! members ─ poll ─→ Fleet → Autoscaler → Snapshot ─┬→ KEDA (gRPC)
//!    ↑ EndpointSlices, DNS, a list                 ├→ the target's scale, while the Lease is ours
//!                                                  └→ pages: /decision, /fleet, metrics
//! ```
//!
//! Nothing is kept on disk: who restarts holds what there is until its windows are full again.

mod args;
mod engine;
mod keda;
mod numbers;
mod pages;
mod report;
mod settings;
mod simulate;
mod snapshot;
mod target;
mod token;

use args::ScalerCommand;
pub use args::{HELP, ScalerArgs};
pub use token::{PoolToken, read as read_token};

use crate::cli::Bind;
use crate::failure::Failure;
use crate::logging::Logging;
use crate::members::{Poller, Source};
use crate::ready::Readiness;
use crate::signals::Signals;
use cairn_autoscale::Autoscaler;
use cairn_kube::{Access, Client, Election, LeaseSpec, Target};
use cairn_telemetry::Telemetry;
use engine::Engine;
use numbers::Numbers;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use target::{Acting, Actuator, Mode};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Giving the Lease up may take so long.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until it is told to stop, or does what it is told besides.
pub fn run(args: &ScalerArgs) -> Result<ExitCode, Failure> {
    if let Some(ScalerCommand::Simulate(args)) = &args.command {
        return simulate::run(args);
    }
    let _logging = Logging::start(args.log_format, &args.log_level).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args));
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ScalerArgs) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let settings::Settings { policy, caps, fixed } = settings::settings(args)?;
    let (goal, max) = (policy.target, policy.max);
    let autoscaler = Autoscaler::new(policy).map_err(Failure::new)?;
    let kubernetes = Kubernetes::of(args).await?;
    let source = source(args, kubernetes.as_ref())?;
    let token = match &args.token_file {
        Some(file) => PoolToken::follow(file).await,
        None => PoolToken::default(),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pool = args.pool, "starting");

    let readiness = Arc::new(Readiness::waiting_for([engine::FIRST_DECISION.to_owned()]));
    let numbers = Arc::new(Numbers::default());
    let (latest, decisions) = watch::channel(None);
    let mut tasks = JoinSet::new();
    let mut acting = None;
    let mut election = None;
    if let Some(Kubernetes { client, target: Some(target), namespace, .. }) = kubernetes {
        let mode = match (args.apply, args.dry_run) {
            (false, _) => Mode::Read,
            (true, true) => Mode::DryRun,
            (true, false) => {
                let lease = lease(args, namespace);
                tracing::info!(
                    lease = lease.name,
                    namespace = lease.namespace,
                    identity = lease.identity,
                    "stands for the Lease"
                );
                let election = election.insert(Election::start(&client, lease));
                Mode::Apply(election.watch())
            }
        };
        let (state, states) = watch::channel(Acting::default());
        acting = Some(states);
        let actuator = Actuator {
            client,
            target,
            mode,
            interval: args.poll_interval.max(Duration::from_secs(2)),
            latest: decisions.clone(),
            state,
            numbers: Arc::clone(&numbers),
        };
        tasks.spawn(actuator.run());
    }
    let engine = Engine {
        source,
        poller: Poller::new(args.poll_timeout.min(args.poll_interval)),
        interval: args.poll_interval,
        autoscaler,
        max,
        caps,
        fixed,
        acting: acting.clone(),
        latest,
        numbers: Arc::clone(&numbers),
        readiness: Arc::clone(&readiness),
    };
    if let Some(listener) = open("KEDA's gRPC", "grpc", args.grpc).await? {
        let keda = keda::Keda {
            pool: args.pool.as_str().into(),
            target: goal,
            latest: decisions.clone(),
            numbers: Arc::clone(&numbers),
        };
        tasks.spawn(keda.serve(listener));
    }
    if let Some(listener) = open("scaler pages", "http", args.http).await? {
        let pages = pages::Pages {
            pool: args.pool.clone(),
            latest: decisions,
            acting,
            leadership: election.as_ref().map(Election::watch),
            token,
            readiness: Arc::clone(&readiness),
            telemetry: Telemetry::new(1),
        };
        pages.register(numbers);
        tasks.spawn(Arc::new(pages).serve(listener));
    }
    tasks.spawn(engine.run());

    let signal = tokio::select! {
        signal = signals.next() => signal,
        ended = tasks.join_next() => {
            // None of them ends by itself.
            let reason = ended.and_then(Result::err).map_or("a task ended".to_owned(), |error| error.to_string());
            return Err(Failure::new(format!("the scaler cannot go on: {reason}")));
        }
    };
    tracing::info!(signal, "ending");
    readiness.drain();
    tasks.shutdown().await;
    if let Some(election) = election {
        let _late = tokio::time::timeout(RELEASE_TIMEOUT, election.release()).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// What we need of Kubernetes.
struct Kubernetes {
    client: Client,
    /// Namespace and name of the members' Service.
    service: Option<(String, String)>,
    target: Option<Target>,
    namespace: String,
}

impl Kubernetes {
    /// `None`: nothing.
    async fn of(args: &ScalerArgs) -> Result<Option<Self>, Failure> {
        if args.service.is_none() && args.target.is_none() {
            return Ok(None);
        }
        let service = args
            .service
            .as_deref()
            .map(|service| match service.split_once('/') {
                Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                    Ok((namespace.to_owned(), name.to_owned()))
                }
                _ => Err(Failure::new(format!("--service {service}: write NAMESPACE/NAME"))),
            })
            .transpose()?;
        let access = match (&args.api_server, &args.api_token, &args.api_ca, &args.kubeconfig) {
            (Some(url), Some(token), Some(ca), _) => {
                Access::Explicit { url: url.clone(), token: token.clone(), ca: ca.clone() }
            }
            (_, _, _, Some(file)) => Access::Kubeconfig(file.clone()),
            _ => Access::InCluster,
        };
        let client = Client::new(&access).await.map_err(|error| {
            Failure::new(error).hint("--kubeconfig FILE, or --api-server with --api-token and --api-ca; --dns and --member need none of it")
        })?;
        let of_service = service.as_ref().map(|(namespace, _)| namespace.clone());
        let namespace = args.namespace.clone().or(of_service);
        let namespace = namespace.unwrap_or_else(|| client.namespace().to_owned());
        let target = args.target.as_deref().map(|target| Target::parse(target, &namespace));
        let target =
            target.transpose().map_err(|error| Failure::new(format!("--target: {error}")))?;
        Ok(Some(Kubernetes { client, service, target, namespace }))
    }
}

fn source(args: &ScalerArgs, kubernetes: Option<&Kubernetes>) -> Result<Source, Failure> {
    let service = kubernetes.and_then(|kubernetes| {
        kubernetes.service.as_ref().map(|service| (&kubernetes.client, service))
    });
    if let Some((client, (namespace, name))) = service {
        return Ok(Source::Service(client.watch_endpoints(namespace, name), args.load_port));
    }
    if let Some(name) = &args.dns {
        has_port("--dns", name)?;
        return Ok(Source::dns(name.clone()));
    }
    if args.members.is_empty() {
        return Err(Failure::new("nobody to poll")
            .hint("give --service NAMESPACE/NAME, --dns HOST:PORT or --member HOST:PORT"));
    }
    for member in &args.members {
        has_port("--member", member)?;
    }
    Ok(Source::fixed(&args.members))
}

fn has_port(flag: &str, text: &str) -> Result<(), Failure> {
    let wrong =
        || Failure::new(format!("{flag} {text}: write HOST:PORT, for example 10.0.0.7:15020"));
    let authority: http::uri::Authority = text.parse().map_err(|_| wrong())?;
    if authority.port_u16().is_none() || authority.host().is_empty() || text.contains('@') {
        return Err(wrong());
    }
    Ok(())
}

fn lease(args: &ScalerArgs, namespace: String) -> LeaseSpec {
    // Two processes of one host are two candidates.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    LeaseSpec {
        namespace,
        name: args.lease.clone().unwrap_or_else(|| format!("cairn-scaler-{}", args.pool)),
        identity: format!("{host}_{:08x}", rand::random::<u32>()),
        duration: args.lease_duration,
    }
}

async fn open(what: &str, flag: &str, bind: Bind) -> Result<Option<TcpListener>, Failure> {
    let Bind::At(address) = bind else { return Ok(None) };
    let failed = |error: std::io::Error| {
        Failure::new(format!("{what} on {address}: {error}"))
            .hint(format!("--{flag} IP:PORT takes another address, --{flag} off goes without"))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "{what}");
    Ok(Some(listener))
}
