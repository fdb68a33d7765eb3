#![allow(clippy::unwrap_used)]
use super::*;
use crate::request::RequestView;
use http::{HeaderMap, HeaderValue, Method};
use std::time::{Duration, UNIX_EPOCH};

fn render(text: &str) -> String {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("one"));
    headers.append("x-a", HeaderValue::from_static("two"));
    headers.insert("x-empty", HeaderValue::from_static(""));
    let mut response = HeaderMap::new();
    response.insert("x-r", HeaderValue::from_static("resp"));
    let request = RequestView {
        method: &Method::GET,
        authority: "app:80",
        path: "/p",
        query: Some("q=1"),
        scheme: "http",
        headers: &headers,
    };
    let context = FormatContext {
        protocol: Some(Version::HTTP_2),
        start_time: Some(UNIX_EPOCH),
        duration: Some(Duration::from_micros(12_900)),
        downstream_remote: "10.0.0.1:1234".parse().ok(),
        downstream_local: "[2001:db8::1]:80".parse().ok(),
        peer_uri_san: Some("spiffe://td/ns/a/sa/b"),
        upstream_cluster: Some("c"),
        response_code: Some(200),
        bytes_sent: Some(7),
        ..FormatContext::default()
    };
    let out = Format::parse(text).unwrap().render(&context, Some(&request), Some(&response));
    String::from_utf8(out).unwrap()
}

#[test]
fn operators() {
    for (text, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%%REQ(X)%%", "%REQ(X)%"),
        ("%REQ(X-A)%", "one"),
        ("%REQ(x-a):2%!", "on!"),
        ("%REQ(X-NO?X-A)%", "one"),
        ("%REQ(X-EMPTY?X-A)%", "one"),
        ("%REQ(X-NO?X-NEITHER)%", ""),
        ("%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %REQ(:SCHEME)%", "GET app:80 /p?q=1 http"),
        ("%REQ(Host)%", "app:80"),
        ("%REQ_WITHOUT_QUERY(X-NO?:PATH)%", "/p"),
        ("%RESP(X-R)% %RESP(X-A)%", "resp "),
        ("%PROTOCOL%", "HTTP/2"),
        ("%START_TIME%", "1970-01-01T00:00:00.000Z"),
        ("%START_TIME(%Y-%s)%", "1970-0"),
        ("%DURATION%", "12"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:1234"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
        ("%DOWNSTREAM_REMOTE_PORT%", "1234"),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "[2001:db8::1]:80"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "2001:db8::1"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://td/ns/a/sa/b"),
        ("%FILTER_STATE(io.istio.peer_principal:PLAIN)%", "spiffe://td/ns/a/sa/b"),
        ("%FILTER_STATE(io.istio.peer_principal):6%", "spiffe"),
        ("%FILTER_STATE(io.istio.local_principal:PLAIN)%", ""),
        ("%UPSTREAM_CLUSTER%%UPSTREAM_CLUSTER_RAW%", "cc"),
        ("%UPSTREAM_HOST%%ROUTE_NAME%%HOSTNAME%%RESPONSE_FLAGS%", ""),
        ("%RESPONSE_CODE%/%BYTES_SENT%/%BYTES_RECEIVED%", "200/7/"),
        ("a%PROTOCOL%b%PROTOCOL:4%", "aHTTP/2bHTTP"),
    ] {
        assert_eq!(render(text), expected, "{text}");
    }
}

#[test]
fn literals_are_known() {
    assert_eq!(Format::parse("").unwrap().literal(), Some(&b""[..]));
    assert_eq!(Format::parse("a%%b").unwrap().literal(), Some(&b"a%b"[..]));
    assert_eq!(Format::parse("a%PROTOCOL%").unwrap().literal(), None);
}

#[test]
fn refused_with_a_reason() {
    for (text, reason) in [
        ("50%", "`%` is no operator"),
        ("50% off", "`% off` is no operator"),
        ("%REQ(X", "`%REQ(X` is no operator"),
        ("%REQ(X)", "`%REQ(X)` is no operator"),
        ("%PROTOCOL", "`%PROTOCOL` is no operator"),
        ("%PROTOCOL:x%", "`%PROTOCOL:x%` is no operator"),
        ("%NOPE%", "`%NOPE%` is not known"),
        ("%DYNAMIC_METADATA(a:b)%", "`%DYNAMIC_METADATA%` is not known"),
        ("%PROTOCOL(x)%", "`%PROTOCOL%` takes no arguments"),
        ("%FILTER_STATE(x:PLAIN)%", "`%FILTER_STATE%` knows"),
        ("%REQ%", "`%REQ%` needs a header's name"),
        ("%REQ(a b)%", "`a b` is no header name"),
        ("%REQ(X?:status)%", "`:status` is not known"),
        ("%START_TIME(%q)%", "`%q` is not known in a time format"),
    ] {
        let error = Format::parse(text).unwrap_err();
        assert!(error.starts_with(reason), "{text}: {error}");
    }
}

#[test]
fn bounded() {
    let text = "%PROTOCOL%".repeat(MAX_LEN);
    assert_eq!(render(&text).len(), MAX_LEN);
}
