//! What telemetry costs: the same load on the same build, with everything off, as it is shipped, and with what the
//! Telemetry API may ask for.

use crate::bed::Bed;
use crate::binaries::{build_cairn, version};
use crate::cli::OverheadArgs;
use crate::compare::prepare;
use crate::machine::Cores;
use crate::profile;
use crate::proxy::{Contender, Kind};
use crate::report::{figure, median};
use crate::scenario::{SCENARIOS, Scenario};
use crate::traffic::{self, Effort};
use crate::world::World;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The one that others are compared with.
const OFF: &str = "off";
/// What may cost at most [`GOAL`] more than nothing.
const QUIET: &str = "unsampled";
/// CPU per request over [`OFF`]'s.
const GOAL: f64 = 1.05;

/// `benches overhead`.
pub fn run(args: &OverheadArgs) -> Result<()> {
    let scenarios = args
        .scenario
        .iter()
        .map(|name| {
            let known = SCENARIOS.iter().find(|scenario| scenario.name == name);
            known.with_context(|| format!("there is no scenario `{name}`"))
        })
        .collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dir = prepare()?;
        let program = match &args.cairn {
            Some(program) => program.clone(),
            None => build_cairn(&args.profile).await?,
        };
        let contender = Contender {
            name: "cairn".to_owned(),
            kind: Kind::Cairn,
            version: version(&program, "version").await,
            program: program.clone(),
            under: Vec::new(),
        };
        let bed = Bed::start(&dir, Cores::usable()?.apart()).await?;
        for scenario in scenarios {
            measure(&bed, &contender, scenario, args).await?;
        }
        Ok(())
    })
}

/// What is told, from nothing to much, as the configuration says it. Spans go to `collector`.
fn variants(collector: &str) -> [(&'static str, &'static str, Option<Value>); 5] {
    let traced = |percent: f64| {
        let http = json!({"cluster": collector, "path": "/v1/traces"});
        json!({"tracing": {
            "random_sampling": percent,
            "provider": {"open_telemetry": {"collector": {"http": http}, "service_name": "bench"}},
        }})
    };
    let nothing = "response.code >= 500 || request.headers['x-log'] == 'yes'";
    let log = json!({
        "filter": {"expression": nothing},
        "to": {"stdout": {"line": {"text": "%START_TIME%\n"}}},
    });
    [
        (OFF, "no metrics", Some(json!({"metrics": {"off": true}}))),
        ("metrics", "Istio's metrics, as shipped", None),
        (QUIET, "metrics, and traces of which none is sampled", Some(traced(0.0))),
        (
            "filtered",
            "metrics, and an access log whose CEL filter takes nothing",
            Some(json!({"access_logs": [log]})),
        ),
        ("traced", "metrics, and a span for each request", Some(traced(100.0))),
    ]
}

async fn measure(
    bed: &Bed,
    contender: &Contender,
    scenario: &Scenario,
    args: &OverheadArgs,
) -> Result<()> {
    let addresses = bed.addresses();
    let world = World::traffic(addresses.hbone, addresses.http1);
    let collector = world.services.last().context("there is no service")?.inbound_name();
    let worlds = variants(&collector)
        .map(|(name, about, observe)| (name, about, World { observe, ..world.clone() }));
    let effort = Effort {
        rounds: usize::from(args.rounds),
        warm_up: Duration::from_secs(1),
        window: Duration::from_secs(args.window),
        changes: 0,
    };
    let mut cpu: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..effort.rounds {
        let mut order: Vec<_> = worlds.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, _, world) in order {
            let named = Contender { name: (*name).to_owned(), ..contender.clone() };
            let run = traffic::run_in(bed, &named, (scenario, world), effort, round).await?;
            ensure!(run.errors.is_empty(), "{name}: requests failed: {:?}", run.errors);
            cpu.entry(name).or_default().push(run.cpu_per_request);
        }
    }
    let mut instructions = BTreeMap::new();
    if args.instructions > 0 {
        for (name, _, world) in &worlds {
            let asked = (scenario, world);
            let count = profile::each(bed, &contender.program, asked, args.instructions).await?;
            instructions.insert(*name, count);
        }
    }
    println!(
        "\n{} ({}), {} rounds of {} s",
        scenario.name, scenario.about, args.rounds, args.window
    );
    println!(
        "{:<10} {:>12} {:>8} {:>14} {:>8}  what",
        "", "µs CPU/req", "of off", "instructions", "of off"
    );
    let middle = |name: &str| {
        cpu.get(name).and_then(|runs| median(runs.iter().copied())).unwrap_or_default()
    };
    for (name, about, _) in &worlds {
        let count = instructions.get(name).copied().unwrap_or_default();
        let of_off = instructions.get(OFF).map_or(0.0, |off| count / off);
        println!(
            "{name:<10} {:>12} {:>8.3} {:>14} {of_off:>8.3}  {about}",
            figure(middle(name)),
            middle(name) / middle(OFF),
            figure(count),
        );
    }
    let ratio = middle(QUIET) / middle(OFF);
    println!("{QUIET} / {OFF}: {ratio:.3} of the CPU time, goal {GOAL}");
    Ok(())
}
