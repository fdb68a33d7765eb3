//! Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.

use serde::{Deserialize, Serialize};

/// Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {}
