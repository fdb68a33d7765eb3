//! The image's root filesystem: what is in it, that what is in it runs as a pod runs it (read-only, as uid 1337, without
//! a capability), and what buildah makes of it.
//!
//! `deploy/image/rootfs.sh --profile release` makes it; `CAIRN_ROOTFS` names another one.

#![allow(clippy::unwrap_used, clippy::panic)]

mod contents;
mod dns;
mod elf;
mod lab;
mod licences;
mod pack;
mod serving;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A test, and what it needs.
struct Step {
    says: &'static str,
    test: Test,
}

/// How a test is run.
#[derive(Clone, Copy)]
enum Test {
    /// Here, with nothing.
    Plain(fn()),
    /// Here, with the root filesystem.
    Image(fn(&Path)),
    /// In namespaces of its own, with the root filesystem mounted.
    Lab(fn(&lab::Lab)),
    /// Here, with the root filesystem and buildah.
    Pack(fn(&Path, &pack::Buildah)),
}

const STEPS: &[Step] = &[
    Step { says: "every crate has an allowed licence", test: Test::Plain(licences::are_allowed) },
    Step { says: "a licence that is not allowed is found", test: Test::Plain(licences::are_read) },
    Step { says: "the image is small and has what it must", test: Test::Image(contents::are_few) },
    Step { says: "nobody but root can write to it", test: Test::Image(contents::are_locked) },
    Step { says: "the program needs no library", test: Test::Image(contents::are_static) },
    Step { says: "licences are in it", test: Test::Image(contents::have_licences) },
    Step { says: "it runs without rights", test: Test::Lab(serving::runs_without_rights) },
    Step { says: "it writes nowhere", test: Test::Lab(serving::writes_nowhere) },
    Step { says: "a file configures it", test: Test::Lab(serving::by_file) },
    Step { says: "the system's roots are read", test: Test::Lab(serving::trusts_roots) },
    Step { says: "istiod's template runs in it", test: Test::Lab(serving::by_istiod) },
    Step { says: "an absent istiod is named", test: Test::Lab(serving::without_istiod) },
    Step { says: "buildah makes the image", test: Test::Pack(pack::is_as_written) },
];

fn main() -> ExitCode {
    if let Some(step) = lab::asked() {
        let Test::Lab(test) = STEPS[step].test else { return ExitCode::FAILURE };
        lab::enter(test);
        return ExitCode::SUCCESS;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let image = contents::find(target);
    let lab = lab::unavailable();
    let buildah = pack::Buildah::install(target);
    let [mut passed, mut failed, mut skipped] = [0; 3];
    for (number, step) in STEPS.iter().enumerate() {
        let run: Result<Box<dyn Fn() + '_>, &String> = match (step.test, &image) {
            (Test::Plain(test), _) => Ok(Box::new(test)),
            (_, Err(reason)) => Err(reason),
            (Test::Image(test), Ok(image)) => Ok(Box::new(move || test(image))),
            (Test::Lab(_), Ok(image)) => match &lab {
                Some(reason) => Err(reason),
                None => Ok(Box::new(move || lab::run(number, image))),
            },
            (Test::Pack(test), Ok(image)) => match &buildah {
                Err(reason) => Err(reason),
                Ok(buildah) => Ok(Box::new(move || test(image, buildah))),
            },
        };
        match run.map(|run| catch_unwind(AssertUnwindSafe(run)).is_ok()) {
            Ok(true) => {
                passed += 1;
                println!("passed: {}", step.says);
            }
            Ok(false) => {
                failed += 1;
                println!("FAILED: {}", step.says);
            }
            Err(reason) => {
                skipped += 1;
                println!("skipped: {}: {reason}", step.says);
            }
        }
    }
    // CI has everything.
    let must = std::env::var("CI").is_ok_and(|value| value == "true");
    if must {
        failed += std::mem::take(&mut skipped);
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
