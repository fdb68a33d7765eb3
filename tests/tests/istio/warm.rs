//! A restart serves from what an earlier start has kept, before istiod has answered.

use super::mesh::Mesh;
use super::pod::{Pod, Waypoint};
use cairn_test_support::pki;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually;
use cairn_xds::feed::Kind;

/// Accepted configuration.
const FILE: &str = "var/lib/istio/data/cairn-xds";
/// Key and chain.
const IDENTITY: &str = "etc/istio/proxy/cairn-identity.pem";

/// A pod whose waypoint has served, and has ended.
async fn served_before(mesh: &Mesh) -> Pod {
    let (pod, mut waypoint) = mesh.waypoint().await;
    stop(&mut waypoint).await;
    assert!(pod.path(FILE).exists());
    pod
}

async fn stop(waypoint: &mut Waypoint) {
    waypoint.cairn.terminate();
    assert!(waypoint.cairn.wait().await.success());
}

/// Short, so that the end of a process is not waited for.
fn mesh_pod(pod: &mut Pod) {
    pod.set("MINIMUM_DRAIN_DURATION", "0s");
}

#[test]
fn without_istiod_it_serves_at_once_and_catches_up() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "gone"]).await;
        let mut pod = served_before(&mesh).await;
        mesh_pod(&mut pod);
        let gone = mesh.vip("gone");
        mesh.istiod.stop().await;
        let mut waypoint = pod.start();
        waypoint.ready().await;
        waypoint.says("warm start from kept configuration").await;
        let client = mesh.client(&waypoint).await;
        for service in ["app", "gone"] {
            assert_eq!(mesh.get(&client, service, "/").await.backend(), service);
        }
        assert_eq!(waypoint.metric("cairn_xds_connected", &[]).await, 0.0);
        // The admin pages know it, too.
        assert!(waypoint.admin("/config_dump").await.text().contains("app.plain"));
        mesh.remove("gone");
        mesh.istiod.start_again().await;
        mesh.add("fresh").await;
        mesh.answers(&client, "fresh", 200).await;
        cairn_test_support::wait::eventually_async("what is gone is dropped", async || {
            client.status(&gone, "/").await != 200
        })
        .await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        let record = mesh.istiod.record();
        let stream = record.streams.len() - 1;
        let asked = record.first(stream, Kind::Workload).unwrap();
        assert!(asked.versions.contains_key("Kubernetes//Pod/plain/app-1"), "{:?}", asked.versions);
    });
}

/// The authority answers, discovery does not: one answer that is late holds up nothing.
#[test]
fn while_istiod_is_slow_it_serves() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let pod = served_before(&mesh).await;
        for kind in [Kind::Cluster, Kind::Listener, Kind::Endpoints, Kind::Workload] {
            mesh.istiod.hold(kind);
        }
        let mut waypoint = pod.start();
        waypoint.ready().await;
        let client = mesh.client(&waypoint).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        for kind in [Kind::Listener, Kind::Endpoints, Kind::Workload, Kind::Cluster] {
            mesh.istiod.release(kind);
            assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        }
        mesh.istiod.seen("all are taken", |record| record.acks(Kind::Cluster) >= 2).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
    });
}

/// Without a certificate nothing is served, whatever is kept.
#[test]
fn without_a_certificate_it_waits() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        let pod = served_before(&mesh).await;
        std::fs::remove_file(pod.path(IDENTITY)).unwrap();
        mesh.istiod.stop().await;
        let mut waypoint = pod.start();
        waypoint.waits_for("certificate (no certificate yet").await;
        assert!(!waypoint.cairn.printed("accepting HBONE"));
        mesh.istiod.start_again().await;
        waypoint.ready().await;
    });
}

#[test]
fn what_cannot_be_trusted_is_ignored_and_said() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = served_before(&mesh).await;
        let good = std::fs::read(pod.path(FILE)).unwrap();
        mesh.istiod.hold(Kind::Listener);
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let node = pod.vars["POD_NAME"].clone();
        let cases: [(&str, Vec<u8>, &str, &str); 5] = [
            (&node, damaged, "on", "is damaged"),
            (&node, good[..good.len() / 2].to_vec(), "on", "is damaged"),
            (&node, b"CAIRNXDS".to_vec(), "on", "is damaged"),
            ("waypoint-2", good.clone(), "on", "belongs to another proxy"),
            (&node, good.clone(), "off", "no warm start: switched off by CAIRN_WARM_START"),
        ];
        for (name, content, switch, said) in cases {
            std::fs::write(pod.path(FILE), content).unwrap();
            pod.set("POD_NAME", name);
            pod.set("CAIRN_WARM_START", switch);
            let mut waypoint = pod.start();
            waypoint.says(said).await;
            waypoint.waits_for("listeners (LDS)").await;
            assert!(!waypoint.cairn.printed("warm start from kept"), "{said}");
            assert!(!waypoint.cairn.printed("accepting HBONE"), "{said}");
            stop(&mut waypoint).await;
        }
        std::fs::write(pod.path(FILE), good).unwrap();
        pod.set("POD_NAME", &node);
        pod.set("CAIRN_WARM_START", "on");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        waypoint.says("warm start from kept configuration").await;
    });
}

#[test]
fn one_that_is_too_old_is_ignored() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let pod = served_before(&mesh).await;
        let good = std::fs::read(pod.path(FILE)).unwrap();
        std::fs::write(pod.path(FILE), of_1970(&good)).unwrap();
        mesh.istiod.hold(Kind::Listener);
        let mut waypoint = pod.start();
        waypoint.says("86400 s are allowed; it is not used").await;
        waypoint.waits_for("listeners (LDS)").await;
        mesh.istiod.release(Kind::Listener);
        waypoint.ready().await;
    });
}

/// The same file with an older time in its head, and the checksum that belongs to it.
fn of_1970(file: &[u8]) -> Vec<u8> {
    const PREFIX: usize = 8 + 4 + 8;
    const CHECKSUM: usize = 32;
    let mut body = file[PREFIX + CHECKSUM..].to_vec();
    // Field 1 of the body is the head; its fields 1 to 3 are texts shorter than 128 bytes, the 4th is the time.
    assert_eq!(body[0], 0x0a);
    let mut at = if body[1] < 0x80 { 2 } else { 3 };
    for field in 1..=3 {
        assert_eq!(body[at], field << 3 | 2);
        at += 2 + usize::from(body[at + 1]);
    }
    assert_eq!(body[at], 4 << 3);
    at += 1;
    while body[at] >= 0x80 {
        body[at] = 0x80;
        at += 1;
    }
    body[at] = 0;
    [&file[..PREFIX], &pki::sha256(&body), &body].concat()
}

#[test]
fn no_key_is_in_the_file() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let pod = served_before(&mesh).await;
        let identity = std::fs::read_to_string(pod.path(IDENTITY)).unwrap();
        let (_, key) = identity.split_once("BEGIN PRIVATE KEY-----\n").unwrap();
        let (key, _) = key.split_once("-----END").unwrap();
        let key: Vec<&str> = key.lines().collect();
        let kept = std::fs::read(pod.path(FILE)).unwrap();
        let holds = |part: &[u8]| kept.windows(part.len()).any(|window| window == part);
        assert!(holds(b"app.plain") || kept.len() > 1000);
        assert!(!holds(b"PRIVATE KEY") && !key.iter().any(|line| holds(line.as_bytes())));
        eventually("nothing else is there", || {
            std::fs::read_dir(pod.path("var/lib/istio/data")).unwrap().count() == 1
        })
        .await;
    });
}
