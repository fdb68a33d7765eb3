//! `cairn pool status`: which member is registered in which cluster, and how each stands.

use super::args::StatusArgs;
use super::cluster::{self, ENTRY};
use super::found::{Found, Prober, pool_client};
use super::{WRONG, asking, clusters, read_config};
use crate::failure::Failure;
use crate::members::Poller;
use crate::terminal::{error_line, say};
use cairn_kube::{Selection, seconds_until};
use cairn_pool::PoolConfig;
use cairn_pool::config::{Cluster, Pool};
use cairn_pool::objects::shard_label;
use cairn_pool::registrar::{Answer, Entry, Probe, Seen};
use futures::StreamExt;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// How long a member may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first list of a Service's endpoints may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Members that are asked at a time.
const AT_A_TIME: usize = 64;

/// Asks all, and prints a table.
pub fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let config = read_config(&args.config.config)?;
    asking(async {
        let named = clusters(&config, &args.config.clusters)?;
        let members = members(args).await?;
        let answers = ask(args, &members).await;
        let columns =
            futures::future::join_all(named.iter().map(|one| entries(one, &config))).await;
        let table =
            Table { pool: &config.pool, clusters: &named, members: &members, answers, columns };
        match args.json {
            true => say!("{:#}", table.json()),
            false => table.print(),
        }
        Ok(if table.is_good() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
    })
}

async fn members(args: &StatusArgs) -> Result<Vec<Seen>, Failure> {
    let client = match args.members.service {
        Some(_) => Some(pool_client(&args.members).await?),
        None => None,
    };
    let client = client.as_ref().map(|(client, namespace)| (client, namespace.as_str()));
    let found = Found::of(&args.members, client)?;
    let end = tokio::time::Instant::now() + LIST_TIMEOUT;
    loop {
        match found.now() {
            (Some(members), _) if members.is_empty() => {
                return Err(Failure::new("the Service has no members"));
            }
            (Some(members), _) => return Ok(members),
            (None, Some(problem)) => return Err(Failure::new(problem)),
            (None, None) if tokio::time::Instant::now() > end => {
                return Err(Failure::new("no list of members came in time"));
            }
            (None, None) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn ask(args: &StatusArgs, members: &[Seen]) -> Vec<Option<Answer>> {
    let prober = Prober {
        poller: Poller::new(PROBE_TIMEOUT),
        load_port: args.members.load_port,
        health_port: args.members.health_port,
    };
    let probes = futures::stream::iter(members.iter().map(|member| prober.probe(member.address)));
    let probe = |probe| match probe {
        Probe::Answers(answer) => Some(answer),
        Probe::Fails => None,
    };
    probes.buffered(AT_A_TIME).map(probe).collect().await
}

/// Entries of the pool there, or why they are not known.
async fn entries(cluster: &Cluster, config: &PoolConfig) -> Result<Vec<Entry>, String> {
    let client = cluster::client(cluster).await.map_err(|_| "no access".to_owned())?;
    let namespace = cluster.namespace(&config.pool);
    let of = Selection { namespace, ..Selection::default() };
    let all = client.list(&ENTRY, of).await.map_err(|error| error.to_string())?;
    let group = cluster.workload_group(&config.pool);
    Ok(all.iter().filter_map(|object| Entry::read(object, group)).collect())
}

struct Table<'a> {
    pool: &'a Pool,
    clusters: &'a [&'a Cluster],
    members: &'a [Seen],
    answers: Vec<Option<Answer>>,
    columns: Vec<Result<Vec<Entry>, String>>,
}

impl Table<'_> {
    fn rows(&self) -> impl Iterator<Item = (&Seen, Option<&Answer>, Vec<Option<&Entry>>)> {
        self.members.iter().zip(&self.answers).map(|(member, answer)| {
            let of = |column: &'_ Result<Vec<Entry>, String>| -> Option<usize> {
                let entries = column.as_ref().ok()?;
                entries.iter().position(|entry| entry.address == Some(member.address))
            };
            let entries = self
                .columns
                .iter()
                .map(|column| of(column).and_then(|place| column.as_ref().ok()?.get(place)))
                .collect();
            (member, answer.as_ref(), entries)
        })
    }

    fn is_good(&self) -> bool {
        self.columns.iter().all(Result::is_ok)
            && self.rows().all(|(_, answer, entries)| {
                answer.is_some_and(|answer| answer.ready && !answer.draining)
                    && entries.iter().all(Option::is_some)
            })
    }

    fn print(&self) {
        say!(
            "{:<24} {:<16} {:<10} {:>9} {:>9}  {}",
            "MEMBER",
            "ADDRESS",
            "STATE",
            "IN FLIGHT",
            "CONFIG",
            self.clusters.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" | ")
        );
        for (member, answer, entries) in self.rows() {
            let number = |value: Option<f64>, unit: &str| {
                value.map_or("-".to_owned(), |value| format!("{value:.0}{unit}"))
            };
            let cell = |(cluster, entry): (&&Cluster, Option<&Entry>)| {
                entry
                    .map_or("-".to_owned(), |entry| cell(entry, &shards(entry, cluster, self.pool)))
            };
            let cells: Vec<String> = self.clusters.iter().zip(entries).map(cell).collect();
            say!(
                "{:<24} {:<16} {:<10} {:>9} {:>9}  {}",
                member.name,
                member.address,
                state(answer),
                number(answer.and_then(|answer| answer.in_flight), ""),
                number(answer.and_then(|answer| answer.config_age), "s"),
                cells.join(" | ")
            );
        }
        for (cluster, column) in self.clusters.iter().zip(&self.columns) {
            if let Err(problem) = column {
                error_line(format_args!("{}: {problem}", cluster.name));
            }
        }
    }

    fn json(&self) -> Value {
        let members: Vec<Value> = self
            .rows()
            .map(|(member, answer, entries)| {
                let registered: serde_json::Map<String, Value> = self
                    .clusters
                    .iter()
                    .zip(entries)
                    .map(|(cluster, entry)| {
                        let value = entry.map_or(Value::Null, |entry| {
                            of_entry(entry, &shards(entry, cluster, self.pool))
                        });
                        (cluster.name.clone(), value)
                    })
                    .collect();
                json!({
                    "name": member.name, "address": member.address, "state": state(answer),
                    "ready": answer.map(|answer| answer.ready),
                    "draining": answer.map(|answer| answer.draining),
                    "in_flight": answer.and_then(|answer| answer.in_flight),
                    "config_age_seconds": answer.and_then(|answer| answer.config_age),
                    "uptime_seconds": answer.and_then(|answer| answer.uptime),
                    "clusters": registered,
                })
            })
            .collect();
        let problems: serde_json::Map<String, Value> = self
            .clusters
            .iter()
            .zip(&self.columns)
            .filter_map(|(cluster, column)| {
                Some((cluster.name.clone(), column.as_ref().err()?.clone().into()))
            })
            .collect();
        json!({ "members": members, "problems": problems })
    }
}

fn state(answer: Option<&Answer>) -> &'static str {
    match answer {
        None => "silent",
        Some(answer) if answer.draining => "draining",
        Some(answer) if answer.ready => "ready",
        Some(_) => "not ready",
    }
}

fn age(entry: &Entry) -> Option<f64> {
    seconds_until(&entry.connected_at).map(|seconds| -seconds)
}

/// Shards of the cluster that the member serves.
fn shards<'a>(entry: &Entry, cluster: &'a Cluster, pool: &Pool) -> Vec<&'a str> {
    let label = |shard: &str| shard_label(cluster.gateway(pool), shard);
    let served =
        |shard: &&String| entry.labels.get(&label(shard)).is_some_and(|value| value == "true");
    cluster.shards.iter().filter(served).map(String::as_str).collect()
}

fn cell(entry: &Entry, shards: &[&str]) -> String {
    let mut cell = age(entry).map_or("registered".to_owned(), |age| format!("{age:.0}s"));
    if entry.weight > 1 {
        cell.push_str(&format!(" weight {}", entry.weight));
    }
    if !shards.is_empty() {
        cell.push_str(&format!(" {}", shards.join(",")));
    }
    cell
}

fn of_entry(entry: &Entry, shards: &[&str]) -> Value {
    json!({
        "entry": entry.name, "connected_at": entry.connected_at, "age_seconds": age(entry),
        "weight": entry.weight.max(1), "shards": shards,
    })
}
