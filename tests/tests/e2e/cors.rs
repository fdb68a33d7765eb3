//! Cross-origin requests.

use cairn_test_support::config::{MeshSpec, all_to, at};
use cairn_test_support::stage::{Stage, VIP};
use cairn_test_support::wait::drive;
use serde_json::{Value, json};

const ORIGIN: (&str, &str) = ("Origin", "https://a.example");
const STRANGER: (&str, &str) = ("Origin", "https://x.example");
const ASKS: (&str, &str) = ("Access-Control-Request-Method", "PUT");

fn policy() -> Value {
    json!({
        "allow_origins": [{ "exact": "https://a.example" }],
        "allow_methods": "GET,PUT",
        "allow_headers": "x-a,x-b",
        "expose_headers": "x-e",
        "max_age": "600",
        "allow_credentials": true,
    })
}

fn with_cors(mut route: Value, cors: Value) -> Value {
    route["cors"] = cors;
    route
}

fn exact(path: &str, cluster: &str) -> Value {
    at(json!({ "exact": path }), cluster, json!({}))
}

#[test]
fn preflights_are_answered() {
    drive(async {
        let mut strict = policy();
        strict["forward_not_matching_preflights"] = json!(false);
        let (stage, run) = Stage::routed(json!([
            with_cors(exact("/strict", "app"), strict),
            with_cors(exact("/", "app"), policy()),
        ]))
        .await;
        let mut http = run.http().await;
        let answer = http.ask("OPTIONS /", &[ORIGIN, ASKS]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        for (name, value) in [
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-a,x-b"),
            ("access-control-max-age", "600"),
            ("access-control-expose-headers", "x-e"),
            ("server", "istio-envoy"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        let refused = http.ask("OPTIONS /strict", &[STRANGER, ASKS]).await;
        assert_eq!((refused.status, refused.body.len()), (200, 0));
        assert!(!refused.headers.has("access-control-allow-origin"));
        assert_eq!(refused.header("access-control-allow-methods"), Some("GET,PUT"));
        assert_eq!(stage.app.requests(), 0);

        // Another origin's preflight, and what is none, is the endpoint's.
        let forwarded = http.ask("OPTIONS /", &[STRANGER, ASKS]).await;
        assert_eq!(forwarded.backend(), "app");
        assert!(!forwarded.headers.has("access-control-allow-origin"));
        let no_preflight = http.ask("OPTIONS /", &[ORIGIN]).await;
        assert_eq!(no_preflight.backend(), "app");
        assert_eq!(no_preflight.header("access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(stage.app.requests(), 2);
    });
}

#[test]
fn responses_say_what_may_be_seen() {
    drive(async {
        let stage = Stage::new().await;
        let theirs = "/?h=access-control-allow-origin:theirs&h=access-control-expose-headers:y";
        let direct = json!({
            "match": { "path": { "exact": "/direct" } },
            "direct_response": { "status": 200, "body": "direct" },
        });
        let mut aborted = exact("/aborted", "app");
        aborted["fault"] = json!({ "abort": { "http_status": 503, "percent": 100.0 } });
        let routes = json!([
            with_cors(direct, policy()),
            with_cors(aborted, policy()),
            with_cors(exact("/missing", "missing"), policy()),
            with_cors(exact("/empty", "empty"), policy()),
            with_cors(exact("/any", "app"), json!({ "allow_origins": [{ "exact": "*" }] })),
            with_cors(exact("/", "app"), policy()),
        ]);
        let spec: MeshSpec = stage.spec().cluster("empty", vec![]).http(VIP, routes);
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        for (path, status) in
            [("/", 200), (theirs, 200), ("/direct", 200), ("/missing", 503), ("/empty", 503)]
        {
            let response = http.ask(&format!("GET {path}"), &[ORIGIN]).await;
            assert_eq!(response.status, status, "{path}");
            for (name, value) in [
                ("access-control-allow-origin", "https://a.example"),
                ("access-control-allow-credentials", "true"),
                ("access-control-expose-headers", "x-e"),
            ] {
                assert_eq!(response.headers.all(name), [value], "{path}");
            }
            assert!(!response.headers.has("access-control-allow-methods"), "{path}");
        }
        // The fault comes before the policy.
        let aborted = http.ask("GET /aborted", &[ORIGIN]).await;
        assert_eq!(aborted.status, 503);
        assert!(!aborted.headers.has("access-control-allow-origin"));
        let any = http.ask("GET /any", &[("Origin", "null")]).await;
        assert_eq!(any.header("access-control-allow-origin"), Some("null"));
        assert!(!any.headers.has("access-control-allow-credentials"));
        for headers in [&[STRANGER][..], &[]] {
            let response = http.ask("GET /", headers).await;
            assert!(!response.headers.has("access-control-allow-origin"), "{headers:?}");
        }
        let left_alone = http.ask(&format!("GET {theirs}"), &[STRANGER]).await;
        assert_eq!(left_alone.header("access-control-allow-origin"), Some("theirs"));
    });
}

#[test]
fn without_a_policy_nothing_happens() {
    drive(async {
        let (_stage, run) = Stage::routed(all_to("app")).await;
        let response = run.http().await.ask("OPTIONS /", &[ORIGIN, ASKS]).await;
        assert_eq!(response.backend(), "app");
        assert!(!response.headers.has("access-control-allow-origin"));
    });
}
