//! The end: whatever was begun is finished, and nothing more is taken than there is memory for.

use super::load::Load;
use super::mesh::{Mesh, waypoint_id};
use cairn_test_support::hbone_client::{HboneClient, OpenFailure};
use cairn_test_support::http1::Http1;
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async, within};

#[test]
fn sigterm_under_load_fails_nothing() {
    drive(async {
        let mesh = Mesh::with(&["app", "other"]).await;
        let mut pod = mesh.pod();
        pod.set("MINIMUM_DRAIN_DURATION", "500ms");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let load = Load::start(&mesh, &waypoint, &["app", "other"]).await;
        load.more(100).await;
        load.expect_end();
        waypoint.cairn.terminate();
        waypoint.waits_for("draining").await;
        // New tunnels and connections are welcome for a while: not everybody has heard yet.
        load.more(20).await;
        assert!(waypoint.cairn.wait().await.success());
        assert!(load.stop().await >= 120);
        assert!(waypoint.cairn.printed("\"message\":\"drained\""));
        assert!(!waypoint.cairn.printed("had to be cut"));
    });
}

#[test]
fn it_waits_for_the_last_connection_when_told_so() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = mesh.pod();
        pod.set("MINIMUM_DRAIN_DURATION", "0s");
        pod.set("TERMINATION_DRAIN_DURATION_SECONDS", "0");
        pod.set("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let (client, cert) = (mesh.client(&waypoint).await, mesh.cert("client"));
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let held = tokio::spawn(async move { Http1::new(tunnel).get("/hold?gate=g").await });
        eventually("the request is held", || mesh.service("app").app.waiting() == 1).await;
        waypoint.cairn.terminate();
        waypoint.says("\"message\":\"draining\"").await;
        eventually_async("no new connections", async || {
            let address = waypoint.cairn.address("accepting HBONE");
            HboneClient::connect(address, &cert, &waypoint_id()).await.is_err()
        })
        .await;
        assert!(waypoint.cairn.is_running());
        mesh.service("app").app.release("g");
        assert_eq!(within("the held request", held).await.unwrap().unwrap().status, 200);
        assert!(waypoint.cairn.wait().await.success());
    });
}

#[test]
fn what_does_not_end_is_cut_at_the_limit() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = mesh.pod();
        pod.set("TERMINATION_DRAIN_DURATION_SECONDS", "1");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let client = mesh.client(&waypoint).await;
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let held = tokio::spawn(async move { Http1::new(tunnel).get("/hold?gate=g").await });
        eventually("the request is held", || mesh.service("app").app.waiting() == 1).await;
        waypoint.cairn.terminate();
        assert!(waypoint.cairn.wait().await.success());
        assert!(within("the held request", held).await.unwrap().is_err());
        assert!(waypoint.cairn.printed("some had to be cut at the limit"));
    });
}

/// A limit that is below what the process needs anyway: no tunnel is let in, and it is said.
#[test]
fn beyond_the_memory_limit_new_tunnels_are_refused() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = mesh.pod();
        pod.set("GOMEMLIMIT", "1000000");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        waypoint.says("new tunnels and the memory limit").await;
        let client = mesh.client(&waypoint).await;
        let refused = within("CONNECT", client.hbone.open(&mesh.vip("app"))).await;
        assert!(matches!(refused, Err(OpenFailure::Status(status, _)) if status == 503), "refused");
        assert_eq!(waypoint.metric("cairn_memory_limit_bytes", &[]).await, 1_000_000.0);
        // It is alive, and says so: another one does not help by ending it.
        assert_eq!(waypoint.probe().await.status, 200);
        pod.set("CAIRN_MEMORY_PERCENT", "100");
        let mut without = pod.start();
        without.ready().await;
        let client = mesh.client(&without).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}
