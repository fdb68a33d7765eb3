//! Who is behind an address: exactly the service account of the workload there, or nobody.

use super::mesh::Mesh;
use cairn_test_support::istiod::shapes;
use cairn_test_support::mesh::pod_ip;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually;
use cairn_xds::feed::Kind;

/// The workload of the first service's pod.
const POD: &str = "Kubernetes//Pod/plain/app-1";

#[test]
fn another_account_of_the_same_mesh_gets_no_request() {
    drive(async {
        let mesh = Mesh::with(&["app", "other"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let service = mesh.service("app");
        service.ztunnel.present(mesh.cert("impostor").hbone_server());
        let response = mesh.get(&client, "app", "/").await;
        assert_eq!(response.status, 503);
        assert_eq!(service.app.requests(), 0);
        assert_eq!(service.ztunnel.connects().len(), 0);
        assert!(!service.ztunnel.tls_failures().is_empty());
        assert_eq!(mesh.get(&client, "other", "/").await.backend(), "other");
        // By the workload's account it is the right one, whatever the service is called.
        let impostor = shapes::pod("app-1", "impostor", pod_ip(0));
        mesh.istiod.push(Kind::Workload, vec![impostor], &[]);
        mesh.answers(&client, "app", 200).await;
        assert_eq!(service.ztunnel.connects()[0].client, super::mesh::waypoint_id());
    });
}

#[test]
fn a_workload_that_is_missing_is_asked_for_and_waited_for() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        // Istiod knows it, and does not send it among all.
        let missing = shapes::pod("app-1", "app", pod_ip(0));
        mesh.istiod.push(Kind::Workload, Vec::new(), &[POD]);
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let response = mesh.get(&client, "app", "/").await;
        assert_eq!(response.status, 503);
        assert_eq!(mesh.service("app").ztunnel.connections(), 0);
        let alias = format!("/{}", pod_ip(0));
        mesh.istiod
            .seen("it is asked for by its address", |record| {
                record.requests.iter().any(|asked| asked.subscribe.contains(&alias))
            })
            .await;
        // It comes while a request waits, or before the next.
        mesh.istiod.push(Kind::Workload, vec![missing], &[]);
        mesh.answers(&client, "app", 200).await;
        let record = mesh.istiod.record();
        assert_eq!(record.violations, Vec::<String>::new());
        assert_eq!(record.streams.len(), 1);
    });
}

/// The answer to the question is enough, and a request that comes meanwhile waits for it.
#[test]
fn the_answer_to_the_question_serves() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let alias = format!("/{}", pod_ip(0));
        mesh.istiod.remove_once(Kind::Workload, &[POD]);
        mesh.istiod
            .seen("it is asked for by its address", |record| {
                record.requests.iter().any(|asked| asked.subscribe.contains(&alias))
            })
            .await;
        assert_eq!(mesh.get(&client, "app", "/").await.backend(), "app");
    });
}

#[test]
fn workloads_can_be_asked_for_one_by_one() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = mesh.pod();
        pod.set("CAIRN_WORKLOADS", "on-demand");
        for number in 1..50 {
            let stranger =
                shapes::pod(&format!("stranger-{number}"), "x", [192, 0, 2, number].into());
            mesh.istiod.push(Kind::Workload, vec![stranger], &[]);
        }
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let client = mesh.client(&waypoint).await;
        mesh.answers(&client, "app", 200).await;
        assert_eq!(
            waypoint.metric("cairn_config_parsed_total", &[("what", "workload")]).await,
            1.0
        );
    });
}

#[test]
fn a_setting_allows_the_trust_domain() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.push(Kind::Workload, Vec::new(), &[POD]);
        let mut pod = mesh.pod();
        pod.set("CAIRN_ENDPOINT_IDENTITY", "trust-domain");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        waypoint.says("any workload of the mesh may end a tunnel").await;
        let client = mesh.client(&waypoint).await;
        let service = mesh.service("app");
        service.ztunnel.present(mesh.cert("anybody").hbone_server());
        let response = mesh.get(&client, "app", "/").await;
        assert_eq!(response.backend(), "app", "{}", response.text());
        // Of the trust domain, and of no other.
        let (chain, key) = mesh.istiod.issue("spiffe://elsewhere/ns/plain/sa/app");
        let stranger =
            cairn_test_support::pki::Cert::from_pem(&chain, &key, &mesh.istiod.roots_pem());
        service.ztunnel.present(stranger.hbone_server());
        service.ztunnel.drop_connections();
        eventually("its connections are gone", || service.ztunnel.open_connections() == 0).await;
        let seen = service.app.requests();
        mesh.answers(&client, "app", 503).await;
        assert_eq!(service.app.requests(), seen);
    });
}
