//! Members that misbehave count as busy, never as gone.

use crate::support::{members, scaler_of};
use cairn_test_support::member::{Manner, Member, Work};
use cairn_test_support::scaler::Scaler;
use cairn_test_support::wait::{drive, eventually_async};
use serde_json::Value;

fn row<'a>(decision: &'a Value, address: &str) -> &'a Value {
    let rows = decision["members"].as_array().unwrap();
    rows.iter()
        .find(|row| row["address"] == address)
        .unwrap_or_else(|| panic!("no {address}: {decision}"))
}

#[test]
fn whatever_a_member_does_it_counts_as_busy() {
    drive(async {
        let mut members = members(6, 50.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let near = |wanted: f64| {
            move |decision: &Value| {
                (decision["demand"]["units"].as_f64().unwrap_or(-1.0) - wanted).abs() < 0.1
            }
        };
        scaler.until("six members, half busy", near(3.0)).await;
        let odd = &members[5];
        let address = odd.address().to_string();
        for (manner, failure, label) in [
            (Manner::Hang, "no answer in time", "timeout"),
            (Manner::Garbage, "no load report", "format"),
            (Manner::Endless, "more than 1048576 bytes", "size"),
            (Manner::Status500, "status 500", "status"),
            (Manner::NextSchema, "version: 2 is not 1", "format"),
            (Manner::Close, "", "connection"),
        ] {
            odd.behaves(manner);
            let decision = scaler
                .until(&format!("{manner:?} is seen"), |decision| {
                    let row = row(decision, &address);
                    row["state"] == "silent"
                        && row["failure"].as_str().is_some_and(|text| text.contains(failure))
                })
                .await;
            assert!(near(3.0)(&decision), "{manner:?}: {decision}");
            assert_eq!(decision["counts"]["members"], 6);
            assert_eq!(decision["counts"]["answering"], 5);
            assert!(
                scaler.count("cairn_scaler_poll_failures_total", &[("reason", label)]).await >= 1.0
            );
            odd.behaves(Manner::Report);
            scaler
                .until("it answers again", |decision| {
                    row(decision, &address)["state"] == "answering"
                })
                .await;
        }

        // The others get busier: so does, for all that is known, the silent one.
        odd.behaves(Manner::Hang);
        for member in members.iter().take(5) {
            member.works(|work| work.in_flight = 80.0);
        }
        scaler.until("all as busy as those that answer", near(4.8)).await;
        // And when they calm down it is as busy as it was last.
        for member in members.iter().take(5) {
            member.works(|work| work.in_flight = 10.0);
        }
        let decision = scaler.until("the silent one keeps its load", near(1.0)).await;
        assert!(row(&decision, &address)["age_seconds"].as_f64().unwrap() > 0.0);

        // Nobody listens any more, and still it is no reason to believe that it is gone.
        members.truncate(5);
        let decision = scaler
            .until("a refused connection", |decision| {
                row(decision, &address)["failure"]
                    .as_str()
                    .is_some_and(|text| text.contains("onnect"))
            })
            .await;
        assert_eq!(decision["counts"]["members"], 6);
    });
}

#[test]
fn nobody_goes_while_many_are_silent() {
    drive(async {
        let members = members(4, 2.0).await;
        members[0].behaves(Manner::Hang);
        let scaler = scaler_of(&members, &["--policy", "min=1"]).await;
        let decision = scaler.until("it holds", |decision| decision["mode"] == "hold").await;
        assert_eq!(decision["desired"], 4);
        assert!(decision["reason"].as_str().unwrap().contains("too few members answer"));
        for _ in 0..4 {
            scaler.decisions(2).await;
            assert_eq!(scaler.decision().await["desired"], 4);
        }
        members[0].behaves(Manner::Report);
        scaler.until("and then they go", |decision| decision["desired"].as_u64() < Some(4)).await;
    });
}

#[test]
fn connections_are_kept_and_polls_are_bounded() {
    drive(async {
        let members = members(2, 1.0).await;
        let scaler = scaler_of(&members, &[]).await;
        scaler.decisions(6).await;
        for member in &members {
            assert!(member.polls() >= 6, "{}", member.polls());
            assert_eq!(member.connections(), 1, "one connection for {} polls", member.polls());
        }
    });
}

#[test]
fn a_name_is_resolved_to_members() {
    drive(async {
        let member = Member::start("a", Work { in_flight: 40.0, ..Work::default() }).await;
        let name = format!("--dns=localhost:{}", member.address().port());
        let scaler = Scaler::start(&[&name]).await;
        scaler
            .until("the member answers", |decision| {
                decision["members"].as_array().is_some_and(|rows| {
                    rows.iter().any(|row| {
                        row["state"] == "answering" && row["in_flight"].as_f64() > Some(1.0)
                    })
                })
            })
            .await;
        let lost = Scaler::start(&["--dns=no-such-name.invalid:15020"]).await;
        let mut reason = String::new();
        eventually_async("the reason why there is no decision", async || {
            reason = lost.page("/healthz/ready", &[]).await.text();
            reason.contains("no-such-name.invalid")
        })
        .await;
        assert_eq!(lost.page("/healthz/ready", &[]).await.status, 503);
        assert_eq!(lost.decision().await["desired"], Value::Null);
    });
}
