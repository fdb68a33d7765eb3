//! When a member is found by a cluster's ztunnels, and when not.

use super::world::{File, Member, address, entry, mesh};
use cairn_proto::envoy::envoy::config::core::v3::Node;
use cairn_proto::envoy::google::protobuf::value;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually;
use cairn_xds::feed::Kind;
use std::net::TcpListener;

fn text(node: &Node, key: &str) -> Option<String> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        value::Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// Two nodes: who asks has nobody's address, who registers its own; both have the labels, and the second asks for
/// nothing but extensions.
#[test]
fn there_are_two_streams() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let ip = address();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        member.registered(&["a"]).await;
        let record = a.istiod.record();
        let registers = |node: &&Node| text(node, "AUTO_REGISTER_GROUP").is_some();
        assert_eq!(record.nodes.len(), 2);
        let (registering, asking) = (
            record.nodes.iter().position(|node| registers(&node)).unwrap(),
            record.nodes.iter().find(|node| !registers(node)).unwrap(),
        );
        assert_eq!(text(asking, "INSTANCE_IPS").as_deref(), Some("192.0.2.1"));
        let node = &record.nodes[registering];
        assert_eq!(text(node, "INSTANCE_IPS"), Some(ip.to_string()));
        assert_eq!(text(node, "AUTO_REGISTER_GROUP").as_deref(), Some("waypoint-pool"));
        assert_eq!(node.locality.as_ref().unwrap().zone, "z1");
        for node in &record.nodes {
            let labels = &node.metadata.as_ref().unwrap().fields["LABELS"];
            let Some(value::Kind::StructValue(labels)) = &labels.kind else { panic!("{labels:?}") };
            for label in ["waypoint-pool/member", "gateway.networking.k8s.io/gateway-name"] {
                assert!(labels.fields.contains_key(label), "{label}");
            }
        }
        let asked: Vec<_> =
            record.requests.iter().filter(|asked| asked.stream == registering).collect();
        assert!(asked.iter().all(|asked| asked.type_url == Kind::ExtensionConfig.type_url()));
        assert_eq!(asked[0].subscribe, ["*"]);
        assert_eq!(record.violations, Vec::<String>::new());
        member.end().await;
    });
}

/// Without a certificate, without a configuration, without its port: nobody is told of the member.
#[test]
fn it_registers_only_when_it_could_serve() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let ip = address();
        for kind in [Kind::Cluster, Kind::Listener] {
            a.istiod.hold(kind);
        }
        let taken = TcpListener::bind((ip, 21001)).unwrap();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        let waits = |row: &serde_json::Value, what: &str| {
            row["waiting_for"].as_str().is_some_and(|waits| waits.contains(what))
        };
        member.until("a", "waits for listeners", |row| waits(row, "listeners (LDS)")).await;
        assert_eq!(a.istiod.entries(), Vec::<String>::new());
        a.istiod.release(Kind::Cluster);
        a.istiod.release(Kind::Listener);
        let row = member.until("a", "waits for its port", |row| waits(row, "in use")).await;
        assert!(!waits(&row, "listeners (LDS)"), "{row:#}");
        assert_eq!(a.istiod.entries(), Vec::<String>::new());
        assert_eq!(member.page(15021, "/healthz/ready").await.status, 503);
        drop(taken);
        member.registered(&["a"]).await;
        assert_eq!(a.istiod.entries(), [entry(ip)]);
        member.end().await;
    });
}

/// Who deletes the entry has a reason: the member stays away for a while, and serves those who still come.
#[test]
fn an_entry_that_somebody_deletes_comes_back_later() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let ip = address();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        member.registered(&["a"]).await;
        a.istiod.delete_entry("waypoint-pool", "waypoint-pool", ip);
        let row = member.until("a", "taken away", |row| row["registered"] == "taken away").await;
        assert!(row["trouble"].as_str().unwrap().contains("again in 30 s"), "{row:#}");
        assert_eq!(row["phase"], "serving");
        assert_eq!(a.istiod.entries(), Vec::<String>::new());
        let client = member.client(21001, &a).await;
        assert_eq!(client.get(super::world::VIP, "/").await.backend(), "app");
        assert_eq!(member.metric("cairn_pool_taken_away_total", &[("mesh", "a")]).await, 1.0);
        // What comes after 30 s is asserted with the clock of the unit tests; here the end comes first.
        member.end().await;
    });
}

/// istiod goes away and comes back: the entry is there again without anybody's doing.
#[test]
fn a_lost_istiod_finds_the_member_again() {
    drive(async {
        let mut a = mesh(1, &["app"]).await;
        let ip = address();
        let mut member = Member::quick(ip, &File::of(ip, &[("a", 21001, &a)])).await;
        member.registered(&["a"]).await;
        a.istiod.stop().await;
        eventually("the fake forgets who was connected", || a.istiod.entries().is_empty()).await;
        a.istiod.start_again().await;
        eventually("it is registered again", || a.istiod.entries() == [entry(ip)]).await;
        let row = member.until("a", "connected", |row| row["istiod_connected"] == true).await;
        assert_eq!(row["taken_away"], 0, "{row:#}");
        member.end().await;
    });
}
