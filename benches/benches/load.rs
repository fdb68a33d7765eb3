//! What a request pays for being counted in its tenant's load, and for being admitted by its tenant's
//! share, from its begin to its end. That it allocates nothing is a test of `crates/proxy`.

#![allow(missing_docs)] // made by Criterion's macros

use criterion::{Criterion, criterion_group, criterion_main};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    let count = cairn_proxy::bench_request();
    group.bench_function("a request", |bencher| bencher.iter(&count));
    let admit = cairn_proxy::bench_requests_admitted(1).remove(0);
    group.bench_function("a request that is admitted", |bencher| bencher.iter(&admit));
    // Of the above, what the clock alone takes: it is read twice.
    group.bench_function("two clock readings", |bencher| {
        bencher
            .iter(|| (std::hint::black_box(Instant::now()), std::hint::black_box(Instant::now())));
    });
    // Another worker does the same for the same tenant all the time.
    for (name, both) in [
        ("a request beside another worker's", cairn_proxy::bench_requests(2)),
        ("a request that is admitted beside another's", cairn_proxy::bench_requests_admitted(2)),
    ] {
        let stop = AtomicBool::new(false);
        let (here, there) = (&both[0], &both[1]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    there();
                }
            });
            group.bench_function(name, |bencher| bencher.iter(here));
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
