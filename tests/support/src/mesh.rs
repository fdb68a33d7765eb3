//! A small mesh around a waypoint: istiod, services of one pod each behind a tunnel, clients.
//!
//! All pods listen for tunnels on one port, each at a loopback address of its own. Meshes with other numbers share
//! nothing but the machine: the addresses of their services are the same.

use crate::app::App;
use crate::backend::Backend;
use crate::hbone_backend::HboneBackend;
use crate::hbone_client::{HboneClient, OpenFailure};
use crate::http1::{Http1, Response};
use crate::istiod::{FakeIstiod, shapes};
use crate::pki::Cert;
use crate::wait::within;
use cairn_proto::envoy::envoy::config::listener::v3::FilterChain;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use cairn_xds::feed::Kind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// The token of the waypoint's service account.
pub const TOKEN: &str = "a-token-of-plain-waypoint";

/// The mesh.
pub struct Mesh {
    /// Its control plane.
    pub istiod: FakeIstiod,
    /// Its services, in the order in which they came.
    pub services: Vec<Service>,
    /// Nobody else gets this port.
    reserved: TcpListener,
    /// Pods are at `127.0.<number>.x`.
    number: u8,
}

/// A service and its pod.
pub struct Service {
    /// `app` of `app.plain.svc.cluster.local`; `app.shop` in the namespace `shop`.
    pub name: String,
    /// What handles its requests.
    pub chain: FilterChain,
    /// The application.
    pub app: Backend,
    /// The pod's ztunnel.
    pub ztunnel: HboneBackend,
    vip: IpAddr,
    gone: bool,
}

/// The waypoint's identity.
pub fn waypoint_id() -> String {
    shapes::identity("waypoint")
}

impl Mesh {
    /// Istiod with what every waypoint gets, and no service.
    pub async fn start() -> Self {
        Mesh::numbered(1).await
    }

    /// As [`Mesh::start`]; several meshes need a number each, from 1.
    pub async fn numbered(number: u8) -> Self {
        let reserved = TcpListener::bind((Ipv4Addr::new(127, 0, number, 0), 0)).unwrap();
        let port = reserved.local_addr().unwrap().port();
        let istiod = FakeIstiod::start().await;
        istiod.accept_token(TOKEN, &waypoint_id());
        istiod.write_token(TOKEN);
        istiod.set(Kind::Cluster, shapes::clusters_of_every_waypoint(port));
        let mesh = Mesh { istiod, services: Vec::new(), reserved, number };
        let none: [(IpAddr, &FilterChain); 0] = [];
        let mut listeners = shapes::listeners_of_every_waypoint();
        listeners.push(shapes::main_internal(none));
        mesh.istiod.set(Kind::Listener, listeners);
        mesh
    }

    /// As [`Mesh::start`], with these services.
    pub async fn with(services: &[&str]) -> Self {
        let mut mesh = Mesh::start().await;
        for service in services {
            mesh.add(service).await;
        }
        mesh
    }

    /// Starts a service with one pod, and tells istiod.
    pub async fn add(&mut self, name: &str) {
        let number = u8::try_from(self.services.len() + 1).unwrap();
        self.add_at(name, [10, 96, 0, number].into(), [127, 0, self.number, number].into()).await;
    }

    /// Starts a service whose own address and whose pod's are these, and tells istiod.
    pub async fn add_at(&mut self, name: &str, vip: IpAddr, pod: IpAddr) {
        let app = Backend::new(name);
        let at = SocketAddr::new(pod, self.tunnel_port());
        let ztunnel = HboneBackend::start_at(at, &self.cert(name), App::from(&app)).await;
        let chain = shapes::chain(name, &shapes::manager(name));
        let service = Service { name: name.to_owned(), chain, app, ztunnel, vip, gone: false };
        self.services.push(service);
        let pod = format!("{}-1", shapes::name_and_namespace(name).0);
        self.istiod.push(Kind::Workload, vec![shapes::pod(&pod, name, at.ip())], &[]);
        let local = SocketAddr::new(at.ip(), 8080);
        self.istiod.push(Kind::Endpoints, vec![shapes::assignment(name, &[(&pod, local)])], &[]);
        let cluster = shapes::cluster_of(&shapes::cluster(name));
        self.istiod.push(Kind::Cluster, vec![cluster], &[]);
        self.push_listener();
    }

    /// Istiod takes a service back; its pod stays.
    pub fn remove(&mut self, name: &str) {
        self.service_mut(name).gone = true;
        self.push_listener();
        let resource = shapes::name(name);
        self.istiod.push(Kind::Cluster, Vec::new(), &[&resource]);
        self.istiod.push(Kind::Endpoints, Vec::new(), &[&resource]);
    }

    /// Changes what handles a service's requests, and tells istiod.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut HttpConnectionManager)) {
        let mut manager = shapes::manager(name);
        edit(&mut manager);
        self.set_chain(name, shapes::chain(name, &manager));
    }

    /// Puts another chain in a service's place, and tells istiod.
    pub fn set_chain(&mut self, name: &str, chain: FilterChain) {
        self.service_mut(name).chain = chain;
        self.push_listener();
    }

    /// Pushes the listener with all chains.
    pub fn push_listener(&self) {
        self.istiod.push(Kind::Listener, vec![self.listener()], &[]);
    }

    /// The listener with all chains.
    pub fn listener(&self) -> cairn_proto::envoy::envoy::service::discovery::v3::Resource {
        let there = self.services.iter().filter(|service| !service.gone);
        shapes::main_internal(there.map(|service| (service.vip, &service.chain)))
    }

    /// A service.
    pub fn service(&self, name: &str) -> &Service {
        self.services.iter().find(|service| service.name == name).unwrap()
    }

    fn service_mut(&mut self, name: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).unwrap()
    }

    /// Port of tunnels at pods.
    pub fn tunnel_port(&self) -> u16 {
        self.reserved.local_addr().unwrap().port()
    }

    /// A certificate of this mesh as it is now.
    pub fn cert(&self, account: &str) -> Cert {
        let (chain, key) = self.istiod.issue(&shapes::identity(account));
        Cert::from_pem(&chain, &key, &self.istiod.roots_pem())
    }

    /// Where clients find a service.
    pub fn vip(&self, name: &str) -> String {
        SocketAddr::new(self.service(name).vip, 80).to_string()
    }

    /// `GET` to a service, in a tunnel of its own.
    pub async fn get(&self, client: &Client, name: &str, path: &str) -> Response {
        client.get(&self.vip(name), path).await
    }

    /// Waits until a service answers with this status.
    pub async fn answers(&self, client: &Client, name: &str, status: u16) {
        let mut last = 0;
        let what = format!("{name} answers {status}");
        crate::wait::eventually_async(&what, async || {
            last = client.status(&self.vip(name), "/").await;
            last == status
        })
        .await;
    }
}

/// The pod's address of a service, by number from 0.
pub fn pod_ip(number: u8) -> IpAddr {
    [127, 0, 1, number + 1].into()
}

/// A workload with a connection to the waypoint.
pub struct Client {
    /// The connection.
    pub hbone: HboneClient,
}

impl Client {
    /// Connects to a waypoint of this mesh.
    pub async fn connect(address: SocketAddr, cert: &Cert) -> Self {
        Client::connect_to(address, cert, &waypoint_id()).await
    }

    /// Connects to whoever has this identity.
    pub async fn connect_to(address: SocketAddr, cert: &Cert, id: &str) -> Self {
        let hbone = HboneClient::connect(address, cert, id).await;
        Client { hbone: hbone.unwrap() }
    }

    /// `GET` in a tunnel of its own.
    pub async fn get(&self, authority: &str, path: &str) -> Response {
        let tunnel = within("CONNECT", self.hbone.open(authority)).await;
        let mut http = Http1::new(tunnel.unwrap_or_else(|error| panic!("{authority}: {error:?}")));
        within(path, http.get(path)).await.unwrap()
    }

    /// Status of a `GET`, or of the CONNECT that was refused; 0: the tunnel was reset, as where nothing is.
    pub async fn status(&self, authority: &str, path: &str) -> u16 {
        match within("CONNECT", self.hbone.open(authority)).await {
            Ok(tunnel) => {
                within(path, Http1::new(tunnel).get(path)).await.map_or(0, |answer| answer.status)
            }
            Err(OpenFailure::Status(status, _)) => status.as_u16(),
            Err(error) => panic!("{authority}: {error:?}"),
        }
    }
}
