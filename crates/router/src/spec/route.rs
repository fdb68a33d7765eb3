//! Routes. Envoy: `config.route.v3`.

use super::duration;
use super::matching::{HeaderMatch, QueryMatch, StringMatch};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Virtual hosts by domain. A request that no domain names gets 404.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Name, for logs and `/config`.
    #[serde(default)]
    pub name: String,
    /// Exact domain, then the longest `*.suffix`, then the longest `prefix.*`, then `*` (Envoy).
    pub virtual_hosts: Vec<VirtualHost>,
}

/// Routes of some domains, tried in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualHost {
    /// Name, unique in its table.
    pub name: String,
    /// `app.example`, `*.example`, `app.*` or `*`; a domain may stand in one virtual host only.
    pub domains: Vec<String>,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
    /// Applied to all routes, after the route's own.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub request_headers: HeaderOps,
    /// Applied to all routes, after the route's own.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub response_headers: HeaderOps,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Name, for logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// When the route applies.
    #[serde(rename = "match")]
    pub matches: RouteMatch,
    /// Forward to a cluster; exactly one of `route`, `redirect` and `direct_response`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Box<Forward>>,
    /// Answer with a redirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answer with a fixed response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// Applied after the weighted cluster's own.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub request_headers: HeaderOps,
    /// Applied after the weighted cluster's own.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub response_headers: HeaderOps,
    /// Delays and aborts, before anything else is done with the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Cross-origin requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Sent as `x-envoy-decorator-operation` on responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decorator: Option<String>,
}

/// Delays and aborts of some requests. Envoy: `filters.http.fault.v3.HTTPFault`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    /// Comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Comes after the delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A pause before the request goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultDelay {
    /// How long.
    #[serde(with = "duration")]
    pub fixed: Duration,
    /// Share of the requests in percent, 0 to 100.
    pub percent: f64,
}

/// An answer instead of the endpoint's: body `fault filter abort`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAbort {
    /// 200 to 599; or `grpc_status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// 0 to 16; what is not gRPC gets a 200 (Envoy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Share of the requests in percent, 0 to 100.
    pub percent: f64,
}

/// Cross-origin requests. Envoy: `filters.http.cors.v3.CorsPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Origins that may; exactly `*` is every one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_origins: Vec<StringMatch>,
    /// Value of `access-control-allow-methods` on preflights.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub allow_methods: String,
    /// Value of `access-control-allow-headers` on preflights.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub allow_headers: String,
    /// Value of `access-control-expose-headers` on responses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expose_headers: String,
    /// Value of `access-control-max-age` on preflights.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub max_age: String,
    /// `access-control-allow-credentials: true` is sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_credentials: bool,
    /// A preflight of another origin goes to the endpoint (default); otherwise it gets a bare 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_not_matching_preflights: Option<bool>,
}

/// All conditions must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    /// The path without its query, after normalisation.
    pub path: PathMatch,
    /// `false` compares `exact` and both prefixes without regard to ASCII case.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub case_sensitive: bool,
    /// Headers and pseudo-headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
    /// A condition that is not understood, and why: the route matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never: Option<String>,
}

/// How the path is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Equal, or starts with it followed by `/`. Must not end with `/`.
    PathSeparatedPrefix(String),
    /// RE2 syntax; the whole path must match.
    Regex(String),
}

/// Forward to a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forward {
    /// Name of the cluster; or `weighted_clusters`. A cluster that is not there gets
    /// `cluster_not_found_status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Clusters chosen by weight, in proportion to the sum.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weighted_clusters: Vec<WeightedCluster>,
    /// Status when the cluster does not exist: 404, 500 or 503 (default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_not_found_status: Option<u16>,
    /// From the end of the request to the end of the response; absent 15 s as Envoy, 0 = none.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Upper bound of a client's `grpc-timeout`; absent: the header is ignored, 0 = no bound (Envoy: `max_grpc_timeout`).
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub max_grpc_timeout: Option<Duration>,
    /// Absent: no retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Replaces the matched prefix or exact path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<String>,
    /// Replaces what the pattern finds in the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex_rewrite: Option<RegexRewrite>,
    /// Replaces `:authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_rewrite: Option<String>,
    /// The old `:authority` goes to `x-forwarded-host` when it is rewritten.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub append_x_forwarded_host: bool,
    /// Copies of the request, whose answers are thrown away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// How long neither side of a stream may be silent; absent: no bound at a waypoint.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// What a consistent choice of endpoints hangs on. Carried; endpoints are chosen by the cluster's
    /// policy without it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hash_policy: Vec<HashPolicy>,
}

/// One thing that a consistent choice of endpoints hangs on. Envoy: `RouteAction.HashPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashPolicy {
    /// A request header.
    Header(String),
    /// A cookie, which is set where it is missing and `ttl` is there.
    Cookie {
        /// Name.
        name: String,
        /// Its life; `0s`: of a session.
        #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
        ttl: Option<Duration>,
        /// Its path.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        path: String,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    QueryParameter(String),
}

/// One of the clusters of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// Name of the cluster.
    pub name: String,
    /// Share of the sum of all weights; 0 is never chosen.
    pub weight: u32,
    /// Applied first.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub request_headers: HeaderOps,
    /// Applied first.
    #[serde(default, skip_serializing_if = "HeaderOps::is_empty")]
    pub response_headers: HeaderOps,
    /// Replaces `:authority` before the route's own changes; a route's `host_rewrite` comes later and
    /// wins (Envoy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_rewrite: Option<String>,
}

/// Replaces what `pattern` finds by `substitution`, where `\1` is the first group (RE2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegexRewrite {
    /// RE2 pattern, searched for in the path (not anchored); every occurrence is replaced.
    pub pattern: String,
    /// Replacement; `\0` is the whole match, `\1` … `\9` are groups, `\\` a backslash.
    pub substitution: String,
}

/// When and how often a request is tried again. Envoy: `RetryPolicy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Conditions: `5xx`, `gateway-error`, `reset`, `reset-before-request`, `connect-failure`,
    /// `envoy-ratelimited`, `retriable-4xx`, `refused-stream`, `retriable-status-codes`, and for gRPC
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`.
    pub on: Vec<String>,
    /// Retries after the first try, 0 to 16; default 1 (Envoy).
    #[serde(default = "one")]
    pub attempts: u32,
    /// Bound of each try, from its start to the response's head; absent or 0: none of its own.
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// For `retriable-status-codes`, without which they are an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status_codes: Vec<u16>,
    /// Endpoints that were tried are avoided while there are others (Envoy: previous_hosts).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub avoid_previous_hosts: bool,
    /// How often another endpoint is drawn before a tried one is taken; 1 to 32.
    #[serde(default = "five")]
    pub host_selection_attempts: u32,
    /// Pause between tries.
    #[serde(default)]
    pub backoff: RetryBackoff,
}

/// Pause before retry n: random in 0 .. min(base * (2^n - 1), max).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBackoff {
    /// Default 25 ms.
    #[serde(with = "duration")]
    pub base: Duration,
    /// Default ten times the base.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

impl Default for RetryBackoff {
    fn default() -> Self {
        RetryBackoff { base: Duration::from_millis(25), max: None }
    }
}

/// A copy of some requests, body included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Name of the cluster.
    pub cluster: String,
    /// Share of the requests in percent, 0 to 100; default 100.
    #[serde(default = "hundred")]
    pub percent: f64,
    /// `:authority` gets `-shadow` appended (Envoy's default; istiod switches it off).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow_suffix: bool,
}

/// A redirect: what is absent stays as in the request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// New host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// New port; 80 with http and 443 with https are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// New path, query included if it has one; or `prefix_rewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces the matched prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<String>,
    /// 301 (default), 302, 303, 307 or 308.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The query is dropped.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strip_query: bool,
}

/// A fixed response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// Sent as `text/plain` unless the route's response headers say otherwise; at most 1 MiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

/// Changes to headers: removals first, then what overwrites, then what adds. Values are formatted
/// after the removals and before anything is put (Envoy).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderOps {
    /// In order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
    /// Names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

impl HeaderOps {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// A header that is put on a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderValue {
    /// Name; `:`-headers other than `:authority`/`host` and `:path` cannot be set.
    pub name: String,
    /// Value; `%OPERATOR%`s of Envoy's formatter are replaced, `%%` is a percent sign. A value that
    /// is empty then changes nothing (Envoy).
    pub value: String,
    /// What happens to a header that is there.
    #[serde(default)]
    pub action: HeaderAppend,
}

/// What happens to a header that is there. Envoy: `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderAppend {
    /// Another value is added.
    #[default]
    Append,
    /// It is replaced.
    Overwrite,
    /// It stays, and nothing is added.
    AddIfAbsent,
    /// It is replaced; nothing happens where it is absent.
    OverwriteIfExists,
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn one() -> u32 {
    1
}

fn five() -> u32 {
    5
}

fn hundred() -> f64 {
    100.0
}
