#![allow(clippy::unwrap_used)]

use super::super::{Content, Counted, Delivery, Undelivered};
use super::*;
use parking_lot::Mutex;

impl Weigh for u8 {
    fn weight(&self) -> usize {
        10
    }
}

struct Bytes;

impl Encode<u8> for Bytes {
    fn encode(&self, records: &[u8]) -> Vec<u8> {
        records.to_vec()
    }
}

/// Keeps what it gets; fails as often as it is told.
#[derive(Default)]
struct Collector {
    got: Mutex<Vec<Vec<u8>>>,
    failures: AtomicUsize,
    stuck: bool,
}

impl Deliver for Collector {
    fn deliver<'a>(&'a self, _target: &'a Target, message: Vec<u8>) -> Delivery<'a> {
        Box::pin(async move {
            if self.stuck {
                std::future::pending::<()>().await;
            }
            let fails =
                self.failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
            if fails {
                return Err(Undelivered("told to".to_owned()));
            }
            self.got.lock().push(message);
            Ok(())
        })
    }
}

fn target() -> Target {
    Target {
        cluster: "c".to_owned(),
        authority: "a".to_owned(),
        path: "/".to_owned(),
        headers: Vec::new(),
        timeout: Duration::from_secs(5),
        content: Content::Json,
    }
}

struct Run {
    queue: Queue<u8>,
    collector: Arc<Collector>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

fn start(settings: Settings, collector: Collector) -> Run {
    let collector = Arc::new(collector);
    let counts = Arc::new(Counts::default());
    let deliver: Arc<dyn Deliver> = Arc::clone(&collector) as _;
    let (queue, task) = Queue::new(target(), settings, Bytes, deliver, Arc::clone(&counts));
    Run { queue, collector, counts, task: tokio::spawn(task) }
}

#[tokio::test(start_paused = true)]
async fn sent_when_enough_or_old_enough() {
    let run = start(Settings { batch: 3, ..Settings::default() }, Collector::default());
    for record in 0..7 {
        run.queue.push(record);
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!(*run.collector.got.lock(), [vec![0, 1, 2], vec![3, 4, 5]]);
    sleep(Settings::default().interval).await;
    assert_eq!(run.collector.got.lock().len(), 3);
    assert_eq!(run.counts.get(), Counted { made: 7, exported: 7, ..Counted::default() });
}

#[tokio::test(start_paused = true)]
async fn a_message_is_bounded_in_bytes() {
    let run = start(Settings { batch_bytes: 20, ..Settings::default() }, Collector::default());
    (0..4).for_each(|record| run.queue.push(record));
    run.queue.flush().await;
    assert_eq!(*run.collector.got.lock(), [vec![0, 1], vec![2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn sent_once_more_and_then_dropped() {
    let failing = Collector { failures: AtomicUsize::new(1), ..Collector::default() };
    let run = start(Settings::default(), failing);
    run.queue.push(1);
    run.queue.flush().await;
    assert_eq!(
        run.counts.get(),
        Counted { made: 1, exported: 1, failures: 1, ..Counted::default() }
    );
    run.collector.failures.store(2, Relaxed);
    run.queue.push(2);
    run.queue.flush().await;
    run.queue.push(3);
    run.queue.flush().await;
    assert_eq!(*run.collector.got.lock(), [vec![1], vec![3]]);
    let expected =
        Counted { made: 3, exported: 2, failures: 3, undelivered: 1, ..Counted::default() };
    assert_eq!(run.counts.get(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_dropped() {
    let stuck = || Collector { stuck: true, ..Collector::default() };
    for settings in [
        Settings { queue: 5, batch: 1, ..Settings::default() },
        Settings { queue_bytes: 50, batch: 1, ..Settings::default() },
    ] {
        let run = start(settings, stuck());
        run.queue.push(0);
        sleep(Duration::from_millis(10)).await;
        (0..20).for_each(|record| run.queue.push(record));
        let Counted { made, full, .. } = run.counts.get();
        assert_eq!((made, full), (21, 15), "{settings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ends_with_its_last_holder() {
    let run = start(Settings::default(), Collector::default());
    run.queue.push(9);
    drop(run.queue);
    run.task.await.unwrap();
    assert_eq!(*run.collector.got.lock(), [vec![9]]);
}
