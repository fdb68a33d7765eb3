//! A known series costs no allocation, whichever way it is recorded.
#![allow(missing_docs)]

use std::sync::Arc;

use allocation_counter::measure;
use cairn_telemetry::{
    ConnectionEvent, RequestEvent, ResponseFlags, ServiceLabels, Settings, Telemetry,
    WorkloadLabels,
};

fn workload() -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        workload: "web-v1".into(),
        namespace: "shop".into(),
        ..WorkloadLabels::default()
    })
}

#[test]
fn a_known_series_allocates_nothing() {
    let telemetry = Telemetry::new(2);
    let shard = telemetry.shard(1);
    let (first, pushed_again) = (workload(), workload());
    let service = Arc::new(ServiceLabels::default());
    let record = |source| {
        let request = RequestEvent {
            source: Some(source),
            source_principal: "spiffe://cluster.local/ns/shop/sa/web",
            service: Some(&service),
            response_code: 503,
            flags: ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            ..RequestEvent::default()
        };
        let connection =
            ConnectionEvent { source: Some(source), bytes_in: 7, ..ConnectionEvent::default() };
        telemetry.record_request(&request);
        shard.record_request(&request);
        shard.connection_opened(&connection);
        shard.connection_moved(&connection, 1, 2);
        shard.connection_closed(&connection);
        shard.record_messages(&request, 1, 2);
    };
    assert!(measure(|| record(&first)).count_total > 0, "the first time makes the series");
    assert_eq!(measure(|| record(&first)).count_total, 0);
    assert_eq!(measure(|| record(&pushed_again)).count_total, 0, "equal labels at another address");
}

#[test]
fn what_exceeds_the_bound_allocates_nothing_in_the_end() {
    let telemetry =
        Telemetry::with_settings(Settings { shards: 1, series_limit: 2, ..Settings::default() });
    let record = |codes: std::ops::Range<u16>| {
        for response_code in codes {
            telemetry.record_request(&RequestEvent { response_code, ..RequestEvent::default() });
        }
    };
    record(200..210);
    assert_eq!(measure(|| record(200..400)).count_total, 0);
}
