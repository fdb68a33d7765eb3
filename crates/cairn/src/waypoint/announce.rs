//! What a start waits for, in the log: at once when it changes, and again and again while it lasts.

use crate::ready::{NotReady, Readiness};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often the reason is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often the same reason is repeated.
const REPEAT: Duration = Duration::from_secs(5);

/// Logs until the process is ready, or drains.
pub async fn announce(readiness: Arc<Readiness>) {
    let began = Instant::now();
    let mut said: Option<(String, Instant)> = None;
    let mut look = tokio::time::interval(LOOK);
    // A start that needs less than one look has nothing to wait for.
    look.tick().await;
    loop {
        look.tick().await;
        let reason = match readiness.check() {
            Ok(()) => {
                tracing::info!(after_ms = began.elapsed().as_millis() as u64, "ready");
                return;
            }
            Err(NotReady::Draining) => return,
            Err(reason) => reason.to_string(),
        };
        let due = said.as_ref().is_none_or(|(last, at)| *last != reason || at.elapsed() >= REPEAT);
        if due {
            tracing::warn!(waited_ms = began.elapsed().as_millis() as u64, "not ready: {reason}");
            said = Some((reason, Instant::now()));
        }
    }
}
