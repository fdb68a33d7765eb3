#![allow(clippy::unwrap_used)]
use super::*;
use crate::format::{FormatContext, Peer};
use http::{HeaderMap, HeaderValue, Method, Version};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

fn compile(mut from: Value) -> (AccessLog, Vec<String>) {
    let filter = from.as_object_mut().unwrap().remove("filter");
    let from = match filter {
        Some(filter) => json!({"filter": filter, "to": from}),
        None => json!({"to": from}),
    };
    let from: spec::AccessLog = serde_json::from_value(from).unwrap();
    let again: spec::AccessLog =
        serde_json::from_value(serde_json::to_value(&from).unwrap()).unwrap();
    assert_eq!(from, again);
    let mut at = Context::new();
    let log = AccessLog::compile(&from, &mut at).unwrap();
    (log, at.take_warnings().iter().map(ToString::to_string).collect())
}

fn with<T>(check: impl FnOnce(&Facts<'_>, &RequestView<'_>) -> T) -> T {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("say \"hi\""));
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
        duration: Some(Duration::from_millis(12)),
        response_code: Some(404),
        response_flags: Some("NR"),
        bytes_sent: Some(7),
        access_log_type: Some("DownstreamEnd"),
        source: Some(Peer {
            workload: "web-v1",
            namespace: "shop",
            identity: "id",
            ..Peer::default()
        }),
        ..FormatContext::default()
    };
    let facts = Facts { context: &context, request: Some(&request), response: None };
    check(&facts, &request)
}

fn line(from: Value) -> Option<String> {
    let (log, _) = compile(from);
    let mut out = Vec::new();
    with(|facts, request| match log.write(facts, Some(request), &mut out) {
        Some(Entry::Line(Stream::Stdout)) => true,
        Some(_) => panic!("a line to standard output"),
        None => false,
    })
    .then(|| String::from_utf8(out).unwrap())
}

#[test]
fn texts() {
    let text = |text: &str| line(json!({"stdout": {"line": {"text": text}}})).unwrap();
    assert_eq!(
        text(
            "[%START_TIME%] \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %UPSTREAM_HOST%\n"
        ),
        "[1970-01-01T00:00:00.000Z] \"GET /p?q=1 HTTP/2\" 404 -\n"
    );
    assert_eq!(text("%NOPE% %REQ(X-A):3% 50% off"), "- say 50% off");
    let omitted = json!({"stdout": {"line": {"text": "<%UPSTREAM_HOST%>"}, "omit_empty": true}});
    assert_eq!(line(omitted).unwrap(), "<>");
}

#[test]
fn json_keeps_types() {
    let fields = json!({
        "code": "%RESPONSE_CODE%",
        "mixed": "%RESPONSE_CODE% %UPSTREAM_HOST%",
        "missing": "%UPSTREAM_HOST%",
        "quoted": "%REQ(X-A)%",
        "fixed": "x",
        "number": 1.5,
        "whole": 3,
        "yes": true,
        "nothing": null,
        "nested": {"list": ["%DURATION%", "a"]},
        "peer": "%FILTER_STATE(downstream_peer:TYPED)%",
        "plain": "%FILTER_STATE(downstream_peer:PLAIN)%",
    });
    let written = line(json!({"stdout": {"line": {"json": fields}}})).unwrap();
    assert_eq!(
        written,
        concat!(
            r#"{"code":404,"fixed":"x","missing":null,"mixed":"404 -","nested":{"list":[12,"a"]},"#,
            r#""nothing":null,"number":"1.5","peer":{"identity":"id","namespace":"shop","workload":"web-v1"},"#,
            r#""plain":"workload=web-v1,namespace=shop","quoted":"say \"hi\"","whole":3,"yes":true}"#,
            "\n"
        )
    );
    let fields = json!({"missing": "%UPSTREAM_HOST%", "there": "%PROTOCOL%"});
    let omitted = json!({"stdout": {"line": {"json": fields}, "omit_empty": true}});
    assert_eq!(line(omitted).unwrap(), "{\"there\":\"HTTP/2\"}\n");
}

#[test]
fn filters() {
    for (filter, logged) in [
        (json!({"expression": "response.code >= 400"}), true),
        (json!({"expression": "response.code >= 500"}), false),
        (json!({"expression": "request.headers['x-b'] == 'x'"}), false),
        (json!({"expression": "this is no CEL"}), false),
        (json!({"status_code": {"op": "ge", "value": 400}}), true),
        (json!({"status_code": {"op": "eq", "value": 200}}), false),
        (json!({"status_code": {"op": "ne", "value": 404}}), false),
        (json!({"status_code": {"op": "le", "value": 404}}), true),
        (json!({"duration": {"op": "ge", "value": 13}}), false),
        (json!({"duration": {"op": "le", "value": 12}}), true),
        (json!({"response_flags": ["UF", "NR"]}), true),
        (json!({"response_flags": ["UF"]}), false),
        (json!({"response_flags": []}), true),
        (json!({"grpc_status": {"statuses": [12]}}), true),
        (json!({"grpc_status": {"statuses": [12], "exclude": true}}), false),
        (json!({"header": {"name": "x-a", "match": {"prefix": "say"}}}), true),
        (json!({"header": {"name": "x-b", "match": {"present": true}}}), false),
        (json!({"sampled": {"percent": 100.0}}), true),
        (json!({"sampled": {"percent": 0.0}}), false),
        (json!({"log_type": {"types": ["DownstreamEnd"]}}), true),
        (json!({"log_type": {"types": ["TcpConnectionEnd"]}}), false),
        (
            json!({"and": [{"response_flags": ["NR"]}, {"status_code": {"op": "ge", "value": 500}}]}),
            false,
        ),
        (json!({"or": [{"response_flags": ["NR"]}, "never"]}), true),
        (json!("never"), false),
    ] {
        let log = json!({"filter": filter, "stdout": {"line": {"text": "x\n"}}});
        assert_eq!(line(log).is_some(), logged, "{filter}");
    }
}

#[test]
fn what_is_not_understood_is_a_warning() {
    let (_, warnings) = compile(json!({
        "filter": {"expression": "all("},
        "stdout": {"line": {"text": "%NOPE% %NOPE% 5% %FILTER_STATE(x:PLAIN)%"}},
    }));
    let expected = ["nothing is logged", "begins no operator", "`%NOPE%` is not known", "`x` of"];
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    for expected in expected {
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{warnings:?}");
    }
}

#[test]
fn records() {
    let (log, warnings) = compile(json!({"otel": {
        "target": {"cluster": "otel", "timeout": "3s", "resource": [["log_name", "a"]]},
        "body": "%REQ(:METHOD)% %UPSTREAM_HOST%",
        "attributes": {"code": "%RESPONSE_CODE%", "nested": {"a": 1.0, "b": ["%PROTOCOL%"]}},
    }}));
    assert!(warnings.is_empty());
    with(|facts, request| {
        let mut out = Vec::new();
        let Some(Entry::Otel(otel)) = log.write(facts, Some(request), &mut out) else {
            panic!("a record");
        };
        assert!(out.is_empty());
        assert_eq!(otel.target.timeout, Some(Duration::from_secs(3)));
        assert_eq!(otel.body(facts), Some(Field::Text("GET -".to_owned())));
        let nested = vec![
            ("a".into(), Field::Number(1.0)),
            ("b".into(), Field::List(vec![Field::Text("HTTP/2".to_owned())])),
        ];
        assert_eq!(
            otel.attributes(facts),
            [("code".into(), Field::Text("404".to_owned())), ("nested".into(), Field::Map(nested)),]
        );
    });
}

/// Lines that Envoy 1.40.0 (the wheel that `tests/envoy` installs) wrote with these formats, as `log_format` of file
/// access logs of an HTTP connection manager with routes `direct` (`direct_response`), `down` (a cluster with one
/// endpoint on a port where nobody listens) and `none` (a cluster without endpoints), to
/// `curl -H 'x-a: one' -H 'x-empty;' -H 'x-q: say "hi"' -H 'x-request-id: id-1'`.
#[test]
fn as_envoy_wrote() {
    const TEXT: &str = concat!(
        "%REQ(X-NO)%|%REQ(X-EMPTY)%|%REQ(X-EMPTY?X-A)%|%REQ(X-A):2%|%REQ_WITHOUT_QUERY(:PATH)%|%RESP(X-R)%|",
        "%TRAILER(X-T)%|%PROTOCOL%|%RESPONSE_CODE%|%RESPONSE_CODE_DETAILS%|%RESPONSE_FLAGS%|",
        "%RESPONSE_FLAGS_LONG%|%CONNECTION_TERMINATION_DETAILS%|%UPSTREAM_TRANSPORT_FAILURE_REASON%|",
        "%BYTES_RECEIVED%|%BYTES_SENT%|%UPSTREAM_HOST%|%UPSTREAM_CLUSTER%|%UPSTREAM_REQUEST_ATTEMPT_COUNT%|",
        "%ROUTE_NAME%|%VIRTUAL_CLUSTER_NAME%|%REQUESTED_SERVER_NAME%|%GRPC_STATUS%|%GRPC_STATUS_NUMBER%|",
        "%DYNAMIC_METADATA(a:b)%|%STREAM_ID%|%ACCESS_LOG_TYPE%|%TRACE_ID%|%DOWNSTREAM_PEER_URI_SAN%|",
        "%RESPONSE_DURATION%|%COMMON_DURATION(DS_RX_BEG:US_RX_END:ms)%|100%%\n",
    );
    let fields = json!({
        "code": "%RESPONSE_CODE%", "mixed": "%RESPONSE_CODE% %UPSTREAM_HOST%", "missing": "%UPSTREAM_HOST%",
        "quoted": "%REQ(X-Q)%", "fixed": "x", "number": 1.5, "whole": 3, "yes": true, "nothing": null,
        "nested": {"list": ["%BYTES_SENT%", "a"]}, "port": "%DOWNSTREAM_LOCAL_PORT%",
        "flags": "%RESPONSE_FLAGS%", "empty": "%REQ(X-EMPTY)%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "grpc": "%GRPC_STATUS_NUMBER%",
        "cel": "%CEL(response.code)%", "celbool": "%CEL(response.code == 200)%",
    });
    let omitted =
        json!({"missing": "%UPSTREAM_HOST%", "there": "%PROTOCOL%", "mixed": "<%UPSTREAM_HOST%>"});
    let logs = [
        json!({"stdout": {"line": {"text": TEXT}}}),
        json!({"stdout": {"line": {"json": fields}}}),
        json!({"stdout": {"line": {"json": omitted}, "omit_empty": true}}),
        json!({"stdout": {"line": {"text": "OMIT<%UPSTREAM_HOST%>\n"}, "omit_empty": true}}),
    ];
    let direct = FormatContext {
        response_code: Some(200),
        response_code_details: Some("direct_response"),
        response_flags: Some("-"),
        bytes_sent: Some(5),
        upstream_attempts: Some(0),
        route_name: Some("direct"),
        ..FormatContext::default()
    };
    let down = FormatContext {
        response_code: Some(503),
        response_code_details: Some(
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error: Connection refused}",
        ),
        response_flags: Some("UF"),
        upstream_transport_failure: Some("delayed_connect_error: Connection refused"),
        bytes_sent: Some(98),
        upstream_host: "127.0.0.1:19999".parse().ok(),
        upstream_cluster: Some("down"),
        upstream_attempts: Some(1),
        route_name: Some("down"),
        ..FormatContext::default()
    };
    for (path, query, context, expected) in [
        (
            "/direct",
            Some("q=1"),
            direct,
            [
                "-|||on|/direct|-|-|HTTP/1.1|200|direct_response|-|-|-|-|0|5|-|-|0|direct|-|-|-|-|-|id-1|DownstreamEnd|-|-|-|-|100%",
                r#"{"attempts":0,"cel":"200","celbool":"true","code":200,"empty":"","fixed":"x","flags":"-","grpc":null,"missing":null,"mixed":"200 -","nested":{"list":[5,"a"]},"nothing":null,"number":"1.5","port":19871,"quoted":"say \"hi\"","whole":3,"yes":true}"#,
                r#"{"mixed":"<>","there":"HTTP/1.1"}"#,
                "OMIT<>",
            ],
        ),
        (
            "/down",
            None,
            down,
            [
                "-|||on|/down|-|-|HTTP/1.1|503|upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}|UF|UpstreamConnectionFailure|-|delayed_connect_error:_Connection_refused|0|98|127.0.0.1:19999|down|1|down|-|-|-|-|-|id-1|DownstreamEnd|-|-|-|-|100%",
                r#"{"attempts":1,"cel":"503","celbool":"false","code":503,"empty":"","fixed":"x","flags":"UF","grpc":null,"missing":"127.0.0.1:19999","mixed":"503 127.0.0.1:19999","nested":{"list":[98,"a"]},"nothing":null,"number":"1.5","port":19871,"quoted":"say \"hi\"","whole":3,"yes":true}"#,
                r#"{"missing":"127.0.0.1:19999","mixed":"<127.0.0.1:19999>","there":"HTTP/1.1"}"#,
                "OMIT<127.0.0.1:19999>",
            ],
        ),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-a", "one"), ("x-empty", ""), ("x-q", "say \"hi\""), ("x-request-id", "id-1")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let request = RequestView {
            method: &Method::GET,
            authority: "127.0.0.1:19871",
            path,
            query,
            scheme: "http",
            headers: &headers,
        };
        let context = FormatContext {
            protocol: Some(Version::HTTP_11),
            bytes_received: Some(0),
            downstream_local: "127.0.0.1:19871".parse().ok(),
            access_log_type: Some("DownstreamEnd"),
            ..context
        };
        let facts = Facts { context: &context, request: Some(&request), response: None };
        for (log, expected) in logs.iter().zip(expected) {
            let (log, warnings) = compile(log.clone());
            assert!(warnings.is_empty(), "{warnings:?}");
            let mut out = Vec::new();
            assert!(log.write(&facts, Some(&request), &mut out).is_some());
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        }
    }
}
