//! Measures Cairn beside Envoy. README.md says how to run it and how to read it.
//!
//! One program in several roles: [`compare`] directs, and starts this program again as the load
//! generator ([`load`]) and as the backend ([`backend`]), so that each is a process of its own with
//! CPU time of its own.

#![forbid(unsafe_code)]

mod backend;
mod bed;
mod binaries;
mod cairn_config;
mod certs;
mod cli;
mod compare;
mod envoy_config;
mod hold;
mod load;
mod machine;
mod probe;
mod procfs;
mod proxy;
mod report;
mod scenario;
mod traffic;
mod world;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Of the load generator and the backend, which shall not be in the way.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    machine::raise_file_limit();
    let outcome = match Cli::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Smoke => compare::smoke(),
        Command::List => {
            compare::list();
            Ok(())
        }
        Command::Load(args) => load::run(*args),
        Command::Backend(args) => backend::run(&args),
        Command::Hold(args) => hold::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
