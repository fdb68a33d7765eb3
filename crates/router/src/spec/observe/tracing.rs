//! How requests are traced.

use serde::{Deserialize, Serialize};

/// How requests are traced.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {}
