//! What cannot be honoured answers 503 and says why; what stands beside it works.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, all_to, at, hbone};
use cairn_test_support::stage::{Stage, TCP_VIP, VIP, VIP2, app_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REASON: &str = "filter envoy.filters.http.lua is not supported";

fn broken_http() -> Value {
    json!({ "routes": { "virtual_hosts": [] }, "broken": REASON })
}

fn broken_tcp() -> Value {
    json!({ "clusters": [], "broken": REASON })
}

fn destination(vip: &str, chains: Value) -> Value {
    let (address, port) = vip.rsplit_once(':').unwrap();
    let mut destination = chains;
    destination["name"] = json!(vip);
    destination["addresses"] = json!([address]);
    destination["port"] = json!(port.parse::<u16>().unwrap());
    destination
}

#[test]
fn a_broken_http_chain_says_why() {
    drive(async {
        let stage = Stage::new().await;
        let mut deny = destination(VIP2, json!({ "http": broken_http() }));
        deny["connection"] = json!({ "rbac": [{ "action": "ALLOW" }] });
        let spec = stage
            .spec()
            .destination(destination(VIP, json!({ "http": broken_http() })))
            .destination(deny);
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for _ in 0..2 {
            let response = http.request("POST", "/echo", &[], b"body").await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (503, REASON));
            assert_eq!(response.header("content-type"), Some("text/plain"));
            assert_eq!(response.header("server"), Some("istio-envoy"));
        }
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/").await.unwrap().text(), REASON);
        let reply = h2c.unary("/test.Echo/Unary", &[], b"").await.unwrap();
        assert_eq!((reply.grpc_status(), reply.grpc_message()), (Some(14), Some(REASON)));
        assert_eq!(run.client.open(VIP2).await.unwrap_err().status(), 403, "policies hold");
        assert_eq!(stage.app.requests(), 0);
        let labels = [("response_code", "503"), ("request_protocol", "http")];
        eventually("it is recorded", || run.waypoint.istio("istio_requests_total", &labels) == 3)
            .await;
    });
}

#[test]
fn of_two_chains_only_the_broken_one_fails() {
    drive(async {
        let stage = Stage::new().await;
        let app = TcpApp::new(Behaviour::Echo);
        let pod = stage.pod(&app).await;
        let tcp = json!({ "clusters": [{ "name": "tcp" }] });
        let http = json!({ "routes": { "virtual_hosts": [
            { "name": "all", "domains": ["*"], "routes": all_to("app") },
        ] } });
        let spec = stage
            .spec()
            .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
            .destination(destination(VIP, json!({ "http": broken_http(), "tcp": tcp })))
            .destination(destination(VIP2, json!({ "http": http, "tcp": broken_tcp() })))
            .destination(destination(TCP_VIP, json!({ "tcp": broken_tcp() })));
        let run = stage.run(&spec).await;

        assert_eq!(run.http().await.get("/").await.unwrap().status, 503);
        let mut bytes = run.tunnel(VIP).await;
        bytes.write_all(b"\x16\x03\x01").await.unwrap();
        let mut echo = [0; 3];
        within("the echo", bytes.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"\x16\x03\x01");

        assert_eq!(run.http_to(VIP2).await.get("/").await.unwrap().status, 200);
        let mut bytes = run.tunnel(VIP2).await;
        bytes.write_all(b"\x16\x03\x01").await.unwrap();
        let mut nothing = Vec::new();
        let _closed = within("the end", bytes.read_to_end(&mut nothing)).await;
        assert!(nothing.is_empty());

        assert_eq!(run.client.open(TCP_VIP).await.unwrap_err().status(), 503);
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn a_broken_cluster_fails_where_it_is_used() {
    drive(async {
        let stage = Stage::new().await;
        let exact = |path: &str| json!({ "exact": path });
        let retry = json!({ "retry": { "on": ["5xx"], "attempts": 3 } });
        let mirrored = json!({ "mirrors": [{ "cluster": "broken" }] });
        let broken = json!({ "broken": "transport socket is not supported" });
        let routes = json!([
            at(exact("/broken"), "broken", retry),
            at(exact("/mirrored"), "app", mirrored),
            at(json!({ "prefix": "/" }), "app", json!({})),
        ]);
        let spec = stage
            .spec()
            .cluster_with("broken", broken, vec![stage.endpoint()])
            .http(VIP, routes)
            .tcp(TCP_VIP, "broken");
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let response = http.get("/broken").await.unwrap();
        let said = (response.status, response.text());
        assert_eq!(said, (503, "transport socket is not supported".to_owned()));
        assert_eq!(http.get("/mirrored").await.unwrap().status, 200);
        assert_eq!(http.get("/").await.unwrap().status, 200);
        let mut bytes = run.tunnel(TCP_VIP).await;
        let mut nothing = Vec::new();
        let _closed = within("the end", bytes.read_to_end(&mut nothing)).await;
        assert!(nothing.is_empty());
        assert_eq!(stage.app.requests(), 2, "nothing reached it past the working routes");
    });
}

#[test]
fn what_is_repaired_works() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage.spec().destination(destination(VIP, json!({ "http": broken_http() })));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 503);
        run.waypoint.apply(&stage.spec().http(VIP, all_to("app")));
        assert_eq!(http.get("/").await.unwrap().status, 200, "on the same tunnel");
        run.waypoint.apply(&spec);
        assert_eq!(http.get("/").await.unwrap().status, 503);
        let empty = MeshSpec::new().destination(destination(VIP, json!({ "tcp": broken_tcp() })));
        run.waypoint.apply(&empty);
        assert_eq!(run.client.open(VIP).await.unwrap_err().status(), 503);
    });
}
