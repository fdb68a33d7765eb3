//! A request of a known tenant is counted, and admitted by its tenant's share, without an allocation.
#![allow(missing_docs)]

use allocation_counter::measure;

#[test]
fn counting_a_request_allocates_nothing() {
    let count = cairn_proxy::bench_request();
    let info = measure(|| {
        for _ in 0..100 {
            count();
        }
    });
    assert_eq!(info.count_total, 0);
}

#[test]
fn admitting_a_request_allocates_nothing() {
    let admit = cairn_proxy::bench_requests_admitted(1).remove(0);
    // The first one makes the tenant active.
    admit();
    let info = measure(|| {
        for _ in 0..100 {
            admit();
        }
    });
    assert_eq!(info.count_total, 0);
}
