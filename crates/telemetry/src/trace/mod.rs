//! Traces: what callers tell in headers, what is told on, and the spans that are sent.
//!
//! - [`Propagation`] reads the headers of a request and writes those for the endpoint (W3C, B3), as Envoy's tracers do.
//! - [`Sampling`](sampling::Sampling) decides by `x-request-id`, as Envoy's connection manager does.
//! - A [`Span`] is what is known of one request, or one try, when it is over; [`otlp`] and [`zipkin`] write it down.

pub mod b3;
mod id;
pub mod otlp;
mod propagation;
pub mod sampling;
mod span;
pub mod w3c;
pub mod zipkin;

pub use id::{SpanId, TraceId};
pub use propagation::{Begun, Context, Incoming, Origin, Propagation, Remote};
pub use span::{Annotation, Kind, Span, TagName, Tags};
