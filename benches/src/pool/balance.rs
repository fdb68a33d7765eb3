//! `benches pool-balance`: as many members again join those that carry long-lived connections, and the load is to
//! spread. A real scaler tells the members the fleet's mean.

use super::POOL_TOKEN;
use super::args::BalanceArgs;
use super::ground::{Crowd, Ground, until};
use super::member::{AGENT, ask};
use super::random::Random;
use super::session::{Plan, Speak};
use super::tally::Tally;
use crate::report::count;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Between two lines.
const LINE: Duration = Duration::from_secs(5);
/// A member has so many times the mean at most where the load is spread.
const SPREAD: f64 = 1.15;
/// So many lines in a row say that it is.
const LINES: u32 = 2;
/// Services of the two clusters.
const SERVICES: [&[&str]; 2] = [&["app-of-a"], &["app-of-b"]];
/// Connections of applications in each pod, about.
const EACH: usize = 20;

/// Runs it. An error when a request failed, or the load did not spread.
pub async fn run(program: &Path, args: &BalanceArgs) -> Result<()> {
    let BalanceArgs { connections, members, limit, build: _ } = args;
    let limit = Duration::from_secs(*limit);
    println!("pool-balance: {connections} connections, {members} members and then {}", 2 * members);
    let mut ground = super::ground("pool-balance", program, &[], &SERVICES).await?;
    let scaler_at = SocketAddr::new(ground.address()?, AGENT);
    let mut addresses = Vec::new();
    for _ in 0..2 * members {
        addresses.push(ground.address()?);
    }
    let _scaler = scaler(program, &ground, scaler_at, &addresses)?;
    until("the scaler answers", async || Ok(ask(scaler_at, "GET", "/", &[]).await.is_ok())).await?;
    ground.ask_scaler(scaler_at);
    let (first, second) = addresses.split_at(*members);
    join(&mut ground, first).await?;
    let tally = Arc::new(Tally::new()?);
    let mut crowd = Crowd::new();
    fill(&ground, *connections, &tally, &mut crowd).await;
    let wanted = *connections as u64;
    until("all connections are open", async || {
        let open: u64 = tunnels(&ground).await?.iter().sum();
        ensure!(tally.brief().1 == 0, "requests fail: {:?}", tally.seen().failures);
        Ok(open >= wanted)
    })
    .await?;
    line(&ground, None, &tally).await?;
    join(&mut ground, second).await?;
    let since = Instant::now();
    let spread = watch(&mut ground, &tally, (since, limit)).await;
    crowd.leave().await?;
    let seen = tally.seen();
    println!(
        "{} requests, {} failed, {} by another cluster; {} connections, of which {} were told to go and {} were cut while idle",
        count(seen.requests),
        seen.failed(),
        seen.wrong,
        count(seen.connections),
        count(seen.told),
        count(seen.cut),
    );
    seen.print_failures();
    let spread = spread?;
    match spread {
        Some(spread) => println!("max/mean <= {SPREAD} after {:.0} s", spread.as_secs_f64()),
        None => println!("max/mean <= {SPREAD}: not within {} s", limit.as_secs()),
    }
    ensure!(seen.failed() + seen.wrong == 0, "{} requests failed", seen.failed() + seen.wrong);
    ensure!(spread.is_some(), "the load did not spread within {} s", limit.as_secs());
    Ok(())
}

/// Starts the scaler, which is told of all members that there will ever be.
fn scaler(program: &Path, ground: &Ground, at: SocketAddr, members: &[IpAddr]) -> Result<Child> {
    let token = ground.dir().join("token");
    fs::write(&token, POOL_TOKEN)?;
    let log = File::create(ground.dir().join("scaler.log"))?;
    let mut command = Command::new(program);
    command.args(["scaler", "--poll-interval", "1s", "--grpc", "off", "--http", &at.to_string()]);
    command.arg("--token-file").arg(token);
    for member in members {
        command.args(["--member", &SocketAddr::new(*member, AGENT).to_string()]);
    }
    command.env_clear().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.kill_on_drop(true).spawn().context("the scaler does not start")
}

/// Starts members, and waits until all of them are registered.
async fn join(ground: &mut Ground, addresses: &[IpAddr]) -> Result<()> {
    let mut places = Vec::new();
    for address in addresses {
        places.push(ground.start_member_at(*address)?);
    }
    for place in places {
        ground.registered(place).await?;
    }
    Ok(())
}

/// Places that keep their connections, with a request now and then.
async fn fill(ground: &Ground, connections: usize, tally: &Arc<Tally>, crowd: &mut Crowd) {
    let mut random = Random::seeded(1);
    let mut pods = Vec::new();
    let each = connections.div_ceil(EACH * ground.clusters.len());
    for cluster in &ground.clusters {
        pods.push(cluster.pods("client", each).await);
    }
    for number in 0..connections {
        let cluster = number % pods.len().max(1);
        let place = number / pods.len().max(1);
        let Some(pod) = pods.get(cluster).and_then(|of| of.get(place % each.max(1))) else {
            return;
        };
        let name = SERVICES.get(cluster).and_then(|of| of.first()).copied().unwrap_or_default();
        let plan = Plan {
            speak: if place % 2 == 0 { Speak::Http1 } else { Speak::Http2 },
            service: ("10.96.0.1:80".to_owned(), name.to_owned()),
            path: "/slow?ms=5",
            requests: None,
            pause: Duration::from_millis(500)..Duration::from_millis(3500),
        };
        crowd.join(pod, &plan, tally, random.fork());
    }
}

/// Tunnels of each member.
async fn tunnels(ground: &Ground) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for member in &ground.members {
        let load = member.load().await?;
        all.push(load["connections"]["tunnels"].as_u64().context("/load has no tunnels")?);
    }
    Ok(all)
}

/// The largest by the mean.
fn unevenness(tunnels: &[u64]) -> f64 {
    let sum: u64 = tunnels.iter().sum();
    let most = tunnels.iter().max().copied().unwrap_or_default();
    most as f64 * tunnels.len() as f64 / (sum.max(1)) as f64
}

/// Prints how the load lies; tells its unevenness.
async fn line(ground: &Ground, since: Option<Instant>, tally: &Tally) -> Result<f64> {
    let tunnels = tunnels(ground).await?;
    let uneven = unevenness(&tunnels);
    let at = match since {
        Some(since) => format!("{:>5.0} s", since.elapsed().as_secs_f64()),
        None => " before".to_owned(),
    };
    let (requests, failed) = tally.brief();
    println!(
        "{at}  max/mean {uneven:.2}  tunnels {tunnels:?}  {} requests, {failed} failed",
        count(requests)
    );
    Ok(uneven)
}

/// A line every now and then until the load is spread; how long that took.
async fn watch(
    ground: &mut Ground,
    tally: &Tally,
    (since, limit): (Instant, Duration),
) -> Result<Option<Duration>> {
    let (mut lines, mut reached) = (0, Duration::ZERO);
    while since.elapsed() < limit {
        ground.check_alive()?;
        let at = since.elapsed();
        if line(ground, Some(since), tally).await? > SPREAD {
            lines = 0;
        } else {
            if lines == 0 {
                reached = at;
            }
            lines += 1;
            if lines >= LINES {
                return Ok(Some(reached));
            }
        }
        tokio::time::sleep(LINE).await;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unevenness_is_the_largest_by_the_mean() {
        assert_eq!(unevenness(&[100, 100, 0, 0]), 2.0);
        assert_eq!(unevenness(&[50, 50]), 1.0);
        assert_eq!(unevenness(&[0, 0]), 0.0);
        assert_eq!(unevenness(&[]), 0.0);
    }
}
