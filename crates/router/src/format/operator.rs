//! The operators, and what they say.

mod read;

use super::context::{Facts, FormatContext, Peer};
use super::flags::FLAGS;
use super::protocol;
use super::time::TimeFormat;
use crate::cel::Expression;
use crate::request::{HeaderKey, Headers};
use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// What an operator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said<'a> {
    /// A text, mostly in UTF-8.
    Text(Cow<'a, [u8]>),
    /// A whole number.
    Number(i64),
    /// Texts by name.
    Fields(Vec<(&'static str, &'a str)>),
}

#[derive(Debug, Clone)]
pub(super) enum Operator {
    /// `%REQ(X?Y)%`
    Request(HeaderKey, Option<HeaderKey>),
    /// `%REQ_WITHOUT_QUERY(X?Y)%`
    RequestWithoutQuery(HeaderKey, Option<HeaderKey>),
    /// `%RESP(X?Y)%`
    Response(HeaderKey, Option<HeaderKey>),
    /// `%TRAILER(X?Y)%`
    Trailer(HeaderKey, Option<HeaderKey>),
    /// When the request or connection began.
    StartTime(TimeFormat),
    /// When it was over.
    EmitTime(TimeFormat),
    Address(Side, AddressPart),
    Text(Text),
    Number(Number),
    /// From one moment to another, in units of so many nanoseconds.
    Span(Moment, Moment, u32),
    ResponseFlagsLong,
    GrpcStatus(GrpcForm),
    Peer(End, PeerForm),
    /// `%DYNAMIC_METADATA(FILTER:KEY)%`
    Metadata(Box<str>, Box<str>),
    Cel(Box<Expression>),
    UniqueId,
    /// A text that does not change.
    Fixed(Box<str>),
    /// Has no value here.
    Never,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Remote,
    Local,
    Upstream,
    UpstreamLocal,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum AddressPart {
    Whole,
    WithoutPort,
    Port,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Text {
    Protocol,
    PeerUriSan,
    LocalUriSan,
    TlsVersion,
    RequestedServerName,
    UpstreamCluster,
    UpstreamTransportFailure,
    RouteName,
    VirtualHostName,
    Hostname,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    TraceId,
    SpanId,
    AccessLogType,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    ResponseCode,
    BytesReceived,
    BytesSent,
    RequestHeaderBytes,
    ResponseHeaderBytes,
    UpstreamAttempts,
    GrpcStatus,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    Start,
    RequestReceived,
    UpstreamBegun,
    RequestSent,
    ResponseStarted,
    ResponseEnded,
    End,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Source,
    Destination,
}

#[derive(Debug, Clone)]
pub(super) enum PeerForm {
    Plain,
    Typed,
    Field(Box<str>),
}

impl Operator {
    /// `None`: there is no value.
    pub(super) fn say<'a>(&'a self, facts: &Facts<'a>) -> Option<Said<'a>> {
        let known = facts.context;
        Some(match self {
            Operator::Request(first, second) => header(facts.request, first, second.as_ref())?,
            Operator::RequestWithoutQuery(first, second) => {
                match header(facts.request, first, second.as_ref())? {
                    Said::Text(path) => Said::Text(without_query(path)),
                    other => other,
                }
            }
            Operator::Response(first, second) => header(facts.response, first, second.as_ref())?,
            Operator::Trailer(first, second) => {
                let trailers = known.trailers.map(|trailers| trailers as &dyn Headers);
                header(trailers, first, second.as_ref())?
            }
            Operator::StartTime(format) => {
                let mut text = String::new();
                format.render(known.start_time?, &mut text);
                owned(text)
            }
            Operator::EmitTime(format) => {
                let mut text = String::new();
                format.render(known.start_time? + known.duration?, &mut text);
                owned(text)
            }
            Operator::Address(side, part) => {
                let address = side.of(known)?;
                let ip = address.ip().to_canonical();
                match part {
                    AddressPart::Whole => owned(SocketAddr::new(ip, address.port()).to_string()),
                    AddressPart::WithoutPort => owned(ip.to_string()),
                    AddressPart::Port => Said::Number(i64::from(address.port())),
                }
            }
            Operator::Text(word) => word.say(known)?,
            Operator::Number(number) => Said::Number(number.of(known)?),
            Operator::Span(from, to, unit) => {
                let span = to.of(known)?.checked_sub(from.of(known)?)?;
                let units = span.as_nanos() / u128::from(*unit);
                Said::Number(i64::try_from(units).unwrap_or(i64::MAX))
            }
            Operator::ResponseFlagsLong => {
                let long = |code: &'a str| {
                    FLAGS.iter().find(|(short, _)| *short == code).map_or(code, |(_, long)| *long)
                };
                let codes: Vec<&str> = known.response_flags?.split(',').map(long).collect();
                owned(codes.join(","))
            }
            Operator::GrpcStatus(form) => grpc_status(known.grpc_status?, *form),
            Operator::Peer(end, form) => form.say(match end {
                End::Source => known.source?,
                End::Destination => known.destination?,
            })?,
            Operator::Metadata(filter, key) => {
                let mut metadata = known.metadata.iter();
                let found = metadata.find(|(of, name, _)| *of == &**filter && *name == &**key)?;
                borrowed(found.2)
            }
            // A text also where it is a number (Envoy).
            Operator::Cel(expression) => match expression.text(facts)? {
                Cow::Borrowed(text) => borrowed(text),
                Cow::Owned(text) => owned(text),
            },
            Operator::UniqueId => owned(unique_id()),
            Operator::Fixed(text) => borrowed(text),
            Operator::Never => return None,
        })
    }
}

fn borrowed(text: &str) -> Said<'_> {
    Said::Text(Cow::Borrowed(text.as_bytes()))
}

fn owned<'a>(text: String) -> Said<'a> {
    Said::Text(Cow::Owned(text.into_bytes()))
}

/// The first header, or the second where there is no first. One that is there and empty is a value (Envoy).
fn header<'a>(
    headers: Option<&'a dyn Headers>,
    first: &HeaderKey,
    second: Option<&HeaderKey>,
) -> Option<Said<'a>> {
    let headers = headers?;
    let value = headers.first(first).or_else(|| headers.first(second?));
    value.map(Said::Text)
}

fn without_query(path: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    match path {
        Cow::Borrowed(path) => Cow::Borrowed(path.get(..end).unwrap_or(path)),
        Cow::Owned(mut path) => {
            path.truncate(end);
            Cow::Owned(path)
        }
    }
}

fn grpc_status<'a>(status: u32, form: GrpcForm) -> Said<'a> {
    const NAMES: [(&str, &str); 17] = [
        ("OK", "OK"),
        ("Canceled", "CANCELLED"),
        ("Unknown", "UNKNOWN"),
        ("InvalidArgument", "INVALID_ARGUMENT"),
        ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
        ("NotFound", "NOT_FOUND"),
        ("AlreadyExists", "ALREADY_EXISTS"),
        ("PermissionDenied", "PERMISSION_DENIED"),
        ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
        ("FailedPrecondition", "FAILED_PRECONDITION"),
        ("Aborted", "ABORTED"),
        ("OutOfRange", "OUT_OF_RANGE"),
        ("Unimplemented", "UNIMPLEMENTED"),
        ("Internal", "INTERNAL"),
        ("Unavailable", "UNAVAILABLE"),
        ("DataLoss", "DATA_LOSS"),
        ("Unauthenticated", "UNAUTHENTICATED"),
    ];
    match (NAMES.get(status as usize), form) {
        (Some((camel, _)), GrpcForm::Camel) => borrowed(camel),
        (Some((_, snake)), GrpcForm::Snake) => borrowed(snake),
        (None, _) => owned(status.to_string()),
    }
}

/// A random UUID (RFC 9562, version 4).
fn unique_id() -> String {
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{id:032x}");
    let mut text = String::with_capacity(36);
    for (at, digit) in digits.chars().enumerate() {
        if [8, 12, 16, 20].contains(&at) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

impl Said<'_> {
    /// Appends it as text.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Said::Text(text) => out.extend_from_slice(text),
            Said::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Said::Fields(fields) => {
                let fields: std::collections::BTreeMap<_, _> = fields.iter().copied().collect();
                // Texts are always JSON.
                let _never_fails = serde_json::to_writer(out, &fields);
            }
        }
    }

    /// Cuts a text.
    pub(super) fn truncate(&mut self, len: usize) {
        match self {
            Said::Text(Cow::Borrowed(text)) => *text = text.get(..len).unwrap_or(text),
            Said::Text(Cow::Owned(text)) => text.truncate(len),
            Said::Number(_) | Said::Fields(_) => {}
        }
    }
}

impl Side {
    fn of(self, context: &FormatContext<'_>) -> Option<SocketAddr> {
        match self {
            Side::Remote => context.downstream_remote,
            Side::Local => context.downstream_local,
            Side::Upstream => context.upstream_host,
            Side::UpstreamLocal => context.upstream_local,
        }
    }
}

impl Text {
    fn say<'a>(self, context: &FormatContext<'a>) -> Option<Said<'a>> {
        let text = match self {
            Text::Protocol => context.protocol.map(protocol),
            Text::PeerUriSan => context.peer_uri_san,
            Text::LocalUriSan => context.local_uri_san,
            Text::TlsVersion => context.tls_version,
            Text::RequestedServerName => context.requested_server_name,
            Text::UpstreamCluster => context.upstream_cluster,
            Text::UpstreamTransportFailure => context.upstream_transport_failure,
            Text::RouteName => context.route_name,
            Text::VirtualHostName => context.virtual_host_name,
            Text::Hostname => context.hostname,
            Text::ResponseCodeDetails => context.response_code_details,
            Text::ConnectionTerminationDetails => context.connection_termination_details,
            Text::ResponseFlags => context.response_flags,
            Text::TraceId => context.trace_id,
            Text::SpanId => context.span_id,
            Text::AccessLogType => context.access_log_type,
        };
        let text = text.filter(|text| !text.is_empty())?;
        let one_word = matches!(
            self,
            Text::ResponseCodeDetails
                | Text::ConnectionTerminationDetails
                | Text::UpstreamTransportFailure
        );
        Some(match one_word && text.contains(char::is_whitespace) {
            // Envoy: so that a line can be taken apart at its spaces.
            true => owned(text.replace(char::is_whitespace, "_")),
            false => borrowed(text),
        })
    }
}

impl Number {
    fn of(self, context: &FormatContext<'_>) -> Option<i64> {
        let bytes =
            |bytes: Option<u64>| bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        match self {
            Number::ResponseCode => context.response_code.map(i64::from),
            Number::BytesReceived => bytes(context.bytes_received),
            Number::BytesSent => bytes(context.bytes_sent),
            Number::RequestHeaderBytes => bytes(context.request_header_bytes),
            Number::ResponseHeaderBytes => bytes(context.response_header_bytes),
            Number::UpstreamAttempts => context.upstream_attempts.map(i64::from),
            Number::GrpcStatus => context.grpc_status.map(i64::from),
        }
    }
}

impl Moment {
    fn of(self, context: &FormatContext<'_>) -> Option<Duration> {
        match self {
            Moment::Start => Some(Duration::ZERO),
            Moment::RequestReceived => context.request_received,
            Moment::UpstreamBegun => context.upstream_begun,
            Moment::RequestSent => context.upstream_request_sent,
            Moment::ResponseStarted => context.response_started,
            Moment::ResponseEnded => context.response_ended,
            Moment::End => context.duration,
        }
    }
}

impl PeerForm {
    fn say<'a>(&self, peer: Peer<'a>) -> Option<Said<'a>> {
        let known = |field: &(&'static str, &'a str)| !field.1.is_empty();
        match self {
            // Istio: `WorkloadMetadataObject::serializeAsString`, which leaves the identity out.
            PeerForm::Plain => {
                let mut text = String::new();
                let named = peer.fields().into_iter().filter(known);
                for (name, value) in named.filter(|(name, _)| *name != "identity") {
                    let comma = if text.is_empty() { "" } else { "," };
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{comma}{name}={value}");
                }
                (!text.is_empty()).then(|| owned(text))
            }
            PeerForm::Typed => {
                Some(Said::Fields(peer.fields().into_iter().filter(known).collect()))
            }
            PeerForm::Field(name) => peer.field(name).map(borrowed),
        }
    }
}
