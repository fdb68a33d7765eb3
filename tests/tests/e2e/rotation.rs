//! Certificates that change on disk.

use cairn_test_support::config::all_to;
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::{Ca, CertDir, CertSpec, serial};
use cairn_test_support::stage::{Stage, VIP};
use cairn_test_support::wait::{drive, eventually_async, within};
use cairn_test_support::waypoint::Waypoint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The serial number that a new connection is shown.
async fn shown(waypoint: &Waypoint, stage: &Stage) -> String {
    serial(&waypoint.connect(&stage.client()).await.server_cert)
}

#[test]
fn a_swap_by_symlink_under_load_fails_nothing() {
    drive(async {
        let stage = Stage::new().await;
        let spec = CertSpec::workload("shop", "waypoint");
        let first = stage.ca.issue(&spec);
        let mesh = stage.spec().http(VIP, all_to("app"));
        let mut waypoint = Waypoint::start_on(CertDir::kubernetes(&first), &mesh, 1).await;
        let old = waypoint.connect(&stage.client()).await;
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut kept = Http1::new(old.open(VIP).await.unwrap());
        let (stopped, count) = (stop.clone(), done.clone());
        let on_old = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(within("a request", kept.get("/echo")).await.unwrap().status, 200);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        // New connections all the time; each must be accepted.
        let (stopped, count, addr, id) =
            (stop.clone(), done.clone(), waypoint.addr, waypoint.id.clone());
        let client = stage.client();
        let on_new = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let hbone =
                    cairn_test_support::hbone_client::HboneClient::connect(addr, &client, &id)
                        .await
                        .unwrap();
                let mut http = Http1::new(hbone.open(VIP).await.unwrap());
                assert_eq!(within("a request", http.get("/echo")).await.unwrap().status, 200);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..3 {
            let next = stage.ca.issue(&spec);
            waypoint.certs().replace(&next);
            let wanted = serial(&next.leaf);
            let waypoint = &waypoint;
            let stage = &stage;
            let wanted = &wanted;
            eventually_async("the next certificate is shown", || async move {
                shown(waypoint, stage).await == *wanted
            })
            .await;
        }
        stop.store(true, Ordering::SeqCst);
        on_old.await.unwrap();
        on_new.await.unwrap();
        assert!(done.load(Ordering::SeqCst) > 10);
        assert!(!old.is_closed(), "rotation cuts no connection");
        assert_eq!(Http1::new(old.open(VIP).await.unwrap()).get("/").await.unwrap().status, 200);
    });
}

#[test]
fn plain_files_are_followed_too() {
    drive(async {
        let stage = Stage::new().await;
        let spec = CertSpec::workload("shop", "waypoint");
        let mesh = stage.spec().http(VIP, all_to("app"));
        let mut waypoint =
            Waypoint::start_on(CertDir::plain(&stage.ca.issue(&spec)), &mesh, 1).await;
        let next = stage.ca.issue(&spec);
        waypoint.certs().replace(&next);
        let wanted = &serial(&next.leaf);
        let (waypoint, stage) = (&waypoint, &stage);
        eventually_async("the next certificate is shown", || async move {
            shown(waypoint, stage).await == *wanted
        })
        .await;
    });
}

#[test]
fn a_bad_certificate_never_replaces_a_good_one() {
    drive(async {
        let stage = Stage::new().await;
        let spec = CertSpec::workload("shop", "waypoint");
        let good = stage.ca.issue(&spec);
        let mesh = stage.spec().http(VIP, all_to("app"));
        let mut waypoint = Waypoint::start_on(CertDir::kubernetes(&good), &mesh, 1).await;
        let other = stage.ca.issue(&spec);
        let expired = stage.ca.issue(&spec.clone().expired());
        let nameless = stage.ca.issue(&CertSpec::dns("waypoint.example"));
        let cases = [
            ("garbage", "garbage".to_owned(), good.key_pem.clone(), good.root_pem.clone()),
            ("empty", String::new(), String::new(), String::new()),
            (
                "half a file",
                good.chain_pem[..good.chain_pem.len() / 2].to_owned(),
                good.key_pem.clone(),
                good.root_pem.clone(),
            ),
            ("another's key", good.chain_pem.clone(), other.key_pem.clone(), good.root_pem.clone()),
            ("expired", expired.chain_pem.clone(), expired.key_pem.clone(), good.root_pem.clone()),
            (
                "no identity",
                nameless.chain_pem.clone(),
                nameless.key_pem.clone(),
                good.root_pem.clone(),
            ),
            ("no roots", other.chain_pem.clone(), other.key_pem.clone(), String::new()),
        ];
        let wanted = serial(&good.leaf);
        for (what, chain, key, roots) in &cases {
            let before = waypoint.refused_reloads();
            waypoint.certs().replace_raw(chain, key, roots);
            let seen = &waypoint;
            eventually_async(&format!("{what} is refused"), || async move {
                seen.refused_reloads() > before
            })
            .await;
            assert_eq!(shown(&waypoint, &stage).await, wanted, "{what}");
        }
        let hbone = waypoint.connect(&stage.client()).await;
        assert_eq!(Http1::new(hbone.open(VIP).await.unwrap()).get("/").await.unwrap().status, 200);
        waypoint.certs().replace(&other);
        let wanted = &serial(&other.leaf);
        let (waypoint, stage) = (&waypoint, &stage);
        eventually_async("a good one is taken after all", || async move {
            shown(waypoint, stage).await == *wanted
        })
        .await;
    });
}

#[test]
fn new_roots_are_trusted_and_old_ones_are_not() {
    drive(async {
        let stage = Stage::new().await;
        let spec = CertSpec::workload("shop", "waypoint");
        let cert = stage.ca.issue(&spec);
        let mesh = stage.spec().http(VIP, all_to("app"));
        let mut waypoint = Waypoint::start_on(CertDir::kubernetes(&cert), &mesh, 1).await;
        let new_ca = Ca::new();
        let stranger = new_ca.workload("web", "client").trusting(&stage.ca);
        assert!(waypoint.try_connect(&stranger).await.is_err());
        let both = format!("{}{}", stage.ca.root_pem(), new_ca.root_pem());
        waypoint.certs().replace_raw(&cert.chain_pem, &cert.key_pem, &both);
        {
            let (waypoint, stranger) = (&waypoint, &stranger);
            eventually_async("the new root is trusted", || async move {
                waypoint.try_connect(stranger).await.is_ok()
            })
            .await;
        }
        waypoint.connect(&stage.client()).await;
        waypoint.certs().replace_raw(&cert.chain_pem, &cert.key_pem, &new_ca.root_pem());
        let client = stage.client();
        let (waypoint, client) = (&waypoint, &client);
        eventually_async("the old root is not trusted", || async move {
            waypoint.try_connect(client).await.is_err()
        })
        .await;
    });
}
