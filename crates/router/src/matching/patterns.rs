//! Regular expressions that are compiled already.
//!
//! The same pattern stands in many routes and policies, and building its automaton costs more than
//! everything else in them together. Copies share it; each has caches of its own.

use super::re2;
use ahash::AHashMap;
use parking_lot::Mutex;
use regex::bytes::Regex;
use std::sync::Arc;

/// Most patterns that are kept; beyond it the cache starts anew.
const MAX_PATTERNS: usize = 1024;

/// What was compiled so far. Clones are the same cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns(Arc<Mutex<AHashMap<Box<str>, Regex>>>);

impl Patterns {
    /// Compiles a pattern that the whole text must match.
    pub(crate) fn whole(&self, pattern: &str) -> Result<Regex, String> {
        if let Some(regex) = self.0.lock().get(pattern) {
            return Ok(regex.clone());
        }
        let regex = re2::whole(pattern)?;
        let mut known = self.0.lock();
        if known.len() >= MAX_PATTERNS {
            known.clear();
        }
        known.insert(pattern.into(), regex.clone());
        Ok(regex)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_pattern_once_and_bounded() {
        let patterns = Patterns::default();
        for _ in 0..3 {
            assert!(patterns.clone().whole("a+").unwrap().is_match(b"aa"));
            assert!(!patterns.whole("a+").unwrap().is_match(b"aab"));
        }
        assert_eq!(patterns.0.lock().len(), 1);
        assert!(patterns.whole("(").is_err());
        for number in 0..MAX_PATTERNS {
            patterns.whole(&number.to_string()).unwrap();
        }
        assert!(patterns.0.lock().len() <= MAX_PATTERNS);
    }
}
