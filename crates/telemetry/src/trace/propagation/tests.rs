#![allow(clippy::unwrap_used)]

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const PARENT: &str = "00f067aa0ba902b7";

const B3: Propagation = Propagation::B3 { w3c: false, shared: false, long: true };
const BOTH: Propagation = Propagation::B3 { w3c: true, shared: false, long: true };
const SHARED: Propagation = Propagation::B3 { w3c: false, shared: true, long: false };

fn begin(how: Propagation, headers: &[(&str, &str)], traced: bool) -> Option<Begun> {
    let get = |name: &str| {
        headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    };
    let incoming = Incoming {
        traceparent: get("traceparent"),
        b3: get("b3"),
        multi: Multi {
            trace_id: get("x-b3-traceid"),
            span_id: get("x-b3-spanid"),
            parent: get("x-b3-parentspanid"),
            sampled: get("x-b3-sampled"),
        },
    };
    let mut number = 0;
    how.begin(&incoming, traced, || {
        number += 1;
        number
    })
}

/// Which trace, whose child and whether recorded, as Envoy 1.40 answered on the same headers.
#[test]
fn as_envoy_reads_headers() {
    let w3c = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
    let single = |end: &str| format!("{TRACE}-{SPAN}{end}");
    let multi = |sampled: Option<&'static str>| {
        let mut headers = vec![
            ("x-b3-traceid", TRACE.to_owned()),
            ("x-b3-spanid", SPAN.to_owned()),
            ("x-b3-parentspanid", PARENT.to_owned()),
        ];
        headers.extend(sampled.map(|sampled| ("x-b3-sampled", sampled.to_owned())));
        headers
    };
    let one = |name: &'static str, value: &str| vec![(name, value.to_owned())];
    // Headers; whether the trace goes on; recorded when the proxy would, and when it would not.
    type Row = (Propagation, Vec<(&'static str, String)>, Option<(bool, [bool; 2])>);
    let rows: Vec<Row> = vec![
        (Propagation::W3c, vec![], Some((false, [true, false]))),
        (Propagation::W3c, one("traceparent", &w3c("01")), Some((true, [true, false]))),
        (Propagation::W3c, one("traceparent", &w3c("00")), Some((true, [false, false]))),
        (Propagation::W3c, one("traceparent", "garbage"), None),
        (Propagation::W3c, one("b3", &single("-0")), Some((false, [true, false]))),
        (Propagation::W3c, multi(Some("0")), Some((false, [true, false]))),
        (B3, vec![], Some((false, [true, false]))),
        (B3, one("traceparent", &w3c("01")), Some((false, [true, false]))),
        (B3, one("b3", &single("-1")), Some((true, [true, true]))),
        (B3, one("b3", &single("-d")), Some((true, [true, true]))),
        (B3, one("b3", &single("-0")), Some((true, [false, false]))),
        (B3, one("b3", &single("")), Some((true, [true, false]))),
        (B3, one("b3", "0"), Some((false, [false, false]))),
        (B3, one("b3", "1"), Some((false, [true, true]))),
        (B3, one("b3", "junk"), None),
        (B3, multi(Some("1")), Some((true, [true, true]))),
        (B3, multi(Some("true")), Some((true, [true, true]))),
        (B3, multi(Some("0")), Some((true, [false, false]))),
        (B3, multi(None), Some((true, [true, false]))),
        (B3, one("x-b3-sampled", "0"), Some((false, [false, false]))),
        (B3, one("x-b3-sampled", "1"), Some((false, [true, true]))),
        (B3, vec![("x-b3-traceid", "zz".to_owned()), ("x-b3-spanid", SPAN.to_owned())], None),
        (BOTH, one("traceparent", &w3c("01")), Some((true, [true, true]))),
        (BOTH, one("traceparent", &w3c("00")), Some((true, [false, false]))),
        (BOTH, one("traceparent", "garbage"), Some((false, [true, false]))),
        (BOTH, one("b3", "junk"), None),
        (SHARED, multi(Some("1")), Some((true, [true, true]))),
    ];
    for (how, headers, expected) in rows {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let both = [true, false].map(|traced| begin(how, &headers, traced));
        let got = both[0].map(|begun| {
            let goes_on = begun.context.trace_id.to_string() == TRACE;
            assert_eq!(goes_on, begun.remote, "{headers:?}");
            (goes_on, both.map(|begun| begun.unwrap().context.sampled))
        });
        assert_eq!(got, expected, "{how:?} {headers:?}");
    }
}

#[test]
fn whose_child_a_span_is() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let told = begin(Propagation::W3c, &[("traceparent", &parent)], true).unwrap();
    assert_eq!(told.context.parent.unwrap().to_string(), SPAN);
    let b3 = format!("{TRACE}-{SPAN}-1-{PARENT}");
    let child = begin(B3, &[("b3", &b3)], true).unwrap();
    assert_eq!(
        (child.context.parent.unwrap().to_string(), child.origin),
        (SPAN.into(), Origin::Single)
    );
    let same = begin(SHARED, &[("b3", &b3)], true).unwrap();
    assert_eq!(same.context.span_id.to_string(), SPAN);
    assert_eq!(same.context.parent.unwrap().to_string(), PARENT);
    let inner = same.context.child(|| 99);
    assert_eq!(inner.parent, Some(same.context.span_id));
    assert_eq!(inner.trace_id, same.context.trace_id);
}

/// Envoy: a trace of Zipkin's begins with a span whose id is the lower half of the trace's.
#[test]
fn a_trace_that_begins_here() {
    for (how, short) in [(B3, false), (SHARED, true)] {
        let begun = begin(how, &[], true).unwrap();
        assert_eq!(begun.context.trace_id.low(), Some(begun.context.span_id));
        assert_eq!(begun.context.trace_id.is_short(), short);
        assert_eq!((begun.context.parent, begun.origin, begun.remote), (None, Origin::New, false));
    }
    let zero = Propagation::W3c.begin(&Incoming::default(), true, || 0).unwrap();
    assert_ne!(zero.context.span_id.get(), 0);
}
