//! The process from start to end.
//!
//! Start: log → pod (node, settings) → pages (503 with what is missing) → certificate → configuration →
//! port 15008 → ready. End: not ready → go on accepting → finish what is in flight → exit code 0.
//!
//! This thread is for pages, signals and the certificate. Traffic has the workers, configuration has a
//! thread of its own.

use super::args::Args;
use super::environment::Environment;
use super::identity::{self, CERTIFICATE, Keeper};
use super::memory::{self, MemoryGuard, Used};
use super::node::Node;
use super::paths::Paths;
use super::settings::{DrainSettings, Settings};
use super::{announce, metrics, ports};
use crate::admin::{Actions, AdminView, Bound, Door, EnvoyPages, Started, WaypointPages};
use crate::cgroup::Cpu;
use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::istiod::{self, Before, Control, Exchange, Feeder};
use crate::load::{self, Began, Reporter, Sources};
use crate::logging::Logging;
use crate::ready::{Readiness, Step};
use crate::signals::Signals;
use arc_swap::ArcSwap;
use cairn_identity::Identity;
use cairn_identity::istiod::{Istiod, Roots};
use cairn_proxy::{InstanceConfig, Limits, MeshInstance, NodeInfo, Placement, Running, Workers};
use cairn_router::spec::Resources;
use cairn_telemetry::Telemetry;
use cairn_xds::ads::{AdsConfig, AdsStatus, WorkloadScope};
use cairn_xds::store::{Owner, Store};
use cairn_xds::translate::{self, EndpointIdentity, Translator};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

/// Name of the file for a warm start.
const KEPT: &str = "cairn-xds";
/// As long as a drain without a bound may last.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is known before anything is started.
struct Pod {
    paths: Paths,
    node: Node,
    settings: Settings,
}

/// What does not need a certificate.
struct Parts {
    readiness: Arc<Readiness>,
    telemetry: Arc<Telemetry>,
    logging: Logging,
    quit: Arc<Notify>,
    pages: Arc<WaypointPages>,
    workers: Workers,
    listening: Vec<Bound>,
    started: Started,
    memory: Used,
    load: LoadInputs,
}

/// What a report of the load waits for.
#[derive(Clone, Default)]
struct LoadInputs {
    instance: Arc<OnceLock<Arc<MeshInstance>>>,
    ads: Arc<OnceLock<watch::Receiver<AdsStatus>>>,
}

/// What serves.
struct Serving {
    running: Arc<Running>,
    control: Control,
    _keeper: Keeper,
}

/// Runs until it is told to stop.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let format = if args.log_as_json { LogFormat::Json } else { LogFormat::Text };
    let filter = std::env::var("CAIRN_LOG").unwrap_or_else(|_| args.log_filter());
    let logging = Logging::start(format, &filter).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args, logging));
    runtime.shutdown_background();
    outcome
}

async fn serve(args: Args, logging: Logging) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let pod = look(args)?;
    let parts = open(&pod, logging).await?;
    tokio::spawn(announce::announce(Arc::clone(&parts.readiness)));
    let serving = tokio::select! {
        serving = start(&pod, &parts) => serving?,
        signal = signals.next() => return Ok(ended_early(signal)),
        () = parts.quit.notified() => return Ok(ended_early("quitquitquit")),
    };
    let why = tokio::select! {
        signal = signals.next() => signal,
        () = parts.quit.notified() => "quitquitquit",
    };
    parts.readiness.drain();
    tokio::select! {
        cut = drain(&serving.running, pod.settings.drain, why) => {
            if cut > 0 {
                tracing::warn!(cut, "drained, but some had to be cut at the limit");
            } else {
                tracing::info!("drained");
            }
        }
        signal = signals.next() => {
            tracing::warn!(signal, "second signal, ending at once");
            return Ok(ExitCode::FAILURE);
        }
    }
    serving.control.shutdown().await;
    parts.telemetry.access_logs().flush_soon().await;
    Ok(ExitCode::SUCCESS)
}

fn ended_early(why: &str) -> ExitCode {
    tracing::info!(why, "ending before it was ready");
    ExitCode::SUCCESS
}

/// What the pod says.
fn look(args: Args) -> Result<Pod, Failure> {
    for ignored in &args.ignored {
        tracing::warn!("{ignored}");
    }
    let (environment, paths) = Environment::of_process(args);
    let node = Node::from(&environment).map_err(Failure::new)?;
    let settings = Settings::from(&environment, &node, &paths).map_err(Failure::new)?;
    for warning in node.warnings.iter().chain(&settings.warnings) {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = node.id,
        gateway = node.gateway,
        istiod = node.discovery_address,
        root = %paths.root().display(),
        "starting"
    );
    Ok(Pod { paths, node, settings })
}

/// Opens the pages and starts the workers.
async fn open(pod: &Pod, logging: Logging) -> Result<Parts, Failure> {
    let awaited = std::iter::once(CERTIFICATE).chain(istiod::awaited()).map(str::to_owned);
    let readiness = Arc::new(Readiness::waiting_for(awaited));
    let threads = pod.settings.workers;
    let telemetry = Telemetry::with_settings(cairn_telemetry::Settings {
        shards: threads,
        series_limit: pod.settings.metric_series,
        tenant_series_limit: pod.settings.metric_series.div_ceil(2),
        series_idle: pod.settings.metric_idle,
        ..cairn_telemetry::Settings::default()
    });
    let quit = Arc::new(Notify::new());
    let workers = Workers::start(threads, Placement::Local)
        .map_err(|error| Failure::new(format!("worker threads do not start: {error}")))?;
    tracing::info!(threads, "workers run");
    let load = LoadInputs::default();
    let reporter = reporter(pod, &workers, &readiness, &load, &telemetry);
    tokio::spawn(Arc::clone(&reporter).run());
    let pages = WaypointPages::new(
        Arc::clone(&readiness),
        Arc::clone(&telemetry),
        Arc::clone(&quit),
        reporter,
    );
    let everywhere = ports::everywhere(&pod.node.addresses);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut listening = Vec::new();
    for (door, what, ip, port) in [
        (Door::Status, "health pages", everywhere, ports::STATUS),
        (Door::Agent, "metrics pages", everywhere, ports::AGENT),
        (Door::Prometheus, "prometheus pages", everywhere, ports::PROMETHEUS),
        (Door::Admin, "admin pages", loopback, ports::ADMIN),
    ] {
        let address = pod.settings.ports.at(ip, port);
        let failed = |error: std::io::Error| {
            Failure::new(format!("{what} on {address}: {error}"))
                .hint(format!("CAIRN_PORTS={port}=PORT takes another port"))
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, port, "{what}");
        listening.push(Bound { name: what.replace(' ', "_"), address });
        tokio::spawn(pages.serve(door, listener));
    }
    let (started, memory) = (Started::now(), Used::default());
    Ok(Parts {
        readiness,
        telemetry,
        logging,
        quit,
        pages,
        workers,
        listening,
        started,
        memory,
        load,
    })
}

/// What tells the autoscaler how busy the process is, from the start on.
fn reporter(
    pod: &Pod,
    workers: &Workers,
    readiness: &Arc<Readiness>,
    inputs: &LoadInputs,
    telemetry: &Telemetry,
) -> Arc<Reporter> {
    let Pod { paths: _, node, settings } = pod;
    let cpu = Cpu::find(Path::new("/"));
    let memory_limit = memory::limit(settings.memory_limit);
    let LoadInputs { instance, ads } = inputs.clone();
    let sources = Sources {
        began: Began::of_process(),
        instance: load::instance_name(Some(&format!("{}.{}", node.pod, node.namespace))),
        locality: node.locality.clone(),
        zone: settings.load.config.zone.clone(),
        readiness: Arc::clone(readiness),
        meshes: Box::new(move || instance.get().cloned().into_iter().collect()),
        answers: Box::new(move || {
            ads.get().map(|ads| istiod::answer_ages(&ads.borrow())).unwrap_or_default()
        }),
        clusters: Box::new(Vec::new),
        delays: workers.delays(),
        capacity: load::capacities(&settings.load, &cpu, workers.len(), memory_limit),
        cpu,
        tenants: settings.load.tenants(),
    };
    Reporter::new(sources, telemetry)
}

/// Certificate, configuration, port.
async fn start(pod: &Pod, parts: &Parts) -> Result<Serving, Failure> {
    let Pod { paths, node, settings } = pod;
    let readiness = &parts.readiness;
    let (identity, keeper) = identity::obtain(settings, paths, &node.cluster_id, readiness).await;
    readiness.reached(Step::Certificate);
    let instance = instance(pod, parts, &identity);
    let _first = parts.load.instance.set(Arc::clone(&instance));
    let feeder = feeder(pod);
    let resources: Arc<ArcSwap<Resources>> = Arc::default();
    let store = Arc::new(Store::new());
    let exchange = Exchange {
        ads: discovery(pod, &identity),
        feeder: feeder.clone(),
        instance: Arc::clone(&instance),
        resources: Arc::clone(&resources),
        store: Arc::clone(&store),
        before: kept(pod, &identity),
    };
    let control = Control::start(exchange)
        .await
        .map_err(|error| Failure::new(format!("the configuration's thread: {error}")))?;
    let _first = parts.load.ads.set(control.ads.clone());
    let (asking, wants) = (feeder.clone(), Arc::clone(&control.wants));
    instance.set_identity_wait(Arc::new(move |address| {
        if asking.ask(address) {
            wants.notify_one();
        }
    }));
    let memory_limit = guard_memory(settings, &instance, &parts.memory);
    let mesh = istiod::Sources {
        mesh: None,
        identity,
        ca: keeper.ca(),
        ads: control.ads.clone(),
        store: Arc::clone(&store),
        published: control.published.clone(),
        feeder: feeder.clone(),
    };
    let sources = metrics::Sources {
        mesh,
        readiness: Arc::clone(readiness),
        memory: parts.memory.clone(),
        memory_limit,
        started: parts.started.instant,
    };
    parts.telemetry.register(Box::new(move |writer| sources.write(writer)));
    let running: Arc<OnceLock<Arc<Running>>> = Arc::default();
    let view = view(pod, parts, &control, &running, store, resources, &instance);
    parts.pages.put(EnvoyPages::new(view));

    istiod::configured(&control, &feeder, &node.discovery_address, readiness).await;
    readiness.reached(Step::Config);
    istiod::compare_addresses(&control, &instance);
    let port = Arc::new(istiod::listen(&instance, &parts.workers, readiness).await);
    let _set_once = running.set(Arc::clone(&port));
    Ok(Serving { running: port, control, _keeper: keeper })
}

fn instance(pod: &Pod, parts: &Parts, identity: &Identity) -> Arc<MeshInstance> {
    let mesh = pod.node.metadata.get("MESH_ID").and_then(|id| id.as_str());
    let everywhere = ports::everywhere(&pod.node.addresses);
    let config = InstanceConfig {
        name: mesh.unwrap_or(pod.settings.id.trust_domain()).to_owned(),
        listen: pod.settings.ports.at(everywhere, ports::HBONE),
        limits: Limits::default(),
    };
    let instance = MeshInstance::new(config, identity.clone(), Arc::clone(&parts.telemetry));
    let zone = pod.node.locality.as_ref().map(|[_, zone, _]| zone.clone());
    instance.set_node(NodeInfo {
        id: pod.node.id.clone(),
        cluster: pod.node.cluster.clone(),
        zone: zone.unwrap_or_default(),
        address: pod.node.addresses.first().copied(),
    });
    instance
}

fn feeder(pod: &Pod) -> Feeder {
    let endpoint_identity = if pod.settings.any_of_trust_domain {
        tracing::warn!(
            "CAIRN_ENDPOINT_IDENTITY=trust-domain: any workload of the mesh may end a tunnel"
        );
        EndpointIdentity::TrustDomain
    } else {
        EndpointIdentity::Workload
    };
    let translator = Translator::new(translate::Settings {
        trust_domain: pod.settings.id.trust_domain().to_owned(),
        network: pod.node.network.clone(),
        endpoint_identity,
        loopback_endpoints: pod.settings.loopback_endpoints,
    });
    Feeder::new(translator, &pod.node.network)
}

fn discovery(pod: &Pod, identity: &Identity) -> AdsConfig {
    let Pod { paths, node, settings } = pod;
    let istiod = Istiod {
        address: node.discovery_address.clone(),
        server_name: None,
        roots: Roots::File(settings.istiod_roots.clone()),
        resolve: settings.resolve.clone(),
        token: Some(paths.token()),
        cluster_id: node.cluster_id.clone(),
        identity: Some(identity.clone()),
        plaintext: false,
    };
    let workloads = if settings.workloads_on_demand {
        WorkloadScope::OnDemand
    } else {
        WorkloadScope::Wildcard
    };
    AdsConfig { workloads, ..AdsConfig::new(istiod, node.to_proto()) }
}

/// Where accepted configuration is kept, if it is, and whose it is.
fn kept(pod: &Pod, identity: &Identity) -> Before {
    if !pod.settings.warm_start {
        tracing::info!("no warm start: switched off by CAIRN_WARM_START");
        return Before::Nothing;
    }
    let directory = pod.paths.data();
    if !directory.is_dir() {
        tracing::info!(path = %directory.display(), "no warm start: there is no such directory");
        return Before::Nothing;
    }
    let owner = Owner {
        node: pod.node.id.clone(),
        cluster: pod.node.cluster_id.clone(),
        identity: identity.current().id.to_string(),
    };
    Before::Kept(directory.join(KEPT), owner)
}

/// Refuses tunnels when memory runs short, and gives memory back when it runs out. Returns the limit.
fn guard_memory(settings: &Settings, instance: &Arc<MeshInstance>, used: &Used) -> Option<u64> {
    let limit = memory::limit(settings.memory_limit);
    let guard = |percent| limit.and_then(|limit| MemoryGuard::new(limit, percent));
    let mut refuse = guard(settings.memory_percent);
    let mut end = guard(settings.memory_percent.saturating_add(memory::NEXT_STEP));
    let (instance, used) = (Arc::clone(instance), used.clone());
    tokio::spawn(async move {
        let mut look = tokio::time::interval(memory::INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let Some(bytes) = used.look() else { continue };
            if let Some(guard) = &mut refuse
                && let Some(refuse) = guard.decide(bytes)
            {
                let (limit, threshold) = (guard.limit(), guard.threshold());
                tracing::warn!(bytes, limit, threshold, refuse, "new tunnels and the memory limit");
                instance.refuse_tunnels(refuse);
            }
            if let Some(end) = end.as_mut().and_then(|guard| guard.decide(bytes)) {
                tracing::warn!(bytes, end, "connections that carry nothing and the memory limit");
                instance.end_keep_alive(end);
            }
        }
    });
    limit
}

/// What the admin pages show.
#[allow(clippy::too_many_arguments)]
fn view(
    pod: &Pod,
    parts: &Parts,
    control: &Control,
    running: &Arc<OnceLock<Arc<Running>>>,
    store: Arc<Store>,
    resources: Arc<ArcSwap<Resources>>,
    instance: &Arc<MeshInstance>,
) -> AdminView {
    let mut listeners = parts.listening.clone();
    listeners.push(Bound { name: "connect_terminate".to_owned(), address: instance.listen() });
    let (ads, published) = (control.ads.clone(), control.published.clone());
    let (unsupported, degraded) = (control.published.clone(), control.published.clone());
    let (readiness, quit) = (Arc::clone(&parts.readiness), Arc::clone(&parts.quit));
    let running = Arc::clone(running);
    AdminView {
        node: pod.node.to_proto(),
        started: parts.started,
        store,
        instance: Arc::clone(instance),
        resources,
        listeners,
        readiness: Arc::clone(&parts.readiness),
        logging: parts.logging.clone(),
        stats: Box::new(move || istiod::envoy_stats(&ads.borrow(), &published.borrow())),
        unsupported: Box::new(move || unsupported.borrow().unsupported.to_vec()),
        degraded: Box::new(move || degraded.borrow().degraded.to_vec()),
        actions: Actions {
            fail_health: Box::new(move |fail| readiness.fail(fail)),
            drain_listeners: Box::new(move || {
                if let Some(running) = running.get().map(Arc::clone) {
                    tokio::spawn(async move { running.drain(FOREVER).await });
                }
            }),
            quit: Box::new(move || quit.notify_one()),
        },
    }
}

/// Goes on accepting for a while, then finishes what is in flight. Returns how many had to be cut.
async fn drain(running: &Running, settings: DrainSettings, why: &str) -> usize {
    let DrainSettings { accept, finish } = settings;
    tracing::info!(why, ?accept, ?finish, "draining");
    tokio::time::sleep(accept).await;
    running.drain(finish.unwrap_or(FOREVER)).await.cut
}
