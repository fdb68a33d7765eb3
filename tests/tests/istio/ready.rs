//! Ready when there is everything to serve with, and what is missing until then.

use super::mesh::Mesh;
use cairn_test_support::istiod::CaFault;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually_async;
use cairn_xds::feed::Kind;
use std::net::TcpListener;

/// What the probe calls the first answers, in the order in which this test lets them come.
const ANSWERS: [(Kind, &str); 4] = [
    (Kind::Cluster, "clusters (CDS)"),
    (Kind::Endpoints, "endpoints (EDS)"),
    (Kind::Workload, "workloads (Workload)"),
    (Kind::Listener, "listeners (LDS)"),
];

#[test]
fn one_thing_after_the_other() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.ca_fault(CaFault::Unavailable);
        for (kind, _) in ANSWERS {
            mesh.istiod.hold(kind);
        }
        let mut waypoint = mesh.pod().start();
        waypoint.waits_for("certificate (no certificate yet").await;
        waypoint.waits_for("the CA is away").await;
        mesh.istiod.ca_fault(CaFault::None);
        let unanswered = "(istiod.istio-system.svc:15012 has not answered yet)";
        for (position, (kind, name)) in ANSWERS.into_iter().enumerate() {
            if let Some((_, before)) = position.checked_sub(1).map(|before| ANSWERS[before]) {
                waypoint.waits_no_more_for(before).await;
            }
            waypoint.waits_for(&format!("{name} {unanswered}")).await;
            let body = waypoint.probe().await.text();
            assert!(!body.contains("certificate"), "{body}");
            for (at, (_, other)) in ANSWERS.into_iter().enumerate() {
                assert_eq!(body.contains(other), at >= position, "{other}: {body}");
            }
            for later in ["listener connect_terminate (starting)", "port 15008 (starting)"] {
                assert!(body.contains(later), "{later} in {body}");
            }
            mesh.istiod.release(kind);
        }
        waypoint.ready().await;
        assert_eq!(waypoint.probe().await.text(), "ready\n");
        assert_eq!(waypoint.metric("cairn_ready", &[]).await, 1.0);
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.backend(), "app");
        let record = mesh.istiod.record();
        assert_eq!(record.violations, Vec::<String>::new());
        assert_eq!(
            record.nodes[0].id,
            "waypoint~10.244.1.10~waypoint-1.plain~plain.svc.cluster.local"
        );
    });
}

/// A real istiod took 20 s for one LDS: all others are in long before, and nothing is served without it.
#[test]
fn a_slow_lds_is_waited_for() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.hold(Kind::Listener);
        let mut waypoint = mesh.pod().start();
        waypoint
            .waits_for("listeners (LDS) (istiod.istio-system.svc:15012 has not answered yet)")
            .await;
        mesh.istiod
            .seen("the others are taken", |record| {
                [Kind::Cluster, Kind::Endpoints, Kind::Workload]
                    .iter()
                    .all(|kind| record.acks(*kind) > 0)
            })
            .await;
        // Pushes of other kinds go on meanwhile, and are taken.
        for number in 0..5 {
            let before = mesh.istiod.record().acks(Kind::Workload);
            let pod = cairn_test_support::istiod::shapes::pod(
                &format!("other-{number}"),
                "other",
                [192, 0, 2, number].into(),
            );
            mesh.istiod.push(Kind::Workload, vec![pod], &[]);
            mesh.istiod
                .seen("the workload is taken", |record| record.acks(Kind::Workload) > before)
                .await;
        }
        let probe = waypoint.probe().await;
        assert_eq!(probe.status, 503);
        assert!(probe.text().contains("listeners (LDS)"), "{}", probe.text());
        assert!(!waypoint.cairn.printed("accepting HBONE"));
        mesh.istiod.release(Kind::Listener);
        waypoint.ready().await;
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        assert_eq!(mesh.istiod.record().streams.len(), 1);
    });
}

#[test]
fn an_answer_beyond_4_mib_is_taken() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        mesh.edit("app", |manager| manager.stat_prefix = "x".repeat(5 << 20));
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        assert_eq!(mesh.istiod.record().nacks(Kind::Listener), Vec::<String>::new());
    });
}

#[test]
fn without_the_listener_for_tunnels_it_waits() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.set(Kind::Listener, vec![mesh.listener()]);
        let mut waypoint = mesh.pod().start();
        waypoint.waits_for("listener connect_terminate (istiod's listeners do not have it").await;
        let body = waypoint.probe().await.text();
        assert!(!body.contains("(LDS)") && body.contains("port 15008"), "{body}");
        let terminate = cairn_test_support::istiod::shapes::terminate();
        let terminate = cairn_test_support::istiod::shapes::listener_of(&terminate);
        mesh.istiod.push(Kind::Listener, vec![terminate], &[]);
        waypoint.ready().await;
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}

#[test]
fn a_port_that_is_taken_is_waited_for() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pod = mesh.pod();
        let ports = pod.vars["CAIRN_PORTS"].replace("15008=127.0.0.1:0", "");
        pod.set("CAIRN_PORTS", &format!("{ports},15008={}", taken.local_addr().unwrap()));
        let mut waypoint = pod.start();
        waypoint.waits_for("waiting for port 15008 (").await;
        assert!(waypoint.probe().await.text().contains("in use"));
        drop(taken);
        waypoint.ready().await;
    });
}

#[test]
fn once_ready_it_stays_ready_without_istiod() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        mesh.istiod.stop().await;
        eventually_async("it has noticed", async || {
            waypoint.metric("cairn_xds_connected", &[]).await == 0.0
                && waypoint.metric("cairn_xds_reconnects_total", &[]).await >= 3.0
        })
        .await;
        for door in ["health", "metrics"] {
            assert_eq!(waypoint.page(door, "GET", "/healthz/ready").await.status, 200, "{door}");
        }
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}

/// Clients, services and pods with IPv6, and next to them those with IPv4.
#[test]
fn both_families_are_served() {
    drive(async {
        if TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6");
            return;
        }
        let mut mesh = Mesh::with(&["four"]).await;
        let (vip, loopback) = ("fd00::1:5".parse().unwrap(), "::1".parse().unwrap());
        mesh.add_at("six", vip, loopback).await;
        let mut pod = mesh.pod();
        pod.set("INSTANCE_IP", "fd00::17");
        pod.listen_on("[::1]");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        assert!(waypoint.hbone().await.is_ipv6());
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.vip("six"), "[fd00::1:5]:80");
        for service in ["six", "four"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
        let connects = mesh.service("six").ztunnel.connects();
        assert_eq!(connects[0].authority, "[::1]:8080");
        let node = &mesh.istiod.record().nodes[0];
        assert_eq!(node.id, "waypoint~fd00::17~waypoint-1.plain~plain.svc.cluster.local");
    });
}
