//! Texts with `%OPERATORS%`, as Envoy's substitution formatter reads them.
//!
//! A text is parsed once, when it is compiled, so an operator that is not known is an error of the
//! configuration. An operator without a value leaves nothing behind (Envoy: `omit_empty_values`, as
//! it formats header values).

mod context;
mod flags;
pub(crate) mod time;

pub use context::{Facts, FormatContext, Peer};
pub use flags::FLAGS;

use crate::request::{HeaderKey, Headers};
use http::Version;
use std::fmt::Write;
use std::net::SocketAddr;
use time::TimeFormat;

/// A formatted text ends here, in bytes.
pub const MAX_LEN: usize = 64 << 10;

/// A parsed text.
#[derive(Debug, Clone)]
pub struct Format {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
enum Segment {
    Literal(Box<[u8]>),
    Operator { operator: Operator, max_len: usize },
}

#[derive(Debug, Clone, PartialEq)]
enum Operator {
    /// `%REQ(X?Y)%`
    Request(HeaderKey, Option<HeaderKey>),
    /// `%REQ_WITHOUT_QUERY(X?Y)%`
    RequestWithoutQuery(HeaderKey, Option<HeaderKey>),
    /// `%RESP(X?Y)%`
    Response(HeaderKey, Option<HeaderKey>),
    StartTime(TimeFormat),
    Protocol,
    Duration,
    Address(Side, AddressPart),
    Text(Text),
    ResponseCode,
    BytesReceived,
    BytesSent,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Side {
    Remote,
    Local,
    Upstream,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum AddressPart {
    Whole,
    WithoutPort,
    Port,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Text {
    PeerUriSan,
    LocalUriSan,
    UpstreamCluster,
    RouteName,
    VirtualHostName,
    Hostname,
    ResponseCodeDetails,
    ResponseFlags,
}

/// Operators without arguments.
const PLAIN: &[(&str, Operator)] = {
    use AddressPart::{Port, Whole, WithoutPort};
    use Operator::{
        Address, BytesReceived, BytesSent, Duration, Protocol, ResponseCode, Text as Word,
    };
    use Side::{Local, Remote, Upstream};
    &[
        ("PROTOCOL", Protocol),
        ("DURATION", Duration),
        ("RESPONSE_CODE", ResponseCode),
        ("BYTES_RECEIVED", BytesReceived),
        ("BYTES_SENT", BytesSent),
        ("DOWNSTREAM_REMOTE_ADDRESS", Address(Remote, Whole)),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Address(Remote, WithoutPort)),
        ("DOWNSTREAM_REMOTE_PORT", Address(Remote, Port)),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Address(Remote, Whole)),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Address(Remote, WithoutPort)),
        ("DOWNSTREAM_DIRECT_REMOTE_PORT", Address(Remote, Port)),
        ("DOWNSTREAM_LOCAL_ADDRESS", Address(Local, Whole)),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Address(Local, WithoutPort)),
        ("DOWNSTREAM_LOCAL_PORT", Address(Local, Port)),
        ("UPSTREAM_HOST", Address(Upstream, Whole)),
        ("UPSTREAM_REMOTE_ADDRESS", Address(Upstream, Whole)),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Address(Upstream, WithoutPort)),
        ("UPSTREAM_REMOTE_PORT", Address(Upstream, Port)),
        ("DOWNSTREAM_PEER_URI_SAN", Word(Text::PeerUriSan)),
        ("DOWNSTREAM_LOCAL_URI_SAN", Word(Text::LocalUriSan)),
        ("UPSTREAM_CLUSTER", Word(Text::UpstreamCluster)),
        ("UPSTREAM_CLUSTER_RAW", Word(Text::UpstreamCluster)),
        ("ROUTE_NAME", Word(Text::RouteName)),
        ("VIRTUAL_HOST_NAME", Word(Text::VirtualHostName)),
        ("HOSTNAME", Word(Text::Hostname)),
        ("RESPONSE_CODE_DETAILS", Word(Text::ResponseCodeDetails)),
        ("RESPONSE_FLAGS", Word(Text::ResponseFlags)),
    ]
};

impl Format {
    /// Parses a text. `%%` is a percent sign; `%NAME%`, `%NAME(ARGUMENTS)%` and `%NAME(ARGUMENTS):N%`
    /// are operators, the last with at most `N` bytes. The error says what is not understood.
    pub fn parse(text: &str) -> Result<Format, String> {
        let mut segments = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.extend_from_slice(before.as_bytes());
            if let Some(after) = after.strip_prefix('%') {
                literal.push(b'%');
                rest = after;
                continue;
            }
            if !literal.is_empty() {
                segments.push(Segment::Literal(std::mem::take(&mut literal).into()));
            }
            let (segment, after) = operator(after).ok_or_else(|| {
                format!("`%{after}` is no operator; a percent sign is written `%%`")
            })?;
            segments.push(segment?);
            rest = after;
        }
        literal.extend_from_slice(rest.as_bytes());
        if !literal.is_empty() {
            segments.push(Segment::Literal(literal.into()));
        }
        Ok(Format { segments })
    }

    /// The text, if it has no operators.
    pub fn literal(&self) -> Option<&[u8]> {
        match self.segments.as_slice() {
            [] => Some(b""),
            [Segment::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Writes the text, at most [`MAX_LEN`] bytes of it.
    pub fn render(
        &self,
        context: &FormatContext<'_>,
        request: Option<&dyn Headers>,
        response: Option<&dyn Headers>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Operator { operator, max_len } => {
                    let start = out.len();
                    operator.render(context, request, response, &mut out);
                    out.truncate(start.saturating_add(*max_len));
                }
            }
            out.truncate(MAX_LEN);
        }
        out
    }
}

/// What stands behind a `%`, and what follows its closing `%`. `None`: no operator.
fn operator(after: &str) -> Option<(Result<Segment, String>, &str)> {
    let name_len = after
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|len| *len > 0)?;
    let (name, mut rest) = after.split_at(name_len);
    let mut arguments = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let (inside, after) = inside.split_once(')')?;
        arguments = Some(inside);
        rest = after;
    }
    let mut max_len = usize::MAX;
    if let Some(number) = rest.strip_prefix(':') {
        let (number, after) = number.split_at(number.find(|c: char| !c.is_ascii_digit())?);
        max_len = number.parse().ok()?;
        rest = after;
    }
    let rest = rest.strip_prefix('%')?;
    let operator =
        Operator::parse(name, arguments).map(|operator| Segment::Operator { operator, max_len });
    Some((operator, rest))
}

impl Operator {
    fn parse(name: &str, arguments: Option<&str>) -> Result<Operator, String> {
        if let Some((_, operator)) = PLAIN.iter().find(|(known, _)| *known == name) {
            return match arguments {
                None => Ok(operator.clone()),
                Some(_) => Err(format!("`%{name}%` takes no arguments")),
            };
        }
        let two = |make: fn(HeaderKey, Option<HeaderKey>) -> Operator| {
            let text = arguments.ok_or_else(|| format!("`%{name}%` needs a header's name"))?;
            let (first, second) = match text.split_once('?') {
                Some((first, second)) => (first, Some(second)),
                None => (text, None),
            };
            let second = second.map(HeaderKey::parse).transpose();
            Ok(make(HeaderKey::parse(first)?, second?))
        };
        match name {
            "REQ" => two(Operator::Request),
            "REQ_WITHOUT_QUERY" => two(Operator::RequestWithoutQuery),
            "RESP" => two(Operator::Response),
            "FILTER_STATE" => {
                match arguments.map(|text| text.strip_suffix(":PLAIN").unwrap_or(text)) {
                    Some("io.istio.peer_principal") => Ok(Operator::Text(Text::PeerUriSan)),
                    Some("io.istio.local_principal") => Ok(Operator::Text(Text::LocalUriSan)),
                    _ => Err(format!(
                        "`%{name}%` knows `io.istio.peer_principal` and `io.istio.local_principal` only"
                    )),
                }
            }
            "START_TIME" => Ok(Operator::StartTime(match arguments {
                None | Some("") => TimeFormat::iso(),
                Some(format) => TimeFormat::parse(format)?,
            })),
            _ => Err(format!("`%{name}%` is not known")),
        }
    }

    fn render(
        &self,
        context: &FormatContext<'_>,
        request: Option<&dyn Headers>,
        response: Option<&dyn Headers>,
        out: &mut Vec<u8>,
    ) {
        let header = |headers: Option<&dyn Headers>, first, second: &Option<HeaderKey>| {
            let headers = headers?;
            let value = headers.first(first).filter(|value| !value.is_empty());
            value.or_else(|| headers.first(second.as_ref()?)).map(|value| value.into_owned())
        };
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = match self {
            Operator::Request(first, second) => {
                out.extend(header(request, first, second).unwrap_or_default());
                return;
            }
            Operator::RequestWithoutQuery(first, second) => {
                let mut value = header(request, first, second).unwrap_or_default();
                value.truncate(value.iter().position(|b| *b == b'?').unwrap_or(value.len()));
                out.append(&mut value);
                return;
            }
            Operator::Response(first, second) => {
                out.extend(header(response, first, second).unwrap_or_default());
                return;
            }
            Operator::Text(word) => {
                out.extend_from_slice(word.of(context).unwrap_or_default().as_bytes());
                return;
            }
            Operator::Protocol => {
                out.extend_from_slice(context.protocol.map_or("", protocol).as_bytes());
                return;
            }
            Operator::StartTime(format) => {
                if let Some(time) = context.start_time {
                    format.render(time, &mut text);
                }
                Ok(())
            }
            Operator::Duration => match context.duration {
                Some(duration) => write!(text, "{}", duration.as_millis()),
                None => Ok(()),
            },
            Operator::Address(side, part) => match (side.of(context), part) {
                (Some(address), AddressPart::Whole) => write!(text, "{address}"),
                (Some(address), AddressPart::WithoutPort) => write!(text, "{}", address.ip()),
                (Some(address), AddressPart::Port) => write!(text, "{}", address.port()),
                (None, _) => Ok(()),
            },
            Operator::ResponseCode => number(context.response_code, &mut text),
            Operator::BytesReceived => number(context.bytes_received, &mut text),
            Operator::BytesSent => number(context.bytes_sent, &mut text),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

impl Side {
    fn of(self, context: &FormatContext<'_>) -> Option<SocketAddr> {
        match self {
            Side::Remote => context.downstream_remote,
            Side::Local => context.downstream_local,
            Side::Upstream => context.upstream_host,
        }
    }
}

impl Text {
    fn of<'a>(self, context: &FormatContext<'a>) -> Option<&'a str> {
        match self {
            Text::PeerUriSan => context.peer_uri_san,
            Text::LocalUriSan => context.local_uri_san,
            Text::UpstreamCluster => context.upstream_cluster,
            Text::RouteName => context.route_name,
            Text::VirtualHostName => context.virtual_host_name,
            Text::Hostname => context.hostname,
            Text::ResponseCodeDetails => context.response_code_details,
            Text::ResponseFlags => context.response_flags,
        }
    }
}

fn number(value: Option<impl std::fmt::Display>, out: &mut String) -> std::fmt::Result {
    value.map_or(Ok(()), |value| write!(out, "{value}"))
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
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
            (
                "%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %REQ(:SCHEME)%",
                "GET app:80 /p?q=1 http",
            ),
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
}
