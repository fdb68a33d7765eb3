//! What a member is asked, with bounds on everything that it could do to us.

use bytes::Bytes;
use cairn_autoscale::LoadReport;
use cairn_autoscale::load::MAX_REPORT_BYTES;
use futures::StreamExt;
use http::request::Builder;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

use super::Member;

/// Polls at a time.
const CONCURRENCY: usize = 256;
/// A connection that no poll has used for so long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// Why a member gave no report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollError {
    /// No answer in time.
    Late,
    /// No connection, or it broke.
    Connection(String),
    /// Another status than 200.
    Status(u16),
    /// More than [`MAX_REPORT_BYTES`].
    Large,
    /// No report, or one of another schema.
    Unreadable(String),
}

/// Polls members over connections that are kept.
#[derive(Clone)]
pub struct Poller {
    client: Client<HttpConnector, Empty<Bytes>>,
    timeout: Duration,
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PollError::Late => f.write_str("no answer in time"),
            PollError::Connection(reason) => f.write_str(reason),
            PollError::Status(status) => write!(f, "status {status}"),
            PollError::Large => write!(f, "more than {MAX_REPORT_BYTES} bytes"),
            PollError::Unreadable(reason) => write!(f, "no load report: {reason}"),
        }
    }
}

impl PollError {
    /// For the label of a metric.
    pub fn label(&self) -> &'static str {
        match self {
            PollError::Late => "timeout",
            PollError::Connection(_) => "connection",
            PollError::Status(_) => "status",
            PollError::Large => "size",
            PollError::Unreadable(_) => "format",
        }
    }

    /// All labels.
    pub const LABELS: [&str; 5] = ["timeout", "connection", "status", "size", "format"];
}

impl Poller {
    /// Each poll may take so long.
    pub fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(timeout));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Poller { client, timeout }
    }

    /// Polls all; who has not answered when the round must end, was late.
    pub async fn round(
        &self,
        members: &[Member],
        limit: Duration,
    ) -> HashMap<String, Result<LoadReport, PollError>> {
        let end = Instant::now() + limit.max(self.timeout);
        let mut answers: HashMap<String, Result<LoadReport, PollError>> =
            members.iter().map(|member| (member.name.clone(), Err(PollError::Late))).collect();
        let polls = futures::stream::iter(members.to_vec()).map(|member| async move {
            let answer = tokio::time::timeout(self.timeout, self.load(&member.authority)).await;
            (member.name, answer.unwrap_or(Err(PollError::Late)))
        });
        let mut polls = std::pin::pin!(polls.buffer_unordered(CONCURRENCY));
        while let Ok(Some((name, answer))) = tokio::time::timeout_at(end, polls.next()).await {
            answers.insert(name, answer);
        }
        answers
    }

    /// `GET /load` of `host:port`.
    pub async fn report(&self, authority: &str) -> Result<LoadReport, PollError> {
        let answer = tokio::time::timeout(self.timeout, self.load(authority)).await;
        answer.unwrap_or(Err(PollError::Late))
    }

    /// `GET /healthz/ready` of `host:port`: the status and, where it is text, what it says.
    pub async fn ready(&self, authority: &str) -> Result<(u16, String), PollError> {
        let request = Request::get(format!("http://{authority}/healthz/ready"));
        self.within(request).await
    }

    /// `POST /drain` of `host:port` with the pool's token: the status.
    pub async fn drain(&self, authority: &str, token: &[u8]) -> Result<u16, PollError> {
        let mut bearer = b"Bearer ".to_vec();
        bearer.extend_from_slice(token);
        let request = Request::post(format!("http://{authority}/drain"))
            .header(header::AUTHORIZATION, bearer);
        self.within(request).await.map(|(status, _)| status)
    }

    async fn within(&self, request: Builder) -> Result<(u16, String), PollError> {
        let answer = tokio::time::timeout(self.timeout, self.ask(request)).await;
        let (status, body) = answer.unwrap_or(Err(PollError::Late))?;
        Ok((status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
    }

    async fn load(&self, authority: &str) -> Result<LoadReport, PollError> {
        let request = Request::get(format!("http://{authority}/load"))
            .header(header::ACCEPT, "application/json");
        let (status, body) = self.ask(request).await?;
        if status != http::StatusCode::OK {
            return Err(PollError::Status(status.as_u16()));
        }
        LoadReport::parse(&body).map_err(|error| PollError::Unreadable(error.to_string()))
    }

    async fn ask(&self, request: Builder) -> Result<(http::StatusCode, Bytes), PollError> {
        let request = request
            .header(header::USER_AGENT, concat!("cairn/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| PollError::Connection(error.to_string()))?;
        let answer = self.client.request(request).await.map_err(|error| {
            let mut text = error.to_string();
            let mut next = std::error::Error::source(&error);
            while let Some(error) = next {
                text = format!("{text}: {error}");
                next = error.source();
            }
            PollError::Connection(text)
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_REPORT_BYTES).collect().await;
        let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
            true => PollError::Large,
            false => PollError::Connection(error.to_string()),
        })?;
        Ok((status, body.to_bytes()))
    }
}
