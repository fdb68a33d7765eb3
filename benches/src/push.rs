//! Istiod's own pushes: `cairn proxy waypoint` in a pod as istiod renders it, with an istiod that sends
//! what a real one was recorded to send.
//!
//! That istiod is in this process, on the core of load generator and backend. Its time to write megabytes
//! to the stream is part of what is measured from exec to ready.

mod recorded;
mod storm;
mod waypoint;

use crate::bed::Bed;
use crate::proxy::{Contender, Kind};
use crate::report::{Progress, PushReport, mib, time};
use crate::traffic::Effort;
use anyhow::Result;
use cairn_test_support::istiod::{FakeIstiod, TOKEN, shapes};
use recorded::Recorded;
use std::time::Duration;

pub use storm::Storm;

/// A minute of pushes, one every 60 ms.
pub const MINUTE: Storm =
    Storm { pushes: 1000, quiet: Duration::from_secs(8), during: Duration::from_secs(60) };
/// The same for a sixth of it.
pub const QUICK: Storm =
    Storm { pushes: 170, quiet: Duration::from_secs(4), during: Duration::from_secs(10) };
/// Enough to see that nothing fails.
pub const SMOKE: Storm =
    Storm { pushes: 16, quiet: Duration::from_millis(500), during: Duration::from_secs(1) };

/// Measures all Cairns among the contenders.
pub async fn measure(
    bed: &Bed,
    contenders: &[Contender],
    effort: Effort,
    storm: Storm,
) -> Result<PushReport> {
    let mut report = PushReport::default();
    for contender in contenders.iter().filter(|contender| contender.kind == Kind::Cairn) {
        let name = &contender.name;
        for round in 0..effort.rounds {
            let progress = Progress::of(format!("recorded push {name} round {}", round + 1));
            let run = Recorded::start().await?.measure(bed, contender, effort.changes).await?;
            progress.done(&format!(
                "ready after {}, warm {}, {} to compile, {} MiB idle, endpoint {} and route {} of CPU",
                time(run.ready_ms * 1e3),
                time(run.warm_ready_ms * 1e3),
                time(run.compile_ms * 1e3),
                mib(run.idle_rss as f64),
                time(run.endpoint_change.cpu_ms * 1e3),
                time(run.route_change.cpu_ms * 1e3),
            ));
            report.recorded.entry(name.clone()).or_default().push(run);
        }
        let progress = Progress::of(format!("storm {name}"));
        let run = storm.measure(bed, contender, &progress).await?;
        progress.done(&format!(
            "{} pushes, {} snapshots, p99 {} before and {} during, {} of CPU each",
            run.pushes,
            run.snapshots,
            time(run.p99_before),
            time(run.p99_during),
            time(run.cpu_per_push_ms * 1e3),
        ));
        report.storm.insert(name.clone(), run);
    }
    Ok(report)
}

/// The storm alone, briefly. Fails when a request or a push does.
pub async fn smoke(bed: &Bed, contenders: &[Contender]) -> Result<()> {
    for contender in contenders.iter().filter(|contender| contender.kind == Kind::Cairn) {
        let progress = Progress::of(format!("storm {}", contender.name));
        let run = SMOKE.measure(bed, contender, &progress).await?;
        run.check(&contender.name)?;
        progress.done(&format!("{} requests, {} pushes", run.requests, run.pushes));
    }
    Ok(())
}

/// An istiod that knows the waypoint of the rendered pod.
async fn istiod() -> FakeIstiod {
    let istiod = FakeIstiod::start().await;
    istiod.accept_token(TOKEN, &shapes::identity(waypoint::ACCOUNT));
    istiod
}
