//! Access logs.

use super::Subject;
use super::Undecodable;
use super::pb::envoy::config::accesslog::v3 as accesslog;
use cairn_router::spec::AccessLog;

/// Those that can be written.
pub(super) fn all(
    from: &[accesslog::AccessLog],
    subject: &mut Subject<'_>,
) -> Result<Vec<AccessLog>, Undecodable> {
    subject.degrade_if(!from.is_empty(), "the access log");
    Ok(Vec::new())
}
