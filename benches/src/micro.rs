//! What the micro-benchmarks last said.

use crate::report::MicroReport;
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// What Criterion writes about a benchmark.
#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

/// What Criterion writes about its times, in nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// The medians of the last `cargo bench -p benches` of this target directory, by name; empty if there
/// was none.
pub fn last(bench_dir: &Path) -> Vec<MicroReport> {
    let mut found = Vec::new();
    if let Some(target) = bench_dir.parent() {
        collect(&target.join("criterion"), &mut found);
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// A group may hold benchmarks, or groups of them; `new` is the last run of one.
fn collect(dir: &Path, found: &mut Vec<MicroReport>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name() == "new" {
            found.extend(read(&path));
        } else if path.is_dir() && entry.file_name() != "base" {
            collect(&path, found);
        }
    }
}

fn read(dir: &Path) -> Option<MicroReport> {
    let benchmark: Benchmark =
        serde_json::from_slice(&fs::read(dir.join("benchmark.json")).ok()?).ok()?;
    let estimates: Estimates =
        serde_json::from_slice(&fs::read(dir.join("estimates.json")).ok()?).ok()?;
    let nanoseconds = estimates.median.point_estimate;
    Some(MicroReport { name: benchmark.full_id, nanoseconds })
}
