//! What happens to headers and paths, as Envoy's waypoint does it.

use cairn_test_support::backend::{DATE, echoed};
use cairn_test_support::config::{all_to, to};
use cairn_test_support::stage::{Stage, VIP, VIP2};
use cairn_test_support::wait::drive;
use serde_json::json;

#[test]
fn request_headers_are_envoys() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage
            .run(&stage.spec().http(VIP, json!([to("app", json!({ "timeout": "7s" }))])))
            .await;
        let mut http = run.http().await;
        let headers = [
            ("X-Forwarded-Client-Cert", "By=spiffe://x;URI=spiffe://admin"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Envoy-Retry-On", "5xx"),
            ("X-Envoy-Max-Retries", "9"),
            ("X-Envoy-Upstream-Rq-Timeout-Ms", "1"),
            ("X-Envoy-Internal", "true"),
            ("User-Agent", "test"),
            ("Accept-Encoding", "gzip"),
        ];
        let json = http.request("GET", "/echo", &headers, b"").await.unwrap().json();
        assert!(echoed(&json, "x-forwarded-client-cert").is_empty());
        assert_eq!(
            echoed(&json, "x-forwarded-for"),
            ["1.2.3.4"],
            "neither appended to nor dropped"
        );
        assert_eq!(echoed(&json, "x-forwarded-proto"), ["http"]);
        assert_eq!(echoed(&json, "user-agent"), ["test"]);
        assert_eq!(echoed(&json, "accept-encoding"), ["gzip"]);
        assert_eq!(echoed(&json, "host"), ["app.test"]);
        for control in [
            "x-envoy-retry-on",
            "x-envoy-max-retries",
            "x-envoy-upstream-rq-timeout-ms",
            "x-envoy-internal",
        ] {
            assert!(echoed(&json, control).is_empty(), "{control}");
        }
        assert_eq!(echoed(&json, "x-envoy-expected-rq-timeout-ms"), ["7000"]);
        let ids = echoed(&json, "x-request-id");
        assert_eq!((ids.len(), ids[0].len()), (1, 36), "{ids:?}");
        let other = http.get("/echo").await.unwrap().json();
        assert_ne!(ids, echoed(&other, "x-request-id"));
        let given = [("X-Request-Id", "mine"), ("X-Forwarded-Proto", "https")];
        let json = http.request("GET", "/echo", &given, b"").await.unwrap().json();
        assert_eq!(echoed(&json, "x-request-id"), ["mine"]);
        assert_eq!(echoed(&json, "x-forwarded-proto"), ["https"]);
    });
}

#[test]
fn response_headers_are_envoys() {
    drive(async {
        let stage = Stage::new().await;
        let routes = json!([
            { "match": { "path": { "exact": "/direct" } }, "direct_response": { "status": 200, "body": "hi" } },
            to("app", json!({})),
        ]);
        let spec = stage.spec().http(VIP, routes).http_with(
            VIP2,
            all_to("app"),
            json!({ "server": "shop" }),
        );
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let response = http
            .get("/echo?h=x-custom:yes&h=keep-alive:timeout=5&h=set-cookie:a=1&h=set-cookie:b=2")
            .await
            .unwrap();
        assert_eq!(response.headers.all("server"), ["istio-envoy"]);
        assert_eq!(response.headers.all("date"), [DATE], "the upstream's date stays");
        assert_eq!(response.header("x-custom"), Some("yes"));
        assert_eq!(response.headers.all("set-cookie"), ["a=1", "b=2"]);
        assert!(!response.headers.has("keep-alive"));
        let time = response.header("x-envoy-upstream-service-time").unwrap();
        assert!(time.parse::<u64>().is_ok(), "{time}");
        let direct = http.get("/direct").await.unwrap();
        assert_eq!(direct.headers.all("server"), ["istio-envoy"]);
        assert!(direct.headers.has("date"));
        assert!(!direct.headers.has("x-envoy-upstream-service-time"));
        let h2 = run.h2c().await.get("/echo").await.unwrap();
        assert_eq!((h2.header("server"), h2.header("date")), (Some("istio-envoy"), Some(DATE)));
        assert!(h2.header("x-envoy-upstream-service-time").is_some());
        let mut other = run.http_to(VIP2).await;
        assert_eq!(other.get("/").await.unwrap().headers.all("server"), ["shop"]);
    });
}

#[test]
fn hop_by_hop_headers_end_here() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let headers = [
            ("Connection", "keep-alive, x-nominated, authorization"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("X-Nominated", "1"),
            ("Authorization", "secret"),
            ("TE", "gzip, deflate"),
            ("X-End-To-End", "1"),
        ];
        let json = http.request("GET", "/echo", &headers, b"").await.unwrap().json();
        for gone in ["keep-alive", "proxy-connection", "x-nominated", "te"] {
            assert!(echoed(&json, gone).is_empty(), "{gone}: {json}");
        }
        assert!(
            !echoed(&json, "connection").iter().any(|value| value.contains("nominated")),
            "{json}"
        );
        assert_eq!(echoed(&json, "x-end-to-end"), ["1"]);
        assert_eq!(
            echoed(&json, "authorization"),
            ["secret"],
            "a client cannot have its own credentials dropped unseen"
        );
        let json = http.request("GET", "/echo", &[("TE", "trailers")], b"").await.unwrap().json();
        assert_eq!(echoed(&json, "te"), ["trailers"]);
    });
}

#[test]
fn the_path_is_sent_on_normalised() {
    drive(async {
        let stage = Stage::new().await;
        let spec = stage
            .spec()
            .http(VIP, all_to("app"))
            .http_with(VIP2, all_to("app"), json!({ "merge_slashes": true }))
            .http_with("10.96.0.12:80", all_to("app"), json!({ "normalize_path": false }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (sent, seen) in [
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("/%61%2E%2e/b", "/a../b"),
            ("/a/%2e%2e/b", "/b"),
            ("/a\\b", "/a/b"),
            ("//a//b", "//a//b"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%20b", "/a%20b"),
            ("/a/./b/.", "/a/b/"),
            ("/a?x=/../y%61", "/a?x=/../y%61"),
            ("/", "/"),
        ] {
            assert_eq!(http.get(sent).await.unwrap().json()["path"], seen, "{sent}");
        }
        let mut merging = run.http_to(VIP2).await;
        assert_eq!(merging.get("//a///b").await.unwrap().json()["path"], "/a/b");
        let mut untouched = run.http_to("10.96.0.12:80").await;
        assert_eq!(untouched.get("/a/../b//%61").await.unwrap().json()["path"], "/a/../b//%61");
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/x/%2e%2e/y").await.unwrap().json()["path"], "/y");
    });
}
