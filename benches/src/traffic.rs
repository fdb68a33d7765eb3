//! Scenarios under load: rounds in alternating order, a fresh proxy for each.

use crate::bed::Bed;
use crate::load::LoadArgs;
use crate::probe::Probe;
use crate::proxy::Contender;
use crate::report::{Progress, Run, TrafficReport, figure};
use crate::scenario::Scenario;
use crate::world::World;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds of everything.
    pub rounds: usize,
    /// Before each window.
    pub warm_up: Duration,
    /// Each window.
    pub window: Duration,
    /// How often the configuration is changed in each of the ways that are measured.
    pub changes: usize,
}

/// Measures one scenario.
pub async fn measure(
    bed: &Bed,
    contenders: &[Contender],
    scenario: &Scenario,
    effort: Effort,
) -> Result<TrafficReport> {
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for round in 0..effort.rounds {
        for contender in in_turn(contenders, round) {
            let run = run(bed, contender, scenario, effort, round).await?;
            runs.entry(contender.name.clone()).or_default().push(run);
        }
    }
    Ok(TrafficReport {
        name: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
        goal: scenario.goal,
        open_loop: scenario.is_open_loop(),
        runs,
    })
}

/// In order in even rounds, backwards in odd ones.
pub fn in_turn(contenders: &[Contender], round: usize) -> Vec<&Contender> {
    let mut order: Vec<_> = contenders.iter().collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// One window of one contender.
pub async fn run(
    bed: &Bed,
    contender: &Contender,
    scenario: &Scenario,
    effort: Effort,
    round: usize,
) -> Result<Run> {
    let addresses = bed.addresses();
    let world = World::traffic(addresses.hbone, addresses.http1);
    run_in(bed, contender, (scenario, &world), effort, round).await
}

/// As [`run`], in another world.
pub async fn run_in(
    bed: &Bed,
    contender: &Contender,
    (scenario, world): (&Scenario, &World),
    effort: Effort,
    round: usize,
) -> Result<Run> {
    let progress =
        Progress::of(format!("{} {} round {}", scenario.name, contender.name, round + 1));
    let mut proxy = bed.proxy(contender, world).await?;
    proxy.process.until_ready().await?;
    let probe = Probe::new(bed, &proxy.process)?;
    if let Some(service) = world.services.first() {
        probe.first_answer(&mut proxy.process, service).await?;
    }
    probe.check(world).await?;
    let args = LoadArgs {
        warm_up: effort.warm_up,
        window: effort.window,
        ..scenario.apply(world, bed.load_args(&proxy.process))
    };
    let report = bed.load(&args)?.result(|line| progress.line(line)).await?;
    proxy.process.stop().await?;
    let run = Run::of(&report);
    let errors: u64 = run.errors.values().sum();
    progress.done(&format!(
        "{} µs CPU/req, {} req/s, proxy {:.0} % busy, load and backend {:.0} %{}",
        figure(run.cpu_per_request),
        figure(run.per_second),
        run.proxy_busy * 100.0,
        run.others_busy * 100.0,
        if errors > 0 { format!(", {errors} errors: {:?}", run.errors) } else { String::new() },
    ));
    Ok(run)
}
