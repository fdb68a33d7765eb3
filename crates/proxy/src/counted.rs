//! What a chain's settings make of Istio's metrics: whether it is counted, its rules, and the values of its own labels.

use cairn_router::cluster::Cluster;
use cairn_router::format::{Facts, Peer};
use cairn_router::observe::{Metrics, Observe};
use cairn_telemetry::{Metric, Rules, RulesBuilder, ServiceLabels, WorkloadLabels};
use std::sync::Arc;

/// How the events of a chain are counted.
#[derive(Default)]
pub(crate) struct Counted<'a> {
    /// Nothing is.
    pub(crate) off: bool,
    pub(crate) rules: Option<&'a Arc<Rules>>,
    /// Values of the chain's own labels.
    pub(crate) dimensions: Vec<String>,
}

/// The settings of a chain, if it has any.
pub(crate) fn settings(observe: Option<&Arc<Observe>>) -> Option<&Metrics> {
    observe?.metrics.as_ref()
}

impl<'a> Counted<'a> {
    /// By the settings of a chain. Without settings, and without labels of its own, it costs nothing.
    pub(crate) fn by(metrics: Option<&'a Metrics>, facts: &Facts<'_>) -> Counted<'a> {
        let Some(metrics) = metrics else {
            return Counted::default();
        };
        let value = |expression: &cairn_router::cel::Expression| {
            // Istio: what has no value is unknown.
            expression.text(facts).map_or_else(|| "unknown".to_owned(), |text| text.into_owned())
        };
        Counted {
            off: metrics.off,
            rules: rules_of(metrics),
            dimensions: metrics.dimensions.iter().map(value).collect(),
        }
    }
}

/// The rules of a chain, made once; `None`: nothing changes.
pub(crate) fn rules_of(metrics: &Metrics) -> Option<&Arc<Rules>> {
    if metrics.overrides.is_empty() {
        return None;
    }
    Some(metrics.state.get_or_init(|| {
        let mut rules = RulesBuilder::default();
        for one in &metrics.overrides {
            let metric = one.metric.as_deref().and_then(Metric::named);
            if one.metric.is_some() && metric.is_none() {
                continue;
            }
            if let Some(metric) = metric.filter(|_| one.drop) {
                rules.drop(metric);
            }
            for label in &one.remove {
                rules.remove(metric, label);
            }
            for (label, number) in &one.dimensions {
                rules.dimension(metric, label, *number);
            }
        }
        Arc::new(rules.build())
    }))
}

/// The host that was asked for in place of a service, where the cluster names none and the chain's settings say so.
pub(crate) fn fallback(
    metrics: Option<&Metrics>,
    cluster: Option<&Arc<Cluster>>,
    host: &str,
) -> Option<Arc<ServiceLabels>> {
    let unnamed = cluster.is_none_or(|cluster| cluster.service.is_empty());
    let asked = metrics?.host_fallback && unnamed && !host.is_empty();
    asked.then(|| {
        let host: Arc<str> = host.into();
        Arc::new(ServiceLabels { name: Arc::clone(&host), host, namespace: "".into() })
    })
}

/// A workload as expressions see it.
pub(crate) fn peer(labels: &WorkloadLabels) -> Peer<'_> {
    Peer {
        workload: &labels.workload,
        cluster: &labels.cluster,
        namespace: &labels.namespace,
        service: &labels.canonical_service,
        revision: &labels.canonical_revision,
        app: &labels.app,
        version: &labels.version,
        identity: &labels.principal,
        ..Peer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_and_the_store_know_the_same_metrics() {
        let names = Metric::ALL.map(|(_, name)| name);
        assert_eq!(names, cairn_router::observe::METRICS);
    }
}
