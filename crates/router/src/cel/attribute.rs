//! Attributes by their names. Envoy: "Attributes"; Istio adds the peers in `filter_state`.

use crate::format::{Facts, Peer, protocol};
use crate::request::{HeaderKey, Headers};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A number.
    Int(i64),
    /// A number that is not negative.
    Uint(u64),
    /// A truth value.
    Bool(bool),
    /// A time span; in expressions a number of nanoseconds.
    Duration(Duration),
    /// A point in time; in expressions nanoseconds since 1970.
    Time(SystemTime),
}

/// An attribute's name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attribute {
    Field(Field),
    RequestHeader(HeaderKey),
    ResponseHeader(HeaderKey),
    Trailer(HeaderKey),
    Source(Box<str>),
    Destination(Box<str>),
    /// Filter and key.
    Metadata(Box<str>, Box<str>),
    /// Has never a value here: its name.
    Unknown(Box<str>),
}

/// One constant per attribute, and the table of their names.
macro_rules! fields {
    ($($name:ident $root:literal $field:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field { $($name),* }

        const FIELDS: &[(&str, &str, Field)] = &[$(($root, $field, Field::$name)),*];
    };
}

fields! {
    RequestPath "request" "path";
    RequestUrlPath "request" "url_path";
    RequestHost "request" "host";
    RequestScheme "request" "scheme";
    RequestMethod "request" "method";
    RequestReferer "request" "referer";
    RequestUserAgent "request" "useragent";
    RequestTime "request" "time";
    RequestId "request" "id";
    RequestProtocol "request" "protocol";
    RequestQuery "request" "query";
    RequestDuration "request" "duration";
    RequestSize "request" "size";
    RequestTotalSize "request" "total_size";
    RequestHeadersBytes "request" "headers_bytes";
    ResponseCode "response" "code";
    ResponseCodeDetails "response" "code_details";
    ResponseFlags "response" "flags";
    ResponseGrpcStatus "response" "grpc_status";
    ResponseSize "response" "size";
    ResponseTotalSize "response" "total_size";
    ResponseHeadersBytes "response" "headers_bytes";
    ResponseBackendLatency "response" "backend_latency";
    ConnectionMtls "connection" "mtls";
    ConnectionServerName "connection" "requested_server_name";
    ConnectionTlsVersion "connection" "tls_version";
    ConnectionUriSanPeer "connection" "uri_san_peer_certificate";
    ConnectionUriSanLocal "connection" "uri_san_local_certificate";
    ConnectionTermination "connection" "termination_details";
    UpstreamAddress "upstream" "address";
    UpstreamPort "upstream" "port";
    UpstreamLocalAddress "upstream" "local_address";
    UpstreamTransportFailure "upstream" "transport_failure_reason";
    UpstreamAttempts "upstream" "request_attempt_count";
    SourceAddress "source" "address";
    SourcePort "source" "port";
    DestinationAddress "destination" "address";
    DestinationPort "destination" "port";
    ClusterName "xds" "cluster_name";
    RouteName "xds" "route_name";
    VirtualHostName "xds" "virtual_host_name";
    PeerPrincipal "filter_state" "io.istio.peer_principal";
    LocalPrincipal "filter_state" "io.istio.local_principal";
}

impl Attribute {
    /// Understands a name by its segments.
    pub(super) fn of(path: &[&str]) -> Attribute {
        let unknown = || Attribute::Unknown(path.join(".").into());
        let header = |name: &str, make: fn(HeaderKey) -> Attribute| {
            HeaderKey::parse(name).map_or_else(|_| unknown(), make)
        };
        match path {
            ["request", "headers", name] => header(name, Attribute::RequestHeader),
            ["response", "headers", name] => header(name, Attribute::ResponseHeader),
            ["response", "trailers", name] => header(name, Attribute::Trailer),
            ["filter_state", "downstream_peer" | "downstream_peer_obj", field] if known(field) => {
                Attribute::Source((*field).into())
            }
            ["filter_state", "upstream_peer" | "upstream_peer_obj", field] if known(field) => {
                Attribute::Destination((*field).into())
            }
            ["metadata", "filter_metadata", filter, key] => {
                Attribute::Metadata((*filter).into(), (*key).into())
            }
            [root, name] => {
                let mut fields = FIELDS.iter();
                match fields.find(|(of, field, _)| of == root && field == name) {
                    Some((_, _, field)) => Attribute::Field(*field),
                    None => unknown(),
                }
            }
            _ => unknown(),
        }
    }

    /// The name of what is not known.
    pub(super) fn unknown(&self) -> Option<&str> {
        match self {
            Attribute::Unknown(name) => Some(name),
            _ => None,
        }
    }

    /// `None`: there is no value.
    pub(super) fn value<'a>(&self, facts: &Facts<'a>) -> Option<Value<'a>> {
        let peer = |peer: Option<Peer<'a>>, field: &str| {
            Some(Value::Text(Cow::Borrowed(peer?.field(field)?)))
        };
        match self {
            Attribute::Field(field) => field.value(facts),
            Attribute::RequestHeader(key) => header(facts.request, key),
            Attribute::ResponseHeader(key) => header(facts.response, key),
            Attribute::Trailer(key) => {
                header(facts.context.trailers.map(|trailers| trailers as &dyn Headers), key)
            }
            Attribute::Source(field) => peer(facts.context.source, field),
            Attribute::Destination(field) => peer(facts.context.destination, field),
            Attribute::Metadata(filter, key) => {
                let mut metadata = facts.context.metadata.iter();
                let found = metadata.find(|(of, name, _)| *of == &**filter && *name == &**key)?;
                Some(Value::Text(Cow::Borrowed(found.2)))
            }
            Attribute::Unknown(_) => None,
        }
    }
}

fn known(field: &str) -> bool {
    Peer::default().fields().iter().any(|(name, _)| *name == field)
}

fn header<'a>(headers: Option<&'a dyn Headers>, key: &HeaderKey) -> Option<Value<'a>> {
    Some(Value::Text(match headers?.first(key)? {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }))
}

fn text(value: Option<&str>) -> Option<Value<'_>> {
    value.map(|text| Value::Text(Cow::Borrowed(text)))
}

fn address<'a>(value: Option<SocketAddr>) -> Option<Value<'a>> {
    value.map(|address| Value::Text(Cow::Owned(address.to_string())))
}

fn port<'a>(value: Option<SocketAddr>) -> Option<Value<'a>> {
    value.map(|address| Value::Int(i64::from(address.port())))
}

fn size<'a>(value: Option<u64>) -> Option<Value<'a>> {
    value.map(|bytes| Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX)))
}

/// What stands before and behind the `?` of a path.
fn split(path: Value<'_>) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    match path {
        Value::Text(Cow::Borrowed(path)) => {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            Some((Cow::Borrowed(path), Cow::Borrowed(query)))
        }
        Value::Text(Cow::Owned(path)) => {
            let (path, query) = path.split_once('?').unwrap_or((&path, ""));
            Some((Cow::Owned(path.to_owned()), Cow::Owned(query.to_owned())))
        }
        _ => None,
    }
}

impl Field {
    fn value<'a>(self, facts: &Facts<'a>) -> Option<Value<'a>> {
        let known = facts.context;
        let request = |key: &HeaderKey| header(facts.request, key);
        let named = |name| request(&HeaderKey::Name(http::HeaderName::from_static(name)));
        match self {
            Field::RequestPath => request(&HeaderKey::Path),
            Field::RequestUrlPath => {
                split(request(&HeaderKey::Path)?).map(|(path, _)| Value::Text(path))
            }
            Field::RequestQuery => {
                split(request(&HeaderKey::Path)?).map(|(_, query)| Value::Text(query))
            }
            Field::RequestHost => request(&HeaderKey::Authority),
            Field::RequestScheme => request(&HeaderKey::Scheme),
            Field::RequestMethod => request(&HeaderKey::Method),
            Field::RequestReferer => named("referer"),
            Field::RequestUserAgent => named("user-agent"),
            Field::RequestId => named("x-request-id"),
            Field::RequestTime => known.start_time.map(Value::Time),
            Field::RequestProtocol => text(known.protocol.map(protocol)),
            // Envoy: of the whole request, which is complete only at its end.
            Field::RequestDuration => known.duration.map(Value::Duration),
            Field::RequestSize => match named("content-length") {
                Some(Value::Text(length)) => length.parse().ok().map(Value::Int),
                _ => size(known.bytes_received),
            },
            Field::RequestTotalSize => {
                size(Some(known.bytes_received? + known.request_header_bytes.unwrap_or_default()))
            }
            Field::RequestHeadersBytes => size(known.request_header_bytes),
            Field::ResponseCode => known.response_code.map(|code| Value::Int(i64::from(code))),
            Field::ResponseCodeDetails => text(known.response_code_details),
            Field::ResponseFlags => Some(Value::Int(flags(known.response_flags))),
            Field::ResponseGrpcStatus => {
                known.grpc_status.map(|status| Value::Int(i64::from(status)))
            }
            Field::ResponseSize => size(known.bytes_sent),
            Field::ResponseTotalSize => {
                size(Some(known.bytes_sent? + known.response_header_bytes.unwrap_or_default()))
            }
            Field::ResponseHeadersBytes => size(known.response_header_bytes),
            Field::ResponseBackendLatency => {
                let ended = known.response_ended?;
                ended.checked_sub(known.upstream_begun?).map(Value::Duration)
            }
            Field::ConnectionMtls => Some(Value::Bool(known.peer_uri_san.is_some())),
            Field::ConnectionServerName => text(Some(known.requested_server_name.unwrap_or(""))),
            Field::ConnectionTlsVersion => text(known.tls_version),
            Field::ConnectionUriSanPeer | Field::PeerPrincipal => text(known.peer_uri_san),
            Field::ConnectionUriSanLocal | Field::LocalPrincipal => text(known.local_uri_san),
            Field::ConnectionTermination => text(known.connection_termination_details),
            Field::UpstreamAddress => address(known.upstream_host),
            Field::UpstreamPort => port(known.upstream_host),
            Field::UpstreamLocalAddress => address(known.upstream_local),
            Field::UpstreamTransportFailure => {
                text(Some(known.upstream_transport_failure.unwrap_or("")))
            }
            Field::UpstreamAttempts => {
                Some(Value::Uint(u64::from(known.upstream_attempts.unwrap_or_default())))
            }
            Field::SourceAddress => address(known.downstream_remote),
            Field::SourcePort => port(known.downstream_remote),
            Field::DestinationAddress => address(known.downstream_local),
            Field::DestinationPort => port(known.downstream_local),
            Field::ClusterName => text(known.upstream_cluster),
            Field::RouteName => text(known.route_name),
            Field::VirtualHostName => text(known.virtual_host_name),
        }
    }
}

/// The flags as Envoy numbers them: bit i is the flag at place i.
fn flags(codes: Option<&str>) -> i64 {
    let place = |code: &str| crate::format::FLAGS.iter().position(|(known, _)| *known == code);
    let codes = codes.unwrap_or_default().split(',');
    codes.filter_map(place).fold(0, |bits, place| bits | 1 << place)
}
