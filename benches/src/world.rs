//! What the proxies are configured with, in words of its own: services, their routes, policies and
//! pods. `cairn_config` and `envoy_config` say the same in each proxy's language,
//! so that both do the same work.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Trust domain of all identities.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Namespace of all services.
pub const NAMESPACE: &str = "shop";
/// The proxy's identity.
pub const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";
/// The pods' identity.
pub const POD: &str = "spiffe://cluster.local/ns/shop/sa/app";
/// The client's identity.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Identities that are admitted.
pub const ADMITTED: [&str; 2] = ["spiffe://cluster.local/ns/shop/sa/mobile", CLIENT];
/// A namespace that is refused, as the pattern that istiod makes of it.
pub const REFUSED_NAMESPACE: &str = ".*/ns/evil/.*";
/// Methods that are admitted.
pub const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "PUT"];
/// Paths that nobody may ask for.
pub const FORBIDDEN_PREFIX: &str = "/admin";

/// Name of the response header by which a changed route is seen.
pub const REVISION_HEADER: &str = "x-revision";

/// Ports of a pod, by what is spoken there; `backend` answers accordingly.
pub const POD_HTTP1: u16 = 8080;
/// HTTP/2 with prior knowledge.
pub const POD_HTTP2: u16 = 8081;
/// What is sent comes back.
pub const POD_ECHO: u16 = 9000;

/// Everything that a proxy knows of.
#[derive(Debug, Clone)]
pub struct World {
    /// Services behind the waypoint.
    pub services: Vec<Service>,
    /// HBONE address of all pods.
    pub tunnel: SocketAddr,
    /// What Cairn tells of requests beyond its standard metrics, as its configuration says it.
    pub observe: Option<serde_json::Value>,
}

/// One service port.
#[derive(Debug, Clone)]
pub struct Service {
    /// First label of its host name.
    pub name: String,
    /// Its address, by which CONNECT names it.
    pub vip: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// How its pods are reached.
    pub transport: Transport,
    /// Addresses of its pods.
    pub pods: Vec<SocketAddr>,
    /// Shown by one of the routes in [`REVISION_HEADER`].
    pub revision: u32,
}

/// What is spoken on a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// gRPC.
    Http2,
    /// Anything.
    Tcp,
}

/// How pods are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In the mesh: HBONE.
    Hbone,
    /// Outside of it: plain TCP.
    Plain,
}

/// One of the routes that every HTTP service has.
#[derive(Debug, Clone, Copy)]
pub struct RouteShape {
    /// Its name.
    pub name: &'static str,
    /// Paths that it takes.
    pub path: PathShape,
    /// A header (or `:method`) that must have this value.
    pub header: Option<(&'static str, &'static str)>,
    /// A request header that it sets.
    pub sets: Option<(&'static str, &'static str)>,
    /// Whether its responses carry the service's revision.
    pub shows_revision: bool,
    /// A path that it takes.
    pub sample: &'static str,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy)]
pub enum PathShape {
    /// Equal.
    Exact(&'static str),
    /// Begins with.
    Prefix(&'static str),
    /// Equal, or begins with it and a slash.
    Separated(&'static str),
    /// Matches as a whole.
    Regex(&'static str),
}

const PLAIN: RouteShape = RouteShape {
    name: "",
    path: PathShape::Prefix("/"),
    header: None,
    sets: None,
    shows_revision: false,
    sample: "/",
};

/// The routes of every HTTP service, as an HTTPRoute of average size has them.
pub const ROUTES: [RouteShape; 10] = [
    RouteShape {
        name: "latest",
        path: PathShape::Exact("/api/orders/latest"),
        sample: "/api/orders/latest",
        ..PLAIN
    },
    RouteShape {
        name: "orders",
        path: PathShape::Separated("/api/orders"),
        sets: Some(("x-route", "orders")),
        shows_revision: true,
        sample: "/api/orders/1907",
        ..PLAIN
    },
    RouteShape {
        name: "carts-v2",
        path: PathShape::Separated("/api/carts"),
        header: Some(("x-version", "v2")),
        sample: "/api/carts/31",
        ..PLAIN
    },
    RouteShape {
        name: "carts",
        path: PathShape::Separated("/api/carts"),
        sample: "/api/carts/32",
        ..PLAIN
    },
    RouteShape {
        name: "catalogue",
        path: PathShape::Separated("/api/catalogue"),
        header: Some((":method", "GET")),
        sample: "/api/catalogue/books/12",
        ..PLAIN
    },
    RouteShape {
        name: "items",
        path: PathShape::Regex("/api/items/[0-9]+"),
        sample: "/api/items/4711",
        ..PLAIN
    },
    RouteShape {
        name: "static",
        path: PathShape::Prefix("/static/"),
        sample: "/static/site.css",
        ..PLAIN
    },
    RouteShape {
        name: "login",
        path: PathShape::Exact("/login"),
        sets: Some(("x-route", "login")),
        sample: "/login",
        ..PLAIN
    },
    RouteShape {
        name: "users",
        path: PathShape::Separated("/api/users"),
        sample: "/api/users/17/address",
        ..PLAIN
    },
    RouteShape { name: "rest", sample: "/index.html", ..PLAIN },
];

/// A request whose answer shows what was pushed: see [`RouteShape::shows_revision`].
pub const REVISION_PATH: &str = "/api/orders/1";

impl World {
    /// The services of the traffic scenarios: HTTP, gRPC and TCP in the mesh, HTTP outside of it.
    pub fn traffic(tunnel: SocketAddr, plain: SocketAddr) -> World {
        let pod = |index, port| vec![pod_address(index, port)];
        let service = |index: u32, name: &str, port, protocol, transport, pods| Service {
            name: name.to_owned(),
            vip: vip(index),
            port,
            protocol,
            transport,
            pods,
            revision: 1,
        };
        World {
            services: vec![
                service(0, "app", 80, Protocol::Http1, Transport::Hbone, pod(0, POD_HTTP1)),
                service(1, "echo", 50051, Protocol::Http2, Transport::Hbone, pod(1, POD_HTTP2)),
                service(2, "ledger", 9000, Protocol::Tcp, Transport::Hbone, pod(2, POD_ECHO)),
                service(3, "outside", 80, Protocol::Http1, Transport::Plain, vec![plain]),
            ],
            tunnel,
            observe: None,
        }
    }

    /// Many HTTP services.
    pub fn scale(services: u32, tunnel: SocketAddr) -> World {
        let service = |index| Service {
            name: format!("app-{index}"),
            vip: vip(index),
            port: 80,
            protocol: Protocol::Http1,
            transport: Transport::Hbone,
            pods: vec![pod_address(index, POD_HTTP1)],
            revision: 1,
        };
        World { services: (0..services).map(service).collect(), tunnel, observe: None }
    }
}

impl Service {
    /// Its host name.
    pub fn host(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}", self.name)
    }

    /// What CONNECT names.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.vip), self.port)
    }

    /// Name of its chain and of its cluster, as istiod builds it.
    pub fn inbound_name(&self) -> String {
        let kind = match self.protocol {
            Protocol::Http1 | Protocol::Http2 => "http",
            Protocol::Tcp => "tcp",
        };
        format!("inbound-vip|{}|{kind}|{}", self.port, self.host())
    }

    /// Gives it another pod in place of the one that it has.
    pub fn move_pod(&mut self) {
        for pod in &mut self.pods {
            if let IpAddr::V4(ip) = pod.ip() {
                // Pods have addresses of 10.244.0.0/15: each has a twin in the other half.
                let [a, b, c, d] = ip.octets();
                pod.set_ip(Ipv4Addr::new(a, b ^ 1, c, d).into());
            }
        }
    }
}

fn vip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 10)) + index)
}

fn pod_address(index: u32, port: u16) -> SocketAddr {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 10)) + index);
    SocketAddr::new(ip.into(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel() -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15008)
    }

    #[test]
    fn a_pod_moves_there_and_back() {
        let mut world = World::scale(300, tunnel());
        let service = &mut world.services[299];
        assert_eq!(service.vip, Ipv4Addr::new(10, 96, 1, 53));
        let before = service.pods.clone();
        service.move_pod();
        assert_eq!(service.pods, ["10.245.1.53:8080".parse::<SocketAddr>().unwrap()]);
        service.move_pod();
        assert_eq!(service.pods, before);
    }

    #[test]
    fn names_are_istiods() {
        let world = World::traffic(tunnel(), tunnel());
        let names: Vec<_> = world.services.iter().map(Service::inbound_name).collect();
        assert_eq!(names[0], "inbound-vip|80|http|app.shop.svc.cluster.local");
        assert_eq!(names[2], "inbound-vip|9000|tcp|ledger.shop.svc.cluster.local");
    }
}
