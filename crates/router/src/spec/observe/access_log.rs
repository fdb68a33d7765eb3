//! One access log.

use serde::{Deserialize, Serialize};

/// One access log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {}
