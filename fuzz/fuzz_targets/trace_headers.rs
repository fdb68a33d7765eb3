//! What callers tell of traces: `traceparent`, `b3`, `x-b3-*`, `x-request-id`, in any bytes.
#![no_main]

use cairn_telemetry::trace::b3::{self, Multi};
use cairn_telemetry::trace::sampling::{Question, Sampling};
use cairn_telemetry::trace::{Incoming, Propagation, otlp, w3c};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == b'\n');
    let mut next = || parts.next();
    let (traceparent, single) = (next(), next());
    let multi = Multi { trace_id: next(), span_id: next(), parent: next(), sampled: next() };
    if let Some(text) = traceparent {
        let _any_answer = w3c::parse(text);
    }
    if let Some(text) = single {
        let _any_answer = b3::parse_single(text);
    }
    let incoming = Incoming { traceparent, b3: single, multi };
    for how in [
        Propagation::W3c,
        Propagation::B3 { w3c: true, shared: true, long: false },
        Propagation::B3 { w3c: false, shared: false, long: true },
    ] {
        if let Some(begun) = how.begin(&incoming, true, || 0) {
            assert!(how != Propagation::W3c || begun.remote == begun.context.parent.is_some());
        }
    }
    let sampling = Sampling { client: 1, random: 5_000, overall: 9_000, by_request_id: true, pack: true };
    let decision = sampling.decide(Question { request_id: next(), client_trace_id: true, draw: 7 });
    assert!(decision.write.is_none_or(|mark| b"49ab".contains(&mark)));
    let _any_answer = otlp::resource_attributes(&String::from_utf8_lossy(data));
});
