//! Many services: start, memory, and what a change costs.

use crate::bed::Bed;
use crate::cost::{CHANGE, QUIET, cost};
use crate::load::LoadArgs;
use crate::probe::Probe;
use crate::proxy::{Contender, Proxy};
use crate::report::{Change, Progress, Run, ScaleReport, ScaleRun, figure, median, mib, time};
use crate::traffic::{Effort, in_turn};
use crate::world::{REVISION_HEADER, ROUTES, Service, World};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use tokio::time::sleep;

/// Until a proxy that has nothing to do uses nothing more.
const SETTLE: Duration = Duration::from_secs(3);
/// Requests per second while something changes.
const RATE: u32 = 1000;
/// Services that get load, from the first.
const LOADED: usize = 32;

/// Measures one number of services.
pub async fn measure(
    bed: &Bed,
    contenders: &[Contender],
    services: u32,
    effort: Effort,
) -> Result<ScaleReport> {
    let mut runs: BTreeMap<String, Vec<ScaleRun>> = BTreeMap::new();
    for round in 0..effort.rounds {
        for contender in in_turn(contenders, round) {
            let name = &contender.name;
            let progress = Progress::of(format!("{services} services {name} round {}", round + 1));
            let run = run(bed, contender, services, effort, &progress).await?;
            progress.done(&format!(
                "first 200 after {}, {} MiB idle, {} µs CPU/req, endpoint {} and route {} of CPU",
                time(run.first_answer_ms * 1e3),
                mib(run.idle_rss as f64),
                figure(run.cpu_per_request),
                time(run.endpoint_change.cpu_ms * 1e3),
                time(run.route_change.cpu_ms * 1e3),
            ));
            runs.entry(name.clone()).or_default().push(run);
        }
    }
    Ok(ScaleReport { services, routes: ROUTES.len(), runs })
}

async fn run(
    bed: &Bed,
    contender: &Contender,
    services: u32,
    effort: Effort,
    progress: &Progress,
) -> Result<ScaleRun> {
    let mut world = World::scale(services, bed.addresses().hbone);
    let ready_ms = start(bed, contender, &world).await?;
    let mut proxy = bed.proxy(contender, &world).await?;
    let probe = Probe::new(bed, &proxy.process)?;
    let first = world.services.first().cloned().context("there is no service")?;
    let first_answer = probe.first_answer(&mut proxy.process, &first).await?;
    let start_cpu = proxy.process.usage()?.precise;
    proxy.process.until_ready().await?;
    sleep(SETTLE).await;
    let idle_rss = proxy.process.usage()?.rss;

    let mut changed = Changed { bed, proxy: &proxy, probe: &probe, world: &mut world };
    let (mut endpoint_change, idle) = changed.cost(Kind::Endpoint, effort.changes).await?;
    let (mut route_change, _) = changed.cost(Kind::Route, effort.changes).await?;
    let before = changed.under_load(&mut endpoint_change, &mut route_change, progress).await?;

    let args = LoadArgs {
        warm_up: effort.warm_up,
        window: effort.window,
        to_file: Some(targets(bed, &world)?),
        ..bed.load_args(&proxy.process)
    };
    let report = bed.load(&args)?.result(|line| progress.line(line)).await?;
    let busy = Run::of(&report);
    proxy.process.stop().await?;
    if !busy.errors.is_empty() {
        bail!("requests failed with {services} services: {:?}", busy.errors);
    }
    Ok(ScaleRun {
        ready_ms,
        first_answer_ms: millis(first_answer),
        start_cpu_ms: millis(start_cpu),
        idle_rss,
        busy_rss: busy.rss,
        cpu_per_request: busy.cpu_per_request,
        endpoint_change,
        route_change,
        idle_cpu: idle * 1e3,
        p99_before: before.p99,
        max_before: before.max,
    })
}

/// From exec to ready, without a client that asks for more meanwhile.
async fn start(bed: &Bed, contender: &Contender, world: &World) -> Result<f64> {
    let mut proxy = bed.proxy(contender, world).await?;
    let ready = proxy.process.until_ready().await?;
    proxy.process.stop().await?;
    Ok(millis(ready))
}

/// A file with the addresses of the services that get load.
fn targets(bed: &Bed, world: &World) -> Result<std::path::PathBuf> {
    let path = bed.dir().join("targets");
    let lines =
        world.services.iter().take(LOADED).map(|service| format!("{}\n", service.address()));
    fs::write(&path, lines.collect::<String>())?;
    Ok(path)
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Endpoint,
    Route,
}

/// A proxy whose last service is changed now and then.
struct Changed<'a> {
    bed: &'a Bed,
    proxy: &'a Proxy,
    probe: &'a Probe,
    world: &'a mut World,
}

impl Changed<'_> {
    fn last(&self) -> Result<Service> {
        self.world.services.last().cloned().context("there is no service")
    }

    /// Changes something and pushes it.
    fn push(&mut self, kind: Kind) -> Result<()> {
        let service = self.world.services.last_mut().context("there is no service")?;
        match kind {
            Kind::Endpoint => {
                service.move_pod();
                self.proxy.push_endpoints(self.world)
            }
            Kind::Route => {
                service.revision += 1;
                self.proxy.push_routes(self.world)
            }
        }
    }

    /// Waits until a request shows what was pushed last.
    async fn seen(&self, kind: Kind) -> Result<Duration> {
        let service = self.last()?;
        let expected = match kind {
            Kind::Endpoint => service.pods.first().map(ToString::to_string).unwrap_or_default(),
            Kind::Route => service.revision.to_string(),
        };
        let header = match kind {
            Kind::Endpoint => "x-pod",
            Kind::Route => REVISION_HEADER,
        };
        self.probe.until(&service, |reply| reply.header(header) == Some(expected.as_str())).await
    }

    /// CPU time of a change while nothing else happens, over that of as long a time without one, and
    /// how long it takes until it is used. Beside it the CPU seconds per second of the idle proxy.
    async fn cost(&mut self, kind: Kind, changes: usize) -> Result<(Change, f64)> {
        let (mut costs, mut idles) = (Vec::new(), Vec::new());
        for _ in 0..changes {
            let proxy = self.proxy;
            let cost = cost(&proxy.process, || self.push(kind)).await?;
            costs.push(cost.total);
            idles.push(cost.idle);
            self.seen(kind).await?;
            sleep(QUIET).await;
        }
        self.push(kind)?;
        let until_used = self.seen(kind).await?;
        sleep(QUIET).await;
        let change = Change {
            cpu_ms: median(costs.into_iter()).unwrap_or(0.0).max(0.0),
            until_used_ms: millis(until_used),
            slowest: 0.0,
        };
        Ok((change, median(idles.into_iter()).unwrap_or(0.0)))
    }

    /// The slowest requests while both changes are applied, and latency before.
    async fn under_load(
        &mut self,
        endpoint: &mut Change,
        route: &mut Change,
        progress: &Progress,
    ) -> Result<crate::load::Latency> {
        let part =
            |change: &Change| CHANGE + Duration::from_secs_f64(2.0 * change.until_used_ms / 1e3);
        let parts = [Duration::from_secs(4), part(endpoint), part(route)];
        let args = LoadArgs {
            rate: RATE,
            warm_up: Duration::from_secs(1),
            window: parts.iter().sum(),
            to_file: Some(targets(self.bed, self.world)?),
            phases: true,
            ..self.bed.load_args(&self.proxy.process)
        };
        let mut load = self.bed.load(&args)?;
        sleep(args.warm_up + parts[0]).await;
        load.mark().await?;
        self.push(Kind::Endpoint)?;
        sleep(parts[1]).await;
        load.mark().await?;
        self.push(Kind::Route)?;
        let report = load.result(|line| progress.line(line)).await?;
        let [before, at_endpoint, at_route] = report.phases.as_slice() else {
            bail!("the load has {} parts, not 3", report.phases.len());
        };
        for phase in &report.phases {
            if !phase.errors.is_empty() {
                bail!("requests failed while something changed: {:?}", phase.errors);
            }
        }
        endpoint.slowest = at_endpoint.latency.max;
        route.slowest = at_route.latency.max;
        self.seen(Kind::Endpoint).await?;
        self.seen(Kind::Route).await?;
        Ok(before.latency)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
