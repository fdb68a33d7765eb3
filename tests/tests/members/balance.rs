//! A member that carries more than its share gives connections away, by what the scaler tells of the fleet.

use super::world::{File, ID, Member, POOL_TOKEN, VIP, address, mesh};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::Cert;
use cairn_test_support::process::drive;
use cairn_test_support::scaler::Scaler;
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Connections of applications.
const TUNNELS: u64 = 40;

/// What clients have seen.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    moved: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

/// Keeps a connection for as long as it may, and then opens another one, at whichever member's turn it is.
async fn application(cert: Cert, members: [IpAddr; 2], seen: Arc<Seen>) {
    // All begin at the first one: the second is as if it had come later.
    let mut next = 0;
    while !seen.over.load(Ordering::SeqCst) {
        let at = SocketAddr::new(members[next], 21001);
        next = 1;
        let Ok(hbone) = HboneClient::connect(at, &cert, ID).await else {
            seen.failed.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let Ok(tunnel) = hbone.open(VIP).await else {
            seen.failed.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let mut http = Http1::new(tunnel);
        while !seen.over.load(Ordering::SeqCst) {
            match http.get("/").await {
                Ok(answer) if answer.status == 200 => {
                    seen.answered.fetch_add(1, Ordering::SeqCst);
                    if answer.header("connection") == Some("close") {
                        seen.moved.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                }
                _ => {
                    seen.failed.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// One member has everything, the other nothing: some of it moves, and no request fails.
#[test]
fn who_carries_too_much_gives_some_away() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let members = [address(), address()];
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), POOL_TOKEN).unwrap();
        let asked = members.map(|ip| format!("{ip}:15020"));
        let mut args = vec!["--token-file", token.path().to_str().unwrap()];
        for member in &asked {
            args.extend(["--member", member]);
        }
        let scaler = Scaler::start(&args).await;
        let pool = json!({ "scaler": format!("http://{}", scaler.pages) });
        let mut processes = Vec::new();
        for ip in members {
            let mut file = File::of(ip, &[("a", 21001, &a)]);
            file.pool = pool.clone();
            let member = Member::quick(ip, &file).await;
            member.registered(&["a"]).await;
            processes.push(member);
        }
        let seen = Arc::new(Seen::default());
        let applications: Vec<_> = (0..TUNNELS)
            .map(|_| tokio::spawn(application(a.cert("client"), members, Arc::clone(&seen))))
            .collect();
        eventually("applications talk", || seen.answered.load(Ordering::SeqCst) > 5 * TUNNELS)
            .await;
        assert_eq!(seen.moved.load(Ordering::SeqCst), 0, "not before it has lasted");
        eventually_async("some are told to move", async || {
            processes[0].metric("cairn_tunnels_rebalanced_total", &[]).await >= 4.0
        })
        .await;
        eventually("they move", || seen.moved.load(Ordering::SeqCst) >= 4).await;
        assert_eq!(processes[1].metric("cairn_tunnels_rebalanced_total", &[]).await, 0.0);
        assert!(processes[0].cairn.printed("carries more than its share"));
        seen.over.store(true, Ordering::SeqCst);
        for application in applications {
            application.await.unwrap();
        }
        assert_eq!(seen.failed.load(Ordering::SeqCst), 0);
        for mut member in processes {
            member.end().await;
        }
    });
}

/// The fleet's mean is told to members only.
#[test]
fn without_the_pools_token_nothing_is_known() {
    drive(async {
        let a = mesh(1, &["app"]).await;
        let ip = address();
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "another-token").unwrap();
        let asked = format!("{ip}:15020");
        let args = ["--token-file", token.path().to_str().unwrap(), "--member", &asked];
        let scaler = Scaler::start(&args).await;
        let mut file = File::of(ip, &[("a", 21001, &a)]);
        file.pool = json!({ "scaler": format!("http://{}", scaler.pages) });
        let mut member = Member::quick(ip, &file).await;
        eventually("it is refused", || member.cairn.printed("nothing is rebalanced")).await;
        assert!(member.cairn.printed("401"), "{:#?}", member.cairn.output());
        member.end().await;
    });
}
