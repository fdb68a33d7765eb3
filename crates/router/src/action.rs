//! What a route does with a request: forward it, redirect it, or answer it.

use crate::error::Context;
use crate::header_ops::{CompiledHeaderOps, Message};
use crate::matching::re2;
use crate::path;
use crate::request::RequestView;
use crate::retry::RetryPolicy;
use crate::route::Route;
use crate::share::Share;
use crate::spec;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use regex::bytes::{Captures, Regex, Replacer};
use std::sync::Arc;
use std::time::Duration;

/// Bound of a request where a route says nothing (Envoy).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest body of a direct response, in bytes.
pub const MAX_DIRECT_RESPONSE: usize = 1 << 20;
/// A rewritten path ends here, in bytes.
const MAX_REWRITTEN: usize = 1 << 20;

/// Forward to a cluster.
#[derive(Debug)]
pub struct Forward {
    clusters: Clusters,
    /// Answer when the cluster does not exist.
    pub cluster_not_found_status: StatusCode,
    /// From the end of the request to the end of the response; `None`: no bound.
    pub timeout: Option<Duration>,
    /// Bound of a client's `grpc-timeout`; `None`: the header is ignored, zero: no bound.
    pub max_grpc_timeout: Option<Duration>,
    /// `None`: no retries.
    pub retry: Option<RetryPolicy>,
    rewrite: Option<PathRewrite>,
    /// New `:authority`, set after all changes to headers.
    pub host_rewrite: Option<HeaderValue>,
    /// The old `:authority` goes to `x-forwarded-host` when [`host_rewrite`](Self::host_rewrite)
    /// replaces it.
    pub append_x_forwarded_host: bool,
    /// Copies of the request.
    pub mirrors: Vec<Mirror>,
    /// How long neither side of a stream may be silent; `None`: no bound.
    pub idle_timeout: Option<Duration>,
}

/// One of the clusters of a split.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Name of the cluster.
    pub name: Arc<str>,
    /// Applied first.
    pub request_headers: CompiledHeaderOps,
    /// Applied first.
    pub response_headers: CompiledHeaderOps,
    /// New `:authority`, set after [`request_headers`](Self::request_headers) and before the
    /// route's changes. A route's own wins over it, because it comes later (Envoy).
    pub host_rewrite: Option<HeaderValue>,
}

/// A copy of some requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// `:authority` gets `-shadow` appended.
    pub shadow_suffix: bool,
    share: Share,
}

/// Answer with a redirect.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    scheme: Option<&'static str>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<RedirectPath>,
    strip_query: bool,
}

/// Answer with a fixed response.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: StatusCode,
    /// `text/plain` unless response headers say otherwise.
    pub body: Bytes,
}

#[derive(Debug)]
enum Clusters {
    One(Arc<str>),
    /// With the sums of the weights up to and including each.
    Split(Box<[(u64, WeightedCluster)]>),
}

#[derive(Debug)]
enum PathRewrite {
    Matched(String),
    Regex { pattern: Regex, substitution: Substitution },
}

#[derive(Debug)]
enum RedirectPath {
    Whole(String),
    Matched(String),
}

/// RE2's replacement text.
#[derive(Debug)]
struct Substitution(Vec<Piece>);

#[derive(Debug, PartialEq)]
enum Piece {
    Text(Vec<u8>),
    Group(usize),
}

impl Forward {
    /// Compiles the action.
    pub fn compile(forward: &spec::Forward, at: &mut Context) -> Option<Forward> {
        let spec::Forward {
            cluster,
            weighted_clusters,
            cluster_not_found_status,
            timeout,
            max_grpc_timeout,
            retry,
            prefix_rewrite,
            regex_rewrite,
            host_rewrite,
            append_x_forwarded_host,
            mirrors,
            idle_timeout,
            // Endpoints are chosen by the cluster's policy alone.
            hash_policy: _,
        } = forward;
        let clusters = Clusters::compile(cluster.as_deref(), weighted_clusters, at);
        let status = at.field("cluster_not_found_status", |at| match cluster_not_found_status {
            None => Some(StatusCode::SERVICE_UNAVAILABLE),
            Some(code @ (404 | 500 | 503)) => StatusCode::from_u16(*code).ok(),
            Some(code) => at.reject(format!("{code} is none of 404, 500 and 503")),
        });
        let retry = optional("retry", retry.as_ref(), at, RetryPolicy::compile);
        let rewrite = PathRewrite::compile(prefix_rewrite.as_deref(), regex_rewrite.as_ref(), at);
        let host_rewrite = optional("host_rewrite", host_rewrite.as_ref(), at, authority);
        let mirrors = at.each("mirrors", mirrors, Mirror::compile);
        Some(Forward {
            clusters: clusters?,
            cluster_not_found_status: status?,
            timeout: Some(timeout.unwrap_or(DEFAULT_TIMEOUT)).filter(|bound| !bound.is_zero()),
            max_grpc_timeout: *max_grpc_timeout,
            retry: retry?,
            rewrite: rewrite?,
            host_rewrite: host_rewrite?,
            append_x_forwarded_host: *append_x_forwarded_host,
            mirrors: mirrors?,
            idle_timeout: idle_timeout.filter(|bound| !bound.is_zero()),
        })
    }

    /// Chooses a cluster by weight; `random` is uniform over 64 bits.
    pub fn pick_cluster(&self, random: u64) -> (&Arc<str>, Option<&WeightedCluster>) {
        match &self.clusters {
            Clusters::One(name) => (name, None),
            Clusters::Split(split) => {
                let total = split.last().map_or(0, |(sum, _)| *sum);
                let point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
                let at = split.partition_point(|(sum, _)| *sum <= point);
                let (_, cluster) = split.get(at).expect("point is less than the last sum");
                (&cluster.name, Some(cluster))
            }
        }
    }

    /// Names of all clusters that requests may go to, mirrors included.
    pub fn cluster_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, split) = match &self.clusters {
            Clusters::One(name) => (Some(name), [].as_slice()),
            Clusters::Split(split) => (None, &**split),
        };
        let split = split.iter().map(|(_, cluster)| &cluster.name);
        one.into_iter().chain(split).chain(self.mirrors.iter().map(|mirror| &mirror.cluster))
    }

    /// Bound of a gRPC request whose client asks for `requested`; `None`: no bound.
    pub fn grpc_timeout(&self, requested: Option<Duration>) -> Option<Duration> {
        let Some(max) = self.max_grpc_timeout else { return self.timeout };
        let requested = requested.filter(|bound| !bound.is_zero());
        match (requested, max) {
            (requested, Duration::ZERO) => requested,
            (Some(requested), max) => Some(requested.min(max)),
            (None, max) => Some(max),
        }
    }

    /// The path and query to forward; `None`: no rewrite is configured. With one configured the
    /// original goes to `x-envoy-original-path`, even if the rewrite changes nothing (Envoy).
    pub fn rewrite_path(&self, route: &Route, path_and_query: &str) -> Option<String> {
        let (path, _) = path::split(path_and_query);
        let rewritten = match self.rewrite.as_ref()? {
            PathRewrite::Matched(text) => replace_matched(route, path, text),
            PathRewrite::Regex { pattern, substitution } => {
                let bytes = pattern.replace_all(path.as_bytes(), substitution).into_owned();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        Some(rewritten + &path_and_query[path.len()..])
    }
}

impl Clusters {
    fn compile(
        cluster: Option<&str>,
        weighted: &[spec::WeightedCluster],
        at: &mut Context,
    ) -> Option<Clusters> {
        match (cluster, weighted) {
            (Some(""), []) => at.field("cluster", |at| at.reject("is empty")),
            (Some(cluster), []) => Some(Clusters::One(cluster.into())),
            (None, []) => at.reject("needs `cluster` or `weighted_clusters`"),
            (Some(_), _) => at.reject("has both `cluster` and `weighted_clusters`"),
            (None, weighted) => {
                let compiled = at.each("weighted_clusters", weighted, WeightedCluster::compile)?;
                let mut sum = 0;
                let mut split = Vec::with_capacity(compiled.len());
                for (cluster, spec) in compiled.into_iter().zip(weighted) {
                    sum += u64::from(spec.weight);
                    if spec.weight > 0 {
                        split.push((sum, cluster));
                    }
                }
                if sum == 0 {
                    return at.field("weighted_clusters", |at| {
                        at.reject(
                            "has no weight above 0; use a direct response to refuse everything",
                        )
                    });
                }
                Some(Clusters::Split(split.into()))
            }
        }
    }
}

impl WeightedCluster {
    fn compile(cluster: &spec::WeightedCluster, at: &mut Context) -> Option<WeightedCluster> {
        let spec::WeightedCluster {
            name,
            weight: _,
            request_headers,
            response_headers,
            host_rewrite,
        } = cluster;
        if name.is_empty() {
            at.field("name", |at| at.error("is empty"));
        }
        let request_headers = at.field("request_headers", |at| {
            CompiledHeaderOps::compile(request_headers, Message::Request, at)
        });
        let response_headers = at.field("response_headers", |at| {
            CompiledHeaderOps::compile(response_headers, Message::Response, at)
        });
        let host_rewrite = optional("host_rewrite", host_rewrite.as_ref(), at, authority);
        Some(WeightedCluster {
            name: (!name.is_empty()).then(|| name.as_str().into())?,
            request_headers: request_headers?,
            response_headers: response_headers?,
            host_rewrite: host_rewrite?,
        })
    }
}

impl Mirror {
    fn compile(mirror: &spec::Mirror, at: &mut Context) -> Option<Mirror> {
        let spec::Mirror { cluster, percent, shadow_suffix } = mirror;
        if cluster.is_empty() {
            at.field("cluster", |at| at.error("is empty"));
        }
        let share = Share::compile(*percent, at);
        Some(Mirror {
            cluster: (!cluster.is_empty()).then(|| cluster.as_str().into())?,
            shadow_suffix: *shadow_suffix,
            share: share?,
        })
    }

    /// This request is copied; `random` is uniform over 64 bits.
    pub fn applies(&self, random: u64) -> bool {
        self.share.applies(random)
    }
}

impl PathRewrite {
    /// `Some(None)`: nothing is rewritten.
    fn compile(
        prefix: Option<&str>,
        regex: Option<&spec::RegexRewrite>,
        at: &mut Context,
    ) -> Option<Option<PathRewrite>> {
        match (prefix, regex) {
            (None, None) => Some(None),
            (Some(_), Some(_)) => at.reject("has both `prefix_rewrite` and `regex_rewrite`"),
            (Some(text), None) => at.field("prefix_rewrite", |at| {
                path_text(text, at).map(|text| Some(PathRewrite::Matched(text)))
            }),
            (None, Some(spec::RegexRewrite { pattern, substitution })) => {
                at.field("regex_rewrite", |at| {
                    let regex = at.field("pattern", |at| {
                        let regex = re2::search(pattern);
                        regex.map_err(|error| at.error(format!("`{pattern}` {error}"))).ok()
                    });
                    let groups = regex.as_ref().map_or(usize::MAX, Regex::captures_len);
                    let substitution = at.field("substitution", |at| {
                        let parsed = Substitution::parse(substitution, groups);
                        parsed.map_err(|error| at.error(error)).ok()
                    });
                    Some(Some(PathRewrite::Regex { pattern: regex?, substitution: substitution? }))
                })
            }
        }
    }
}

impl Substitution {
    /// Reads RE2's syntax; `groups` counts the whole match too.
    fn parse(text: &str, groups: usize) -> Result<Substitution, String> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let escaped = if c == '\\' { Some(chars.next()) } else { None };
            match escaped {
                None if c.is_ascii_graphic() && c != '#' => literal.push(c as u8),
                None => return Err(format!("contains {c:?}, which no path can have")),
                Some(Some('\\')) => literal.push(b'\\'),
                Some(Some(digit @ '0'..='9')) => {
                    let group = digit as usize - '0' as usize;
                    if group >= groups {
                        return Err(format!("`\\{group}`: the pattern has {} groups", groups - 1));
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Group(group));
                }
                Some(_) => {
                    return Err("a backslash stands before a digit or a backslash".to_owned());
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Substitution(pieces))
    }
}

impl Replacer for &Substitution {
    fn replace_append(&mut self, found: &Captures<'_>, out: &mut Vec<u8>) {
        for piece in &self.0 {
            let text = match piece {
                Piece::Text(text) => text.as_slice(),
                Piece::Group(group) => found.get(*group).map_or(&[][..], |group| group.as_bytes()),
            };
            let room = MAX_REWRITTEN.saturating_sub(out.len());
            out.extend_from_slice(text.get(..room).unwrap_or(text));
        }
    }
}

impl Redirect {
    /// Compiles the action.
    pub fn compile(redirect: &spec::Redirect, at: &mut Context) -> Option<Redirect> {
        let spec::Redirect { scheme, host, port, path, prefix_rewrite, status, strip_query } =
            redirect;
        let scheme = optional("scheme", scheme.as_deref(), at, |scheme, at| match scheme {
            "http" => Some("http"),
            "https" => Some("https"),
            _ => at.reject(format!("`{scheme}` is neither `http` nor `https`")),
        });
        let host = optional("host", host.as_ref(), at, |host, at| {
            authority(host, at).map(|_| host.clone())
        });
        let path = match (path.as_deref(), prefix_rewrite.as_deref()) {
            (None, None) => Some(None),
            (Some(_), Some(_)) => at.reject("has both `path` and `prefix_rewrite`"),
            (Some(text), None) => {
                at.field("path", |at| path_text(text, at).map(|t| Some(RedirectPath::Whole(t))))
            }
            (None, Some(text)) => at.field("prefix_rewrite", |at| {
                path_text(text, at).map(|text| Some(RedirectPath::Matched(text)))
            }),
        };
        let status = at.field("status", |at| match status {
            None => Some(StatusCode::MOVED_PERMANENTLY),
            Some(code @ (301 | 302 | 303 | 307 | 308)) => StatusCode::from_u16(*code).ok(),
            Some(code) => at.reject(format!("{code} is none of 301, 302, 303, 307 and 308")),
        });
        if *port == Some(0) {
            at.field("port", |at| at.error("is 0"));
        }
        Some(Redirect {
            status: status?,
            scheme: scheme?,
            host: host?,
            port: if *port == Some(0) { return None } else { *port },
            path: path?,
            strip_query: *strip_query,
        })
    }

    /// Value of `location`. What is not configured stays as in the request; a port that is its
    /// scheme's own is left out, and so is the request's when the scheme changes.
    pub fn location(&self, route: &Route, request: &RequestView<'_>) -> String {
        let scheme = self.scheme.unwrap_or(request.scheme);
        let port = self.port.filter(|port| default_port(scheme) != Some(*port));
        let host = match &self.host {
            Some(host) => host,
            None => self.request_host(scheme, request),
        };
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port {
            location.push_str(&format!(":{port}"));
        }
        let (path, own_query) = match &self.path {
            None => (request.path.to_owned(), false),
            Some(RedirectPath::Whole(path)) => (path.clone(), path.contains('?')),
            Some(RedirectPath::Matched(text)) => {
                (replace_matched(route, request.path, text), false)
            }
        };
        if !path.starts_with('/') {
            location.push('/');
        }
        location.push_str(&path);
        if let Some(query) = request.query.filter(|_| !own_query && !self.strip_query) {
            location.push('?');
            location.push_str(query);
        }
        location
    }

    /// The request's host, without a port that would be wrong with the new scheme or port.
    fn request_host<'a>(&self, scheme: &str, request: &RequestView<'a>) -> &'a str {
        let authority = request.authority;
        let Some((host, port)) = authority.rsplit_once(':') else { return authority };
        if host.starts_with('[') && !host.ends_with(']') {
            return authority;
        }
        let proto = request.headers.get("x-forwarded-proto").and_then(|proto| proto.to_str().ok());
        let proto = proto.unwrap_or(request.scheme);
        let of_proto = default_port(proto).is_some_and(|known| port.parse() == Ok(known));
        if self.port.is_some() || (scheme != proto && of_proto) { host } else { authority }
    }
}

impl DirectResponse {
    /// Compiles the action.
    pub fn compile(response: &spec::DirectResponse, at: &mut Context) -> Option<DirectResponse> {
        let spec::DirectResponse { status, body } = response;
        let status = at.field("status", |at| match status {
            200..=599 => StatusCode::from_u16(*status).ok(),
            _ => at.reject(format!("{status} is not in 200 to 599")),
        });
        let body = at.field("body", |at| match body.len() {
            0..=MAX_DIRECT_RESPONSE => Some(Bytes::copy_from_slice(body.as_bytes())),
            len => at.reject(format!("has {len} bytes; {MAX_DIRECT_RESPONSE} are the most")),
        });
        Some(DirectResponse { status: status?, body: body? })
    }
}

/// Puts `text` in place of what the route matched.
fn replace_matched(route: &Route, path: &str, text: &str) -> String {
    let matched = route.matched_len().unwrap_or(path.len());
    format!("{text}{}", path.get(matched..).unwrap_or_default())
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Compiles a field that may be absent: `Some(None)`; `None` after an error.
fn optional<S: Copy, T>(
    field: &str,
    value: Option<S>,
    at: &mut Context,
    compile: impl FnOnce(S, &mut Context) -> Option<T>,
) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => at.field(field, |at| compile(value, at)).map(Some),
    }
}

fn authority(text: &String, at: &mut Context) -> Option<HeaderValue> {
    match text.parse::<http::uri::Authority>() {
        Ok(_) => HeaderValue::from_str(text).ok(),
        Err(_) => at.reject(format!("`{text}` is no host, and no host and port")),
    }
}

fn path_text(text: &str, at: &mut Context) -> Option<String> {
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        _ if text.is_empty() => at.reject("is empty; `/` is the shortest path"),
        Some(c) => at.reject(format!("contains {c:?}, which no path can have")),
        None => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
