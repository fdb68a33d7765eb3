//! Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.

use crate::cel::Expression;
use crate::error::Context;
use crate::extensions::Extensions;
use crate::spec;
use std::time::Duration;

/// Names of the metrics that can be changed, without `istio_`.
pub const METRICS: [&str; 10] = [
    "requests_total",
    "request_duration_milliseconds",
    "request_bytes",
    "response_bytes",
    "request_messages_total",
    "response_messages_total",
    "tcp_connections_opened_total",
    "tcp_connections_closed_total",
    "tcp_sent_bytes_total",
    "tcp_received_bytes_total",
];

/// How often what is not over is counted (Istio: `tcp_reporting_duration`).
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.
#[derive(Debug)]
pub struct Metrics {
    /// Nothing is counted.
    pub off: bool,
    /// How often what is not over is counted; 0: never.
    pub report_interval: Duration,
    /// A request whose cluster names no service counts for the host that it asks for.
    pub host_fallback: bool,
    /// In order: later changes of the same metric and label replace earlier ones.
    pub overrides: Vec<MetricOverride>,
    /// Expressions of all overrides, each once; overrides name them by their numbers.
    pub dimensions: Vec<Expression>,
    /// What others make of it.
    pub state: Extensions,
}

/// What changes for one metric, or for all of them.
#[derive(Debug)]
pub struct MetricOverride {
    /// One of [`METRICS`]; `None`: all of them.
    pub metric: Option<Box<str>>,
    /// It is not counted.
    pub drop: bool,
    /// Standard labels that it loses.
    pub remove: Vec<Box<str>>,
    /// Labels and the numbers of their expressions.
    pub dimensions: Vec<(Box<str>, usize)>,
}

impl Metrics {
    pub(super) fn compile(from: &spec::Metrics, at: &mut Context) -> Option<Self> {
        let spec::Metrics { off, overrides, report_interval, host_fallback } = from;
        let mut dimensions = Dimensions::default();
        let overrides = at.each("overrides", overrides, |from, at| {
            MetricOverride::compile(from, &mut dimensions, at)
        })?;
        Some(Metrics {
            off: *off,
            report_interval: report_interval.unwrap_or(REPORT_INTERVAL),
            host_fallback: *host_fallback,
            overrides,
            dimensions: dimensions.compiled,
            state: Extensions::default(),
        })
    }
}

/// Expressions so far, by their texts.
#[derive(Default)]
struct Dimensions {
    texts: Vec<String>,
    compiled: Vec<Expression>,
}

impl Dimensions {
    fn number(&mut self, text: &str, at: &mut Context) -> Option<usize> {
        if let Some(known) = self.texts.iter().position(|known| known == text) {
            return Some(known);
        }
        match Expression::compile(text) {
            Ok(expression) => {
                self.texts.push(text.to_owned());
                self.compiled.push(expression);
                Some(self.compiled.len() - 1)
            }
            Err(reason) => at.reject(format!("`{text}`: {reason}")),
        }
    }
}

impl MetricOverride {
    fn compile(
        from: &spec::MetricOverride,
        known: &mut Dimensions,
        at: &mut Context,
    ) -> Option<Self> {
        let spec::MetricOverride { metric, drop, remove, dimensions } = from;
        if let Some(name) = metric
            && !METRICS.contains(&name.as_str())
        {
            let names = METRICS.join(", ");
            return at.field("metric", |at| at.reject(format!("`{name}` is none of {names}")));
        }
        let dimensions = at.field("dimensions", |at| {
            let mut compiled = Some(Vec::with_capacity(dimensions.len()));
            for (label, text) in dimensions {
                let number = at.key(label, |at| match is_label_name(label) {
                    true => known.number(text, at),
                    false => at.reject("is no name of a label"),
                });
                match (number, &mut compiled) {
                    (Some(number), Some(list)) => list.push((label.as_str().into(), number)),
                    _ => compiled = None,
                }
            }
            compiled
        });
        Some(MetricOverride {
            metric: metric.as_deref().map(Into::into),
            drop: *drop,
            remove: remove.iter().map(|label| label.as_str().into()).collect(),
            dimensions: dimensions?,
        })
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, without the names that Prometheus keeps to itself (`__…`, `le`, `quantile`).
pub fn is_label_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with("__")
        && !matches!(name, "le" | "quantile")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn compile(json: serde_json::Value) -> Result<Metrics, Vec<String>> {
        let mut at = Context::new();
        let spec = serde_json::from_value(json).unwrap();
        match Metrics::compile(&spec, &mut at) {
            Some(metrics) => Ok(metrics),
            None => Err(at.into_errors().iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn equal_expressions_are_one_dimension() {
        let metrics = compile(serde_json::json!({ "overrides": [
            { "metric": "requests_total", "dimensions": { "a": "request.host", "b": "request.method" } },
            { "dimensions": { "c": "request.host" }, "remove": ["source_app"] },
        ] }))
        .unwrap();
        assert_eq!(metrics.dimensions.len(), 2);
        let [first, second] = metrics.overrides.as_slice() else { panic!("{metrics:?}") };
        assert_eq!(first.dimensions, [("a".into(), 0), ("b".into(), 1)]);
        assert_eq!(second.dimensions, [("c".into(), 0)]);
        assert_eq!(metrics.report_interval, REPORT_INTERVAL);
    }

    #[test]
    fn what_cannot_be_is_an_error_with_its_place() {
        for (json, place) in [
            (serde_json::json!({ "metric": "istio_requests_total" }), "overrides[0].metric: "),
            (
                serde_json::json!({ "dimensions": { "a-b": "request.host" } }),
                "overrides[0].dimensions[\"a-b\"]: ",
            ),
            (
                serde_json::json!({ "dimensions": { "a": "request.host ==" } }),
                "overrides[0].dimensions[\"a\"]: ",
            ),
        ] {
            let errors = compile(serde_json::json!({ "overrides": [json] })).unwrap_err();
            assert!(errors.iter().any(|error| error.starts_with(place)), "{errors:?}");
        }
    }
}
