//! One target's queue, and the task that empties it.

use super::counts::Counts;
use super::{Deliver, Target};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

/// How much gathers, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Records that wait at most.
    pub queue: usize,
    /// Bytes of the records that wait at most, about.
    pub queue_bytes: usize,
    /// Records of one message at most.
    pub batch: usize,
    /// Bytes of the records of one message, about; the record that reaches it is the last.
    pub batch_bytes: usize,
    /// A record waits no longer for others.
    pub interval: Duration,
    /// Pause before a message is sent again.
    pub pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            queue: 4096,
            queue_bytes: 16 << 20,
            batch: 512,
            // Collectors take 4 MiB by gRPC, unless told otherwise.
            batch_bytes: 1 << 20,
            interval: Duration::from_secs(1),
            pause: Duration::from_millis(500),
        }
    }
}

/// What takes up room.
pub trait Weigh {
    /// Bytes, about.
    fn weight(&self) -> usize;
}

/// Makes a message of records.
pub trait Encode<T>: Send + 'static {
    /// The message.
    fn encode(&self, records: &[T]) -> Vec<u8>;
}

/// The way into one target's queue. When the last of its holders is gone, what waits is sent and the task ends.
#[derive(Debug)]
pub struct Queue<T> {
    records: mpsc::Sender<T>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    waiting: Arc<AtomicUsize>,
    most: usize,
    counts: Arc<Counts>,
}

impl<T: Weigh + Send + Sync + 'static> Queue<T> {
    /// A queue, and the task that empties it, which the caller runs.
    pub fn new(
        target: Target,
        settings: Settings,
        encode: impl Encode<T>,
        deliver: Arc<dyn Deliver>,
        counts: Arc<Counts>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (records, incoming) = mpsc::channel(settings.queue.max(1));
        let (flushes, asked) = mpsc::channel(1);
        let waiting = Arc::new(AtomicUsize::new(0));
        let queue = Queue {
            records,
            flushes,
            waiting: Arc::clone(&waiting),
            most: settings.queue_bytes,
            counts: Arc::clone(&counts),
        };
        let task = Task {
            target,
            settings,
            encode,
            deliver,
            counts,
            waiting,
            batch: Vec::new(),
            bytes: 0,
            down: false,
        };
        (queue, task.run(incoming, asked))
    }

    /// Adds a record; what does not fit is dropped and counted.
    pub fn push(&self, record: T) {
        self.counts.make();
        let weight = record.weight();
        let fits = self.waiting.fetch_add(weight, Relaxed) < self.most;
        if !fits || self.records.try_send(record).is_err() {
            self.waiting.fetch_sub(weight, Relaxed);
            self.counts.drop_full();
        }
    }

    /// Sends what waits, and returns when that is done.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.flushes.send(done).await.is_ok() {
            let _the_task_is_gone_otherwise = flushed.await;
        }
    }
}

struct Task<T, E> {
    target: Target,
    settings: Settings,
    encode: E,
    deliver: Arc<dyn Deliver>,
    counts: Arc<Counts>,
    waiting: Arc<AtomicUsize>,
    batch: Vec<T>,
    bytes: usize,
    /// The last message was not delivered, which was told.
    down: bool,
}

impl<T: Weigh + Send + Sync + 'static, E: Encode<T>> Task<T, E> {
    async fn run(
        mut self,
        mut records: mpsc::Receiver<T>,
        mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut due = Instant::now();
        loop {
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => {
                        if self.batch.is_empty() {
                            due = Instant::now() + self.settings.interval;
                        }
                        if self.add(record) {
                            self.send().await;
                        }
                    }
                    None => return self.send().await,
                },
                () = sleep_until(due), if !self.batch.is_empty() => self.send().await,
                Some(done) = flushes.recv() => {
                    while let Ok(record) = records.try_recv() {
                        if self.add(record) {
                            self.send().await;
                        }
                    }
                    self.send().await;
                    let _nobody_waits_any_more = done.send(());
                }
            }
        }
    }

    /// `true`: the batch is full.
    fn add(&mut self, record: T) -> bool {
        let weight = record.weight();
        self.waiting.fetch_sub(weight, Relaxed);
        self.bytes += weight;
        self.batch.push(record);
        self.batch.len() >= self.settings.batch || self.bytes >= self.settings.batch_bytes
    }

    async fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let message = self.encode.encode(&self.batch);
        let count = self.batch.len();
        self.batch.clear();
        self.bytes = 0;
        if self.once(message.clone()).await {
            return self.counts.export(count);
        }
        sleep(self.settings.pause).await;
        if self.once(message).await {
            return self.counts.export(count);
        }
        self.counts.drop_undelivered(count);
    }

    async fn once(&mut self, message: Vec<u8>) -> bool {
        match self.deliver.deliver(&self.target, message).await {
            Ok(()) => {
                self.down = false;
                true
            }
            Err(reason) => {
                self.counts.fail();
                let cluster = self.target.cluster.as_str();
                if std::mem::replace(&mut self.down, true) {
                    tracing::debug!(cluster, %reason, "a collector does not take what is sent to it");
                } else {
                    tracing::warn!(cluster, %reason, "a collector does not take what is sent to it");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
