//! The gRPC framing that a unary echo needs: one length-prefixed message with one string field.

use bytes::{BufMut, Bytes, BytesMut};

/// Method of the demo's service.
pub const METHOD: &str = "/demo.Echo/Say";

/// `message Words { string text = 1; }`, framed, uncompressed.
pub fn frame(text: &str) -> Bytes {
    let mut message = BytesMut::with_capacity(text.len() + 8);
    message.put_u8(0x0A);
    put_varint(&mut message, text.len());
    message.put_slice(text.as_bytes());
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// The text of a framed message; `None` when it is not one.
pub fn text(frame: &[u8]) -> Option<&str> {
    let (prefix, message) = frame.split_at_checked(5)?;
    let [0, a, b, c, d] = *prefix else { return None };
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return None;
    }
    let (length, text) = take_varint(message.strip_prefix(&[0x0A])?)?;
    (text.len() == length).then_some(text).and_then(|text| std::str::from_utf8(text).ok())
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn take_varint(mut bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        bytes = rest;
        value |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some((value, bytes));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_frames_and_nothing_else() {
        for length in [0, 1, 127, 128, 20_000] {
            let words = "x".repeat(length);
            assert_eq!(text(&frame(&words)), Some(words.as_str()));
        }
        assert_eq!(text(b""), None);
        assert_eq!(text(&[1, 0, 0, 0, 2, 0x0A, 0]), None);
        assert_eq!(text(&[0, 0, 0, 0, 9, 0x0A, 0]), None);
        assert_eq!(text(&[0, 0, 0, 0, 2, 0x12, 0]), None);
    }
}
