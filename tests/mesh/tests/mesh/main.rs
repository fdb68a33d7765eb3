//! Cairn in a real mesh: an unmodified istiod on a real API server renders it, signs for it and
//! configures it; every change is seen to take effect in traffic.
//!
//! One lab for all steps, because starting it takes longer than they do; they run in order. Logs are
//! kept in `target/lab/logs`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod operators;
mod outage;
mod routing;
mod security;
mod steps;
mod telemetry;
mod world;

use cairn_mesh_tests::namespace::{self, Role};
use cairn_mesh_tests::part::tail;
use cairn_mesh_tests::program::{self, Program};
use cairn_mesh_tests::sandbox::run_pod;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use steps::Steps;

/// Variables by which the process outside tells the one inside where things are.
const PROGRAM: &str = "CAIRN_MESH_PROGRAM";
const BINARY: &str = "CAIRN_BINARY";
const LOGS: &str = "CAIRN_MESH_LOGS";
const DIR: &str = "CAIRN_MESH_DIR";

const PARTS: [&str; 4] = ["etcd", "kube-apiserver", "istiod", "cairn"];

/// Steps that are behind us, for the last line.
static PASSED: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    match Role::current() {
        Role::Outside => outside(),
        Role::Lab => lab(),
        Role::Pod => run_pod(),
    }
}

fn outside() -> ExitCode {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    if let Some(reason) = namespace::unavailable() {
        return skip(&reason);
    }
    let program = match program::build(target, |line| println!("{line}")) {
        Ok(program) => program,
        Err(reason) => return skip(&reason),
    };
    let binary = cairn_test_support::process::binary();
    let logs = target.join("lab").join("logs");
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir_all(&logs).unwrap();
    let dir = tempfile::tempdir().unwrap();
    namespace::run_lab(&[
        (PROGRAM, &program.dir),
        (BINARY, &binary),
        (LOGS, &logs),
        (DIR, dir.path()),
    ])
}

/// What a developer's machine lacks is no failure; CI must not skip unseen.
fn skip(reason: &str) -> ExitCode {
    let count = steps::COUNT;
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        println!("0 passed, {count} failed: {reason}");
        return ExitCode::FAILURE;
    }
    println!("{count} skipped: {reason}");
    ExitCode::SUCCESS
}

fn lab() -> ExitCode {
    namespace::end_with_parent();
    namespace::prepare();
    let given = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let (binary, logs, dir) = (given(BINARY), given(LOGS), given(DIR));
    let program = Program { dir: given(PROGRAM) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = async {
        let steps = Steps::new(|passed| PASSED.store(passed, Ordering::SeqCst));
        world::run(&program, &binary, &dir, &logs, steps).await;
    };
    let verdict = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
    let passed = PASSED.load(Ordering::SeqCst);
    if verdict.is_ok() {
        println!("{passed} passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    for part in PARTS {
        println!("\n-- the end of {part}.log");
        println!("{}", tail(&logs.join(format!("{part}.log")), 25));
    }
    println!("\nlogs are in {}", logs.display());
    println!("{passed} passed, 1 failed, {} skipped", steps::COUNT - passed - 1);
    ExitCode::FAILURE
}
