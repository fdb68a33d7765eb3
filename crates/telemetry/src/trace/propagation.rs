//! Which headers are read, and what is written for the endpoint.
//!
//! As Envoy 1.40 does it: its OpenTelemetry tracer reads `traceparent` alone and traces what both the caller and
//! [`sampling`](super::sampling) want; its Zipkin tracer reads B3, where the caller's word counts. What is not valid is
//! passed on as it is, and such a request is not traced.

use super::b3::{self, Multi, Single};
use super::id::{SpanId, TraceId};
use super::w3c;

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The parent of the span, where it is told.
    pub parent: Option<SpanId>,
    /// It is recorded, where it is told.
    pub sampled: Option<bool>,
}

/// How a trace is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// W3C Trace Context.
    W3c,
    /// B3.
    B3 {
        /// W3C headers are read where there are none of B3, and written beside them.
        w3c: bool,
        /// Our span has the id of the caller's.
        shared: bool,
        /// Ids of traces that begin here have 128 bits.
        long: bool,
    },
}

/// Headers of a request that can tell of a trace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Incoming<'a> {
    /// `traceparent`
    pub traceparent: Option<&'a [u8]>,
    /// `b3`
    pub b3: Option<&'a [u8]>,
    /// `x-b3-*`
    pub multi: Multi<'a>,
}

/// Where the trace of a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It begins here.
    New,
    /// It came in several headers, or as `traceparent`.
    Told,
    /// It came, or the decision came, in the header `b3`, and is told on in the same way.
    Single,
}

/// A span of ours that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Its parent.
    pub parent: Option<SpanId>,
    /// It is recorded.
    pub sampled: bool,
}

/// What the headers of a request come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Our span.
    pub context: Context,
    /// Where the trace comes from.
    pub origin: Origin,
    /// The parent is a span of the caller's; with shared spans it may be the caller's parent.
    pub remote: bool,
}

impl Propagation {
    /// Begins our span. `None`: what the caller tells is not valid, so nothing is told on or recorded.
    ///
    /// `traced` is what [`sampling`](super::sampling) decided; `random` yields uniform numbers.
    pub fn begin(
        self,
        incoming: &Incoming<'_>,
        traced: bool,
        mut random: impl FnMut() -> u64,
    ) -> Option<Begun> {
        match self {
            Propagation::W3c => match incoming.traceparent {
                None => Some(fresh(traced, Origin::New, true, &mut random)),
                Some(text) => {
                    let remote = w3c::parse(text)?;
                    let sampled = remote.sampled == Some(true) && traced;
                    Some(child(remote, sampled, Origin::Told, &mut random))
                }
            },
            Propagation::B3 { w3c, shared, long } => {
                let (remote, sampled, origin) = b3_or_w3c(incoming, w3c)?;
                let sampled = sampled.unwrap_or(traced);
                Some(match remote {
                    None => {
                        // Envoy: the first span's id is the lower half of the trace's.
                        let mut begun = fresh(sampled, origin, long, &mut random);
                        begun.context.span_id =
                            begun.context.trace_id.low().unwrap_or(begun.context.span_id);
                        begun
                    }
                    Some(remote) if shared => Begun {
                        context: Context {
                            trace_id: remote.trace_id,
                            span_id: remote.span_id,
                            parent: remote.parent,
                            sampled,
                        },
                        origin,
                        remote: true,
                    },
                    Some(remote) => child(remote, sampled, origin, &mut random),
                })
            }
        }
    }
}

type Told = (Option<Remote>, Option<bool>, Origin);

/// `None`: not valid.
fn b3_or_w3c(incoming: &Incoming<'_>, w3c: bool) -> Option<Told> {
    if let Some(text) = incoming.b3 {
        return Some(match b3::parse_single(text)? {
            Single::Sampled(sampled) => (None, Some(sampled), Origin::Single),
            Single::Span(remote) => (Some(remote), remote.sampled, Origin::Single),
        });
    }
    if let Some(remote) = incoming.multi.span().ok()? {
        return Some((Some(remote), remote.sampled, Origin::Told));
    }
    // Envoy: what is not valid here is as if it were not there.
    let remote = incoming.traceparent.filter(|_| w3c).and_then(w3c::parse);
    match remote {
        Some(remote) => Some((Some(remote), remote.sampled, Origin::Told)),
        None => Some((None, incoming.multi.sampled(), Origin::New)),
    }
}

fn child(remote: Remote, sampled: bool, origin: Origin, random: &mut impl FnMut() -> u64) -> Begun {
    let Remote { trace_id, span_id, parent: _, sampled: _ } = remote;
    let context = Context { trace_id, span_id: span(random), parent: Some(span_id), sampled };
    Begun { context, origin, remote: true }
}

fn fresh(sampled: bool, origin: Origin, long: bool, random: &mut impl FnMut() -> u64) -> Begun {
    let low = span(random).get();
    let high = if long { random() } else { 0 };
    // The lower half is not 0.
    let trace_id = TraceId::new(u128::from(high) << 64 | u128::from(low))
        .expect("a number with a half that is not 0 is not 0");
    let context = Context { trace_id, span_id: span(random), parent: None, sampled };
    Begun { context, origin, remote: false }
}

fn span(random: &mut impl FnMut() -> u64) -> SpanId {
    SpanId::new(random().max(1)).expect("at least 1 is not 0")
}

impl Context {
    /// A span inside of this one.
    pub fn child(&self, mut random: impl FnMut() -> u64) -> Context {
        Context { span_id: span(&mut random), parent: Some(self.span_id), ..*self }
    }
}

#[cfg(test)]
mod tests;
