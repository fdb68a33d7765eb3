//! Traces as istiod asks for them: a provider in the listener, a collector that is a service of the mesh.

use super::mesh::Mesh;
use cairn_proto::envoy::envoy::config::core::v3::http_uri::HttpUpstreamType;
use cairn_proto::envoy::envoy::config::core::v3::{HttpService, HttpUri};
use cairn_proto::envoy::envoy::config::trace::v3::tracing::http::ConfigType;
use cairn_proto::envoy::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig, tracing};
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing;
use cairn_proto::envoy::envoy::r#type::v3::Percent;
use cairn_proto::envoy::google::protobuf::{Any, BoolValue};
use cairn_test_support::collector::{Seen, of_otlp_http, of_zipkin};
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually;

fn tracing(name: &str, config: Any, percent: f64) -> Option<Tracing> {
    Some(Tracing {
        random_sampling: Some(Percent { value: percent }),
        provider: Some(tracing::Http {
            name: name.to_owned(),
            config_type: Some(ConfigType::TypedConfig(config)),
        }),
        ..Tracing::default()
    })
}

fn open_telemetry(percent: f64) -> Option<Tracing> {
    let config = OpenTelemetryConfig {
        http_service: Some(HttpService {
            http_uri: Some(HttpUri {
                uri: "http://collector.plain.svc.cluster.local/v1/traces".to_owned(),
                timeout: None,
                http_upstream_type: Some(HttpUpstreamType::Cluster(shapes::name("collector"))),
            }),
            ..HttpService::default()
        }),
        service_name: "waypoint.plain".to_owned(),
        ..OpenTelemetryConfig::default()
    };
    tracing("envoy.tracers.opentelemetry", shapes::pack(&config), percent)
}

fn zipkin() -> Option<Tracing> {
    let config = ZipkinConfig {
        collector_cluster: shapes::name("collector"),
        collector_endpoint: "/api/v2/spans".to_owned(),
        collector_endpoint_version: 1,
        trace_id_128bit: true,
        shared_span_context: Some(BoolValue { value: false }),
        ..ZipkinConfig::default()
    };
    tracing("envoy.tracers.zipkin", shapes::pack(&config), 100.0)
}

#[test]
fn spans_reach_a_collector_of_the_mesh() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "collector"]).await;
        mesh.edit("app", |manager| manager.tracing = open_telemetry(100.0));
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client_as(&waypoint, "friend").await;
        let vip = mesh.vip("app");
        assert_eq!(client.status(&vip, "/traced").await, 200);
        let collector = mesh.service("collector").app.clone();
        let spans = || {
            let log = collector.log();
            let of = log.iter().filter(|seen| seen.target == "/v1/traces").flat_map(of_otlp_http);
            of.collect::<Vec<Seen>>()
        };
        eventually("a span", || spans().len() == 1).await;
        let [span] = spans().try_into().unwrap();
        assert_eq!(
            (span.service.as_str(), span.name.as_str()),
            ("waypoint.plain", "app.plain.svc.cluster.local:80/*")
        );
        assert!(span.tag("node_id").starts_with("waypoint~"), "{}", span.tag("node_id"));
        assert_eq!(span.tag("upstream_cluster"), shapes::name("app"));
        // As Envoy 1.40 has them for such a request.
        let names: Vec<&str> = span.tags.keys().map(String::as_str).collect();
        let expected = [
            "component",
            "downstream_cluster",
            "guid:x-request-id",
            "http.method",
            "http.protocol",
            "http.status_code",
            "http.url",
            "node_id",
            "peer.address",
            "request_size",
            "response_flags",
            "response_size",
            "upstream_cluster",
            "upstream_cluster.name",
            "user_agent",
            "zone",
        ];
        assert_eq!(names, expected);
        let told = mesh.service("app").app.last("/traced");
        let mine = format!("00-{}-{}-01", span.trace, span.id);
        assert_eq!(told.headers.get("traceparent"), Some(mine.as_str()));
        assert_eq!(collector.last("/v1/traces").authority, "collector.plain.svc.cluster.local");
    });
}

#[test]
fn a_push_changes_the_tracer() {
    drive(async {
        let mut mesh = Mesh::with(&["app", "collector"]).await;
        mesh.edit("app", |manager| manager.tracing = open_telemetry(0.0));
        let (_pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client_as(&waypoint, "friend").await;
        let vip = mesh.vip("app");
        assert_eq!(client.status(&vip, "/unsampled").await, 200);
        let told = mesh.service("app").app.last("/unsampled");
        assert!(told.headers.get("traceparent").is_some_and(|told| told.ends_with("-00")));
        mesh.edit("app", |manager| manager.tracing = zipkin());
        let app = mesh.service("app").app.clone();
        let zipkin_is_used =
            || app.log().iter().any(|seen| seen.headers.get("x-b3-sampled").is_some());
        while !zipkin_is_used() {
            assert_eq!(client.status(&vip, "/again").await, 200);
        }
        let collector = mesh.service("collector").app.clone();
        let spans = || collector.log().iter().flat_map(of_zipkin).collect::<Vec<Seen>>();
        eventually("a span of Zipkin's", || !spans().is_empty()).await;
        let span = spans().remove(0);
        assert_eq!(span.service, "waypoint.plain");
        assert_eq!(span.tag("http.status_code"), "200");
        assert_eq!(collector.count("/v1/traces"), 0, "nothing was exported before");
    });
}
