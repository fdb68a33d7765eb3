//! A member that starts serves by what another one knows, until istiod has answered.

use super::world::{File, ID, Member, VIP, address, entry, mesh};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::pki::Cert;
use cairn_test_support::process::drive;
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{eventually, within};
use cairn_xds::feed::Kind;
use serde_json::json;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;

const ALL: [Kind; 4] = [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload];

/// istiod signs and registers, but its configuration does not come: the member serves and is registered.
#[test]
fn a_sibling_is_asked_first() {
    drive(async {
        let mut a = mesh(1, &["app"]).await;
        let (first_ip, second_ip) = (address(), address());
        let mut first = Member::quick(first_ip, &File::of(first_ip, &[("a", 21001, &a)])).await;
        first.registered(&["a"]).await;
        for kind in ALL {
            a.istiod.hold(kind);
        }
        // The first one does not hear of it, and so tells what was before.
        a.add("late").await;
        a.remove("app");
        let mut file = File::of(second_ip, &[("a", 21001, &a)]);
        file.siblings = vec![first_ip, second_ip, address()];
        let mut second = Member::quick(second_ip, &file).await;
        let row = second.until("a", "serving", |row| row["phase"] == "serving").await;
        assert_eq!(row["warm_start"], true);
        eventually("it is registered", || a.istiod.entries().contains(&entry(second_ip))).await;
        let client = second.client(21001, &a).await;
        assert_eq!(client.get(VIP, "/").await.backend(), "app");
        // istiod's word counts as soon as it comes.
        for kind in ALL {
            a.istiod.release(kind);
        }
        cairn_test_support::wait::eventually_async("istiod corrects", async || {
            client.status("10.96.0.2:80", "/").await == 200 && client.status(VIP, "/").await != 200
        })
        .await;
        second.end().await;
        first.end().await;
    });
}

async fn told(address: SocketAddr, cert: &Cert) -> Result<Vec<u8>, String> {
    let client = HboneClient::connect(address, cert, ID).await.map_err(|e| format!("{e:?}"))?;
    let tunnel = within("CONNECT", client.open("warm-start.cairn.internal:15008")).await;
    let mut tunnel: H2Stream = tunnel.map_err(|error| format!("{error:?}"))?;
    let mut bytes = Vec::new();
    within("the telling", tunnel.read_to_end(&mut bytes)).await.map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Nobody but the pool's own identity in that cluster is told anything.
#[test]
fn only_siblings_are_told() {
    drive(async {
        let (a, b) = (mesh(1, &["app"]).await, mesh(2, &["desk"]).await);
        let ip = address();
        let mut file = File::of(ip, &[("a", 21001, &a), ("b", 21002, &b)]);
        let mut member = Member::quick(ip, &file).await;
        member.registered(&["a", "b"]).await;
        let own = |mesh: &cairn_test_support::mesh::Mesh| {
            let (chain, key) = mesh.istiod.issue(ID);
            Cert::from_pem(&chain, &key, &mesh.istiod.roots_pem())
        };
        let at = |port| SocketAddr::new(ip, port);
        let good = told(at(21001), &own(&a)).await.unwrap();
        assert!(good.starts_with(b"CAIRNXDS"), "{} bytes", good.len());
        assert!(!good.windows(11).any(|part| part == b"PRIVATE KEY"));
        // Another account of the mesh, however near its name is; and the same identity of another mesh.
        for account in ["client", "waypoint"] {
            let refused = told(at(21001), &a.cert(account)).await;
            assert!(!matches!(&refused, Ok(bytes) if !bytes.is_empty()), "{account}: {refused:?}");
        }
        assert!(told(at(21001), &own(&b)).await.is_err());
        // Switched off, the authority is nobody's.
        file.pool = json!({ "warm_start": false });
        member.end().await;
        let mut silent = Member::quick(ip, &file).await;
        silent.registered(&["a", "b"]).await;
        assert!(!matches!(told(at(21001), &own(&a)).await, Ok(bytes) if !bytes.is_empty()));
        silent.end().await;
    });
}

/// What a sibling tells of another cluster, what is too old, and what is damaged, is as if nobody had told it.
#[test]
fn what_does_not_fit_is_refused() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let (first_ip, second_ip) = (address(), address());
        // The first one calls the cluster by another name.
        let mut first = Member::quick(first_ip, &File::of(first_ip, &[("x", 21001, &a)])).await;
        first.registered(&["x"]).await;
        let mut file = File::of(second_ip, &[("a", 21001, &a)]);
        file.siblings = vec![first_ip];
        let mut second = Member::quick(second_ip, &file).await;
        second.registered(&["a"]).await;
        assert_eq!(second.cluster("a").await["warm_start"], false);
        assert!(second.cairn.printed("belongs to another proxy"), "{:#?}", second.cairn.output());
        second.end().await;
        first.end().await;
        // The same, but nothing may be older than a moment.
        let mut first = Member::quick(first_ip, &File::of(first_ip, &[("a", 21001, &a)])).await;
        first.registered(&["a"]).await;
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let mut file = File::of(second_ip, &[("a", 21001, &a)]).set("a", "max_stale", json!("0s"));
        file.siblings = vec![first_ip];
        let mut second = Member::quick(second_ip, &file).await;
        second.registered(&["a"]).await;
        assert_eq!(second.cluster("a").await["warm_start"], false);
        assert!(second.cairn.printed("are allowed"), "{:#?}", second.cairn.output());
        second.end().await;
        first.end().await;
    });
}
