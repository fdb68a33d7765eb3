//! An HTTP/1.1 client on raw bytes.

use crate::wait::within;
use crate::wire::{Fields, Wire};
use bytes::Bytes;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// A keep-alive connection.
#[derive(Debug)]
pub struct Http1<S> {
    /// For raw bytes.
    pub wire: Wire<S>,
}

/// A response with everything that came before it.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// `HTTP/1.1`.
    pub version: String,
    /// Of the final response.
    pub status: u16,
    /// In the order and case of the wire.
    pub headers: Fields,
    /// Decoded.
    pub body: Bytes,
    /// Of a chunked body.
    pub trailers: Fields,
    /// Statuses of interim responses, such as 100.
    pub interim: Vec<u16>,
}

impl Response {
    /// The first value of that header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON: what the backend's `/echo` saw.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in the {} response {:?}", self.status, self.text()),
        }
    }

    /// The name of the backend that answered.
    pub fn backend(&self) -> &str {
        self.header("x-backend").unwrap_or("nobody")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// Over any stream.
    pub fn new(io: S) -> Self {
        Http1 { wire: Wire::new(io) }
    }

    /// Any bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.send(bytes.as_ref()).await
    }

    /// `GET`, `Host: app.test`.
    pub async fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], b"").await
    }

    /// A request and its response. `Host: app.test` unless the headers have another;
    /// `Content-Length` where there is a body.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let bytes = message(method, path, headers, body);
        // An early answer may end the connection while a large body is still being written.
        let sent = self.send(bytes).await;
        match self.response_to(method).await {
            Ok(response) => Ok(response),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }

    /// A method and a path with headers and no body; it must be answered.
    ///
    /// # Panics
    /// When it is not.
    pub async fn ask(&mut self, line: &str, headers: &[(&str, &str)]) -> Response {
        let (method, path) = line.split_once(' ').unwrap();
        within(line, self.request(method, path, headers, b"")).await.unwrap()
    }

    /// The response to a request that has a body, if it has any.
    pub async fn response(&mut self) -> io::Result<Response> {
        self.response_to("GET").await
    }

    /// The response to a request of that method.
    pub async fn response_to(&mut self, method: &str) -> io::Result<Response> {
        let mut response = self.head().await?;
        if response.status == 101
            || method == "HEAD"
            || response.status == 204
            || response.status == 304
        {
            return Ok(response);
        }
        if response.headers.has_token("transfer-encoding", "chunked") {
            (response.body, response.trailers) = self.wire.chunked().await?;
        } else if let Some(length) = response.headers.get("content-length") {
            let length = length.parse().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("content-length {length}"))
            })?;
            response.body = self.wire.exact(length).await?;
        } else {
            response.body = self.wire.rest().await?;
        }
        Ok(response)
    }

    /// The head of the final response, without its body.
    pub async fn head(&mut self) -> io::Result<Response> {
        let mut interim = Vec::new();
        loop {
            let line = self.wire.line().await?.ok_or_else(|| {
                io::Error::new(io::ErrorKind::UnexpectedEof, "closed before a response")
            })?;
            let mut parts = line.splitn(3, ' ');
            let version = parts.next().unwrap_or_default().to_owned();
            let status = parts.next().and_then(|code| code.parse().ok()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("status line {line:?}"))
            })?;
            let headers = self.wire.fields().await?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            return Ok(Response { version, status, headers, interim, ..Response::default() });
        }
    }

    /// Nothing more comes: the peer has ended the stream, in order or not.
    pub async fn closed(&mut self) -> bool {
        matches!(self.wire.some().await.as_deref(), Ok([]) | Err(_))
    }

    /// Ends our direction.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.wire.io().shutdown().await
    }
}

/// A request as bytes; see [`Http1::request`].
pub fn message(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str("Host: app.test\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed = headers.iter().any(|(name, _)| {
        name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding")
    });
    if !framed && (!body.is_empty() || method == "POST" || method == "PUT") {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
