//! HTTP/2 frame by frame, for what no well-behaved client would send.

use crate::hbone_client::{ConnectFailure, connect_tls};
use bytes::{BufMut, Bytes, BytesMut};
use rustls::ClientConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The client connection preface (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 §6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// Flags.
pub mod flag {
    /// On DATA and HEADERS.
    pub const END_STREAM: u8 = 1;
    /// On SETTINGS and PING.
    pub const ACK: u8 = 1;
    /// On HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 4;
}

/// A frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// 0 is the connection.
    pub stream: u32,
    /// Without the frame header.
    pub payload: Bytes,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub fn error_code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let bytes: [u8; 4] = self.payload.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// `:status` of a response's HEADERS, which must be the first field of its block and not a
    /// repetition out of the dynamic table.
    pub fn status(&self) -> Option<u16> {
        if self.kind != kind::HEADERS {
            return None;
        }
        let mut block = self.payload.as_ref();
        while let Some((&first, rest)) = block.split_first() {
            match first {
                0x88 => return Some(200),
                0x89 => return Some(204),
                0x8a => return Some(206),
                0x8b => return Some(304),
                0x8c => return Some(400),
                0x8d => return Some(404),
                0x8e => return Some(500),
                0x20..=0x3f => block = rest,
                0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e => {
                    let (&len, rest) = rest.split_first()?;
                    let value = rest.get(..usize::from(len & 0x7f))?;
                    let digits = match len & 0x80 {
                        0 => String::from_utf8_lossy(value).into_owned(),
                        _ => huffman_digits(value),
                    };
                    return digits.parse().ok();
                }
                _ => return None,
            }
        }
        None
    }
}

/// Digits of HPACK's Huffman code (RFC 7541 appendix B): 0-2 have five bits, 3-9 six.
fn huffman_digits(bytes: &[u8]) -> String {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut text = String::new();
    loop {
        let mut code = 0;
        for _ in 0..5 {
            match bits.next() {
                Some(bit) => code = code << 1 | bit,
                None => return text,
            }
        }
        if code <= 2 {
            text.push(char::from(b'0' + code));
            continue;
        }
        match bits.next() {
            Some(bit) => code = code << 1 | bit,
            None => return text,
        }
        if !(0b011001..=0b011111).contains(&code) {
            return text;
        }
        text.push(char::from(b'3' + code - 0b011001));
    }
}

/// A connection on which any frame can be sent.
#[derive(Debug)]
pub struct RawH2<S = TlsStream<TcpStream>> {
    io: S,
    buf: BytesMut,
}

impl RawH2 {
    /// TLS only: not even the preface has been sent.
    pub async fn connect(
        addr: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Self, ConnectFailure> {
        Ok(RawH2::new(connect_tls(addr, config).await?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawH2<S> {
    /// Over any stream.
    pub fn new(io: S) -> Self {
        RawH2 { io, buf: BytesMut::new() }
    }

    /// The preface and SETTINGS.
    pub async fn preface(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let mut bytes = BytesMut::from(PREFACE);
        bytes.extend_from_slice(&encode(kind::SETTINGS, 0, 0, &settings_payload(settings)));
        self.send(&bytes).await
    }

    /// Any bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// A frame.
    pub async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.send(&encode(kind, flags, stream, payload)).await
    }

    /// HEADERS with END_HEADERS; fields are literals, so anything can be in them.
    pub async fn headers(
        &mut self,
        stream: u32,
        fields: &[(&str, &str)],
        end_stream: bool,
    ) -> io::Result<()> {
        self.send(&headers(stream, fields, end_stream)).await
    }

    /// CONNECT to an authority, well-formed or not.
    pub async fn open(&mut self, stream: u32, authority: &str) -> io::Result<()> {
        self.headers(stream, &[(":method", "CONNECT"), (":authority", authority)], false).await
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        while self.buf.len() < 9 || self.buf.len() < 9 + payload_len(&self.buf) {
            if self.io.read_buf(&mut self.buf).await? == 0 {
                return Ok(None);
            }
        }
        let length = payload_len(&self.buf);
        let head = self.buf.split_to(9);
        let payload = self.buf.split_to(length).freeze();
        Ok(Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        }))
    }

    /// The next frame that `wanted` accepts. SETTINGS and PING are answered on the way; `None` at
    /// the end of the connection, in order or not.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await.ok()??;
            let ack = frame.flags & flag::ACK != 0;
            if frame.kind == kind::SETTINGS && !ack {
                let _ = self.frame(kind::SETTINGS, flag::ACK, 0, &[]).await;
            }
            if frame.kind == kind::PING && !ack {
                let _ = self.frame(kind::PING, flag::ACK, 0, &frame.payload).await;
            }
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The answer to the CONNECT on `stream`: HEADERS, RST_STREAM of it, or GOAWAY.
    pub async fn answer(&mut self, stream: u32) -> Option<Frame> {
        self.find(|frame| {
            frame.kind == kind::GOAWAY
                || frame.stream == stream && matches!(frame.kind, kind::HEADERS | kind::RST_STREAM)
        })
        .await
    }
}

fn payload_len(buf: &[u8]) -> usize {
    usize::from(buf[0]) << 16 | usize::from(buf[1]) << 8 | usize::from(buf[2])
}

/// A frame as bytes.
pub fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame
}

/// HEADERS with END_HEADERS as bytes.
pub fn headers(stream: u32, fields: &[(&str, &str)], end_stream: bool) -> BytesMut {
    let flags = flag::END_HEADERS | if end_stream { flag::END_STREAM } else { 0 };
    encode(kind::HEADERS, flags, stream, &block(fields))
}

/// A header block of literals without indexing and without Huffman coding.
pub fn block(fields: &[(&str, &str)]) -> BytesMut {
    let mut block = BytesMut::new();
    for (name, value) in fields {
        block.put_u8(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value.as_bytes());
    }
    block
}

fn string(block: &mut BytesMut, text: &[u8]) {
    if text.len() < 0x7f {
        block.put_u8(text.len() as u8);
    } else {
        block.put_u8(0x7f);
        let mut rest = text.len() - 0x7f;
        while rest >= 0x80 {
            block.put_u8((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        block.put_u8(rest as u8);
    }
    block.put_slice(text);
}

fn settings_payload(settings: &[(u16, u32)]) -> BytesMut {
    let mut payload = BytesMut::new();
    for (id, value) in settings {
        payload.put_u16(*id);
        payload.put_u32(*value);
    }
    payload
}
