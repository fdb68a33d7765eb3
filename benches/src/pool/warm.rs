//! `benches pool-warm`: how soon a member serves a cluster of 1,000 services by what a sibling tells, while istiod has not
//! answered.

use super::args::WarmArgs;
use super::member::{Launch, Member};
use super::{ID, ISTIO_TOKEN, ground::until};
use crate::compare::prepare;
use crate::report::median;
use anyhow::{Context, Result, ensure};
use cairn_test_support::istiod::{FakeIstiod, shapes};
use cairn_xds::feed::Kind;
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// What istiod holds back: all of a configuration.
const ALL: [Kind; 4] = [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload];
const PORT: u16 = 21001;

/// Runs it.
pub async fn run(program: &Path, args: &WarmArgs) -> Result<()> {
    let dir = prepare()?.join("pool-warm");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir)?;
    let istiod = FakeIstiod::start().await;
    istiod.accept_token(ISTIO_TOKEN, ID);
    istiod.write_token(ISTIO_TOKEN);
    istiod.load_capture(&shapes::captures().join("scale"));
    let launch = Launch { program: program.to_owned(), args: Vec::new() };
    let block = u8::try_from(120 + std::process::id() % 100)?;
    let address = |number: u8| IpAddr::from(Ipv4Addr::new(127, 8, block, number));
    let start = async |number: u8, siblings: &[IpAddr]| -> Result<(Member, f64, bool)> {
        let ip = address(number);
        let file = file(&istiod, ip, siblings);
        let mut member = Member::start(&launch, &dir, ip, &file)?;
        let mut row = Value::Null;
        until(&format!("member {ip} serves"), async || {
            row = member.clusters().await?.into_iter().next().unwrap_or_default();
            Ok(row["phase"] == "serving")
        })
        .await?;
        let load = member.load().await?;
        let step = |name: &str| load["cold_start"][name].as_f64().context("no cold start");
        let took = step("ready_milliseconds")? - step("certificate_milliseconds")?;
        Ok((member, took, row["warm_start"] == true))
    };
    let (first, cold, warm) = start(1, &[]).await?;
    ensure!(!warm, "the first member has nobody to ask");
    println!(
        "1,000 services; an istiod that answers at once: {cold:.0} ms from certificate to serving"
    );
    for kind in ALL {
        istiod.hold(kind);
    }
    let mut took = Vec::new();
    for round in 0..args.rounds {
        let (member, millis, warm) = start(2 + round, &[address(1)]).await?;
        ensure!(warm, "the sibling has told nothing");
        println!("an istiod that has not answered, one sibling: {millis:.0} ms");
        took.push(millis);
        member.terminate()?;
        member.ended().await?;
    }
    println!("median {:.0} ms", median(took.into_iter()).unwrap_or_default());
    for kind in ALL {
        istiod.release(kind);
    }
    first.terminate()?;
    first.ended().await
}

fn file(istiod: &FakeIstiod, ip: IpAddr, siblings: &[IpAddr]) -> String {
    json!({
        "member": { "name": format!("member-{ip}"), "address": ip },
        "siblings": siblings,
        "clusters": [{
            "name": "scale",
            "istiod": istiod.address().to_string(),
            "root_file": istiod.roots_file(),
            "token_file": istiod.token_file(),
            "listen": SocketAddr::new(ip, PORT).to_string(),
        }],
    })
    .to_string()
}
