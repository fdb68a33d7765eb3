//! What CONNECT can name, and what happens to its bytes.

use super::duration;
use super::matching::CidrRange;
use super::observe::Observe;
use super::rbac::Rbac;
use super::route::{HeaderOps, RouteTable};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// A service port, or a workload.
///
/// With both chains the first bytes decide: HTTP/1.1 and h2c go to `http`, everything else,
/// and a client that stays silent, to `tcp`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Unique name, for example `inbound-vip|80|http|app.shop.svc.cluster.local`.
    pub name: String,
    /// Namespace of its owner: with the mesh's name, the tenant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Addresses or networks by which it is reached. `0.0.0.0` and `::` are never matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<CidrRange>,
    /// Host names by which it is reached (`CONNECT host:port`), compared without regard to case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Port; absent: every port (workloads).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Policies for the connection, decided before any byte passes.
    #[serde(default, skip_serializing_if = "ConnectionPolicy::is_empty")]
    pub connection: ConnectionPolicy,
    /// What is done with HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpChain>,
    /// What is done with other bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpChain>,
}

/// Policies for a connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionPolicy {
    /// In order; refusal by one ends it with CONNECT 403.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rbac: Vec<Rbac>,
}

impl ConnectionPolicy {
    /// No policy.
    pub fn is_empty(&self) -> bool {
        self.rbac.is_empty()
    }
}

/// What is done with HTTP requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpChain {
    /// In Envoy's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
    /// Where requests go.
    pub routes: RouteTable,
    /// `/a/../b` and `/%61` are resolved before policies and routes see the path (default).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub normalize_path: bool,
    /// `//` becomes `/` before policies and routes see the path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merge_slashes: bool,
    /// HTTP/1.0 is answered 426 unless this is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_http_10: bool,
    /// `Upgrade` tokens that pass; others get 403. Default `[websocket]`.
    #[serde(default = "websocket")]
    pub upgrades: Vec<String>,
    /// Value of `server` on responses. Default `istio-envoy`.
    #[serde(default = "server", skip_serializing_if = "is_server")]
    pub server: String,
    /// What becomes of a `server` header that the endpoint sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub server_mode: ServerMode,
    /// What becomes of `x-forwarded-client-cert`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub forwarded_client_cert: ForwardedClientCert,
    /// A request without `x-request-id` gets one (default).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub generate_request_id: bool,
    /// `x-forwarded-port` is set where it is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append_x_forwarded_port: bool,
    /// No `x-envoy-*` headers are put on requests and responses. Envoy: the router's `suppress_envoy_headers`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suppress_envoy_headers: bool,
    /// What is done with `%2F` and `%5C` in paths.
    #[serde(default, skip_serializing_if = "is_default")]
    pub escaped_slashes: EscapedSlashes,
    /// The client's end of a tunnel is closed after so long without a request; absent: the instance's bound.
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// What is told of its requests beyond the standard metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe: Option<Arc<Observe>>,
    /// Why it cannot be honoured: every request gets 503 with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// What becomes of a `server` header that the endpoint sent. Envoy: `ServerHeaderTransformation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMode {
    /// Ours takes its place.
    #[default]
    Overwrite,
    /// It stays; ours is set where there is none.
    AppendIfAbsent,
    /// It stays, and ours is never set.
    PassThrough,
}

/// What becomes of `x-forwarded-client-cert`. Envoy: `ForwardClientCertDetails`, of which a tunnel's
/// inner connection, that has no certificate of its own, knows two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedClientCert {
    /// It is dropped.
    #[default]
    Sanitize,
    /// It passes as the client sent it; filters may replace it.
    AlwaysForwardOnly,
}

/// What is done with `%2F` and `%5C` in paths. Envoy: `PathWithEscapedSlashesAction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// They become slashes, and the request goes on.
    UnescapeAndForward,
    /// They become slashes, and the client is redirected (307) to the path that results.
    UnescapeAndRedirect,
}

/// A step before routing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpFilter {
    /// Authorization.
    Rbac(Rbac),
    /// Changes to the request's headers, before routing. Envoy: `filters.http.header_mutation`.
    RequestHeaders(HeaderOps),
}

/// What is done with opaque bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpChain {
    /// In order; decided before the server's first byte passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rbac: Vec<Rbac>,
    /// Chosen by weight.
    pub clusters: Vec<WeightedTcp>,
    /// No byte in either direction for so long ends it; absent or 0: the mesh's `tcp_idle_timeout`, 1 h (Envoy).
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// It ends after so long whatever passes; absent or 0: no bound.
    #[serde(with = "duration::optional", default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,
    /// What is told of its connections beyond the standard metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe: Option<Arc<Observe>>,
    /// Why it cannot be honoured: every connection is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// One of the clusters of a TCP chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedTcp {
    /// Name of the cluster.
    pub name: String,
    /// Share of the sum; default 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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

fn websocket() -> Vec<String> {
    vec!["websocket".to_owned()]
}

fn server() -> String {
    "istio-envoy".to_owned()
}

fn is_server(value: &str) -> bool {
    value == "istio-envoy"
}
