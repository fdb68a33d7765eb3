//! `pilot-agent request METHOD PATH`: what runbooks do with `kubectl exec` in a waypoint's container.
//!
//! The image has this binary under that name as well. The page is asked of the admin port of this
//! machine and printed as it is.

use crate::failure::Failure;
use crate::terminal;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// For connecting, and for each read.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: String,
    /// With the query; a leading `/` may be missing.
    pub path: String,
    /// Admin port (`--debug-port`).
    pub port: u16,
}

const USAGE: &str = "pilot-agent request METHOD PATH [--debug-port PORT], for example pilot-agent request GET config_dump";

impl Request {
    /// Reads what stands behind `request`.
    pub fn parse(words: &[String]) -> Result<Request, Failure> {
        let wrong = |what: &str| Failure::new(what).hint(USAGE);
        let mut port = super::ports::ADMIN;
        let mut plain = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if let Some(flag) = word.strip_prefix("--") {
                let (name, value) = match flag.split_once('=') {
                    Some((name, value)) => (name, value),
                    None => (flag, words.next().map_or("", String::as_str)),
                };
                if name == "debug-port" {
                    port = value.parse().map_err(|_| wrong("--debug-port needs a port"))?;
                }
            } else {
                plain.push(word.as_str());
            }
        }
        let [method, path] = plain[..] else {
            return Err(wrong("request needs a method and a path"));
        };
        let odd = |text: &str| text.chars().any(|char| char.is_whitespace() || char.is_control());
        if odd(method) || odd(path) {
            return Err(wrong("neither method nor path has spaces"));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Request { method: method.to_ascii_uppercase(), path: format!("{slash}{path}"), port })
    }

    /// Asks and prints.
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let (status, body) = self.ask(address).map_err(|error| {
            Failure::new(format!("admin port {address}: {error}"))
                .hint("does the proxy run in this container?")
        })?;
        terminal::text(String::from_utf8_lossy(&body));
        if status < 400 {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::new(format!("{} {} was answered with {status}", self.method, self.path)))
    }

    /// Status and body. HTTP/1.0, so that the body ends with the connection.
    fn ask(&self, address: SocketAddr) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let Request { method, path, port: _ } = self;
        let request =
            format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let no_http = || std::io::Error::other("the answer is no HTTP");
        let head = answer.windows(4).take(MAX_HEAD_BYTES).position(|end| end == b"\r\n\r\n");
        let body = answer.split_off(head.ok_or_else(no_http)? + 4);
        let head = String::from_utf8_lossy(&answer);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(no_http)?, body))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn parse(line: &str) -> Result<Request, Failure> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Request::parse(&words)
    }

    #[test]
    fn runbooks_are_understood() {
        let request = parse("get config_dump?include_eds=true").unwrap();
        let expected = Request {
            method: "GET".into(),
            path: "/config_dump?include_eds=true".into(),
            port: 15000,
        };
        assert_eq!(request, expected);
        assert_eq!(parse("--debug-port 15001 POST /logging?level=info").unwrap().port, 15001);
        assert_eq!(parse("POST /logging --debug-port=15002").unwrap().port, 15002);
        for wrong in ["", "GET", "GET a b", "--debug-port x GET /"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_body_is_what_comes_after_the_head() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            stream.write_all(b"HTTP/1.0 404 Not Found\r\na: b\r\n\r\nno\r\n\r\nsuch page").unwrap();
            String::from_utf8(head[..read].to_vec()).unwrap()
        });
        let (status, body) = parse("GET stats").unwrap().ask(address).unwrap();
        assert_eq!((status, body.as_slice()), (404, &b"no\r\n\r\nsuch page"[..]));
        assert!(server.join().unwrap().starts_with("GET /stats HTTP/1.0\r\n"));
    }
}
