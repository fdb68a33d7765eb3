//! One access log.

use crate::error::Context;
use crate::spec;

/// One access log.
#[derive(Debug)]
pub struct AccessLog {}

impl AccessLog {
    pub(super) fn compile(from: &spec::AccessLog, _at: &mut Context) -> Option<Self> {
        let spec::AccessLog {} = from;
        Some(AccessLog {})
    }
}
