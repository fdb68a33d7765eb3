//! The command line.

use crate::load::LoadSettings;
use crate::pool::PoolArgs;
use crate::scaler::{self, ScalerArgs};
use cairn_xds::Bandwidth;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A waypoint proxy for Istio ambient mesh.
#[derive(Debug, Parser)]
#[command(
    name = "cairn",
    version,
    about = "A waypoint proxy for Istio ambient mesh",
    after_help = "Start with `cairn demo`: it needs nothing but this binary.",
    arg_required_else_help = true,
    propagate_version = false
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole path on this machine: backends, waypoint and clients in one process
    ///
    /// Starts two versions of a backend behind HBONE endpoints, the waypoint with config/demo.yaml
    /// and clients with two identities, all on loopback with a throw-away CA. Sends real requests
    /// and prints what was expected and what was seen.
    Demo(DemoArgs),
    /// Run the proxy with a configuration file or directory
    ///
    /// The configuration is read again whenever a file changes; a broken file keeps the last good
    /// one. SIGTERM or SIGINT drains: not ready, grace, GOAWAY, finish what is in flight, exit 0.
    /// A second signal ends at once.
    ///
    /// `cairn proxy waypoint` is another command: it runs as a waypoint that istiod configures, with the
    /// arguments of Istio's template. See `cairn proxy waypoint --help`.
    Proxy(ProxyArgs),
    /// Validate a configuration and print a summary
    Check(CheckArgs),
    /// Send one request through an HBONE tunnel and show every step
    #[command(after_help = CURL_HELP)]
    Curl(CurlArgs),
    /// Say what becomes of a request, and why: policies, route, cluster, endpoints
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// Let a cluster use the pool, and find what is wrong there
    Pool(PoolArgs),
    /// Make and show certificates for development
    Certs(CertsArgs),
    /// Decide how many members a pool needs, for KEDA or by scaling them itself
    ///
    /// Polls the members' /load, decides every two seconds, and answers KEDA's external-scaler calls;
    /// with --apply it sets the replicas of a Deployment itself.
    #[command(after_help = scaler::HELP)]
    Scaler(Box<ScalerArgs>),
    /// Print the version
    Version,
}

const CURL_HELP: &str = "\
Exit codes:
  0   an HTTP answer came, whatever its status (see --fail)
  1   wrong arguments or unreadable files
  4   the waypoint cannot be reached
  5   TLS failed: one side refused the other's identity
  6   CONNECT was refused
  7   the tunnel was open, but no complete answer came
  22  --fail was given and the status is 400 or more

Example:
  cairn curl http://app.shop.svc.cluster.local/hello --waypoint 127.0.0.1:15008 \\
      --to 10.96.0.10:80 --cert web.cert.pem --key web.key.pem --roots roots.pem \\
      --expect spiffe://cluster.local/ns/shop/sa/waypoint";

const EXPLAIN_HELP: &str = "\
Asks the proxy on this machine, by the model that serves traffic at this moment; --config and
--captures ask a configuration instead. No request is sent.

Exit codes:
  0   the request would be answered by an endpoint, a redirect or a fixed response
  1   wrong arguments, or nobody to ask
  3   it would be refused, or nothing would answer it

Example:
  cairn explain 10.96.0.10:80 GET /reviews -H 'host: app.shop' \\
      --from spiffe://cluster.local/ns/shop/sa/web";

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// What CONNECT names: address and port of a service or workload
    #[arg(value_name = "HOST:PORT")]
    pub target: String,
    /// Request method; without one: `GET /` where the destination speaks nothing but HTTP
    pub method: Option<String>,
    /// Path and query [default: /]
    #[arg(requires = "method")]
    pub path: Option<String>,
    /// A request header, `Name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// Identity of the client [default: none]
    #[arg(long, value_name = "SPIFFE-ID")]
    pub from: Option<String>,
    /// Address of the client
    #[arg(long, value_name = "IP")]
    pub source_ip: Option<String>,
    /// Name of the mesh, where the proxy serves several
    #[arg(long, value_name = "NAME")]
    pub mesh: Option<String>,
    /// Admin pages of the proxy
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// A configuration to ask instead: a YAML or JSON file, or a directory of them
    #[arg(long, value_name = "PATH", conflicts_with = "captures")]
    pub config: Option<PathBuf>,
    /// Recorded answers of istiod to ask instead: a directory with {cds,lds,eds,workloads,ecds}.pb[.gz]
    #[arg(long, value_name = "DIR")]
    pub captures: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the table, or after one wave: exit code 0 when all is as expected, else 1
    #[arg(long)]
    pub once: bool,
    /// A pool that scales instead: members, a wave of load, and the scaler's decisions as they happen
    #[arg(long)]
    pub scale: bool,
    /// The same with two clusters whose services have equal addresses: one pool serves both
    #[arg(long, conflicts_with = "scale")]
    pub pool: bool,
    /// Log filter, for example `info` or `cairn_proxy=debug`
    #[arg(long, value_name = "FILTER", default_value = "error")]
    pub log_level: String,
}

/// Arguments of `proxy`.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// Configuration: a YAML or JSON file, or a directory of them
    #[arg(long, value_name = "PATH")]
    pub config: PathBuf,
    /// Worker threads [default: as configured, else one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub workers: Option<u16>,
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log filter, for example `info` or `info,cairn_proxy=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// Admin pages; for this machine only, they can stop the process. `off` for none [default: as configured, else 127.0.0.1:15000]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<Bind>,
    /// Prometheus metrics. `off` for none [default: as configured, else 0.0.0.0:15020]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<Bind>,
    /// Readiness probe. `off` for none [default: as configured, else 0.0.0.0:15021]
    #[arg(long, value_name = "ADDR")]
    pub health: Option<Bind>,
    /// Bandwidth that this machine or pod has, both directions together: `eci` (Alibaba Cloud's table, by CPUs), or for example `1.5Gbit` [default: as configured, else unknown]
    #[arg(long, value_name = "RATE", env = "CAIRN_BANDWIDTH", value_parser = bandwidth)]
    pub bandwidth: Option<Bandwidth>,
    /// What this process can do, for the autoscaler: any of in-flight=N,cpu=N,connections=N,units=N,tenants=N,zone=NAME [default: as configured, else by CPUs]
    #[arg(long, value_name = "LIST", env = "CAIRN_CAPACITY", value_parser = capacity)]
    pub capacity: Option<LoadSettings>,
    /// How long a drain may last until what is left is cut [default: as configured, else 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub drain_limit: Option<Duration>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration: a YAML or JSON file, or a directory of them
    pub path: PathBuf,
}

/// Arguments of `curl`.
#[derive(Debug, Args)]
pub struct CurlArgs {
    /// What to ask for, such as `http://app.shop:8080/path`
    pub url: String,
    /// HBONE address of the waypoint
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15008")]
    pub waypoint: SocketAddr,
    /// Authority of the CONNECT: service address and port [default: host and port of the URL]
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<String>,
    /// Our certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// Our private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Certificates of the CAs that we trust, PEM
    #[arg(long, value_name = "FILE")]
    pub roots: PathBuf,
    /// Identity that the waypoint must prove; more than once: one of them
    #[arg(long, value_name = "SPIFFE-ID", required = true)]
    pub expect: Vec<String>,
    /// Request method [default: GET, or POST with --data]
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    pub method: Option<String>,
    /// A request header, `Name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// Request body, or @FILE; with --upgrade: the message to send
    #[arg(short = 'd', long = "data", value_name = "DATA")]
    pub data: Option<String>,
    /// `Host` or `:authority` of the request [default: host and port of the URL]
    #[arg(long, value_name = "HOST")]
    pub authority: Option<String>,
    /// Speak HTTP/2 with prior knowledge inside the tunnel
    #[arg(long, conflicts_with = "upgrade")]
    pub h2c: bool,
    /// Ask for an upgrade, send --data as one message and print the first answer
    #[arg(long, value_name = "PROTOCOL")]
    pub upgrade: Option<Upgrade>,
    /// Print nothing but the body
    #[arg(short, long)]
    pub silent: bool,
    /// Exit code 22 when the status is 400 or more
    #[arg(short, long)]
    pub fail: bool,
    /// Give up after so long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub max_time: Duration,
}

/// Arguments of `certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CertsCommand,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Issue certificates by a CA that is thrown away afterwards
    ///
    /// Writes roots.pem, and NAMESPACE.ACCOUNT.cert.pem and NAMESPACE.ACCOUNT.key.pem (mode 0600)
    /// for each identity. The CA's key exists in memory only: whoever must trust each other has to
    /// be issued by the same call.
    Issue(IssueArgs),
    /// Show what a PEM file with certificates says
    Show {
        /// PEM file
        file: PathBuf,
    },
}

/// Arguments of `certs issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Identities: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(required = true, value_name = "SPIFFE-ID")]
    pub ids: Vec<String>,
    /// Directory to write to; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long the certificates are valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub ttl: Duration,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Protocols that `curl --upgrade` speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Upgrade {
    /// RFC 6455.
    Websocket,
}

/// Where to listen, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// Nowhere.
    Off,
    /// There; port 0 takes any free one.
    At(SocketAddr),
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Bind::Off);
        }
        text.parse().map(Bind::At).map_err(|_| {
            format!("`{text}` is no address; write IP:PORT, for example 127.0.0.1:15000, or `off`")
        })
    }
}

fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    text.parse()
}

fn capacity(text: &str) -> Result<LoadSettings, String> {
    let mut settings = LoadSettings::default();
    settings.put(text).map_err(|error| error.to_string())?;
    Ok(settings)
}

/// `250ms`, `30s`, `1m5s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    cairn_router::spec::duration::parse(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_proxy_is_not_told_is_left_to_the_configuration() {
        let Ok(Command::Proxy(args)) = parse("cairn proxy --config a.yaml") else { panic!() };
        assert_eq!((args.admin, args.metrics, args.health), (None, None, None));
        assert_eq!((args.workers, args.drain_limit), (None, None));
    }

    #[test]
    fn proxy_takes_bounds_and_off() {
        let line = "cairn proxy --config d --workers 2 --drain-limit 1m5s --admin off \
                    --log-format json --metrics [::1]:0";
        let Ok(Command::Proxy(args)) = parse(line) else { panic!() };
        assert_eq!(args.workers, Some(2));
        assert_eq!(args.drain_limit, Some(Duration::from_secs(65)));
        assert_eq!(args.admin, Some(Bind::Off));
        assert_eq!(args.metrics, Some(Bind::At("[::1]:0".parse().unwrap())));
        assert_eq!(args.log_format, LogFormat::Json);
    }

    #[test]
    fn proxy_takes_what_it_can_do() {
        let line = "cairn proxy --config d --bandwidth eci --capacity in-flight=8,zone=b";
        let Ok(Command::Proxy(args)) = parse(line) else { panic!() };
        assert_eq!(args.bandwidth, Some(Bandwidth::Eci));
        assert_eq!(args.capacity.unwrap().config.in_flight, Some(8.0));
        let text = parse("cairn proxy --config d --bandwidth 1GB").unwrap_err().to_string();
        assert!(text.contains("Gbit"), "{text}");
        let text = parse("cairn proxy --config d --capacity cpus=2").unwrap_err().to_string();
        assert!(text.contains("in-flight"), "{text}");
    }

    #[test]
    fn wrong_values_are_explained() {
        let text = parse("cairn proxy --config d --admin nowhere").unwrap_err().to_string();
        assert!(text.contains("IP:PORT"), "{text}");
        let text = parse("cairn proxy --config d --drain-limit 5").unwrap_err().to_string();
        assert!(text.contains("250ms"), "{text}");
        assert!(parse("cairn proxy --config d --workers 0").is_err());
        assert!(parse("cairn proxy").unwrap_err().to_string().contains("--config"));
    }

    #[test]
    fn curl_needs_an_identity_to_expect() {
        let files = "--cert c --key k --roots r";
        let text = parse(&format!("cairn curl http://a/ {files}")).unwrap_err().to_string();
        assert!(text.contains("--expect"), "{text}");
        let line = format!(
            "cairn curl http://a/ {files} --expect spiffe://t/ns/n/sa/s -X PUT -H a:b -H c:d -d x --h2c"
        );
        let Ok(Command::Curl(args)) = parse(&line) else { panic!() };
        assert_eq!(args.method.as_deref(), Some("PUT"));
        assert_eq!(args.headers, ["a:b", "c:d"]);
        assert!(args.h2c);
        assert_eq!(args.max_time, Duration::from_secs(30));
        assert!(parse(&format!("{line} --upgrade websocket")).is_err());
    }
}
