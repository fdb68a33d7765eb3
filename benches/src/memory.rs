//! What connections and tunnels take: memory before and after opening many of them.

use crate::bed::{Bed, Load, file_words};
use crate::hold::State;
use crate::load::Line;
use crate::probe::Probe;
use crate::proxy::{Contender, Proxy};
use crate::report::{MemoryReport, Progress, kib, median};
use crate::world::{WAYPOINT, World};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::time::Duration;

/// How many of each are opened.
const MANY: usize = 1000;
/// Tunnels in one connection, which is below every proxy's bound.
const PER_CONNECTION: usize = 100;
/// Until allocators have given back what they do not need.
const SETTLE: Duration = Duration::from_secs(2);

/// What is opened, how it is divided.
#[derive(Debug, Clone, Copy)]
struct Case {
    connections: usize,
    tunnels: usize,
    state: State,
}

/// Measures one contender, `rounds` times.
pub async fn measure(bed: &Bed, contender: &Contender, rounds: usize) -> Result<MemoryReport> {
    let progress = Progress::of(format!("memory {}", contender.name));
    let case = |connections, tunnels, state| Case { connections, tunnels, state };
    let cases = [
        case(MANY, 1, State::None),
        case(MANY, 1, State::Parked),
        case(MANY / PER_CONNECTION, PER_CONNECTION, State::Parked),
        case(MANY / PER_CONNECTION, PER_CONNECTION, State::Busy),
    ];
    let mut base = Vec::new();
    let mut per_case = Vec::new();
    for case in cases {
        let mut grown = Vec::new();
        for _ in 0..rounds {
            let (before, after) = hold(bed, contender, case).await?;
            base.push(before as f64);
            grown.push((after as f64 - before as f64).max(0.0));
        }
        per_case.push(median(grown.into_iter()).unwrap_or(0.0));
    }
    let [connections, with_tunnel, parked, busy] = per_case[..] else {
        bail!("a case is missing");
    };
    // The few connections that the tunnels of the last two cases are in.
    let many = MANY as f64;
    let shared = connections / many * (MANY / PER_CONNECTION) as f64;
    let report = MemoryReport {
        contender: contender.name.clone(),
        base: median(base.into_iter()).unwrap_or(0.0) as u64,
        connection: connections / many,
        connection_with_tunnel: with_tunnel / many,
        parked_tunnel: (parked - shared).max(0.0) / many,
        busy_tunnel: (busy - shared).max(0.0) / many,
    };
    progress.done(&format!(
        "KiB: connection {}, with a tunnel {}, parked tunnel {}, busy tunnel {}",
        kib(report.connection),
        kib(report.connection_with_tunnel),
        kib(report.parked_tunnel),
        kib(report.busy_tunnel),
    ));
    Ok(report)
}

/// Memory with one tunnel, and with all of them.
async fn hold(bed: &Bed, contender: &Contender, case: Case) -> Result<(u64, u64)> {
    let addresses = bed.addresses();
    let world = World::traffic(addresses.hbone, addresses.http1);
    let mut proxy = bed.proxy(contender, &world).await?;
    proxy.process.until_ready().await?;
    let Some(service) = world.services.first() else { bail!("there is no service") };
    Probe::new(bed, &proxy.process)?.first_answer(&mut proxy.process, service).await?;
    let mut holder = start(bed, &proxy, case, &service.address().to_string())?;
    expect_held(&mut holder, 1).await?;
    let before = settled(&proxy).await?;
    holder.mark().await?;
    expect_held(&mut holder, case.connections * case.tunnels).await?;
    let after = settled(&proxy).await?;
    holder.end().await?;
    proxy.process.stop().await?;
    Ok((before, after))
}

fn start(bed: &Bed, proxy: &Proxy, case: Case, to: &str) -> Result<Load> {
    let Case { connections, tunnels, state } = case;
    let state = state.to_possible_value();
    let mut words = vec!["hold".to_owned()];
    words.extend(file_words(bed.client()));
    words.extend([
        format!("--waypoint={}", proxy.process.hbone()),
        format!("--expect={WAYPOINT}"),
        format!("--to={to}"),
        format!("--connections={connections}"),
        format!("--tunnels={tunnels}"),
        format!("--state={}", state.map(|state| state.get_name().to_owned()).unwrap_or_default()),
    ]);
    bed.start_load(words)
}

async fn expect_held(holder: &mut Load, expected: usize) -> Result<()> {
    match holder.line().await? {
        Line::Held { tunnels } if tunnels == expected => Ok(()),
        line => bail!("{expected} tunnels were to be held, but: {line:?}"),
    }
}

async fn settled(proxy: &Proxy) -> Result<u64> {
    tokio::time::sleep(SETTLE).await;
    Ok(proxy.process.usage()?.rss)
}
