//! HTTP/1.1 on raw bytes: requests without a body or with `content-length`.

use super::pipe::Pipe;
use crate::load::http1::content_length;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Heads beyond this end the connection.
const MAX_HEAD: usize = 64 << 10;
/// Largest answer.
const MAX_BODY: usize = 64 << 20;

/// What a request asks for in its query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    /// `bytes=N`: size of the body.
    bytes: usize,
    /// `who`: the answer tells in `x-pod` for which address it was made.
    who: bool,
    /// `hold`: no answer as long as the connection is open.
    hold: bool,
}

/// Answers until the client has enough. `name` is the address that was asked for.
pub async fn serve(mut pipe: impl Pipe, name: Arc<str>) {
    let mut received = Bytes::new();
    let mut prepared: Option<(Wish, Bytes)> = None;
    loop {
        let Some((head, rest)) = read_head(&mut pipe, received).await else { break };
        received = match skip_body(&mut pipe, content_length(&head).unwrap_or(0), rest).await {
            Some(rest) => rest,
            None => break,
        };
        let wish = Wish::of(&head);
        if wish.hold {
            while let Some(Ok(_)) = pipe.read().await {}
            break;
        }
        let response = match &prepared {
            Some((known, response)) if *known == wish => response.clone(),
            _ => prepared.insert((wish, response(wish, &name))).1.clone(),
        };
        if pipe.write(response).await.is_err() {
            return;
        }
    }
    pipe.finish().await;
}

async fn read_head(pipe: &mut impl Pipe, mut received: Bytes) -> Option<(Bytes, Bytes)> {
    loop {
        if let Some(at) = memchr::memmem::find(&received, b"\r\n\r\n") {
            let head = received.split_to(at + 4);
            return Some((head, received));
        }
        if received.len() > MAX_HEAD {
            return None;
        }
        let more = pipe.read().await?.ok()?;
        received = if received.is_empty() { more } else { joined(&received, &more) };
    }
}

async fn skip_body(pipe: &mut impl Pipe, mut left: usize, mut rest: Bytes) -> Option<Bytes> {
    while left > rest.len() {
        left -= rest.len();
        rest = pipe.read().await?.ok()?;
    }
    let _body = rest.split_to(left);
    Some(rest)
}

fn joined(first: &[u8], second: &[u8]) -> Bytes {
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(first);
    both.extend_from_slice(second);
    both.freeze()
}

fn response(wish: Wish, name: &str) -> Bytes {
    let who = if wish.who { format!("x-pod: {name}\r\n") } else { String::new() };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n{who}\
         date: Mon, 02 Nov 2026 10:00:00 GMT\r\n\r\n",
        wish.bytes
    );
    let mut response = BytesMut::from(head.as_bytes());
    response.resize(response.len() + wish.bytes, b'y');
    response.freeze()
}

impl Wish {
    fn of(head: &[u8]) -> Wish {
        let line = memchr::memchr(b'\n', head).and_then(|end| head.get(..end)).unwrap_or(head);
        let query = memchr::memchr(b'?', line).and_then(|at| line.get(at + 1..)).unwrap_or(b"");
        let query = query.split(|byte| *byte == b' ').next().unwrap_or(b"");
        Wish::of_query(query)
    }

    fn of_query(query: &[u8]) -> Wish {
        let mut wish = Wish { bytes: 0, who: false, hold: false };
        for part in query.split(|byte| *byte == b'&') {
            match part {
                b"who" => wish.who = true,
                b"hold" => wish.hold = true,
                part => {
                    if let Some(number) = part.strip_prefix(b"bytes=") {
                        wish.bytes = number_of(number).min(MAX_BODY);
                    }
                }
            }
        }
        wish
    }
}

/// What `bytes=N` of a query asks for.
pub fn wished_bytes(query: &str) -> usize {
    Wish::of_query(query.as_bytes()).bytes
}

fn number_of(digits: &[u8]) -> usize {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes() {
        let wish = Wish::of(b"GET /a/b?bytes=1024&who HTTP/1.1\r\nhost: a?bytes=7\r\n\r\n");
        assert_eq!(wish, Wish { bytes: 1024, who: true, hold: false });
        let wish = Wish::of(b"GET /a/b HTTP/1.1\r\nhost: a?bytes=7\r\n\r\n");
        assert_eq!(wish, Wish { bytes: 0, who: false, hold: false });
    }

    #[test]
    fn a_response_is_as_long_as_it_says() {
        let response = response(Wish { bytes: 5, who: true, hold: false }, "10.0.0.1:80");
        let text = String::from_utf8(response.to_vec()).unwrap();
        assert!(text.contains("\r\nx-pod: 10.0.0.1:80\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nyyyyy"), "{text}");
        assert_eq!(content_length(&response), Some(5));
    }
}
