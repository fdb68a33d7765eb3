//! A waypoint that istiod configures, services of all kinds behind it, and a scaler that polls it; a member of a pool, and
//! its registrar.

use super::cluster;
use super::members;
use super::mesh::{Client, Mesh};
use super::pod::Waypoint;
use cairn_prometheus_tests::server::Target;
use cairn_proto::envoy::envoy::config::accesslog::v3::{AccessLog, access_log};
use cairn_proto::envoy::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac,
};
use cairn_proto::envoy::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use cairn_proto::envoy::envoy::extensions::filters::http::rbac::v3::Rbac as RbacFilter;
use cairn_proto::envoy::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use cairn_proto::envoy::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, UpstreamProtocolOptions,
};
use cairn_proto::envoy::google::protobuf::Any;
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::shapes;
use cairn_test_support::process::Cairn;
use cairn_test_support::wait::{eventually, eventually_async};
use cairn_xds::feed::Kind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use tokio::net::TcpStream;

/// Services: HTTP, gRPC, HTTP without endpoints, with one that is not there, TCP, one that refuses, and one with a filter
/// that nobody knows.
pub const SERVICES: [&str; 8] = ["app", "shop", "rpc", "empty", "dead", "tcp", "closed", "odd"];

/// All that runs.
pub struct Stage {
    pub mesh: Mesh,
    pub client: Client,
    waypoint: Waypoint,
    _scaler: Cairn,
    _registrar: Cairn,
    _member: members::Member,
    _of_member: cairn_test_support::mesh::Mesh,
    _dir: tempfile::TempDir,
    doors: Vec<(&'static str, SocketAddr)>,
    _pod: super::pod::Pod,
}

impl Stage {
    pub async fn start() -> Self {
        let mut mesh = Mesh::with(&SERVICES).await;
        mesh.istiod.push(Kind::Endpoints, vec![shapes::assignment("empty", &[])], &[]);
        let nobody = IpAddr::from([127, 0, 1, 200]);
        mesh.istiod.push(Kind::Workload, vec![shapes::pod("dead-2", "dead", nobody)], &[]);
        let nobody = SocketAddr::new(nobody, 8080);
        let endpoints = shapes::assignment("dead", &[("dead-2", nobody)]);
        mesh.istiod.push(Kind::Endpoints, vec![endpoints], &[]);
        // Not done as asked, and said so.
        let by_alpn = UpstreamProtocolOptions::AutoConfig(AutoHttpConfig::default());
        for (service, protocol) in [("rpc", shapes::http2()), ("shop", by_alpn)] {
            let cluster = shapes::cluster_of(&shapes::cluster_by(service, protocol));
            mesh.istiod.push(Kind::Cluster, vec![cluster], &[]);
        }
        mesh.edit("app", |manager| manager.access_log.push(to_stdout()));
        mesh.set_chain("tcp", shapes::tcp_chain("tcp", &shapes::stats()));
        mesh.edit("closed", |manager| manager.http_filters.insert(0, deny()));
        mesh.edit("odd", |manager| {
            let type_url = "type.googleapis.com/example.Unknown".to_owned();
            let filter = http_filter("odd", Any { type_url, value: Vec::new() });
            manager.http_filters.insert(0, filter);
        });
        let (pod, waypoint) = mesh.waypoint().await;
        let client = mesh.client(&waypoint).await;
        let mut doors = Vec::new();
        for (door, job) in
            [("metrics", "waypoint"), ("prometheus", "waypoint-15090"), ("admin", "waypoint-15000")]
        {
            doors.push((job, waypoint.address(&format!("{door} pages")).await));
        }
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        cluster::start(&kubeconfig).await;
        let kubeconfig = kubeconfig.display().to_string();
        let member = doors[0].1.to_string();
        let scaler = Cairn::start(&[
            "scaler",
            "--member",
            &member,
            "--grpc",
            "off",
            "--target",
            "deployments/waypoint",
            "--apply",
            "--kubeconfig",
            &kubeconfig,
            "--http",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ]);
        eventually("the scaler has pages", || scaler.printed("scaler pages")).await;
        let pages = scaler.address("scaler pages");
        doors.push(("scaler", pages));
        eventually_async("the scaler decides", async || {
            page(pages).await.contains("\ncairn_scaler_desired_replicas ")
        })
        .await;
        let (of_member, member, registrar, pages) = pool(dir.path(), &kubeconfig).await;
        doors.push(("member", SocketAddr::new(member.ip, 15020)));
        doors.push(("registrar", pages));
        Stage {
            mesh,
            client,
            waypoint,
            _scaler: scaler,
            _registrar: registrar,
            _member: member,
            _of_member: of_member,
            _dir: dir,
            doors,
            _pod: pod,
        }
    }

    /// What is to be scraped. Only the first of the waypoint's doors has its pod's labels: all three say
    /// the same.
    pub fn targets(&self) -> Vec<Target> {
        let target = |(job, address): &(&'static str, SocketAddr)| {
            let labels = match *job {
                "waypoint" => vec![("pod", "waypoint-1"), ("namespace", "plain")],
                "scaler" => vec![("pod", "waypoint-scaler-1"), ("namespace", "plain")],
                "member" => vec![("pod", "waypoint-pool-1"), ("namespace", "waypoint-pool")],
                "registrar" => vec![("pod", "registrar-1"), ("namespace", "waypoint-pool")],
                _ => vec![("door", *job)],
            };
            let labels = [labels, vec![("cluster", "Kubernetes")]].concat();
            Target { job, address: *address, path: "/stats/prometheus", labels }
        };
        self.doors.iter().map(target).collect()
    }

    /// All pages as text.
    pub async fn pages(&self) -> Vec<(String, String)> {
        let mut pages = Vec::new();
        for (job, address) in &self.doors {
            pages.push(((*job).to_owned(), page(*address).await));
        }
        pages
    }

    /// Where tunnels are accepted.
    pub async fn hbone(&self) -> SocketAddr {
        self.waypoint.hbone().await
    }
}

/// A mesh, the member that serves it, and a registrar with its pages, which has minted a token.
async fn pool(
    dir: &Path,
    kubeconfig: &str,
) -> (cairn_test_support::mesh::Mesh, members::Member, Cairn, SocketAddr) {
    let mesh = members::mesh(2, &["app"]).await;
    let ip = members::address();
    let file = members::File::of(ip, &[("east", 21001, &mesh)]);
    let file = file.set("east", "kubeconfig", kubeconfig.into());
    let member = members::Member::quick(ip, &file).await;
    member.registered(&["east"]).await;
    let config = dir.join("pool.yaml");
    let token = dir.join("token");
    std::fs::write(&config, file.text(ip, token.to_str().unwrap())).unwrap();
    let registrar = Cairn::start_in(
        &[
            "pool".to_owned(),
            "registrar".to_owned(),
            format!("--config={}", config.display()),
            format!("--kubeconfig={kubeconfig}"),
            "--namespace=waypoint-pool".to_owned(),
            format!("--members={ip}"),
            "--http=127.0.0.1:0".to_owned(),
            "--log-format=json".to_owned(),
        ],
        [],
    );
    eventually("the registrar has pages", || registrar.printed("registrar pages")).await;
    let pages = registrar.address("registrar pages");
    eventually_async("the registrar leads and has given a token", async || {
        page(pages).await.contains("\ncairn_registrar_token_remaining_seconds{")
    })
    .await;
    (mesh, member, registrar, pages)
}

/// A page as text.
async fn page(address: SocketAddr) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let response = Http1::new(stream).get("/stats/prometheus").await.unwrap();
    assert_eq!(response.status, 200, "{address}");
    response.text()
}

/// A page as Prometheus asks for it: its content type and text.
pub async fn open_metrics(target: &Target) -> (String, String) {
    let stream = TcpStream::connect(target.address).await.unwrap();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let headers = [("Host", "x"), ("Accept", accept)];
    let response = Http1::new(stream).request("GET", target.path, &headers, b"").await.unwrap();
    (response.header("content-type").unwrap_or_default().to_owned(), response.text())
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// DENY for everybody.
fn deny() -> HttpFilter {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Policy::default()
    };
    let policies = [("ns[plain]-policy[nobody]-rule[0]".to_owned(), policy)].into();
    let rules = Rbac { action: rbac::Action::Deny as i32, policies, ..Rbac::default() };
    let filter = RbacFilter { rules: Some(rules), ..RbacFilter::default() };
    http_filter("envoy.filters.http.rbac", shapes::pack(&filter))
}

/// Lines of Envoy's own format.
fn to_stdout() -> AccessLog {
    let file = FileAccessLog { path: "/dev/stdout".to_owned(), ..FileAccessLog::default() };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(shapes::pack(&file))),
        ..AccessLog::default()
    }
}
