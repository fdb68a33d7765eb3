//! A scripted HTTP backend: what it does is in the path of the request.
//!
//! HTTP/1.1 and h2c are told apart by the first bytes. Every response has `x-backend: <name>`,
//! `server: backend`, a `date` in 2030 and the headers that the query asks for with
//! `h=name:value` (repeatable).
//!
//! | path | what happens |
//! |---|---|
//! | `/status/NNN` | that status, body `status NNN` |
//! | `/hold?gate=G` | the response waits until the test releases `G` |
//! | `/slow?ms=N` | the response comes after N milliseconds (100) |
//! | `/gate?gate=G` | head and `first ` at once, `second` after `G` |
//! | `/reset` | the connection is dropped before the response |
//! | `/cut?gate=G` | a Content-Length of 100, 10 bytes, and after `G` the connection is dropped |
//! | `/fail-first?n=N&status=S` | the first N requests with the same `x-test-id` get S (503) |
//! | `/reset-first?n=N` | the first N requests with the same `x-test-id` are dropped |
//! | `/chunked` | three chunks and a trailer `x-trailer: end` |
//! | `/close-delimited` | HTTP/1.1 without framing, ended by closing |
//! | `/close` | `connection: close` |
//! | `/bytes?n=N` | N bytes |
//! | `/sink` | the length of the request's body |
//! | `/early` | answers before the body is read |
//! | `/expect-refuse` | 417 to `Expect: 100-continue` |
//! | `/raw?hex=H` | those bytes instead of a response (HTTP/1.1) |
//! | `/test.Echo/Unary`, `Bidi` | gRPC echo, with trailers |
//! | `/test.Echo/Fail` | trailers-only, `grpc-status` of the request header `x-status` (5) |
//! | `/test.Echo/FailAfter` | a message, then trailers with status 13 |
//! | `/test.Echo/FailFirst` | trailers-only 14 (`x-status`) for the first `x-fail-first` with the same `x-test-id` |
//! | `/test.Echo/Hold` | as `/hold`, gate in `x-gate` |
//! | anything else | `/echo`: what was seen, as JSON |
//!
//! Wherever it goes, a request with `x-fail-on: NAME` gets 503 from the backend of that name, and one
//! with `x-reset-on: NAME` is dropped by it. Failing answers of `/fail-first` also have the headers
//! asked for with `fh=name:value`.
//!
//! A WebSocket upgrade is accepted on every path but `/status/…` and echoes.

mod http1;
mod http2;

use crate::wire::Fields;
use bytes::{Bytes, BytesMut};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

/// The `date` of every response.
pub const DATE: &str = "Tue, 01 Jan 2030 00:00:00 GMT";

/// Long bodies are sent in parts of so many bytes, a multiple of [`pattern`]'s period.
const PART: usize = 1 << 16;

/// A backend; clones share everything.
#[derive(Clone)]
pub struct Backend {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    waiting: AtomicU64,
    cancelled: AtomicU64,
    log: Mutex<Vec<Recorded>>,
    attempts: Mutex<HashMap<String, u32>>,
    gates: watch::Sender<HashSet<String>>,
    closing: watch::Sender<u64>,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: &'static str,
    /// In the order of the wire; names in lower case with h2.
    pub headers: Fields,
    /// Up to 1 MiB.
    pub body: Bytes,
    /// All of it.
    pub body_len: u64,
    /// After the body.
    pub trailers: Fields,
    /// Connections are numbered from 1.
    pub connection: u64,
}

impl Recorded {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn query(&self, name: &str) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
            .collect()
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.query(name).first().and_then(|value| value.parse().ok()).unwrap_or(default)
    }
}

/// What is answered.
enum Reply {
    Full {
        status: u16,
        headers: Vec<(String, String)>,
        body: Bytes,
        framing: Framing,
    },
    /// So many bytes of [`pattern`], made as they are sent.
    Bytes {
        headers: Vec<(String, String)>,
        count: usize,
    },
    Gated {
        gate: String,
    },
    Abort,
    Cut {
        gate: String,
    },
    Raw(Vec<u8>),
}

#[derive(PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
    LengthThenClose,
}

impl Backend {
    /// With a name of its own.
    pub fn new(name: &str) -> Self {
        Backend {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                connections: AtomicU64::new(0),
                open: AtomicU64::new(0),
                requests: AtomicU64::new(0),
                waiting: AtomicU64::new(0),
                cancelled: AtomicU64::new(0),
                log: Mutex::default(),
                attempts: Mutex::default(),
                gates: watch::Sender::default(),
                closing: watch::Sender::default(),
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> u64 {
        self.inner.open.load(Ordering::SeqCst)
    }

    /// Requests that wait at a gate.
    pub fn waiting(&self) -> u64 {
        self.inner.waiting.load(Ordering::SeqCst)
    }

    /// Requests whose client left while they waited at a gate.
    pub fn cancelled(&self) -> u64 {
        self.inner.cancelled.load(Ordering::SeqCst)
    }

    /// The first 10,000 requests.
    pub fn log(&self) -> Vec<Recorded> {
        self.inner.log.lock().unwrap().clone()
    }

    /// The last request whose path starts so.
    ///
    /// # Panics
    /// When there was none.
    pub fn last(&self, prefix: &str) -> Recorded {
        let log = self.log();
        match log.iter().rev().find(|seen| seen.target.starts_with(prefix)) {
            Some(seen) => seen.clone(),
            None => panic!("{} saw no {prefix}, but {:?}", self.name(), log),
        }
    }

    /// Requests whose path starts so.
    pub fn count(&self, prefix: &str) -> usize {
        self.log().iter().filter(|seen| seen.target.starts_with(prefix)).count()
    }

    /// Opens a gate for those who wait and for all who come.
    pub fn release(&self, gate: &str) {
        self.inner.gates.send_modify(|open| {
            open.insert(gate.to_owned());
        });
    }

    /// Closes idle HTTP/1.1 connections, and ends h2 ones with GOAWAY.
    pub fn close_idle(&self) {
        self.inner.closing.send_modify(|round| *round += 1);
    }

    /// Serves one connection to its end.
    pub async fn serve<S>(&self, mut io: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = self.inner.connections.fetch_add(1, Ordering::SeqCst) + 1;
        self.inner.open.fetch_add(1, Ordering::SeqCst);
        let preface = crate::raw_h2::PREFACE;
        let mut head = BytesMut::new();
        while head.len() < preface.len() && preface.starts_with(&head) {
            match io.read_buf(&mut head).await {
                Ok(1..) => {}
                _ => break,
            }
        }
        if head.starts_with(preface) {
            http2::serve(self, io, &head, connection).await;
        } else if !head.is_empty() {
            let _ = http1::serve(self, io, &head, connection).await;
        }
        self.inner.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn record(&self, seen: &Recorded) {
        self.inner.requests.fetch_add(1, Ordering::SeqCst);
        let mut log = self.inner.log.lock().unwrap();
        if log.len() < 10_000 {
            log.push(seen.clone());
        }
    }

    /// The how-manieth request with that `x-test-id` this is, from 1.
    fn attempt(&self, seen: &Recorded) -> u32 {
        let id = seen.headers.get("x-test-id").unwrap_or_default().to_owned();
        let mut attempts = self.inner.attempts.lock().unwrap();
        let attempt = attempts.entry(id).or_default();
        *attempt += 1;
        *attempt
    }

    /// Waits for the gate; false when `gone` comes first.
    async fn wait(&self, gate: &str, gone: impl Future<Output = ()>) -> bool {
        let mut gates = self.inner.gates.subscribe();
        self.inner.waiting.fetch_add(1, Ordering::SeqCst);
        let open = tokio::select! {
            _ = gates.wait_for(|open| open.contains(gate)) => true,
            () = gone => false,
        };
        self.inner.waiting.fetch_sub(1, Ordering::SeqCst);
        if !open {
            self.inner.cancelled.fetch_add(1, Ordering::SeqCst);
        }
        open
    }

    async fn reply(&self, seen: &Recorded, gone: impl Future<Output = ()>) -> Reply {
        let mut headers = vec![
            ("date".to_owned(), DATE.to_owned()),
            ("server".to_owned(), "backend".to_owned()),
            ("x-backend".to_owned(), self.inner.name.clone()),
        ];
        for extra in seen.query("h") {
            let (name, value) = extra.split_once(':').unwrap_or((&extra, ""));
            headers.push((name.to_owned(), value.replace('+', " ")));
        }
        let common = headers.clone();
        let full = |status: u16, body: String, framing| Reply::Full {
            status,
            headers: common.clone(),
            body: Bytes::from(body),
            framing,
        };
        if seen.headers.get("x-reset-on") == Some(self.name()) {
            return Reply::Abort;
        }
        if seen.headers.get("x-fail-on") == Some(self.name()) {
            return full(503, format!("{} fails", self.name()), Framing::Length);
        }
        match seen.path() {
            "/hold" => {
                let gate = seen.query("gate").pop().unwrap_or_default();
                match self.wait(&gate, gone).await {
                    true => full(200, self.echo(seen), Framing::Length),
                    false => Reply::Abort,
                }
            }
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(seen.number("ms", 100))).await;
                full(200, "slow".to_owned(), Framing::Length)
            }
            "/gate" => Reply::Gated { gate: seen.query("gate").pop().unwrap_or_default() },
            "/reset" => Reply::Abort,
            "/cut" => Reply::Cut { gate: seen.query("gate").pop().unwrap_or_default() },
            "/fail-first" => {
                let attempt = self.attempt(seen);
                match u64::from(attempt) <= seen.number("n", 1) {
                    true => {
                        for extra in seen.query("fh") {
                            let (name, value) = extra.split_once(':').unwrap_or((&extra, ""));
                            headers.push((name.to_owned(), value.to_owned()));
                        }
                        let status = seen.number("status", 503) as u16;
                        let body = Bytes::from(format!("attempt {attempt} fails"));
                        Reply::Full { status, headers, body, framing: Framing::Length }
                    }
                    false => full(200, self.echo(seen), Framing::Length),
                }
            }
            "/reset-first" => match u64::from(self.attempt(seen)) <= seen.number("n", 1) {
                true => Reply::Abort,
                false => full(200, self.echo(seen), Framing::Length),
            },
            "/chunked" => full(200, "one two three".to_owned(), Framing::Chunked),
            "/close-delimited" => full(200, "until the end".to_owned(), Framing::UntilClose),
            "/close" => full(200, "goodbye".to_owned(), Framing::LengthThenClose),
            "/bytes" => {
                Reply::Bytes { headers: common.clone(), count: seen.number("n", 0) as usize }
            }
            "/sink" => full(200, seen.body_len.to_string(), Framing::Length),
            "/raw" => {
                let hex = seen.query("hex").pop().unwrap_or_default();
                Reply::Raw(
                    (0..hex.len() / 2)
                        .filter_map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok())
                        .collect(),
                )
            }
            path => match path.strip_prefix("/status/").and_then(|code| code.parse().ok()) {
                Some(status) => full(status, format!("status {status}"), Framing::Length),
                None => full(200, self.echo(seen), Framing::Length),
            },
        }
    }

    fn echo(&self, seen: &Recorded) -> String {
        let Recorded {
            method,
            target,
            authority,
            version,
            headers,
            body,
            body_len,
            trailers,
            connection,
        } = seen;
        json!({
            "backend": self.inner.name,
            "method": method,
            "path": target,
            "authority": authority,
            "version": version,
            "headers": headers.0,
            "body": String::from_utf8_lossy(&body[..body.len().min(1 << 16)]),
            "body_len": body_len,
            "trailers": trailers.0,
            "connection": connection,
        })
        .to_string()
    }
}

/// That many bytes of readable filling.
pub fn pattern(count: usize) -> String {
    let mut text = "0123456789abcdef".repeat(count.div_ceil(16));
    text.truncate(count);
    text
}

/// The values of one header in the JSON of `/echo`.
pub fn echoed<'a>(echo: &'a serde_json::Value, name: &str) -> Vec<&'a str> {
    let pairs = echo["headers"].as_array().map_or(&[][..], |pairs| pairs);
    pairs
        .iter()
        .filter(|pair| pair[0].as_str().is_some_and(|key| key.eq_ignore_ascii_case(name)))
        .filter_map(|pair| pair[1].as_str())
        .collect()
}

/// `text` as the hexadecimal that `/raw` takes.
pub fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
