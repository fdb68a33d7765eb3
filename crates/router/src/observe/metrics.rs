//! Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.

use crate::error::Context;
use crate::spec;

/// Changes to Istio's standard metrics. Istio: `stats.PluginConfig`.
#[derive(Debug)]
pub struct Metrics {}

impl Metrics {
    pub(super) fn compile(from: &spec::Metrics, _at: &mut Context) -> Option<Self> {
        let spec::Metrics {} = from;
        Some(Metrics {})
    }
}
