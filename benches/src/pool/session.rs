//! The connections of one place of an application, one after the other: HTTP/1.1 or HTTP/2 in a tunnel, in a closed
//! loop.
//!
//! A good client: it heeds `connection: close` and GOAWAY, and looks whether its connection has ended before it asks.
//! What it has asked for must be answered; nothing is retried.

use super::PATIENCE;
use super::pod::{Pod, of_h2};
use super::random::Random;
use super::tally::{Failure, Gone, Tally};
use cairn_test_support::h2c::{H2c, collect};
use cairn_test_support::http1::Http1;
use cairn_test_support::stream::H2Stream;
use http::Request;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// After a failure, so that nobody is asked as fast as it refuses.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the other side may take to end a connection that we have ended.
const FAREWELL: Duration = Duration::from_secs(1);
/// Shows which configuration has answered.
pub const REVISION: &str = "x-revision";
/// Says which backend has answered.
const BACKEND: &str = "x-backend";

/// What is spoken in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speak {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, two requests at a time.
    Http2,
}

/// What a place does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it speaks.
    pub speak: Speak,
    /// Its service: address, and the name of its backend.
    pub service: (String, String),
    /// Path and query.
    pub path: &'static str,
    /// Requests on each connection; `None`: until it is told to go.
    pub requests: Option<u32>,
    /// Pause between two requests.
    pub pause: Range<Duration>,
}

/// A place.
pub struct Session {
    /// Whose application it is.
    pub pod: Arc<Pod>,
    /// What it does.
    pub plan: Plan,
    /// What it has seen.
    pub tally: Arc<Tally>,
    /// What it chooses by.
    pub random: Random,
    /// It ends when this is true, or nobody can say so any more.
    pub over: watch::Receiver<bool>,
}

/// What an answer shows.
struct Shown<'a> {
    status: u16,
    backend: Option<&'a str>,
    revision: Option<&'a str>,
}

/// How one request ended.
enum Asked {
    /// It was answered.
    Answered,
    /// It was answered, and the connection is to be ended.
    AnsweredLast,
    /// Nothing was asked: the connection had ended.
    Not(Gone),
    Failed(Failure),
}

impl Session {
    /// Until it is over.
    pub async fn run(mut self) {
        // Not all at once.
        self.rest().await;
        while !self.is_over() {
            let Some(member) = self.pod.choose(&mut self.random) else {
                self.tally.fail(None, &Failure("no member is shown".to_owned()));
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let outcome = match self.pod.open(member, &self.plan.service.0).await {
                Ok(stream) => {
                    self.tally.connected();
                    match self.plan.speak {
                        Speak::Http1 => self.http1(stream, member).await,
                        Speak::Http2 => self.http2(stream, member).await,
                    }
                }
                Err(failure) => Err(failure),
            };
            if let Err(failure) = outcome {
                self.tally.fail(Some(member), &failure);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn is_over(&self) -> bool {
        *self.over.borrow() || self.over.has_changed().is_err()
    }

    /// Whether it is to end a connection that has had so many requests.
    fn enough(&self, asked: u32) -> bool {
        self.is_over() || self.plan.requests.is_some_and(|most| asked >= most)
    }

    async fn rest(&mut self) {
        let pause = self.random.between(&self.plan.pause);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = self.over.wait_for(|over| *over) => {}
        }
    }

    async fn http1(&mut self, stream: H2Stream, member: IpAddr) -> Result<(), Failure> {
        let mut http = Http1::new(stream);
        let mut asked = 0;
        while !self.enough(asked) {
            match self.get_http1(&mut http, member).await {
                Asked::Answered => asked += 1,
                Asked::AnsweredLast => {
                    self.tally.gone(Gone::Told);
                    break;
                }
                Asked::Not(gone) => {
                    self.tally.gone(gone);
                    return Ok(());
                }
                Asked::Failed(failure) => return Err(failure),
            }
            self.rest().await;
        }
        if http.shutdown().await.is_ok() {
            let _in_order = timeout(FAREWELL, http.closed()).await;
        }
        Ok(())
    }

    async fn get_http1(&self, http: &mut Http1<H2Stream>, member: IpAddr) -> Asked {
        match timeout(Duration::ZERO, http.wire.some()).await {
            Err(_nothing_came) => {}
            Ok(Ok(bytes)) if bytes.is_empty() => return Asked::Not(Gone::Told),
            Ok(Ok(_)) => return Asked::Failed(Failure("bytes that nobody asked for".to_owned())),
            Ok(Err(_)) => return Asked::Not(Gone::Cut),
        }
        let since = Instant::now();
        let host = [("host", self.plan.service.1.as_str())];
        let answer = timeout(PATIENCE, http.request("GET", self.plan.path, &host, b"")).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Asked::Failed(Failure(format!("HTTP/1.1: {}", error.kind())));
            }
            Err(_) => return Asked::Failed(Failure("HTTP/1.1: no answer".to_owned())),
        };
        let shown = Shown {
            status: answer.status,
            backend: answer.header(BACKEND),
            revision: answer.header(REVISION),
        };
        self.judge(member, since, &shown).await;
        if answer.headers.has_token("connection", "close") {
            Asked::AnsweredLast
        } else {
            Asked::Answered
        }
    }

    async fn http2(&mut self, stream: H2Stream, member: IpAddr) -> Result<(), Failure> {
        let h2c = H2c::connect(stream).await;
        let h2c = h2c.map_err(|error| Failure(format!("HTTP/2: {}", of_h2(&error))))?;
        let mut asked = 0;
        while !self.enough(asked) {
            let both = tokio::join!(self.get_http2(&h2c, member), self.get_http2(&h2c, member));
            let mut gone = None;
            for one in [both.0, both.1] {
                match one {
                    Asked::Answered | Asked::AnsweredLast => asked += 1,
                    Asked::Not(how) => gone = Some(how),
                    Asked::Failed(failure) => return Err(failure),
                }
            }
            if let Some(gone) = gone {
                self.tally.gone(gone);
                return Ok(());
            }
            self.rest().await;
        }
        Ok(())
    }

    async fn get_http2(&self, h2c: &H2c, member: IpAddr) -> Asked {
        let ended =
            |error: h2::Error| Asked::Not(if error.is_go_away() { Gone::Told } else { Gone::Cut });
        let since = Instant::now();
        let request = Request::get(format!("http://{}{}", self.plan.service.1, self.plan.path));
        let Ok(request) = request.body(()) else {
            return Asked::Failed(Failure("bad path".to_owned()));
        };
        let mut send = match h2c.sender().ready().await {
            Ok(send) => send,
            Err(error) => return ended(error),
        };
        let response = match send.send_request(request, true) {
            Ok((response, _)) => response,
            // Nothing was sent.
            Err(error) => return ended(error),
        };
        let answer = match timeout(PATIENCE, collect(response)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Asked::Failed(Failure(format!("HTTP/2: {}", of_h2(&error)))),
            Err(_) => return Asked::Failed(Failure("HTTP/2: no answer".to_owned())),
        };
        let shown = Shown {
            status: answer.status,
            backend: answer.header(BACKEND),
            revision: answer.header(REVISION),
        };
        self.judge(member, since, &shown).await;
        Asked::Answered
    }

    /// An answer that is none of the service's is a failure; its connection is as good as before.
    async fn judge(&self, member: IpAddr, since: Instant, shown: &Shown<'_>) {
        if shown.status != 200 {
            self.tally.fail(Some(member), &Failure(format!("status {}", shown.status)));
            tokio::time::sleep(PAUSE).await;
            return;
        }
        match shown.backend {
            Some(name) if name == self.plan.service.1 => {}
            other => return self.tally.mistake(member, other.unwrap_or("nobody")),
        }
        if let Some(revision) = shown.revision.and_then(|text| text.parse().ok()) {
            self.pod.cluster.revised(member, revision);
        }
        self.tally.succeed(since.elapsed());
    }
}
