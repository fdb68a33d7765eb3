//! Keeps a file of a store up to date, at leisure: a storm of pushes is one file.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{ExportError, Owner, Store};
use crate::feed::Kind;

/// Where a store is written, and when.
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// The file.
    pub path: PathBuf,
    /// Whose resources they are.
    pub owner: Owner,
    /// Nothing is written before the first answers of these kinds are in: half a configuration is none.
    pub required: BTreeSet<Kind>,
    /// Written when nothing has changed for so long.
    pub quiet: Duration,
    /// Written at the latest so long after the first change that is not in the file.
    pub at_most: Duration,
    /// Written again so long after the last time when nothing has changed but the control plane was heard, so that the
    /// file does not grow old.
    pub refresh: Duration,
}

impl WriterConfig {
    /// Written 2 s after the last change and at most 30 s after the first, and each hour; CDS, EDS, LDS and Workload required.
    pub fn new(path: PathBuf, owner: Owner) -> Self {
        WriterConfig {
            path,
            owner,
            required: BTreeSet::from([
                Kind::Cluster,
                Kind::Endpoints,
                Kind::Listener,
                Kind::Workload,
            ]),
            quiet: Duration::from_secs(2),
            at_most: Duration::from_secs(30),
            refresh: Duration::from_secs(3600),
        }
    }
}

/// A task that writes. Dropped, it ends without a last file.
#[derive(Debug)]
pub struct StoreWriter {
    written: watch::Receiver<u64>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl StoreWriter {
    /// Begins to follow a store.
    pub fn start(store: Arc<Store>, config: WriterConfig) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (count, written) = watch::channel(0);
        let task = tokio::spawn(Task { store, config, count, failing: false }.run(stopped));
        StoreWriter { written, stop: Some(stop), task }
    }

    /// How many files were written.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.clone()
    }

    /// Writes what is not in the file yet, and ends.
    pub async fn shutdown(mut self) {
        drop(self.stop.take());
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("the task that writes the warm-start file panicked");
        }
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    store: Arc<Store>,
    config: WriterConfig,
    count: watch::Sender<u64>,
    failing: bool,
}

impl Task {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut revision = self.store.revision();
        let mut saved = (*revision.borrow_and_update(), self.store.confirmed());
        let mut refresh = Instant::now() + self.config.refresh;
        loop {
            let (stopped, due) = tokio::select! {
                changed = revision.changed() => (changed.is_err(), false),
                () = sleep_until(refresh) => (false, true),
                _ = &mut stop => (true, false),
            };
            let stopped = stopped || (!due && self.settle(&mut revision, &mut stop).await);
            let current = (*revision.borrow_and_update(), self.store.confirmed());
            let news = if due { current != saved } else { current.0 != saved.0 };
            if news && self.ready() {
                self.write().await;
                saved = current;
            }
            if due || news {
                refresh = Instant::now() + self.config.refresh;
            }
            if stopped {
                return;
            }
        }
    }

    /// Waits for the end of a storm; true when asked to stop.
    async fn settle(
        &self,
        revision: &mut watch::Receiver<u64>,
        stop: &mut oneshot::Receiver<()>,
    ) -> bool {
        let latest = Instant::now() + self.config.at_most;
        loop {
            let quiet = (Instant::now() + self.config.quiet).min(latest);
            tokio::select! {
                () = sleep_until(quiet) => return false,
                changed = revision.changed() => if changed.is_err() { return true },
                _ = &mut *stop => return true,
            }
        }
    }

    fn ready(&self) -> bool {
        self.config.required.is_subset(&self.store.answers())
    }

    async fn write(&mut self) {
        let (store, config) = (Arc::clone(&self.store), self.config.clone());
        let path = config.path.clone();
        let done =
            tokio::task::spawn_blocking(move || store.export(&config.path, &config.owner)).await;
        let done = done.unwrap_or_else(|error| {
            Err(ExportError { path, reason: format!("the task that writes it ended: {error}") })
        });
        match done {
            Ok(()) => {
                tracing::debug!(path = %self.config.path.display(), "the warm-start file is written");
                self.failing = false;
                self.count.send_modify(|count| *count += 1);
            }
            // Once, until one succeeds: the cause will not go away by itself.
            Err(error) if !self.failing => {
                tracing::warn!(%error, "no warm start from this configuration");
                self.failing = true;
            }
            Err(_) => {}
        }
    }
}
