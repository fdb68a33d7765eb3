//! Many pushes at once, under load.

use super::load::Load;
use super::mesh::Mesh;
use cairn_test_support::istiod::shapes;
use cairn_test_support::mesh::pod_ip;
use cairn_test_support::process::drive;
use cairn_xds::feed::Kind;

/// Pushes of one half, alternately endpoints and routes.
const PUSHES: u32 = 100;

#[test]
fn a_storm_of_pushes_fails_nothing_and_leaves_nothing_behind() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "other", "third"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let load = Load::start(&mesh, &waypoint, &["app", "other"]).await;
        let mut resident = Vec::new();
        for half in 0..2 {
            for number in half * PUSHES..(half + 1) * PUSHES {
                if number % 2 == 0 {
                    let port = 8080 + u16::try_from(number % 200).unwrap();
                    let pods = [("app-1", (pod_ip(0), port).into())];
                    mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("app", &pods)], &[]);
                } else {
                    mesh.edit("other", |manager| {
                        let route = shapes::route(manager);
                        route.name = format!("route-{number}");
                    });
                }
                load.more(1).await;
            }
            let sent = usize::try_from((half + 1) * PUSHES).unwrap();
            mesh.istiod
                .seen("all are taken", |record| {
                    record.acks(Kind::Endpoints) + record.acks(Kind::Listener) >= sent
                })
                .await;
            load.more(50).await;
            resident.push(waypoint.cairn.resident_kib());
        }
        assert!(load.stop().await >= u64::from(2 * PUSHES));
        // The last of each is served.
        let last = 2 * PUSHES - 1;
        cairn_test_support::wait::eventually_async("the last route", async || {
            waypoint.admin("/config_dump").await.text().contains(&format!("route-{last}"))
        })
        .await;
        let record = mesh.istiod.record();
        assert_eq!(record.nacks(Kind::Listener), Vec::<String>::new());
        assert_eq!(record.violations, Vec::<String>::new());
        assert_eq!(record.streams.len(), 1);
        // Each push of routes brought one chain that was new; all others were known.
        let chains = |how: &'static str| {
            let waypoint = &waypoint;
            async move { waypoint.metric(how, &[("what", "chain")]).await }
        };
        let parsed = chains("cairn_config_parsed_total").await;
        let reused = chains("cairn_config_reused_total").await;
        assert_eq!(parsed, f64::from(PUSHES) + 3.0, "{reused} reused");
        assert_eq!(reused, f64::from(2 * PUSHES), "{parsed} parsed");
        let (first, second) = (resident[0], resident[1]);
        assert!(second * 2 <= first * 3 + 8 * 1024, "{first} KiB, then {second} KiB");
    });
}
