//! The fleet's mean is for the pool's members only.

use crate::support::{members, scaler_of};
use cairn_test_support::wait::{drive, eventually_async};

#[test]
fn the_mean_is_for_who_shows_the_token() {
    drive(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "the-first-token-of-the-pool\n").unwrap();
        let members = members(3, 20.0).await;
        for (member, connections) in members.iter().zip([10, 20, 60]) {
            member.works(|work| work.connections = connections);
        }
        members[2].works(|work| {
            work.units = 2.0;
            work.in_flight = 80.0;
        });
        let token = format!("--token-file={}", file.display());
        let scaler = scaler_of(&members, &[&token]).await;
        let status = async |value: &str| {
            let headers = [("Authorization", value)];
            let headers = if value.is_empty() { &headers[1..] } else { &headers[..] };
            scaler.page("/fleet", headers).await.status
        };
        let good = "Bearer the-first-token-of-the-pool";
        eventually_async("it is answered", async || status(good).await == 200).await;
        for wrong in [
            "",
            "Bearer ",
            "Bearer the-first-token-of-the-poo",
            "Bearer the-first-token-of-the-pool2",
            "the-first-token-of-the-pool",
            "Basic the-first-token-of-the-pool",
        ] {
            assert_eq!(status(wrong).await, 401, "{wrong}");
        }
        scaler.until("all answer", |decision| decision["counts"]["answering"] == 3).await;
        let mean = scaler.page("/fleet", &[("authorization", good)]).await.json();
        assert_eq!(
            (&mean["version"], &mean["members"], &mean["counted"]),
            (&1.into(), &3.into(), &3.into())
        );
        assert_eq!(mean["capacity_units"], 4.0);
        assert_eq!(mean["hbone_connections"], 22.5, "90 on 4 units");
        assert_eq!(mean["tunnels"], 45.0);
        assert!(mean["age_seconds"].as_f64().unwrap() < 30.0);

        std::fs::write(&file, "the-second-one").unwrap();
        eventually_async("the new token counts", async || {
            status("Bearer the-second-one").await == 200
        })
        .await;
        assert_eq!(status(good).await, 401);
        std::fs::remove_file(&file).unwrap();
        eventually_async("without a token nobody is let in", async || {
            status("Bearer the-second-one").await == 401
        })
        .await;
        assert_eq!(status("Bearer ").await, 401);
    });
}

#[test]
fn without_a_token_it_is_closed() {
    drive(async {
        let members = members(1, 0.0).await;
        let scaler = scaler_of(&members, &[]).await;
        scaler.decisions(1).await;
        for headers in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Bearer x")]]
        {
            assert_eq!(scaler.page("/fleet", headers).await.status, 403);
        }
    });
}
