//! The program of the library of the same name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Of the load generator and the backend, which shall not be in the way.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    benches::run()
}
