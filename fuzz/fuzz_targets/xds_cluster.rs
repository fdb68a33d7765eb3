#![no_main]
use libfuzzer_sys::fuzz_target;

mod xds;

fuzz_target!(|body: &[u8]| xds::apply(cairn_xds::feed::Kind::Cluster, "c", body));
