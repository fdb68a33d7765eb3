//! W3C Trace Context: `traceparent`.

use super::id::{SpanId, TraceId};
use super::propagation::Remote;
use std::fmt;

/// Bytes of version 00.
const LENGTH: usize = 55;

/// The caller's span by `traceparent`, which is given without white space around it. `None`: it is not valid.
///
/// Later versions than 00 may be longer, and are read as far as 00 goes; version ff is none (W3C Trace Context 3.2.2.1).
pub fn parse(text: &[u8]) -> Option<Remote> {
    let (head, rest) = text.split_at_checked(LENGTH)?;
    let part = |from: usize, to: usize| head.get(from..to);
    let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
    // Envoy takes upper case, too.
    let known = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
    if !dashes || !head.iter().all(known) {
        return None;
    }
    match part(0, 2)? {
        version if version.eq_ignore_ascii_case(b"ff") => return None,
        b"00" if !rest.is_empty() => return None,
        _ if !(rest.is_empty() || rest.starts_with(b"-")) => return None,
        _ => {}
    }
    let flags = part(53, 55)?;
    let flags = u8::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?;
    Some(Remote {
        trace_id: TraceId::parse(part(3, 35)?)?,
        span_id: SpanId::parse(part(36, 52)?)?,
        parent: None,
        sampled: Some(flags & 1 == 1),
    })
}

/// `traceparent` of a span.
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// It is recorded.
    pub sampled: bool,
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceParent { trace_id, span_id, sampled } = self;
        write!(f, "00-{trace_id}-{span_id}-{:02x}", u8::from(*sampled))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn what_is_valid() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-fe"), Some(false)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes-later"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01x"), None),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), Some(true)),
            (format!("00-{TRACE}-{SPAN}-0"), None),
            (format!("00-{TRACE}-{SPAN}-0g"), None),
            (format!("00-{TRACE}-{SPAN}--1"), None),
            (format!("00_{TRACE}-{SPAN}-01"), None),
            ("garbage".to_owned(), None),
            (String::new(), None),
        ] {
            let parsed = parse(text.as_bytes());
            assert_eq!(parsed.as_ref().and_then(|remote| remote.sampled), sampled, "{text}");
            if let Some(Remote { trace_id, span_id, .. }) = parsed {
                assert_eq!(
                    (trace_id.to_string(), span_id.to_string()),
                    (TRACE.into(), SPAN.into())
                );
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let trace_id = TraceId::new(trace).unwrap();
            let span_id = SpanId::new(span).unwrap();
            let text = TraceParent { trace_id, span_id, sampled }.to_string();
            let remote = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(remote, Remote { trace_id, span_id, parent: None, sampled: Some(sampled) });
        }

        #[test]
        fn nothing_breaks_it(text: Vec<u8>) {
            let _any_answer = parse(&text);
        }
    }
}
