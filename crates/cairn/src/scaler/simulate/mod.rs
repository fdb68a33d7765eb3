//! `cairn scaler simulate`: a recorded load, and who would have done what with it.
//!
//! Each trace is run by every contestant: the algorithm acting itself, the same through KEDA's HPA,
//! and an HPA on requests in flight and one on CPU, all with the same target and bounds.

mod plot;
mod svg;
mod table;
mod trace;

use super::settings;
use crate::cli::duration;
use crate::failure::Failure;
use crate::terminal;
use cairn_autoscale::Policy;
use cairn_autoscale::simulate::{self, Hpa, Outcome, Signal, Trace, Who};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What `--help` says at its end.
pub const HELP: &str = "\
A trace is CSV, one line `second,units` for each change of the load; or JSON lines, one answer of
`:15020/load` each, with a field `second` added where there are several members. 1 unit keeps one
member wholly busy.

Exit codes:
  0   the simulation was run
  1   wrong arguments or an unreadable trace

Example:
  cairn scaler simulate --trace config/traces/burst.csv --cold-start 30s --svg burst.svg";

/// Members that a fleet may have.
const MAX_MEMBERS: i64 = 10_000;

/// Arguments of `scaler simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// A recorded load; may be repeated
    #[arg(long = "trace", value_name = "FILE", required = true)]
    pub traces: Vec<PathBuf>,
    /// Time from when a member is asked for to when it takes traffic
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub cold_start: Duration,
    /// Members at the beginning [default: what the first value asks for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_MEMBERS))]
    pub start: Option<u32>,
    /// Write a picture; with several traces its name gets the trace's
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// Policy: a YAML file as the scaler takes it; what is given here counts more
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One or more fields of the policy, as `cairn scaler --help` lists them; may be repeated
    #[arg(long = "policy", value_name = "FIELD=VALUE", value_delimiter = ',')]
    pub policy: Vec<String>,
}

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table and plots.
    Text,
    /// The table in Markdown.
    Markdown,
    /// The table in JSON.
    Json,
}

/// Who takes part, by name.
const CONTESTANTS: usize = 4;

/// One trace, run by all.
struct Race {
    /// The trace's file name without its ending.
    name: String,
    runs: Vec<(&'static str, Outcome)>,
}

/// Runs all traces and prints what came of it.
pub fn run(args: &SimulateArgs) -> Result<ExitCode, Failure> {
    let policy = settings::of(args.config.as_deref(), &args.policy, &[])?.policy;
    let mut races = Vec::with_capacity(args.traces.len());
    for file in &args.traces {
        races.push(race(file, args, &policy)?);
    }
    match args.format {
        Format::Text => {
            let screen = plot::Screen::of_stdout();
            for (number, race) in races.iter().enumerate() {
                if number > 0 {
                    terminal::line("");
                }
                terminal::text(table::text(race, args.cold_start));
                terminal::text(plot::draw(race, &screen));
            }
        }
        Format::Markdown => terminal::text(table::markdown(&races)),
        Format::Json => terminal::text(table::json(&races)),
    }
    if let Some(file) = &args.svg {
        for race in &races {
            let file = if races.len() == 1 { file.clone() } else { beside(file, &race.name) };
            std::fs::write(&file, svg::draw(race, args.cold_start)).map_err(|error| {
                Failure::new(format!("{}: {error}", file.display()))
                    .hint("--svg names a file in a directory that is there.")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one trace by all contestants.
fn race(file: &Path, args: &SimulateArgs, policy: &Policy) -> Result<Race, Failure> {
    let trace = trace::read(file)?;
    let first = trace.units.first().copied().unwrap_or(0.0);
    let wanted = (first / policy.target).ceil().min(f64::from(policy.max)) as u32;
    let start = args.start.unwrap_or(wanted.max(policy.min));
    let runs = contestants(policy)
        .into_iter()
        .map(|(name, who)| Ok((name, outcome(&trace, &who, args.cold_start, start)?)))
        .collect::<Result<_, Failure>>()?;
    let name = file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    Ok(Race { name, runs })
}

fn contestants(policy: &Policy) -> [(&'static str, Who); CONTESTANTS] {
    let hpa = |signal| {
        let Policy { target, min, max, .. } = *policy;
        Who::Hpa(Hpa { signal, target, min, max })
    };
    [
        ("cairn", Who::Cairn(policy.clone())),
        ("cairn through KEDA", Who::Keda(policy.clone())),
        ("HPA on requests", hpa(Signal::InFlight)),
        ("HPA on CPU", hpa(Signal::Cpu)),
    ]
}

fn outcome(trace: &Trace, who: &Who, cold: Duration, start: u32) -> Result<Outcome, Failure> {
    simulate::run(trace, who, cold, start)
        .map_err(|error| Failure::new(format!("the policy: {error}")))
}

/// `dir/plot.svg` and `burst`: `dir/plot-burst.svg`.
fn beside(file: &Path, name: &str) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-{name}.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_several_traces_have_names_of_their_own() {
        assert_eq!(beside(Path::new("a/plot.svg"), "burst"), Path::new("a/plot-burst.svg"));
    }
}
