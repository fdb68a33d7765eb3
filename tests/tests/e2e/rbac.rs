//! Authorization of requests, however they are spelt.

use cairn_test_support::backend::echoed;
use cairn_test_support::config::{all_to, merge, rbac};
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::Http1;
use cairn_test_support::raw_h2::RawH2;
use cairn_test_support::stage::{Run, Stage, VIP, VIP2, client_id};
use cairn_test_support::wait::{drive, within};
use serde_json::{Value, json};

async fn stage_with(filters: Value) -> (Stage, Run) {
    let stage = Stage::new().await;
    let spec = stage.spec().http_with(VIP, all_to("app"), json!({ "filters": filters }));
    let run = stage.run(&spec).await;
    (stage, run)
}

async fn status(client: &HboneClient, line: &str, headers: &[(&str, &str)]) -> u16 {
    let mut http = Http1::new(client.open(VIP).await.unwrap());
    let (method, path) = line.split_once(' ').unwrap();
    within(line, http.request(method, path, headers, b"")).await.unwrap().status
}

#[test]
fn a_denial_is_envoys() {
    drive(async {
        let (stage, run) = stage_with(json!([rbac("DENY", json!(["any"]), json!(["any"]))])).await;
        let mut http = run.http().await;
        let response = http.get("/").await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (403, "RBAC: access denied"));
        assert_eq!(response.header("content-type"), Some("text/plain"));
        assert_eq!(response.header("server"), Some("istio-envoy"));
        assert!(!response.headers.has("x-envoy-upstream-service-time"));
        // The connection goes on.
        let response = http.request("POST", "/", &[], b"body").await.unwrap();
        assert_eq!(response.status, 403);
        assert_eq!(run.h2c().await.get("/").await.unwrap().text(), "RBAC: access denied");
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn principals_are_the_certificates() {
    drive(async {
        let authenticated = |matcher: Value| json!({ "authenticated": matcher });
        for (matcher, client_passes, other_passes) in [
            (json!({ "exact": client_id() }), true, false),
            (json!({ "exact": "spiffe://cluster.local/ns/web/sa/clien" }), false, false),
            (json!({ "prefix": "spiffe://cluster.local/ns/web/" }), true, true),
            (json!({ "suffix": "/sa/client" }), true, false),
            (json!({ "contains": "/ns/web/" }), true, true),
            (json!({ "regex": ".*/ns/web/sa/cl.*" }), true, false),
            (json!({ "regex": "/ns/web/" }), false, false),
        ] {
            let (stage, run) = stage_with(json!([rbac(
                "ALLOW",
                json!(["any"]),
                json!([authenticated(matcher.clone())])
            )]))
            .await;
            let other = run.waypoint.connect(&stage.ca.workload("web", "other")).await;
            for (client, passes) in [(&run.client, client_passes), (&other, other_passes)] {
                let wanted = if passes { 200 } else { 403 };
                assert_eq!(status(client, "GET /", &[]).await, wanted, "{matcher}");
            }
        }
        // Headers are not believed.
        let admin = rbac(
            "ALLOW",
            json!(["any"]),
            json!([authenticated(json!({ "exact": "spiffe://cluster.local/ns/web/sa/admin" }))]),
        );
        let (_stage, run) = stage_with(json!([admin])).await;
        let forged = [
            ("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/web/sa/admin"),
            ("Forwarded", "for=10.0.0.1"),
        ];
        assert_eq!(status(&run.client, "GET /", &forged).await, 403);
    });
}

#[test]
fn every_attribute_is_matched() {
    drive(async {
        let header =
            |name: &str, value: Value| json!({ "header": { "name": name, "match": value } });
        let cases = vec![
            ("method", json!({ "method": { "exact": "POST" } }), "POST /", vec![], "GET /", vec![]),
            (
                "host",
                json!({ "host": { "exact": "Shop.Test" } }),
                "GET /",
                vec![("Host", "SHOP.test")],
                "GET /",
                vec![],
            ),
            (
                "host suffix",
                json!({ "host": { "suffix": ".test" } }),
                "GET /",
                vec![],
                "GET /",
                vec![("Host", "app.com")],
            ),
            (
                "header",
                header("x-a", json!({ "exact": "1" })),
                "GET /",
                vec![("X-A", "1")],
                "GET /",
                vec![("X-A", "2")],
            ),
            (
                "header present",
                header("x-a", json!({ "present": true })),
                "GET /",
                vec![("X-A", "")],
                "GET /",
                vec![],
            ),
            (
                "path exact",
                json!({ "path": { "exact": "/in" } }),
                "GET /in?x",
                vec![],
                "GET /in/",
                vec![],
            ),
            (
                "path prefix",
                json!({ "path": { "prefix": "/in/" } }),
                "GET /in/x",
                vec![],
                "GET /in",
                vec![],
            ),
            (
                "path suffix",
                json!({ "path": { "suffix": ".js" } }),
                "GET /a.js?x",
                vec![],
                "GET /a.jsx",
                vec![],
            ),
            (
                "path regex",
                json!({ "path": { "regex": "/[0-9]+" } }),
                "GET /42",
                vec![],
                "GET /42/x",
                vec![],
            ),
            ("port", json!({ "destination_port": 80 }), "GET /", vec![], "", vec![]),
            ("other port", json!({ "destination_port": 8080 }), "", vec![], "GET /", vec![]),
            ("ip", json!({ "destination_ip": "10.96.0.0/16" }), "GET /", vec![], "", vec![]),
            ("other ip", json!({ "destination_ip": "10.1.0.0/16" }), "", vec![], "GET /", vec![]),
            (
                "not",
                json!({ "not": { "path": { "exact": "/x" } } }),
                "GET /y",
                vec![],
                "GET /x",
                vec![],
            ),
            (
                "and",
                json!({ "and": [{ "method": { "exact": "GET" } }, { "path": { "exact": "/x" } }] }),
                "GET /x",
                vec![],
                "POST /x",
                vec![],
            ),
            (
                "or",
                json!({ "or": [{ "path": { "exact": "/x" } }, { "path": { "exact": "/y" } }] }),
                "GET /y",
                vec![],
                "GET /z",
                vec![],
            ),
        ];
        for (what, permission, inside, inside_headers, outside, outside_headers) in cases {
            for (action, passes, refused) in
                [("ALLOW", 200, 403), ("DENY", 403, 200), ("LOG", 200, 200)]
            {
                let (_stage, run) =
                    stage_with(json!([rbac(action, json!([permission]), json!(["any"]))])).await;
                if !inside.is_empty() {
                    assert_eq!(
                        status(&run.client, inside, &inside_headers).await,
                        passes,
                        "{action} {what}: {inside}"
                    );
                }
                if !outside.is_empty() {
                    assert_eq!(
                        status(&run.client, outside, &outside_headers).await,
                        refused,
                        "{action} {what}: {outside}"
                    );
                }
            }
        }
    });
}

#[test]
fn principals_may_be_addresses_and_headers() {
    drive(async {
        for (principal, passes) in [
            (json!({ "source_ip": "127.0.0.0/8" }), true),
            (json!({ "source_ip": "10.0.0.0/8" }), false),
            (json!({ "remote_ip": "127.0.0.1" }), false),
            (json!({ "remote_ip": "1.2.3.4" }), true),
            (json!({ "header": { "name": "x-key", "match": { "exact": "open" } } }), true),
            (
                json!({ "not": { "header": { "name": "x-key", "match": { "exact": "open" } } } }),
                false,
            ),
            (
                json!({ "and": [{ "source_ip": "127.0.0.1" }, { "authenticated": { "exact": client_id() } }] }),
                true,
            ),
            (
                json!({ "or": [{ "source_ip": "10.0.0.1" }, { "authenticated": { "exact": client_id() } }] }),
                true,
            ),
            (json!("any"), true),
        ] {
            let (_stage, run) =
                stage_with(json!([rbac("ALLOW", json!(["any"]), json!([principal]))])).await;
            let headers = [("X-Key", "open"), ("X-Forwarded-For", "1.2.3.4")];
            let wanted = if passes { 200 } else { 403 };
            assert_eq!(status(&run.client, "GET /", &headers).await, wanted, "{principal}");
        }
    });
}

#[test]
fn filters_are_decided_in_order() {
    drive(async {
        let deny = rbac("DENY", json!([{ "path": { "prefix": "/admin" } }]), json!(["any"]));
        let log = rbac("LOG", json!(["any"]), json!(["any"]));
        let allow = rbac(
            "ALLOW",
            json!([{ "method": { "exact": "GET" } }]),
            json!([{ "authenticated": { "exact": client_id() } }]),
        );
        let (stage, run) = stage_with(json!([log, deny, allow])).await;
        let other = run.waypoint.connect(&stage.ca.workload("web", "other")).await;
        assert_eq!(status(&run.client, "GET /", &[]).await, 200);
        assert_eq!(status(&run.client, "POST /", &[]).await, 403);
        assert_eq!(status(&run.client, "GET /admin", &[]).await, 403);
        assert_eq!(status(&other, "GET /", &[]).await, 403);
        let (_stage, run) =
            stage_with(json!([{ "rbac": { "action": "ALLOW", "policies": {} } }])).await;
        assert_eq!(
            status(&run.client, "GET /", &[]).await,
            403,
            "ALLOW without policies allows nobody"
        );
        let (_stage, run) =
            stage_with(json!([{ "rbac": { "action": "DENY", "policies": {} } }])).await;
        assert_eq!(
            status(&run.client, "GET /", &[]).await,
            200,
            "DENY without policies denies nobody"
        );
    });
}

/// Spellings of `/admin`.
const SPELLINGS: [&str; 22] = [
    "/admin",
    "/admin?x=1",
    "/admin?",
    "/./admin",
    "/././admin",
    "/x/../admin",
    "/x/y/../../admin",
    "/x/%2e%2e/admin",
    "/x/%2E%2E/admin",
    "/x/.%2e/admin",
    "/%2e/admin",
    "/../admin",
    "/../../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "/adm%69n",
    "\\admin",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/x\\%2e%2e/admin",
    "/.\\admin",
    "/x/./../admin",
];

#[test]
fn a_denied_path_has_no_other_spelling() {
    drive(async {
        for matcher in [
            json!({ "exact": "/admin" }),
            json!({ "prefix": "/admin" }),
            json!({ "regex": "/admin" }),
        ] {
            let (stage, run) =
                stage_with(json!([rbac("DENY", json!([{ "path": matcher }]), json!(["any"]))]))
                    .await;
            for path in SPELLINGS {
                let seen = status(&run.client, &format!("GET {path}"), &[]).await;
                assert!(matches!(seen, 400 | 403), "{path} under {matcher}: {seen}");
                let mut raw = RawH2::new(run.tunnel(VIP).await);
                raw.preface(&[]).await.unwrap();
                let fields = [
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", path),
                    (":authority", "app.test"),
                ];
                raw.headers(1, &fields, true).await.unwrap();
                let answer = within(path, raw.answer(1)).await;
                assert_ne!(answer.and_then(|frame| frame.status()), Some(200), "h2 {path}");
            }
            for path in [
                "http://app.test/admin",
                "http://app.test/x/../admin",
                "/admin#x",
                "/admin%00",
                "/x/../admin#",
            ] {
                let seen = status(&run.client, &format!("GET {path}"), &[]).await;
                assert!(matches!(seen, 400 | 403), "{path} under {matcher}: {seen}");
            }
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            let fragment = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/admin#x"),
                (":authority", "app.test"),
            ];
            raw.headers(1, &fragment, true).await.unwrap();
            let answer = within("a fragment", raw.answer(1)).await;
            assert_ne!(answer.and_then(|frame| frame.status()), Some(200), "h2 with a fragment");
            assert_eq!(stage.app.requests(), 0, "{:?}", stage.app.log());
            assert_eq!(status(&run.client, "GET /administrator/../public", &[]).await, 200);
        }
    });
}

#[test]
fn an_allowed_path_is_not_a_way_to_another() {
    drive(async {
        let (stage, run) = stage_with(json!([rbac(
            "ALLOW",
            json!([{ "path": { "prefix": "/public/" } }]),
            json!(["any"])
        )]))
        .await;
        for path in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/..\\admin",
            "/public\\..\\admin",
            "/public/./../admin",
            "/public/x/../../admin",
            "/PUBLIC/x",
        ] {
            let seen = status(&run.client, &format!("GET {path}"), &[]).await;
            assert!(matches!(seen, 400 | 403), "{path}: {seen}");
        }
        assert_eq!(stage.app.requests(), 0, "{:?}", stage.app.log());
        // Slashes that stay encoded stay encoded for the backend too.
        assert_eq!(status(&run.client, "GET /public/..%2fadmin", &[]).await, 200);
        assert_eq!(stage.app.last("/public").target, "/public/..%2fadmin");
    });
}

#[test]
fn slashes_are_merged_where_that_is_asked_for() {
    drive(async {
        let stage = Stage::new().await;
        let deny =
            json!([rbac("DENY", json!([{ "path": { "prefix": "/admin" } }]), json!(["any"]))]);
        let mut merging = json!({ "filters": deny });
        merge(&mut merging, json!({ "merge_slashes": true }));
        let spec = stage.spec().http_with(VIP, all_to("app"), merging).http_with(
            VIP2,
            all_to("app"),
            json!({ "filters": deny }),
        );
        let run = stage.run(&spec).await;
        for path in ["//admin", "///admin", "/x/..//admin", "/.//admin", "//x/../admin"] {
            assert_eq!(status(&run.client, &format!("GET {path}"), &[]).await, 403, "{path}");
        }
        assert_eq!(stage.app.requests(), 0);
        // As Envoy: otherwise they are another path, for the policy and for the backend.
        let mut http = run.http_to(VIP2).await;
        assert_eq!(http.get("//admin").await.unwrap().json()["path"], "//admin");
    });
}

#[test]
fn a_changed_policy_holds_for_the_next_request() {
    drive(async {
        let (stage, run) = stage_with(json!([])).await;
        let mut http = run.http().await;
        let h2c = run.h2c().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
        let deny = rbac("DENY", json!(["any"]), json!(["any"]));
        run.waypoint.apply(&stage.spec().http_with(
            VIP,
            all_to("app"),
            json!({ "filters": [deny] }),
        ));
        assert_eq!(http.get("/").await.unwrap().status, 403, "on the same tunnel");
        assert_eq!(h2c.get("/").await.unwrap().status, 403, "on the same tunnel");
        run.waypoint.apply(&stage.spec().http(VIP, all_to("app")));
        assert_eq!(http.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn upgrades_are_authorized_too() {
    drive(async {
        let deny = rbac("DENY", json!([{ "path": { "exact": "/ws" } }]), json!(["any"]));
        let (stage, run) = stage_with(json!([deny])).await;
        let refused =
            cairn_test_support::websocket::upgrade(run.http().await, "/x/../ws").await.unwrap();
        assert_eq!(refused.unwrap_err().status, 403);
        assert_eq!(stage.app.requests(), 0);
    });
}

/// What `Connection` names belongs to one hop: no policy counts on it, and nothing of ours goes with it.
#[test]
fn fields_that_connection_names_are_gone_before_policies() {
    drive(async {
        let read_only =
            json!([{ "header": { "name": "x-readonly", "match": { "exact": "true" } } }]);
        let ours = json!({ "request_headers": {
            "add": [{ "name": "x-forwarded-client-cert", "value": "ours", "action": "overwrite" }],
        } });
        let filters = json!([rbac("ALLOW", read_only, json!(["any"])), ours]);
        let (stage, run) = stage_with(filters).await;
        let named = [("Connection", "x-readonly"), ("X-Readonly", "true")];
        assert_eq!(status(&run.client, "GET /", &named).await, 403);
        assert_eq!(stage.app.requests(), 0);
        let named = [("Connection", "x-forwarded-client-cert"), ("X-Readonly", "true")];
        let mut http = run.http().await;
        let echo =
            within("an echo", http.request("GET", "/echo", &named, b"")).await.unwrap().json();
        assert_eq!(echoed(&echo, "x-forwarded-client-cert"), ["ours"]);
    });
}

/// Names that are no text are no way around policies on hosts.
#[test]
fn hosts_of_http2_are_looked_at() {
    drive(async {
        let host = json!([{ "not": { "host": { "prefix": "admin.example.com" } } }]);
        let (stage, run) = stage_with(json!([rbac("ALLOW", host, json!(["any"]))])).await;
        for (host, status) in [
            ("app.example.com", 200),
            ("admin.example.com", 403),
            ("admin.example.com\u{ff}", 400),
            ("admin.example.com/", 400),
        ] {
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", host)];
            raw.headers(1, &fields, true).await.unwrap();
            let answer = within(host, raw.answer(1)).await;
            assert_eq!(answer.and_then(|frame| frame.status()), Some(status), "{host}");
        }
        assert_eq!(stage.app.requests(), 1);
    });
}
