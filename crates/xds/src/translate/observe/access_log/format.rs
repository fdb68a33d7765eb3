//! How lines are made. Envoy: `SubstitutionFormatString`.

use super::Subject;
use cairn_proto::envoy as pb;
use cairn_router::format::Format;
use cairn_router::spec::{Line, LogFormat, LogValue};
use pb::envoy::config::core::v3::SubstitutionFormatString;
use pb::envoy::config::core::v3::data_source::Specifier;
use pb::envoy::config::core::v3::substitution_format_string::Format as From;
use pb::google::protobuf::{Struct, Value, value};
use std::collections::BTreeMap;

/// Envoy's, where nothing is configured.
const DEFAULT: &str = concat!(
    r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" "#,
    r#"%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "#,
    r#"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "#,
    r#""%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%""#,
    "\n"
);
/// Formatters whose operators are always known.
const FORMATTERS: [&str; 3] =
    ["envoy.formatter.req_without_query", "envoy.formatter.cel", "envoy.formatter.metadata"];
/// Longest text in bytes.
const MAX_TEXT: usize = 64 << 10;
/// Deepest value, and most values of one log.
const MAX_DEPTH: usize = 16;
const MAX_VALUES: usize = 1024;

/// A format, or Envoy's.
#[allow(deprecated)]
pub(super) fn or_default(
    from: Option<SubstitutionFormatString>,
    subject: &mut Subject<'_>,
) -> LogFormat {
    let SubstitutionFormatString {
        omit_empty_values,
        content_type: _,
        formatters,
        json_format_options: _,
        format,
    } = from.unwrap_or_default();
    for formatter in &formatters {
        if !FORMATTERS.contains(&formatter.name.as_str()) {
            subject.degrade(format!("the formatter `{}` is not known", formatter.name));
        }
    }
    let made = match format {
        Some(From::TextFormat(format)) => text(format, subject),
        Some(From::JsonFormat(format)) => json(format, subject),
        Some(From::TextFormatSource(source)) => match source.specifier {
            Some(Specifier::InlineString(format)) => text(format, subject),
            Some(Specifier::InlineBytes(format)) => {
                text(String::from_utf8_lossy(&format).into_owned(), subject)
            }
            _ => {
                subject.degrade("a log's format that is not in the configuration is not read");
                text(DEFAULT.to_owned(), subject)
            }
        },
        None => text(DEFAULT.to_owned(), subject),
    };
    LogFormat { omit_empty: omit_empty_values, ..made }
}

/// A line of text.
pub(super) fn text(from: String, subject: &mut Subject<'_>) -> LogFormat {
    LogFormat { line: Line::Text(checked(from, subject)), omit_empty: false }
}

/// A line of JSON.
pub(super) fn json(from: Struct, subject: &mut Subject<'_>) -> LogFormat {
    let mut left = MAX_VALUES;
    LogFormat { line: Line::Json(fields(from, subject, &mut left, 0)), omit_empty: false }
}

/// What is not known in a text is listed.
pub(super) fn checked(text: String, subject: &mut Subject<'_>) -> String {
    if text.len() > MAX_TEXT {
        subject.degrade(format!("a log's format of more than {MAX_TEXT} bytes is left out"));
        return "\n".to_owned();
    }
    for what in Format::parse_for_log(&text).1 {
        subject.degrade(format!("in an access log {what}: `-` is written"));
    }
    text
}

fn fields(
    from: Struct,
    subject: &mut Subject<'_>,
    left: &mut usize,
    depth: usize,
) -> BTreeMap<String, LogValue> {
    let mut fields = BTreeMap::new();
    for (name, node) in from.fields {
        if let Some(node) = value(node, subject, left, depth + 1) {
            fields.insert(name, node);
        }
    }
    fields
}

fn value(
    from: Value,
    subject: &mut Subject<'_>,
    left: &mut usize,
    depth: usize,
) -> Option<LogValue> {
    if depth > MAX_DEPTH || *left == 0 {
        subject.degrade("an access log with too many values is written in part");
        return None;
    }
    *left -= 1;
    Some(match from.kind {
        None | Some(value::Kind::NullValue(_)) => LogValue::Null,
        Some(value::Kind::BoolValue(yes)) => LogValue::Bool(yes),
        Some(value::Kind::NumberValue(number)) => LogValue::Number(number),
        Some(value::Kind::StringValue(text)) => LogValue::Text(checked(text, subject)),
        Some(value::Kind::StructValue(from)) => LogValue::Map(fields(from, subject, left, depth)),
        Some(value::Kind::ListValue(list)) => {
            let values = list.values.into_iter();
            LogValue::List(
                values.filter_map(|node| value(node, subject, left, depth + 1)).collect(),
            )
        }
    })
}
