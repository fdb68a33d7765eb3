//! `benches pool-soak`: two clusters with equal service addresses, clients that never stop asking, and members that come
//! and go. No request may fail, and none may be answered by the other cluster.

use super::args::SoakArgs;
use super::events::{Event, Events};
use super::ground::Crowd;
use super::random::Random;
use super::session::{Plan, Speak};
use super::tally::Tally;
use crate::report::count;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A real order with short times; the spread is the one thing that clients notice of it.
const ENDING: [&str; 8] = [
    "--drain-accept",
    "6s",
    "--drain-confirmed",
    "1s",
    "--drain-spread",
    "2s",
    "--drain-limit",
    "30s",
];
/// Services of the two clusters, at the same addresses.
const SERVICES: [&[&str]; 2] = [&["app-of-a", "pay-of-a"], &["app-of-b", "pay-of-b"]];
/// Each request is answered after a moment, in which things can go wrong.
const PATH: &str = "/slow?ms=5";
/// Of those that are asked for something slow.
const SLOW_PATH: &str = "/slow?ms=700";

/// What a run is made of.
pub struct Course {
    seed: u64,
    members: usize,
    clients: usize,
    /// Before the first event, between events, and after the last.
    calm: Duration,
    plan: Vec<Option<Event>>,
}

impl Course {
    /// As it was asked for; events are the seed's.
    pub fn of(args: &SoakArgs) -> Course {
        Course {
            seed: args.seed.unwrap_or_else(Random::any_seed),
            members: 3,
            clients: args.clients,
            calm: Duration::from_millis(1500),
            plan: (0..args.events).map(|_| None).collect(),
        }
    }

    /// Three events that are quickly over.
    pub fn brief() -> Course {
        let plan = [Event::Route, Event::Terminate, Event::Restart].map(Some);
        let calm = Duration::from_millis(500);
        Course { seed: 1, members: 2, clients: 2, calm, plan: plan.to_vec() }
    }
}

/// Runs it. An error when anything failed.
pub async fn run(program: &Path, course: Course) -> Result<()> {
    let Course { seed, members, clients, calm, plan } = course;
    println!("pool-soak: {} events, {clients} pods in each cluster, --seed {seed}", plan.len());
    let mut ground = super::ground("pool-soak", program, &ENDING, &SERVICES).await?;
    ground.add_members(members).await?;
    let mut random = Random::seeded(seed);
    let tally = Arc::new(Tally::new()?);
    let mut crowd = Crowd::new();
    for (cluster, services) in ground.clusters.iter().zip(SERVICES) {
        for pod in cluster.pods("client", clients).await {
            for plan in plans(services) {
                crowd.join(&pod, &plan, &tally, random.fork());
            }
        }
    }
    tokio::time::sleep(calm).await;
    let mut events = Events::new(ground, random.fork());
    let happened = all(&mut events, (&plan, calm), &tally).await;
    tokio::time::sleep(calm).await;
    crowd.leave().await?;
    let seen = tally.seen();
    println!(
        "{} requests, p50 {:.1} ms, p99 {:.1} ms; {} connections, of which {} were told to go and {} were cut while idle",
        count(seen.requests),
        seen.milliseconds(0.5),
        seen.milliseconds(0.99),
        count(seen.connections),
        count(seen.told),
        count(seen.cut),
    );
    println!("{} failed, {} answered by the other cluster", seen.failed(), seen.wrong);
    seen.print_failures();
    happened?;
    ensure!(seen.requests > 0, "nothing was answered");
    ensure!(
        seen.failed() + seen.wrong == 0,
        "{} of {} requests failed, {} were answered by the other cluster; repeat it with --seed {seed}",
        seen.failed(),
        seen.requests + seen.failed(),
        seen.wrong
    );
    Ok(())
}

async fn all(
    events: &mut Events,
    (plan, calm): (&[Option<Event>], Duration),
    tally: &Tally,
) -> Result<()> {
    let began = Instant::now();
    for (number, planned) in (1..).zip(plan) {
        let event = planned.unwrap_or_else(|| events.next());
        let (before, start) = (tally.brief(), Instant::now());
        let outcome = events.happen(event).await;
        let took = start.elapsed().as_secs_f64();
        if outcome.is_ok() {
            tokio::time::sleep(calm).await;
        }
        let after = tally.brief();
        let what = match &outcome {
            Ok(what) => what.clone(),
            Err(error) => format!("{event:?}: {error:#}"),
        };
        println!(
            "{number:>3}/{}  {:>6.1} s  {what:<40} {took:>5.1} s  {:>7} requests, {} failed, {} members",
            plan.len(),
            began.elapsed().as_secs_f64(),
            after.0 - before.0,
            after.1 - before.1,
            events.ground.members.len(),
        );
        if let Err(error) = outcome {
            return Err(error).context(format!("event {number} ({event:?})"));
        }
        if tally.brief().0 == before.0 {
            bail!("event {number} ({event:?}): nothing was answered");
        }
    }
    Ok(())
}

/// The applications of one pod: some whose connections are short, some that keep them, and one that asks for something
/// slow.
fn plans(services: &[&str]) -> Vec<Plan> {
    let plan = |speak, place: usize, path, requests, pause: (u64, u64)| {
        let service = services.get(place).copied().unwrap_or_default();
        Plan {
            speak,
            service: (format!("10.96.0.{}:80", place + 1), service.to_owned()),
            path,
            requests,
            pause: Duration::from_millis(pause.0)..Duration::from_millis(pause.1),
        }
    };
    vec![
        plan(Speak::Http1, 0, PATH, Some(20), (5, 40)),
        plan(Speak::Http2, 1, PATH, Some(40), (5, 40)),
        plan(Speak::Http1, 1, PATH, None, (5, 400)),
        plan(Speak::Http2, 0, PATH, None, (5, 400)),
        plan(Speak::Http1, 0, SLOW_PATH, Some(3), (5, 40)),
    ]
}
