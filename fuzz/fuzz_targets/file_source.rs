#![no_main]
use cairn_xds::file::{Format, parse_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _yaml = parse_bytes(Format::Yaml, bytes);
    let _json = parse_bytes(Format::Json, bytes);
});
