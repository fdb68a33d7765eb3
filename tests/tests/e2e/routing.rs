//! What routes do: rewrites, redirects, fixed responses, header changes, mirrors.

use cairn_test_support::backend::{echoed, pattern};
use cairn_test_support::config::{at, hbone, merge, to};
use cairn_test_support::stage::{Stage, VIP, app_id, client_id};
use cairn_test_support::wait::{drive, eventually};
use serde_json::{Value, json};

#[test]
fn redirects_are_envoys() {
    drive(async {
        let redirect = |path: &str, action: Value| json!({ "match": { "path": { "prefix": path } }, "redirect": action });
        let routes = json!([
            redirect("/path", json!({ "path": "/new" })),
            redirect("/query", json!({ "path": "/new?own=1" })),
            redirect("/prefix", json!({ "prefix_rewrite": "/p" })),
            redirect("/host", json!({ "host": "new.test", "status": 302 })),
            redirect("/scheme", json!({ "scheme": "https", "status": 308 })),
            redirect("/port", json!({ "port": 8443, "scheme": "https" })),
            redirect("/https", json!({ "port": 443, "scheme": "https" })),
            redirect("/strip", json!({ "path": "/new", "strip_query": true, "status": 307 })),
            redirect("/303", json!({ "path": "/new", "status": 303 })),
        ]);
        let (stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        for (path, status, location) in [
            ("/path?a=1", 301, "http://app.test/new?a=1"),
            ("/query?a=1", 301, "http://app.test/new?own=1"),
            ("/prefix/x?a=1", 301, "http://app.test/p/x?a=1"),
            ("/host/x?a=1", 302, "http://new.test/host/x?a=1"),
            ("/scheme/x", 308, "https://app.test/scheme/x"),
            ("/port/x", 301, "https://app.test:8443/port/x"),
            ("/https/x", 301, "https://app.test/https/x"),
            ("/strip?a=1", 307, "http://app.test/new"),
            ("/303", 303, "http://app.test/new"),
        ] {
            let response = http.ask(&format!("GET {path}"), &[]).await;
            assert_eq!(
                (response.status, response.header("location")),
                (status, Some(location)),
                "{path}"
            );
        }
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn direct_responses_are_given() {
    drive(async {
        let routes = json!([
            { "match": { "path": { "exact": "/teapot" } }, "direct_response": { "status": 418, "body": "short and stout" } },
            { "match": { "path": { "exact": "/empty" } }, "direct_response": { "status": 200 } },
            {
                "match": { "path": { "exact": "/html" } }, "direct_response": { "status": 200, "body": "<p>" },
                "response_headers": { "add": [
                    { "name": "content-type", "value": "text/html", "action": "overwrite" },
                    { "name": "x-extra", "value": "1" },
                ] },
            },
        ]);
        let (stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        let teapot = http.ask("GET /teapot", &[]).await;
        assert_eq!((teapot.status, teapot.text().as_str()), (418, "short and stout"));
        assert_eq!(teapot.header("content-type"), Some("text/plain"));
        let empty = http.ask("GET /empty", &[]).await;
        assert_eq!((empty.status, empty.body.len()), (200, 0));
        let html = http.ask("GET /html", &[]).await;
        assert_eq!(
            (html.headers.all("content-type"), html.header("x-extra")),
            (vec!["text/html"], Some("1"))
        );
        // The body of the request is in the way of nothing: it is skipped, or the tunnel ends as announced.
        for count in [1000, 200_000, 5_000_000] {
            let post =
                http.request("POST", "/teapot", &[], pattern(count).as_bytes()).await.unwrap();
            assert_eq!(post.status, 418, "{count}");
            if post.headers.has_token("connection", "close") {
                http = run.http().await;
            }
            assert_eq!(http.ask("GET /teapot", &[]).await.status, 418, "after {count}");
        }
        let head = http.ask("HEAD /teapot", &[]).await;
        assert_eq!((head.status, head.header("content-length")), (418, Some("15")));
        assert_eq!(http.ask("GET /nowhere", &[]).await.status, 404);
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn paths_and_hosts_are_rewritten() {
    drive(async {
        let prefix = |path: &str| json!({ "prefix": path });
        let routes = json!([
            at(prefix("/api/v1"), "app", json!({ "prefix_rewrite": "/v1" })),
            at(prefix("/strip/"), "app", json!({ "prefix_rewrite": "/" })),
            at(json!({ "exact": "/exact" }), "app", json!({ "prefix_rewrite": "/replaced" })),
            at(
                json!({ "path_separated_prefix": "/separated" }),
                "app",
                json!({ "prefix_rewrite": "/s" })
            ),
            at(
                prefix("/users/"),
                "app",
                json!({ "regex_rewrite": { "pattern": "^/users/([^/]+)/(.*)$", "substitution": "/\\2/of/\\1" } })
            ),
            at(
                prefix("/twice"),
                "app",
                json!({ "regex_rewrite": { "pattern": "a", "substitution": "b" } })
            ),
            at(prefix("/host"), "app", json!({ "host_rewrite": "new.test" })),
            at(
                prefix("/forwarded"),
                "app",
                json!({ "host_rewrite": "new.test", "append_x_forwarded_host": true })
            ),
        ]);
        let (_stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        for (path, wanted) in [
            ("/api/v1/x?a=/api/v1", "/v1/x?a=/api/v1"),
            ("/api/v1", "/v1"),
            ("/strip/a/b", "/a/b"),
            ("/exact?a", "/replaced?a"),
            ("/separated/x", "/s/x"),
            ("/separated", "/s"),
            ("/users/7/orders/1?a=b", "/orders/1/of/7?a=b"),
            ("/twice/aa?a", "/twice/bb?a"),
        ] {
            let echo = http.ask(&format!("GET {path}"), &[]).await.json();
            assert_eq!(echo["path"], wanted, "{path}");
            assert_eq!(echoed(&echo, "x-envoy-original-path"), [path]);
            assert_eq!(echo["authority"], "app.test");
        }
        let echo = http.ask("GET /host", &[]).await.json();
        assert_eq!((&echo["authority"], &echo["path"]), (&json!("new.test"), &json!("/host")));
        assert!(echoed(&echo, "x-forwarded-host").is_empty());
        assert!(echoed(&echo, "x-envoy-original-path").is_empty());
        let echo = http.ask("GET /forwarded", &[]).await.json();
        assert_eq!(
            (&echo["authority"], echoed(&echo, "x-forwarded-host")),
            (&json!("new.test"), vec!["app.test"])
        );
        let h2 = run.h2c().await.get("/host").await.unwrap().json();
        assert_eq!(h2["authority"], "new.test");
    });
}

#[test]
fn headers_are_changed_at_every_level() {
    drive(async {
        let ops = |level: &str| {
            json!({
                "add": [
                    { "name": "x-level", "value": level },
                    { "name": format!("x-{level}"), "value": "new", "action": "overwrite" },
                ],
                "remove": [format!("x-remove-{level}")],
            })
        };
        let stage = Stage::new().await;
        let spec = stage.spec().destination(json!({
            "name": "levels", "addresses": ["10.96.0.10"], "port": 80,
            "http": { "routes": { "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "request_headers": ops("host"), "response_headers": ops("host"),
                "routes": [{
                    "match": { "path": { "prefix": "/" } },
                    "request_headers": ops("route"), "response_headers": ops("route"),
                    "route": { "timeout": "0s", "weighted_clusters": [{
                        "name": "app", "weight": 1, "request_headers": ops("cluster"), "response_headers": ops("cluster"),
                    }] },
                }],
            }] } },
        }));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let headers = [
            ("X-Level", "client"),
            ("X-Route", "old"),
            ("X-Remove-Host", "1"),
            ("X-Remove-Route", "1"),
            ("X-Remove-Cluster", "1"),
            ("X-Stays", "1"),
        ];
        let query = "h=x-level:backend&h=x-route:old&h=x-remove-host:1&h=x-remove-route:1&h=x-remove-cluster:1&h=x-stays:1";
        let response = http.request("GET", &format!("/echo?{query}"), &headers, b"").await.unwrap();
        let echo = response.json();
        assert_eq!(
            echoed(&echo, "x-level"),
            ["client", "cluster", "route", "host"],
            "the most specific first"
        );
        assert_eq!(response.headers.all("x-level"), ["backend", "cluster", "route", "host"]);
        for level in ["host", "route", "cluster"] {
            assert_eq!(echoed(&echo, &format!("x-{level}")), ["new"]);
            assert!(echoed(&echo, &format!("x-remove-{level}")).is_empty());
            assert_eq!(response.headers.all(&format!("x-{level}")), ["new"]);
            assert!(!response.headers.has(&format!("x-remove-{level}")));
        }
        assert_eq!((echoed(&echo, "x-stays"), response.header("x-stays")), (vec!["1"], Some("1")));
    });
}

#[test]
fn header_values_are_formatted() {
    drive(async {
        let add = |name: &str, value: &str, action: &str| json!({ "name": name, "value": value, "action": action });
        let routes = json!([{
            "name": "formatted",
            "match": { "path": { "prefix": "/" } },
            "route": { "cluster": "app", "timeout": "0s" },
            "request_headers": { "add": [
                add("x-copy", "%REQ(X-Source)%", "overwrite"),
                add("x-default", "%REQ(X-None?X-Source)%", "overwrite"),
                add("x-cut", "%REQ(X-Source):3%", "overwrite"),
                add("x-peer", "%DOWNSTREAM_PEER_URI_SAN%", "overwrite"),
                add("x-percent", "100%%", "overwrite"),
                add("x-protocol", "%PROTOCOL%", "overwrite"),
                add("x-source-ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "overwrite"),
                add("x-absent", "added", "add_if_absent"),
                add("x-there", "added", "add_if_absent"),
                add("x-over", "over", "overwrite_if_exists"),
                add("x-none", "over", "overwrite_if_exists"),
                add("x-twice", "b", "append"),
            ] },
            "response_headers": { "add": [
                add("x-status", "%RESPONSE_CODE%", "overwrite"),
                add("x-cluster", "%UPSTREAM_CLUSTER%", "overwrite"),
                add("x-route", "%ROUTE_NAME%", "overwrite"),
                add("x-backend-was", "%RESP(X-Backend)%", "overwrite"),
            ] },
        }]);
        let (_stage, run) = Stage::routed(routes).await;
        let mut http = run.http().await;
        let headers =
            [("X-Source", "abcdef"), ("X-There", "old"), ("X-Over", "old"), ("X-Twice", "a")];
        let response = http.request("GET", "/echo", &headers, b"").await.unwrap();
        let echo = response.json();
        let client = client_id();
        for (name, values) in [
            ("x-copy", vec!["abcdef"]),
            ("x-default", vec!["abcdef"]),
            ("x-cut", vec!["abc"]),
            ("x-peer", vec![client.as_str()]),
            ("x-percent", vec!["100%"]),
            ("x-protocol", vec!["HTTP/1.1"]),
            ("x-source-ip", vec!["127.0.0.1"]),
            ("x-absent", vec!["added"]),
            ("x-there", vec!["old"]),
            ("x-over", vec!["over"]),
            ("x-none", vec![]),
            ("x-twice", vec!["a", "b"]),
        ] {
            assert_eq!(echoed(&echo, name), values, "{name}");
        }
        assert_eq!(response.header("x-status"), Some("200"));
        assert_eq!(response.header("x-cluster"), Some("app"));
        assert_eq!(response.header("x-route"), Some("formatted"));
        assert_eq!(response.header("x-backend-was"), Some("app"));
    });
}

#[test]
fn requests_are_mirrored_with_their_bodies() {
    drive(async {
        let stage = Stage::new().await;
        let (shadow, shadow_pod) = stage.backend("shadow").await;
        let mirror = |more: Value| {
            let mut mirror = json!({ "cluster": "shadow" });
            merge(&mut mirror, more);
            json!({ "mirrors": [mirror] })
        };
        let routes = json!([
            at(json!({ "prefix": "/never" }), "app", mirror(json!({ "percent": 0.0 }))),
            at(json!({ "prefix": "/suffix" }), "app", mirror(json!({ "shadow_suffix": true }))),
            at(
                json!({ "prefix": "/nowhere" }),
                "app",
                json!({ "mirrors": [{ "cluster": "missing" }] })
            ),
            to("app", mirror(json!({}))),
        ]);
        let spec = stage
            .spec()
            .cluster("shadow", vec![hbone(&shadow_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, routes);
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let body = pattern(300_000);
        let headers = [("X-Mark", "1")];
        let response = http.request("POST", "/echo?a=b", &headers, body.as_bytes()).await.unwrap();
        assert_eq!((response.backend(), &response.json()["body_len"]), ("app", &json!(300_000)));
        eventually("the copy arrives", || shadow.count("/echo") == 1).await;
        let copy = shadow.last("/echo");
        assert_eq!((copy.method.as_str(), copy.target.as_str()), ("POST", "/echo?a=b"));
        assert!(copy.body == body.as_bytes(), "{} bytes", copy.body_len);
        assert_eq!((copy.headers.get("x-mark"), copy.authority.as_str()), (Some("1"), "app.test"));
        let chunked = [("Transfer-Encoding", "chunked")];
        http.request("POST", "/chunks", &chunked, b"5\r\nhello\r\n0\r\n\r\n").await.unwrap();
        eventually("the copy arrives", || shadow.count("/chunks") == 1).await;
        assert_eq!(shadow.last("/chunks").body, "hello");
        http.ask("GET /suffix", &[]).await;
        eventually("the copy arrives", || shadow.count("/suffix") == 1).await;
        assert_eq!(shadow.last("/suffix").authority, "app.test-shadow");
        let h2c = run.h2c().await;
        h2c.request("POST", "/h2", &[], b"h2 body").await.unwrap();
        eventually("the copy arrives", || shadow.count("/h2") == 1).await;
        assert_eq!(shadow.last("/h2").body, "h2 body");
        // What becomes of the copy is nobody's business.
        for path in ["/nowhere", "/echo"] {
            let response = http.ask(&format!("GET {path}"), &[("x-reset-on", "shadow")]).await;
            assert_eq!((response.status, response.backend()), (200, "app"), "{path}");
        }
        for _ in 0..20 {
            http.ask("GET /never", &[]).await;
        }
        shadow_pod.refuse(503);
        shadow_pod.drop_connections();
        assert_eq!(http.ask("GET /echo", &[]).await.status, 200);
        assert_eq!(shadow.count("/never"), 0);
    });
}
