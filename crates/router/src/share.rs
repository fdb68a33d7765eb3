//! A share of the requests.

use crate::error::Context;

/// The draw is out of so many.
const MILLION: u64 = 1_000_000;

/// A share of the requests, drawn for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    per_million: u64,
}

impl Share {
    /// Of a percentage, which has to be in 0 to 100, at the field `percent`.
    pub(crate) fn compile(percent: f64, at: &mut Context) -> Option<Share> {
        at.field("percent", |at| match (0.0..=100.0).contains(&percent) {
            // Between 0 and a million, both included.
            true => Some(Share { per_million: (percent * 10_000.0).round() as u64 }),
            false => at.reject(format!("{percent} is not in 0 to 100")),
        })
    }

    /// This request is one of them; `random` is uniform over 64 bits.
    pub fn applies(self, random: u64) -> bool {
        random % MILLION < self.per_million
    }
}
