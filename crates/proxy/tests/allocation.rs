//! A request of a known tenant is counted without an allocation.
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
