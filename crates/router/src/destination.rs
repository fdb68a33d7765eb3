//! What CONNECT can name, and what happens to its bytes.

use crate::error::Context;
use crate::header_ops::{CompiledHeaderOps, Message};
use crate::observe::Observe;
use crate::rbac::CompiledRbac;
use crate::route::RouteTable;
use crate::spec::{self, EscapedSlashes, ForwardedClientCert, ServerMode};
use http::{HeaderName, HeaderValue};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What a CONNECT names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetRef<'a> {
    /// An address and port.
    Addr(SocketAddr),
    /// A host name, in any case, and a port.
    Host(&'a str, u16),
}

/// A service port, or a workload.
#[derive(Debug)]
pub struct Destination {
    /// Unique name.
    pub name: Arc<str>,
    /// Whose it is.
    pub tenant: Tenant,
    /// `None`: every port.
    pub port: Option<u16>,
    /// Policies for the connection, decided in order before any byte passes.
    pub connection: Vec<CompiledRbac>,
    /// What is done with HTTP. With both chains the first bytes decide.
    pub http: Option<Arc<HttpChain>>,
    /// What is done with other bytes.
    pub tcp: Option<Arc<TcpChain>>,
    /// Why it, or one of its chains, cannot be honoured. For display: the chains themselves say
    /// what fails, and [`refusal`](Self::refusal) whether anything is left of it.
    pub broken: Option<Arc<str>>,
}

/// Whose a destination is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// Name of the mesh.
    pub mesh: Arc<str>,
    /// Namespace of the owner.
    pub namespace: Arc<str>,
}

/// What is done with HTTP requests.
#[derive(Debug)]
pub struct HttpChain {
    /// In order, before routing.
    pub filters: Vec<HttpFilter>,
    /// Where requests go.
    pub routes: RouteTable,
    /// Dot segments and percent-encoded unreserved characters are resolved first.
    pub normalize_path: bool,
    /// `//` becomes `/` first.
    pub merge_slashes: bool,
    /// HTTP/1.0 is answered; otherwise 426.
    pub accept_http_10: bool,
    /// `Upgrade` tokens that pass, in lower case; others get 403.
    pub upgrades: Vec<String>,
    /// Value of `server` on responses.
    pub server: HeaderValue,
    /// What becomes of a `server` header that the endpoint sent.
    pub server_mode: ServerMode,
    /// What becomes of `x-forwarded-client-cert`.
    pub forwarded_client_cert: ForwardedClientCert,
    /// A request without `x-request-id` gets one.
    pub generate_request_id: bool,
    /// `x-forwarded-port` is set where it is missing.
    pub append_x_forwarded_port: bool,
    /// No `x-envoy-*` headers are put on requests and responses.
    pub suppress_envoy_headers: bool,
    /// What is done with `%2F` and `%5C` in paths, before everything else.
    pub escaped_slashes: EscapedSlashes,
    /// The client's end of a tunnel is closed after so long without a request; more than 0. `None`:
    /// the instance's bound.
    pub idle_timeout: Option<Duration>,
    /// What is told of its requests beyond the standard metrics.
    pub observe: Option<Arc<Observe>>,
    /// Why it cannot be honoured: every request gets 503 with this reason. There are no filters and
    /// no routes then.
    pub broken: Option<Arc<str>>,
}

/// A step before routing.
#[derive(Debug)]
pub enum HttpFilter {
    /// Authorization.
    Rbac(CompiledRbac),
    /// Changes to the request's headers.
    RequestHeaders(CompiledHeaderOps),
}

/// What is done with opaque bytes.
#[derive(Debug)]
pub struct TcpChain {
    /// In order; decided before the server's first byte passes.
    pub rbac: Vec<CompiledRbac>,
    /// Weights that add up, and the clusters' names.
    clusters: Box<[(u64, Arc<str>)]>,
    /// No byte in either direction for so long ends it; more than 0. `None`: the instance's bound.
    pub idle_timeout: Option<Duration>,
    /// It ends after so long whatever passes; more than 0. `None`: no bound.
    pub max_duration: Option<Duration>,
    /// What is told of its connections beyond the standard metrics.
    pub observe: Option<Arc<Observe>>,
    /// Why it cannot be honoured: every connection is refused. There are no clusters then.
    pub broken: Option<Arc<str>>,
}

impl Destination {
    /// Checks and compiles. A chain with an error is broken; an error outside of the chains breaks
    /// them all, because the connection's policies stand there.
    pub(crate) fn compile(
        destination: &spec::Destination,
        mesh: &Arc<str>,
        at: &mut Context,
    ) -> Self {
        let spec::Destination { name, namespace, addresses, hosts, port, connection, http, tcp } =
            destination;
        let before = at.error_count();
        if name.is_empty() {
            at.field("name", |at| at.error("is empty"));
        }
        if addresses.is_empty() && hosts.is_empty() {
            at.error("needs `addresses` or `hosts`: nothing could name it");
        }
        at.each("hosts", hosts, |host, at| check_host(host, at));
        if *port == Some(0) {
            at.field("port", |at| at.error("0 is no port; leave it out for every port"));
        }
        if http.is_none() && tcp.is_none() {
            at.error("needs `http` or `tcp`: nothing could be done with its bytes");
        }
        let spec::ConnectionPolicy { rbac } = connection;
        let connection = at.field("connection", |at| at.each("rbac", rbac, CompiledRbac::compile));
        let all: Option<Arc<str>> = at.reason_since(before).map(Arc::from);
        let http = http.as_ref().map(|chain| {
            let compiled = parts(at, "http", |at| HttpChain::compile(chain, at));
            Arc::new(match (&all, compiled) {
                (None, Ok(chain)) => chain,
                (Some(reason), _) => HttpChain::broken(chain, Arc::clone(reason), at),
                (None, Err(reason)) => HttpChain::broken(chain, reason, at),
            })
        });
        let tcp = tcp.as_ref().map(|chain| {
            let compiled = parts(at, "tcp", |at| TcpChain::compile(chain, at));
            Arc::new(match (&all, compiled) {
                (None, Ok(chain)) => chain,
                (Some(reason), _) => TcpChain::broken(chain, Arc::clone(reason), at),
                (None, Err(reason)) => TcpChain::broken(chain, reason, at),
            })
        });
        let broken = all
            .or_else(|| http.as_ref().and_then(|chain| chain.broken.clone()))
            .or_else(|| tcp.as_ref().and_then(|chain| chain.broken.clone()));
        Destination {
            name: name.as_str().into(),
            tenant: Tenant { mesh: Arc::clone(mesh), namespace: namespace.as_str().into() },
            port: *port,
            connection: connection.unwrap_or_default(),
            http,
            tcp,
            broken,
        }
    }

    /// Why nothing can be done with any byte, so that CONNECT is refused (503). A broken HTTP chain
    /// is none: its clients are told inside of the tunnel.
    pub fn refusal(&self) -> Option<&Arc<str>> {
        match (&self.http, &self.tcp) {
            (Some(_), _) => None,
            (None, Some(tcp)) => tcp.broken.as_ref(),
            (None, None) => self.broken.as_ref(),
        }
    }
}

/// Compiles one chain; the error is why it could not be.
fn parts<T>(
    at: &mut Context,
    field: &str,
    compile: impl FnOnce(&mut Context) -> Option<T>,
) -> Result<T, Arc<str>> {
    let before = at.error_count();
    let compiled = at.field(field, compile);
    match (at.reason_since(before), compiled) {
        (None, Some(chain)) => Ok(chain),
        (reason, _) => Err(reason.map_or_else(|| "cannot be compiled".into(), Arc::from)),
    }
}

/// What a chain tells; `None`: it cannot be compiled.
fn observed(from: Option<&Arc<spec::Observe>>, at: &mut Context) -> Option<Option<Arc<Observe>>> {
    match from {
        Some(from) => {
            let known = at.observed().clone();
            at.field("observe", |at| known.get(from, || Observe::compile(from, at))).map(Some)
        }
        None => Some(None),
    }
}

fn check_host(host: &str, at: &mut Context) -> Option<()> {
    if host.is_empty() {
        at.reject("is empty")
    } else if host.parse::<IpAddr>().is_ok() {
        at.reject(format!("`{host}` is an address; it belongs in `addresses`"))
    } else if host.contains('*') {
        at.reject(format!("`{host}` has a wildcard; CONNECT names whole hosts"))
    } else if host.contains(':') {
        at.reject(format!("`{host}` has a port; it belongs in `port`"))
    } else if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        at.reject(format!("`{host}` is no host name"))
    } else {
        Some(())
    }
}

impl HttpChain {
    fn compile(chain: &spec::HttpChain, at: &mut Context) -> Option<Self> {
        let spec::HttpChain {
            filters,
            routes,
            normalize_path,
            merge_slashes,
            accept_http_10,
            upgrades,
            server,
            server_mode,
            forwarded_client_cert,
            generate_request_id,
            append_x_forwarded_port,
            suppress_envoy_headers,
            escaped_slashes,
            idle_timeout,
            observe,
            broken,
        } = chain;
        if let Some(reason) = broken {
            at.warn(format!("cannot be honoured, so requests get 503: {reason}"));
            return Some(HttpChain::broken(chain, reason.as_str().into(), at));
        }
        let filters = at.each("filters", filters, |filter, at| match filter {
            spec::HttpFilter::Rbac(rbac) => {
                at.field("rbac", |at| CompiledRbac::compile(rbac, at)).map(HttpFilter::Rbac)
            }
            spec::HttpFilter::RequestHeaders(ops) => at
                .field("request_headers", |at| {
                    CompiledHeaderOps::compile(ops, Message::Request, at)
                })
                .map(HttpFilter::RequestHeaders),
        });
        let routes = at.field("routes", |at| RouteTable::compile(routes, at));
        let upgrades = at.each("upgrades", upgrades, |token, at| {
            // A token has the characters of a header name (RFC 9110, 5.6.2).
            match HeaderName::from_bytes(token.as_bytes()) {
                Ok(token) => Some(token.as_str().to_owned()),
                Err(_) => at.reject(format!("`{token}` is no protocol name such as `websocket`")),
            }
        });
        let server = at.field("server", |at| match server_value(server) {
            Some(value) => Some(value),
            None => at.reject("must be visible text, as for a header value"),
        });
        Some(HttpChain {
            filters: filters?,
            routes: routes?,
            normalize_path: *normalize_path,
            merge_slashes: *merge_slashes,
            accept_http_10: *accept_http_10,
            upgrades: upgrades?,
            server: server?,
            server_mode: *server_mode,
            forwarded_client_cert: *forwarded_client_cert,
            generate_request_id: *generate_request_id,
            append_x_forwarded_port: *append_x_forwarded_port,
            suppress_envoy_headers: *suppress_envoy_headers,
            escaped_slashes: *escaped_slashes,
            idle_timeout: idle_timeout.filter(|timeout| !timeout.is_zero()),
            observe: observed(observe.as_ref(), at)?,
            broken: None,
        })
    }

    /// One that answers every request with 503.
    fn broken(chain: &spec::HttpChain, reason: Arc<str>, at: &mut Context) -> Self {
        HttpChain {
            filters: Vec::new(),
            routes: RouteTable::default(),
            normalize_path: chain.normalize_path,
            merge_slashes: chain.merge_slashes,
            accept_http_10: chain.accept_http_10,
            upgrades: Vec::new(),
            server: server_value(&chain.server)
                .unwrap_or_else(|| HeaderValue::from_static("istio-envoy")),
            server_mode: chain.server_mode,
            forwarded_client_cert: chain.forwarded_client_cert,
            generate_request_id: chain.generate_request_id,
            append_x_forwarded_port: chain.append_x_forwarded_port,
            suppress_envoy_headers: chain.suppress_envoy_headers,
            escaped_slashes: EscapedSlashes::KeepUnchanged,
            idle_timeout: chain.idle_timeout.filter(|timeout| !timeout.is_zero()),
            observe: observed(chain.observe.as_ref(), at).flatten(),
            broken: Some(reason),
        }
    }

    /// An `Upgrade` token, in any case, may pass.
    pub fn allows_upgrade(&self, token: &str) -> bool {
        self.upgrades.iter().any(|allowed| allowed.eq_ignore_ascii_case(token))
    }
}

fn server_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok().filter(|value| !value.is_empty())
}

impl TcpChain {
    fn compile(chain: &spec::TcpChain, at: &mut Context) -> Option<Self> {
        let spec::TcpChain { rbac, clusters, idle_timeout, max_duration, observe, broken } = chain;
        if let Some(reason) = broken {
            at.warn(format!("cannot be honoured, so connections are refused: {reason}"));
            return Some(TcpChain::broken(chain, reason.as_str().into(), at));
        }
        let rbac = at.each("rbac", rbac, CompiledRbac::compile);
        let mut sum = 0_u64;
        let names = at.each("clusters", clusters, |cluster, at| {
            let spec::WeightedTcp { name, weight } = cluster;
            if name.is_empty() {
                return at.field("name", |at| at.reject("is empty"));
            }
            sum += u64::from(*weight);
            Some((sum, Arc::from(name.as_str())))
        })?;
        if sum == 0 {
            return at.field("clusters", |at| at.reject("need one with a weight of 1 or more"));
        }
        Some(TcpChain {
            rbac: rbac?,
            clusters: names.into(),
            idle_timeout: idle_timeout.filter(|timeout| !timeout.is_zero()),
            max_duration: max_duration.filter(|timeout| !timeout.is_zero()),
            observe: observed(observe.as_ref(), at)?,
            broken: None,
        })
    }

    /// One that refuses every connection.
    fn broken(chain: &spec::TcpChain, reason: Arc<str>, at: &mut Context) -> Self {
        TcpChain {
            rbac: Vec::new(),
            clusters: [].into(),
            idle_timeout: None,
            max_duration: None,
            observe: observed(chain.observe.as_ref(), at).flatten(),
            broken: Some(reason),
        }
    }

    /// Chooses a cluster by weight; `random` is uniform over 64 bits. `None`: the chain is broken.
    pub fn pick_cluster(&self, random: u64) -> Option<&Arc<str>> {
        let (total, _) = self.clusters.last()?;
        let point = ((u128::from(random) * u128::from(*total)) >> 64) as u64;
        let at = self.clusters.partition_point(|(sum, _)| *sum <= point);
        self.clusters.get(at).map(|(_, name)| name)
    }

    /// Names of all its clusters.
    pub fn cluster_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.clusters.iter().map(|(_, name)| name)
    }
}
