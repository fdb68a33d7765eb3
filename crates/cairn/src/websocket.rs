//! As much of WebSocket (RFC 6455) as `curl --upgrade` and the demo need: the handshake's key
//! and unfragmented messages of at most 64 KiB. No extensions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message that is read.
const MAX_MESSAGE_BYTES: u64 = 64 * 1024;

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Who sends a frame: clients must mask, servers must not (RFC 6455 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Masks what it sends.
    Client,
    /// Does not.
    Server,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// UTF-8.
    Text(String),
    /// Anything.
    Binary(Vec<u8>),
    /// To be answered by a pong with the same payload.
    Ping(Vec<u8>),
    /// The answer to a ping.
    Pong(Vec<u8>),
    /// The end, with the sender's status code and reason as they came.
    Close(Vec<u8>),
}

impl Message {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Message::Text(text) => (0x1, text.as_bytes()),
            Message::Binary(bytes) => (0x2, bytes),
            Message::Close(bytes) => (0x8, bytes),
            Message::Ping(bytes) => (0x9, bytes),
            Message::Pong(bytes) => (0xA, bytes),
        }
    }
}

/// A fresh `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    STANDARD.encode(rand::random::<[u8; 16]>())
}

/// The headers by which a client asks for the upgrade.
pub fn request_headers(key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::try_from(key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    headers
}

/// The `Sec-WebSocket-Accept` that proves that the server understood `key`.
pub fn accept_for(key: &str) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.trim().as_bytes());
    context.update(GUID.as_bytes());
    STANDARD.encode(context.finish())
}

/// Sends one message as one frame and flushes it.
pub async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    role: Role,
    message: &Message,
) -> io::Result<()> {
    let (opcode, payload) = message.parts();
    let mask_bit = if role == Role::Client { 0x80 } else { 0 };
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | opcode);
    match payload.len() {
        short @ 0..126 => frame.push(mask_bit | short as u8),
        medium @ 126..65_536 => {
            frame.push(mask_bit | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(mask_bit | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    match role {
        Role::Client => {
            let mask = rand::random::<[u8; 4]>();
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
        Role::Server => frame.extend_from_slice(payload),
    }
    io.write_all(&frame).await?;
    io.flush().await
}

/// Reads one message. `None` when the peer ended the stream between messages.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Message>> {
    let first = match io.read_u8().await {
        Ok(byte) => byte,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if first & 0x70 != 0 {
        return Err(invalid("a frame uses an extension that nobody agreed to"));
    }
    if first & 0x80 == 0 {
        return Err(invalid("fragmented messages are not read"));
    }
    let second = io.read_u8().await?;
    let length = match second & 0x7F {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        short => u64::from(short),
    };
    if length > MAX_MESSAGE_BYTES {
        return Err(invalid("a message is longer than 64 KiB"));
    }
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length as usize];
    io.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some(match first & 0x0F {
        0x1 => Message::Text(
            String::from_utf8(payload).map_err(|_| invalid("a text message is not UTF-8"))?,
        ),
        0x2 => Message::Binary(payload),
        0x8 => Message::Close(payload),
        0x9 => Message::Ping(payload),
        0xA => Message::Pong(payload),
        _ => return Err(invalid("a frame has an unknown opcode")),
    }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_example_of_the_rfc() {
        assert_eq!(accept_for("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(STANDARD.decode(new_key()).unwrap().len(), 16);
    }

    #[tokio::test]
    async fn reads_what_it_writes_in_all_length_forms() {
        for length in [0, 1, 125, 126, 300, 65_535, 65_536] {
            for role in [Role::Client, Role::Server] {
                let sent = Message::Binary(vec![7; length]);
                let mut wire = Vec::new();
                write(&mut wire, role, &sent).await.unwrap();
                assert_eq!(read(&mut wire.as_slice()).await.unwrap(), Some(sent));
            }
        }
    }

    #[tokio::test]
    async fn bad_frames_are_errors_and_the_end_is_none() {
        assert_eq!(read(&mut [].as_slice()).await.unwrap(), None);
        let too_long = [0x82, 127, 0, 0, 0, 0, 0, 2, 0, 0];
        for wire in
            [&[0x01, 0][..], &[0xC1, 0], &[0x83, 0], &too_long, &[0x81, 5, b'a'], &[0x81, 1, 0xFF]]
        {
            assert!(read(&mut &wire[..]).await.is_err(), "{wire:?}");
        }
    }
}
