//! `cairn explain`: what becomes of a request, and why.
//!
//! A running proxy is asked at its admin port (`/explain`), where the very model that serves traffic
//! answers. Captured answers of istiod, or a configuration, are compiled here and asked.

mod answer;
mod blame;
pub(crate) mod captures;
mod command;
mod engine;
mod places;
mod question;
mod request;

pub use command::run;
pub use engine::explain;
pub use question::Question;

use answer::Explanation;

/// How the page is asked.
pub const PAGE_HELP: &str = "what becomes of a request, as JSON; ?target=HOST:PORT, then method=, \
                             path=, header=NAME:VALUE, from=SPIFFE-ID, source_ip=";

/// JSON, with line breaks.
pub fn json(answer: &Explanation) -> String {
    let mut text = serde_json::to_string_pretty(answer)
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
    text.push('\n');
    text
}
