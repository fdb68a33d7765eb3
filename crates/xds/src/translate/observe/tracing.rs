//! Tracing.

use super::Subject;
use super::Undecodable;
use super::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use cairn_router::spec::Tracing;

/// How requests are traced.
pub(super) fn tracing(
    from: &hcm::Tracing,
    subject: &mut Subject<'_>,
) -> Result<Option<Tracing>, Undecodable> {
    subject.degrade_if(from.provider.is_some(), "tracing");
    Ok(None)
}
