//! What a chain does to headers and paths: names, ids, addresses, Envoy's own, escaped slashes, and
//! changes in front of the routes.

use cairn_test_support::backend::echoed;
use cairn_test_support::config::{all_to, rbac, to};
use cairn_test_support::stage::{Run, Stage, VIP, client_id, waypoint_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A waypoint with more fields of the HTTP chain, and routes that send everything to the pod.
async fn chain(more: Value) -> (Stage, Run) {
    routed(all_to("app"), more).await
}

async fn routed(routes: Value, more: Value) -> (Stage, Run) {
    let stage = Stage::new().await;
    let run = stage.run(&stage.spec().http_with(VIP, routes, more)).await;
    (stage, run)
}

#[test]
fn who_answers_is_the_chains_choice() {
    drive(async {
        for (mode, theirs, ours) in [
            ("overwrite", Some("cairn"), Some("cairn")),
            ("append_if_absent", Some("backend"), Some("cairn")),
            ("pass_through", Some("backend"), None),
        ] {
            let more = json!({ "server": "cairn", "server_mode": mode });
            let (_stage, run) = routed(
                json!([
                    { "match": { "path": { "exact": "/local" } }, "direct_response": { "status": 200 } },
                    to("app", json!({})),
                ]),
                more,
            )
            .await;
            let mut http = run.http().await;
            assert_eq!(http.get("/").await.unwrap().header("server"), theirs, "{mode}");
            assert_eq!(http.get("/local").await.unwrap().header("server"), ours, "{mode}");
        }
    });
}

#[test]
fn request_headers_are_the_chains_choice() {
    drive(async {
        let (_stage, run) = chain(json!({})).await;
        let sent = [("X-Forwarded-Client-Cert", "URI=spiffe://x"), ("X-Forwarded-Port", "1")];
        let mut http = run.http().await;
        let echo = http.ask("GET /", &sent).await.json();
        assert_eq!(echoed(&echo, "x-forwarded-client-cert"), [""; 0]);
        assert_eq!(echoed(&echo, "x-forwarded-port"), ["1"]);
        assert_eq!(echoed(&echo, "x-request-id").len(), 1);
        let echo = http.ask("GET /", &[]).await.json();
        assert_eq!(echoed(&echo, "x-forwarded-port"), [""; 0]);

        let (_stage, run) = chain(json!({
            "forwarded_client_cert": "always_forward_only",
            "generate_request_id": false,
            "append_x_forwarded_port": true,
        }))
        .await;
        let mut http = run.http().await;
        let echo = http.ask("GET /", &sent).await.json();
        assert_eq!(echoed(&echo, "x-forwarded-client-cert"), ["URI=spiffe://x"]);
        assert_eq!(echoed(&echo, "x-forwarded-port"), ["1"]);
        assert_eq!(echoed(&echo, "x-request-id"), [""; 0]);
        let echo = http.ask("GET /", &[("X-Request-Id", "mine")]).await.json();
        assert_eq!(echoed(&echo, "x-forwarded-port"), ["80"]);
        assert_eq!(echoed(&echo, "x-request-id"), ["mine"]);
    });
}

#[test]
fn envoys_headers_can_be_kept_back() {
    drive(async {
        let action = json!({ "timeout": "10s", "prefix_rewrite": "/new" });
        for suppressed in [false, true] {
            let more = json!({ "suppress_envoy_headers": suppressed });
            let (_stage, run) = routed(json!([to("app", action.clone())]), more).await;
            let response = run.http().await.get("/old").await.unwrap();
            assert_eq!(response.headers.has("x-envoy-upstream-service-time"), !suppressed);
            let echo = response.json();
            assert_eq!(echo["path"], "/newold");
            for (name, value) in
                [("x-envoy-expected-rq-timeout-ms", "10000"), ("x-envoy-original-path", "/old")]
            {
                let expected = if suppressed { vec![] } else { vec![value] };
                assert_eq!(echoed(&echo, name), expected, "{name}");
            }
        }
    });
}

#[test]
fn a_route_can_name_itself() {
    drive(async {
        let mut named = to("app", json!({}));
        named["match"] = json!({ "path": { "exact": "/named" } });
        named["decorator"] = json!("app:80/*");
        let direct = json!({
            "match": { "path": { "exact": "/direct" } },
            "direct_response": { "status": 200 },
            "decorator": "direct",
        });
        let (_stage, run) = routed(json!([named, direct, to("app", json!({}))]), json!({})).await;
        let mut http = run.http().await;
        for (path, operation) in
            [("/named", Some("app:80/*")), ("/direct", Some("direct")), ("/", None)]
        {
            let response = http.get(path).await.unwrap();
            assert_eq!(response.header("x-envoy-decorator-operation"), operation, "{path}");
        }
    });
}

#[test]
fn escaped_slashes_are_the_chains_choice() {
    drive(async {
        let escaped = "/a%2Fb%5c%2e%2e/c?d=%2F";
        for (action, status, path, location) in [
            ("keep_unchanged", 200, "/a%2Fb%5c%2e%2e/c?d=%2F", None),
            ("reject_request", 400, "", None),
            ("unescape_and_forward", 200, "/a/c?d=%2F", None),
            ("unescape_and_redirect", 307, "", Some("/a/c?d=%2F")),
        ] {
            let (_stage, run) = chain(json!({ "escaped_slashes": action })).await;
            let mut http = run.http().await;
            let response = http.get(escaped).await.unwrap();
            assert_eq!(response.status, status, "{action}");
            assert_eq!(response.header("location"), location, "{action}");
            if action == "unescape_and_forward" {
                assert_eq!(response.json()["path"], path);
            }
            assert_eq!(http.get("/a/b?c=%2F").await.unwrap().status, 200, "{action}");
            let unary = run.h2c().await.unary("/test.Echo%2FUnary", &[], b"").await.unwrap();
            let refused = unary.grpc_status() == Some(13) && unary.headers_only;
            assert_eq!(refused, status != 200, "gRPC, {action}");
        }
    });
}

#[test]
fn a_redirect_does_not_lead_to_another_host() {
    drive(async {
        let (_stage, run) = chain(json!({ "escaped_slashes": "unescape_and_redirect" })).await;
        let response = run.http().await.get("/%2Fevil.example/x").await.unwrap();
        assert_eq!((response.status, response.header("location")), (400, None));
    });
}

#[test]
fn headers_can_be_changed_between_policies() {
    drive(async {
        let set = |name: &str, value: &str| {
            json!({ "request_headers": {
                "add": [{ "name": name, "value": value, "action": "overwrite" }],
                "remove": ["x-gone"],
            } })
        };
        let has = |name: &str, value: &str| json!([{ "header": { "name": name, "match": { "exact": value } } }]);
        let identities =
            "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%DOWNSTREAM_PEER_URI_SAN%";
        let more = json!({ "filters": [
            rbac("DENY", has("x-step", "two"), json!(["any"])),
            set("x-step", "one"),
            rbac("ALLOW", has("x-step", "one"), json!(["any"])),
            rbac("DENY", has("x-gone", "1"), json!(["any"])),
            set("x-step", "two"),
            set("x-forwarded-client-cert", identities),
        ] });
        let mut routes = all_to("app");
        let mut special = to("app", json!({ "prefix_rewrite": "/routed" }));
        special["match"] = json!({
            "path": { "prefix": "/" },
            "headers": [{ "name": "x-step", "match": { "exact": "two" } }],
        });
        routes.as_array_mut().unwrap().insert(0, special);
        let (_stage, run) = routed(routes, more).await;
        let mut http = run.http().await;
        let sent = [("X-Step", "zero"), ("X-Gone", "1"), ("X-Forwarded-Client-Cert", "mine")];
        let echo = http.ask("GET /", &sent).await.json();
        assert_eq!(echo["path"], "/routed", "routes see what filters made of it");
        assert_eq!(echoed(&echo, "x-step"), ["two"]);
        let identities = format!("By={};URI={}", waypoint_id(), client_id());
        assert_eq!(echoed(&echo, "x-forwarded-client-cert"), [identities.as_str()]);
        assert_eq!(http.ask("GET /", &[("X-Step", "two")]).await.status, 403);
    });
}

#[test]
fn a_chain_bounds_how_long_a_tunnel_is_kept() {
    drive(async {
        let (_stage, run) = chain(json!({ "idle_timeout": "200ms" })).await;
        let mut http = run.http().await;
        assert_eq!(http.get("/").await.unwrap().status, 200);
        assert!(within("the end of an idle tunnel", http.closed()).await);
        let h2c = run.h2c().await;
        assert_eq!(h2c.get("/").await.unwrap().status, 200);
        eventually("the end of an idle tunnel", || h2c.is_closed()).await;
    });
}

#[test]
fn a_chain_bounds_how_long_a_connection_lasts() {
    drive(async {
        let stage = Stage::new().await;
        let app = cairn_test_support::app::TcpApp::new(
            cairn_test_support::app::Behaviour::ServerFirst("hello"),
        );
        let pod = stage.pod(&app).await;
        let endpoint = cairn_test_support::config::hbone(
            &pod,
            "10.1.0.2:9000",
            &cairn_test_support::stage::app_id(),
        );
        let spec = stage.spec().cluster("tcp", vec![endpoint]).destination(json!({
            "name": "tcp", "addresses": ["10.96.0.10"], "port": 9000,
            "tcp": { "clusters": [{ "name": "tcp" }], "max_duration": "300ms" },
        }));
        let run = stage.run(&spec).await;
        let tunnel = run.tunnel(cairn_test_support::stage::TCP_VIP).await;
        let (mut read, mut write) = tokio::io::split(tunnel);
        let chatter = tokio::spawn(async move {
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        let mut all = Vec::new();
        let _cut = within("its end in spite of all the bytes", read.read_to_end(&mut all)).await;
        assert!(all.starts_with(b"hello"));
        chatter.abort();
        eventually("it is recorded", || {
            let labels = [("response_flags", "DT")];
            run.waypoint.istio("istio_tcp_connections_closed_total", &labels) == 1
        })
        .await;
    });
}
