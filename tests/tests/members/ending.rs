//! The end of a member: nobody is sent to it any more, then it goes.

use super::world::{File, ID, Member, POOL_TOKEN, VIP, address, entry, mesh};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::Http1;
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, within};
use std::net::SocketAddr;
use std::time::Duration;

/// Deregistered everywhere first; new tunnels and connections are served until everybody has heard; then the end.
#[test]
fn it_deregisters_and_goes_on_accepting() {
    drive(async {
        let (a, b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        let ip = address();
        a.istiod.registration_grace(Duration::from_secs(2));
        let file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let end = ["--drain-accept", "20s", "--drain-confirmed", "1s", "--drain-spread", "0s"];
        let mut member = Member::start(ip, &file, &end).await;
        member.registered(&["a", "b"]).await;
        let client = member.client(21001, &a).await;
        member.cairn.terminate();
        member.until("a", "deregisters", |row| row["phase"] == "deregistering").await;
        assert_eq!(member.page(15021, "/healthz/ready").await.status, 503);
        assert!(member.page(15020, "/load").await.json()["draining"] == true);
        // Both are told at once; a's istiod takes its time.
        eventually("b's entry is gone", || b.istiod.entries().is_empty()).await;
        assert_eq!(a.istiod.entries(), [entry(ip)]);
        // Whoever has not heard is served, on connections that there are and on new ones.
        assert_eq!(client.get(VIP, "/").await.backend(), "app");
        let late = member.client(21001, &a).await;
        assert_eq!(late.get(VIP, "/").await.backend(), "app");
        eventually("a's entry is gone", || a.istiod.entries().is_empty()).await;
        let status = member.cairn.wait().await;
        assert!(status.success());
        assert!(member.cairn.printed("istiod shows that the entry is gone"));
        let phases = ["deregistering", "finishing", "closed"];
        let said = member.cairn.output();
        let place = |cluster: &str, phase: &str| {
            let line = |line: &&String| {
                line.contains("\"membership\"")
                    && line.contains(&format!("\"cluster\":\"{cluster}\""))
                    && line.contains(&format!("\"to\":\"{phase}\""))
            };
            said.iter()
                .position(|text| line(&text))
                .unwrap_or_else(|| panic!("{cluster} {phase}: {said:#?}"))
        };
        for cluster in ["a", "b"] {
            let places: Vec<usize> = phases.iter().map(|phase| place(cluster, phase)).collect();
            assert!(places.is_sorted(), "{cluster}: {places:?}");
        }
    });
}

/// What is in flight is answered.
#[test]
fn what_is_in_flight_is_answered() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let ip = address();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        member.registered(&["a"]).await;
        let hbone =
            HboneClient::connect(SocketAddr::new(ip, 21001), &a.cert("client"), ID).await.unwrap();
        let tunnel = within("CONNECT", hbone.open(VIP)).await.unwrap();
        let request = tokio::spawn(async move { Http1::new(tunnel).get("/gate?gate=end").await });
        eventually("the request is at the backend", || a.service("app").app.waiting() == 1).await;
        member.cairn.terminate();
        member.until("a", "finishes", |row| row["phase"] == "finishing").await;
        a.service("app").app.release("end");
        let answer = within("the answer", request).await.unwrap().unwrap();
        assert_eq!((answer.status, answer.backend()), (200, "app"));
        assert!(member.cairn.wait().await.success());
    });
}

/// A drain order: by SIGTERM, from this machine, or with the pool's token; each leads to the same end.
#[test]
fn a_drain_can_be_ordered() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        for order in ["loopback", "token", "quit"] {
            let ip = address();
            let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
            member.registered(&["a"]).await;
            // Reading changes nothing, and no web page orders anything.
            assert!(member.page(15020, "/drain").await.text().contains("a: serving"));
            let page = [("Origin", "http://evil.example")];
            assert_eq!(member.ask(15000, "POST /drain", &page).await.status, 403);
            assert_eq!(member.page(15000, "/quitquitquit").await.status, 405);
            let bearer = format!("Bearer {POOL_TOKEN}");
            let answer = match order {
                "loopback" => member.ask(15000, "POST /drain", &[]).await,
                "token" => member.ask(15020, "POST /drain", &[("Authorization", &bearer)]).await,
                _ => member.ask(15020, "POST /quitquitquit", &[]).await,
            };
            assert_eq!(answer.status, 200, "{order}: {}", answer.text());
            assert!(member.cairn.wait().await.success(), "{order}");
            let by_token = member.cairn.printed("drain order with the pool's token");
            assert_eq!(by_token, order == "token");
            eventually("deregistered", || a.istiod.entries().is_empty()).await;
        }
    });
}

/// Nobody knows of a member that was never registered: there is nothing to wait for.
#[test]
fn who_was_never_registered_ends_at_once() {
    drive(async {
        let mut a = mesh(1, &["app"]).await;
        a.istiod.stop().await;
        let ip = address();
        let end = ["--drain-accept", "100s", "--drain-confirmed", "100s"];
        let mut member = Member::start(ip, &File::of(ip, &[("a", 21001, &a)]), &end).await;
        member.until("a", "starting", |row| row["phase"] == "starting").await;
        member.end().await;
    });
}
