#![no_main]
use libfuzzer_sys::fuzz_target;

mod xds;

// Both listeners that are looked at; the first byte chooses.
fuzz_target!(|bytes: &[u8]| {
    let Some((first, body)) = bytes.split_first() else { return };
    let name = if first % 2 == 0 { "main_internal" } else { "connect_terminate" };
    xds::apply(cairn_xds::feed::Kind::Listener, name, body);
});
