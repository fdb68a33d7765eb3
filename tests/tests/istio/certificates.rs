//! The certificate: where it comes from, what is refused, how it is renewed and replaced.

use super::load::Load;
use super::mesh::{Client, Mesh, waypoint_id};
use super::pod::Waypoint;
use cairn_proto::tonic::Status;
use cairn_test_support::hbone_client::{ConnectFailure, HboneClient};
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::CaFault;
use cairn_test_support::mesh::TOKEN;
use cairn_test_support::pki;
use cairn_test_support::process::drive;
use cairn_test_support::wait::{eventually, eventually_async, within};
use futures::future::join_all;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Where key and chain are kept in the pod.
const KEPT: &str = "etc/istio/proxy/cairn-identity.pem";
/// NIST P-256 (RFC 5480).
const P256: &str = "1.2.840.10045.3.1.7";

/// Serial number of the certificate that a new connection sees.
async fn served(mesh: &Mesh, waypoint: &Waypoint) -> String {
    pki::serial(&mesh.client(waypoint).await.hbone.server_cert)
}

#[test]
fn the_first_one_is_asked_for_with_the_token() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let record = mesh.istiod.record();
        let signed = &record.signed[0];
        assert_eq!(signed.identity, waypoint_id());
        assert_eq!((signed.asked_seconds, signed.by_certificate), (24 * 3600, false));
        assert_eq!(record.tokens[0], TOKEN);
        assert!(record.cluster_ids.iter().all(|id| id == "Kubernetes"), "{:?}", record.cluster_ids);
        // The stream shows the certificate.
        assert_eq!(record.certificates, [waypoint_id()]);
        let client = mesh.client(&waypoint).await;
        assert_eq!(pki::serial(&client.hbone.server_cert), signed.serial);
        assert_eq!(pki::curve(&client.hbone.server_cert), P256);
        assert_eq!(waypoint.metric("cairn_ca_signed_total", &[]).await, 1.0);
    });
}

#[test]
fn several_intermediates_and_several_roots() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let old = mesh.cert("old-client");
        mesh.istiod.rotate_root();
        mesh.istiod.intermediates(2);
        let old = old.trusting_roots(&mesh.istiod.roots_pem());
        let service = mesh.service("app");
        service.ztunnel.present(mesh.cert("app").hbone_server());
        let (_pod, waypoint) = mesh.waypoint().await;
        let certs: serde_json::Value = waypoint.admin("/certs").await.json();
        let one = &certs["certificates"];
        assert_eq!(
            one.as_array()
                .unwrap()
                .iter()
                .map(|of| of["ca_cert"].as_array().unwrap().len())
                .sum::<usize>(),
            2,
            "{certs:#}"
        );
        // Clients of both roots come in, the newer one with intermediates of its own.
        for cert in [old, mesh.cert("client")] {
            let client = Client::connect(waypoint.hbone().await, &cert).await;
            assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        }
    });
}

#[test]
fn a_bad_answer_is_never_used() {
    drive(async {
        let cases = [
            (
                CaFault::WrongIdentity("spiffe://cluster.local/ns/plain/sa/other".to_owned()),
                "sa/other",
            ),
            (CaFault::WrongKey, "key"),
            (CaFault::WrongRoot, "root"),
            (CaFault::Expired, "the certificate ended at"),
            (CaFault::NoRoot, "root"),
            (CaFault::Garbage, "there is no certificate in it"),
            (CaFault::Refused, "PermissionDenied"),
        ];
        join_all(cases.map(async |(fault, reason)| {
            let mesh = Mesh::with(&["app"]).await;
            mesh.istiod.ca_fault(fault.clone());
            let waypoint = mesh.pod().start();
            waypoint.waits_for("certificate (no certificate yet").await;
            waypoint.waits_for(reason).await;
            let probe = waypoint.probe().await;
            assert!(
                probe.status == 503 && probe.text().contains("certificate ("),
                "{fault:?}: {}",
                probe.text()
            );
            assert_eq!(mesh.istiod.record().streams, Vec::<String>::new(), "{fault:?}");
            assert!(!waypoint.cairn.printed("accepting HBONE"), "{fault:?}");
        }))
        .await;
    });
}

#[test]
fn renewal_cuts_nothing() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.validity(Some(Duration::from_secs(4)));
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let first = pki::serial(&client.hbone.server_cert);
        let tunnel = client.hbone.open(&mesh.vip("app")).await.unwrap();
        let mut http = Http1::new(tunnel);
        let held = tokio::spawn(async move { http.get("/hold?gate=g").await });
        eventually("the request is held", || mesh.service("app").app.waiting() == 1).await;
        mesh.istiod.seen("renewed twice", |record| record.signed.len() >= 3).await;
        let signed = mesh.istiod.record().signed;
        assert!(signed[1..].iter().all(|one| one.by_certificate), "{signed:?}");
        eventually_async("another certificate is shown", async || {
            served(&mesh, &waypoint).await != first
        })
        .await;
        mesh.service("app").app.release("g");
        assert_eq!(within("the held request", held).await.unwrap().unwrap().status, 200);
        assert!(!client.hbone.is_closed() && !client.hbone.is_draining().await);
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        // The stream with istiod goes on, too.
        assert_eq!(mesh.istiod.record().streams.len(), 1);
    });
}

#[test]
fn while_the_ca_is_away_the_certificate_stays_in_use() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.validity(Some(Duration::from_secs(12)));
        let (_pod, waypoint) = mesh.waypoint().await;
        mesh.istiod.ca_fault(CaFault::Unavailable);
        let expiry =
            async || waypoint.metric("cairn_certificate_expiry_timestamp_seconds", &[]).await;
        let first = expiry().await;
        let serial = served(&mesh, &waypoint).await;
        mesh.istiod.seen("renewal is refused", |record| record.unsigned >= 2).await;
        eventually_async("it is counted", async || {
            waypoint.metric("cairn_ca_failures_total", &[]).await >= 2.0
        })
        .await;
        waypoint.says("no new certificate, the one in use is still valid").await;
        assert_eq!((expiry().await, served(&mesh, &waypoint).await), (first, serial.clone()));
        let left = waypoint.metric("istio_agent_cert_expiry_seconds", &[]).await;
        assert!(left > 0.0 && left < 12.0, "{left}");
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        assert_eq!(waypoint.probe().await.status, 200);
        mesh.istiod.ca_fault(CaFault::None);
        eventually_async("renewed", async || served(&mesh, &waypoint).await != serial).await;
        assert!(expiry().await > first);
    });
}

#[test]
fn another_root_takes_over_under_load() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.validity(Some(Duration::from_secs(6)));
        let (old, app) = (mesh.cert("old-client"), mesh.cert("app"));
        let (_pod, waypoint) = mesh.waypoint().await;
        // Right after a renewal there are seconds until the next.
        mesh.istiod.seen("renewed", |record| record.signed.len() >= 2).await;
        mesh.istiod.rotate_root();
        let ztunnel = &mesh.service("app").ztunnel;
        let old = old.trusting_roots(&mesh.istiod.roots_pem());
        ztunnel.present(app.trusting_roots(&mesh.istiod.roots_pem()).hbone_server());
        let load = Load::with(&mesh, &waypoint, &["app"], std::slice::from_ref(&old)).await;
        let before = mesh.istiod.record().signed.len();
        mesh.istiod.seen("renewed by the new root", |record| record.signed.len() > before).await;
        eventually_async("clients of the new root come in", async || {
            HboneClient::connect(waypoint.hbone().await, &mesh.cert("client"), &waypoint_id())
                .await
                .is_ok()
        })
        .await;
        ztunnel.drop_connections();
        load.more(200).await;
        load.stop().await;
    });
}

/// As when the API server is down: istiod can judge no token, but any certificate.
#[test]
fn a_certificate_does_without_the_token() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.validity(Some(Duration::from_secs(4)));
        let (_pod, waypoint) = mesh.waypoint().await;
        mesh.istiod.refuse_token(TOKEN);
        mesh.istiod.close_connections();
        mesh.istiod.seen("a second stream", |record| record.streams.len() == 2).await;
        let before = mesh.istiod.record();
        mesh.istiod.seen("renewed", |record| record.signed.len() > before.signed.len()).await;
        let record = mesh.istiod.record();
        assert!(record.signed.last().unwrap().by_certificate);
        assert_eq!(record.streams, [waypoint_id(), waypoint_id()]);
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}

#[test]
fn the_token_does_where_certificates_are_refused() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.validity(Some(Duration::from_secs(5)));
        mesh.istiod.accept_certificates(false);
        let (_pod, waypoint) = mesh.waypoint().await;
        mesh.istiod.seen("renewed", |record| record.signed.len() >= 2).await;
        mesh.istiod.reset_streams(Status::unavailable("istiod goes"));
        mesh.istiod.seen("a second stream", |record| record.streams.len() == 2).await;
        let record = mesh.istiod.record();
        assert!(record.signed.iter().all(|one| !one.by_certificate), "{:?}", record.signed);
        assert_eq!(record.certificates, Vec::<String>::new());
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}

#[test]
fn files_take_the_place_of_the_ca() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        mesh.istiod.ca_fault(CaFault::Unavailable);
        let pod = mesh.pod();
        // What istiod asks of a stream is a token or a certificate; here there is no token at all.
        std::fs::remove_file(pod.path("var/run/secrets/tokens/istio-token")).unwrap();
        let put = |cert: &pki::Cert| {
            for (name, content) in [
                ("key.pem", &cert.key_pem),
                ("root-cert.pem", &cert.root_pem),
                ("cert-chain.pem", &cert.chain_pem),
            ] {
                pod.write(&format!("var/run/secrets/workload-spiffe-credentials/{name}"), content);
            }
        };
        let cert = mesh.cert("waypoint");
        put(&cert);
        let mut waypoint = pod.start();
        waypoint.ready().await;
        assert!(waypoint.cairn.printed("the certificate comes from files"));
        assert_eq!(served(&mesh, &waypoint).await, pki::serial(&cert.leaf));
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        let record = mesh.istiod.record();
        assert_eq!((record.signed.len(), record.unsigned), (0, 0));
        let next = mesh.cert("waypoint");
        put(&next);
        eventually_async("the files are read again", async || {
            served(&mesh, &waypoint).await == pki::serial(&next.leaf)
        })
        .await;
    });
}

#[test]
fn key_and_chain_are_kept_in_memory_for_a_restart() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (pod, mut waypoint) = mesh.waypoint().await;
        eventually("it is kept", || pod.path(KEPT).exists()).await;
        let mode = std::fs::metadata(pod.path(KEPT)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let first = served(&mesh, &waypoint).await;
        waypoint.cairn.terminate();
        assert!(waypoint.cairn.wait().await.success());
        mesh.istiod.ca_fault(CaFault::Unavailable);
        let mut again = pod.start();
        again.ready().await;
        assert!(
            again.cairn.printed("the certificate of an earlier start is still good and in use")
        );
        assert_eq!(served(&mesh, &again).await, first);
        mesh.istiod.ca_fault(CaFault::None);
        eventually_async("renewed in the background", async || {
            served(&mesh, &again).await != first
        })
        .await;
        again.cairn.terminate();
        assert!(again.cairn.wait().await.success());
        // One that others could have read is not used.
        std::fs::set_permissions(pod.path(KEPT), PermissionsExt::from_mode(0o644)).unwrap();
        let mut last = pod.start();
        last.ready().await;
        assert!(last.cairn.printed("it is not a regular file that only its owner can read"));
    });
}

/// Nobody of another mesh comes in, and nobody without a certificate.
#[test]
fn strangers_are_refused() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let (_pod, waypoint) = mesh.waypoint().await;
        let address = waypoint.hbone().await;
        let other = pki::Ca::new().workload("plain", "client");
        let other = other.trusting_roots(&mesh.istiod.roots_pem());
        let result = HboneClient::connect(address, &other, &waypoint_id()).await;
        assert!(matches!(result, Err(ConnectFailure::Refused(_) | ConnectFailure::Tls(_))));
        let (chain, key) = mesh.istiod.issue("spiffe://elsewhere/ns/plain/sa/client");
        let other = pki::Cert::from_pem(&chain, &key, &mesh.istiod.roots_pem());
        let result = HboneClient::connect(address, &other, &waypoint_id()).await;
        assert!(matches!(result, Err(ConnectFailure::Refused(_) | ConnectFailure::Tls(_))));
    });
}
