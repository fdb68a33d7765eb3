//! `cairn demo`: the whole path on this machine, in one process.
//!
//! Backends behind HBONE endpoints, the waypoint with config/demo.yaml, clients with two
//! identities; loopback only, a throw-away CA, real sockets. Ports that are taken are replaced by
//! free ones.

mod backend;
mod client;
mod grpc;
mod pod;
mod scale;
mod scenes;
mod table;
mod world;

use crate::cli::{DemoArgs, LogFormat};
use crate::failure::Failure;
use crate::logging::Logging;
use crate::signals::Signals;
use crate::terminal::say;
use std::process::ExitCode;
use world::World;

/// Plays the scenes; stays up until a signal unless told otherwise.
pub fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    let logging = Logging::start(LogFormat::Text, &args.log_level).map_err(Failure::new)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(show(args, logging));
    runtime.shutdown_background();
    outcome
}

async fn show(args: &DemoArgs, logging: Logging) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("no signals: {error}")))?;
    let once = args.once;
    if args.scale || args.pool {
        return scale::show(once, args.pool, logging, &mut signals).await;
    }
    say!("Cairn demo: everything in this process, on loopback.\n");
    let world = World::start(logging).await?;
    say!("\nRequests, each through mutual TLS, CONNECT and the waypoint:\n");
    let table = tokio::select! {
        table = scenes::play(&world) => table,
        _ = signals.next() => return Ok(ExitCode::FAILURE),
    };
    say!("{table}");
    let code = if table.all_ok() {
        say!("All as expected.");
        ExitCode::SUCCESS
    } else {
        say!("Something is not as expected; --log-level debug says more.");
        ExitCode::FAILURE
    };
    if once {
        return Ok(code);
    }
    say!("\nStill running. Admin pages: http://{}/", world.admin);
    say!("Metrics: http://{}/stats/prometheus", world.metrics);
    say!("\nA request by hand, to copy:\n\n  {}", world.curl_line());
    say!("\nThe same as the client that is refused:\n\n  {}", world.refused_curl_line());
    say!("\nCtrl-C ends the demo and removes its certificates.");
    tokio::select! {
        _ = signals.next() => {}
        () = world.quit.notified() => {}
    }
    Ok(code)
}
