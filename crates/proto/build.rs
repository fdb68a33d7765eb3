//! Compiles the messages in `proto/` without `protoc`.

use std::error::Error;

const FILES: [&str; 7] = [
    "proto/ca.proto",
    "proto/externalscaler.proto",
    "proto/workload.proto",
    "proto/stats.proto",
    "proto/otlp_common.proto",
    "proto/otlp_trace.proto",
    "proto/otlp_logs.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
