//! What a tunnel carries, by its first bytes: HTTP/1, HTTP/2 or something else.
//!
//! As Envoy's `http_inspector`: the HTTP/2 preface, or a request line that ends in an
//! HTTP version. Decided at the first byte that settles it; nothing is consumed.

use crate::head::HeadBuffer;
use bytes::Bytes;
use cairn_hbone::TunnelStream;
use std::time::Duration;

/// What HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line that is not over by then is none.
const MAX_LINE: usize = 8 * 1024;
/// No method is longer.
const MAX_METHOD: usize = 32;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    Other,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    /// Anything that is not HTTP/2 is HTTP/1: a port that is known to be HTTP.
    pub(crate) http_only: bool,
    /// HTTP/1.0 counts as HTTP (Envoy: only where it is accepted).
    pub(crate) http_10: bool,
    /// How long the client may be silent; then it is `Other`.
    pub(crate) patience: Duration,
}

/// Reads as much as it takes. The bytes read come back with the answer; `None`: the client left without a byte.
pub(crate) async fn detect(
    stream: &mut TunnelStream,
    question: Question,
) -> Option<(Protocol, Bytes)> {
    let mut buffer = HeadBuffer::default();
    let reading = async {
        loop {
            let bytes = buffer.take();
            let answer = judge(&bytes, question);
            buffer.restore(bytes);
            if let Some(protocol) = answer {
                return Some(protocol);
            }
            match stream.reader().chunk().await {
                Some(Ok(chunk)) => buffer.push(chunk),
                Some(Err(_)) => return None,
                None if buffer.is_empty() => return None,
                None => return Some(fallback(question)),
            }
        }
    };
    let protocol = if question.http_only {
        reading.await?
    } else {
        match tokio::time::timeout(question.patience, reading).await {
            Ok(protocol) => protocol?,
            Err(_) => Protocol::Other,
        }
    };
    Some((protocol, buffer.take()))
}

fn fallback(question: Question) -> Protocol {
    if question.http_only { Protocol::Http1 } else { Protocol::Other }
}

/// `None`: more bytes are needed.
fn judge(bytes: &[u8], question: Question) -> Option<Protocol> {
    if bytes.is_empty() {
        return None;
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Protocol::Http2);
    }
    if question.http_only {
        return Some(Protocol::Http1);
    }
    let method = bytes
        .iter()
        .position(|byte| !(byte.is_ascii_uppercase() || *byte == b'-' || *byte == b'_'))
        .unwrap_or(bytes.len());
    if method > MAX_METHOD || (method < bytes.len() && (method == 0 || bytes[method] != b' ')) {
        return Some(Protocol::Other);
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return (bytes.len() > MAX_LINE).then_some(Protocol::Other);
    };
    let line = bytes[..end].trim_ascii_end();
    let http = line.ends_with(b" HTTP/1.1") || (question.http_10 && line.ends_with(b" HTTP/1.0"));
    Some(if http { Protocol::Http1 } else { Protocol::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(http_only: bool) -> Question {
        Question { http_only, http_10: false, patience: Duration::ZERO }
    }

    #[test]
    fn the_first_byte_that_settles_it_is_enough() {
        for (bytes, protocol) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", Some(Protocol::Http2)),
            (b"GET /", None),
            (b"GET / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"POST / HTTP/1.1\n", Some(Protocol::Http1)),
            (b"GET / HTTP/1.0\r\n", Some(Protocol::Other)),
            (b"\x16\x03\x01", Some(Protocol::Other)),
            (b"get / HTTP/1.1\r\n", Some(Protocol::Other)),
            (b"HELO x\r\n", Some(Protocol::Other)),
            (b"*1\r\n$4", Some(Protocol::Other)),
        ] {
            assert_eq!(judge(bytes, ask(false)), protocol, "{bytes:?}");
        }
        assert_eq!(judge(b"x", ask(true)), Some(Protocol::Http1));
        assert_eq!(judge(b"PRI", ask(true)), None);
    }
}
