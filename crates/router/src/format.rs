//! Texts with `%OPERATORS%`, as Envoy's substitution formatter reads them.
//!
//! There is one parser and there are two ways to use it. Values of headers are parsed strictly: an operator
//! that is not known is an error of the configuration, and one without a value leaves nothing behind (Envoy:
//! `omit_empty_values`, as it formats header values). In access logs whatever is not known is written `-`,
//! like what has no value: a log never keeps a configuration from being used.

mod context;
mod flags;
mod operator;
mod parse;
pub(crate) mod time;

pub use context::{Facts, FormatContext, Peer};
pub use flags::FLAGS;
pub use operator::Said;

use crate::request::Headers;
use http::Version;
use operator::Operator;

/// A formatted text ends here, in bytes.
pub const MAX_LEN: usize = 64 << 10;

/// What stands in a line of an access log for a value that is not there.
const MISSING: &[u8] = b"-";

/// A parsed text.
#[derive(Debug, Clone)]
pub struct Format {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
enum Segment {
    Literal(Box<[u8]>),
    Operator { operator: Operator, max_len: usize },
}

impl Format {
    /// Parses a text. `%%` is a percent sign; `%NAME%`, `%NAME(ARGUMENTS)%` and `%NAME(ARGUMENTS):N%`
    /// are operators, the last with at most `N` bytes. The error says what is not understood.
    pub fn parse(text: &str) -> Result<Format, String> {
        parse::strictly(text)
    }

    /// Parses a text of an access log. What is not understood has never a value, and is listed.
    pub fn parse_for_log(text: &str) -> (Format, Vec<String>) {
        parse::leniently(text)
    }

    /// The text, if it has no operators.
    pub fn literal(&self) -> Option<&[u8]> {
        match self.segments.as_slice() {
            [] => Some(b""),
            [Segment::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Writes the text, at most [`MAX_LEN`] bytes of it; what has no value leaves nothing behind.
    pub fn render(
        &self,
        context: &FormatContext<'_>,
        request: Option<&dyn Headers>,
        response: Option<&dyn Headers>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&Facts { context, request, response }, b"", &mut out);
        out
    }

    /// Appends the text as access logs have it, at most [`MAX_LEN`] bytes; what has no value is `-`, or
    /// nothing with `omit_empty`.
    pub fn line(&self, facts: &Facts<'_>, omit_empty: bool, out: &mut Vec<u8>) {
        self.write(facts, if omit_empty { b"" } else { MISSING }, out);
    }

    /// What stands in structured logs. An operator alone keeps its type, and without a value is `None`.
    pub fn said<'a>(&'a self, facts: &Facts<'a>, omit_empty: bool) -> Option<Said<'a>> {
        if let [Segment::Operator { operator, max_len }] = self.segments.as_slice() {
            let mut said = operator.say(facts)?;
            said.truncate((*max_len).min(MAX_LEN));
            return Some(said);
        }
        let mut out = Vec::new();
        self.line(facts, omit_empty, &mut out);
        Some(Said::Text(out.into()))
    }

    fn write(&self, facts: &Facts<'_>, missing: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Operator { operator, max_len } => {
                    let start = out.len();
                    match operator.say(facts) {
                        Some(said) => said.write(out),
                        None => out.extend_from_slice(missing),
                    }
                    out.truncate(start.saturating_add(*max_len));
                }
            }
            out.truncate(begin + MAX_LEN);
        }
    }
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests;
