//! Two meshes in one process: same addresses, nothing shared.

use cairn_test_support::backend::Backend;
use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::http1::Http1;
use cairn_test_support::metrics::sum;
use cairn_test_support::pki::{Ca, CertDir, CertSpec};
use cairn_test_support::stage::{POD, VIP};
use cairn_test_support::wait::{drive, eventually};
use cairn_test_support::waypoint::{Process, Waypoint};
use std::time::Duration;

struct Side {
    ca: Ca,
    domain: &'static str,
    app: Backend,
    pod: HboneBackend,
    waypoint: Waypoint,
}

impl Side {
    async fn start(process: &Process, domain: &'static str) -> Self {
        let ca = Ca::new();
        let id = |account: &str| format!("spiffe://{domain}/ns/shop/sa/{account}");
        let app = Backend::new(domain);
        let pod = HboneBackend::start(&ca.issue(&CertSpec::uri(&id("app"))), &app).await;
        let spec = MeshSpec::named(&domain.replace('.', "-"))
            .cluster("app", vec![hbone(&pod, POD, &id("app"))])
            .http(VIP, all_to("app"));
        let cert = ca.issue(&CertSpec::uri(&id("waypoint")));
        let waypoint = process.add(CertDir::plain(&cert), &spec).await;
        Side { ca, domain, app, pod, waypoint }
    }

    fn client(&self) -> cairn_test_support::pki::Cert {
        self.ca.issue(&CertSpec::uri(&format!("spiffe://{}/ns/web/sa/client", self.domain)))
    }

    async fn ask(&self) -> String {
        let client = self.waypoint.connect(&self.client()).await;
        let mut http = Http1::new(client.open(VIP).await.unwrap());
        http.get("/").await.unwrap().backend().to_owned()
    }
}

#[test]
fn two_meshes_keep_apart() {
    drive(async {
        let process = Process::start(2);
        let one = Side::start(&process, "one.mesh").await;
        let two = Side::start(&process, "two.mesh").await;
        // The same VIP, the same pod address.
        for _ in 0..3 {
            assert_eq!(one.ask().await, "one.mesh");
            assert_eq!(two.ask().await, "two.mesh");
        }
        assert_eq!((one.app.requests(), two.app.requests()), (3, 3));
        // Nobody of the other mesh gets in, whatever it trusts.
        let stranger = two.client().trusting(&one.ca);
        assert!(one.waypoint.try_connect(&stranger).await.is_err());
        let other_domain = one.ca.issue(&CertSpec::uri("spiffe://two.mesh/ns/web/sa/client"));
        assert!(one.waypoint.try_connect(&other_domain).await.is_err());
        // Each shows its own identity to its own pods.
        assert!(one.pod.connects()[0].client.starts_with("spiffe://one.mesh/"));
        assert!(two.pod.connects()[0].client.starts_with("spiffe://two.mesh/"));
        // Counters are apart.
        assert_eq!(one.waypoint.counter("cairn_requests_total", &[]), 3);
        assert_eq!(two.waypoint.counter("cairn_requests_total", &[]), 3);
        let samples = process.metrics();
        assert_eq!(sum(&samples, "istio_requests_total", &[]), 6.0);
        // A configuration is one mesh's.
        one.waypoint.apply(&MeshSpec::named("one-mesh"));
        let client = one.waypoint.connect(&one.client()).await;
        assert_eq!(client.open(VIP).await.unwrap_err().status(), 404);
        assert_eq!(two.ask().await, "two.mesh");
        // So is a drain.
        assert_eq!(one.waypoint.drain(Duration::from_secs(10)).await, 0);
        eventually("its connections end", || client.is_closed()).await;
        assert!(one.waypoint.try_connect(&one.client()).await.is_err());
        assert_eq!(two.ask().await, "two.mesh");
    });
}

#[test]
fn the_same_outer_address_is_not_shared_between_meshes() {
    drive(async {
        let process = Process::start(1);
        let one = Side::start(&process, "one.mesh").await;
        let two = Side::start(&process, "two.mesh").await;
        assert_eq!(one.ask().await, "one.mesh");
        // The second mesh claims the first one's pod: it has no identity that would be let in.
        let theft = MeshSpec::named("two-mesh")
            .cluster("app", vec![hbone(&one.pod, POD, "spiffe://one.mesh/ns/shop/sa/app")])
            .http(VIP, all_to("app"));
        two.waypoint.apply(&theft);
        let client = two.waypoint.connect(&two.client()).await;
        let mut http = Http1::new(client.open(VIP).await.unwrap());
        assert_eq!(http.get("/").await.unwrap().status, 503);
        assert_eq!((one.app.requests(), two.app.requests()), (1, 0));
    });
}
