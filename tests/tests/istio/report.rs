//! What a waypoint says of its load, from its start on.

use super::mesh::Mesh;
use super::pod::Waypoint;
use cairn_autoscale::LoadReport;
use cairn_test_support::istiod::CaFault;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually_async;

async fn load(waypoint: &Waypoint) -> LoadReport {
    let page = waypoint.page("metrics", "GET", "/load").await;
    assert_eq!(page.status, 200);
    LoadReport::parse(page.text().as_bytes()).unwrap()
}

#[test]
fn it_speaks_before_it_is_ready_and_says_how_the_start_went() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.ca_fault(CaFault::Unavailable);
        let mut pod = mesh.pod();
        pod.set("CAIRN_BANDWIDTH", "100Mbit");
        pod.set("CAIRN_CAPACITY", "in-flight=70,tenants=0");
        let labels = pod.path("etc/istio/pod/labels");
        let with_zone = std::fs::read_to_string(&labels).unwrap()
            + "topology.kubernetes.io/region=\"north\"\ntopology.kubernetes.io/zone=\"north-1\"\n";
        std::fs::write(&labels, with_zone).unwrap();
        let mut waypoint = pod.start();
        waypoint.waits_for("the CA is away").await;
        let early = load(&waypoint).await;
        assert!(!early.ready && !early.draining && early.cold_start.is_none());
        assert!(early.config_answer_age_seconds.is_empty());
        assert_eq!((early.capacity.in_flight, early.capacity.bytes_per_second), (70.0, 12.5e6));
        assert_eq!((early.zone.as_str(), early.locality.as_str()), ("north-1", "north/north-1/"));
        assert!(early.instance.starts_with("waypoint-1.plain-"), "{}", early.instance);

        mesh.istiod.ca_fault(CaFault::None);
        waypoint.ready().await;
        let ready = load(&waypoint).await;
        assert!(ready.ready && ready.instance == early.instance);
        let start = ready.cold_start.unwrap();
        // Until the report before there was no certificate.
        assert!(start.certificate_milliseconds >= early.uptime_seconds * 1000.0);
        assert!(start.config_milliseconds >= start.certificate_milliseconds);
        assert!(start.ready_milliseconds >= start.config_milliseconds);
        assert!(ready.uptime_seconds * 1000.0 >= start.ready_milliseconds);
        let kinds: Vec<&str> = ready.config_answer_age_seconds.keys().map(String::as_str).collect();
        for kind in ["cds", "eds", "lds", "wds"] {
            assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
        }

        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.backend(), "app");
        eventually_async("it is counted, in the row for all", async || {
            let report = load(&waypoint).await;
            let rows: Vec<_> = report.tenants.iter().map(|row| row.namespace.as_str()).collect();
            report.requests_total == 1 && rows == ["*"]
        })
        .await;
        waypoint.cairn.terminate();
        eventually_async("it drains", async || load(&waypoint).await.draining).await;
    });
}
