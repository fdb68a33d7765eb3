//! What a change costs: CPU time of the proxy over what it uses when nothing happens.

use crate::process::Process;
use anyhow::{Result, bail};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A change is over when the proxy has been as quiet as before for so long.
pub const QUIET: Duration = Duration::from_secs(1);
/// But it is watched for at least so long: files are looked at once a second.
pub const CHANGE: Duration = Duration::from_millis(2500);
/// And no longer than this.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);
/// Above what an idle proxy uses, this is not quiet, in CPU time of a quiet second.
const RESTLESS: Duration = Duration::from_millis(5);

/// What one change costs, in milliseconds of CPU time.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// In the first second and a half.
    pub at_once: f64,
    /// Until the proxy is as quiet as before.
    pub total: f64,
    /// CPU seconds per second of the idle proxy.
    pub idle: f64,
}

/// Looks at the idle proxy for a while, then at what it uses for what `push` pushes.
pub async fn cost(process: &Process, push: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let before = process.usage()?;
    sleep(CHANGE).await;
    let between = process.usage()?;
    let idle = between.since(before).precise.as_secs_f64() / CHANGE.as_secs_f64();
    let restless = idle * 2.0 * QUIET.as_secs_f64() + RESTLESS.as_secs_f64();
    let since = Instant::now();
    let over_idle =
        |used: Duration| (used.as_secs_f64() - idle * since.elapsed().as_secs_f64()) * 1e3;
    push()?;
    sleep(CHANGE - QUIET).await;
    let mut last = process.usage()?.since(between).precise;
    let at_once = over_idle(last);
    while since.elapsed() < CHANGE_LIMIT {
        sleep(QUIET).await;
        let used = process.usage()?.since(between).precise;
        if used.saturating_sub(last).as_secs_f64() < restless {
            return Ok(Cost { at_once, total: over_idle(used), idle });
        }
        last = used;
    }
    bail!("the proxy is not quiet {CHANGE_LIMIT:?} after a change")
}
