//! The exchange with istiod: streams that end, answers that cannot be read, what is gone and what stays.

use super::load::Load;
use super::mesh::Mesh;
use cairn_proto::tonic::Status;
use cairn_test_support::istiod::{garbage, shapes};
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async};
use cairn_xds::feed::Kind;

const KINDS: [Kind; 4] = [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload];

/// Recordings of a real istiod.
const THEMES: [&str; 13] = [
    "authorization",
    "destination-rule",
    "egress",
    "extensions",
    "gateway-api",
    "multi-network",
    "plain",
    "proxy-config",
    "shared",
    "telemetry",
    "updates",
    "virtualservice",
    "workload",
];

/// One process takes in all of them, one after the other.
#[test]
fn every_recording_is_accepted() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        for theme in THEMES {
            let before = mesh.istiod.record();
            mesh.istiod.load_capture(&shapes::captures().join(theme));
            mesh.istiod
                .seen(&format!("{theme} is taken"), |record| {
                    KINDS.iter().all(|kind| record.acks(*kind) > before.acks(*kind))
                })
                .await;
            let record = mesh.istiod.record();
            for kind in Kind::ALL {
                assert_eq!(record.nacks(kind), Vec::<String>::new(), "{theme} {kind}");
            }
            assert_eq!(record.violations, Vec::<String>::new(), "{theme}");
        }
        assert_eq!(waypoint.metric("cairn_xds_rejected_total", &[]).await, 0.0);
        assert_eq!(waypoint.metric("cairn_xds_streams_total", &[]).await, 1.0);
        assert_eq!(waypoint.probe().await.status, 200);
    });
}

/// What istiod no longer has when a stream begins is dropped; what an answer does not name later stays.
#[test]
fn a_new_stream_drops_what_is_gone_and_a_push_keeps_what_it_does_not_name() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other", "lost"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        for service in ["app", "other", "lost"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
        // A later answer names one of all: the others stay.
        let acks = |kind| mesh.istiod.record().acks(kind);
        let before = (acks(Kind::Cluster), acks(Kind::Workload));
        let mut changed = shapes::cluster("app");
        changed.connect_timeout = None;
        mesh.istiod.push(Kind::Cluster, vec![shapes::cluster_of(&changed)], &[]);
        mesh.istiod.push(
            Kind::Workload,
            vec![shapes::pod("app-2", "app", [192, 0, 2, 1].into())],
            &[],
        );
        eventually("both are taken", || {
            acks(Kind::Cluster) > before.0 && acks(Kind::Workload) > before.1
        })
        .await;
        for service in ["app", "other", "lost"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
        // A service is deleted while there is no stream.
        mesh.istiod.refuse_streams(Some(Status::unavailable("restarting")));
        mesh.istiod.reset_streams(Status::unavailable("restarting"));
        let vip = mesh.vip("lost");
        mesh.remove("lost");
        let pod = mesh.istiod.record();
        mesh.istiod.push(Kind::Workload, Vec::new(), &["Kubernetes//Pod/plain/lost-1"]);
        assert_eq!(client.get(&vip, "/").await.backend(), "lost");
        mesh.istiod.refuse_streams(None);
        mesh.istiod.seen("a new stream", |record| record.streams.len() > pod.streams.len()).await;
        eventually_async("it is dropped", async || client.status(&vip, "/").await != 200).await;
        let dump = waypoint.admin("/config_dump?include_eds=true").await.text();
        assert!(dump.contains("other.plain") && !dump.contains("lost.plain"));
        for service in ["app", "other"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
        // It said what it had, so that istiod could say what is gone.
        let record = mesh.istiod.record();
        let asked = record.first(record.streams.len() - 1, Kind::Workload).unwrap();
        assert!(
            asked.versions.contains_key("Kubernetes//Pod/plain/lost-1"),
            "{:?}",
            asked.versions
        );
        assert!(asked.versions.values().all(|version| !version.is_empty()));
        assert_eq!(record.violations, Vec::<String>::new());
    });
}

#[test]
fn whatever_ends_a_stream_it_comes_back() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let load = Load::start(&mesh, &waypoint, &["app"]).await;
        let ends: [(&str, &dyn Fn()); 6] = [
            ("end", &|| mesh.istiod.end_streams()),
            ("GOAWAY", &|| mesh.istiod.go_away()),
            ("closed connection", &|| mesh.istiod.close_connections()),
            ("Unavailable", &|| mesh.istiod.reset_streams(Status::unavailable("draining"))),
            ("ResourceExhausted", &|| {
                mesh.istiod.reset_streams(Status::resource_exhausted("too many streams"));
            }),
            ("Internal", &|| mesh.istiod.reset_streams(Status::internal("oh"))),
        ];
        for (number, (what, end)) in ends.into_iter().enumerate() {
            end();
            mesh.istiod
                .seen(&format!("back after {what}"), |record| record.streams.len() == number + 2)
                .await;
        }
        waypoint.says("ResourceExhausted: too many streams").await;
        load.stop().await;
        // Refused at once, too.
        mesh.istiod.refuse_streams(Some(Status::unavailable("not yet")));
        mesh.istiod.end_streams();
        waypoint.says("Unavailable: not yet").await;
        mesh.istiod.refuse_streams(None);
        mesh.istiod.seen("back", |record| record.streams.len() == 8).await;
        let record = mesh.istiod.record();
        for kind in KINDS {
            assert_eq!(record.nacks(kind), Vec::<String>::new());
        }
    });
}

#[test]
fn bytes_that_cannot_be_read_are_refused_and_the_last_good_ones_serve() {
    drive(async {
        let mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let app = shapes::name("app");
        for (kind, name) in [
            (Kind::Listener, "main_internal"),
            (Kind::Listener, "connect_terminate"),
            (Kind::Cluster, app.as_str()),
            (Kind::Endpoints, app.as_str()),
            (Kind::Workload, "Kubernetes//Pod/plain/app-1"),
        ] {
            let before = mesh.istiod.record().nacks(kind).len();
            mesh.istiod.push_once(kind, vec![garbage(kind, name)]);
            mesh.istiod.seen("it is refused", |record| record.nacks(kind).len() > before).await;
            let said = mesh.istiod.record().nacks(kind).pop().unwrap();
            assert!(said.contains(name), "{kind}: {said}");
            assert_eq!(mesh.get(&client, "app", "/").await.backend(), "app", "{kind} {name}");
        }
        assert_eq!(waypoint.metric("cairn_xds_rejected_total", &[]).await, 5.0);
        waypoint.says("refused what istiod sent, the last good one stays").await;
        // What stands beside it gets in.
        let good = shapes::cluster_of(&shapes::cluster("fresh"));
        mesh.istiod.push_once(Kind::Cluster, vec![garbage(Kind::Cluster, &app), good]);
        let fresh = shapes::name("fresh");
        mesh.istiod
            .seen("endpoints of the good one are wanted", |record| {
                record.subscribed(0, Kind::Endpoints).contains(&fresh)
            })
            .await;
        // And a good one comes through again.
        let before = mesh.istiod.record().acks(Kind::Listener);
        mesh.push_listener();
        mesh.istiod.seen("taken", |record| record.acks(Kind::Listener) > before).await;
        for service in ["app", "other"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
    });
}

#[test]
fn what_is_removed_is_gone_and_what_comes_again_serves() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let (app, other) = (shapes::name("app"), mesh.vip("other"));
        mesh.remove("other");
        eventually_async("gone", async || client.status(&other, "/").await != 200).await;
        mesh.istiod
            .seen("its endpoints are wanted no longer", |record| {
                record.subscribed(0, Kind::Endpoints) == [app.clone()].into()
            })
            .await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        let clusters = waypoint.admin("/clusters").await.text();
        assert!(clusters.contains("app.plain") && !clusters.contains("other.plain"));
        // All endpoints of a service go and come.
        mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("app", &[])], &[]);
        mesh.answers(&client, "app", 503).await;
        assert!(mesh.get(&client, "app", "/").await.text().contains("no healthy upstream"));
        let at = (cairn_test_support::mesh::pod_ip(0), 8080).into();
        mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("app", &[("app-1", at)])], &[]);
        mesh.answers(&client, "app", 200).await;
        mesh.add("third").await;
        mesh.answers(&client, "third", 200).await;
    });
}

/// Clusters go before the routes that lead there: istiod sends them in that order. No request meets a route to nowhere.
#[test]
fn clusters_that_go_wait_for_their_routes() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "next"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let load = Load::start(&mesh, &waypoint, &["app"]).await;
        load.more(20).await;
        let taken = mesh.istiod.record().acks(Kind::Cluster);
        mesh.istiod.push(Kind::Cluster, Vec::new(), &[&shapes::name("app")]);
        mesh.istiod.seen("the removal is taken", |record| record.acks(Kind::Cluster) > taken).await;
        // Longer than a snapshot waits for silence.
        load.more(5).await;
        mesh.edit("app", |manager| shapes::route(manager).action = Some(shapes::to("next")));
        eventually_async("the routes are followed", async || {
            mesh.get(&client, "app", "/").await.backend() == "next"
        })
        .await;
        load.stop().await;
    });
}

/// Routes that lead to a new cluster wait for its endpoints: no request meets a cluster without any.
#[test]
fn new_clusters_wait_for_their_endpoints() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let load = Load::start(&mesh, &waypoint, &["app"]).await;
        mesh.istiod.hold(Kind::Endpoints);
        mesh.add("next").await;
        mesh.edit("app", |manager| shapes::route(manager).action = Some(shapes::to("next")));
        let listeners = mesh.istiod.record().acks(Kind::Listener);
        mesh.istiod
            .seen("the routes are taken", |record| record.acks(Kind::Listener) >= listeners)
            .await;
        load.more(20).await;
        mesh.istiod.release(Kind::Endpoints);
        eventually_async("the routes are followed", async || {
            mesh.get(&client, "app", "/").await.backend() == "next"
        })
        .await;
        load.stop().await;
    });
}
