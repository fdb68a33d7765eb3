//! Access logs, compiled: a filter, and a line or record that is rendered from what is known at the end.

mod filter;
mod line;
mod record;

pub use record::{Field, OtelLog};

use crate::error::Context;
use crate::format::Facts;
use crate::request::RequestView;
use crate::spec;
use filter::Filter;
use line::Line;
use std::sync::Arc;

/// One access log.
#[derive(Debug)]
pub struct AccessLog {
    filter: Option<Filter>,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Line(Stream, Line),
    Otel(Arc<OtelLog>),
}

/// A stream of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a log says of one request or connection.
pub enum Entry<'a> {
    /// The line that was appended to the buffer goes to a stream.
    Line(Stream),
    /// A record is to be made.
    Otel(&'a Arc<OtelLog>),
}

impl AccessLog {
    pub(super) fn compile(from: &spec::AccessLog, at: &mut Context) -> Option<Self> {
        let spec::AccessLog { filter, to } = from;
        let filter =
            filter.as_ref().map(|filter| at.field("filter", |at| Filter::compile(filter, at)));
        let sink = match to {
            spec::LogSink::Stdout(format) => Sink::Line(Stream::Stdout, Line::compile(format, at)),
            spec::LogSink::Stderr(format) => Sink::Line(Stream::Stderr, Line::compile(format, at)),
            spec::LogSink::Otel(otel) => Sink::Otel(Arc::new(OtelLog::compile(otel, at))),
        };
        Some(AccessLog { filter, sink })
    }

    /// `None`: this one is not logged. A line is appended to `out`.
    pub fn write(
        &self,
        facts: &Facts<'_>,
        request: Option<&RequestView<'_>>,
        out: &mut Vec<u8>,
    ) -> Option<Entry<'_>> {
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(facts, request)) {
            return None;
        }
        Some(match &self.sink {
            Sink::Line(stream, line) => {
                line.render(facts, out);
                Entry::Line(*stream)
            }
            Sink::Otel(otel) => Entry::Otel(otel),
        })
    }
}

/// What is logged of tunnels, apart from what happens inside of them.
#[derive(Debug, Default)]
pub struct TunnelLogs {
    /// Of CONNECTs that are refused.
    pub connects: Vec<AccessLog>,
    /// Of tunnels whose target nobody has.
    pub unmatched: Vec<AccessLog>,
    /// Of tunnels to endpoints that do not come about.
    pub originated: Vec<AccessLog>,
}

impl TunnelLogs {
    pub(crate) fn compile(from: &spec::TunnelLogs, at: &mut Context) -> Option<Self> {
        let spec::TunnelLogs { connects, unmatched, originated } = from;
        let connects = at.each("connects", connects, AccessLog::compile);
        let unmatched = at.each("unmatched", unmatched, AccessLog::compile);
        let originated = at.each("originated", originated, AccessLog::compile);
        Some(TunnelLogs { connects: connects?, unmatched: unmatched?, originated: originated? })
    }
}

#[cfg(test)]
mod tests;
