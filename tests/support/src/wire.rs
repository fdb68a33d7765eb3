//! HTTP/1.1 on bytes, for both sides: nothing is normalised, so that a test sees what was sent.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A connection and what was read ahead of it.
#[derive(Debug)]
pub struct Wire<S> {
    io: S,
    buf: BytesMut,
}

/// Header or trailer fields in the order and case of the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The first value of that name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// All values of that name, in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// There is at least one.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// One of the comma separated tokens of `name` is `token`, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .iter()
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Starts at the next byte of `io`.
    pub fn new(io: S) -> Self {
        Wire { io, buf: BytesMut::new() }
    }

    /// Starts with bytes that were read already.
    pub fn with_prefix(io: S, prefix: &[u8]) -> Self {
        Wire { io, buf: BytesMut::from(prefix) }
    }

    /// The connection, and what was read ahead.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.io, self.buf.freeze())
    }

    /// The connection.
    pub fn io(&mut self) -> &mut S {
        &mut self.io
    }

    /// Bytes that were read ahead.
    pub fn buffered(&self) -> &[u8] {
        &self.buf
    }

    /// Reads once; 0 is the end.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.io.read_buf(&mut self.buf).await
    }

    /// Writes all and flushes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// A line without its CRLF; `None` at the end of the stream.
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buf.iter().position(|&byte| byte == b'\n') {
                let line = self.buf.split_to(end + 1);
                let text = line.strip_suffix(b"\r\n").ok_or_else(|| bad("a bare LF"))?;
                return Ok(Some(String::from_utf8_lossy(text).into_owned()));
            }
            if self.buf.len() > 1 << 20 {
                return Err(bad("a line of more than 1 MiB"));
            }
            if self.fill().await? == 0 {
                return match self.buf.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "in a line")),
                };
            }
        }
    }

    /// Fields up to the empty line.
    pub async fn fields(&mut self) -> io::Result<Fields> {
        let mut fields = Fields::default();
        loop {
            let line = self
                .line()
                .await?
                .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "in the header"))?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| bad(format!("no colon in {line:?}")))?;
            fields.0.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Exactly `count` bytes.
    pub async fn exact(&mut self, count: usize) -> io::Result<Bytes> {
        while self.buf.len() < count {
            if self.fill().await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{} of {count} bytes", self.buf.len()),
                ));
            }
        }
        Ok(self.buf.split_to(count).freeze())
    }

    /// The next chunk of a chunked body, or its trailers.
    pub async fn chunk(&mut self) -> io::Result<Result<Bytes, Fields>> {
        let line = self
            .line()
            .await?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "before a chunk"))?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16)
            .map_err(|_| bad(format!("no chunk size: {line:?}")))?;
        if size == 0 {
            return Ok(Err(self.fields().await?));
        }
        let data = self.exact(size).await?;
        if self.exact(2).await?.as_ref() != b"\r\n" {
            return Err(bad("a chunk is longer than it says"));
        }
        Ok(Ok(data))
    }

    /// A whole chunked body.
    pub async fn chunked(&mut self) -> io::Result<(Bytes, Fields)> {
        let mut body = BytesMut::new();
        loop {
            match self.chunk().await? {
                Ok(data) => body.extend_from_slice(&data),
                Err(trailers) => return Ok((body.freeze(), trailers)),
            }
        }
    }

    /// Whatever comes next: at least one byte, or nothing at the end.
    pub async fn some(&mut self) -> io::Result<Bytes> {
        if self.buf.is_empty() {
            self.fill().await?;
        }
        let len = self.buf.len();
        let bytes = self.buf.copy_to_bytes(len);
        Ok(bytes)
    }

    /// Everything to the end of the stream.
    pub async fn rest(&mut self) -> io::Result<Bytes> {
        while self.fill().await? > 0 {}
        Ok(self.buf.split().freeze())
    }
}
