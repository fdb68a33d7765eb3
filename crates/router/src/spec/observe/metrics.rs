//! Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.

use crate::spec::duration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Nothing is counted. Istio: the chain has no filter `istio.stats`.
    #[serde(skip_serializing_if = "is_false")]
    pub off: bool,
    /// What changes, in order: later changes of the same metric and label replace earlier ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<MetricOverride>,
    /// How often bytes of open connections and messages of open streams are counted; 0: when they are over.
    /// Absent: every 5 seconds. Istio: `tcp_reporting_duration`.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub report_interval: Option<Duration>,
    /// A request whose cluster names no service counts for the host that it asks for.
    /// Istio: not `disable_host_header_fallback`.
    #[serde(skip_serializing_if = "is_false")]
    pub host_fallback: bool,
}

/// What changes for one metric, or for all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricOverride {
    /// Name without `istio_`, such as `requests_total`; absent: all metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// It is not counted.
    #[serde(skip_serializing_if = "is_false")]
    pub drop: bool,
    /// Standard labels that it loses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Labels, standard ones or others, and the CEL expressions of their values. One without a value is `unknown`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions: BTreeMap<String, String>,
}

fn is_false(value: &bool) -> bool {
    !value
}
