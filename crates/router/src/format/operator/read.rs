//! Names and arguments of operators.

use super::{AddressPart, End, GrpcForm, Moment, Number, Operator, PeerForm, Side, Text};
use crate::cel::Expression;
use crate::format::time::TimeFormat;
use crate::request::HeaderKey;

const MILLISECOND: u32 = 1_000_000;

/// Operators without arguments that headers and logs know.
const PLAIN: &[(&str, Operator)] = {
    use AddressPart::{Port, Whole, WithoutPort};
    use Operator::{Address, Number as Count, Span, Text as Word};
    use Side::{Local, Remote, Upstream, UpstreamLocal};
    &[
        ("PROTOCOL", Word(Text::Protocol)),
        ("DURATION", Span(Moment::Start, Moment::End, MILLISECOND)),
        ("RESPONSE_CODE", Count(Number::ResponseCode)),
        ("BYTES_RECEIVED", Count(Number::BytesReceived)),
        ("BYTES_SENT", Count(Number::BytesSent)),
        ("DOWNSTREAM_REMOTE_ADDRESS", Address(Remote, Whole)),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Address(Remote, WithoutPort)),
        ("DOWNSTREAM_REMOTE_PORT", Address(Remote, Port)),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Address(Remote, Whole)),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Address(Remote, WithoutPort)),
        ("DOWNSTREAM_DIRECT_REMOTE_PORT", Address(Remote, Port)),
        ("DOWNSTREAM_LOCAL_ADDRESS", Address(Local, Whole)),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Address(Local, WithoutPort)),
        ("DOWNSTREAM_LOCAL_PORT", Address(Local, Port)),
        ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", Address(Local, Whole)),
        ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", Address(Local, WithoutPort)),
        ("DOWNSTREAM_DIRECT_LOCAL_PORT", Address(Local, Port)),
        ("UPSTREAM_HOST", Address(Upstream, Whole)),
        ("UPSTREAM_HOST_NAME", Address(Upstream, Whole)),
        ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Address(Upstream, WithoutPort)),
        ("UPSTREAM_REMOTE_ADDRESS", Address(Upstream, Whole)),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Address(Upstream, WithoutPort)),
        ("UPSTREAM_REMOTE_PORT", Address(Upstream, Port)),
        ("UPSTREAM_LOCAL_ADDRESS", Address(UpstreamLocal, Whole)),
        ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Address(UpstreamLocal, WithoutPort)),
        ("UPSTREAM_LOCAL_PORT", Address(UpstreamLocal, Port)),
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

/// Operators without arguments that only logs know: what they say is known at the end, or never here.
const PLAIN_IN_LOGS: &[(&str, Operator)] = {
    use Operator::{Never, Number as Count, ResponseFlagsLong, Span, Text as Word, UniqueId};
    &[
        ("REQUEST_DURATION", Span(Moment::Start, Moment::RequestReceived, MILLISECOND)),
        ("REQUEST_TX_DURATION", Span(Moment::Start, Moment::RequestSent, MILLISECOND)),
        ("RESPONSE_DURATION", Span(Moment::Start, Moment::ResponseStarted, MILLISECOND)),
        ("RESPONSE_TX_DURATION", Span(Moment::ResponseStarted, Moment::End, MILLISECOND)),
        ("RESPONSE_FLAGS_LONG", ResponseFlagsLong),
        ("CONNECTION_TERMINATION_DETAILS", Word(Text::ConnectionTerminationDetails)),
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", Word(Text::UpstreamTransportFailure)),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Count(Number::UpstreamAttempts)),
        ("DOWNSTREAM_HEADER_BYTES_RECEIVED", Count(Number::RequestHeaderBytes)),
        ("DOWNSTREAM_HEADER_BYTES_SENT", Count(Number::ResponseHeaderBytes)),
        ("REQUESTED_SERVER_NAME", Word(Text::RequestedServerName)),
        ("DOWNSTREAM_TLS_VERSION", Word(Text::TlsVersion)),
        ("GRPC_STATUS_NUMBER", Count(Number::GrpcStatus)),
        ("ACCESS_LOG_TYPE", Word(Text::AccessLogType)),
        ("TRACE_ID", Word(Text::TraceId)),
        ("SPAN_ID", Word(Text::SpanId)),
        ("UNIQUE_ID", UniqueId),
        ("VIRTUAL_CLUSTER_NAME", Never),
        ("FILTER_CHAIN_NAME", Never),
        ("CONNECTION_ID", Never),
        ("UPSTREAM_CONNECTION_ID", Never),
        ("UPSTREAM_PROTOCOL", Never),
        ("UPSTREAM_TLS_VERSION", Never),
        ("UPSTREAM_TLS_CIPHER", Never),
        ("UPSTREAM_PEER_URI_SAN", Never),
        ("UPSTREAM_PEER_SUBJECT", Never),
        ("UPSTREAM_WIRE_BYTES_SENT", Never),
        ("UPSTREAM_WIRE_BYTES_RECEIVED", Never),
        ("UPSTREAM_HEADER_BYTES_SENT", Never),
        ("UPSTREAM_HEADER_BYTES_RECEIVED", Never),
        ("DOWNSTREAM_WIRE_BYTES_SENT", Never),
        ("DOWNSTREAM_WIRE_BYTES_RECEIVED", Never),
        ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Never),
        ("DOWNSTREAM_TLS_CIPHER", Never),
        ("DOWNSTREAM_TLS_SESSION_ID", Never),
        ("DOWNSTREAM_PEER_SUBJECT", Never),
        ("DOWNSTREAM_PEER_ISSUER", Never),
        ("DOWNSTREAM_PEER_SERIAL", Never),
        ("DOWNSTREAM_PEER_FINGERPRINT_256", Never),
        ("DOWNSTREAM_PEER_DNS_SAN", Never),
        ("DOWNSTREAM_LOCAL_SUBJECT", Never),
        ("DOWNSTREAM_LOCAL_DNS_SAN", Never),
    ]
};

/// Operators with arguments that have no value here.
const NEVER: &[&str] = &[
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "UPSTREAM_FILTER_STATE",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "LOCAL_REPLY_BODY",
];

impl Operator {
    /// `in_log`: everything is taken; otherwise only what headers can have.
    pub(in crate::format) fn parse(
        name: &str,
        arguments: Option<&str>,
        in_log: bool,
    ) -> Result<Operator, String> {
        let in_logs = if in_log { PLAIN_IN_LOGS } else { &[] };
        let mut plain = PLAIN.iter().chain(in_logs);
        if let Some((_, operator)) = plain.find(|(known, _)| *known == name) {
            return match arguments {
                None => Ok(operator.clone()),
                // Envoy: `ALLOW_WHITESPACES`.
                Some(_) if in_log && name == "RESPONSE_CODE_DETAILS" => Ok(operator.clone()),
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
        let time = || match arguments {
            None | Some("") => Ok(TimeFormat::iso()),
            Some(format) => TimeFormat::parse(format),
        };
        let needed = || arguments.ok_or_else(|| format!("`%{name}%` needs arguments"));
        match name {
            "REQ" => two(Operator::Request),
            "REQ_WITHOUT_QUERY" => two(Operator::RequestWithoutQuery),
            "RESP" => two(Operator::Response),
            "START_TIME" => time().map(Operator::StartTime),
            "FILTER_STATE" => filter_state(arguments.unwrap_or_default(), in_log),
            _ if !in_log => Err(format!("`%{name}%` is not known")),
            "TRAILER" => two(Operator::Trailer),
            "EMIT_TIME" => time().map(Operator::EmitTime),
            "COMMON_DURATION" => span(needed()?),
            "GRPC_STATUS" => match arguments {
                None | Some("" | "CAMEL_STRING") => Ok(Operator::GrpcStatus(GrpcForm::Camel)),
                Some("SNAKE_STRING") => Ok(Operator::GrpcStatus(GrpcForm::Snake)),
                Some("NUMBER") => Ok(Operator::Number(Number::GrpcStatus)),
                Some(form) => Err(format!("`%GRPC_STATUS%` has no form `{form}`")),
            },
            "DYNAMIC_METADATA" => metadata(needed()?),
            "METADATA" => match needed()?.split_once(':') {
                Some(("DYNAMIC", rest)) => metadata(rest),
                Some(("CLUSTER" | "ROUTE" | "UPSTREAM_HOST" | "LISTENER" | "VIRTUAL_HOST", _)) => {
                    Ok(Operator::Never)
                }
                _ => Err("`%METADATA%` needs a kind, a filter and a key".to_owned()),
            },
            "CEL" => Expression::compile(needed()?)
                .map(|expression| Operator::Cel(Box::new(expression)))
                .map_err(|error| format!("the expression of `%CEL%` {error}")),
            // A text that does not change while the process runs.
            "ENVIRONMENT" => Ok(match std::env::var(needed()?) {
                Ok(value) => Operator::Fixed(value.into()),
                Err(_) => Operator::Never,
            }),
            "STREAM_ID" => Ok(Operator::Request(HeaderKey::parse("x-request-id")?, None)),
            _ if NEVER.contains(&name) => Ok(Operator::Never),
            _ => Err(format!("`%{name}%` is not known")),
        }
    }
}

fn filter_state(arguments: &str, in_log: bool) -> Result<Operator, String> {
    let mut parts = arguments.splitn(3, ':');
    let key = parts.next().unwrap_or_default();
    let form = match (parts.next(), parts.next()) {
        (Some("PLAIN"), None) => PeerForm::Plain,
        (None | Some("TYPED"), None) => PeerForm::Typed,
        (Some("FIELD"), Some(field)) => PeerForm::Field(field.into()),
        _ => return Err("`%FILTER_STATE%` takes a key and PLAIN, TYPED or FIELD:name".to_owned()),
    };
    match key {
        "io.istio.peer_principal" => Ok(Operator::Text(Text::PeerUriSan)),
        "io.istio.local_principal" => Ok(Operator::Text(Text::LocalUriSan)),
        "downstream_peer" | "downstream_peer_obj" if in_log => {
            Ok(Operator::Peer(End::Source, form))
        }
        "upstream_peer" | "upstream_peer_obj" if in_log => {
            Ok(Operator::Peer(End::Destination, form))
        }
        _ if in_log => Err(format!("`{key}` of `%FILTER_STATE%` is not known")),
        _ => Err(
            "`%FILTER_STATE%` knows `io.istio.peer_principal` and `io.istio.local_principal` only"
                .to_owned(),
        ),
    }
}

fn metadata(arguments: &str) -> Result<Operator, String> {
    match arguments.split_once(':') {
        Some((filter, key)) => Ok(Operator::Metadata(filter.into(), key.into())),
        // All that a filter found out.
        None => Ok(Operator::Never),
    }
}

/// `%COMMON_DURATION(START:END:UNIT)%`
fn span(arguments: &str) -> Result<Operator, String> {
    let moment = |name: &str| match name {
        "DS_RX_BEG" => Ok(Moment::Start),
        "DS_RX_END" => Ok(Moment::RequestReceived),
        "US_CX_BEG" | "US_TX_BEG" => Ok(Moment::UpstreamBegun),
        "US_TX_END" => Ok(Moment::RequestSent),
        "US_RX_BEG" | "DS_TX_BEG" => Ok(Moment::ResponseStarted),
        "US_RX_END" => Ok(Moment::ResponseEnded),
        "DS_TX_END" => Ok(Moment::End),
        _ => Err(format!("`{name}` of `%COMMON_DURATION%` is not known")),
    };
    let [from, to, unit] = arguments.split(':').collect::<Vec<_>>()[..] else {
        return Err("`%COMMON_DURATION%` takes two moments and a unit".to_owned());
    };
    let unit = match unit {
        "ms" => MILLISECOND,
        "us" => 1_000,
        "ns" => 1,
        _ => return Err(format!("`{unit}` of `%COMMON_DURATION%` is not ms, us or ns")),
    };
    Ok(Operator::Span(moment(from)?, moment(to)?, unit))
}
