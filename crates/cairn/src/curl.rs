//! `cairn curl`: one request through an HBONE tunnel, with every step shown.
//!
//! Phases: read the arguments → load the identity → connect (TCP, TLS, CONNECT) → exchange →
//! print. Each has its exit code.

mod plan;

use crate::cli::CurlArgs;
use crate::exchange::{Exchange, ExchangeError};
use crate::failure::Failure;
use crate::terminal::say;
use crate::websocket::{self, Message, Role};
use cairn_hbone::{ConnectError, ConnectHeaders, Originator, OriginatorConfig, OriginatorCounters};
use cairn_identity::{ExpectedPeers, Identity, SpiffeId};
use http::{HeaderMap, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use plan::Plan;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Exit codes beside 0 and 1; the command's help lists them.
mod code {
    pub const UNREACHABLE: u8 = 4;
    pub const TLS: u8 = 5;
    pub const REFUSED: u8 = 6;
    pub const NO_ANSWER: u8 = 7;
    pub const STATUS: u8 = 22;
}

/// Sends the request and prints what comes.
pub fn run(args: &CurlArgs) -> Result<ExitCode, Failure> {
    let plan = Plan::new(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
    let limit = args.max_time;
    runtime.block_on(async {
        tokio::time::timeout(limit, go(args, plan)).await.unwrap_or_else(|_| {
            Err(Failure::new(format!("no complete answer within {limit:?}"))
                .with_code(code::NO_ANSWER)
                .hint("--max-time sets how long to wait"))
        })
    })
}

async fn go(args: &CurlArgs, plan: Plan) -> Result<ExitCode, Failure> {
    let (identity, expected) = load(args).await?;
    let counters = Arc::new(OriginatorCounters::default());
    let originator = Originator::new(identity, OriginatorConfig::default(), counters);
    let shown = Shown { silent: args.silent };
    let tunnel = originator
        .connect(args.waypoint, &expected, &plan.to, &ConnectHeaders::default())
        .await
        .map_err(|error| no_tunnel(args, &plan, &error))?;
    shown.line(format_args!("CONNECT {} at {}: 200", plan.to, args.waypoint));

    let broken = |error: ExchangeError| {
        Failure::new(format!("the tunnel is open, but the answer is not complete: {error}"))
            .with_code(code::NO_ANSWER)
    };
    let mut exchange = Exchange::open(tunnel, plan.wire).await.map_err(broken)?;
    let response = exchange.send(&plan.ask).await.map_err(broken)?;
    shown.head(&response);
    let status = response.status();
    match &plan.message {
        Some((key, words)) if status == StatusCode::SWITCHING_PROTOCOLS => {
            converse(response, key, words).await.map_err(|error| {
                Failure::new(format!("after the upgrade: {error}")).with_code(code::NO_ANSWER)
            })?;
        }
        _ => shown.body(response).await.map_err(broken)?,
    }
    Ok(if args.fail && status.as_u16() >= 400 {
        ExitCode::from(code::STATUS)
    } else {
        ExitCode::SUCCESS
    })
}

/// Our identity, and whom we expect.
async fn load(args: &CurlArgs) -> Result<(Identity, ExpectedPeers), Failure> {
    let expected = args
        .expect
        .iter()
        .map(|id| {
            SpiffeId::parse(id).map_err(|error| Failure::new(format!("--expect {id}: {error}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let expected = ExpectedPeers::new(expected).map_err(Failure::new)?;
    let source = cairn_identity::files::FileSource {
        cert: args.cert.clone(),
        key: args.key.clone(),
        roots: args.roots.clone(),
        trust_domains: None,
    };
    let identity = cairn_identity::files::load(&source).await.map_err(|error| {
        Failure::new(error).hint("`cairn certs issue` makes certificates for development")
    })?;
    Ok((identity, expected))
}

/// Why there is no tunnel, and what to look at.
fn no_tunnel(args: &CurlArgs, plan: &Plan, error: &ConnectError) -> Failure {
    let at = args.waypoint;
    let to = &plan.to;
    match error {
        ConnectError::Tls(_) => Failure::new(format!("TLS with {at} failed: {error}"))
            .with_code(code::TLS)
            .hint(format!(
                "expected: {}\n`cairn certs show {}` shows whom our certificate names; both sides \
                 must trust the CA of the other",
                args.expect.join(" or "),
                args.cert.display()
            )),
        ConnectError::Refused { status } => {
            let hint = match status.as_u16() {
                400 => "the authority must be ADDRESS:PORT or HOST:PORT; see --to",
                401 | 403 => {
                    "a policy refuses this identity, or it has to come through the waypoint"
                }
                404 => {
                    "nothing is configured for this authority: compare with /config on the admin \
                     port, and see --to"
                }
                _ => "the log of the waypoint says more",
            };
            Failure::new(format!("CONNECT {to} at {at}: {status}"))
                .with_code(code::REFUSED)
                .hint(hint)
        }
        _ => Failure::new(format!("{at} cannot be reached: {error}"))
            .with_code(code::UNREACHABLE)
            .hint("is the waypoint running there? see --waypoint"),
    }
}

/// What goes to standard output beside the body.
struct Shown {
    silent: bool,
}

impl Shown {
    fn line(&self, line: std::fmt::Arguments<'_>) {
        if !self.silent {
            say!("{line}");
        }
    }

    fn head(&self, response: &Response<Incoming>) {
        let version = match response.version() {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        self.line(format_args!("{version} {}", response.status()));
        self.headers(response.headers());
        self.line(format_args!(""));
    }

    fn headers(&self, headers: &HeaderMap) {
        for (name, value) in headers {
            self.line(format_args!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
    }

    /// Prints the body as it comes, then the trailers.
    async fn body(&self, response: Response<Incoming>) -> Result<(), ExchangeError> {
        let mut body = response.into_body();
        let mut ends_line = true;
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    ends_line = data.last().map_or(ends_line, |byte| *byte == b'\n');
                    print(&data).map_err(|error| ExchangeError::Body(Box::new(error)))?;
                }
                Err(frame) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        if !ends_line {
                            self.line(format_args!(""));
                        }
                        self.headers(trailers);
                    }
                }
            }
        }
        Ok(())
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Sends one message, prints the first that comes back, and closes.
async fn converse(response: Response<Incoming>, key: &str, words: &str) -> io::Result<()> {
    let proof = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if proof.is_none_or(|proof| proof.as_bytes() != websocket::accept_for(key).as_bytes()) {
        return Err(io::Error::other("sec-websocket-accept does not fit our key"));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    let mut stream = TokioIo::new(upgraded);
    websocket::write(&mut stream, Role::Client, &Message::Text(words.to_owned())).await?;
    loop {
        match websocket::read(&mut stream).await? {
            Some(Message::Text(text)) => say!("{text}"),
            Some(Message::Binary(bytes)) => print(&bytes)?,
            Some(Message::Ping(payload)) => {
                websocket::write(&mut stream, Role::Client, &Message::Pong(payload)).await?;
                continue;
            }
            Some(Message::Pong(_)) => continue,
            Some(Message::Close(_)) | None => {
                return Err(io::Error::other("closed before a message came"));
            }
        }
        break;
    }
    let normal = 1000_u16.to_be_bytes().to_vec();
    websocket::write(&mut stream, Role::Client, &Message::Close(normal)).await?;
    stream.shutdown().await
}
