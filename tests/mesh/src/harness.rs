//! What is around the steps of a target: its namespaces, the programs that it needs, and the verdict.
//!
//! A target is its own program (`harness = false`). The process that cargo starts prepares what is needed and
//! runs itself again in namespaces of its own; the process there runs the steps. Logs are kept in
//! `target/lab/logs-<name>`.

use crate::definitions::{KEDA, PROMETHEUS_OPERATOR};
use crate::namespace::{self, Role};
use crate::part::tail;
use crate::program::{self, Program};
use crate::sandbox::run_pod;
use crate::steps::Steps;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Variables by which the process outside tells the one inside where things are.
const PROGRAM: &str = "CAIRN_LAB_PROGRAM";
const DEFINITIONS_KEDA: &str = "CAIRN_LAB_KEDA";
const DEFINITIONS_PROMETHEUS: &str = "CAIRN_LAB_PROMETHEUS_OPERATOR";
const BINARY: &str = "CAIRN_BINARY";
const IMAGE: &str = "CAIRN_LAB_IMAGE";
const LOGS: &str = "CAIRN_LAB_LOGS";
const DIR: &str = "CAIRN_LAB_DIR";

/// Lines of each log that are shown after a failure.
const TAIL: usize = 25;

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// How many steps it has.
    pub steps: usize,
    /// `env!("CARGO_TARGET_TMPDIR")`
    pub tmp: &'static str,
    /// What it needs besides the lab program.
    pub needs: &'static [Need],
}

/// What a target needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `cairn`.
    Cairn,
    /// The definitions of KEDA's objects.
    Keda,
    /// Those of prometheus-operator's.
    PrometheusOperator,
    /// The image's root filesystem, as `deploy/image/rootfs.sh` makes it.
    Rootfs,
}

/// What a target has.
#[derive(Debug, Clone)]
pub struct Place {
    /// The lab program.
    pub program: Program,
    /// For files of this run; it is deleted afterwards.
    pub dir: PathBuf,
    /// For logs.
    pub logs: PathBuf,
}

impl Place {
    /// `cairn`.
    ///
    /// # Panics
    /// When the target does not need it.
    pub fn binary(&self) -> PathBuf {
        given(BINARY)
    }

    /// The image's root filesystem.
    ///
    /// # Panics
    /// When the target does not need it.
    pub fn image(&self) -> PathBuf {
        given(IMAGE)
    }

    /// The directory with KEDA's definitions.
    ///
    /// # Panics
    /// When the target does not need it.
    pub fn keda(&self) -> PathBuf {
        given(DEFINITIONS_KEDA)
    }

    /// The directory with prometheus-operator's definitions.
    ///
    /// # Panics
    /// When the target does not need it.
    pub fn prometheus_operator(&self) -> PathBuf {
        given(DEFINITIONS_PROMETHEUS)
    }
}

fn given(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")).into()
}

/// Runs a target: `body` has all its steps, and gives them back.
pub fn run<F>(target: Target, body: impl FnOnce(Place, Steps) -> F) -> ExitCode
where
    F: Future<Output = Steps>,
{
    match Role::current() {
        Role::Outside => outside(target),
        Role::Lab => lab(target, body),
        Role::Pod => run_pod(),
    }
}

fn outside(target: Target) -> ExitCode {
    let home = Path::new(target.tmp).parent().unwrap();
    let programs = match prepare(target, home) {
        Ok(programs) => programs,
        Err(reason) => return skip(target.steps, &reason),
    };
    let logs = home.join("lab").join(format!("logs-{}", target.name));
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir_all(&logs).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut variables = vec![(LOGS, logs.as_path()), (DIR, dir.path())];
    variables.extend(programs.iter().map(|(name, path)| (*name, path.as_path())));
    namespace::run_lab(&variables)
}

fn prepare(target: Target, home: &Path) -> Result<Vec<(&'static str, PathBuf)>, String> {
    if let Some(reason) = namespace::unavailable() {
        return Err(reason);
    }
    let say = |line: &str| println!("{line}");
    let mut programs = vec![(PROGRAM, program::build(home, say)?.dir)];
    for need in target.needs {
        programs.push(match need {
            Need::Cairn => {
                let binary = cairn_test_support::process::binary();
                let found = binary.canonicalize();
                (BINARY, found.map_err(|error| format!("{}: {error}", binary.display()))?)
            }
            Need::Keda => (DEFINITIONS_KEDA, KEDA.fetch(home, say)?),
            Need::PrometheusOperator => {
                (DEFINITIONS_PROMETHEUS, PROMETHEUS_OPERATOR.fetch(home, say)?)
            }
            Need::Rootfs => (IMAGE, crate::image::rootfs(home)?),
        });
    }
    Ok(programs)
}

/// What a developer's machine lacks is no failure; CI must not skip unseen.
fn skip(count: usize, reason: &str) -> ExitCode {
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        println!("0 passed, {count} failed: {reason}");
        return ExitCode::FAILURE;
    }
    println!("{count} skipped: {reason}");
    ExitCode::SUCCESS
}

fn lab<F>(target: Target, body: impl FnOnce(Place, Steps) -> F) -> ExitCode
where
    F: Future<Output = Steps>,
{
    namespace::end_with_parent();
    namespace::prepare();
    let logs = given(LOGS);
    let program = Program { dir: given(PROGRAM) };
    let place = Place { program, dir: given(DIR), logs: logs.clone() };
    let only = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let steps = Steps::new(target.steps, only);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = || runtime.block_on(async { body(place, steps).await.end() });
    let verdict = catch_unwind(AssertUnwindSafe(run));
    let passed = Steps::passed();
    if let Ok(skipped) = verdict {
        let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        println!("{passed} passed, 0 failed{skipped}");
        return ExitCode::SUCCESS;
    }
    show(&logs);
    println!("\nlogs are in {}", logs.display());
    println!("{passed} passed, 1 failed, {} skipped", target.steps.saturating_sub(passed + 1));
    ExitCode::FAILURE
}

/// The end of each log.
fn show(logs: &Path) {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        println!("\n-- the end of {}", file.file_name().unwrap_or_default().display());
        println!("{}", tail(&file, TAIL));
    }
}
