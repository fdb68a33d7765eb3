//! How requests are traced: what is taken over, and what is listed as left out.

use crate::world::*;
use cairn_proto::envoy as pb;
use cairn_proto::prost::{Message, Name};
use cairn_router::spec;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::trace::v3 as trace;
use pb::envoy::config::trace::v3::ZipkinConfig;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::RequestIdExtension;
use pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing;
use pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use pb::envoy::r#type::metadata::v3::MetadataKey;
use pb::envoy::r#type::tracing::v3::CustomTag;
use pb::envoy::r#type::tracing::v3::custom_tag::{self, Type};
use pb::envoy::r#type::v3::Percent;
use pb::google::protobuf::{BoolValue, Duration as Span};
use std::sync::Arc;
use std::time::Duration;

/// What a connection manager with these settings of tracing tells, and what is listed.
fn translated(tracing: &Tracing) -> (Option<Arc<spec::Tracing>>, Vec<String>) {
    with_ids(tracing, None)
}

fn with_ids(
    tracing: &Tracing,
    ids: Option<UuidRequestIdConfig>,
) -> (Option<Arc<spec::Tracing>>, Vec<String>) {
    let mut manager = manager();
    manager.tracing = Some(tracing.clone());
    manager.request_id_extension =
        ids.map(|ids| RequestIdExtension { typed_config: Some(pack(&ids)) });
    let (translator, destination) = of_chain(http_chain(&manager));
    compiles(&translator.resources());
    assert_eq!(translator.unsupported(), [], "traffic passes whatever is asked of traces");
    let degraded = translator.degraded().into_iter().map(|finding| finding.reason).collect();
    let chain = destination.http.as_ref().unwrap();
    assert_eq!(chain.broken, None);
    (chain.observe.as_ref().and_then(|observe| observe.tracing.clone()), degraded)
}

fn provider<M: Message + Name>(name: &str, config: &M) -> Option<trace::tracing::Http> {
    let config = trace::tracing::http::ConfigType::TypedConfig(pack(config));
    Some(trace::tracing::Http { name: name.to_owned(), config_type: Some(config) })
}

fn zipkin_of(config: &ZipkinConfig) -> Option<trace::tracing::Http> {
    provider("envoy.tracers.zipkin", config)
}

fn http_service(uri: &str) -> core::HttpService {
    let header = core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x-token".to_owned(),
            value: "t".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    core::HttpService {
        http_uri: Some(core::HttpUri {
            uri: uri.to_owned(),
            timeout: Some(Span { seconds: 3, nanos: 0 }),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("c".to_owned())),
        }),
        request_headers_to_add: vec![header],
        formatters: Vec::new(),
    }
}

fn tag(name: &str, value: Type) -> CustomTag {
    CustomTag { tag: name.to_owned(), r#type: Some(value) }
}

#[test]
fn sampling_without_a_provider() {
    let percent = |value| Some(Percent { value });
    let (tracing, degraded) = translated(&Tracing {
        client_sampling: percent(50.0),
        random_sampling: percent(12.5),
        custom_tags: vec![tag("x", Type::Literal(custom_tag::Literal { value: "x".to_owned() }))],
        ..Tracing::default()
    });
    let tracing = tracing.unwrap();
    assert_eq!(
        (tracing.client_sampling, tracing.random_sampling, tracing.overall_sampling),
        (50.0, 12.5, 100.0)
    );
    assert!(tracing.by_request_id && tracing.pack_trace_reason);
    assert_eq!((tracing.provider.as_ref(), tracing.custom_tags.len()), (None, 0));
    assert_eq!(degraded, Vec::<String>::new());
    let no = Some(BoolValue { value: false });
    let ids = UuidRequestIdConfig { pack_trace_reason: no, use_request_id_for_trace_sampling: no };
    let (tracing, _) = with_ids(&Tracing::default(), Some(ids));
    let tracing = tracing.unwrap();
    assert!(!tracing.by_request_id && !tracing.pack_trace_reason);
}

#[test]
fn zipkin_in_both_forms() {
    let old = ZipkinConfig {
        collector_cluster: "c".to_owned(),
        collector_endpoint: "/api/v2/spans".to_owned(),
        collector_hostname: "zipkin".to_owned(),
        collector_endpoint_version: 1,
        trace_id_128bit: true,
        shared_span_context: Some(BoolValue { value: false }),
        trace_context_option: 1,
        ..ZipkinConfig::default()
    };
    let new = ZipkinConfig {
        collector_service: Some(http_service("http://zipkin:9411/api/v2/spans")),
        ..ZipkinConfig::default()
    };
    let of = |config: &ZipkinConfig| {
        let tracing = Tracing { provider: zipkin_of(config), ..Tracing::default() };
        let (tracing, degraded) = translated(&tracing);
        assert_eq!(degraded, Vec::<String>::new());
        match tracing.unwrap().provider.clone() {
            Some(spec::TraceProvider::Zipkin(zipkin)) => zipkin,
            other => panic!("{other:?}"),
        }
    };
    let zipkin = of(&old);
    assert!(zipkin.trace_id_128bit && !zipkin.shared_span_context && zipkin.w3c);
    let spec::HttpCollector { cluster, host, path, timeout, headers } = zipkin.collector;
    assert_eq!((cluster.as_str(), host.as_str(), path.as_str()), ("c", "zipkin", "/api/v2/spans"));
    assert_eq!((timeout, headers.len()), (None, 0));
    let zipkin = of(&new);
    assert!(!zipkin.trace_id_128bit && zipkin.shared_span_context && !zipkin.w3c);
    let spec::HttpCollector { cluster, host, path, timeout, headers } = zipkin.collector;
    assert_eq!(
        (cluster.as_str(), host.as_str(), path.as_str()),
        ("c", "zipkin:9411", "/api/v2/spans")
    );
    assert_eq!(timeout, Some(Duration::from_secs(3)));
    assert_eq!(headers, [("x-token".to_owned(), "t".to_owned())]);
}

#[test]
fn open_telemetry_in_both_forms() {
    let detector = |name: &str| core::TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(any(
            &format!(
                "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.{name}ResourceDetectorConfig"
            ),
            Vec::new(),
        )),
    };
    let grpc = trace::OpenTelemetryConfig {
        grpc_service: Some(core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc {
                    cluster_name: "c".to_owned(),
                    authority: "collector".to_owned(),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        service_name: "waypoint.shop".to_owned(),
        resource_detectors: vec![detector("Environment"), detector("Dynatrace")],
        sampler: Some(core::TypedExtensionConfig {
            name: "dynatrace".to_owned(),
            typed_config: None,
        }),
        ..Default::default()
    };
    let http = trace::OpenTelemetryConfig {
        http_service: Some(http_service("http://otlp:4318/v1/traces")),
        ..Default::default()
    };
    let of = |config: &trace::OpenTelemetryConfig| {
        let tracing = Tracing {
            provider: provider("envoy.tracers.opentelemetry", config),
            ..Tracing::default()
        };
        let (tracing, degraded) = translated(&tracing);
        match tracing.unwrap().provider.clone() {
            Some(spec::TraceProvider::OpenTelemetry(otel)) => (otel, degraded),
            other => panic!("{other:?}"),
        }
    };
    let (otel, degraded) = of(&grpc);
    assert_eq!((otel.service_name.as_str(), otel.environment), ("waypoint.shop", true));
    match otel.collector {
        spec::OtlpCollector::Grpc(grpc) => {
            assert_eq!((grpc.cluster.as_str(), grpc.authority.as_str()), ("c", "collector"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        degraded,
        [
            "the resource detector `Dynatrace` is not honoured",
            "the sampler `dynatrace` is not honoured"
        ]
    );
    let (otel, degraded) = of(&http);
    assert_eq!((otel.environment, degraded.len()), (false, 0));
    match otel.collector {
        spec::OtlpCollector::Http(http) => {
            assert_eq!((http.host.as_str(), http.path.as_str()), ("otlp:4318", "/v1/traces"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tags_that_can_be_had() {
    let text = |value: &str| Type::Value(value.to_owned());
    let header = |name: &str| {
        let (name, default_value) = (name.to_owned(), "d".to_owned());
        Type::RequestHeader(custom_tag::Header { name, default_value })
    };
    let environment = Type::Environment(custom_tag::Environment {
        name: "POD_NAME".to_owned(),
        default_value: "d".to_owned(),
    });
    let metadata = |namespace: &str, default: &str| {
        Type::Metadata(custom_tag::Metadata {
            kind: None,
            metadata_key: Some(MetadataKey { key: namespace.to_owned(), path: Vec::new() }),
            default_value: default.to_owned(),
        })
    };
    let tracing = Tracing {
        provider: zipkin_of(&ZipkinConfig {
            collector_cluster: "c".to_owned(),
            ..ZipkinConfig::default()
        }),
        custom_tags: vec![
            tag("literal", Type::Literal(custom_tag::Literal { value: "x".to_owned() })),
            tag("environment", environment),
            tag("header", header("x-a")),
            tag("text", text("%REQ(x-a)%")),
            tag("peer", text("%FILTER_STATE(upstream_peer_obj:FIELD:app)%")),
            tag("dry-run", metadata("envoy.filters.http.rbac", "")),
            tag("other", metadata("other", "known")),
            tag("bad-header", header("a b")),
            tag("bad-text", text("%NO_SUCH_OPERATOR_EVER%")),
        ],
        ..Tracing::default()
    };
    let (tracing, degraded) = translated(&tracing);
    let names: Vec<String> =
        tracing.unwrap().custom_tags.iter().map(|known| known.tag.clone()).collect();
    assert_eq!(names, ["literal", "environment", "header", "text", "peer", "other", "bad-text"]);
    let listed: Vec<&str> = degraded.iter().filter_map(|reason| reason.split('`').nth(1)).collect();
    assert_eq!(listed.len(), 3, "{degraded:?}");
    for name in ["other", "bad-header", "bad-text"] {
        assert!(listed.contains(&name), "{name}: {degraded:?}");
    }
}

#[test]
fn what_is_not_supported_is_listed_by_name() {
    let config = trace::DatadogConfig { collector_cluster: "c".to_owned(), ..Default::default() };
    let tracing =
        Tracing { provider: provider("envoy.tracers.datadog", &config), ..Tracing::default() };
    let (tracing, degraded) = translated(&tracing);
    assert_eq!(tracing.unwrap().provider, None);
    assert_eq!(
        degraded,
        ["requests are not traced: the tracer `envoy.tracers.datadog` is not supported"]
    );
    let tracing = Tracing { provider: zipkin_of(&ZipkinConfig::default()), ..Tracing::default() };
    let (tracing, degraded) = translated(&tracing);
    assert_eq!(tracing.unwrap().provider, None);
    assert_eq!(
        degraded,
        ["requests are not traced: the tracer `envoy.tracers.zipkin` names no collector"]
    );
}
