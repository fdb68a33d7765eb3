//! What CONNECT can name, and what happens to its bytes.

use crate::error::Context;
use crate::rbac::CompiledRbac;
use crate::route::RouteTable;
use crate::spec;
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
    /// Why it could not be compiled: everything is refused with 503. Only in meshes of
    /// [`Compiler::compile_lossy`](crate::compile::Compiler::compile_lossy), and without chains.
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
}

/// A step before routing.
#[derive(Debug)]
pub enum HttpFilter {
    /// Authorization.
    Rbac(CompiledRbac),
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
}

impl Destination {
    /// Checks and compiles; `None` after an error was recorded.
    pub(crate) fn compile(
        destination: &spec::Destination,
        mesh: &Arc<str>,
        at: &mut Context,
    ) -> Option<Self> {
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
        let http = http.as_ref().map(|chain| at.field("http", |at| HttpChain::compile(chain, at)));
        let tcp = tcp.as_ref().map(|chain| at.field("tcp", |at| TcpChain::compile(chain, at)));
        if at.error_count() > before {
            return None;
        }
        Some(Destination {
            name: name.as_str().into(),
            tenant: Tenant { mesh: Arc::clone(mesh), namespace: namespace.as_str().into() },
            port: *port,
            connection: connection?,
            http: http.map_or(Some(None), |chain| chain.map(Arc::new).map(Some))?,
            tcp: tcp.map_or(Some(None), |chain| chain.map(Arc::new).map(Some))?,
            broken: None,
        })
    }

    /// One that refuses everything.
    pub(crate) fn broken(
        name: &str,
        namespace: &str,
        mesh: &Arc<str>,
        port: Option<u16>,
        reason: Arc<str>,
    ) -> Self {
        Destination {
            name: name.into(),
            tenant: Tenant { mesh: Arc::clone(mesh), namespace: namespace.into() },
            port,
            connection: Vec::new(),
            http: None,
            tcp: None,
            broken: Some(reason),
        }
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
        } = chain;
        let filters = at.each("filters", filters, |filter, at| match filter {
            spec::HttpFilter::Rbac(rbac) => {
                at.field("rbac", |at| CompiledRbac::compile(rbac, at)).map(HttpFilter::Rbac)
            }
        });
        let routes = at.field("routes", |at| RouteTable::compile(routes, at));
        let upgrades = at.each("upgrades", upgrades, |token, at| {
            // A token has the characters of a header name (RFC 9110, 5.6.2).
            match HeaderName::from_bytes(token.as_bytes()) {
                Ok(token) => Some(token.as_str().to_owned()),
                Err(_) => at.reject(format!("`{token}` is no protocol name such as `websocket`")),
            }
        });
        let server = at.field("server", |at| match HeaderValue::from_str(server) {
            Ok(value) if !value.is_empty() => Some(value),
            _ => at.reject("must be visible text, as for a header value"),
        });
        Some(HttpChain {
            filters: filters?,
            routes: routes?,
            normalize_path: *normalize_path,
            merge_slashes: *merge_slashes,
            accept_http_10: *accept_http_10,
            upgrades: upgrades?,
            server: server?,
        })
    }

    /// An `Upgrade` token, in any case, may pass.
    pub fn allows_upgrade(&self, token: &str) -> bool {
        self.upgrades.iter().any(|allowed| allowed.eq_ignore_ascii_case(token))
    }
}

impl TcpChain {
    fn compile(chain: &spec::TcpChain, at: &mut Context) -> Option<Self> {
        let spec::TcpChain { rbac, clusters, idle_timeout } = chain;
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
        })
    }

    /// Chooses a cluster by weight; `random` is uniform over 64 bits.
    pub fn pick_cluster(&self, random: u64) -> &Arc<str> {
        let total = self.clusters.last().map_or(0, |(sum, _)| *sum);
        let point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        let at = self.clusters.partition_point(|(sum, _)| *sum <= point);
        let (_, name) = self.clusters.get(at).expect("point is less than the last sum");
        name
    }
}
