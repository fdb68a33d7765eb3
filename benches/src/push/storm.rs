//! Push after push while requests pass: a small mesh whose pods are all behind one port.

use super::waypoint::{ACCOUNT, Waypoint, pod};
use crate::bed::{Backend, Bed, Load};
use crate::certs::Files;
use crate::load::{Latency, LoadArgs, LoadReport};
use crate::process::Process;
use crate::proxy::Contender;
use crate::report::{Progress, StormRun};
use crate::world::POD_HTTP1;
use anyhow::{Result, bail, ensure};
use cairn_proto::envoy::envoy::config::listener::v3::FilterChain;
use cairn_proto::envoy::envoy::config::route::v3::route::Action;
use cairn_proto::envoy::envoy::service::discovery::v3::Resource;
use cairn_proto::envoy::google::protobuf::Duration as ProtoDuration;
use cairn_test_support::istiod::{FakeIstiod, shapes};
use cairn_xds::feed::Kind;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Services, with a pod each; as many as the load has tunnels.
const SERVICES: u8 = 32;
/// Requests per second, all services together.
const RATE: u32 = 1000;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// For the last answers to pushes, and for the starts of processes.
const MARGIN: Duration = Duration::from_secs(3);
/// An answer to a push that has not come after so long never will.
const LIMIT: Duration = Duration::from_secs(30);

/// How many pushes in how long.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Alternately endpoints and routes.
    pub pushes: u32,
    /// How long requests pass without pushes, before and after.
    pub quiet: Duration,
    /// How long they pass with pushes.
    pub during: Duration,
}

/// The mesh.
struct Mesh {
    istiod: FakeIstiod,
    chains: Vec<FilterChain>,
    backend: Backend,
    client: Files,
}

/// Requests that pass, for all to see.
struct Watched<'a> {
    load: Load,
    progress: &'a Progress,
}

/// What happened on the way.
struct Passed {
    /// How long it took.
    seconds: f64,
    /// CPU seconds of the waypoint.
    cpu: f64,
    /// Resident memory after the first half, and at the end, in bytes.
    rss: [u64; 2],
    acked: usize,
    nacked: usize,
}

impl Storm {
    /// One waypoint in one storm.
    pub async fn measure(
        self,
        bed: &Bed,
        contender: &Contender,
        progress: &Progress,
    ) -> Result<StormRun> {
        let mut mesh = Mesh::start(bed).await?;
        let mut pod = pod(&mesh.istiod);
        let mut waypoint = Waypoint::start(bed, contender, &mut pod).await?;
        waypoint.until_ready().await?;
        let snapshots = waypoint.snapshots().await?;
        let args = mesh.load_args(bed, &waypoint.process, self)?;
        let mut load = Watched { load: bed.load(&args)?, progress };
        load.watch(Instant::now() + WARM_UP).await?;
        let before = load.rate(&waypoint.process, self.quiet).await?;
        load.load.mark().await?;
        let passed = mesh.storm(&waypoint.process, &mut load, self).await?;
        load.load.mark().await?;
        let snapshots = waypoint.snapshots().await? - snapshots;
        let after = load.rate(&waypoint.process, self.quiet).await?;
        let report = load.load.result(|line| progress.line(line)).await?;
        waypoint.process.stop().await?;
        let requests = (before + after) / 2.0 * passed.seconds;
        let [before, during] = phases(&report)?;
        let mut errors = BTreeMap::new();
        for (kind, count) in report.phases.iter().flat_map(|phase| &phase.errors) {
            *errors.entry(kind.clone()).or_default() += count;
        }
        Ok(StormRun {
            services: SERVICES.into(),
            seconds: passed.seconds,
            requests: report.phases.iter().map(|phase| phase.requests).sum(),
            errors,
            p99_before: before.p99,
            p99_during: during.p99,
            slowest_before: before.max,
            slowest_during: during.max,
            pushes: self.pushes.into(),
            acked: passed.acked as u64,
            nacked: passed.nacked as u64,
            snapshots: snapshots as u64,
            cpu_per_push_ms: (passed.cpu - requests) * 1e3 / f64::from(self.pushes),
            rss_first_half: passed.rss[0],
            rss_second_half: passed.rss[1],
        })
    }
}

impl Watched<'_> {
    async fn watch(&mut self, until: Instant) -> Result<()> {
        self.load.watch(until, |line| self.progress.line(line)).await
    }

    /// CPU seconds per second of the waypoint over so long.
    async fn rate(&mut self, waypoint: &Process, long: Duration) -> Result<f64> {
        let (before, since) = (waypoint.usage()?, Instant::now());
        self.watch(since + long).await?;
        let used = waypoint.usage()?.since(before).precise;
        Ok(used.as_secs_f64() / since.elapsed().as_secs_f64())
    }
}

/// Latency before the storm and in it.
fn phases(report: &LoadReport) -> Result<[Latency; 2]> {
    match report.phases.as_slice() {
        [before, during, _after] => Ok([before.latency, during.latency]),
        phases => bail!("the load has {} parts, not 3", phases.len()),
    }
}

impl Mesh {
    async fn start(bed: &Bed) -> Result<Mesh> {
        let istiod = super::istiod().await;
        let dir = bed.dir().join("storm");
        fs::create_dir_all(&dir)?;
        let files = |account: &str| issue(&istiod, &dir, account);
        let backend = bed.backend(&files("app")?).await?;
        let client = files("client")?;
        let chains = (0..SERVICES).map(|of| chain(of, 0)).collect();
        let mesh = Mesh { istiod, chains, backend, client };
        let clusters = (0..SERVICES).map(|of| shapes::cluster_of(&shapes::cluster(&name(of))));
        let tunnels = mesh.backend.addresses.hbone.port();
        let clusters = shapes::clusters_of_every_waypoint(tunnels).into_iter().chain(clusters);
        mesh.istiod.set(Kind::Cluster, clusters.collect());
        let pods = (0..SERVICES).map(|of| shapes::pod(&pod_name(of), "app", address(of).ip()));
        mesh.istiod.set(Kind::Workload, pods.collect());
        mesh.istiod.set(Kind::Endpoints, (0..SERVICES).map(|of| endpoints(of, of)).collect());
        let mut listeners = shapes::listeners_of_every_waypoint();
        listeners.push(mesh.listener());
        mesh.istiod.set(Kind::Listener, listeners);
        Ok(mesh)
    }

    fn listener(&self) -> Resource {
        shapes::main_internal((0..SERVICES).map(vip).zip(&self.chains))
    }

    fn load_args(&self, bed: &Bed, waypoint: &Process, storm: Storm) -> Result<LoadArgs> {
        let targets = bed.dir().join("storm/targets");
        let lines = (0..SERVICES).map(|of| format!("{}:80\n", vip(of)));
        fs::write(&targets, lines.collect::<String>())?;
        let Files { cert, key, roots } = self.client.clone();
        Ok(LoadArgs {
            expect: shapes::identity(ACCOUNT),
            cert,
            key,
            roots,
            to_file: Some(targets),
            rate: RATE,
            warm_up: WARM_UP,
            window: storm.quiet * 2 + storm.during + MARGIN,
            backend_pid: self.backend.pid(),
            phases: true,
            ..bed.load_args(waypoint)
        })
    }

    /// All pushes, evenly spread.
    async fn storm(
        &mut self,
        waypoint: &Process,
        load: &mut Watched<'_>,
        storm: Storm,
    ) -> Result<Passed> {
        let before = waypoint.usage()?;
        let from = self.answers();
        let began = Instant::now();
        let apart = storm.during / storm.pushes.max(1);
        let mut first_half = 0;
        for number in 0..storm.pushes {
            if number == storm.pushes / 2 {
                first_half = waypoint.usage()?.rss;
            }
            load.watch(began + apart * number).await?;
            self.push(number);
        }
        let (acked, nacked) = loop {
            let (acked, nacked) = self.answers();
            let (acked, nacked) = (acked - from.0, nacked - from.1);
            if acked + nacked >= storm.pushes as usize {
                break (acked, nacked);
            }
            let given_up = began.elapsed() > storm.during + LIMIT;
            ensure!(!given_up, "{} of {} pushes were answered", acked + nacked, storm.pushes);
            sleep(Duration::from_millis(10)).await;
        };
        // What comes together becomes one snapshot a little later.
        sleep(Duration::from_millis(100)).await;
        let after = waypoint.usage()?;
        let cpu = after.since(before).precise.as_secs_f64();
        let seconds = began.elapsed().as_secs_f64();
        Ok(Passed { seconds, cpu, rss: [first_half, after.rss], acked, nacked })
    }

    /// Endpoints go from a pod to its neighbour's and back, routes get another timeout; services take turns.
    fn push(&mut self, number: u32) {
        let turn = number / 2;
        let of = u8::try_from(turn % u32::from(SERVICES)).unwrap_or(0);
        if number.is_multiple_of(2) {
            let moved = (turn / u32::from(SERVICES)).is_multiple_of(2);
            let to = if moved { (of + 1) % SERVICES } else { of };
            self.istiod.push(Kind::Endpoints, vec![endpoints(of, to)], &[]);
            return;
        }
        if let Some(there) = self.chains.get_mut(usize::from(of)) {
            *there = chain(of, number);
        }
        self.istiod.push(Kind::Listener, vec![self.listener()], &[]);
    }

    /// Answers that were taken and refused.
    fn answers(&self) -> (usize, usize) {
        let record = self.istiod.record();
        let kinds = [Kind::Endpoints, Kind::Listener];
        let acked = kinds.iter().map(|kind| record.acks(*kind)).sum();
        (acked, kinds.iter().map(|kind| record.nacks(*kind).len()).sum())
    }
}

/// A certificate of the mesh in files.
fn issue(istiod: &FakeIstiod, dir: &Path, account: &str) -> Result<Files> {
    let (cert, key) = istiod.issue(&shapes::identity(account));
    Files::write(dir, account, &cert, &key, &istiod.roots_pem())
}

fn name(of: u8) -> String {
    format!("app-{of}")
}

fn pod_name(of: u8) -> String {
    format!("app-{of}-1")
}

/// Where clients find a service.
fn vip(of: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, of + 1).into()
}

/// The application of a service's pod.
fn address(of: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 0, 1, of + 1).into(), POD_HTTP1)
}

/// Service `of` at the pod of service `at`.
fn endpoints(of: u8, at: u8) -> Resource {
    shapes::assignment(&name(of), &[(&pod_name(at), address(at))])
}

/// The chain of a service whose route has a timeout of a minute and so many milliseconds.
fn chain(of: u8, millis: u32) -> FilterChain {
    let mut manager = shapes::manager(&name(of));
    if let Some(Action::Route(action)) = &mut shapes::route(&mut manager).action {
        let nanos = i32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        action.timeout = Some(ProtoDuration { seconds: 60, nanos });
    }
    shapes::chain(&name(of), &manager)
}
