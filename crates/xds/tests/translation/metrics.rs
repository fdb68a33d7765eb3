//! Changes to Istio's metrics.

use crate::world::{any, chain, http_chain, http_filter, manager, network_filter, of_chain, pack};
use cairn_proto::envoy::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use cairn_proto::prost::Message;
use cairn_proto::prost_types;
use cairn_proto::stats::{MetricConfig, MetricDefinition, PluginConfig, Reporter};
use cairn_router::spec::{MetricOverride, Metrics};
use std::collections::BTreeMap;
use std::time::Duration;

/// As istiod writes it, with these changes.
fn config(metrics: Vec<MetricConfig>) -> PluginConfig {
    PluginConfig {
        disable_host_header_fallback: true,
        reporter: Reporter::ServerGateway as i32,
        metrics,
        ..PluginConfig::default()
    }
}

/// What becomes of it, and what is said of it.
fn translated(config: &PluginConfig) -> (Option<Metrics>, Vec<String>) {
    let stats = any("stats.PluginConfig", config.encode_to_vec());
    let mut manager = manager();
    manager.http_filters.insert(0, http_filter("istio.stats", stats));
    let (translator, destination) = of_chain(http_chain(&manager));
    let chain = destination.http.as_ref().unwrap();
    assert_eq!(chain.broken, None);
    let metrics = chain.observe.as_ref().and_then(|observe| observe.metrics.clone());
    (metrics, translator.degraded().into_iter().map(|of| of.reason).collect())
}

fn map(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn what_istiod_writes_without_a_wish_changes_nothing() {
    assert_eq!(translated(&config(vec![])), (None, vec![]));
}

#[test]
fn a_chain_without_the_filter_is_not_counted() {
    let off = Some(Metrics { off: true, ..Metrics::default() });
    let (_, destination) = of_chain(http_chain(&manager()));
    let observe = destination.http.as_ref().unwrap().observe.as_ref().unwrap();
    assert_eq!(observe.metrics, off);
    let to = proxy::tcp_proxy::ClusterSpecifier::Cluster("app".to_owned());
    let tcp = proxy::TcpProxy { cluster_specifier: Some(to), ..proxy::TcpProxy::default() };
    let (_, destination) = of_chain(chain(vec![network_filter("tcp", pack(&tcp))]));
    let observe = destination.tcp.as_ref().unwrap().observe.as_ref().unwrap();
    assert_eq!(observe.metrics, off);
}

#[test]
fn changes_are_taken_as_they_are() {
    let wished = PluginConfig {
        disable_host_header_fallback: false,
        tcp_reporting_duration: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        ..config(vec![
            MetricConfig {
                name: "requests_total".to_owned(),
                dimensions: map(&[("host", "request.host"), ("a-b", "'x'")]).into_iter().collect(),
                tags_to_remove: vec!["destination_app".to_owned()],
                ..MetricConfig::default()
            },
            MetricConfig {
                name: "request_bytes".to_owned(),
                drop: true,
                tags_to_remove: vec!["source_app".to_owned()],
                ..MetricConfig::default()
            },
            MetricConfig {
                tags_to_remove: vec!["source_version".to_owned()],
                r#match: "false".to_owned(),
                ..MetricConfig::default()
            },
            // Istio: does nothing.
            MetricConfig { drop: true, ..MetricConfig::default() },
        ])
    };
    let (metrics, degraded) = translated(&wished);
    let expected = Metrics {
        off: false,
        overrides: vec![
            MetricOverride {
                metric: Some("requests_total".to_owned()),
                remove: vec!["destination_app".to_owned()],
                dimensions: map(&[("host", "request.host"), ("a_b", "'x'")]).into_iter().collect(),
                drop: false,
            },
            MetricOverride {
                metric: Some("request_bytes".to_owned()),
                drop: true,
                ..MetricOverride::default()
            },
            MetricOverride {
                remove: vec!["source_version".to_owned()],
                ..MetricOverride::default()
            },
        ],
        report_interval: Some(Duration::from_secs(10)),
        host_fallback: true,
    };
    assert_eq!(metrics, Some(expected));
    assert_eq!(degraded, Vec::<String>::new());
}

#[test]
fn what_cannot_be_done_is_left_out_and_said() {
    let one = |change: MetricConfig| config(vec![change]);
    let dimension = |label: &str, text: &str| {
        one(MetricConfig {
            dimensions: map(&[(label, text)]).into_iter().collect(),
            ..MetricConfig::default()
        })
    };
    for (config, left, said) in [
        (
            one(MetricConfig { name: "other_total".to_owned(), drop: true, ..Default::default() }),
            None,
            "`other_total`",
        ),
        (dimension("le", "'x'"), None, "`le`"),
        (dimension("", "'x'"), None, "``"),
        (dimension("host", "request.host =="), Some("host"), "`request.host ==`"),
        (dimension("source_app", "[1].map(x, x)"), Some("source_app"), "`source_app`"),
        (
            PluginConfig { reporter: Reporter::Unspecified as i32, ..config(vec![]) },
            None,
            "reporter",
        ),
        (
            PluginConfig {
                definitions: vec![MetricDefinition {
                    name: "own".to_owned(),
                    ..MetricDefinition::default()
                }],
                ..config(vec![])
            },
            None,
            "not one of Istio's",
        ),
    ] {
        let (metrics, degraded) = translated(&config);
        let left = left.map(|label| Metrics {
            overrides: vec![MetricOverride {
                remove: vec![label.to_owned()],
                dimensions: BTreeMap::new(),
                ..MetricOverride::default()
            }],
            ..Metrics::default()
        });
        assert_eq!(metrics, left, "{said}");
        assert!(degraded.len() == 1 && degraded[0].contains(said), "{said}: {degraded:?}");
    }
}

#[test]
fn an_attribute_that_never_has_a_value_is_said() {
    let (metrics, degraded) = translated(&config(vec![MetricConfig {
        dimensions: map(&[("node", "node.id")]).into_iter().collect(),
        ..MetricConfig::default()
    }]));
    assert!(metrics.is_some());
    assert!(degraded.len() == 1 && degraded[0].contains("`node.id`"), "{degraded:?}");
}
