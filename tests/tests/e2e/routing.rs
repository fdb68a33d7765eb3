//! Routes: what is matched, and what is done.

use cairn_test_support::backend::{echoed, pattern};
use cairn_test_support::config::{MeshSpec, at, hbone, hbone_at, merge, plain, to};
use cairn_test_support::endpoint::{DeadPort, Endpoint};
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::pki::spiffe;
use cairn_test_support::stage::{Run, Stage, VIP, app_id, client_id};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A route that answers with its own name.
fn says(name: &str, matches: Value) -> Value {
    json!({ "name": name, "match": matches, "direct_response": { "status": 200, "body": name } })
}

async fn stage_with(routes: Value) -> (Stage, Run) {
    let stage = Stage::new().await;
    let run = stage.run(&stage.spec().http(VIP, routes)).await;
    (stage, run)
}

/// A request line and headers; `Host` is `app.test` unless given.
async fn ask(http: &mut Http1<H2Stream>, line: &str, headers: &[(&str, &str)]) -> Response {
    let (method, path) = line.split_once(' ').unwrap();
    within(line, http.request(method, path, headers, b"")).await.unwrap()
}

#[test]
fn paths_are_matched_in_order() {
    drive(async {
        let routes = json!([
            says("exact", json!({ "path": { "exact": "/exact" } })),
            says(
                "exact any case",
                json!({ "path": { "exact": "/Any-Case" }, "case_sensitive": false })
            ),
            says("first", json!({ "path": { "prefix": "/order/first" } })),
            says("second", json!({ "path": { "prefix": "/order" } })),
            says("never", json!({ "path": { "prefix": "/order/second" } })),
            says("separated", json!({ "path": { "path_separated_prefix": "/api/v1" } })),
            says(
                "prefix any case",
                json!({ "path": { "prefix": "/PRE" }, "case_sensitive": false })
            ),
            says("regex", json!({ "path": { "regex": "/items/[0-9]+" } })),
            says("alternatives", json!({ "path": { "regex": "/a|/bb" } })),
            says("empty prefix", json!({ "path": { "prefix": "/x" } })),
        ]);
        let (_stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        for (path, wanted) in [
            ("/exact", "exact"),
            ("/exact?query=1", "exact"),
            ("/exact/", ""),
            ("/exact1", ""),
            ("/EXACT", ""),
            ("/any-CASE", "exact any case"),
            ("/order/first/x", "first"),
            ("/order/second", "second"),
            ("/ordered", "second"),
            ("/api/v1", "separated"),
            ("/api/v1/", "separated"),
            ("/api/v1/x", "separated"),
            ("/api/v1?x", "separated"),
            ("/api/v1x", ""),
            ("/api", ""),
            ("/prefixed", "prefix any case"),
            ("/items/42", "regex"),
            ("/items/42?x=1", "regex"),
            ("/items/42/x", ""),
            ("/x/items/42", "empty prefix"),
            ("/items/", ""),
            ("/a", "alternatives"),
            ("/bb", "alternatives"),
            ("/ab", ""),
            ("/abb", ""),
        ] {
            let response = ask(&mut http, &format!("GET {path}"), &[]).await;
            let wanted = if wanted.is_empty() { (404, "") } else { (200, wanted) };
            assert_eq!((response.status, response.text().as_str()), wanted, "{path}");
        }
    });
}

#[test]
fn headers_are_matched() {
    drive(async {
        let one = |name: &str, header: &str, value: Value| {
            says(
                name,
                json!({ "path": { "exact": format!("/{name}") }, "headers": [{ "name": header, "match": value }] }),
            )
        };
        let mut inverted = json!({ "name": "x-a", "match": { "exact": "1" }, "invert": true });
        let plain_invert = inverted.clone();
        inverted["treat_missing_as_empty"] = json!(true);
        let routes = json!([
            one("h-exact", "X-A", json!({ "exact": "one" })),
            one("h-prefix", "x-a", json!({ "prefix": "one" })),
            one("h-suffix", "x-a", json!({ "suffix": "one" })),
            one("h-contains", "x-a", json!({ "contains": "one" })),
            one("h-regex", "x-a", json!({ "regex": "o.e" })),
            one("h-present", "x-a", json!({ "present": true })),
            one("h-absent", "x-a", json!({ "present": false })),
            says(
                "h-invert",
                json!({ "path": { "exact": "/h-invert" }, "headers": [plain_invert] })
            ),
            says(
                "h-invert-empty",
                json!({ "path": { "exact": "/h-invert-empty" }, "headers": [inverted] })
            ),
            says(
                "h-case",
                json!({ "path": { "exact": "/h-case" }, "headers": [{ "name": "x-a", "match": { "exact": "ONE" }, "ignore_case": true }] })
            ),
            one("h-method", ":method", json!({ "exact": "PUT" })),
            one("h-authority", ":authority", json!({ "exact": "shop.test" })),
            says(
                "h-both",
                json!({ "path": { "exact": "/h-both" }, "headers": [
                { "name": "x-a", "match": { "exact": "one" } }, { "name": "x-b", "match": { "present": true } },
            ] })
            ),
        ]);
        let (_stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        for (line, headers, matches) in [
            ("GET /h-exact", &[("X-A", "one")][..], true),
            ("GET /h-exact", &[("x-a", "one two")], false),
            ("GET /h-exact", &[("x-a", "ONE")], false),
            ("GET /h-exact", &[], false),
            ("GET /h-prefix", &[("x-a", "one two")], true),
            ("GET /h-prefix", &[("x-a", "two one")], false),
            ("GET /h-suffix", &[("x-a", "two one")], true),
            ("GET /h-suffix", &[("x-a", "one two")], false),
            ("GET /h-contains", &[("x-a", "two one two")], true),
            ("GET /h-contains", &[("x-a", "two")], false),
            ("GET /h-regex", &[("x-a", "one")], true),
            ("GET /h-regex", &[("x-a", "one!")], false),
            ("GET /h-present", &[("x-a", "")], true),
            ("GET /h-present", &[("x-b", "")], false),
            ("GET /h-absent", &[], true),
            ("GET /h-absent", &[("x-a", "1")], false),
            ("GET /h-invert", &[("x-a", "2")], true),
            ("GET /h-invert", &[("x-a", "1")], false),
            ("GET /h-invert", &[], false),
            ("GET /h-invert-empty", &[], true),
            ("GET /h-invert-empty", &[("x-a", "1")], false),
            ("GET /h-case", &[("x-a", "oNe")], true),
            ("PUT /h-method", &[], true),
            ("POST /h-method", &[], false),
            ("GET /h-authority", &[("Host", "shop.test")], true),
            ("GET /h-authority", &[], false),
            ("GET /h-both", &[("x-a", "one"), ("x-b", "")], true),
            ("GET /h-both", &[("x-a", "one")], false),
        ] {
            let response = ask(&mut http, line, headers).await;
            assert_eq!(response.status, if matches { 200 } else { 404 }, "{line} {headers:?}");
        }
    });
}

#[test]
fn query_parameters_are_matched() {
    drive(async {
        let one = |name: &str, value: Value| {
            says(
                name,
                json!({ "path": { "exact": format!("/{name}") }, "query": [{ "name": "q", "match": value }] }),
            )
        };
        let routes = json!([
            one("exact", json!({ "exact": "1" })),
            one("prefix", json!({ "prefix": "1" })),
            one("regex", json!({ "regex": "[0-9]+" })),
            one("present", json!({ "present": true })),
            one("absent", json!({ "present": false })),
        ]);
        let (_stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        for (path, matches) in [
            ("/exact?q=1", true),
            ("/exact?a=b&q=1&c", true),
            ("/exact?q=2", false),
            ("/exact?q=2&q=1", false),
            ("/exact?Q=1", false),
            ("/exact", false),
            ("/prefix?q=12", true),
            ("/regex?q=123", true),
            ("/regex?q=123x", false),
            ("/present?q", true),
            ("/present?q=", true),
            ("/present?p=q", false),
            ("/absent?p", true),
            ("/absent?q=1", false),
        ] {
            let response = ask(&mut http, &format!("GET {path}"), &[]).await;
            assert_eq!(response.status, if matches { 200 } else { 404 }, "{path}");
        }
    });
}

#[test]
fn virtual_hosts_are_chosen_by_domain() {
    drive(async {
        let host = |name: &str, domains: Value| json!({ "name": name, "domains": domains, "routes": [says(name, json!({ "path": { "prefix": "/" } }))] });
        let stage = Stage::new().await;
        let table = |hosts: Value| json!({ "name": "hosts", "addresses": ["10.96.0.10"], "port": 80, "http": { "routes": { "virtual_hosts": hosts } } });
        let mut all = vec![
            host("exact", json!(["app.example", "other.example:8080"])),
            host("suffix", json!(["*.example"])),
            host("longer suffix", json!(["*.sub.example"])),
            host("prefix", json!(["app.*"])),
        ];
        let bare = table(json!(all));
        all.push(host("any", json!(["*"])));
        let mut other = table(json!(all));
        merge(&mut other, json!({ "name": "any", "addresses": ["10.96.0.11"] }));
        let run = stage.run(&stage.spec().destination(bare).destination(other)).await;
        for (vip, fallback) in [(VIP, (404, "")), ("10.96.0.11:80", (200, "any"))] {
            let mut http = run.http_to(vip).await;
            for (name, wanted) in [
                ("app.example", (200, "exact")),
                ("APP.Example", (200, "exact")),
                ("other.example:8080", (200, "exact")),
                ("x.example", (200, "suffix")),
                ("x.sub.example", (200, "longer suffix")),
                ("app.test", (200, "prefix")),
                ("unknown.test", fallback),
            ] {
                let response = ask(&mut http, "GET /", &[("Host", name)]).await;
                assert_eq!((response.status, response.text().as_str()), wanted, "{name} at {vip}");
            }
        }
    });
}

#[test]
fn clusters_are_split_by_weight() {
    drive(async {
        let stage = Stage::new().await;
        let (canary, canary_pod) = stage.backend("canary").await;
        let (never, never_pod) = stage.backend("never").await;
        let split = json!([{
            "match": { "path": { "prefix": "/" } },
            "route": { "timeout": "0s", "weighted_clusters": [
                { "name": "app", "weight": 3 },
                { "name": "canary", "weight": 1 },
                { "name": "never", "weight": 0 },
            ] },
        }]);
        let spec = stage
            .spec()
            .cluster("canary", vec![hbone(&canary_pod, "10.1.0.2:8080", &app_id())])
            .cluster("never", vec![hbone(&never_pod, "10.1.0.3:8080", &app_id())])
            .http(VIP, split);
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for _ in 0..400 {
            assert_eq!(http.get("/").await.unwrap().status, 200);
        }
        assert_eq!(stage.app.requests() + canary.requests(), 400);
        assert_eq!(never.requests(), 0);
        // 100 are expected; five standard deviations are 43.
        assert!((57..=143).contains(&canary.requests()), "{}", canary.requests());
    });
}

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
        let (stage, run) = stage_with(routes).await;
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
            let response = ask(&mut http, &format!("GET {path}"), &[]).await;
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
        let (stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        let teapot = ask(&mut http, "GET /teapot", &[]).await;
        assert_eq!((teapot.status, teapot.text().as_str()), (418, "short and stout"));
        assert_eq!(teapot.header("content-type"), Some("text/plain"));
        let empty = ask(&mut http, "GET /empty", &[]).await;
        assert_eq!((empty.status, empty.body.len()), (200, 0));
        let html = ask(&mut http, "GET /html", &[]).await;
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
            assert_eq!(ask(&mut http, "GET /teapot", &[]).await.status, 418, "after {count}");
        }
        let head = ask(&mut http, "HEAD /teapot", &[]).await;
        assert_eq!((head.status, head.header("content-length")), (418, Some("15")));
        assert_eq!(ask(&mut http, "GET /nowhere", &[]).await.status, 404);
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
        let (_stage, run) = stage_with(routes).await;
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
            let echo = ask(&mut http, &format!("GET {path}"), &[]).await.json();
            assert_eq!(echo["path"], wanted, "{path}");
            assert_eq!(echoed(&echo, "x-envoy-original-path"), [path]);
            assert_eq!(echo["authority"], "app.test");
        }
        let echo = ask(&mut http, "GET /host", &[]).await.json();
        assert_eq!((&echo["authority"], &echo["path"]), (&json!("new.test"), &json!("/host")));
        assert!(echoed(&echo, "x-forwarded-host").is_empty());
        assert!(echoed(&echo, "x-envoy-original-path").is_empty());
        let echo = ask(&mut http, "GET /forwarded", &[]).await.json();
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
        let (_stage, run) = stage_with(routes).await;
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
fn a_timeout_is_504() {
    drive(async {
        let routes = json!([to("app", json!({ "timeout": "300ms" }))]);
        let (stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        let response = ask(&mut http, "GET /hold?gate=never", &[]).await;
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        eventually("the backend's request is cancelled", || stage.app.cancelled() == 1).await;
        assert_eq!(ask(&mut http, "GET /", &[]).await.status, 200);
        // After the head it is too late for a status: the response breaks off.
        let cut = within("an end", http.get("/gate?gate=never")).await;
        assert!(cut.is_err(), "{cut:?}");
        let h2c = run.h2c().await;
        let response = within("504", h2c.get("/hold?gate=never")).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
    });
}

#[test]
fn the_timeout_starts_after_the_request() {
    drive(async {
        let routes = json!([to("app", json!({ "timeout": "300ms" }))]);
        let (stage, run) = stage_with(routes).await;
        let mut http = run.http().await;
        http.send("POST /echo HTTP/1.1\r\nHost: app.test\r\nContent-Length: 8\r\n\r\nbody")
            .await
            .unwrap();
        // Other requests time out meanwhile: far more than 300 ms pass.
        for _ in 0..2 {
            assert_eq!(ask(&mut run.http().await, "GET /hold?gate=never", &[]).await.status, 504);
        }
        http.send("body").await.unwrap();
        assert_eq!(within("the answer", http.response()).await.unwrap().status, 200);
        assert_eq!(stage.app.last("/echo").body, "bodybody");
    });
}

#[test]
fn every_try_has_its_timeout() {
    drive(async {
        let retry = json!({ "on": ["5xx"], "attempts": 2, "per_try_timeout": "200ms", "backoff": { "base": "1ms" } });
        let (stage, run) = stage_with(json!([to("app", json!({ "retry": retry }))])).await;
        let mut http = run.http().await;
        let response = ask(&mut http, "GET /hold?gate=never", &[]).await;
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        eventually("three tries were cancelled", || stage.app.cancelled() == 3).await;
        assert_eq!(stage.app.count("/hold"), 3);
    });
}

/// Routes by the header `x-on`, each with one retry condition and two retries.
fn conditions() -> Value {
    let names = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
    ];
    let mut routes: Vec<Value> = names
        .iter()
        .map(|name| {
            let mut retry = json!({ "on": [name], "attempts": 2, "backoff": { "base": "1ms" } });
            if *name == "retriable-status-codes" {
                retry["status_codes"] = json!([418]);
            }
            json!({
                "match": { "path": { "prefix": "/" }, "headers": [{ "name": "x-on", "match": { "exact": name } }] },
                "route": { "cluster": "app", "timeout": "0s", "retry": retry },
            })
        })
        .collect();
    routes.push(to("app", json!({})));
    json!(routes)
}

#[test]
fn responses_are_retried_by_condition() {
    drive(async {
        let (stage, run) = stage_with(conditions()).await;
        let mut http = run.http().await;
        let fails = |status: u16| format!("/fail-first?n=2&status={status}");
        let mut id = 0;
        for (on, path, wanted) in [
            ("5xx", fails(500), 200),
            ("5xx", fails(503), 200),
            ("5xx", fails(409), 409),
            ("5xx", "/reset-first?n=2".to_owned(), 200),
            ("gateway-error", fails(502), 200),
            ("gateway-error", fails(503), 200),
            ("gateway-error", fails(504), 200),
            ("gateway-error", fails(500), 500),
            ("retriable-4xx", fails(409), 200),
            ("retriable-4xx", fails(404), 404),
            ("retriable-status-codes", fails(418), 200),
            ("retriable-status-codes", fails(503), 503),
            ("reset", "/reset-first?n=2".to_owned(), 200),
            ("reset", fails(503), 503),
            ("connect-failure", "/reset-first?n=2".to_owned(), 503),
            (
                "envoy-ratelimited",
                "/fail-first?n=2&status=429&fh=x-envoy-ratelimited:true".to_owned(),
                200,
            ),
            ("envoy-ratelimited", fails(429), 429),
            ("5xx", "/fail-first?n=3&status=500".to_owned(), 500),
            ("nothing", fails(503), 503),
        ] {
            id += 1;
            let test = id.to_string();
            let headers = [("X-On", on), ("X-Test-Id", &test)];
            let response = http.request("POST", &path, &headers, b"the body").await.unwrap();
            assert_eq!(response.status, wanted, "retry on {on}, {path}");
            if wanted == 200 {
                assert_eq!(response.json()["body"], "the body", "the body is sent again");
                assert_eq!(count_of(&stage, &test), 3, "retry on {on}, {path}");
            }
            if path.contains("n=3") {
                assert_eq!(response.text(), "attempt 3 fails", "the last response is the client's");
            }
        }
        // The same in HTTP/2.
        let h2c = run.h2c().await;
        let headers = [("x-on", "5xx"), ("x-test-id", "h2")];
        let response = h2c.request("POST", "/fail-first?n=2", &headers, b"the body").await.unwrap();
        assert_eq!((response.status, &response.json()["body"]), (200, &json!("the body")));
    });
}

fn count_of(stage: &Stage, id: &str) -> usize {
    stage.app.log().iter().filter(|seen| seen.headers.get("x-test-id") == Some(id)).count()
}

#[test]
fn failures_to_connect_are_retried_by_condition() {
    drive(async {
        let (stage, run) = stage_with(conditions()).await;
        let mut id = 0;
        for (on, wanted) in
            [("connect-failure", 200), ("5xx", 200), ("reset", 200), ("retriable-4xx", 503)]
        {
            id += 1;
            stage.pod.refuse_next(503, 2);
            let headers = [("X-On", on), ("X-Test-Id", &id.to_string())];
            // Not over an idle connection: a CONNECT is needed.
            stage.pod.drop_connections();
            eventually("no connection is left", || stage.pod.open_connections() == 0).await;
            let response = run.http().await.request("GET", "/", &headers, b"").await.unwrap();
            assert_eq!(response.status, wanted, "CONNECT 503, retry on {on}: {response:?}");
            stage.pod.refuse(200);
        }
        for (on, wanted) in [("refused-stream", 200), ("retriable-4xx", 503)] {
            stage.pod.drop_connections();
            eventually("no connection is left", || stage.pod.open_connections() == 0).await;
            stage.pod.reject_streams(2);
            let response =
                run.http().await.request("GET", "/", &[("X-On", on)], b"").await.unwrap();
            // A refused stream was never begun: it may be tried again without being asked to.
            assert!(response.status == wanted || response.status == 200, "{on}: {response:?}");
            stage.pod.reject_streams(0);
        }
    });
}

#[test]
fn dead_endpoints_are_passed_over() {
    drive(async {
        let stage = Stage::new().await;
        let dead = DeadPort::new();
        let retry =
            json!({ "on": ["connect-failure"], "attempts": 2, "backoff": { "base": "1ms" } });
        let endpoints = vec![
            hbone_at(dead.addr, "10.1.0.9:8080", &app_id()),
            plain(dead.addr),
            hbone(&stage.pod, "10.1.0.1:8080", &spiffe("shop", "app")),
        ];
        let spec = MeshSpec::new()
            .cluster("app", endpoints)
            .http(VIP, json!([to("app", json!({ "retry": retry }))]));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for round in 0..40 {
            let response = ask(&mut http, "GET /", &[]).await;
            assert_eq!((response.status, response.backend()), (200, "app"), "round {round}");
        }
    });
}

#[test]
fn a_retry_avoids_the_previous_host() {
    drive(async {
        let stage = Stage::new().await;
        let (other, other_pod) = stage.backend("other").await;
        let retry = json!({ "on": ["5xx"], "attempts": 1, "backoff": { "base": "1ms" } });
        let spec = MeshSpec::new()
            .cluster("app", vec![stage.endpoint(), hbone(&other_pod, "10.1.0.2:8080", &app_id())])
            .http(VIP, json!([to("app", json!({ "retry": retry }))]));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (broken, wanted) in [("x-fail-on", "app"), ("x-reset-on", "app")] {
            for round in 0..60 {
                let response = ask(&mut http, "GET /echo", &[(broken, "other")]).await;
                assert_eq!(
                    (response.status, response.backend()),
                    (200, wanted),
                    "{broken} round {round}"
                );
            }
        }
        assert!(other.requests() > 0, "nothing was retried");
    });
}

#[test]
fn bodies_beyond_the_replay_bound_are_not_retried() {
    drive(async {
        let (stage, run) = stage_with(conditions()).await;
        let mut http = run.http().await;
        let small = pattern(1_000_000);
        let headers = [("X-On", "5xx"), ("X-Test-Id", "small")];
        let response =
            http.request("POST", "/fail-first?n=1", &headers, small.as_bytes()).await.unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(stage.app.last("/fail-first").body_len, 1_000_000);
        let large = pattern(3_000_000);
        let headers = [("X-On", "5xx"), ("X-Test-Id", "large")];
        let response =
            http.request("POST", "/fail-first?n=1", &headers, large.as_bytes()).await.unwrap();
        assert_eq!((response.status, count_of(&stage, "large")), (503, 1));
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
        ask(&mut http, "GET /suffix", &[]).await;
        eventually("the copy arrives", || shadow.count("/suffix") == 1).await;
        assert_eq!(shadow.last("/suffix").authority, "app.test-shadow");
        let h2c = run.h2c().await;
        h2c.request("POST", "/h2", &[], b"h2 body").await.unwrap();
        eventually("the copy arrives", || shadow.count("/h2") == 1).await;
        assert_eq!(shadow.last("/h2").body, "h2 body");
        // What becomes of the copy is nobody's business.
        for path in ["/nowhere", "/echo"] {
            let response =
                ask(&mut http, &format!("GET {path}"), &[("x-reset-on", "shadow")]).await;
            assert_eq!((response.status, response.backend()), (200, "app"), "{path}");
        }
        for _ in 0..20 {
            ask(&mut http, "GET /never", &[]).await;
        }
        shadow_pod.refuse(503);
        shadow_pod.drop_connections();
        assert_eq!(ask(&mut http, "GET /echo", &[]).await.status, 200);
        assert_eq!(shadow.count("/never"), 0);
    });
}

#[test]
fn missing_and_empty_clusters_are_told_apart() {
    drive(async {
        let stage = Stage::new().await;
        let exact = |path: &str| json!({ "exact": path });
        let mut sick = stage.endpoint();
        sick["health"] = json!("unhealthy");
        let mut leaving = stage.endpoint();
        leaving["health"] = json!("draining");
        leaving["address"] = json!("10.1.0.2:8080");
        let spec = stage.spec().cluster("empty", vec![]).cluster("sick", vec![sick, leaving]).http(
            VIP,
            json!([
                at(exact("/missing"), "missing", json!({})),
                at(exact("/missing500"), "missing", json!({ "cluster_not_found_status": 500 })),
                at(exact("/missing404"), "missing", json!({ "cluster_not_found_status": 404 })),
                at(exact("/empty"), "empty", json!({})),
                at(exact("/sick"), "sick", json!({})),
            ]),
        );
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (path, status, body) in [
            ("/missing", 503, ""),
            ("/missing500", 500, ""),
            ("/missing404", 404, ""),
            ("/empty", 503, "no healthy upstream"),
            ("/sick", 503, "no healthy upstream"),
        ] {
            let response = ask(&mut http, &format!("GET {path}"), &[]).await;
            assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
        }
        assert_eq!(stage.app.requests(), 0);
    });
}

/// Three backends behind plain listeners, in the cluster `app` with more fields of the cluster and of each endpoint.
async fn three(cluster: Value, fields: [Value; 3]) -> (Stage, Run, Vec<Endpoint>) {
    let stage = Stage::new().await;
    let mut kept = Vec::new();
    let mut list = Vec::new();
    for (name, more) in ["one", "two", "three"].iter().zip(fields) {
        let listener = Endpoint::plain(&cairn_test_support::backend::Backend::new(name)).await;
        let mut endpoint = plain(listener.addr);
        merge(&mut endpoint, more);
        list.push(endpoint);
        kept.push(listener);
    }
    let spec =
        MeshSpec::new().cluster_with("app", cluster, list).http(VIP, json!([to("app", json!({}))]));
    let run = stage.run(&spec).await;
    (stage, run, kept)
}

/// How many of `count` requests went where.
async fn shares(run: &Run, count: usize) -> HashMap<String, usize> {
    let mut http = run.http().await;
    let mut shares = HashMap::new();
    for _ in 0..count {
        let backend = ask(&mut http, "GET /status/200", &[]).await.backend().to_owned();
        *shares.entry(backend).or_default() += 1;
    }
    shares
}

#[test]
fn endpoints_share_by_policy_and_weight() {
    drive(async {
        for policy in ["least_request", "round_robin", "random"] {
            let equal = [json!({}), json!({}), json!({})];
            let (_stage, run, _kept) = three(json!({ "lb": policy }), equal).await;
            let shares = shares(&run, 300).await;
            for name in ["one", "two", "three"] {
                // 100 are expected; five standard deviations of a random draw are 41.
                assert!((59..=141).contains(&shares[name]), "{policy}: {shares:?}");
            }
        }
        for policy in ["least_request", "round_robin", "random"] {
            let weighted = [json!({ "weight": 6 }), json!({ "weight": 3 }), json!({ "weight": 1 })];
            let (_stage, run, _kept) = three(json!({ "lb": policy }), weighted).await;
            let shares = shares(&run, 500).await;
            assert!(
                shares["one"] > shares["two"] && shares["two"] > shares["three"],
                "{policy}: {shares:?}"
            );
            assert!(shares["three"] > 10, "{policy}: {shares:?}");
        }
    });
}

#[test]
fn health_and_priority_decide_who_is_used() {
    drive(async {
        for (fields, wanted) in [
            ([json!({ "health": "unhealthy" }), json!({}), json!({ "health": "draining" })], "two"),
            ([json!({ "priority": 1 }), json!({ "priority": 1 }), json!({})], "three"),
            (
                [
                    json!({ "health": "unhealthy" }),
                    json!({ "priority": 1 }),
                    json!({ "priority": 2 }),
                ],
                "two",
            ),
        ] {
            let (_stage, run, _kept) = three(json!({}), fields.clone()).await;
            let shares = shares(&run, 30).await;
            assert_eq!(shares.get(wanted), Some(&30), "{fields:?}: {shares:?}");
        }
    });
}

#[test]
fn the_less_busy_endpoint_is_preferred() {
    drive(async {
        let stage = Stage::new().await;
        let (other, other_pod) = stage.backend("other").await;
        let only = |endpoint: Value| {
            let both = vec![stage.endpoint(), hbone(&other_pod, "10.1.0.2:8080", &app_id())];
            MeshSpec::new()
                .cluster("app", if endpoint.is_null() { both } else { vec![endpoint] })
                .http(VIP, json!([to("app", json!({}))]))
        };
        let run = stage.run(&only(stage.endpoint())).await;
        let h2c = run.h2c().await;
        let held: Vec<_> = (0..20)
            .map(|_| {
                let h2c = h2c.clone();
                tokio::spawn(async move { h2c.get("/hold?gate=busy").await.unwrap().status })
            })
            .collect();
        eventually("`app` is busy", || stage.app.waiting() == 20).await;
        run.waypoint.apply(&only(Value::Null));
        let before = stage.app.requests();
        let mut http = run.http().await;
        for _ in 0..100 {
            assert_eq!(ask(&mut http, "GET /", &[]).await.status, 200);
        }
        // `app` is taken only where both draws fall on it: a quarter.
        let app = stage.app.requests() - before;
        assert!(other.requests() > app, "{} and {app}", other.requests());
        stage.app.release("busy");
        for held in held {
            assert_eq!(held.await.unwrap(), 200);
        }
    });
}
