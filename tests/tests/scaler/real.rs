//! Real members: `cairn proxy` processes with requests in flight.

use crate::support::{DESIRED, Keda};
use cairn_test_support::config::all_to;
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::Http1;
use cairn_test_support::process::Cairn;
use cairn_test_support::scaler::Scaler;
use cairn_test_support::stage::{Files, Stage, VIP, waypoint_id};
use cairn_test_support::wait::{drive, eventually, eventually_async};
use serde_json::Value;
use tokio::task::JoinHandle;

/// Requests in flight that a member of this test can have.
const ROOM: usize = 20;

/// A member whose share of requests in flight is its pressure, whatever else this machine does.
async fn member(stage: &Stage, files: &Files) -> Cairn {
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(files.config()).unwrap()).unwrap();
    config["load"] = serde_json::json!({
        "in_flight": ROOM, "cpu": 1000.0, "connections": 100_000.0, "units": 1.0, "zone": "z9",
    });
    files.write_text(&config.to_string());
    let _ = stage;
    Cairn::proxy(&files.config(), &[]).await
}

/// So many requests that end when the gate is opened.
async fn hold(
    stage: &Stage,
    member: &Cairn,
    gate: &'static str,
    count: usize,
) -> Vec<JoinHandle<u16>> {
    let address = member.address("HBONE");
    let client = HboneClient::connect(address, &stage.client(), &waypoint_id()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..count {
        let mut http = Http1::new(client.open(VIP).await.unwrap());
        held.push(tokio::spawn(async move {
            http.get(&format!("/hold?gate={gate}")).await.map_or(0, |response| response.status)
        }));
    }
    held
}

#[test]
fn desired_follows_the_load_of_real_members() {
    drive(async {
        let stage = Stage::new().await;
        let files = stage.files(&stage.spec().http(VIP, all_to("app")));
        let mut processes = Vec::new();
        for _ in 0..3 {
            processes.push(member(&stage, &files).await);
        }
        let flags: Vec<String> = processes
            .iter()
            .map(|member| format!("--member={}", member.address("metrics pages")))
            .collect();
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(["--policy", "max=20"]);
        let scaler = Scaler::start(&args).await;
        let mut keda = Keda::of(&scaler).await;
        let decision =
            scaler.until("all answer", |decision| decision["counts"]["answering"] == 3).await;
        assert_eq!(decision["members"][0]["zone"], "z9");
        assert_eq!(decision["cold_start_measured"], true);
        eventually_async("without load KEDA is told to go down", async || {
            keda.value(DESIRED).await.is_ok_and(|value| value == 2.0)
        })
        .await;

        let mut held = Vec::new();
        for member in &processes {
            held.extend(hold(&stage, member, "one", 14).await);
        }
        eventually("all are in flight", || stage.app.waiting() == 42).await;
        let decision = scaler
            .until("2.1 units of demand", |decision| {
                let of = |name: &str| decision["demand"][name].as_f64().unwrap_or_default();
                (of("units") - 2.1).abs() < 0.15 && of("in_flight") > 40.0
            })
            .await;
        assert_eq!(decision["members"][0]["state"], "answering", "{decision}");
        eventually_async("KEDA is told to go up", async || {
            keda.value(DESIRED).await.is_ok_and(|value| value >= 5.0)
        })
        .await;

        // One is killed with all that it carries: it counts as busy as it was.
        let mut killed = processes.pop().unwrap();
        let address = killed.address("metrics pages").to_string();
        killed.kill().await;
        scaler
            .until("it is silent and counts", |decision| {
                decision["members"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|row| row["address"] == address.as_str() && row["state"] == "silent")
                    && decision["demand"]["units"].as_f64().is_some_and(|units| units > 1.9)
            })
            .await;
        assert!(keda.value(DESIRED).await.unwrap() >= 5.0);

        stage.app.release("one");
        for request in held {
            let status = request.await.unwrap();
            assert!(status == 200 || status == 0, "{status}");
        }
        // The rest is calm, and still nobody may go: one of three is silent.
        let decision = scaler.until("it holds", |decision| decision["mode"] == "hold").await;
        assert_eq!(decision["desired"], 3);
    });
}
