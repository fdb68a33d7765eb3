//! The `cairn` binary: a thin front on the library crates.
//!
//! Each command is a module. A command gets its arguments from [`cli`], does one thing, and
//! ends in an exit code or a [`failure::Failure`], which carries what was wrong and what to do.

#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod admin;
mod certs;
mod cgroup;
mod check;
mod cli;
mod curl;
mod demo;
mod exchange;
mod explain;
mod failure;
mod fleet;
mod istiod;
mod load;
mod logging;
mod member;
mod members;
mod pool;
mod ready;
mod scaler;
mod serve;
mod signals;
mod terminal;
mod waypoint;
mod websocket;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;
use terminal::say;
use waypoint::Front;

/// Keeps less memory than the C library's under many small, long-lived buffers, and is faster.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(front) = Front::of(&words) {
        return front.and_then(waypoint::run).unwrap_or_else(|failure| failure.report());
    }
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Proxy(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Curl(args) => curl::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Scaler(args) => scaler::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Pool(args) => pool::run(&args),
        Command::Version => {
            say!("cairn {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|failure| failure.report())
}
