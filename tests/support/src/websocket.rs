//! As much of WebSocket (RFC 6455) as it takes to see that both ends talk through an upgrade.

use crate::http1::{Http1, Response, message};
use crate::wire::Wire;
use bytes::Bytes;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// The key of the example in RFC 6455 §1.3, which all our clients send.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Frame types.
pub mod opcode {
    /// Text.
    pub const TEXT: u8 = 1;
    /// Binary.
    pub const BINARY: u8 = 2;
    /// Close.
    pub const CLOSE: u8 = 8;
}

/// A client's end.
#[derive(Debug)]
pub struct WebSocket<S> {
    /// For raw bytes.
    pub wire: Wire<S>,
}

/// Asks for `websocket`; `Err` is a response that is not 101.
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    mut http: Http1<S>,
    path: &str,
) -> io::Result<Result<(WebSocket<S>, Response), Response>> {
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ];
    http.send(message("GET", path, &headers, b"")).await?;
    let response = http.response().await?;
    if response.status != 101 {
        return Ok(Err(response));
    }
    if response.header("sec-websocket-accept") != Some(ACCEPT) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{response:?}")));
    }
    Ok(Ok((WebSocket { wire: http.wire }, response)))
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Sends a masked frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.wire.send(&frame(opcode, payload, Some([7, 1, 9, 3]))).await
    }

    /// Receives a frame.
    pub async fn recv(&mut self) -> io::Result<(u8, Bytes)> {
        read_frame(&mut self.wire).await
    }

    /// Sends text and expects it back.
    pub async fn echo(&mut self, text: &str) -> io::Result<()> {
        self.send(opcode::TEXT, text.as_bytes()).await?;
        let (code, payload) = self.recv().await?;
        assert_eq!((code, payload.as_ref()), (opcode::TEXT, text.as_bytes()));
        Ok(())
    }
}

/// A final frame as bytes.
pub fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => bytes.push(bit | len as u8),
        len @ 126..=0xffff => {
            bytes.push(bit | 126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(bit | 127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let key = mask.unwrap_or_default();
    bytes.extend_from_slice(mask.as_ref().map_or(&[][..], |mask| &mask[..]));
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Reads a frame and takes the mask off.
pub async fn read_frame<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> io::Result<(u8, Bytes)> {
    let head = wire.exact(2).await?;
    let len = match head[1] & 0x7f {
        126 => {
            let len = wire.exact(2).await?;
            usize::from(u16::from_be_bytes([len[0], len[1]]))
        }
        127 => {
            let len = wire.exact(8).await?;
            len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        }
        len => usize::from(len),
    };
    let mask = match head[1] & 0x80 {
        0 => Bytes::from_static(&[0; 4]),
        _ => wire.exact(4).await?,
    };
    let payload = wire.exact(len).await?;
    let plain = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Ok((head[0] & 0x0f, plain))
}
