//! What was measured, as data: the JSON report is this, terminal and Markdown are made from it.

mod markdown;
mod numbers;
mod tables;
mod terminal;

pub use numbers::{count, figure, kib, median, mib, spread, time};
pub use terminal::Progress;

use crate::load::{Latency, LoadReport};
use crate::machine::{Description, Placement};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One invocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was measured on what.
    pub about: About,
    /// Traffic.
    pub traffic: Vec<TrafficReport>,
    /// One hot connection on two cores.
    pub hot: Option<HotReport>,
    /// Many services.
    pub scale: Vec<ScaleReport>,
    /// Memory per connection and tunnel.
    pub memory: Vec<MemoryReport>,
    /// Istiod's own pushes.
    #[serde(default)]
    pub push: Option<PushReport>,
    /// The last micro-benchmarks.
    #[serde(default)]
    pub micro: Vec<MicroReport>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// Under which circumstances.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct About {
    /// UTC.
    pub date: String,
    /// As it was typed.
    pub command: String,
    /// Commit of the workspace.
    pub commit: String,
    /// Versions by contender, in the order in which they are shown.
    pub contenders: Vec<(String, String)>,
    /// The machine.
    pub machine: Description,
    /// Who ran where.
    pub placement: Placement,
    /// How often everything was measured.
    pub rounds: usize,
    /// Seconds of each window.
    pub window: f64,
    /// How noisy it was.
    pub noise: Noise,
}

/// Who else was there.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Noise {
    /// Part of the machine's CPU time that others used within the windows.
    pub foreign: f64,
    /// Part that the hypervisor took.
    pub stolen: f64,
    /// Part of the windows in which the proxy could run and had no core.
    pub waited: f64,
    /// Median over scenarios of how far the rounds lay apart: (most - least) / median of CPU per request.
    pub spread: f64,
    /// The largest of them.
    pub worst_spread: f64,
}

/// One scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrafficReport {
    /// Its name.
    pub name: String,
    /// In words.
    pub about: String,
    /// CPU per request as a share of Envoy's that is to be reached.
    pub goal: Option<f64>,
    /// Whether requests were due at fixed times.
    pub open_loop: bool,
    /// Rounds by contender.
    pub runs: BTreeMap<String, Vec<Run>>,
}

/// One window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Good answers.
    pub requests: u64,
    /// Of them per second.
    pub per_second: f64,
    /// CPU time of the proxy per request, in microseconds.
    pub cpu_per_request: f64,
    /// Part of it in the kernel.
    pub kernel: f64,
    /// Part of the window in which the proxy was on a CPU.
    pub proxy_busy: f64,
    /// Part of the window in which load generator and backend were on a CPU.
    pub others_busy: f64,
    /// Part of the window in which the proxy could run and had no core.
    pub waited: f64,
    /// Part of the machine's CPU time that went to others.
    pub foreign: f64,
    /// Part of the machine's CPU time that the hypervisor took.
    pub stolen: f64,
    /// Resident memory of the proxy at the end, in bytes.
    pub rss: u64,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// Quantiles of the latency in microseconds.
    pub latency: Latency,
}

/// One micro-benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MicroReport {
    /// Group, benchmark and parameter.
    pub name: String,
    /// Median of one iteration.
    pub nanoseconds: f64,
}

/// One connection on two cores against the same on one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HotReport {
    /// In words.
    pub about: String,
    /// Requests per second by contender: on one core, on two.
    pub per_second: BTreeMap<String, [f64; 2]>,
}

/// One number of services.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScaleReport {
    /// How many.
    pub services: u32,
    /// Routes of each.
    pub routes: usize,
    /// Rounds by contender.
    pub runs: BTreeMap<String, Vec<ScaleRun>>,
}

/// One proxy with so many services.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScaleRun {
    /// From exec to its own readiness, in milliseconds.
    pub ready_ms: f64,
    /// From exec to the first 200, in milliseconds.
    pub first_answer_ms: f64,
    /// CPU time of the start up to then, in milliseconds.
    pub start_cpu_ms: f64,
    /// Resident memory without traffic, in bytes.
    pub idle_rss: u64,
    /// Resident memory after traffic, in bytes.
    pub busy_rss: u64,
    /// CPU time per request, in microseconds.
    pub cpu_per_request: f64,
    /// CPU time of one changed endpoint, in milliseconds, over what an idle proxy uses.
    pub endpoint_change: Change,
    /// The same of one changed route.
    pub route_change: Change,
    /// CPU time of an idle proxy, in milliseconds per second.
    pub idle_cpu: f64,
    /// 99 % of requests took no longer before the changes, in microseconds.
    pub p99_before: f64,
    /// None took longer before the changes.
    pub max_before: f64,
}

/// What a change costs.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Change {
    /// CPU time in milliseconds.
    pub cpu_ms: f64,
    /// From the push to the first request by it, in milliseconds; files are looked at once a second.
    pub until_used_ms: f64,
    /// The slowest request while it was applied, in microseconds.
    pub slowest: f64,
}

/// Istiod's own pushes, to Cairn.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PushReport {
    /// A recorded push of many services: rounds by contender.
    pub recorded: BTreeMap<String, Vec<PushRun>>,
    /// Many pushes to a small mesh under load, by contender.
    pub storm: BTreeMap<String, StormRun>,
}

/// One waypoint with a recorded push.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushRun {
    /// Services in it.
    pub services: u64,
    /// From exec, without anything kept, to its own readiness, in milliseconds.
    pub ready_ms: f64,
    /// CPU time up to then, in milliseconds.
    pub ready_cpu_ms: f64,
    /// From exec to its own readiness with what an earlier start has kept, while istiod is silent, in
    /// milliseconds.
    pub warm_ready_ms: f64,
    /// Time that a snapshot of everything takes, nothing of which was known, in milliseconds.
    pub compile_ms: f64,
    /// Resident memory without traffic, in bytes.
    pub idle_rss: u64,
    /// The same after all changes.
    pub changed_rss: u64,
    /// CPU time of an idle waypoint, in milliseconds per second.
    pub idle_cpu: f64,
    /// One changed endpoint.
    pub endpoint_change: PushChange,
    /// One changed route, with which the listener of all services comes again.
    pub route_change: PushChange,
}

/// What one changed resource costs, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct PushChange {
    /// CPU time over what an idle waypoint uses.
    pub cpu_ms: f64,
    /// The same with that of writing down what to start with the next time, some seconds later.
    pub kept_cpu_ms: f64,
    /// From the push to the first snapshot that has it.
    pub until_used_ms: f64,
}

/// One waypoint in a storm of pushes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StormRun {
    /// Services in the mesh.
    pub services: u64,
    /// How long it took.
    pub seconds: f64,
    /// Good answers.
    pub requests: u64,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// 99 % of requests took no longer before it, in microseconds.
    pub p99_before: f64,
    /// And meanwhile.
    pub p99_during: f64,
    /// None took longer before it, in microseconds.
    pub slowest_before: f64,
    /// And meanwhile.
    pub slowest_during: f64,
    /// Pushes that istiod sent.
    pub pushes: u64,
    /// Of them, taken.
    pub acked: u64,
    /// Of them, refused.
    pub nacked: u64,
    /// Snapshots that were made of them.
    pub snapshots: u64,
    /// CPU time of a push over what requests use, in milliseconds.
    pub cpu_per_push_ms: f64,
    /// Resident memory after half of the pushes, in bytes.
    pub rss_first_half: u64,
    /// Resident memory after all of them, in bytes.
    pub rss_second_half: u64,
}

/// Memory of one contender, in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Whose.
    pub contender: String,
    /// Resident memory with one connection and one tunnel.
    pub base: u64,
    /// An HBONE connection without a tunnel.
    pub connection: f64,
    /// An HBONE connection with one tunnel that had a request.
    pub connection_with_tunnel: f64,
    /// One more tunnel that had a request.
    pub parked_tunnel: f64,
    /// One more tunnel whose request waits for its answer, with what it needs to the pod.
    pub busy_tunnel: f64,
}

impl Run {
    /// Of the whole window.
    pub fn of(report: &LoadReport) -> Run {
        let window = &report.window;
        let requests: u64 = report.phases.iter().map(|phase| phase.requests).sum();
        let mut errors = BTreeMap::new();
        for (kind, count) in report.phases.iter().flat_map(|phase| &phase.errors) {
            *errors.entry(kind.clone()).or_default() += count;
        }
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let machine = &window.machine;
        let proxy = window.proxy;
        let cpu = proxy.map_or(0.0, |proxy| proxy.cpu_seconds);
        Run {
            requests,
            per_second: share(requests as f64, window.seconds),
            cpu_per_request: share(cpu * 1e6, requests as f64),
            kernel: share(proxy.map_or(0.0, |proxy| proxy.kernel_seconds), cpu),
            proxy_busy: share(cpu, window.seconds),
            others_busy: share(machine.load_seconds + machine.backend_seconds, window.seconds),
            waited: share(proxy.map_or(0.0, |proxy| proxy.waited_seconds), window.seconds),
            foreign: share(machine.foreign_seconds, machine.total_seconds),
            stolen: share(machine.stolen_seconds, machine.total_seconds),
            rss: proxy.map_or(0, |proxy| proxy.rss_after),
            errors,
            latency: report.phases.first().map(|phase| phase.latency).unwrap_or_default(),
        }
    }
}

impl TrafficReport {
    /// Median over the rounds of a contender.
    pub fn median(&self, contender: &str, figure: impl Fn(&Run) -> f64) -> Option<f64> {
        median(self.runs.get(contender)?.iter().map(figure))
    }

    /// CPU per request of one contender as a share of another's.
    pub fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        let cpu = |run: &Run| run.cpu_per_request;
        let whole = self.median(to, cpu).filter(|whole| *whole > 0.0)?;
        Some(self.median(of, cpu)? / whole)
    }

    /// All failures of a contender.
    pub fn errors(&self, contender: &str) -> BTreeMap<&str, u64> {
        let mut errors = BTreeMap::new();
        for (kind, count) in
            self.runs.get(contender).into_iter().flatten().flat_map(|run| &run.errors)
        {
            *errors.entry(kind.as_str()).or_default() += count;
        }
        errors
    }
}

impl ScaleReport {
    /// Median over the rounds of a contender.
    pub fn median(&self, contender: &str, figure: impl Fn(&ScaleRun) -> f64) -> Option<f64> {
        median(self.runs.get(contender)?.iter().map(figure))
    }
}

impl PushReport {
    /// Median over the rounds of a contender.
    pub fn median(&self, contender: &str, figure: impl Fn(&PushRun) -> f64) -> Option<f64> {
        median(self.recorded.get(contender)?.iter().map(figure))
    }

    /// An error when requests have failed or pushes were refused.
    pub fn check(&self) -> Result<()> {
        self.storm.iter().try_for_each(|(contender, run)| run.check(contender))
    }
}

impl StormRun {
    /// An error when requests have failed or pushes were refused.
    pub fn check(&self, contender: &str) -> Result<()> {
        let StormRun { errors, nacked, pushes, .. } = self;
        ensure!(errors.is_empty(), "{contender}: requests failed while istiod pushed: {errors:?}");
        ensure!(*nacked == 0, "{contender}: {nacked} of {pushes} pushes were refused");
        Ok(())
    }
}

impl Noise {
    /// Over all windows.
    pub fn of(traffic: &[TrafficReport]) -> Noise {
        let runs = || traffic.iter().flat_map(|report| report.runs.values().flatten());
        let mean = |figure: fn(&Run) -> f64| {
            let count = runs().count().max(1) as f64;
            runs().map(figure).sum::<f64>() / count
        };
        let spreads = || {
            traffic
                .iter()
                .flat_map(|report| report.runs.values())
                .filter_map(|runs| spread(runs.iter().map(|run| run.cpu_per_request)))
        };
        Noise {
            foreign: mean(|run| run.foreign),
            stolen: mean(|run| run.stolen),
            waited: mean(|run| run.waited),
            spread: median(spreads()).unwrap_or(0.0),
            worst_spread: spreads().fold(0.0, f64::max),
        }
    }
}
