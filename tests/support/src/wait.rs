//! Waiting for conditions instead of sleeping.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything in a test may take before it counts as hanging. Far above what a loaded
/// machine needs; nothing is ever asserted about being faster than this.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
///
/// # Panics
/// After [`DEADLINE`], with `what`.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "did not happen in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// As [`eventually`], for a condition that has to wait itself.
///
/// # Panics
/// After [`DEADLINE`], with `what`.
pub async fn eventually_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "did not happen in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The output of `work`, which must not hang.
///
/// # Panics
/// After [`DEADLINE`], with `what`.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(value) => value,
        Err(_) => panic!("hangs for {DEADLINE:?}: {what}"),
    }
}

/// Runs a test on a runtime of its own, two threads wide.
///
/// # Panics
/// When the test does, or when it takes more than four [`DEADLINE`]s.
pub fn drive(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if tokio::time::timeout(DEADLINE * 4, Box::pin(test)).await.is_err() {
            panic!("the test hangs");
        }
    });
    runtime.shutdown_background();
}
