//! What is decided of what members say, and how it is explained.

use crate::support::{members, scaler_of};
use cairn_test_support::wait::drive;

#[test]
fn a_tenant_asks_for_its_cap_at_most() {
    drive(async {
        let members = members(4, 90.0).await;
        for member in &members {
            member.works(|work| work.tenants = vec![("loud", 80.0), ("calm", 10.0)]);
        }
        // 3.6 units, of which the loud one asks for 3.2 and gets 0.7: 1.1 at 0.6, and headroom of half of it.
        let caps = ["--tenant-cap", "m/loud=0.7", "--tenant-cap", "5"];
        let scaler = scaler_of(&members, &caps).await;
        let decision = scaler
            .until("the cap counts", |decision| {
                decision["demand"]["units"].as_f64().is_some_and(|units| (units - 1.1).abs() < 0.05)
            })
            .await;
        let capped = decision["demand"]["capped_units"].as_f64().unwrap();
        assert!((capped - 2.5).abs() < 0.05, "{decision}");
        assert!(scaler.count("cairn_scaler_capped_units", &[]).await > 2.0);
        scaler.until("fewer are wanted", |decision| decision["desired"] == 3).await;
        drop(scaler);
        let scaler = scaler_of(&members, &[]).await;
        scaler
            .until("without caps it is twice as many", |decision| {
                decision["desired"].as_u64() >= Some(7)
            })
            .await;
    });
}

#[test]
fn what_is_refused_is_panic() {
    drive(async {
        let members = members(3, 30.0).await;
        let scaler = scaler_of(&members, &[]).await;
        scaler.until("calm", |decision| decision["mode"] == "stable").await;
        let refusing = async {
            loop {
                members[0].works(|work| work.shed += 1);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let panics = scaler.until("panic", |decision| {
            decision["mode"] == "panic" && decision["desired"].as_u64() > Some(3)
        });
        let decision = tokio::select! {
            decision = panics => decision,
            () = refusing => unreachable!(),
        };
        assert_eq!(decision["demand"]["overloaded"], true);
        assert!(decision["reason"].as_str().unwrap().contains("refuse"), "{decision}");
        assert_eq!(scaler.count("cairn_scaler_panic", &[]).await, 1.0);
        scaler.until("calm again", |decision| decision["mode"] == "stable").await;
        assert!(scaler.count("cairn_scaler_decisions_total", &[("mode", "panic")]).await >= 1.0);
    });
}

#[test]
fn nobody_goes_while_a_member_drains() {
    drive(async {
        let members = members(4, 2.0).await;
        members[0].works(|work| work.draining = true);
        let scaler = scaler_of(&members, &["--policy", "min=1"]).await;
        let decision = scaler.until("it holds", |decision| decision["mode"] == "hold").await;
        assert_eq!((&decision["desired"], &decision["counts"]["draining"]), (&4.into(), &1.into()));
        assert!(decision["reason"].as_str().unwrap().contains("a member drains"));
        members[0].works(|work| work.draining = false);
        scaler.until("and then one goes", |decision| decision["desired"] == 3).await;
    });
}

#[test]
fn a_decision_is_explained_to_people_and_programs() {
    drive(async {
        let members = members(2, 30.0).await;
        members[1].works(|work| work.cold_start = 12_000.0);
        let scaler = scaler_of(&members, &["--policy", "target=0.5,min=2"]).await;
        let decision = scaler
            .until("a decision on both", |decision| {
                decision["counts"]["answering"] == 2 && decision["mode"] == "stable"
            })
            .await;
        assert_eq!(decision["version"], 1);
        assert_eq!(decision["current_is"], "members");
        assert_eq!(decision["cold_start_seconds"], 12.0, "the slowest of two starts");
        assert_eq!(decision["cold_start_measured"], true);
        let row = &decision["members"][0];
        assert_eq!(
            (&row["zone"], &row["ready"], &row["state"]),
            (&"z1".into(), &true.into(), &"answering".into())
        );
        assert!(row["age_seconds"].as_f64().unwrap() < 30.0);

        let text = scaler.page("/decision", &[("Accept", "text/plain")]).await;
        assert!(text.header("content-type").unwrap().starts_with("text/plain"));
        let text = text.text();
        let address = members[0].address().to_string();
        for words in [
            "members are to be there",
            "stable:",
            "cold start: 12.0 s, measured",
            &address,
            "answering",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        for (name, value) in [
            ("cairn_scaler_desired_replicas", decision["desired"].as_f64().unwrap()),
            ("cairn_scaler_current_replicas", 2.0),
            ("cairn_scaler_ready_members", 2.0),
            ("cairn_scaler_cold_start_seconds", 12.0),
        ] {
            assert_eq!(scaler.count(name, &[]).await, value, "{name}");
        }
        assert_eq!(scaler.count("cairn_scaler_members", &[("state", "answering")]).await, 2.0);
        assert_eq!(scaler.page("/healthz/ready", &[]).await.status, 200);
        assert_eq!(scaler.page("/nothing", &[]).await.status, 404);
    });
}
