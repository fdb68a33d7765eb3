//! What a proxy does to headers, as Envoy's connection manager and router do it.

use cairn_router::destination::HttpChain;
use cairn_router::spec::{ForwardedClientCert, ServerMode};
use http::header::{self, HeaderName, HeaderValue};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use rand::RngCore;

/// Control headers that only a trusted client may send (Envoy: `cleanHeaders`). At a waypoint nobody is
/// trusted with them: the client's address is not internal.
const CONTROL: [&str; 17] = [
    "x-envoy-internal",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    // Envoy lets these two pass.
    "x-envoy-original-path",
    "x-envoy-original-host",
];

/// Fields that `Connection` may name but that are never dropped for it: dropping them would change what a
/// request is or who sent it.
const NOT_NOMINATED: [&str; 9] = [
    "host",
    "authorization",
    "cookie",
    "content-length",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
    "upgrade",
    "te",
];

/// Names of our own.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Drops what the client's `Connection` names (RFC 9110 §7.6.1): before anything looks at it, so that a policy never
/// sees a field that the endpoint would not get, and nothing of ours is dropped.
pub(crate) fn drop_nominated(request: &mut RequestHeader) {
    if !request.headers.contains_key(header::CONNECTION) {
        return;
    }
    let nominated: Vec<HeaderName> = request
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| !NOT_NOMINATED.contains(&name.as_str()))
        .collect();
    for name in nominated {
        request.remove_header(&name);
    }
}

/// Brings a client's request into the form that filters and routes see.
///
/// Control headers go, and `x-forwarded-client-cert` unless the chain lets it pass; `x-forwarded-proto` is there
/// afterwards, and `x-request-id` and `x-forwarded-port` where the chain wants them. `port` is what CONNECT named.
pub(crate) fn sanitize(request: &mut RequestHeader, chain: &HttpChain, port: u16) -> Result<()> {
    for name in CONTROL {
        if request.headers.contains_key(name) {
            request.remove_header(name);
        }
    }
    if chain.forwarded_client_cert == ForwardedClientCert::Sanitize
        && request.headers.contains_key(&FORWARDED_CLIENT_CERT)
    {
        request.remove_header(&FORWARDED_CLIENT_CERT);
    }
    if !request.headers.contains_key(&FORWARDED_PROTO) {
        request.insert_header(FORWARDED_PROTO, HeaderValue::from_static("http"))?;
    }
    if chain.append_x_forwarded_port && !request.headers.contains_key(&FORWARDED_PORT) {
        request.insert_header(FORWARDED_PORT, HeaderValue::from(port))?;
    }
    if chain.generate_request_id && !request.headers.contains_key(&REQUEST_ID) {
        request.insert_header(REQUEST_ID, request_id())?;
    }
    Ok(())
}

/// Drops what belongs to one hop, but for what [`drop_nominated`] has dropped. With `upgrade` the request to switch protocols stays.
pub(crate) fn strip_hop(request: &mut RequestHeader, upgrade: bool) -> Result<()> {
    for name in [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING] {
        request.remove_header(&name);
    }
    let trailers =
        request.headers.get_all(header::TE).iter().any(|value| value.as_bytes() == b"trailers");
    if request.headers.contains_key(header::TE) {
        request.remove_header(&header::TE);
        if trailers {
            request.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
        }
    }
    if upgrade {
        request.insert_header(header::CONNECTION, HeaderValue::from_static("upgrade"))?;
    } else {
        request.remove_header(&header::UPGRADE);
    }
    Ok(())
}

/// Says who answers, as the chain wants it.
pub(crate) fn put_server(response: &mut ResponseHeader, chain: &HttpChain) -> Result<()> {
    let ours = match chain.server_mode {
        ServerMode::Overwrite => true,
        ServerMode::AppendIfAbsent => !response.headers.contains_key(header::SERVER),
        ServerMode::PassThrough => false,
    };
    if ours {
        response.insert_header(header::SERVER, chain.server.clone())?;
    }
    Ok(())
}

/// Drops what belongs to one hop from a response. An answer to an upgrade keeps its `upgrade`.
pub(crate) fn strip_response_hop(response: &mut ResponseHeader) -> Result<()> {
    let switching = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
    for name in [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING] {
        response.remove_header(&name);
    }
    if switching {
        response.insert_header(header::CONNECTION, HeaderValue::from_static("upgrade"))?;
    } else {
        response.remove_header(&header::UPGRADE);
    }
    Ok(())
}

/// A random UUID, version 4.
fn request_id() -> HeaderValue {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (number, byte) in bytes.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            at += 1;
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cairn_router::compile::Compiler;
    use serde_json::json;
    use std::sync::Arc;

    /// With these fields.
    fn chain(more: serde_json::Value) -> Arc<HttpChain> {
        let mut chain = json!({"routes": {"virtual_hosts": []}});
        for (name, value) in more.as_object().unwrap() {
            chain[name] = value.clone();
        }
        let resources = serde_json::from_value(json!({
            "destinations": [{"name": "d", "hosts": ["d"], "http": chain}],
        }));
        let mesh = Compiler::new("mesh").compile(&resources.unwrap()).unwrap();
        mesh.destinations().next().unwrap().http.clone().unwrap()
    }

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build_no_case("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn what_a_client_may_not_say_is_dropped() {
        let mut request = request(&[
            ("x-envoy-max-retries", "9"),
            ("x-forwarded-client-cert", "By=x"),
            ("x-request-id", "mine"),
        ]);
        sanitize(&mut request, &chain(json!({})), 80).unwrap();
        assert!(request.headers.get("x-envoy-max-retries").is_none());
        assert!(request.headers.get("x-forwarded-client-cert").is_none());
        assert!(request.headers.get("x-forwarded-port").is_none());
        assert_eq!(request.headers["x-request-id"], "mine");
        assert_eq!(request.headers["x-forwarded-proto"], "http");
    }

    #[test]
    fn what_a_chain_wants_of_requests() {
        let chain = chain(json!({
            "forwarded_client_cert": "always_forward_only",
            "generate_request_id": false,
            "append_x_forwarded_port": true,
        }));
        let mut bare = request(&[("x-forwarded-client-cert", "By=x")]);
        sanitize(&mut bare, &chain, 8080).unwrap();
        assert_eq!(bare.headers["x-forwarded-client-cert"], "By=x");
        assert_eq!(bare.headers["x-forwarded-port"], "8080");
        assert!(bare.headers.get("x-request-id").is_none());
        let mut with_port = request(&[("x-forwarded-port", "1")]);
        sanitize(&mut with_port, &chain, 8080).unwrap();
        assert_eq!(with_port.headers["x-forwarded-port"], "1");
    }

    #[test]
    fn who_answers() {
        for (mode, theirs, none) in [
            ("overwrite", Some("ours"), Some("ours")),
            ("append_if_absent", Some("theirs"), Some("ours")),
            ("pass_through", Some("theirs"), None),
        ] {
            let chain = chain(json!({"server": "ours", "server_mode": mode}));
            for (sent, expected) in [(Some("theirs"), theirs), (None, none)] {
                let mut response = ResponseHeader::build(200, None).unwrap();
                if let Some(sent) = sent {
                    response.insert_header("server", sent).unwrap();
                }
                put_server(&mut response, &chain).unwrap();
                let server = response.headers.get("server").map(|value| value.to_str().unwrap());
                assert_eq!(server, expected, "{mode} {sent:?}");
            }
        }
    }

    #[test]
    fn request_ids_are_uuids() {
        let id = request_id();
        let id = id.to_str().unwrap();
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&id[14..15], "4");
    }

    #[test]
    fn hop_by_hop_fields_go() {
        let mut request = request(&[
            ("connection", "close, x-mine, authorization"),
            ("x-mine", "1"),
            ("authorization", "secret"),
            ("keep-alive", "5"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
        ]);
        drop_nominated(&mut request);
        assert!(request.headers.contains_key("upgrade"), "the kind of request stays visible");
        strip_hop(&mut request, false).unwrap();
        let mut left: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization"]);
    }
}
