//! Istio's metrics, scenario by scenario: what a scrape shows more afterwards, compared with what is written down in
//! `golden/telemetry`. `CAIRN_UPDATE_GOLDEN=1` writes it.
//!
//! The waypoint is configured by messages of the recordings `plain` and `telemetry`, with other names and addresses.

use super::mesh::{Client, Mesh};
use super::pod::{Pod, Waypoint};
use cairn_proto::envoy::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac,
};
use cairn_proto::envoy::envoy::config::route::v3::RetryPolicy;
use cairn_proto::envoy::envoy::config::route::v3::retry_policy::RetryBackOff;
use cairn_proto::envoy::envoy::config::route::v3::route::Action;
use cairn_proto::envoy::envoy::config::route::v3::route_match::PathSpecifier;
use cairn_proto::envoy::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use cairn_proto::envoy::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use cairn_proto::envoy::envoy::extensions::filters::http::rbac::v3::Rbac as RbacFilter;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use cairn_proto::envoy::envoy::r#type::v3::FractionalPercent;
use cairn_proto::envoy::google::protobuf::{Duration, UInt32Value};
use cairn_proto::prost_types;
use cairn_proto::stats::PluginConfig;
use cairn_test_support::h2c::H2c;
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::shapes;
use cairn_test_support::metrics::{Sample, parse, sum};
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually_async;
use cairn_xds::feed::Kind;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Kiali groups by these and leaves out what lacks one of them.
const KIALI: [&str; 13] = [
    "source_cluster",
    "source_workload_namespace",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_cluster",
    "destination_service_namespace",
    "destination_service",
    "destination_service_name",
    "destination_workload_namespace",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
];

/// A waypoint and what its scrape showed last.
struct Watched {
    mesh: Mesh,
    _pod: Pod,
    waypoint: Waypoint,
    before: Vec<Sample>,
}

/// Values of Istio's metrics by name and labels, without buckets.
type Values = BTreeMap<(String, Vec<(String, String)>), f64>;

fn values(samples: &[Sample]) -> Values {
    let of_istio = samples.iter().filter(|sample| {
        sample.name.starts_with("istio_")
            && (sample.name.ends_with("_total") || sample.name.ends_with("_count"))
    });
    of_istio.map(|sample| ((sample.name.clone(), sample.labels.clone()), sample.value)).collect()
}

/// What there is more now than before.
fn grown(before: &[Sample], now: &[Sample]) -> Vec<Sample> {
    let before = values(before);
    let more = values(now).into_iter().filter_map(|(key, value)| {
        let more = value - before.get(&key).copied().unwrap_or_default();
        let (name, labels) = key;
        (more != 0.0).then_some(Sample { name, labels, value: more })
    });
    more.collect()
}

/// Label sets, each with its metrics; how many bytes passed is not said.
fn text(samples: &[Sample]) -> String {
    let mut sets: BTreeMap<&[(String, String)], Vec<String>> = BTreeMap::new();
    for Sample { name, labels, value } in samples {
        let value = match name.ends_with("_bytes_total") {
            true => "*".to_owned(),
            false => value.to_string(),
        };
        sets.entry(labels).or_default().push(format!("{name} {value}\n"));
    }
    let mut text = String::new();
    for (labels, lines) in sets {
        lines.iter().for_each(|line| text.push_str(line));
        for (name, value) in labels {
            writeln!(text, "  {name}=\"{value}\"").unwrap();
        }
    }
    text
}

impl Watched {
    /// Services of this mesh, and one client that everybody knows.
    async fn start(mesh: Mesh) -> Self {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let client = shapes::pod("client-1", "client", local);
        mesh.istiod.push(Kind::Workload, vec![client], &[]);
        let (pod, waypoint) = mesh.waypoint().await;
        let mut watched = Watched { mesh, _pod: pod, waypoint, before: Vec::new() };
        watched.before = watched.scrape().await;
        watched
    }

    async fn scrape(&self) -> Vec<Sample> {
        parse(&self.waypoint.page("prometheus", "GET", "/stats/prometheus").await.text())
    }

    async fn client(&self) -> Client {
        self.mesh.client(&self.waypoint).await
    }

    /// Waits until these metrics have grown by so much, and compares all of Istio's.
    async fn told(&mut self, scenario: &str, counted: &[(&str, f64)]) -> Vec<Sample> {
        let mut now = Vec::new();
        let before = std::mem::take(&mut self.before);
        let what = format!("{scenario} is counted");
        eventually_async(&what, async || {
            now = self.scrape().await;
            let grown = grown(&before, &now);
            counted.iter().all(|(name, value)| {
                let sum = sum(&grown, name, &[]);
                if value.is_nan() { sum > 0.0 } else { sum == *value }
            })
        })
        .await;
        let grown = grown(&before, &now);
        self.before = now;
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/istio/golden/telemetry");
        let golden = golden.join(format!("{scenario}.txt"));
        let text = text(&grown);
        if std::env::var_os("CAIRN_UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
            std::fs::write(&golden, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(text, expected, "{scenario}: CAIRN_UPDATE_GOLDEN=1 accepts");
        for sample in &grown {
            for label in KIALI {
                let value = sample.label(label).unwrap_or_default();
                assert_ne!(value, "", "{scenario}: {label} of {}", sample.name);
            }
            for side in ["source", "destination"] {
                let of = |label: &str| sample.label(&format!("{side}_{label}")).unwrap();
                // Kiali leaves out who is known by halves.
                let known = of("workload") != "unknown";
                assert_eq!(of("cluster") != "unknown", known, "{scenario}: {sample:?}");
                assert_eq!(of("canonical_service") != "unknown", known, "{scenario}: {sample:?}");
                assert!(!known || of("workload_namespace") != "unknown", "{scenario}: {sample:?}");
            }
        }
        grown
    }

    async fn h2c(&self, client: &Client, service: &str) -> H2c {
        let tunnel = client.hbone.open(&self.mesh.vip(service)).await.unwrap();
        H2c::connect(tunnel).await.unwrap()
    }
}

/// More than nothing.
const SOME: f64 = f64::NAN;

/// One request is over.
const ONE: [(&str, f64); 1] = [("istio_requests_total", 1.0)];

/// Refuses everybody.
fn deny_all() -> HttpFilter {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Policy::default()
    };
    let policies = [("ns[plain]-policy[nobody]-rule[0]".to_owned(), policy)].into();
    let rules = Rbac { action: rbac::Action::Deny as i32, policies, ..Rbac::default() };
    let config = shapes::pack(&RbacFilter { rules: Some(rules), ..RbacFilter::default() });
    HttpFilter {
        name: "envoy.filters.http.rbac".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// Retries of the first route.
fn retry(manager: &mut HttpConnectionManager, policy: Option<RetryPolicy>) {
    let Some(Action::Route(action)) = &mut shapes::route(manager).action else { panic!() };
    action.retry_policy = policy;
}

fn fault(manager: &mut HttpConnectionManager, abort: u32) {
    let percentage = Some(FractionalPercent { numerator: 100, ..FractionalPercent::default() });
    let error_type = Some(ErrorType::HttpStatus(abort));
    let abort = FaultAbort { percentage, error_type, ..FaultAbort::default() };
    let config = shapes::pack(&HttpFault { abort: Some(abort), ..HttpFault::default() });
    let name = "envoy.filters.http.fault".to_owned();
    shapes::route(manager).typed_per_filter_config.insert(name, config);
}

#[test]
fn requests_that_are_answered_and_refused() {
    drive(async {
        let services = ["app", "denied", "nowhere", "empty", "faulty", "dead", "weary"];
        let mut mesh = Mesh::with(&services).await;
        mesh.edit("denied", |manager| manager.http_filters.insert(0, deny_all()));
        mesh.edit("nowhere", |manager| {
            let matched = shapes::route(manager).r#match.as_mut().unwrap();
            matched.path_specifier = Some(PathSpecifier::Prefix("/elsewhere".to_owned()));
        });
        mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("empty", &[])], &[]);
        mesh.edit("faulty", |manager| fault(manager, 418));
        mesh.edit("dead", |manager| retry(manager, None));
        mesh.service("dead").ztunnel.stop_listening().await;
        mesh.edit("weary", |manager| {
            retry(
                manager,
                Some(RetryPolicy {
                    retry_on: "5xx".to_owned(),
                    num_retries: Some(UInt32Value { value: 1 }),
                    retry_back_off: Some(RetryBackOff {
                        base_interval: Some(Duration { seconds: 0, nanos: 1_000_000 }),
                        max_interval: None,
                    }),
                    ..RetryPolicy::default()
                }),
            );
        });
        let mut watched = Watched::start(mesh).await;
        let client = watched.client().await;
        for (scenario, service, path, status) in [
            ("success", "app", "/", 200),
            ("upstream-500", "app", "/status/500", 500),
            ("rbac-403", "denied", "/", 403),
            ("no-route-404", "nowhere", "/", 404),
            ("no-endpoint-503", "empty", "/", 503),
            ("fault-418", "faulty", "/", 418),
            ("connect-failure-503", "dead", "/", 503),
            ("retries-used-up", "weary", "/status/500", 500),
        ] {
            let response = watched.mesh.get(&client, service, path).await;
            assert_eq!(response.status, status, "{scenario}");
            watched.told(scenario, &ONE).await;
        }
    });
}

#[test]
fn clients_that_are_hardly_known() {
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        // Two workloads share the address of their node: the account tells them apart.
        let agent = shapes::pod("agent-1", "agent", IpAddr::V4(Ipv4Addr::LOCALHOST));
        mesh.istiod.push(Kind::Workload, vec![agent], &[]);
        let mut watched = Watched::start(mesh).await;
        for account in ["client", "agent"] {
            let client = watched.mesh.client_as(&watched.waypoint, account).await;
            watched.mesh.get(&client, "app", "/").await;
            watched.told(&format!("host-network-{account}"), &ONE).await;
        }
        // Nobody knows a workload of this account there.
        let stranger = watched.mesh.client_as(&watched.waypoint, "stranger").await;
        watched.mesh.get(&stranger, "app", "/").await;
        watched.told("source-unknown", &ONE).await;
    });
}

#[test]
fn grpc_calls_and_their_messages() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "denied"]).await;
        speaks_grpc(&mesh, "app");
        mesh.edit("denied", |manager| manager.http_filters.insert(0, deny_all()));
        let mut watched = Watched::start(mesh).await;
        let client = watched.client().await;
        let h2c = watched.h2c(&client, "app").await;
        let messages = |requests: f64, responses: f64| {
            [
                ("istio_requests_total", 1.0),
                ("istio_request_messages_total", requests),
                ("istio_response_messages_total", responses),
            ]
        };
        h2c.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        watched.told("grpc-ok", &messages(1.0, 1.0)).await;
        h2c.unary("/test.Echo/Fail", &[("x-status", "5")], b"x").await.unwrap();
        watched.told("grpc-status-5", &messages(1.0, 0.0)).await;
        let mut call = h2c.stream("/test.Echo/Bidi", &[]).await.unwrap();
        for message in [&b"one"[..], b"", b"three"] {
            call.send(message).await.unwrap();
            call.recv().await.unwrap().unwrap();
        }
        call.close_send().unwrap();
        assert_eq!(call.recv().await.unwrap(), None);
        watched.told("grpc-stream", &messages(3.0, 3.0)).await;
        // Envoy's metrics do not see that it was gRPC, since a policy ended it.
        let denied = watched.h2c(&client, "denied").await;
        denied.unary("/test.Echo/Unary", &[], b"x").await.unwrap();
        watched.told("grpc-rbac", &ONE).await;
    });
}

/// The service's pods speak HTTP/2.
fn speaks_grpc(mesh: &Mesh, service: &str) {
    let cluster = shapes::cluster_of(&shapes::cluster_by(service, shapes::http2()));
    mesh.istiod.push(Kind::Cluster, vec![cluster], &[]);
}

/// Counted each second.
fn each_second() -> PluginConfig {
    let second = prost_types::Duration { seconds: 1, nanos: 0 };
    PluginConfig { tcp_reporting_duration: Some(second), ..shapes::stats() }
}

#[test]
fn a_stream_is_counted_while_it_is_open() {
    drive(async {
        let mut mesh = Mesh::with(&["app"]).await;
        speaks_grpc(&mesh, "app");
        mesh.edit("app", |manager| shapes::set_stats(manager, &each_second()));
        let mut watched = Watched::start(mesh).await;
        let client = watched.client().await;
        let h2c = watched.h2c(&client, "app").await;
        let mut call = h2c.stream("/test.Echo/Bidi", &[]).await.unwrap();
        for _ in 0..4 {
            call.send(b"x").await.unwrap();
            call.recv().await.unwrap().unwrap();
        }
        let open = [
            ("istio_requests_total", 0.0),
            ("istio_request_messages_total", 4.0),
            ("istio_response_messages_total", 4.0),
        ];
        watched.told("grpc-stream-open", &open).await;
        call.send(b"y").await.unwrap();
        call.recv().await.unwrap().unwrap();
        call.close_send().unwrap();
        assert_eq!(call.recv().await.unwrap(), None);
        let over = [("istio_requests_total", 1.0), ("istio_request_messages_total", 1.0)];
        watched.told("grpc-stream-over", &over).await;
    });
}

#[test]
fn connections_are_counted_while_they_are_open_and_at_their_end() {
    drive(async {
        let mut mesh = Mesh::with(&["bytes", "dead"]).await;
        for service in ["bytes", "dead"] {
            mesh.set_chain(service, shapes::tcp_chain(service, &each_second()));
        }
        mesh.service("dead").ztunnel.stop_listening().await;
        let mut watched = Watched::start(mesh).await;
        let client = watched.client().await;
        let mut tunnel = client.hbone.open(&watched.mesh.vip("bytes")).await.unwrap();
        let request = "GET /gate?gate=g HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        tunnel.write_all(request.as_bytes()).await.unwrap();
        let received = request.len() as f64;
        let open = [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 0.0),
            ("istio_tcp_received_bytes_total", received),
            ("istio_tcp_sent_bytes_total", SOME),
        ];
        let grown = watched.told("tcp-open", &open).await;
        let first = sum(&grown, "istio_tcp_sent_bytes_total", &[]);
        watched.mesh.service("bytes").app.release("g");
        let mut answer = Vec::new();
        tunnel.shutdown().await.unwrap();
        let _ends_as_it_ends = tunnel.read_to_end(&mut answer).await;
        let sent = answer.len() as f64;
        let over = [
            ("istio_tcp_connections_opened_total", 0.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_received_bytes_total", 0.0),
            ("istio_tcp_sent_bytes_total", SOME),
        ];
        let grown = watched.told("tcp-over", &over).await;
        assert_eq!(first + sum(&grown, "istio_tcp_sent_bytes_total", &[]), sent);
        let mut tunnel = client.hbone.open(&watched.mesh.vip("dead")).await.unwrap();
        let _refused_or_not = tunnel.write_all(b"x").await;
        let _broken_or_over = tunnel.read_to_end(&mut answer).await;
        watched.told("tcp-connect-failure", &[("istio_tcp_connections_closed_total", 1.0)]).await;
    });
}

#[test]
fn telemetry_changes_and_turns_off_metrics() {
    drive(async {
        let mut mesh = Mesh::with(&["custom", "quiet"]).await;
        mesh.edit("custom", |manager| shapes::set_stats(manager, &shapes::recorded_stats()));
        mesh.edit("quiet", |manager| {
            manager.http_filters.retain(|filter| filter.name != "istio.stats");
        });
        let mut watched = Watched::start(mesh).await;
        let client = watched.client().await;
        assert_eq!(watched.mesh.get(&client, "quiet", "/").await.status, 200);
        for host in ["one.test", "two.test"] {
            let tunnel = client.hbone.open(&watched.mesh.vip("custom")).await.unwrap();
            let mut http = Http1::new(tunnel);
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            http.send(&request).await.unwrap();
            assert_eq!(http.response().await.unwrap().status, 200);
        }
        let grown = watched.told("overrides", &[("istio_requests_total", 2.0)]).await;
        for host in ["one.test", "two.test"] {
            assert_eq!(sum(&grown, "istio_requests_total", &[("host", host)]), 1.0);
        }
        assert_eq!(sum(&grown, "istio_request_bytes_count", &[]), 0.0);
    });
}

/// What dashboards ask of Envoy itself.
#[test]
fn envoys_own_numbers() {
    drive(async {
        let watched = Watched::start(Mesh::with(&["app"]).await).await;
        let xds = [("cluster_name", "xds-grpc")];
        for (name, labels) in [
            ("envoy_server_live", &[][..]),
            ("envoy_cluster_upstream_cx_active", &xds),
            ("envoy_cluster_upstream_cx_total", &xds),
        ] {
            for door in ["metrics", "prometheus"] {
                let page = watched.waypoint.page(door, "GET", "/stats/prometheus").await.text();
                assert_eq!(sum(&parse(&page), name, labels), 1.0, "{name} at {door}");
            }
            let page = watched.waypoint.admin("/stats/prometheus").await.text();
            assert_eq!(sum(&parse(&page), name, labels), 1.0, "{name}");
        }
        let samples = watched.scrape().await;
        for kind in ["cluster_manager_cds", "listener_manager_lds"] {
            assert!(sum(&samples, &format!("envoy_{kind}_update_success"), &[]) >= 1.0);
            assert_eq!(sum(&samples, &format!("envoy_{kind}_update_rejected"), &[]), 0.0);
        }
        assert!(samples.iter().any(|sample| sample.name == "envoy_server_uptime"));
    });
}
