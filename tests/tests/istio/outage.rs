//! Istiod is away, and nobody notices.

use super::load::Load;
use super::mesh::{Mesh, waypoint_id};
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually_async;
use cairn_xds::feed::Kind;

#[test]
fn without_istiod_nothing_fails() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let load = Load::start(&mesh, &waypoint, &["app", "other"]).await;
        mesh.istiod.stop().await;
        load.more(200).await;
        eventually_async("it tries again and again", async || {
            waypoint.metric("cairn_xds_reconnects_total", &[]).await >= 3.0
        })
        .await;
        // Meanwhile the token is another one, the old one is void, and a pod has moved.
        mesh.istiod.accept_token("the-next-token", &waypoint_id());
        mesh.istiod.refuse_token(cairn_test_support::mesh::TOKEN);
        mesh.istiod.write_token("the-next-token");
        mesh.istiod.accept_certificates(false);
        let pods = [("app-1", (cairn_test_support::mesh::pod_ip(0), 8081).into())];
        mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("app", &pods)], &[]);
        mesh.istiod.start_again().await;
        mesh.istiod.seen("back", |record| record.streams.len() == 2).await;
        assert_eq!(mesh.istiod.record().tokens.last().map(String::as_str), Some("the-next-token"));
        let authority = format!("{}:8081", cairn_test_support::mesh::pod_ip(0));
        eventually_async("what changed is served", async || {
            let connects = mesh.service("app").ztunnel.connects();
            connects.last().is_some_and(|last| last.authority == authority)
        })
        .await;
        load.more(200).await;
        assert!(load.stop().await >= 400);
        assert_eq!(waypoint.metric("cairn_xds_streams_total", &[]).await, 2.0);
    });
}

/// Twice in a row, with pushes in between that must not be lost.
#[test]
fn pushes_while_it_was_away_arrive_when_it_is_back() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        for service in ["second", "third"] {
            mesh.istiod.stop().await;
            mesh.add(service).await;
            assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
            mesh.istiod.start_again().await;
            mesh.answers(&client, service, 200).await;
        }
        mesh.remove("second");
        assert_eq!(mesh.get(&client, "third", "/").await.backend(), "third");
    });
}
