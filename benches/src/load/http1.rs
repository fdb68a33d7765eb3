//! HTTP/1.1 on raw bytes, as little of it as a load generator needs: requests are prepared, of
//! responses only status and `content-length` are looked at.

use super::lane::Failure;
use crate::world::ROUTES;
use bytes::{Bytes, BytesMut};
use cairn_hbone::TunnelStream;
use std::sync::Arc;

/// Heads beyond this are an error.
const MAX_HEAD: usize = 64 << 10;

/// A kept-alive connection in a tunnel.
pub struct Http1 {
    stream: TunnelStream,
    requests: Arc<[Bytes]>,
    next: usize,
}

/// One request for each route, in turn.
pub fn requests(request_bytes: usize, response_bytes: usize) -> Arc<[Bytes]> {
    let request = |path: &str, header: Option<(&str, &str)>| {
        let (method, length) = match request_bytes {
            0 => ("GET", String::new()),
            length => ("POST", format!("content-length: {length}\r\n")),
        };
        let header = match header {
            Some((name, value)) if !name.starts_with(':') => format!("{name}: {value}\r\n"),
            _ => String::new(),
        };
        let mut request = BytesMut::from(
            format!(
                "{method} {path}?bytes={response_bytes} HTTP/1.1\r\n\
                 host: app.shop.svc.cluster.local\r\nuser-agent: benches/1\r\naccept: */*\r\n\
                 {header}{length}\r\n"
            )
            .as_bytes(),
        );
        request.resize(request.len() + request_bytes, b'x');
        request.freeze()
    };
    ROUTES.iter().map(|route| request(route.sample, route.header)).collect()
}

impl Http1 {
    /// Beginning with the request at `first`.
    pub fn new(stream: TunnelStream, requests: Arc<[Bytes]>, first: usize) -> Http1 {
        Http1 { stream, requests, next: first }
    }

    /// One request and its whole answer.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let request = match self.requests.get(self.next % self.requests.len().max(1)) {
            Some(request) => request.clone(),
            None => return Err(Failure::new("no request")),
        };
        self.next = self.next.wrapping_add(1);
        self.stream.writer().write_chunk(request).await.map_err(|error| Failure::of_io(&error))?;
        let reply = read_reply(&mut self.stream).await?;
        if reply.status == 200 {
            Ok(())
        } else {
            Err(Failure::new(format!("status {}", reply.status)))
        }
    }

    /// Closes the tunnel as a client does, and waits for the other side to do so too.
    pub async fn close(mut self) {
        let _peer_may_have_gone = self.stream.writer().finish();
        while let Some(Ok(_)) = self.stream.reader().chunk().await {}
    }
}

/// Head of a response; its body has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    head: Bytes,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.head).ok()?;
        text.split("\r\n").skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A GET on a fresh or kept-alive tunnel, for probes.
pub async fn get(stream: &mut TunnelStream, path: &str, headers: &str) -> Result<Reply, Failure> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: app.shop.svc.cluster.local\r\n{headers}\r\n");
    stream.writer().write_chunk(request.into()).await.map_err(|error| Failure::of_io(&error))?;
    read_reply(stream).await
}

/// Reads a response to its end.
async fn read_reply(stream: &mut TunnelStream) -> Result<Reply, Failure> {
    let mut received = next(stream).await?;
    let head_end = loop {
        match memchr::memmem::find(&received, b"\r\n\r\n") {
            Some(at) => break at + 4,
            None if received.len() > MAX_HEAD => return Err(Failure::new("endless head")),
            None => {
                let mut joined = BytesMut::from(received);
                joined.extend_from_slice(&next(stream).await?);
                received = joined.freeze();
            }
        }
    };
    let head = received.split_to(head_end);
    let status = head.get(9..12).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let status = status.ok_or_else(|| Failure::new("no status line"))?;
    let mut left = content_length(&head).ok_or_else(|| Failure::new("no content-length"))?;
    loop {
        left = left
            .checked_sub(received.len())
            .ok_or_else(|| Failure::new("more than content-length"))?;
        if left == 0 {
            return Ok(Reply { status, head });
        }
        received = next(stream).await?;
    }
}

async fn next(stream: &mut TunnelStream) -> Result<Bytes, Failure> {
    match stream.reader().chunk().await {
        Some(Ok(chunk)) => Ok(chunk),
        Some(Err(error)) => Err(Failure::of_io(&error)),
        None => Err(Failure::CLOSED),
    }
}

/// Of a request or response; 0 when a head has none and needs none.
pub fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut rest = head;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        rest = rest.get(end + 1..)?;
        if rest.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)) {
            let value = rest.get(NAME.len()..)?;
            let value = value.get(..memchr::memchr(b'\r', value)?)?;
            return std::str::from_utf8(value).ok()?.trim().parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let head = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 64\r\ndate: y\r\n\r\n";
        assert_eq!(content_length(head), Some(64));
        assert_eq!(content_length(b"HTTP/1.1 204 No Content\r\n\r\n"), None);
        let reply = Reply { status: 200, head: Bytes::from_static(head) };
        assert_eq!(reply.header("Server"), Some("x"));
        assert_eq!(reply.header("x-none"), None);
    }

    #[test]
    fn one_request_for_each_route() {
        let requests = requests(3, 64);
        assert_eq!(requests.len(), ROUTES.len());
        let first = String::from_utf8(requests[0].to_vec()).unwrap();
        assert!(first.starts_with("POST /api/orders/latest?bytes=64 HTTP/1.1\r\n"), "{first}");
        assert!(first.ends_with("content-length: 3\r\n\r\nxxx"), "{first}");
        assert!(String::from_utf8(requests[2].to_vec()).unwrap().contains("\r\nx-version: v2\r\n"));
    }
}
