//! Same push, same answer: Cairn and real Envoy get what a real istiod pushed, the same backends and
//! the same requests. What differs must be in [`explained`].
//!
//! Chance is made the same for both before (`cairn_differential_tests::push`); of several endpoints of
//! a cluster each proxy may choose any. The seed is fixed; `CAIRN_DIFFERENTIAL_SEED` takes another.

#![allow(clippy::unwrap_used, clippy::panic)]

mod explained;
mod theme;

use cairn_mesh_tests::namespace::{self, Role};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use theme::{THEMES, Tally};

/// Variables by which the process outside tells the one inside where things are.
const BINARY: &str = "CAIRN_BINARY";
const ENVOY: &str = "CAIRN_DIFFERENTIAL_ENVOY";
const DIR: &str = "CAIRN_DIFFERENTIAL_DIR";

/// Makes the requests others.
const SEED: &str = "CAIRN_DIFFERENTIAL_SEED";

fn main() -> ExitCode {
    match Role::current() {
        Role::Outside => outside(),
        Role::Lab | Role::Pod => inside(),
    }
}

fn outside() -> ExitCode {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    if let Some(reason) = namespace::unavailable() {
        return skip(&reason);
    }
    let envoy = match cairn_test_envoy::install(&target.join("bench")) {
        Ok(envoy) => envoy,
        Err(reason) => return skip(&format!("no Envoy: {reason}")),
    };
    let binary = cairn_test_support::process::binary();
    let dir = tempfile::tempdir().unwrap();
    namespace::run_lab(&[(ENVOY, &envoy), (BINARY, &binary), (DIR, dir.path())])
}

/// What a developer's machine lacks is no failure; CI must not skip unseen.
fn skip(reason: &str) -> ExitCode {
    let count = THEMES.len();
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        println!("0 passed, {count} failed: {reason}");
        return ExitCode::FAILURE;
    }
    println!("{count} skipped: {reason}");
    ExitCode::SUCCESS
}

fn inside() -> ExitCode {
    namespace::end_with_parent();
    namespace::prepare();
    let given = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let (envoy, dir) = (given(ENVOY), given(DIR));
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(1);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut failed = 0;
    let mut used = vec![0; explained::RULES.len()];
    for (n, theme) in (0..).zip(THEMES) {
        let run = || runtime.block_on(theme::run(&theme, n, seed, &envoy, &dir, &mut used));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Tally { requests, forwarded, equal, explained, unexplained }) => {
                println!(
                    "{}: {requests} requests, {forwarded} reached a backend, {equal} equal, {explained} explained, \
                     {unexplained} unexplained",
                    theme.title
                );
                failed += usize::from(unexplained > 0);
            }
            Err(_) => failed += 1,
        }
    }
    runtime.shutdown_background();
    failed += explained::report(&used, given.is_none());
    println!("{} passed, {failed} failed", (THEMES.len() + 1).saturating_sub(failed));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
