//! What types cannot say about one file: ranges, names, addresses.

use super::config::{DrainConfig, Limits, LoadConfig};
use super::document::{Document, MeshPart};
use super::error::Problem;
use cairn_identity::TrustDomains;
use cairn_router::spec::duration;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Threads, at most.
const MAX_WORKERS: usize = 1024;
/// Trust domains of one mesh, at most.
const MAX_TRUST_DOMAINS: usize = 1024;
/// A DNS label has at most so many characters (RFC 1035).
const MAX_LABEL: usize = 63;

/// Tunnels at once per HBONE connection (`cairn_hbone::MAX_CONCURRENT_STREAMS`).
const CONCURRENT_STREAMS: u32 = 200;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);

/// Everything that is wrong with a file by itself.
pub(super) fn problems(document: &Document) -> Vec<Problem> {
    let Document { workers, placement: _, drain, admin: _, load, meshes } = document;
    let mut checks = Checks { prefix: String::new(), problems: Vec::new() };
    checks.range("workers", *workers, 0..=MAX_WORKERS, "0 stands for the number of cores");
    if let Some(DrainConfig { grace, limit }) = drain {
        checks.time("drain.grace", Some(*grace), Duration::ZERO..=HOUR);
        checks.time("drain.limit", Some(*limit), Duration::ZERO..=DAY);
    }
    if let Some(load) = load {
        checks.load(load);
    }
    for (index, mesh) in meshes.iter().enumerate() {
        checks.prefix = format!("meshes[{index}].");
        checks.mesh(mesh);
    }
    checks.problems
}

struct Checks {
    /// Put before each field.
    prefix: String,
    problems: Vec<Problem>,
}

impl Checks {
    fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.problems.push(Problem::of_field(format!("{}{field}", self.prefix), message));
    }

    fn load(&mut self, load: &LoadConfig) {
        let LoadConfig { bandwidth: _, in_flight, cpu, connections, units, tenants, zone: _ } =
            load;
        for (field, value) in [
            ("load.in_flight", in_flight),
            ("load.cpu", cpu),
            ("load.connections", connections),
            ("load.units", units),
        ] {
            if value.is_some_and(|value| !value.is_finite() || value <= 0.0) {
                self.wrong(field, "expected a number above 0");
            }
        }
        self.range("load.tenants", *tenants, 0..=1000, "the others are one row");
    }

    fn range<T: PartialOrd + Display>(
        &mut self,
        field: &str,
        value: Option<T>,
        allowed: RangeInclusive<T>,
        why: &str,
    ) {
        if let Some(value) = value.filter(|value| !allowed.contains(value)) {
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            let message =
                format!("found {value}, expected {} to {}{why}", allowed.start(), allowed.end());
            self.wrong(field, message);
        }
    }

    fn time(&mut self, field: &str, value: Option<Duration>, allowed: RangeInclusive<Duration>) {
        if let Some(value) = value.filter(|value| !allowed.contains(value)) {
            let [value, start, end] =
                [value, *allowed.start(), *allowed.end()].map(duration::print);
            self.wrong(field, format!("found {value}, expected {start} to {end}"));
        }
    }

    fn mesh(&mut self, mesh: &MeshPart) {
        let MeshPart {
            name,
            listen: _,
            identity: _,
            trust_domains,
            limits,
            destinations: _,
            clusters: _,
            endpoints: _,
            workloads: _,
        } = mesh;
        if !is_dns_label(name) {
            self.wrong(
                "name",
                format!(
                    "`{name}` is no name of a mesh: write 1 to {MAX_LABEL} of `a`-`z`, `0`-`9` and `-`, \
                     with a letter or digit at both ends"
                ),
            );
        }
        if let Some(domains) = trust_domains {
            if domains.len() > MAX_TRUST_DOMAINS {
                let message = format!(
                    "found {} trust domains, expected at most {MAX_TRUST_DOMAINS}",
                    domains.len()
                );
                self.wrong("trust_domains", message);
            }
            for (index, domain) in domains.iter().enumerate() {
                if let Err(reason) = TrustDomains::new([domain.as_str()]) {
                    let message =
                        format!("`{domain}` is no trust domain such as `cluster.local`: {reason}");
                    self.wrong(&format!("trust_domains[{index}]"), message);
                }
            }
        }
        if let Some(limits) = limits {
            self.limits(limits);
        }
    }

    fn limits(&mut self, limits: &Limits) {
        let Limits {
            max_connections,
            handshake_timeout,
            max_concurrent_streams,
            initial_stream_window,
            initial_connection_window,
            max_frame_size,
            keepalive_interval,
            keepalive_timeout,
            detection_timeout,
            max_request_headers_kib,
            max_request_headers,
            max_response_headers_kib,
            max_response_headers,
            request_head_timeout,
            http_idle_timeout,
            tcp_idle_timeout,
            max_inner_streams,
            max_requests_in_flight,
            max_replay,
            max_mirrors,
            pool_max_streams,
            pool_max_connections,
            pool_idle_timeout,
            max_idle_per_endpoint,
            max_upstream_streams,
        } = limits.clone();
        // RFC 9113, 6.9.2 and 6.9.1: the initial window and the largest one.
        let window = 65_535..=0x7fff_ffff;
        // RFC 9113, 6.5.2.
        let frame = 16_384..=16_777_215;
        let short = Duration::from_millis(100);
        self.range("limits.max_connections", max_connections, 1..=1_000_000, "");
        self.time("limits.handshake_timeout", handshake_timeout, short..=5 * 60 * SECOND);
        if let Some(streams) =
            max_concurrent_streams.filter(|streams| *streams != CONCURRENT_STREAMS)
        {
            let message = format!(
                "found {streams}, expected {CONCURRENT_STREAMS}, which cannot be changed: ztunnel opens up to 100 \
                 tunnels before it has seen the number, and keeps its applications waiting behind a lower one"
            );
            self.wrong("limits.max_concurrent_streams", message);
        }
        self.range("limits.initial_stream_window", initial_stream_window, window.clone(), "bytes");
        self.range("limits.initial_connection_window", initial_connection_window, window, "bytes");
        self.range("limits.max_frame_size", max_frame_size, frame, "bytes");
        self.time("limits.keepalive_interval", keepalive_interval, SECOND..=HOUR);
        self.time("limits.keepalive_timeout", keepalive_timeout, SECOND..=HOUR);
        self.time("limits.detection_timeout", detection_timeout, Duration::from_millis(10)..=HOUR);
        self.range("limits.max_request_headers_kib", max_request_headers_kib, 1..=8_192, "KiB");
        self.range("limits.max_request_headers", max_request_headers, 1..=256, "");
        self.range("limits.max_response_headers_kib", max_response_headers_kib, 1..=8_192, "KiB");
        self.range("limits.max_response_headers", max_response_headers, 1..=256, "");
        self.time("limits.request_head_timeout", request_head_timeout, short..=HOUR);
        self.time("limits.http_idle_timeout", http_idle_timeout, SECOND..=DAY);
        self.time("limits.tcp_idle_timeout", tcp_idle_timeout, SECOND..=DAY);
        self.range("limits.max_inner_streams", max_inner_streams, 1..=65_536, "");
        self.range("limits.max_requests_in_flight", max_requests_in_flight, 1..=10_000_000, "");
        self.range("limits.max_replay", max_replay, 0..=64 << 20, "bytes");
        self.range("limits.max_mirrors", max_mirrors, 0..=65_536, "");
        self.range("limits.pool_max_streams", pool_max_streams, 1..=200, "ztunnel accepts 200");
        self.range("limits.pool_max_connections", pool_max_connections, 1..=10_000, "");
        self.time("limits.pool_idle_timeout", pool_idle_timeout, SECOND..=DAY);
        self.range("limits.max_idle_per_endpoint", max_idle_per_endpoint, 0..=65_536, "");
        self.range("limits.max_upstream_streams", max_upstream_streams, 1..=65_536, "");
        if let (Some(stream), Some(connection)) = (initial_stream_window, initial_connection_window)
            && stream > connection
        {
            let message = format!(
                "found {connection}, less than `initial_stream_window` {stream}: one tunnel would fill the connection"
            );
            self.wrong("limits.initial_connection_window", message);
        }
    }
}

fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=MAX_LABEL).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}
