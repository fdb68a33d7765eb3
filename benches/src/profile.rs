//! Instructions per request, counted by Valgrind: a figure that does not depend on the machine's
//! other business, so that small differences between two builds show.

use crate::bed::Bed;
use crate::binaries::{build_cairn, run as output_of};
use crate::cli::ProfileArgs;
use crate::compare::prepare;
use crate::load::LoadArgs;
use crate::machine::Cores;
use crate::probe::Probe;
use crate::proxy::{Contender, Kind};
use crate::report::{Progress, figure};
use crate::scenario::{SCENARIOS, Scenario};
use crate::world::World;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// Requests of the run that is subtracted: start, first connections.
const FEW: u64 = 1000;
/// A window that is longer than any number of requests takes.
const WINDOW: Duration = Duration::from_secs(3600);
/// Functions that are shown.
const SHOWN: usize = 40;

/// `benches profile`.
pub fn run(args: &ProfileArgs) -> Result<()> {
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == args.scenario)
        .with_context(|| format!("there is no scenario `{}`", args.scenario))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(profile(args, scenario))
}

async fn profile(args: &ProfileArgs, scenario: &Scenario) -> Result<()> {
    let dir = prepare()?;
    let program = match &args.cairn {
        Some(program) => program.clone(),
        None => build_cairn("release").await?,
    };
    let bed = Bed::start(&dir, Cores::usable()?.apart()).await?;
    let counts = counts(bed.dir(), scenario);
    let addresses = bed.addresses();
    let world = World::traffic(addresses.hbone, addresses.http1);
    let each = each(&bed, &program, (scenario, &world), args.requests).await?;
    let mut annotate = Command::new("callgrind_annotate");
    let annotated = output_of(annotate.args(["--auto=no", "--threshold=100"]).arg(&counts)).await?;
    println!("instructions per request by function, with the start's divided among them:");
    for (function, own) in by_function(&annotated).into_iter().take(SHOWN) {
        println!("{:>10} {function}", figure(own as f64 / (FEW + args.requests) as f64));
    }
    println!("\n{}: {} instructions per request", scenario.name, figure(each));
    println!("callgrind_annotate --inclusive=yes {}", counts.display());
    Ok(())
}

/// Instructions per request, without those of the start. The listing of the longer run stays.
pub async fn each(
    bed: &Bed,
    program: &Path,
    asked: (&Scenario, &World),
    requests: u64,
) -> Result<f64> {
    let counts = counts(bed.dir(), asked.0);
    let few = count(bed, program, &counts, asked, FEW).await?;
    let many = count(bed, program, &counts, asked, FEW + requests).await?;
    Ok(many.saturating_sub(few) as f64 / requests.max(1) as f64)
}

fn counts(dir: &Path, scenario: &Scenario) -> PathBuf {
    dir.join(format!("callgrind.{}", scenario.name))
}

/// Own instructions of each function, the most first. What was inlined into it from other files stands in
/// lines of its own in Valgrind's listing: `COUNT (SHARE%)  FILE:FUNCTION [OBJECT]`.
fn by_function(annotated: &str) -> Vec<(&str, u64)> {
    let mut functions: BTreeMap<&str, u64> = BTreeMap::new();
    for line in annotated.lines() {
        let Some((count, place)) = line.split_once("%)") else { continue };
        let count = count.split_whitespace().next().unwrap_or_default().replace(',', "");
        let Ok(count) = count.parse::<u64>() else { continue };
        let place = place.trim().split(" [/").next().unwrap_or_default();
        let ends = [".rs:", ".S:", ".c:", ".h:", "???:"];
        let named = ends.iter().find_map(|end| place.get(place.find(end)? + end.len()..));
        if let Some(function) = named {
            *functions.entry(function).or_default() += count;
        }
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    functions
}

/// Instructions of a proxy from start to end, with so many requests.
async fn count(
    bed: &Bed,
    program: &Path,
    counts: &PathBuf,
    (scenario, world): (&Scenario, &World),
    requests: u64,
) -> Result<u64> {
    let progress = Progress::of(format!("{} under Valgrind, {requests} requests", scenario.name));
    let words = ["valgrind", "--tool=callgrind", "--separate-threads=no"];
    let mut under: Vec<_> = words.map(str::to_owned).to_vec();
    under.push(format!("--callgrind-out-file={}", counts.display()));
    let contender = Contender {
        name: "cairn".to_owned(),
        kind: Kind::Cairn,
        program: program.to_owned(),
        version: String::new(),
        under,
    };
    let mut proxy = bed.proxy(&contender, world).await?;
    let service = world.services.first().context("there is no service")?;
    Probe::new(bed, &proxy.process)?.first_answer(&mut proxy.process, service).await?;
    let args = LoadArgs {
        warm_up: Duration::ZERO,
        window: WINDOW,
        requests: Some(requests),
        ..scenario.apply(world, bed.load_args(&proxy.process))
    };
    let report = bed.load(&args)?.result(|line| progress.line(line)).await?;
    proxy.process.finish().await?;
    for phase in &report.phases {
        ensure!(phase.errors.is_empty(), "requests failed: {:?}", phase.errors);
    }
    let text = std::fs::read_to_string(counts)
        .with_context(|| format!("Valgrind has not written {}", counts.display()))?;
    let total = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    let total = total.and_then(|total| total.trim().parse().ok());
    progress.done("counted");
    total.context("Valgrind has written no total")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_what_was_inlined() {
        let listing = "\
1,200 (12.00%)  /a/map.rs:http::HeaderMap<T>::get [/b/cairn]
  300 ( 3.00%)  ./string/x.S:memcpy [/lib/libc.so]
   50 ( 0.50%)  /a/slice.rs:http::HeaderMap<T>::get
";
        let expected = vec![("http::HeaderMap<T>::get", 1250), ("memcpy", 300)];
        assert_eq!(by_function(listing), expected);
    }
}
