#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _forwarded = cairn_hbone::Forwarded::parse(text);
    let _workload = cairn_hbone::SourceWorkload::parse(text);
});
