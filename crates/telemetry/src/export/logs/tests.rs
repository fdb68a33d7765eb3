#![allow(clippy::unwrap_used)]

use super::super::{Delivery, Undelivered};
use super::*;
use parking_lot::Mutex;
use std::time::UNIX_EPOCH;

/// Keeps what it gets, by cluster; `stuck` never answers, `down` refuses.
#[derive(Default)]
struct Collectors {
    got: Mutex<Vec<(Target, pb::ExportLogsServiceRequest)>>,
}

impl Deliver for Collectors {
    fn deliver<'a>(&'a self, target: &'a Target, message: Vec<u8>) -> Delivery<'a> {
        Box::pin(async move {
            match target.cluster.as_str() {
                "stuck" => std::future::pending().await,
                "down" => Err(Undelivered("down".to_owned())),
                _ => {
                    let message = pb::ExportLogsServiceRequest::decode(message.as_slice()).unwrap();
                    self.got.lock().push((target.clone(), message));
                    Ok(())
                }
            }
        })
    }
}

fn to(cluster: &str) -> LogTarget {
    LogTarget {
        mesh: "test".to_owned(),
        cluster: cluster.to_owned(),
        transport: LogTransport::Grpc,
        authority: "logs.shop".to_owned(),
        timeout: None,
        headers: Vec::new(),
        resource: vec![("log_name".to_owned(), "otel_envoy_accesslog".to_owned())],
    }
}

fn record(number: i64) -> LogRecord {
    LogRecord {
        time: UNIX_EPOCH + Duration::from_secs(1),
        body: Some(LogValue::Text("line".to_owned())),
        attributes: vec![
            ("n".into(), LogValue::Int(number)),
            ("list".into(), LogValue::List(vec![LogValue::Bool(true), LogValue::Double(0.5)])),
            ("map".into(), LogValue::Map(vec![("k".into(), LogValue::Text("v".to_owned()))])),
        ],
        trace_id: Some([1; 16]),
        span_id: None,
    }
}

struct Run {
    logs: Arc<OtelLogs>,
    collectors: Arc<Collectors>,
    counts: Arc<LogCounts>,
    flush: LogFlush,
}

fn start() -> Run {
    let (logs, collectors) = (Arc::new(OtelLogs::default()), Arc::new(Collectors::default()));
    let counts = Arc::new(LogCounts::default());
    let deliver: Arc<dyn Deliver> = Arc::clone(&collectors) as _;
    let mine = |target: &LogTarget| target.cluster != "foreign";
    let (flush, task) = exporter(Arc::clone(&logs), deliver, mine, Arc::clone(&counts));
    tokio::spawn(task);
    Run { logs, collectors, counts, flush }
}

#[tokio::test(start_paused = true)]
async fn records_reach_their_collector() {
    let run = start();
    let (stuck, queue, foreign) =
        (run.logs.queue(&to("stuck")), run.logs.queue(&to("good")), run.logs.queue(&to("foreign")));
    assert!(stuck.push(record(0)) && foreign.push(record(0)));
    for number in 0..600 {
        assert!(queue.push(record(number)));
    }
    sleep(LOOK * 3).await;
    let got = run.collectors.got.lock().clone();
    let records: Vec<_> = got
        .iter()
        .flat_map(|(_, message)| &message.resource_logs[0].scope_logs[0].log_records)
        .collect();
    assert_eq!(
        (got.len(), records.len(), foreign.len()),
        (3, 600, 1),
        "the stuck one holds nobody up"
    );
    let (target, message) = &got[0];
    assert_eq!((target.path.as_str(), target.content), (GRPC_PATH, Content::Grpc));
    assert_eq!(
        message.resource_logs[0].resource.as_ref().unwrap().attributes,
        [otlp::text("log_name", "otel_envoy_accesslog")]
    );
    let first = records[0];
    assert_eq!(first.time_unix_nano, 1_000_000_000);
    assert_eq!((first.trace_id.as_slice(), first.span_id.as_slice()), (&[1; 16][..], &[][..]));
    assert_eq!(first.attributes.len(), 3);
    assert_eq!(run.counts.exported.load(Relaxed), 600);
    drop(run.flush);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_dropped_and_counted() {
    let run = start();
    let queue = run.logs.queue(&to("down"));
    (0..5).for_each(|number| assert!(queue.push(record(number))));
    run.flush.flush().await;
    assert!(queue.is_empty());
    assert_eq!(run.counts.failures.load(Relaxed), 2, "sent twice");
    assert_eq!(run.logs.counts(), (5, 5));
    assert_eq!(run.counts.exported.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_others() {
    let run = start();
    let queue = run
        .logs
        .queue(&LogTarget { transport: LogTransport::Http("/v1/logs".to_owned()), ..to("good") });
    assert!(queue.push(record(1)));
    run.flush.flush().await;
    let got = run.collectors.got.lock().clone();
    assert_eq!((got[0].0.path.as_str(), got[0].0.content), ("/v1/logs", Content::Protobuf));
}
