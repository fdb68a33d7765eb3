//! Values as text. Envoy: `Expr::print`; durations and times as Abseil writes them.

use super::Value;
use crate::format::time::TimeFormat;
use std::borrow::Cow;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The value of an attribute.
pub(super) fn value(from: Value<'_>) -> Cow<'_, str> {
    match from {
        Value::Text(text) => text,
        Value::Int(number) => number.to_string().into(),
        Value::Uint(number) => number.to_string().into(),
        Value::Bool(true) => "true".into(),
        Value::Bool(false) => "false".into(),
        Value::Duration(value) => duration(value).into(),
        Value::Time(value) => time(value).into(),
    }
}

/// What an expression came to.
pub(super) fn result(from: &cel::Value) -> String {
    match from {
        cel::Value::Bool(value) => value.to_string(),
        cel::Value::Int(number) => number.to_string(),
        cel::Value::UInt(number) => number.to_string(),
        cel::Value::Float(number) => number.to_string(),
        cel::Value::String(text) => text.as_ref().clone(),
        cel::Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        cel::Value::Null => "NULL".to_owned(),
        other => format!("{} value", other.type_of()),
    }
}

/// `1m2.5s`, `12.5ms`, `0`.
fn duration(from: Duration) -> String {
    let nanos = from.as_nanos();
    let scaled = |value: f64| {
        let text = format!("{value:.9}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}us", scaled(nanos as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{}ms", scaled(nanos as f64 / 1e6)),
        _ => {
            let (hours, minutes) = (from.as_secs() / 3600, from.as_secs() / 60 % 60);
            let seconds = (from.as_secs() % 60) as f64 + f64::from(from.subsec_nanos()) / 1e9;
            let mut text = String::new();
            // Writing to a String cannot fail.
            if hours > 0 {
                let _ = write!(text, "{hours}h");
            }
            if minutes > 0 {
                let _ = write!(text, "{minutes}m");
            }
            if seconds > 0.0 {
                let _ = write!(text, "{}s", scaled(seconds));
            }
            text
        }
    }
}

/// `2026-01-31T12:00:00.25+00:00`
fn time(from: SystemTime) -> String {
    let mut text = String::new();
    TimeFormat::seconds().render(from, &mut text);
    let nanos = from.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    if nanos > 0 {
        let fraction = format!(".{nanos:09}");
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push_str("+00:00");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_abseil_writes() {
        for (nanos, expected) in [
            (0, "0"),
            (7, "7ns"),
            (1_500, "1.5us"),
            (12_000_000, "12ms"),
            (12_345_678, "12.345678ms"),
            (1_000_000_000, "1s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), expected);
        }
        assert_eq!(time(UNIX_EPOCH), "1970-01-01T00:00:00+00:00");
        let later = UNIX_EPOCH + Duration::from_millis(1_250);
        assert_eq!(time(later), "1970-01-01T00:00:01.25+00:00");
    }
}
