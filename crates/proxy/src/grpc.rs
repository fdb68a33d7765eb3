//! gRPC as HTTP sees it: statuses, timeouts, messages.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::time::Duration;

/// Whether a request is gRPC: `content-type: application/grpc`, alone or with a `+` suffix (Envoy: `isGrpcContentType`).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return false;
    };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some([]) => values.next().is_none(), // Envoy: several are one, joined by commas
        Some(rest) => matches!(rest.first(), Some(b'+' | b';')),
        None => false,
    }
}

/// The status of a reply that we make ourselves (Envoy: `httpToGrpcStatus`; 504 is DEADLINE_EXCEEDED, which
/// Envoy reports as UNAVAILABLE: docs/differences.md).
pub(crate) fn status_of(http: StatusCode) -> u32 {
    match http.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        504 => 4,
        429 | 502 | 503 => 14,
        _ => 2,
    }
}

/// `grpc-status` of a response's head (trailers-only) or trailers.
pub(crate) fn status_in(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// How long a call may take.
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The value of `grpc-timeout` for this time, in the finest unit from milliseconds up that has room for it.
pub(crate) fn timeout(time: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match time.as_millis() {
        millis if millis <= MOST => format!("{millis}m"),
        millis => format!("{}S", (millis / 1000).min(MOST)),
    }
}

/// `grpc-timeout`: up to 8 digits and a unit (gRPC over HTTP/2: Requests).
pub(crate) fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// `grpc-message`: percent-encoded outside printable ASCII.
pub(crate) fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1x", None),
            ("-1S", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(timeout_in(&headers), expected, "{text}");
        }
    }

    #[test]
    fn timeouts_have_eight_digits() {
        for (seconds, text) in [(2, "2000m"), (99_999, "99999000m"), (100_000, "100000S")] {
            assert_eq!(timeout(Duration::from_secs(seconds)), text);
        }
        assert_eq!(timeout(Duration::MAX), "99999999S");
    }

    #[test]
    fn messages_are_printable() {
        assert_eq!(message("a%b\nc"), "a%25b%0Ac");
    }

    #[test]
    fn two_content_types_are_none() {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("application/grpc"));
        assert!(is_grpc(&headers));
        headers.append("content-type", HeaderValue::from_static("application/grpc"));
        assert!(!is_grpc(&headers));
    }

    #[test]
    fn content_types() {
        for (text, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", text.parse().unwrap());
            assert_eq!(is_grpc(&headers), grpc, "{text}");
        }
    }
}
