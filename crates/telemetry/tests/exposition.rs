//! What a scrape reads after events were recorded through the public door.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_telemetry::{
    ConnectionEvent, MAX_LABEL_VALUE_BYTES, Metric, Protocol, RequestEvent, ResponseFlags,
    RulesBuilder, SecurityPolicy, ServiceLabels, Settings, Telemetry, Timings, WorkloadLabels,
};
use proptest::prelude::*;
use support::Scrape;

/// The sample line of an Envoy waypoint, without name and value.
const GOLDEN: &str = concat!(
    r#"reporter="waypoint",source_workload="web-v1",source_canonical_service="web","#,
    r#"source_canonical_revision="v1",source_workload_namespace="shop","#,
    r#"source_principal="spiffe://cluster.local/ns/shop/sa/web",source_app="web","#,
    r#"source_version="v1",source_cluster="Kubernetes",destination_workload="app-v1","#,
    r#"destination_workload_namespace="shop","#,
    r#"destination_principal="spiffe://cluster.local/ns/shop/sa/app",destination_app="app","#,
    r#"destination_version="v1",destination_service="app.shop.svc.cluster.local","#,
    r#"destination_canonical_service="app",destination_canonical_revision="v1","#,
    r#"destination_service_name="app",destination_service_namespace="shop","#,
    r#"destination_cluster="Kubernetes",request_protocol="http",response_code="200","#,
    r#"grpc_response_status="",response_flags="-",connection_security_policy="mutual_tls""#,
);

/// Values of an event that outlive it.
struct Facts {
    source: Arc<WorkloadLabels>,
    destination: Arc<WorkloadLabels>,
    service: Arc<ServiceLabels>,
}

impl Facts {
    fn new() -> Self {
        Facts {
            source: Arc::new(workload("web")),
            destination: Arc::new(workload("app")),
            service: Arc::new(ServiceLabels {
                host: "app.shop.svc.cluster.local".into(),
                name: "app".into(),
                namespace: "shop".into(),
            }),
        }
    }

    fn request(&self, duration: Duration) -> RequestEvent<'_> {
        RequestEvent {
            source: Some(&self.source),
            source_principal: &self.source.principal,
            security: SecurityPolicy::of_tunnel(&self.source.principal, "spiffe://a/ns/b/sa/c"),
            destination: Some(&self.destination),
            service: Some(&self.service),
            response_code: 200,
            timings: Timings { duration, ..Timings::default() },
            ..RequestEvent::default()
        }
    }

    fn connection(&self) -> ConnectionEvent<'_> {
        ConnectionEvent {
            source: Some(&self.source),
            source_principal: &self.source.principal,
            security: SecurityPolicy::MutualTls,
            destination: Some(&self.destination),
            service: Some(&self.service),
            ..ConnectionEvent::default()
        }
    }
}

fn workload(name: &str) -> WorkloadLabels {
    WorkloadLabels {
        workload: format!("{name}-v1").into(),
        namespace: "shop".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}").into(),
        app: name.into(),
        version: "v1".into(),
    }
}

fn scrape(telemetry: &Telemetry) -> Scrape {
    let openmetrics = Scrape::parse(&telemetry.render(true), true).unwrap();
    let text = Scrape::parse(&telemetry.render(false), false).unwrap();
    assert_eq!(openmetrics.samples.len(), text.samples.len());
    text
}

#[test]
fn one_request_in_both_formats() {
    let telemetry = Telemetry::with_settings(Settings {
        shards: 2,
        series_limit: 7,
        tenant_series_limit: 6,
        build_tag: "1.2.3".into(),
        ..Settings::default()
    });
    telemetry.record_request(&RequestEvent {
        head_bytes_in: 90,
        bytes_in: 10,
        head_bytes_out: 120,
        bytes_out: 2_000,
        ..Facts::new().request(Duration::from_micros(7_250))
    });

    let expected = |openmetrics: bool| {
        let plain = ["0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500"];
        let plain = plain
            .into_iter()
            .chain(["5000", "10000", "30000", "60000", "300000", "600000", "1800000", "3600000"]);
        let canonical = ["0.5", "1.0", "5.0", "10.0", "25.0", "50.0", "100.0", "250.0", "500.0"];
        let canonical = canonical.into_iter().chain([
            "1000.0", "2500.0", "5000.0", "10000.0", "30000.0", "60000.0", "300000.0", "600000.0",
            "1.8e+06", "3.6e+06",
        ]);
        let bounds: Vec<&str> = if openmetrics { canonical.collect() } else { plain.collect() };
        let total = if openmetrics { "" } else { "_total" };
        let mut text = format!(
            "# HELP istio_requests{total} Requests that are over.\n\
             # TYPE istio_requests{total} counter\n\
             istio_requests_total{{{GOLDEN}}} 1\n"
        );
        for (name, help, from, sum) in [
            (
                "istio_request_duration_milliseconds",
                "From the first byte of the request to the last of the reply.",
                3,
                "7.25",
            ),
            ("istio_request_bytes", "Bytes of requests, with their heads.", 6, "100"),
            ("istio_response_bytes", "Bytes of responses, with their heads.", 10, "2120"),
        ] {
            text += &format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
            for (i, le) in bounds.iter().enumerate() {
                let count = u8::from(i >= from);
                text += &format!("{name}_bucket{{{GOLDEN},le=\"{le}\"}} {count}\n");
            }
            text += &format!(
                "{name}_bucket{{{GOLDEN},le=\"+Inf\"}} 1\n\
                 {name}_sum{{{GOLDEN}}} {sum}\n\
                 {name}_count{{{GOLDEN}}} 1\n"
            );
        }
        text += &format!(
            "\
             # HELP cairn_telemetry_samples_rejected{total} Samples of collectors that were left out since their name or labels are not valid.\n\
             # TYPE cairn_telemetry_samples_rejected{total} counter\n\
             cairn_telemetry_samples_rejected_total 0\n\
             # HELP cairn_telemetry_series Series of Istio's metrics that exist.\n\
             # TYPE cairn_telemetry_series gauge\n\
             cairn_telemetry_series{{family=\"connections\"}} 0\n\
             cairn_telemetry_series{{family=\"messages\"}} 0\n\
             cairn_telemetry_series{{family=\"requests\"}} 1\n\
             # HELP cairn_telemetry_series_dropped{total} Times that a label set was refused a series of its own and was counted in the series other.\n\
             # TYPE cairn_telemetry_series_dropped{total} counter\n\
             cairn_telemetry_series_dropped_total{{family=\"connections\"}} 0\n\
             cairn_telemetry_series_dropped_total{{family=\"messages\"}} 0\n\
             cairn_telemetry_series_dropped_total{{family=\"requests\"}} 0\n\
             # HELP cairn_telemetry_series_limit Most series of Istio's metrics that may exist.\n\
             # TYPE cairn_telemetry_series_limit gauge\n\
             cairn_telemetry_series_limit 7\n\
             # HELP cairn_telemetry_series_removed{total} Series that left because nothing happened to them for long.\n\
             # TYPE cairn_telemetry_series_removed{total} counter\n\
             cairn_telemetry_series_removed_total{{family=\"connections\"}} 0\n\
             cairn_telemetry_series_removed_total{{family=\"messages\"}} 0\n\
             cairn_telemetry_series_removed_total{{family=\"requests\"}} 0\n\
             # HELP cairn_telemetry_tenant_series_limit Most of them that one tenant may have.\n\
             # TYPE cairn_telemetry_tenant_series_limit gauge\n\
             cairn_telemetry_tenant_series_limit 6\n\
             # HELP istio_build Version of the proxy, in the label.\n\
             # TYPE istio_build gauge\n\
             istio_build{{component=\"proxy\",tag=\"1.2.3\"}} 1\n"
        );
        if openmetrics {
            text += "# EOF\n";
        }
        text
    };
    assert_eq!(telemetry.render(false), expected(false));
    assert_eq!(telemetry.render(true), expected(true));
    scrape(&telemetry);
}

#[test]
fn a_refused_grpc_request_with_nothing_known() {
    let telemetry = Telemetry::new(1);
    telemetry.record_request(&RequestEvent {
        source_principal: "spiffe://cluster.local/ns/shop/sa/web",
        protocol: Protocol::Grpc,
        response_code: 200,
        grpc_status: Some(7),
        flags: ResponseFlags::NO_HEALTHY_UPSTREAM | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED,
        security: SecurityPolicy::MutualTls,
        ..RequestEvent::default()
    });
    let scrape = scrape(&telemetry);
    let requests = scrape.named("istio_requests_total");
    let [sample] = requests.as_slice() else {
        panic!("{requests:?}");
    };
    assert_eq!(sample.labels.len(), 25);
    let expected = [
        ("source_workload", "unknown"),
        ("source_canonical_revision", "latest"),
        ("source_workload_namespace", "shop"),
        ("destination_workload", "unknown"),
        ("destination_service", "unknown"),
        ("destination_canonical_revision", "unknown"),
        ("request_protocol", "grpc"),
        ("response_code", "200"),
        ("grpc_response_status", "7"),
        ("response_flags", "UH,URX"),
        ("connection_security_policy", "mutual_tls"),
    ];
    for (name, value) in expected {
        assert_eq!(sample.label(name), Some(value), "{name}");
    }
}

#[test]
fn a_connection_from_start_to_end() {
    let facts = Facts::new();
    let telemetry = Telemetry::new(1);
    telemetry.connection_opened(&facts.connection());
    let open = scrape(&telemetry);
    assert_eq!(open.sum("istio_tcp_connections_opened_total"), 1.0);
    assert_eq!(open.sum("istio_tcp_connections_closed_total"), 0.0);
    telemetry.connection_moved(&facts.connection(), 20, 10);
    let moved = scrape(&telemetry);
    assert_eq!(moved.sum("istio_tcp_received_bytes_total"), 10.0);
    assert_eq!(moved.sum("istio_tcp_sent_bytes_total"), 20.0);
    telemetry.connection_moved(&facts.connection(), 2, 1);
    telemetry.connection_closed(&facts.connection());
    let closed = scrape(&telemetry);
    assert_eq!(closed.sum("istio_tcp_connections_opened_total"), 1.0);
    assert_eq!(closed.sum("istio_tcp_connections_closed_total"), 1.0);
    assert_eq!(closed.sum("istio_tcp_received_bytes_total"), 11.0);
    assert_eq!(closed.sum("istio_tcp_sent_bytes_total"), 22.0);
    assert!(closed.named("istio_requests_total").is_empty());

    let labels = GOLDEN
        .replace(r#"response_code="200",grpc_response_status="","#, "")
        .replace(r#"request_protocol="http""#, r#"request_protocol="tcp""#);
    let line = format!("istio_tcp_sent_bytes_total{{{labels}}} 22\n");
    assert!(telemetry.render(false).contains(&line));
    assert!(telemetry.render(true).contains(&line));
}

#[test]
fn messages_are_counted_by_who_and_not_by_how_it_ended() {
    let facts = Facts::new();
    let telemetry = Telemetry::new(2);
    for (code, requests, responses) in [(200, 1, 5), (503, 2, 0)] {
        let event = RequestEvent {
            response_code: code,
            protocol: Protocol::Grpc,
            ..facts.request(Duration::ZERO)
        };
        telemetry.record_messages(&event, requests, responses);
        telemetry.shard(1).record_messages(&event, 1, 1);
    }
    let scrape = scrape(&telemetry);
    let requests = scrape.named("istio_request_messages_total");
    let [sample] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((sample.value, sample.labels.len()), (5.0, 20));
    assert_eq!(scrape.sum("istio_response_messages_total"), 7.0);
    assert!(scrape.named("istio_requests_total").is_empty());
}

#[test]
fn rules_change_labels_per_metric() {
    let facts = Facts::new();
    let mut builder = RulesBuilder::default();
    builder.drop(Metric::RequestBytes);
    builder.remove(Some(Metric::Requests), "destination_app");
    builder.dimension(Some(Metric::Requests), "host", 0);
    builder.dimension(None, "source_version", 1);
    let rules = Arc::new(builder.build());
    let dimensions = ["app.test".to_owned(), "v9".to_owned()];
    let telemetry = Telemetry::new(1);
    telemetry.record_request(&RequestEvent {
        rules: Some(&rules),
        dimensions: &dimensions,
        ..facts.request(Duration::ZERO)
    });
    let scrape = scrape(&telemetry);
    let one = |name: &str| scrape.named(name).into_iter().next().cloned().unwrap();
    let requests = one("istio_requests_total");
    assert_eq!(requests.label("destination_app"), None);
    assert_eq!(requests.labels.last(), Some(&("host".to_owned(), "app.test".to_owned())));
    assert_eq!(requests.label("source_version"), Some("v9"));
    let bytes = one("istio_response_bytes_count");
    assert_eq!(bytes.label("destination_app"), Some("app"));
    assert_eq!((bytes.label("source_version"), bytes.label("host")), (Some("v9"), None));
    assert!(scrape.named("istio_request_bytes_count").is_empty());
}

#[test]
fn an_idle_series_leaves_and_comes_back_from_nothing() {
    let facts = Facts::new();
    let settings = Settings { shards: 1, ..Settings::default() };
    let (idle, grace) = (settings.series_idle, settings.series_grace);
    let telemetry = Telemetry::with_settings(settings);
    let count = |expected: f64, series: f64| {
        let scrape = scrape(&telemetry);
        assert_eq!(scrape.sum("istio_requests_total"), expected);
        assert_eq!(scrape.sum("cairn_telemetry_series"), series);
    };
    for _ in 0..3 {
        telemetry.record_request(&facts.request(Duration::ZERO));
    }
    let start = Instant::now();
    telemetry.sweep(start);
    telemetry.sweep(start + idle);
    count(3.0, 1.0);
    telemetry.sweep(start + idle + grace);
    count(0.0, 0.0);
    assert_eq!(scrape(&telemetry).sum("cairn_telemetry_series_removed_total"), 1.0);
    telemetry.record_request(&facts.request(Duration::ZERO));
    count(1.0, 1.0);
}

#[test]
fn a_tenant_has_its_share_and_no_event_is_lost() {
    let facts = Facts::new();
    let telemetry = Telemetry::with_settings(Settings {
        shards: 1,
        series_limit: 64,
        tenant_series_limit: 16,
        ..Settings::default()
    });
    for tenant in ["greedy", "modest"] {
        for i in 0..if tenant == "greedy" { 100 } else { 5 } {
            telemetry.record_request(&RequestEvent {
                tenant,
                response_code: 200 + i,
                ..facts.request(Duration::ZERO)
            });
        }
    }
    let scrape = scrape(&telemetry);
    assert_eq!(scrape.sum("istio_requests_total"), 105.0);
    let others: Vec<_> = scrape
        .named("istio_requests_total")
        .into_iter()
        .filter(|sample| sample.label("response_code") == Some("other"))
        .map(|sample| (sample.label("destination_service_namespace").unwrap(), sample.value))
        .collect();
    // Both ask with the same labels: the modest one finds the series of the other.
    assert_eq!(others, [("greedy", 84.0)]);
}

#[test]
fn shards_are_merged() {
    let facts = Facts::new();
    let telemetry = Telemetry::new(4);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let shard = telemetry.shard(i);
            let (telemetry, facts) = (&telemetry, &facts);
            scope.spawn(move || {
                for n in 0..1_000 {
                    shard.record_request(&facts.request(Duration::from_millis(n)));
                    telemetry.record_request(&facts.request(Duration::from_millis(n)));
                    shard.connection_opened(&facts.connection());
                    shard.connection_moved(&facts.connection(), 0, 1);
                    shard.connection_closed(&facts.connection());
                }
            });
        }
    });
    let scrape = scrape(&telemetry);
    assert_eq!(scrape.named("istio_requests_total").len(), 1);
    assert_eq!(scrape.sum("istio_requests_total"), 16_000.0);
    let name = "istio_request_duration_milliseconds";
    assert_eq!(scrape.sum(&format!("{name}_count")), 16_000.0);
    assert_eq!(scrape.sum(&format!("{name}_sum")), 16.0 * 499_500.0);
    let buckets = scrape.named(&format!("{name}_bucket"));
    let at = |le| buckets.iter().find(|s| s.label("le") == Some(le)).unwrap().value;
    // Durations of 0, 1, …, 999 ms, 16 times each; a bound belongs to its bucket.
    assert_eq!(at("0.5"), 16.0);
    assert_eq!(at("1"), 32.0);
    assert_eq!(at("250"), 16.0 * 251.0);
    assert_eq!(at("1000"), 16_000.0);
    assert_eq!(scrape.sum("istio_tcp_connections_opened_total"), 8_000.0);
    assert_eq!(scrape.sum("istio_tcp_connections_closed_total"), 8_000.0);
    assert_eq!(scrape.sum("istio_tcp_received_bytes_total"), 8_000.0);
}

#[test]
fn a_push_that_makes_equal_labels_again_makes_no_new_series() {
    let telemetry = Telemetry::new(1);
    for _ in 0..3 {
        telemetry.record_request(&Facts::new().request(Duration::ZERO));
    }
    let scrape = scrape(&telemetry);
    assert_eq!(scrape.sum("cairn_telemetry_series"), 1.0);
    assert_eq!(scrape.sum("istio_requests_total"), 3.0);
}

#[test]
fn series_are_bounded_over_all_families_and_no_event_is_lost() {
    let facts = Facts::new();
    let telemetry =
        Telemetry::with_settings(Settings { shards: 2, series_limit: 5, ..Settings::default() });
    assert!(Settings::default().tenant_series_limit > 5, "no shares");
    telemetry.connection_opened(&facts.connection());
    for i in 0..100 {
        telemetry.shard(usize::from(i)).record_request(&RequestEvent {
            response_code: 200 + i,
            ..facts.request(Duration::from_millis(1))
        });
    }
    let scrape = scrape(&telemetry);
    assert_eq!(scrape.sum("istio_requests_total"), 100.0);
    assert_eq!(scrape.sum("cairn_telemetry_series"), 5.0);
    assert_eq!(scrape.sum("cairn_telemetry_series_limit"), 5.0);
    assert_eq!(scrape.sum("cairn_telemetry_series_dropped_total"), 96.0);
    let requests = scrape.named("istio_requests_total");
    assert_eq!(requests.len(), 5);
    let last = requests.last().unwrap();
    assert_eq!((last.label("response_code"), last.value), (Some("other"), 96.0));
    assert_eq!(last.label("reporter"), Some("waypoint"));
    assert!(last.labels.iter().skip(1).all(|(_, value)| value == "other"));
    assert_eq!(scrape.named("istio_tcp_connections_opened_total").len(), 1);
}

#[test]
fn collectors_add_their_families() {
    let telemetry = Telemetry::new(1);
    for mesh in ["one", "two"] {
        telemetry.register(Box::new(move |writer| {
            writer.counter("cairn_tunnels_opened_total", "Tunnels.", &[("mesh", mesh)], 3);
            writer.gauge("cairn_streams", "Streams.", &[], 2.0);
            writer.gauge("not a name", "", &[], 1.0);
        }));
    }
    let first = scrape(&telemetry);
    assert_eq!(first.named("cairn_tunnels_opened_total").len(), 2);
    assert_eq!(first.sum("cairn_streams"), 4.0);
    // `scrape` renders twice.
    assert_eq!(first.sum("cairn_telemetry_samples_rejected_total"), 4.0);
    assert_eq!(scrape(&telemetry).sum("cairn_telemetry_samples_rejected_total"), 8.0);
}

/// Text with a bias to what has a meaning in the formats, up to beyond the bound of a value.
fn text() -> impl Strategy<Value = String> {
    let marked = proptest::string::string_regex("[\\\\\"\n\r\t{}=, #le€\u{0}a]{0,24}").unwrap();
    prop_oneof![
        4 => marked,
        2 => any::<String>(),
        1 => ("[a-z€]{1,8}", 1_usize..400).prop_map(|(s, n)| s.repeat(n)),
        1 => Just("unknown".to_owned()),
    ]
}

fn any_workload() -> impl Strategy<Value = Arc<WorkloadLabels>> {
    prop::array::uniform8(text()).prop_map(|fields| {
        let [
            workload,
            namespace,
            canonical_service,
            canonical_revision,
            cluster,
            principal,
            app,
            version,
        ] = fields.map(Arc::from);
        Arc::new(WorkloadLabels {
            workload,
            namespace,
            canonical_service,
            canonical_revision,
            cluster,
            principal,
            app,
            version,
        })
    })
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_LABEL_VALUE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_value_breaks_the_grammar(
        workloads in prop::collection::vec(any_workload(), 1..4),
        principals in prop::collection::vec(text(), 1..4),
        host in text(),
        build_tag in text(),
        help in text(),
        names in prop::collection::vec((text(), text(), text()), 0..4),
    ) {
        let telemetry = Telemetry::with_settings(Settings {
            shards: 2,
            series_limit: 6,
            build_tag,
            ..Settings::default()
        });
        let service = Arc::new(ServiceLabels { host: host.as_str().into(), ..ServiceLabels::default() });
        let mut events = 0;
        for (i, workload) in workloads.iter().enumerate() {
            for principal in &principals {
                telemetry.shard(i).record_request(&RequestEvent {
                    source: Some(workload),
                    source_principal: principal,
                    destination: workloads.first(),
                    service: Some(&service),
                    ..RequestEvent::default()
                });
                telemetry.shard(i).connection_opened(&ConnectionEvent {
                    source_principal: principal,
                    service: Some(&service),
                    ..ConnectionEvent::default()
                });
                events += 1;
            }
        }
        telemetry.register(Box::new(move |writer| {
            for (name, label, value) in &names {
                writer.counter(name, &help, &[(label, value)], 1);
                writer.gauge("cairn_ok", &help, &[("value", value)], 0.5);
                writer.gauge(label, &help, &[], f64::NEG_INFINITY);
            }
        }));
        for openmetrics in [false, true] {
            let text = telemetry.render(openmetrics);
            let scrape = Scrape::parse(&text, openmetrics).map_err(TestCaseError::fail)?;
            prop_assert_eq!(scrape.sum("istio_requests_total"), f64::from(events));
            prop_assert_eq!(scrape.sum("istio_tcp_connections_opened_total"), f64::from(events));
            for sample in scrape.named("istio_requests_total") {
                let found = sample.label("destination_service").unwrap();
                let host = if host.is_empty() { "unknown" } else { cut(&host) };
                prop_assert!(found == host || found == "other", "{found:?}");
            }
        }
    }
}
