//! What the load generator is told.

use crate::certs::Files;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// HBONE address of the proxy
    #[arg(long, value_name = "ADDR")]
    pub waypoint: SocketAddr,
    /// Identity that the proxy must prove
    #[arg(long, value_name = "SPIFFE-ID")]
    pub expect: String,
    /// Our certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// Our private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Certificates of the CAs that we trust, PEM
    #[arg(long, value_name = "FILE")]
    pub roots: PathBuf,
    /// Authority of CONNECT: a service's address and port; several are taken in turn
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Vec<String>,
    /// File with authorities, one a line, beside those of --to
    #[arg(long, value_name = "FILE")]
    pub to_file: Option<PathBuf>,
    /// What is spoken in the tunnels
    #[arg(long, default_value = "http1")]
    pub speak: Speak,
    /// What ends with each request
    #[arg(long, default_value = "keep")]
    pub lifetime: Lifetime,
    /// HBONE connections
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub connections: usize,
    /// Tunnels in each connection
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub tunnels: usize,
    /// Requests at once in each tunnel; above 1 with h2c only
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub streams: usize,
    /// Requests per second, all tunnels together, due at fixed times; 0: as fast as answers come
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate: u32,
    /// Bytes of each request's body; 0 with http1 is a GET
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub request_bytes: usize,
    /// Bytes of each answer's body
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub response_bytes: usize,
    /// How long to run before anything counts
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub warm_up: Duration,
    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub window: Duration,
    /// End after so many requests, if the window is not over before
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Process of the proxy: its CPU time and memory are read at both ends of the window
    #[arg(long, value_name = "PID")]
    pub proxy_pid: Option<u32>,
    /// Process of the backend, for the account of who used the machine
    #[arg(long, value_name = "PID")]
    pub backend_pid: Option<u32>,
    /// Each line on standard input begins a new part of the window with figures of its own
    #[arg(long)]
    pub phases: bool,
}

/// What is spoken in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Speak {
    /// HTTP/1.1, kept alive.
    Http1,
    /// HTTP/2 with prior knowledge: unary gRPC calls.
    H2c,
    /// Bytes that come back.
    Echo,
}

/// What ends with each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lifetime {
    /// Nothing: tunnels stay open.
    Keep,
    /// The tunnel: a CONNECT for each request.
    Churn,
    /// The connection: a TLS handshake for each request.
    Reconnect,
}

impl LoadArgs {
    /// To the proxy at `waypoint`, which must prove to be `expect`; the rest by default.
    pub fn new(waypoint: SocketAddr, expect: String) -> LoadArgs {
        LoadArgs {
            waypoint,
            expect,
            cert: PathBuf::new(),
            key: PathBuf::new(),
            roots: PathBuf::new(),
            to: Vec::new(),
            to_file: None,
            speak: Speak::Http1,
            lifetime: Lifetime::Keep,
            connections: 4,
            tunnels: 8,
            streams: 1,
            rate: 0,
            request_bytes: 0,
            response_bytes: 64,
            warm_up: Duration::from_secs(1),
            window: Duration::from_secs(5),
            requests: None,
            proxy_pid: None,
            backend_pid: None,
            phases: false,
        }
    }

    /// Where to go.
    pub fn targets(&self) -> Result<Vec<String>> {
        let mut targets = self.to.clone();
        if let Some(path) = &self.to_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            targets.extend(
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned),
            );
        }
        Ok(targets)
    }

    /// Our certificate.
    pub fn certs(&self) -> Files {
        Files { cert: self.cert.clone(), key: self.key.clone(), roots: self.roots.clone() }
    }

    /// The same as words of a command line.
    pub fn to_words(&self) -> Vec<String> {
        let LoadArgs {
            waypoint,
            expect,
            cert,
            key,
            roots,
            to,
            to_file,
            speak,
            lifetime,
            connections,
            tunnels,
            streams,
            rate,
            request_bytes,
            response_bytes,
            warm_up,
            window,
            requests,
            proxy_pid,
            backend_pid,
            phases,
        } = self;
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let millis = |duration: &Duration| format!("{}ms", duration.as_millis());
        let path = |path: &PathBuf| path.display().to_string();
        let mut words = vec!["load".to_owned()];
        let mut add = |option: &str, value: String| {
            words.push(format!("--{option}={value}"));
        };
        add("waypoint", waypoint.to_string());
        add("expect", expect.clone());
        add("cert", path(cert));
        add("key", path(key));
        add("roots", path(roots));
        to.iter().for_each(|to| add("to", to.clone()));
        to_file.iter().for_each(|file| add("to-file", path(file)));
        add("speak", name(speak.to_possible_value()));
        add("lifetime", name(lifetime.to_possible_value()));
        add("connections", connections.to_string());
        add("tunnels", tunnels.to_string());
        add("streams", streams.to_string());
        add("rate", rate.to_string());
        add("request-bytes", request_bytes.to_string());
        add("response-bytes", response_bytes.to_string());
        add("warm-up", millis(warm_up));
        add("window", millis(window));
        requests.iter().for_each(|requests| add("requests", requests.to_string()));
        proxy_pid.iter().for_each(|pid| add("proxy-pid", pid.to_string()));
        backend_pid.iter().for_each(|pid| add("backend-pid", pid.to_string()));
        if *phases {
            words.push("--phases".to_owned());
        }
        words
    }
}

/// A duration as the configuration writes it.
pub fn duration(text: &str) -> Result<Duration, String> {
    cairn_router::spec::duration::parse(text)
}
