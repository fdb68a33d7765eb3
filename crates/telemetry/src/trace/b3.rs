//! Zipkin's B3 headers: one `b3`, or several `x-b3-*`.

use super::id::{SpanId, TraceId};
use super::propagation::Remote;

/// What `b3` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Single {
    /// Only whether to trace.
    Sampled(bool),
    /// A span, and whether to trace.
    Span(Remote),
}

/// The header `b3`: `{trace}-{span}`, `{trace}-{span}-{sampled}`, `{trace}-{span}-{sampled}-{parent}` or `{sampled}`,
/// where `{sampled}` is `0`, `1` or `d` (debug, which is sampled). `None`: it is not valid.
pub fn parse_single(text: &[u8]) -> Option<Single> {
    let mut parts = text.split(|byte| *byte == b'-');
    let first = parts.next()?;
    let Some(span_id) = parts.next() else {
        return flag(first).map(Single::Sampled);
    };
    let sampled = parts.next();
    let parent = parts.next();
    if parts.next().is_some() {
        return None;
    }
    Some(Single::Span(Remote {
        trace_id: TraceId::parse(first)?,
        span_id: SpanId::parse(span_id)?,
        parent: match parent {
            Some(parent) => Some(SpanId::parse(parent)?),
            None => None,
        },
        sampled: match sampled {
            Some(sampled) => Some(flag(sampled)?),
            None => None,
        },
    }))
}

fn flag(text: &[u8]) -> Option<bool> {
    match text {
        b"0" => Some(false),
        b"1" | b"d" => Some(true),
        _ => None,
    }
}

/// An id is not one of B3: 8 or 16 bytes as hexadecimal digits, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnId;

/// The values of `x-b3-*`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Multi<'a> {
    /// `x-b3-traceid`
    pub trace_id: Option<&'a [u8]>,
    /// `x-b3-spanid`
    pub span_id: Option<&'a [u8]>,
    /// `x-b3-parentspanid`
    pub parent: Option<&'a [u8]>,
    /// `x-b3-sampled`
    pub sampled: Option<&'a [u8]>,
}

impl Multi<'_> {
    /// Whether to trace, if it is said: `1` and `true` are yes, everything else is no (Envoy).
    pub fn sampled(&self) -> Option<bool> {
        self.sampled.map(|text| matches!(text, b"1" | b"true"))
    }

    /// The span, where there is one: it has both ids. The error: one of its ids is not valid.
    pub fn span(&self) -> Result<Option<Remote>, NotAnId> {
        let (Some(trace_id), Some(span_id)) = (self.trace_id, self.span_id) else {
            return Ok(None);
        };
        Ok(Some(Remote {
            trace_id: TraceId::parse(trace_id).ok_or(NotAnId)?,
            span_id: SpanId::parse(span_id).ok_or(NotAnId)?,
            parent: match self.parent.filter(|text| !text.is_empty()) {
                Some(parent) => Some(SpanId::parse(parent).ok_or(NotAnId)?),
                None => None,
            },
            sampled: self.sampled(),
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";
    const PARENT: &str = "00f067aa0ba902b7";

    fn remote(trace: &str, parent: Option<&str>, sampled: Option<bool>) -> Remote {
        Remote {
            trace_id: TraceId::parse(trace.as_bytes()).unwrap(),
            span_id: SpanId::parse(SPAN.as_bytes()).unwrap(),
            parent: parent.map(|parent| SpanId::parse(parent.as_bytes()).unwrap()),
            sampled,
        }
    }

    #[test]
    fn one_header() {
        let span = |trace, parent, sampled| Some(Single::Span(remote(trace, parent, sampled)));
        let short = &TRACE[16..];
        for (text, expected) in [
            ("0".to_owned(), Some(Single::Sampled(false))),
            ("1".to_owned(), Some(Single::Sampled(true))),
            ("d".to_owned(), Some(Single::Sampled(true))),
            (format!("{TRACE}-{SPAN}"), span(TRACE, None, None)),
            (format!("{short}-{SPAN}-0"), span(short, None, Some(false))),
            (format!("{TRACE}-{SPAN}-d"), span(TRACE, None, Some(true))),
            (format!("{TRACE}-{SPAN}-1-{PARENT}"), span(TRACE, Some(PARENT), Some(true))),
            (format!("{TRACE}-{SPAN}-1-{PARENT}-"), None),
            (format!("{TRACE}-{SPAN}-{PARENT}"), None),
            (format!("{TRACE}-{SPAN}-"), None),
            (format!("{TRACE}-{SPAN}-1-"), None),
            (format!("{}-{SPAN}-1", "0".repeat(32)), None),
            (format!("{}-{SPAN}-1", &TRACE[1..]), None),
            (TRACE.to_owned(), None),
            ("2".to_owned(), None),
            ("junk".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_single(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn several_headers() {
        let some = |text: &'static str| Some(text.as_bytes());
        let all = Multi {
            trace_id: some(TRACE),
            span_id: some(SPAN),
            parent: some(PARENT),
            sampled: some("1"),
        };
        assert_eq!(all.span(), Ok(Some(remote(TRACE, Some(PARENT), Some(true)))));
        for (text, sampled) in
            [("true", true), ("1", true), ("0", false), ("false", false), ("d", false)]
        {
            assert_eq!(Multi { sampled: some(text), ..all }.sampled(), Some(sampled), "{text}");
        }
        let empty = Multi { parent: some(""), sampled: None, ..all };
        assert_eq!(empty.span(), Ok(Some(remote(TRACE, None, None))));
        assert_eq!(Multi { span_id: None, ..all }.span(), Ok(None));
        assert_eq!(Multi { trace_id: some("zz"), ..all }.span(), Err(NotAnId));
        assert_eq!(Multi { parent: some("zz"), ..all }.span(), Err(NotAnId));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(text: Vec<u8>) {
            let _any_answer = parse_single(&text);
            let all = Multi { trace_id: Some(&text), span_id: Some(&text), parent: Some(&text), sampled: Some(&text) };
            let _any_answer = all.span();
        }

        #[test]
        fn what_looks_like_b3_keeps_its_ids(trace in "[0-9a-f]{16}|[0-9a-f]{32}", span in "[0-9a-f]{16}") {
            let parsed = parse_single(format!("{trace}-{span}").as_bytes());
            let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
            match parsed {
                Some(Single::Span(remote)) => {
                    prop_assert_eq!(remote.span_id.to_string(), span);
                    prop_assert!(remote.trace_id.to_string().ends_with(&trace));
                }
                _ => prop_assert!(zero(&trace) || zero(&span)),
            }
        }
    }
}
