//! Which route a request takes.

use cairn_test_support::config::merge;
use cairn_test_support::stage::{Stage, VIP};
use cairn_test_support::wait::drive;
use serde_json::{Value, json};

/// A route that answers with its own name.
fn says(name: &str, matches: Value) -> Value {
    json!({ "name": name, "match": matches, "direct_response": { "status": 200, "body": name } })
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
        let (_stage, run) = Stage::routed(routes).await;
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
            let response = http.ask(&format!("GET {path}"), &[]).await;
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
        let (_stage, run) = Stage::routed(routes).await;
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
            let response = http.ask(line, headers).await;
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
        let (_stage, run) = Stage::routed(routes).await;
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
            let response = http.ask(&format!("GET {path}"), &[]).await;
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
                let response = http.ask("GET /", &[("Host", name)]).await;
                assert_eq!((response.status, response.text().as_str()), wanted, "{name} at {vip}");
            }
        }
    });
}
