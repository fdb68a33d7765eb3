//! Endpoints: HBONE with an exact identity, plain TCP, TLS.

use cairn_test_support::app::App;
use cairn_test_support::backend::Backend;
use cairn_test_support::config::{MeshSpec, all_to, hbone, hbone_at, merge, plain, to};
use cairn_test_support::endpoint::{Endpoint, SilentPort};
use cairn_test_support::hbone_backend::HboneBackend;
use cairn_test_support::pki::{Ca, CertDir, CertSpec, spiffe};
use cairn_test_support::stage::{POD, Run, Stage, VIP, app_id, waypoint_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};

async fn run_with(stage: &Stage, cluster: Value, endpoints: Vec<Value>) -> Run {
    stage
        .run(&MeshSpec::new().cluster_with("app", cluster, endpoints).http(VIP, all_to("app")))
        .await
}

#[test]
fn the_expected_identity_is_accepted() {
    drive(async {
        let stage = Stage::new().await;
        let mut several = stage.endpoint();
        several["identities"] = json!([spiffe("shop", "someone"), app_id()]);
        for endpoint in [stage.endpoint(), several] {
            let run = run_with(&stage, json!({}), vec![endpoint]).await;
            assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
            let connect = stage.pod.connects().pop().unwrap();
            assert_eq!((connect.client, connect.authority.as_str()), (waypoint_id(), POD));
        }
    });
}

#[test]
fn any_other_identity_is_refused_and_counted() {
    drive(async {
        let stage = Stage::new().await;
        let spec = CertSpec::workload("shop", "app");
        let ca = &stage.ca;
        for (reason, cert) in [
            ("unexpected_identity", ca.workload("shop", "other")),
            ("unexpected_identity", ca.workload("other", "app")),
            ("unexpected_identity", ca.workload("shop", "app2")),
            (
                "unexpected_identity",
                ca.issue(&CertSpec::uri("spiffe://other.domain/ns/shop/sa/app")),
            ),
            ("expired", ca.issue(&spec.clone().expired())),
            ("not_yet_valid", ca.issue(&spec.clone().not_yet_valid())),
            ("wrong_purpose", ca.issue(&spec.clone().without_server_auth())),
            ("unknown_issuer", Ca::new().issue(&spec).trusting(ca)),
            ("no_spiffe_id", ca.issue(&CertSpec::dns("app.shop.svc.cluster.local"))),
        ] {
            let app = Backend::new("impostor");
            let pod = HboneBackend::start(&cert, &app).await;
            let run = run_with(&stage, json!({}), vec![hbone(&pod, POD, &app_id())]).await;
            let response = within(reason, run.http().await.get("/")).await.unwrap();
            assert_eq!(response.status, 503, "{reason}: {response:?}");
            assert!(
                response.text().starts_with("upstream connect error"),
                "{reason}: {response:?}"
            );
            assert_eq!((app.requests(), pod.connects().len()), (0, 0), "{reason}");
            let counted = || {
                run.waypoint.counter("cairn_upstream_dial_failures_total", &[("reason", reason)])
            };
            eventually(&format!("{reason} is counted"), || counted() > 0).await;
        }
    });
}

#[test]
fn an_endpoint_without_an_identity_is_not_used() {
    drive(async {
        let stage = Stage::new().await;
        let mut nameless = stage.endpoint();
        nameless["identities"] = json!([]);
        let run = run_with(&stage, json!({}), vec![nameless]).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 503);
        assert_eq!((stage.app.requests(), stage.pod.connects().len()), (0, 0));
    });
}

#[test]
fn endpoints_may_be_plain() {
    drive(async {
        let stage = Stage::new().await;
        let app = Backend::new("plain");
        let endpoint = Endpoint::plain(&app).await;
        for (protocol, version) in [("http1", "HTTP/1.1"), ("http2", "HTTP/2.0")] {
            let run =
                run_with(&stage, json!({ "protocol": protocol }), vec![plain(endpoint.addr)]).await;
            let mut http = run.http().await;
            for _ in 0..3 {
                let response = http.get("/").await.unwrap();
                assert_eq!(
                    (response.backend(), &response.json()["version"]),
                    ("plain", &json!(version))
                );
            }
        }
        assert_eq!(endpoint.connections(), 2, "one for each waypoint");
    });
}

#[test]
fn the_protocol_may_be_the_clients() {
    drive(async {
        let stage = Stage::new().await;
        let run =
            run_with(&stage, json!({ "protocol": "downstream" }), vec![stage.endpoint()]).await;
        assert_eq!(run.http().await.get("/").await.unwrap().json()["version"], "HTTP/1.1");
        assert_eq!(run.h2c().await.get("/").await.unwrap().json()["version"], "HTTP/2.0");
        assert_eq!(run.http().await.get("/").await.unwrap().json()["version"], "HTTP/1.1");
    });
}

/// A TLS server `app.example` and the files that its clients need.
struct TlsSite {
    ca: Ca,
    app: Backend,
    endpoint: Endpoint,
    files: CertDir,
}

impl TlsSite {
    async fn start(alpn: &[&str], client_certificate: bool) -> Self {
        let ca = Ca::new();
        let app = Backend::new("tls");
        let mut spec = CertSpec::dns("app.example");
        spec.dns.push("other.example".to_owned());
        spec.uris.push(spiffe("shop", "tls"));
        let config = ca.issue(&spec).server(alpn, client_certificate);
        let endpoint = Endpoint::tls(&app, config).await;
        let files = CertDir::plain(&ca.issue(&CertSpec::uri("spiffe://partner/ns/x/sa/client")));
        TlsSite { ca, app, endpoint, files }
    }

    fn settings(&self, more: Value) -> Value {
        let mut tls = json!({ "sni": "app.example", "ca_file": self.files.roots().to_str() });
        merge(&mut tls, more);
        json!({ "tls": tls })
    }
}

#[test]
fn tls_is_verified_by_name_and_root() {
    drive(async {
        let stage = Stage::new().await;
        let site = TlsSite::start(&["h2", "http/1.1"], false).await;
        let others = CertDir::plain(&Ca::new().workload("x", "y"));
        for (what, more, accepted) in [
            ("SNI alone", json!({}), true),
            ("a DNS SAN", json!({ "sans": ["other.example"] }), true),
            ("one of several SANs", json!({ "sans": ["no.example", "app.example"] }), true),
            ("a URI SAN", json!({ "sans": [spiffe("shop", "tls")] }), true),
            ("another SNI", json!({ "sni": "no.example" }), false),
            ("another DNS SAN", json!({ "sans": ["no.example"] }), false),
            ("another URI SAN", json!({ "sans": [spiffe("shop", "no")] }), false),
            ("another root", json!({ "ca_file": others.roots().to_str() }), false),
        ] {
            let before = site.app.requests();
            let run = run_with(&stage, site.settings(more), vec![plain(site.endpoint.addr)]).await;
            let response = within(what, run.http().await.get("/")).await.unwrap();
            assert_eq!(response.status, if accepted { 200 } else { 503 }, "{what}: {response:?}");
            assert_eq!(site.app.requests() - before, u64::from(accepted), "{what}");
        }
        let seen = &site.endpoint.tls_seen()[0];
        assert_eq!(
            (seen.sni.as_deref(), seen.alpn.as_deref()),
            (Some("app.example"), Some("http/1.1"))
        );
        assert!(seen.client.is_empty());
    });
}

#[test]
fn tls_clusters_may_be_http2() {
    drive(async {
        let stage = Stage::new().await;
        let site = TlsSite::start(&["h2"], false).await;
        let mut cluster = site.settings(json!({}));
        cluster["protocol"] = json!("http2");
        let run = run_with(&stage, cluster, vec![plain(site.endpoint.addr)]).await;
        let response = run.http().await.get("/").await.unwrap();
        assert_eq!(response.json()["version"], "HTTP/2.0");
        assert_eq!(site.endpoint.tls_seen()[0].alpn.as_deref(), Some("h2"));
        let reply = run.h2c().await.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
    });
}

#[test]
fn tls_shows_a_client_certificate() {
    drive(async {
        let stage = Stage::new().await;
        let site = TlsSite::start(&["http/1.1"], true).await;
        let run = run_with(&stage, site.settings(json!({})), vec![plain(site.endpoint.addr)]).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 503, "none is configured");
        let own = json!({ "cert_file": site.files.cert().to_str(), "key_file": site.files.key().to_str() });
        let run = run_with(&stage, site.settings(own), vec![plain(site.endpoint.addr)]).await;
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        let seen = site.endpoint.tls_seen().pop().unwrap();
        assert_eq!(seen.client, ["spiffe://partner/ns/x/sa/client"]);
        drop(site.ca);
    });
}

#[test]
fn tls_may_be_inside_the_tunnel() {
    drive(async {
        let stage = Stage::new().await;
        let site = TlsSite::start(&["http/1.1"], false).await;
        let config = site.ca.issue(&CertSpec::dns("app.example")).server(&["http/1.1"], false);
        let pod = stage.pod(App::Tls(site.app.clone(), config)).await;
        let run =
            run_with(&stage, site.settings(json!({})), vec![hbone(&pod, POD, &app_id())]).await;
        let mut http = run.http().await;
        for _ in 0..3 {
            let response = http.get("/").await.unwrap();
            assert_eq!((response.status, response.backend()), (200, "tls"));
        }
        assert_eq!(pod.connects().len(), 1);
    });
}

#[test]
fn a_dial_is_bounded() {
    drive(async {
        let stage = Stage::new().await;
        let silent = SilentPort::new().await;
        let retry = json!({ "retry": { "on": ["connect-failure"], "attempts": 2, "backoff": { "base": "1ms" } } });
        let cluster = json!({ "connect_timeout": "300ms" });
        let spec = MeshSpec::new()
            .cluster_with("hangs", cluster.clone(), vec![hbone_at(silent.addr, POD, &app_id())])
            .cluster_with("either", cluster.clone(), vec![hbone_at(silent.addr, POD, &app_id()), stage.endpoint()])
            .cluster_with("held", cluster, vec![stage.endpoint()])
            .http(VIP, json!([
                { "match": { "path": { "prefix": "/hangs" } }, "route": { "cluster": "hangs", "timeout": "0s" } },
                { "match": { "path": { "prefix": "/held" } }, "route": { "cluster": "held", "timeout": "0s" } },
                to("either", retry),
            ]));
        let run = stage.run(&spec).await;
        let mut http = run.http().await;
        let response = within("the dial's bound", http.get("/hangs")).await.unwrap();
        assert_eq!(response.status, 503, "{response:?}");
        for _ in 0..5 {
            let response = within("the other endpoint", http.get("/")).await.unwrap();
            assert_eq!((response.status, response.backend()), (200, "app"));
        }
        // CONNECT counts as well.
        stage.pod.hold_connects(true);
        let response = within("the bound of CONNECT", http.get("/held")).await.unwrap();
        assert_eq!(response.status, 503, "{response:?}");
        stage.pod.hold_connects(false);
    });
}

#[test]
fn a_refused_connect_is_a_connect_failure() {
    drive(async {
        let stage = Stage::new().await;
        let run = run_with(&stage, json!({}), vec![stage.endpoint()]).await;
        for status in [400, 401, 403, 404, 429, 503] {
            stage.pod.refuse(status);
            let response = run.http().await.get("/").await.unwrap();
            assert_eq!(response.status, 503, "CONNECT {status}: {response:?}");
        }
        stage.pod.refuse(200);
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
        assert_eq!(stage.app.requests(), 1);
    });
}
