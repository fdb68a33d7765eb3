//! The whole comparison, from nothing to a report.

use crate::bed::Bed;
use crate::binaries::{bench_dir, build_cairn, commit, version};
use crate::cli::{CompareArgs, Only};
use crate::machine::{Cores, Description};
use crate::proxy::{Contender, Kind};
use crate::report::{About, Noise, Report};
use crate::scenario::SCENARIOS;
use crate::traffic::{self, Effort};
use crate::{hot, memory, micro, pool, push, scale};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Names of parts beside scenarios' names.
const PARTS: [&str; 5] = ["traffic", "hot", "scale", "memory", PUSH];
/// The part that is about Cairn alone.
const PUSH: &str = "push";

/// Numbers of services.
const SCALE: &[u32] = &[1, 100, 1_000, 10_000];
/// The same with `--quick`.
const SCALE_QUICK: &[u32] = &[1, 1_000];

/// Prints what there is.
pub fn list() {
    for scenario in &SCENARIOS {
        println!("{:<12} {}", scenario.name, scenario.about);
    }
}

/// `benches compare`.
pub fn run(args: &CompareArgs) -> Result<()> {
    for name in &args.scenario {
        let known = PARTS.contains(&name.as_str())
            || SCENARIOS.iter().any(|scenario| scenario.name == name);
        ensure!(known, "there is no scenario `{name}`; `benches list` shows them");
    }
    runtime()?.block_on(compare(args))
}

/// `benches smoke`: everything once, briefly. Fails when requests fail, and with `CI=true` without
/// Envoy.
pub fn smoke() -> Result<()> {
    runtime()?.block_on(async {
        let dir = prepare()?;
        let mut left_out = Vec::new();
        let args = CompareArgs { profile: "release".to_owned(), ..CompareArgs::default() };
        let contenders = contenders(&args, &dir, &mut left_out).await?;
        let on_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        ensure!(!on_ci || left_out.is_empty(), "CI needs all: {}", left_out.join(", "));
        // Before anybody is confined to a core.
        for contender in contenders.iter().filter(|contender| contender.kind == Kind::Cairn) {
            pool::smoke(&contender.program).await?;
        }
        let effort = Effort {
            rounds: 1,
            warm_up: Duration::from_millis(200),
            window: Duration::from_millis(400),
            changes: 1,
        };
        let bed = Bed::start(&dir, Cores::usable()?.apart()).await?;
        for scenario in &SCENARIOS {
            let report = traffic::measure(&bed, &contenders, scenario, effort).await?;
            for (name, runs) in &report.runs {
                for run in runs {
                    let about = format!("{name} in {}", scenario.name);
                    ensure!(run.requests > 0, "{about}: nothing was answered");
                    // A busy machine makes Envoy refuse some.
                    let is_good = run.errors.is_empty() || name != "cairn";
                    ensure!(is_good, "{about}: {:?}", run.errors);
                }
            }
        }
        scale::measure(&bed, &contenders, 10, effort).await?;
        push::smoke(&bed, &contenders).await?;
        for why in left_out {
            println!("1 skipped: {why}");
        }
        Ok(())
    })
}

/// The directory of all files of a run.
pub fn prepare() -> Result<PathBuf> {
    let dir = bench_dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn compare(args: &CompareArgs) -> Result<()> {
    let dir = prepare()?;
    let mut left_out = Vec::new();
    let contenders = contenders(args, &dir, &mut left_out).await?;
    let effort = effort(args);
    let cores = Cores::usable()?;
    let about = about(&contenders, effort, &cores).await;
    let bed = Bed::start(&dir, cores.apart()).await?;
    let mut report = Report {
        about,
        traffic: Vec::new(),
        hot: None,
        scale: Vec::new(),
        memory: Vec::new(),
        push: None,
        micro: micro::last(&dir),
        left_out,
    };
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(args, &["traffic", scenario.name]))
    {
        report.traffic.push(traffic::measure(&bed, &contenders, scenario, effort).await?);
        report.about.noise = Noise::of(&report.traffic);
        write(&report, &dir)?;
    }
    if is_wanted(args, &["scale"]) {
        let points = if args.quick { SCALE_QUICK } else { SCALE };
        // Each of them takes minutes.
        let effort = Effort { rounds: effort.rounds.div_ceil(2), ..effort };
        for services in points {
            report.scale.push(scale::measure(&bed, &contenders, *services, effort).await?);
            write(&report, &dir)?;
        }
    }
    if is_wanted(args, &["memory"]) {
        for contender in &contenders {
            report.memory.push(memory::measure(&bed, contender, effort.rounds).await?);
            write(&report, &dir)?;
        }
    }
    if is_wanted(args, &[PUSH]) && args.only != Some(Only::Envoy) {
        let storm = if args.quick { push::QUICK } else { push::MINUTE };
        report.push = Some(push::measure(&bed, &contenders, effort, storm).await?);
        write(&report, &dir)?;
    }
    drop(bed);
    if is_wanted(args, &["hot"]) {
        match cores.one_and_two() {
            Some(placements) => {
                report.hot = Some(hot::measure(&dir, &contenders, effort, placements).await?);
            }
            None => {
                let why = "one hot connection on two cores: it needs at least 4 cores";
                report.left_out.push(why.to_owned());
            }
        }
    }
    report.print();
    write(&report, &dir)?;
    println!("\n{}", dir.join("report.md").display());
    if let Some(push) = &report.push {
        push.check()?;
    }
    if args.write_docs {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        fs::write(&page, report.to_markdown())
            .with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(())
}

/// Whether one of the names was asked for, or nothing in particular.
fn is_wanted(args: &CompareArgs, names: &[&str]) -> bool {
    args.scenario.is_empty() || args.scenario.iter().any(|wanted| names.contains(&wanted.as_str()))
}

fn effort(args: &CompareArgs) -> Effort {
    let (rounds, warm_up, window) = if args.quick { (2, 1, 3) } else { (3, 2, 8) };
    Effort {
        rounds: args.rounds.map_or(rounds, usize::from),
        warm_up: Duration::from_secs(warm_up),
        window: Duration::from_secs(window),
        changes: 3,
    }
}

/// Who is measured, Cairn first.
async fn contenders(
    args: &CompareArgs,
    dir: &Path,
    left_out: &mut Vec<String>,
) -> Result<Vec<Contender>> {
    let cairn = async |name: &str, program: PathBuf| Contender {
        name: name.to_owned(),
        kind: Kind::Cairn,
        version: version(&program, "version").await,
        program,
        under: Vec::new(),
    };
    let mut contenders = Vec::new();
    if args.only != Some(Only::Envoy) {
        let program = match &args.cairn {
            Some(program) => program.clone(),
            None => build_cairn(&args.profile).await?,
        };
        contenders.push(cairn("cairn", program).await);
        if let Some(program) = &args.baseline {
            contenders.push(cairn("baseline", program.clone()).await);
        }
    }
    let only_push = !args.scenario.is_empty() && args.scenario.iter().all(|name| name == PUSH);
    if args.only != Some(Only::Cairn) && !only_push {
        let program = match &args.envoy {
            Some(program) => Ok(program.clone()),
            None => cairn_test_envoy::install(dir).map_err(anyhow::Error::msg),
        };
        match program {
            Ok(program) => contenders.push(Contender {
                name: "envoy".to_owned(),
                kind: Kind::Envoy,
                version: version(&program, "--version").await,
                program,
                under: Vec::new(),
            }),
            Err(why) => left_out.push(format!("Envoy is out of reach: {why:#}")),
        }
    }
    ensure!(!contenders.is_empty(), "there is nothing to measure: {}", left_out.join(", "));
    for why in left_out {
        eprintln!("{why}");
    }
    Ok(contenders)
}

async fn about(contenders: &[Contender], effort: Effort, cores: &Cores) -> About {
    let mut words: Vec<_> = std::env::args().skip(1).collect();
    words.splice(0..0, ["cargo run --release -p benches --".to_owned()]);
    let names =
        contenders.iter().map(|contender| (contender.name.clone(), contender.version.clone()));
    About {
        date: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        command: words.join(" "),
        commit: commit().await,
        contenders: names.collect(),
        machine: Description::read(cores),
        placement: cores.apart(),
        rounds: effort.rounds,
        window: effort.window.as_secs_f64(),
        noise: Noise::default(),
    }
}

fn write(report: &Report, dir: &Path) -> Result<()> {
    fs::write(dir.join("report.json"), serde_json::to_vec_pretty(report)?)?;
    fs::write(dir.join("report.md"), report.to_markdown())?;
    Ok(())
}
