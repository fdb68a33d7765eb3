//! The load generator: `benches load`.
//!
//! An HBONE client like ztunnel: connections with tunnels in them, and in each tunnel HTTP/1.1,
//! HTTP/2 or bytes that come back. Closed loop: each place sends its next request when it has the
//! answer. Open loop: requests are due at fixed times, whether earlier ones were answered or not, and
//! their latency counts from when they were due, so that a stall of the proxy is not left out.
//!
//! One thread, so that it fits on one core beside the backend. What it measures is over exactly the
//! window: requests that ended in it, CPU time of the proxy from its first to its last instant.

mod args;
mod echo;
mod h2c;
pub mod http1;
mod lane;
mod pace;
mod recorder;
mod report;
mod worker;

pub use args::{Lifetime, LoadArgs, Speak};
pub use lane::{Failure, Lane, Lanes};
pub use report::{Latency, Line, LoadReport, Machine, ProxyUse, Window};

use crate::procfs::{Cpus, Usage};
use anyhow::{Result, ensure};
use pace::Pace;
use recorder::Recorder;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::Instant;
use worker::Worker;

/// How long requests that are under way at the end may take before they are given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether a limited number of requests has been answered.
const TICK: Duration = Duration::from_millis(200);
/// Between two lines of progress.
const SECOND: Duration = Duration::from_secs(1);

/// Runs the load and prints progress and result, one JSON value a line.
pub fn run(args: LoadArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(args));
    // Somebody may still be waiting for a line on standard input.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: LoadArgs) -> Result<()> {
    let targets = args.targets()?;
    ensure!(!targets.is_empty(), "there is nothing to go to: --to or --to-file");
    let recorder = Arc::new(Recorder::new(args.requests));
    let pace = Arc::new(Pace::new(args.rate)?);
    let worker = Worker::new(&args, targets, Arc::clone(&recorder), Arc::clone(&pace))?;
    let mut workers = JoinSet::new();
    worker.spawn_all(&args, &mut workers)?;

    let until = Instant::now() + args.warm_up;
    report_until(until, &recorder, "warm-up").await;
    let window = measure(&args, &recorder).await?;
    recorder.stop();
    pace.stop();
    let given_up = tokio::time::timeout(PATIENCE, async {
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                recorder.fail(&Failure::new(format!("worker: {error}")));
            }
        }
    });
    let stuck = if given_up.await.is_err() { workers.len() as u64 } else { 0 };
    workers.abort_all();
    Line::Result(recorder.report(window, stuck + pace.unserved())).print();
    Ok(())
}

/// The window, in phases that lines on standard input separate, if `--phases` says so.
async fn measure(args: &LoadArgs, recorder: &Arc<Recorder>) -> Result<Window> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let before = Snapshot::take(args)?;
    recorder.begin();
    let started = Instant::now();
    let ended = report_until(started + args.window, recorder, "window");
    tokio::pin!(ended);
    let mut marks = args.phases;
    loop {
        tokio::select! {
            () = &mut ended => break,
            line = lines.next_line(), if marks => match line {
                Ok(Some(_)) => recorder.next_phase(),
                _ => marks = false,
            },
        }
    }
    recorder.end();
    let seconds = started.elapsed().as_secs_f64();
    Ok(Snapshot::take(args)?.window_since(&before, seconds))
}

/// Prints what was done each second, until then or until there is nothing more to do.
async fn report_until(until: Instant, recorder: &Recorder, stage: &str) {
    let (mut last, mut shown) = (recorder.done(), Instant::now());
    loop {
        tokio::time::sleep_until((Instant::now() + TICK).min(until)).await;
        let now = Instant::now();
        if now >= until || recorder.is_over() {
            return;
        }
        if now < shown + SECOND {
            continue;
        }
        let done = recorder.done();
        Line::Progress {
            stage: stage.to_owned(),
            requests: done - last,
            failed: recorder.failed(),
        }
        .print();
        (last, shown) = (done, now);
    }
}

/// All clocks at one instant.
struct Snapshot {
    proxy: Option<Usage>,
    backend: Option<Usage>,
    load: Usage,
    cpus: Cpus,
}

impl Snapshot {
    fn take(args: &LoadArgs) -> Result<Snapshot> {
        Ok(Snapshot {
            proxy: args.proxy_pid.map(Usage::of).transpose()?,
            backend: args.backend_pid.map(Usage::of).transpose()?,
            load: Usage::of(std::process::id())?,
            cpus: Cpus::now(),
        })
    }

    fn window_since(&self, before: &Snapshot, seconds: f64) -> Window {
        let cpus = self.cpus.since(before.cpus);
        let load = self.load.since(before.load).cpu;
        let backend = match (self.backend, before.backend) {
            (Some(after), Some(before)) => after.since(before).cpu,
            _ => Duration::ZERO,
        };
        let proxy = match (self.proxy, before.proxy) {
            (Some(after), Some(before)) => {
                let used = after.since(before);
                Some(ProxyUse {
                    cpu_seconds: used.cpu.as_secs_f64(),
                    kernel_seconds: used.kernel.as_secs_f64(),
                    waited_seconds: used.waited.as_secs_f64(),
                    rss_before: before.rss,
                    rss_after: after.rss,
                })
            }
            _ => None,
        };
        let ours = load
            + backend
            + self.proxy.zip(before.proxy).map_or(Duration::ZERO, |(a, b)| a.since(b).cpu);
        Window {
            seconds,
            proxy,
            machine: Machine {
                load_seconds: load.as_secs_f64(),
                backend_seconds: backend.as_secs_f64(),
                foreign_seconds: cpus.busy.saturating_sub(ours).as_secs_f64(),
                stolen_seconds: cpus.stolen.as_secs_f64(),
                total_seconds: cpus.total.as_secs_f64(),
            },
        }
    }
}
