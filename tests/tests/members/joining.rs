//! Several clusters in one process: what each is served with, and how they come and go.

use super::world::{File, ID, Member, VIP, address, entry, mesh};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::json;
use std::net::SocketAddr;

/// Equal addresses, equal identities, other roots: each cluster's clients reach their own services, and nobody
/// another's port.
#[test]
fn clusters_are_kept_apart_by_their_port() {
    drive(async {
        let (a, b) = (mesh(1, &["app", "pay"]).await, mesh(2, &["desk", "crm"]).await);
        let ip = address();
        let file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let mut member = Member::quick(ip, &file).await;
        member.registered(&["a", "b"]).await;
        assert_eq!(a.istiod.entries(), [entry(ip)]);
        assert_eq!(b.istiod.entries(), [entry(ip)]);
        let (of_a, of_b) = (member.client(21001, &a).await, member.client(21002, &b).await);
        assert_eq!(of_a.get(VIP, "/").await.backend(), "app");
        assert_eq!(of_b.get(VIP, "/").await.backend(), "desk");
        assert_eq!(of_a.get("10.96.0.2:80", "/").await.backend(), "pay");
        assert_eq!(of_b.get("10.96.0.2:80", "/").await.backend(), "crm");
        // Names of services of the other cluster lead nowhere.
        let other = "desk.plain.svc.cluster.local:80";
        assert_ne!(of_a.status(other, "/").await, 200);
        // The other cluster's certificate has the same identity and is worth nothing.
        for (port, stranger) in [(21001, &b), (21002, &a)] {
            let at = SocketAddr::new(ip, port);
            assert!(HboneClient::connect(at, &stranger.cert("client"), ID).await.is_err());
        }
        let page = member.page(15021, "/healthz/ready").await;
        assert_eq!(page.status, 200);
        assert!(
            page.text().contains("a: serving") && page.text().contains("b: serving"),
            "{}",
            page.text()
        );
        // Tenants and metrics have the file's names.
        let load = member.page(15020, "/load").await.json();
        assert_eq!(load["clusters"][0]["name"], "a");
        assert_eq!(load["clusters"][1]["registered"], true);
        let meshes: Vec<_> =
            load["tenants"].as_array().unwrap().iter().map(|row| &row["mesh"]).collect();
        assert!(meshes.contains(&&json!("a")) && meshes.contains(&&json!("b")), "{load:#}");
        for name in ["a", "b"] {
            assert_eq!(member.metric("cairn_pool_registered", &[("mesh", name)]).await, 1.0);
            assert_eq!(member.metric("cairn_xds_connected", &[("mesh", name)]).await, 1.0);
        }
        // Each cluster has pages of its own.
        let dump = member.page(15000, "/mesh/a/config_dump").await.text();
        assert!(dump.contains("pay.plain") && !dump.contains("crm.plain"));
        assert_eq!(member.page(15000, "/mesh/c/config_dump").await.status, 404);
        member.end().await;
    });
}

/// One cluster comes, another changes, one goes: the connections of the rest do not notice.
#[test]
fn clusters_come_and_go_without_touching_the_others() {
    drive(async {
        let (a, b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        let ip = address();
        let one = File::of(ip, &[("a", 21001, &a)]);
        let both = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let mut member = Member::quick(ip, &one).await;
        member.registered(&["a"]).await;
        let client = member.client(21001, &a).await;
        let streams = a.istiod.record().streams.len();
        member.rewrite(&both);
        member.until("b", "joined", |row| row["registered"] == "yes").await;
        let desk = member.client(21002, &b).await;
        assert_eq!(desk.get(VIP, "/").await.backend(), "desk");
        // Another port is another membership.
        let moved = File::of(ip, &[("a", 21001, &a), ("b", 21003, &b)]);
        member.rewrite(&moved);
        eventually_async("b is at its other port", async || {
            HboneClient::connect(SocketAddr::new(ip, 21003), &b.cert("client"), ID).await.is_ok()
        })
        .await;
        member.registered(&["b"]).await;
        // What is no file, and what two clusters cannot share, changes nothing.
        member.rewrite(&File::of(ip, &[("a", 21001, &a), ("b", 21001, &b)]));
        eventually("the broken file is refused", || {
            member.cairn.printed("the last good one stays")
        })
        .await;
        assert_eq!(client.get(VIP, "/").await.backend(), "app");
        member.rewrite(&one);
        eventually("b is left", || b.istiod.entries().is_empty()).await;
        eventually_async("b is forgotten", async || member.cluster("b").await.is_null()).await;
        let port = SocketAddr::new(ip, 21003);
        assert!(HboneClient::connect(port, &b.cert("client"), ID).await.is_err(), "b has no port");
        assert_eq!(client.get(VIP, "/").await.backend(), "app");
        assert_eq!(
            a.istiod.record().streams.len(),
            streams,
            "the streams to a's istiod are those of before"
        );
        assert_eq!(
            member.page(15020, "/stats/prometheus").await.text().matches("mesh=\"b\"").count(),
            0
        );
        member.end().await;
    });
}

/// One istiod that is not there keeps nobody from the others; the body of the probe says what is missing.
#[test]
fn ready_is_who_serves_one_cluster() {
    drive(async {
        let (a, mut b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        b.istiod.stop().await;
        let ip = address();
        let file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let mut member = Member::quick(ip, &file).await;
        member.registered(&["a"]).await;
        eventually_async("ready", async || {
            member.page(15021, "/healthz/ready").await.status == 200
        })
        .await;
        let page = member.page(15021, "/healthz/ready").await.text();
        assert!(page.contains("b: starting, waiting for certificate"), "{page}");
        assert_eq!(
            member.metric("cairn_pool_phase", &[("mesh", "b"), ("phase", "starting")]).await,
            1.0
        );
        b.istiod.start_again().await;
        member.registered(&["b"]).await;
        // Away again: what is known is served, and said to be old.
        let client = member.client(21002, &b).await;
        b.istiod.stop().await;
        member.until("b", "istiod away", |row| row["istiod_connected"] == false).await;
        assert_eq!(client.get(VIP, "/").await.backend(), "desk");
        let page = member.page(15021, "/healthz/ready").await;
        assert_eq!(page.status, 200);
        assert!(page.text().contains("its istiod is away"), "{}", page.text());
        member.end().await;
    });
}

/// The file must be good at the start, and every node have the label by which its policies are found.
#[test]
fn a_member_refuses_to_start_without_what_policies_need() {
    drive(async {
        let a = mesh(1, &[]).await;
        let ip = address();
        let label = "gateway.networking.k8s.io/gateway-name";
        let file = File::of(ip, &[("a", 21001, &a)]).set("a", "labels", json!({ label: "" }));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.yaml");
        std::fs::write(&path, file.text(ip, "/nowhere")).unwrap();
        let args = ["pool", "member", "--config", path.to_str().unwrap()];
        let mut cairn = cairn_test_support::process::Cairn::start(&args);
        assert!(!cairn.wait().await.success());
        let said = cairn.output().join("\n");
        assert!(said.contains(label) && said.contains("clusters[0] (a)"), "{said}");
        assert_eq!(a.istiod.record().streams.len(), 0);
    });
}

/// The first certificate takes the token; after that the certificate is all that is shown.
#[test]
fn after_the_first_certificate_no_token_is_needed() {
    drive(async {
        let mut a = mesh(1, &["app"]).await;
        let ip = address();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        member.registered(&["a"]).await;
        // No API server could judge any token from here on.
        a.istiod.refuse_token("a-token-of-the-pool");
        std::fs::remove_file(a.istiod.token_file()).unwrap();
        a.istiod.end_streams();
        a.istiod.seen("both streams come back", |record| record.streams.len() >= 4).await;
        a.add("late").await;
        let client = member.client(21001, &a).await;
        eventually_async("configuration still comes", async || {
            client.status("10.96.0.2:80", "/").await == 200
        })
        .await;
        member.registered(&["a"]).await;
        assert_eq!(a.istiod.record().streams.last().map(String::as_str), Some(ID));
        member.end().await;
    });
}

/// A root that is replaced in one cluster concerns its port alone.
#[test]
fn a_root_that_changes_concerns_its_own_port() {
    drive(async {
        let (a, b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        a.istiod.validity(Some(std::time::Duration::from_secs(8)));
        let ip = address();
        let file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let mut member = Member::quick(ip, &file).await;
        member.registered(&["a", "b"]).await;
        let desk = member.client(21002, &b).await;
        a.istiod.rotate_root();
        let fresh = a.cert("client");
        eventually_async("a client of the new root comes in", async || {
            HboneClient::connect(SocketAddr::new(ip, 21001), &fresh, ID).await.is_ok()
        })
        .await;
        let stranger = HboneClient::connect(SocketAddr::new(ip, 21002), &fresh, ID).await;
        assert!(stranger.is_err(), "it is nobody in b");
        assert_eq!(desk.get(VIP, "/").await.backend(), "desk");
        assert_eq!(b.istiod.record().signed.len(), 1, "b's certificate is the first one");
        member.end().await;
    });
}

/// Where memory runs short, no cluster gets a new tunnel; the member says why, and stays.
#[test]
fn the_memory_limit_is_respected_in_every_cluster() {
    drive(async {
        let (a, b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        let ip = address();
        let mut file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        // Less than any process has.
        file.memory_limit = Some("1000000".to_owned());
        let mut member = Member::quick(ip, &file).await;
        member.registered(&["a", "b"]).await;
        eventually("it is said", || member.cairn.printed("memory and its limit")).await;
        for (port, mesh) in [(21001, &a), (21002, &b)] {
            assert_eq!(member.client(port, mesh).await.status(VIP, "/").await, 503);
        }
        assert!(member.metric("cairn_tunnels_shed_total", &[]).await >= 2.0);
        assert_eq!(member.metric("cairn_memory_limit_bytes", &[]).await, 1e6);
        member.end().await;
    });
}
