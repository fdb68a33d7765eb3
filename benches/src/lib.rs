//! Measures Cairn beside Envoy. README.md says how to run it and how to read it.
//!
//! One program in several roles: `compare` directs, and starts this program again as the load
//! generator (`load`) and as the backend (`backend`), so that each is a process of its own with
//! CPU time of its own.
//!
//! [`world`] and [`cairn_config`] are public for the micro-benchmarks in `benches/benches`.

#![forbid(unsafe_code)]

mod backend;
mod bed;
mod binaries;
pub mod cairn_config;
mod certs;
mod cli;
mod compare;
mod cost;
mod envoy_config;
mod hold;
mod hot;
mod load;
mod machine;
mod memory;
mod micro;
mod overhead;
mod pool;
mod probe;
mod process;
mod procfs;
mod profile;
mod proxy;
mod push;
mod report;
mod scale;
mod scenario;
mod traffic;
pub mod world;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Does what the command line says.
pub fn run() -> ExitCode {
    machine::raise_file_limit();
    let outcome = match Cli::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Overhead(args) => overhead::run(&args),
        Command::PoolSoak(args) => pool::soak(&args),
        Command::PoolBalance(args) => pool::balance(&args),
        Command::PoolFairness(args) => pool::fairness(&args),
        Command::PoolWarm(args) => pool::warm(&args),
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
