//! Changes to Istio's metrics.

use super::Subject;
use super::pb::google::protobuf::Duration as Span;
use crate::translate::wire::duration;
use cairn_proto::stats::{MetricConfig, PluginConfig, Reporter};
use cairn_router::cel::Expression;
use cairn_router::observe::{METRICS, is_label_name};
use cairn_router::spec::{MetricOverride, Metrics};

/// What differs from the standard metrics. Istio: a chain without the filter is not counted.
pub(super) fn metrics(from: Option<&PluginConfig>, subject: &mut Subject<'_>) -> Option<Metrics> {
    let Some(from) = from else {
        return Some(Metrics { off: true, ..Metrics::default() });
    };
    let PluginConfig {
        debug: _,
        max_peer_cache_size: _,
        disable_host_header_fallback,
        tcp_reporting_duration,
        metrics,
        definitions,
        reporter,
        // Series leave when they are idle, whatever the chain.
        rotation_interval: _,
        graceful_deletion_interval: _,
    } = from;
    subject.degrade_if(
        *reporter != Reporter::ServerGateway as i32,
        "another reporter of metrics than a waypoint",
    );
    subject.degrade_if(!definitions.is_empty(), "a metric that is not one of Istio's");
    let metrics = Metrics {
        off: false,
        overrides: metrics.iter().filter_map(|one| change(one, subject)).collect(),
        report_interval: tcp_reporting_duration
            .as_ref()
            .map(|time| duration(&Span { seconds: time.seconds, nanos: time.nanos })),
        host_fallback: !disable_host_header_fallback,
    };
    (metrics != Metrics::default()).then_some(metrics)
}

/// What changes for one metric. Istio: `match` is not looked at, and a metric that is dropped has no other change.
fn change(from: &MetricConfig, subject: &mut Subject<'_>) -> Option<MetricOverride> {
    let MetricConfig { dimensions, name, tags_to_remove, r#match: _, drop } = from;
    let metric = (!name.is_empty()).then(|| name.clone());
    if let Some(name) = &metric
        && !METRICS.contains(&name.as_str())
    {
        subject
            .degrade(format!("a change of the metric `{name}`, which is not known, is left out"));
        return None;
    }
    if *drop {
        // Istio: dropping all of them by the empty name does nothing.
        return metric.map(|name| MetricOverride {
            metric: Some(name),
            drop: true,
            ..MetricOverride::default()
        });
    }
    let mut change = MetricOverride {
        metric,
        drop: false,
        remove: tags_to_remove.clone(),
        ..MetricOverride::default()
    };
    for (label, text) in dimensions {
        // Envoy's exporter writes other characters so.
        let label: String =
            label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !is_label_name(&label) {
            subject.degrade(format!("the label `{label}` of metrics is left out"));
            continue;
        }
        match Expression::compile(text) {
            Ok(expression) => {
                for attribute in expression.unknown() {
                    subject.degrade(format!(
                        "the label `{label}` of metrics: `{attribute}` never has a value"
                    ));
                }
                change.dimensions.insert(label, text.clone());
            }
            Err(reason) => {
                subject.degrade(format!(
                    "the label `{label}` of metrics is left out: `{text}` {reason}"
                ));
                // Istio: a standard label is lost with its expression.
                change.remove.push(label);
            }
        }
    }
    (change.drop || !change.remove.is_empty() || !change.dimensions.is_empty()).then_some(change)
}
