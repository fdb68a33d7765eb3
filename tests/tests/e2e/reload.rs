//! Configuration files that change under a running process.

use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::pki::serial;
use cairn_test_support::process::{Cairn, drive};
use cairn_test_support::stage::{Stage, VIP, app_id, waypoint_id};
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::json;

async fn connect(stage: &Stage, cairn: &Cairn) -> HboneClient {
    HboneClient::connect(cairn.address("HBONE"), &stage.client(), &waypoint_id()).await.unwrap()
}

async fn ask(client: &HboneClient, path: &str) -> Response {
    Http1::new(client.open(VIP).await.unwrap()).get(path).await.unwrap()
}

fn answering(stage: &Stage, text: &str) -> MeshSpec {
    stage.spec().http(VIP, json!([{ "match": { "path": { "prefix": "/" } }, "direct_response": { "status": 200, "body": text } }]))
}

#[test]
fn a_broken_file_keeps_the_last_good_one() {
    drive(async {
        let stage = Stage::new().await;
        let files = stage.files(&answering(&stage, "one"));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let client = connect(&stage, &cairn).await;
        assert_eq!(ask(&client, "/").await.text(), "one");
        files.write(&answering(&stage, "two"));
        eventually_async("the change is served", || async {
            ask(&client, "/").await.text() == "two"
        })
        .await;

        let good = std::fs::read_to_string(files.config()).unwrap();
        let cases = [
            ("half a file", good[..good.len() / 2].to_owned(), "mesh.json"),
            ("nothing", String::new(), "mesh.json"),
            ("a wrong type", good.replace("\"port\": 80", "\"port\": \"eighty\""), "port"),
            ("an unknown field", good.replace("\"port\": 80", "\"prot\": 80"), "prot"),
            (
                "a bad regular expression",
                good.replace("\"prefix\": \"/\"", "\"regex\": \"(\""),
                "regex",
            ),
            ("a bad address", good.replace("\"10.96.0.10\"", "\"10.96.0.300\""), "10.96.0.300"),
            ("a bad status", good.replace("\"status\": 200", "\"status\": 99"), "status"),
        ];
        for (what, text, named) in cases {
            assert_ne!(text, good, "{what}");
            let before = cairn.count("last good one stays");
            files.write_text(&text);
            eventually(&format!("{what} is refused"), || {
                cairn.count("last good one stays") > before
            })
            .await;
            let output = cairn.output();
            let explained = output
                .iter()
                .rev()
                .take(10)
                .any(|line| line.contains("mesh.json:") && line.contains(named));
            assert!(explained, "{what}: file, line and {named}: {output:#?}");
            assert_eq!(ask(&client, "/").await.text(), "two", "{what}");
            assert_eq!(ask(&connect(&stage, &cairn).await, "/").await.text(), "two", "{what}");
        }
        std::fs::remove_file(files.config()).unwrap();
        files.write(&answering(&stage, "three"));
        eventually_async("a good one is served again", || async {
            ask(&client, "/").await.text() == "three"
        })
        .await;
        assert!(!client.is_closed());
    });
}

#[test]
fn a_change_cuts_nothing_that_it_does_not_concern() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().http(VIP, all_to("app"));
        let files = stage.files(&spec);
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let client = connect(&stage, &cairn).await;
        let mut held = Http1::new(client.open(VIP).await.unwrap());
        held.send("GET /hold?gate=open HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        eventually("it waits", || stage.app.waiting() == 1).await;
        let (other, other_pod) = stage.backend("other").await;
        let moved = MeshSpec::new()
            .cluster("app", vec![hbone(&other_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, all_to("app"));
        files.write(&moved);
        eventually_async("new requests go elsewhere", || async {
            ask(&client, "/").await.backend() == "other"
        })
        .await;
        stage.app.release("open");
        let response = held.response().await.unwrap();
        assert_eq!(
            (response.status, response.backend()),
            (200, "app"),
            "what was in flight ends where it was"
        );
        assert_eq!(
            held.get("/").await.unwrap().backend(),
            "other",
            "the tunnel follows with its next request"
        );
        assert!(other.requests() >= 2);
    });
}

#[test]
fn certificates_are_followed_by_the_process_too() {
    drive(async {
        let stage = Stage::new().await;
        let mut files = stage.files(&stage.spec().http(VIP, all_to("app")));
        let cairn = Cairn::proxy(&files.config(), &[]).await;
        let client = connect(&stage, &cairn).await;
        let next = stage.ca.workload("shop", "waypoint");
        files.certs.replace(&next);
        let wanted = &serial(&next.leaf);
        let (stage, cairn) = (&stage, &cairn);
        eventually_async("the next certificate is shown", || async move {
            serial(&connect(stage, cairn).await.server_cert) == *wanted
        })
        .await;
        assert_eq!(ask(&client, "/").await.status, 200);
    });
}
