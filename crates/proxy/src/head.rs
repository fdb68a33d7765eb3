//! Heads of HTTP/1 messages: parsed from raw bytes, strictly.
//!
//! Whatever two parties could read differently is refused here, on the bytes as they
//! came, before anything looks at a header map (RFC 9112; docs/differences.md lists
//! where this is stricter than Envoy).

use crate::framing::BodyLength;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use std::mem::MaybeUninit;

/// Slots for header fields; bounds above it are cut to it.
const SLOTS: usize = 256;

/// Why a head is refused, with the status that says so.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// More bytes than allowed.
    #[error("request head is too large")]
    TooLarge,
    /// More fields than allowed.
    #[error("too many header fields")]
    TooManyHeaders,
    /// Not HTTP, or a field that no grammar allows (space before colon, obs-fold, control bytes).
    #[error("malformed head")]
    Malformed,
    /// A line ends without CR.
    #[error("bare line feed")]
    BareLineFeed,
    /// `Content-Length` beside `Transfer-Encoding`, twice, or no number; `Transfer-Encoding` other than `chunked`.
    #[error("ambiguous body length")]
    Ambiguous,
    /// `Host` is missing, there twice, or differs from an absolute target.
    #[error("missing or conflicting host")]
    Host,
    /// The target is no origin form, absolute form or `*`.
    #[error("invalid request target")]
    Target,
    /// CONNECT inside a tunnel.
    #[error("CONNECT inside a tunnel")]
    Connect,
    /// HTTP/1.0 where it is not accepted.
    #[error("HTTP/1.0 is not accepted")]
    Http10,
    /// The head did not arrive in time.
    #[error("request head timed out")]
    Timeout,
}

impl HeadError {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            HeadError::TooLarge | HeadError::TooManyHeaders => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            HeadError::Http10 => StatusCode::UPGRADE_REQUIRED,
            HeadError::Timeout => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Envoy's response code detail.
    pub fn details(self) -> &'static str {
        match self {
            HeadError::TooLarge => "http1.headers_too_large",
            HeadError::TooManyHeaders => "http1.too_many_headers",
            HeadError::Http10 => "low_version",
            HeadError::Timeout => "request_header_timeout",
            HeadError::Ambiguous => "http1.content_length_and_chunked_not_allowed",
            HeadError::Host => "http1.invalid_host",
            HeadError::Target => "http1.invalid_url",
            HeadError::Connect => "http1.connect_not_allowed",
            HeadError::BareLineFeed | HeadError::Malformed => "http1.codec_error",
        }
    }
}

/// Bounds of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    pub(crate) bytes: usize,
    pub(crate) fields: usize,
}

/// A request's head.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    /// Origin form or `*`; the authority is in `Host`.
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: BodyLength,
    /// The connection may be used again.
    pub(crate) keep_alive: bool,
    /// Asks to switch protocols.
    pub(crate) upgrade: bool,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: BodyLength,
    pub(crate) keep_alive: bool,
}

/// Collects the bytes of a head; one that arrives in one piece is not copied.
#[derive(Debug, Default)]
pub(crate) struct HeadBuffer {
    whole: Bytes,
    parts: BytesMut,
}

impl HeadBuffer {
    /// Continues with what followed the last message.
    pub(crate) fn new(rest: Bytes) -> Self {
        HeadBuffer { whole: rest, parts: BytesMut::new() }
    }

    /// Adds what has arrived.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if self.whole.is_empty() && self.parts.is_empty() {
            self.whole = chunk;
        } else {
            if self.parts.is_empty() {
                self.parts.extend_from_slice(&std::mem::take(&mut self.whole));
            }
            self.parts.extend_from_slice(&chunk);
        }
    }

    /// Nothing was collected.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.parts.is_empty()
    }

    /// All that was collected, in one piece.
    pub(crate) fn take(&mut self) -> Bytes {
        if self.parts.is_empty() {
            std::mem::take(&mut self.whole)
        } else {
            std::mem::take(&mut self.parts).freeze()
        }
    }

    /// Puts back what [`Self::take`] gave.
    pub(crate) fn restore(&mut self, bytes: Bytes) {
        self.whole = bytes;
    }
}

/// Length of the head at the front of `bytes`, its empty line included. `None`: not all there.
/// Empty lines in front are skipped by the caller.
fn head_end(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\n', &bytes[from..]) {
        let at = from + at;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(HeadError::BareLineFeed);
        }
        if at >= 3 && bytes[at - 3..at] == *b"\r\n\r" {
            return Ok(Some(at + 1));
        }
        from = at + 1;
    }
    Ok(None)
}

/// Skips one or more CRLF in front of a request line (RFC 9112 §2.2).
fn skip_empty_lines(input: &mut Bytes) {
    while input.starts_with(b"\r\n") {
        let _ = input.split_to(2);
    }
}

/// Parses the request head at the front of `input` and takes it off. `Ok(None)`: not all there.
pub(crate) fn parse_request(
    input: &mut Bytes,
    limits: HeadLimits,
) -> Result<Option<RequestHead>, HeadError> {
    skip_empty_lines(input);
    let Some(end) = bounded_end(input, limits)? else {
        return Ok(None);
    };
    let head = input.split_to(end);
    let mut slots = [const { MaybeUninit::uninit() }; SLOTS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&head, &mut slots) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        Err(_) => return Err(HeadError::Malformed),
    }
    let version = match request.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let method = request.method.unwrap_or_default();
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
    if method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    if request.headers.len() > limits.fields {
        return Err(HeadError::TooManyHeaders);
    }
    let mut headers = fields(&head, request.headers)?;
    let target = head.slice_ref(request.path.unwrap_or_default().as_bytes());
    let uri = origin_form(target, &method, version, &mut headers)?;
    let body = request_body(&headers, version)?;
    let connection = ConnectionTokens::of(&headers);
    Ok(Some(RequestHead {
        upgrade: version == Version::HTTP_11
            && connection.upgrade
            && headers.contains_key(header::UPGRADE),
        keep_alive: match version {
            Version::HTTP_11 => !connection.close,
            _ => connection.keep_alive,
        },
        method,
        uri,
        version,
        headers,
        body,
    }))
}

/// Parses the response head at the front of `input` and takes it off. `to` is the request's method.
pub(crate) fn parse_response(
    input: &mut Bytes,
    limits: HeadLimits,
    to: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    skip_empty_lines(input);
    let Some(end) = bounded_end(input, limits)? else {
        return Ok(None);
    };
    let head = input.split_to(end);
    let mut slots = [const { MaybeUninit::uninit() }; SLOTS];
    let mut response = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        &head,
        &mut slots,
    ) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        Err(_) => return Err(HeadError::Malformed),
    }
    if response.headers.len() > limits.fields {
        return Err(HeadError::TooManyHeaders);
    }
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(HeadError::Malformed)?;
    let headers = fields(&head, response.headers)?;
    let connection = ConnectionTokens::of(&headers);
    let body = response_body(&headers, status, to)?;
    Ok(Some(ResponseHead {
        keep_alive: body != BodyLength::UntilClose
            && match response.version {
                Some(1) => !connection.close,
                _ => connection.keep_alive,
            },
        status,
        headers,
        body,
    }))
}

fn bounded_end(input: &Bytes, limits: HeadLimits) -> Result<Option<usize>, HeadError> {
    match head_end(input)? {
        Some(end) if end > limits.bytes => Err(HeadError::TooLarge),
        None if input.len() > limits.bytes => Err(HeadError::TooLarge),
        end => Ok(end),
    }
}

/// Header values share the head's buffer.
fn fields(head: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, HeadError> {
    let mut headers = HeaderMap::with_capacity(fields.len() + 8);
    for field in fields {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| HeadError::Malformed)?;
        headers.try_append(name, value).map_err(|_| HeadError::TooManyHeaders)?;
    }
    Ok(headers)
}

/// Brings the target to origin form or `*`, its authority to `Host`.
fn origin_form(
    target: Bytes,
    method: &Method,
    version: Version,
    headers: &mut HeaderMap,
) -> Result<Uri, HeadError> {
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        return Err(HeadError::Host);
    }
    if let Some(host) = headers.get(header::HOST) {
        check_host(host)?;
    }
    if memchr::memchr(b'#', &target).is_some() {
        return Err(HeadError::Target);
    }
    if target.as_ref() == b"*" {
        return if *method == Method::OPTIONS {
            Ok(Uri::from_static("*"))
        } else {
            Err(HeadError::Target)
        };
    }
    let uri = Uri::from_maybe_shared(target.clone()).map_err(|_| HeadError::Target)?;
    if target.first() == Some(&b'/') {
        return Ok(uri);
    }
    let mut parts = uri.into_parts();
    let (Some(scheme), Some(authority)) = (parts.scheme.take(), parts.authority.take()) else {
        return Err(HeadError::Target);
    };
    if !matches!(scheme.as_str(), "http" | "https") || authority.as_str().contains('@') {
        return Err(HeadError::Target);
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| HeadError::Host)?;
    match headers.get(header::HOST) {
        Some(named) if !named.as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(HeadError::Host);
        }
        _ => headers.insert(header::HOST, host),
    };
    Uri::from_parts(parts).map_err(|_| HeadError::Target)
}

/// Lists, user information, paths and white space have no place in `Host`.
pub(crate) fn check_host(host: &HeaderValue) -> Result<(), HeadError> {
    let allowed = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'%' | b'~')
    };
    if host.as_bytes().iter().all(allowed) { Ok(()) } else { Err(HeadError::Host) }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    if lengths.next().is_some()
        || length.is_empty()
        || !length.as_bytes().iter().all(u8::is_ascii_digit)
    {
        return Err(HeadError::Ambiguous);
    }
    let digits = length.to_str().map_err(|_| HeadError::Ambiguous)?;
    digits.parse().map(Some).map_err(|_| HeadError::Ambiguous)
}

/// `Some(true)`: chunked, and nothing else.
fn chunked(headers: &HeaderMap) -> Result<bool, HeadError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(HeadError::Ambiguous),
    }
}

fn request_body(headers: &HeaderMap, version: Version) -> Result<BodyLength, HeadError> {
    match (chunked(headers)?, content_length(headers)?) {
        (true, Some(_)) => Err(HeadError::Ambiguous),
        (true, None) if version != Version::HTTP_11 => Err(HeadError::Ambiguous),
        (true, None) => Ok(BodyLength::Chunked),
        (false, None | Some(0)) => Ok(BodyLength::Empty),
        (false, Some(length)) => Ok(BodyLength::Sized(length)),
    }
}

/// RFC 9112 §6.3.
fn response_body(
    headers: &HeaderMap,
    status: StatusCode,
    to: &Method,
) -> Result<BodyLength, HeadError> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(BodyLength::UntilClose);
    }
    if *to == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(BodyLength::Empty);
    }
    match (chunked(headers)?, content_length(headers)?) {
        (true, Some(_)) => Err(HeadError::Ambiguous),
        (true, None) => Ok(BodyLength::Chunked),
        (false, Some(0)) => Ok(BodyLength::Empty),
        (false, Some(length)) => Ok(BodyLength::Sized(length)),
        (false, None) => Ok(BodyLength::UntilClose),
    }
}

/// What `Connection` says.
#[derive(Debug, Default)]
struct ConnectionTokens {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl ConnectionTokens {
    fn of(headers: &HeaderMap) -> Self {
        let mut tokens = ConnectionTokens::default();
        for value in headers.get_all(header::CONNECTION) {
            for token in value.as_bytes().split(|byte| *byte == b',') {
                let token = token.trim_ascii();
                tokens.close |= token.eq_ignore_ascii_case(b"close");
                tokens.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                tokens.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
            }
        }
        tokens
    }
}

/// For fuzzing: parses foreign bytes as a request; must not panic.
pub fn fuzz_request(bytes: &[u8]) {
    let limits = HeadLimits { bytes: 60 * 1024, fields: 100 };
    let mut input = Bytes::copy_from_slice(bytes);
    let _parsed = parse_request(&mut input, limits);
}

/// For fuzzing: reads foreign bytes as a response and its body; must not panic.
pub fn fuzz_response(bytes: &[u8]) {
    use crate::framing::{BodyDecoder, Decoded};
    let limits = HeadLimits { bytes: 60 * 1024, fields: 100 };
    let mut input = Bytes::copy_from_slice(bytes);
    if let Ok(Some(head)) = parse_response(&mut input, limits, &Method::GET) {
        let mut body = BodyDecoder::new(head.body);
        while let Ok(Decoded::Data(_)) = body.decode(&mut input) {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 1024, fields: 5 };

    fn request(text: &str) -> Result<Option<RequestHead>, HeadError> {
        parse_request(&mut Bytes::copy_from_slice(text.as_bytes()), LIMITS)
    }

    #[test]
    fn a_request_is_taken_off_its_bytes() {
        let mut input = Bytes::from_static(
            b"\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET",
        );
        let head = parse_request(&mut input, LIMITS).unwrap().unwrap();
        assert_eq!(head.uri, "/a?b");
        assert_eq!(head.body, BodyLength::Sized(3));
        assert!(head.keep_alive);
        assert_eq!(input, "abcGET");
    }

    #[test]
    fn the_classics_are_refused() {
        for (text, error) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", HeadError::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: x\n\n", HeadError::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", HeadError::Malformed),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", HeadError::Malformed),
            ("GET / HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", HeadError::Host),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Host),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::Ambiguous,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                HeadError::Ambiguous,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", HeadError::Ambiguous),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", HeadError::Ambiguous),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                HeadError::Ambiguous,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::Ambiguous,
            ),
            (
                "GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::Ambiguous,
            ),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", HeadError::Connect),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Target),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\nf: 1\r\n\r\n",
                HeadError::TooManyHeaders,
            ),
        ] {
            assert_eq!(request(text).unwrap_err(), error, "{text:?}");
        }
        assert_eq!(
            request(&format!("GET /{}", "a".repeat(2000))).unwrap_err(),
            HeadError::TooLarge
        );
    }

    #[test]
    fn absolute_form_gives_host_and_path() {
        let head =
            request("GET http://a:8080/x?y HTTP/1.1\r\nHost: A:8080\r\n\r\n").unwrap().unwrap();
        assert_eq!(head.uri, "/x?y");
        assert_eq!(head.headers.get("host").unwrap(), "a:8080");
    }

    #[test]
    fn the_length_of_a_response() {
        for (text, method, body) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Method::GET, BodyLength::UntilClose),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::GET, BodyLength::Sized(5)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Method::HEAD, BodyLength::Empty),
            ("HTTP/1.1 204 No\r\n\r\n", Method::GET, BodyLength::Empty),
            ("HTTP/1.1 101 Up\r\nconnection: upgrade\r\n\r\n", Method::GET, BodyLength::UntilClose),
        ] {
            let mut input = Bytes::copy_from_slice(text.as_bytes());
            assert_eq!(
                parse_response(&mut input, LIMITS, &method).unwrap().unwrap().body,
                body,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_request(&bytes);
            fuzz_response(&bytes);
        }

        #[test]
        fn a_head_in_pieces_is_the_same_head(cut in 1usize..60) {
            let text = b"GET /p HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\nrest";
            let mut buffer = HeadBuffer::default();
            let mut found = None;
            for piece in text.chunks(cut) {
                buffer.push(Bytes::copy_from_slice(piece));
                if found.is_none() {
                    let mut bytes = buffer.take();
                    found = parse_request(&mut bytes, LIMITS).unwrap();
                    buffer.restore(bytes);
                }
            }
            prop_assert_eq!(found.unwrap().uri, "/p");
            prop_assert_eq!(buffer.take(), "rest");
        }
    }
}
