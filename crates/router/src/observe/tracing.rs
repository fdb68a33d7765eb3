//! How requests are traced.

use crate::error::Context;
use crate::spec;

/// How requests are traced.
#[derive(Debug)]
pub struct Tracing {}

impl Tracing {
    pub(super) fn compile(from: &spec::Tracing, _at: &mut Context) -> Option<Self> {
        let spec::Tracing {} = from;
        Some(Tracing {})
    }
}
