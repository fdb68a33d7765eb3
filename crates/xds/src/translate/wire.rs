//! Reading protobuf: what the published messages lack, and how `Any`s are opened.

use cairn_proto::envoy as pb;
use pb::google::protobuf::{Any, Duration as Span, Struct, value};
use pb::xds::core::v3::CidrRange;
use pb::xds::r#type::matcher::v3::matcher::OnMatch;
use prost::Message;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// `xds.type.matcher.v3.IPMatcher`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    pub range_matchers: Vec<IpRangeMatcher>,
}

/// `xds.type.matcher.v3.IPMatcher.IPRangeMatcher`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    pub on_match: Option<OnMatch>,
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
}

/// `udpa.type.v1.TypedStruct` and `xds.type.v3.TypedStruct`, which have the same fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypedStruct {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

/// Bytes that are no message of their type: the resource they are in is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undecodable {
    message: String,
    reason: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not decode: {}", self.message, self.reason)
    }
}

/// A message, and whether nothing of its bytes was left unread.
pub(super) struct Read<M> {
    pub message: M,
    /// `false`: it has fields that this version does not know.
    pub whole: bool,
}

/// Longest time that is carried: ten years. Longer ones are cut to it.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Decodes one message; `name` is what errors call it.
pub(super) fn decode<M: Message + Default>(
    name: &str,
    bytes: &[u8],
) -> Result<Read<M>, Undecodable> {
    match M::decode(bytes) {
        Ok(message) => {
            let whole = message.encoded_len() == bytes.len();
            Ok(Read { message, whole })
        }
        Err(error) => Err(Undecodable { message: name.to_owned(), reason: error.to_string() }),
    }
}

/// Opens an `Any` as `M`, whose type was looked at before.
pub(super) fn open<M: Message + Default>(any: &Any) -> Result<Read<M>, Undecodable> {
    decode(type_name(any), &any.value)
}

/// Full name of the message in an `Any`.
pub(super) fn type_name(any: &Any) -> &str {
    name_of(&any.type_url)
}

fn name_of(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// What the message in an `Any` is: messages that Envoy carries as a `TypedStruct` go by the type of what is
/// in it.
pub(super) enum Content<'a> {
    Message(&'a str),
    Structured(String),
}

impl Content<'_> {
    pub(super) fn of(any: &Any) -> Result<Content<'_>, Undecodable> {
        match type_name(any) {
            "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => {
                let TypedStruct { type_url, value: _ } = open::<TypedStruct>(any)?.message;
                Ok(Content::Structured(name_of(&type_url).to_owned()))
            }
            name => Ok(Content::Message(name)),
        }
    }

    /// For reasons that people read.
    pub(super) fn name(&self) -> &str {
        match self {
            Content::Message(name) => name,
            Content::Structured(name) => name,
        }
    }
}

/// A span of time; negative ones are 0.
pub(super) fn duration(span: &Span) -> Duration {
    let seconds = u64::try_from(span.seconds).unwrap_or(0);
    let nanos = u32::try_from(span.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(seconds.min(LONGEST.as_secs()), nanos).min(LONGEST)
}

/// The text at a key of a struct.
pub(super) fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key)?.kind.as_ref()? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The first struct of the list at a key of a struct.
pub(super) fn first<'a>(fields: &'a Struct, key: &str) -> Option<&'a Struct> {
    match fields.fields.get(key)?.kind.as_ref()? {
        value::Kind::ListValue(list) => match list.values.first()?.kind.as_ref()? {
            value::Kind::StructValue(inner) => Some(inner),
            _ => None,
        },
        _ => None,
    }
}

/// All of a struct's texts; `None` if it holds anything else.
pub(super) fn texts(fields: &Struct) -> Option<BTreeMap<String, String>> {
    let pair = |(key, value): (&String, &pb::google::protobuf::Value)| match value.kind.as_ref() {
        Some(value::Kind::StringValue(text)) => Some((key.clone(), text.clone())),
        _ => None,
    };
    fields.fields.iter().map(pair).collect()
}

/// `true` only if it is there and true.
pub(super) fn is_true(value: &Option<pb::google::protobuf::BoolValue>) -> bool {
    value.as_ref().is_some_and(|value| value.value)
}

/// The fraction in percent, 0 to 100.
pub(super) fn percent(fraction: &pb::envoy::r#type::v3::FractionalPercent) -> f64 {
    use pb::envoy::r#type::v3::fractional_percent::DenominatorType;
    let of = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
        _ => 100.0,
    };
    (f64::from(fraction.numerator) * 100.0 / of).min(100.0)
}

/// The network of a range of Envoy's; `None` if it is none.
pub(super) fn network(address: &str, length: Option<u32>) -> Option<ipnet::IpNet> {
    let address: std::net::IpAddr = address.parse().ok()?;
    let length = u8::try_from(length?).ok()?;
    ipnet::IpNet::new(address, length).ok().map(|network| network.trunc())
}
