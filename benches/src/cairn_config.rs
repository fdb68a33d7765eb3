//! A [`World`] as Cairn's configuration: a directory of JSON files, each with some of the services,
//! so that a change touches one small file, as a push touches one small resource.

use crate::certs::Files;
use crate::world::{
    ADMITTED, FORBIDDEN_PREFIX, METHODS, NAMESPACE, POD, PathShape, Protocol, REFUSED_NAMESPACE,
    REVISION_HEADER, ROUTES, RouteShape, Service, TRUST_DOMAIN, Transport, World,
};
use anyhow::{Context, Result};
use cairn_router::spec::{
    Action, CidrRange, CircuitBreakers, Cluster, ClusterProtocol, Destination, Endpoint,
    EndpointSet, EndpointTransport, EscapedSlashes, Forward, ForwardedClientCert, HeaderAppend,
    HeaderMatch, HeaderOps, HeaderValue, Health, HttpChain, HttpFilter, LbPolicy, Locality,
    Observe, PathMatch, Permission, Policy, Principal, Rbac, Retry, RetryBackoff, Route,
    RouteMatch, RouteTable, ServerMode, StringMatch, TcpChain, ValueMatch, VirtualHost,
    WeightedTcp, Workload,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Name of the mesh.
const MESH: &str = "bench";
/// Files of services and of endpoints are at most so many each; the directory may hold 1,024.
const MAX_FILES: usize = 400;

/// The configuration on disk.
#[derive(Debug)]
pub struct CairnConfig {
    dir: PathBuf,
    services_per_file: usize,
}

impl CairnConfig {
    /// Writes everything into `dir`, which is emptied first.
    pub fn write(
        world: &World,
        dir: &Path,
        listen: SocketAddr,
        certs: &Files,
    ) -> Result<CairnConfig> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let config = CairnConfig {
            dir: dir.to_owned(),
            services_per_file: world.services.len().div_ceil(MAX_FILES).max(1),
        };
        let mesh = json!({
            "name": MESH,
            "listen": listen,
            "identity": {"files": {"cert": certs.cert, "key": certs.key, "roots": certs.roots}},
            "workloads": workloads(world),
        });
        replace(&dir.join("mesh.json"), &json!({"workers": 1, "meshes": [mesh]}))?;
        for first in (0..world.services.len()).step_by(config.services_per_file) {
            config.write_services(world, first)?;
            config.write_endpoints(world, first)?;
        }
        Ok(config)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Writes the routes of the service at `index` again, and those that share its file.
    pub fn write_services(&self, world: &World, index: usize) -> Result<()> {
        let (number, services) = self.chunk(world, index);
        let mut destinations = services.iter().map(destination).collect::<Vec<_>>();
        if let Some(observe) = &world.observe {
            let observe: Arc<Observe> = serde_json::from_value(observe.clone())?;
            for destination in &mut destinations {
                let http = destination.http.iter_mut().map(|chain| &mut chain.observe);
                let tcp = destination.tcp.iter_mut().map(|chain| &mut chain.observe);
                http.chain(tcp).for_each(|place| *place = Some(Arc::clone(&observe)));
            }
        }
        let mesh = json!({
            "name": MESH,
            "destinations": destinations,
            "clusters": services.iter().map(cluster).collect::<Vec<_>>(),
        });
        let path = self.dir.join(format!("services-{number:04}.json"));
        replace(&path, &json!({"meshes": [mesh]}))
    }

    /// Writes the endpoints of the service at `index` again, and those that share its file.
    pub fn write_endpoints(&self, world: &World, index: usize) -> Result<()> {
        let (number, services) = self.chunk(world, index);
        let sets: Vec<_> = services.iter().map(|service| endpoints(world, service)).collect();
        let path = self.dir.join(format!("endpoints-{number:04}.json"));
        replace(&path, &json!({"meshes": [{"name": MESH, "endpoints": sets}]}))
    }

    fn chunk<'a>(&self, world: &'a World, index: usize) -> (usize, &'a [Service]) {
        let number = index / self.services_per_file;
        let first = number * self.services_per_file;
        let last = (first + self.services_per_file).min(world.services.len());
        (number, world.services.get(first..last).unwrap_or_default())
    }
}

/// Writes a file whole: what reads it sees the old or the new one.
pub fn replace(path: &Path, value: &Value) -> Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, serde_json::to_vec(value)?)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// One service as Cairn has it.
pub fn destination(service: &Service) -> Destination {
    let (http, tcp) = match service.protocol {
        Protocol::Http1 | Protocol::Http2 => (Some(http_chain(service)), None),
        Protocol::Tcp => (None, Some(tcp_chain(service))),
    };
    Destination {
        name: service.inbound_name(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![CidrRange(IpAddr::V4(service.vip).into())],
        hosts: vec![service.host()],
        port: Some(service.port),
        connection: Default::default(),
        http,
        tcp,
    }
}

fn http_chain(service: &Service) -> HttpChain {
    HttpChain {
        filters: http_policies().into_iter().map(HttpFilter::Rbac).collect(),
        routes: RouteTable {
            name: service.inbound_name(),
            virtual_hosts: vec![VirtualHost {
                name: format!("inbound|http|{}", service.port),
                domains: vec!["*".to_owned()],
                routes: ROUTES.iter().map(|shape| route(service, shape)).collect(),
                request_headers: HeaderOps::default(),
                response_headers: HeaderOps::default(),
            }],
        },
        normalize_path: true,
        merge_slashes: false,
        accept_http_10: false,
        upgrades: vec!["websocket".to_owned()],
        server: "istio-envoy".to_owned(),
        server_mode: ServerMode::default(),
        forwarded_client_cert: ForwardedClientCert::default(),
        generate_request_id: true,
        append_x_forwarded_port: false,
        suppress_envoy_headers: false,
        escaped_slashes: EscapedSlashes::default(),
        idle_timeout: None,
        observe: None,
        broken: None,
    }
}

fn route(service: &Service, shape: &RouteShape) -> Route {
    let path = match shape.path {
        PathShape::Exact(path) => PathMatch::Exact(path.to_owned()),
        PathShape::Prefix(path) => PathMatch::Prefix(path.to_owned()),
        PathShape::Separated(path) => PathMatch::PathSeparatedPrefix(path.to_owned()),
        PathShape::Regex(path) => PathMatch::Regex(path.to_owned()),
    };
    let header = |(name, value): (&str, &str)| HeaderMatch {
        name: name.to_owned(),
        value: ValueMatch::Exact(value.to_owned()),
        invert: false,
        treat_missing_as_empty: false,
        ignore_case: false,
    };
    let set = |name: &str, value: String| HeaderOps {
        add: vec![HeaderValue { name: name.to_owned(), value, action: HeaderAppend::Overwrite }],
        remove: Vec::new(),
    };
    Route {
        name: shape.name.to_owned(),
        matches: RouteMatch {
            path,
            case_sensitive: true,
            headers: shape.header.map(header).into_iter().collect(),
            query: Vec::new(),
            never: None,
        },
        route: Some(Box::new(Forward {
            cluster: Some(service.inbound_name()),
            timeout: Some(Duration::ZERO),
            max_grpc_timeout: Some(Duration::ZERO),
            retry: Some(retry()),
            ..Forward::default()
        })),
        redirect: None,
        direct_response: None,
        request_headers: shape
            .sets
            .map(|(name, value)| set(name, value.to_owned()))
            .unwrap_or_default(),
        response_headers: if shape.shows_revision {
            set(REVISION_HEADER, service.revision.to_string())
        } else {
            HeaderOps::default()
        },
        fault: None,
        cors: None,
        decorator: None,
    }
}

/// istiod's default, without `retriable-status-codes`, which names no code there.
fn retry() -> Retry {
    let on = ["connect-failure", "refused-stream", "unavailable", "cancelled"];
    Retry {
        on: on.map(str::to_owned).to_vec(),
        attempts: 2,
        per_try_timeout: None,
        status_codes: Vec::new(),
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
        backoff: RetryBackoff::default(),
    }
}

/// The policies of every HTTP service.
pub fn http_policies() -> [Rbac; 2] {
    let forbidden = || Permission::Path(StringMatch::Prefix(FORBIDDEN_PREFIX.to_owned()));
    let method = |method: &str| Permission::Method(StringMatch::Exact(method.to_owned()));
    let refused = Principal::Authenticated(StringMatch::Regex(REFUSED_NAMESPACE.to_owned()));
    let deny = Rbac {
        action: Action::Deny,
        policies: BTreeMap::from([
            (
                policy_name("no-admin"),
                Policy {
                    permissions: vec![Permission::And(vec![Permission::Or(vec![forbidden()])])],
                    principals: vec![Principal::And(vec![Principal::Any])],
                },
            ),
            (
                policy_name("no-evil"),
                Policy {
                    permissions: vec![Permission::And(vec![Permission::Any])],
                    principals: vec![Principal::And(vec![Principal::Or(vec![refused])])],
                },
            ),
        ]),
    };
    let allow = Rbac {
        action: Action::Allow,
        policies: BTreeMap::from([(
            policy_name("clients"),
            Policy {
                permissions: vec![Permission::And(vec![Permission::Or(
                    METHODS.iter().map(|name| method(name)).collect(),
                )])],
                principals: vec![admitted()],
            },
        )]),
    };
    [deny, allow]
}

fn admitted() -> Principal {
    let exact = |id: &&str| Principal::Authenticated(StringMatch::Exact((*id).to_owned()));
    Principal::And(vec![Principal::Or(ADMITTED.iter().map(exact).collect())])
}

fn policy_name(policy: &str) -> String {
    format!("ns[{NAMESPACE}]-policy[{policy}]-rule[0]")
}

fn tcp_chain(service: &Service) -> TcpChain {
    TcpChain {
        rbac: vec![Rbac {
            action: Action::Allow,
            policies: BTreeMap::from([(
                policy_name("clients"),
                Policy {
                    permissions: vec![Permission::And(vec![Permission::Or(vec![
                        Permission::DestinationPort(service.port),
                    ])])],
                    principals: vec![admitted()],
                },
            )]),
        }],
        clusters: vec![WeightedTcp { name: service.inbound_name(), weight: 1 }],
        idle_timeout: None,
        max_duration: None,
        observe: None,
        broken: None,
    }
}

/// Where a service's requests go.
pub fn cluster(service: &Service) -> Cluster {
    Cluster {
        name: service.inbound_name(),
        service: service.host(),
        service_name: service.name.clone(),
        service_namespace: NAMESPACE.to_owned(),
        lb: LbPolicy::LeastRequest,
        protocol: match service.protocol {
            Protocol::Http2 => ClusterProtocol::Http2,
            Protocol::Http1 | Protocol::Tcp => ClusterProtocol::Http1,
        },
        connect_timeout: Duration::from_secs(10),
        tls: None,
        idle_timeout: Duration::from_secs(3600),
        max_requests_per_connection: None,
        circuit_breakers: CircuitBreakers::default(),
        original_destination: None,
        broken: None,
    }
}

/// The pods of a service.
pub fn endpoints(world: &World, service: &Service) -> EndpointSet {
    let endpoint = |address: &SocketAddr| Endpoint {
        address: *address,
        transport: match service.transport {
            Transport::Hbone => EndpointTransport::Hbone,
            Transport::Plain => EndpointTransport::Plain,
        },
        identities: match service.transport {
            Transport::Hbone => vec![POD.to_owned()],
            Transport::Plain => Vec::new(),
        },
        tunnel_address: (service.transport == Transport::Hbone).then_some(world.tunnel),
        weight: 1,
        priority: 0,
        health: Health::Healthy,
        locality: Locality {
            region: "r1".to_owned(),
            zone: "z1".to_owned(),
            ..Locality::default()
        },
    };
    EndpointSet {
        cluster: service.inbound_name(),
        endpoints: service.pods.iter().map(endpoint).collect(),
    }
}

/// The client, and the pods of all services.
pub fn workloads(world: &World) -> Vec<Workload> {
    let workload = |address: IpAddr, account: &str, name: &str| Workload {
        addresses: vec![address],
        name: format!("{name}-7d9f4c6b58-x2k4p"),
        namespace: NAMESPACE.to_owned(),
        service_account: account.to_owned(),
        trust_domain: TRUST_DOMAIN.to_owned(),
        workload_name: format!("{name}-v1"),
        canonical_name: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        cluster: "Kubernetes".to_owned(),
    };
    let pods = world.services.iter().filter(|service| service.transport == Transport::Hbone);
    let pods = pods.flat_map(|service| {
        service.pods.iter().map(|pod| workload(pod.ip(), "app", &service.name))
    });
    std::iter::once(workload(Ipv4Addr::LOCALHOST.into(), "web", "web")).chain(pods).collect()
}
