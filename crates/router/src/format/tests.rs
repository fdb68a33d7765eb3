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
        ("%REQ(X-EMPTY?X-A)%", ""),
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

/// What a line of an access log has.
#[test]
fn in_access_logs() {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("one"));
    headers.insert("x-empty", HeaderValue::from_static(""));
    headers.insert("x-request-id", HeaderValue::from_static("id-1"));
    let request = RequestView {
        method: &Method::GET,
        authority: "app:80",
        path: "/p",
        query: Some("q=1"),
        scheme: "http",
        headers: &headers,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("x-t", HeaderValue::from_static("trailer"));
    let metadata = [("envoy.filters.http.rbac", "shadow_engine_result", "denied")];
    let peer = Peer {
        kind: "deployment",
        workload: "web-v1",
        name: "web-v1-1",
        cluster: "Kubernetes",
        namespace: "shop",
        service: "web",
        revision: "v1",
        app: "web",
        version: "v1",
        identity: "spiffe://td/ns/shop/sa/web",
    };
    let context = FormatContext {
        protocol: Some(Version::HTTP_11),
        start_time: Some(UNIX_EPOCH),
        duration: Some(Duration::from_micros(12_900)),
        request_received: Some(Duration::from_millis(1)),
        upstream_begun: Some(Duration::from_millis(2)),
        response_started: Some(Duration::from_millis(7)),
        upstream_local: "10.0.0.2:1".parse().ok(),
        upstream_host: "[::ffff:10.0.0.3]:80".parse().ok(),
        upstream_attempts: Some(2),
        upstream_transport_failure: Some("connection refused: 111"),
        response_code: Some(503),
        response_code_details: Some("upstream reset"),
        response_flags: Some("UF,URX"),
        grpc_status: Some(5),
        request_header_bytes: Some(33),
        access_log_type: Some("DownstreamEnd"),
        source: Some(peer),
        metadata: &metadata,
        trailers: Some(&trailers),
        ..FormatContext::default()
    };
    let facts = Facts { context: &context, request: Some(&request), response: None };
    for (text, expected) in [
        ("%REQ(X-NO)%|%REQ(X-EMPTY)%|%REQ(X-EMPTY?X-A)%|%RESP(X-R)%", "-|||-"),
        ("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/p"),
        ("%TRAILER(X-T)% %TRAILER(X-U)%", "trailer -"),
        ("%START_TIME(%s.%3f)% %EMIT_TIME%", "0.000 1970-01-01T00:00:00.012Z"),
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%", "503 upstream_reset"),
        ("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", "upstream_reset"),
        (
            "%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
            "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded",
        ),
        (
            "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%",
            "NotFound NOT_FOUND 5 5",
        ),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "connection_refused:_111"),
        ("%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "12 1 7 5"),
        ("%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%", "5000"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_END:ms)%", "-"),
        (
            "%UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REMOTE_PORT%",
            "10.0.0.3:80 10.0.0.2:1 80",
        ),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT% %DOWNSTREAM_HEADER_BYTES_RECEIVED%", "2 33"),
        (
            "%FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer:PLAIN)%",
            "web-v1 -",
        ),
        (
            "%FILTER_STATE(downstream_peer:PLAIN)%",
            "type=deployment,workload=web-v1,name=web-v1-1,cluster=Kubernetes,namespace=shop,service=web,revision=v1,app=web,version=v1",
        ),
        ("%FILTER_STATE(downstream_peer_obj):20%", "{\"app\":\"web\",\"cluste"),
        ("%DYNAMIC_METADATA(envoy.filters.http.rbac:shadow_engine_result)%", "denied"),
        ("%METADATA(DYNAMIC:envoy.filters.http.rbac:shadow_engine_result)%", "denied"),
        ("%METADATA(CLUSTER:istio:services)% %CLUSTER_METADATA(a:b)%", "- -"),
        ("%CEL(request.headers['x-a'] == 'one' && (true))% %CEL(request.url_path)%", "true /p"),
        ("%CEL(response.code)% %CEL(request.nothing)%", "503 -"),
        ("%STREAM_ID% %ACCESS_LOG_TYPE%", "id-1 DownstreamEnd"),
        ("%VIRTUAL_CLUSTER_NAME% %REQUESTED_SERVER_NAME%", "- -"),
        ("%ENVIRONMENT(CAIRN_NO_SUCH_VARIABLE)%", "-"),
        ("%NOPE% %NOPE(x):3% 5% %REQ(a b)%", "- - 5% -"),
    ] {
        let (format, _) = Format::parse_for_log(text);
        let mut out = Vec::new();
        format.line(&facts, false, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{text}");
    }
    let (format, unknown) = Format::parse_for_log("%UNIQUE_ID%");
    assert!(unknown.is_empty());
    let Some(Said::Text(id)) = format.said(&facts, false) else { panic!("a text") };
    assert_eq!((id.len(), id[14]), (36, b'4'));
    let (format, _) = Format::parse_for_log("%UPSTREAM_REMOTE_PORT%");
    assert_eq!(format.said(&facts, false), Some(Said::Number(80)));
    let (_, unknown) = Format::parse_for_log("%NOPE% %NOPE% %CEL(all()% %GRPC_STATUS(x)% %");
    assert_eq!(unknown.len(), 4, "{unknown:?}");
}

proptest::proptest! {
    #[test]
    fn any_text(text in "(%[A-Z_]{0,12}(\\([A-Z:?.a-z%]{0,9}\\))?(:[0-9]{0,3})?%?|.){0,12}") {
        let context = FormatContext::default();
        if let Ok(format) = Format::parse(&text) {
            format.render(&context, None, None);
        }
        let (format, _) = Format::parse_for_log(&text);
        let mut out = Vec::new();
        format.line(&Facts { context: &context, request: None, response: None }, true, &mut out);
        assert!(out.len() <= MAX_LEN);
    }
}
