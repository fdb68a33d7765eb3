//! Changes to Istio's metrics.

use super::Subject;
use cairn_proto::stats::PluginConfig;
use cairn_router::spec::Metrics;

/// What differs from the standard metrics.
pub(super) fn metrics(_from: &PluginConfig, _subject: &mut Subject<'_>) -> Option<Metrics> {
    None
}
