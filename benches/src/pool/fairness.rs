//! `benches pool-fairness`: a tenant that wants ten times its share of a member, beside one that wants less than its
//! own.

use super::args::FairnessArgs;
use super::ground::{Cluster, Crowd, Ground};
use super::random::Random;
use super::session::{Plan, Speak};
use super::tally::{Seen, Tally};
use crate::report::count;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The tenant that wants too much.
const GREEDY: &str = "greedy";
/// The other one.
const MODEST: &str = "modest";
/// A service of each tenant's namespace.
const SERVICES: [&[&str]; 1] = [&["app.greedy", "app.modest"]];
/// Who wants too much wants so many times its share.
const TOO_MUCH: usize = 10;
/// Connections of applications in each pod.
const EACH: usize = 10;
/// Before a phase counts.
const WARM_UP: Duration = Duration::from_secs(3);
/// How admission control refuses: requests, or tunnels.
const REFUSALS: [&str; 4] = ["status 503", "status 429", "CONNECT 503", "CONNECT 429"];

/// Runs it. An error when the modest tenant was refused anything, or anything failed in another way.
pub async fn run(program: &Path, args: &FairnessArgs) -> Result<()> {
    let FairnessArgs { in_flight, seconds, build: _ } = args;
    let share = in_flight / 2;
    let (greedy, modest) = (TOO_MUCH * share, (share / 4).max(1));
    let phase = Duration::from_secs(*seconds);
    println!(
        "pool-fairness: --max-in-flight {in_flight}, a share is {share}; {GREEDY} wants {greedy}, {MODEST} {modest}"
    );
    let (capacity, most) = (format!("in-flight={in_flight}"), in_flight.to_string());
    let arguments = ["--capacity", &capacity, "--max-in-flight", &most];
    let mut ground = super::ground("pool-fairness", program, &arguments, &SERVICES).await?;
    ground.add_members(1).await?;
    let cluster = Arc::clone(ground.clusters.first().context("there is no cluster")?);

    let (alone, _) = measure(&cluster, (modest, None), phase).await?;
    report(&format!("{MODEST} alone"), &alone);
    let (beside, neighbour) = measure(&cluster, (modest, Some(greedy)), phase).await?;
    report(&format!("{MODEST} beside it"), &beside);
    if let Some(neighbour) = &neighbour {
        report(GREEDY, neighbour);
    }
    let ratio = |part| beside.milliseconds(part) / alone.milliseconds(part).max(0.001);
    println!("with the neighbour by alone: p50 {:.2}, p99 {:.2}", ratio(0.5), ratio(0.99));
    shed(&ground).await?;
    ground.check_alive()?;
    let mut other = 0;
    for seen in [Some(&alone), Some(&beside), neighbour.as_ref()].into_iter().flatten() {
        other += seen.failed() - refused(seen) + seen.wrong;
    }
    ensure!(other == 0, "{other} requests failed that were not refused");
    let refused = refused(&alone) + refused(&beside);
    ensure!(
        refused == 0,
        "{refused} requests of {MODEST} were refused, which has less than its share"
    );
    Ok(())
}

fn refused(seen: &Seen) -> u64 {
    seen.failed_of(&REFUSALS)
}

fn report(who: &str, seen: &Seen) {
    println!(
        "{who:<18} p50 {:>7.1} ms  p99 {:>7.1} ms  {:>9} answered  {:>9} refused  {:>5} failed otherwise",
        seen.milliseconds(0.5),
        seen.milliseconds(0.99),
        count(seen.requests),
        count(refused(seen)),
        seen.failed() - refused(seen),
    );
    if seen.failed() > refused(seen) {
        seen.print_failures();
    }
}

/// What both tenants see for so long: so many places of the modest one, and perhaps so many of the greedy one.
async fn measure(
    cluster: &Arc<Cluster>,
    (modest, greedy): (usize, Option<usize>),
    phase: Duration,
) -> Result<(Seen, Option<Seen>)> {
    let mut random = Random::seeded(1);
    let mut crowd = Crowd::new();
    // What the greedy tenant asks for is slow: the member is full long before the machine is.
    let mut both = Vec::new();
    for (tenant, place, path, places) in
        [(GREEDY, 1, "/slow?ms=200", greedy.unwrap_or(0)), (MODEST, 2, "/slow?ms=20", modest)]
    {
        let tally = Arc::new(Tally::new()?);
        let plan = Plan {
            speak: Speak::Http1,
            service: (format!("10.96.0.{place}:80"), format!("app.{tenant}")),
            path,
            requests: None,
            pause: Duration::ZERO..Duration::from_millis(10),
        };
        let pods = cluster.pods(&format!("client.{tenant}"), places.div_ceil(EACH)).await;
        for number in 0..places {
            let pod = pods.get(number / EACH).context("there are too few pods")?;
            crowd.join(pod, &plan, &tally, random.fork());
        }
        both.push((tally, places));
    }
    tokio::time::sleep(WARM_UP).await;
    for (tally, _) in &both {
        tally.forget(&REFUSALS);
    }
    tokio::time::sleep(phase).await;
    let mut seen = both.iter().map(|(tally, places)| (tally.seen(), *places > 0));
    let greedy = seen.next().filter(|(_, there)| *there).map(|(seen, _)| seen);
    let modest = seen.next().map(|(seen, _)| seen).context("nothing was measured")?;
    crowd.leave().await?;
    Ok((modest, greedy))
}

/// What the member itself says of its tenants.
async fn shed(ground: &Ground) -> Result<()> {
    let load = ground.members.first().context("there is no member")?.load().await?;
    for row in load["tenants"].as_array().map_or(&[][..], Vec::as_slice) {
        println!(
            "the member on {}: {} requests, {} refused",
            row["namespace"].as_str().unwrap_or_default(),
            row["requests_total"],
            row["shed_total"],
        );
    }
    Ok(())
}
