//! Log output: text or JSON on standard error, with a filter that can be changed while running.
//!
//! Pingora logs each failed request through the `log` crate at `error`; Cairn's own events and
//! access records say the same, so Pingora is off unless a filter names it. The HTTP/2, TLS and
//! HTTP libraries stay at `warn` for the same reason.

use crate::cli::LogFormat;
use parking_lot::Mutex;
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Applied to libraries that a filter does not name.
const QUIET: [(&str, &str); 4] =
    [("pingora", "off"), ("h2", "warn"), ("rustls", "warn"), ("hyper", "warn")];

/// Longest filter that is accepted.
const MAX_FILTER_BYTES: usize = 4096;

/// Shows and changes the filter.
#[derive(Clone)]
pub struct Logging {
    handle: reload::Handle<EnvFilter, Registry>,
    shown: Arc<Mutex<String>>,
}

/// Why a filter was refused.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not in the syntax of filters.
    #[error(
        "`{filter}` is no log filter ({reason}); write for example `info`, or `info,cairn_proxy=debug`"
    )]
    Syntax {
        /// As given.
        filter: String,
        /// What the parser says.
        reason: String,
    },
    /// Longer than any sensible filter.
    #[error("a log filter has at most {MAX_FILTER_BYTES} bytes")]
    TooLong,
    /// The subscriber is gone.
    #[error("the log filter cannot be changed any more: {0}")]
    Gone(#[from] reload::Error),
}

impl Logging {
    /// Installs the process' subscriber. The first call wins; later ones only make a handle.
    pub fn start(format: LogFormat, filter: &str) -> Result<Logging, FilterError> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        // Without internal errors: they are printed to standard error too, and that panics when its
        // reader has gone.
        let lines = match format {
            LogFormat::Text => fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .log_internal_errors(false)
                .boxed(),
            LogFormat::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr)
                .log_internal_errors(false)
                .boxed(),
        };
        // Fails only where a subscriber is installed already, which then stays in charge.
        let _ = tracing_subscriber::registry().with(layer).with(lines).try_init();
        Ok(Logging { handle, shown: Arc::new(Mutex::new(filter.to_owned())) })
    }

    /// The filter as it was given.
    pub fn filter(&self) -> String {
        self.shown.lock().clone()
    }

    /// Replaces the filter at once.
    pub fn set_filter(&self, filter: &str) -> Result<(), FilterError> {
        self.handle.reload(parse(filter)?)?;
        *self.shown.lock() = filter.to_owned();
        Ok(())
    }
}

/// The filter with the quiet libraries added.
pub fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    if filter.len() > MAX_FILTER_BYTES {
        return Err(FilterError::TooLong);
    }
    let syntax = |reason: String| FilterError::Syntax { filter: filter.to_owned(), reason };
    if filter.trim().is_empty() {
        return Err(syntax("it is empty".to_owned()));
    }
    let mut whole = filter.to_owned();
    for (library, level) in QUIET {
        if !filter.contains(library) {
            whole.push_str(&format!(",{library}={level}"));
        }
    }
    EnvFilter::builder().parse(&whole).map_err(|error| syntax(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_named() {
        let shown = parse("debug").unwrap().to_string();
        assert!(shown.contains("pingora=off") && shown.contains("h2=warn"), "{shown}");
        let shown = parse("info,pingora_proxy=debug").unwrap().to_string();
        assert!(!shown.contains("pingora=off"), "{shown}");
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        let text = parse("cairn=loud").unwrap_err().to_string();
        assert!(text.contains("cairn=loud") && text.contains("write for example"), "{text}");
        assert!(matches!(parse(&"a".repeat(5000)), Err(FilterError::TooLong)));
        assert!(parse(" ").is_err());
    }

    #[test]
    fn a_refused_filter_changes_nothing() {
        let (_layer, handle) = reload::Layer::new(parse("info").unwrap());
        let logging = Logging { handle, shown: Arc::new(Mutex::new("info".to_owned())) };
        assert!(logging.set_filter("cairn=loud").is_err());
        assert_eq!(logging.filter(), "info");
        logging.set_filter("warn").unwrap();
        assert_eq!(logging.filter(), "warn");
    }
}
