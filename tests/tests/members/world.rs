//! Two meshes with equal service addresses, and members of the pool that serves both.
//!
//! Each member has a loopback address of its own, on which all its ports are.

use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::mesh::{Client, Mesh};
use cairn_test_support::metrics;
use cairn_test_support::process::Cairn;
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Who members are, in every mesh.
pub const ID: &str = "spiffe://cluster.local/ns/waypoint-pool/sa/waypoint-pool";
/// The pool's token.
pub const POOL_TOKEN: &str = "the-pools-token";
/// The token of the members' service account.
const ISTIO_TOKEN: &str = "a-token-of-the-pool";
/// VIP of the first service of any mesh.
pub const VIP: &str = "10.96.0.1:80";

/// A mesh whose istiod lets the pool in; `number` tells it from others on this machine, from 1.
pub async fn mesh(number: u8, services: &[&str]) -> Mesh {
    let mut mesh = Mesh::numbered(number).await;
    mesh.istiod.accept_token(ISTIO_TOKEN, ID);
    mesh.istiod.write_token(ISTIO_TOKEN);
    for service in services {
        mesh.add(service).await;
    }
    mesh
}

/// A member, its file, and where it is.
pub struct Member {
    /// Its address.
    pub ip: IpAddr,
    /// The process.
    pub cairn: Cairn,
    dir: TempDir,
}

/// What a member's file says.
#[derive(Default)]
pub struct File {
    clusters: Vec<Value>,
    /// Other members.
    pub siblings: Vec<IpAddr>,
    /// More of `pool:`.
    pub pool: Value,
    /// Bytes that the process may use.
    pub memory_limit: Option<String>,
}

impl File {
    /// With these clusters, each a name, a port and its mesh.
    pub fn of(ip: IpAddr, clusters: &[(&str, u16, &Mesh)]) -> Self {
        let cluster = |(name, port, mesh): &(&str, u16, &Mesh)| {
            json!({
                "name": name,
                "istiod": mesh.istiod.address().to_string(),
                "root_file": mesh.istiod.roots_file(),
                "token_file": mesh.istiod.token_file(),
                "listen": SocketAddr::new(ip, *port).to_string(),
            })
        };
        File { clusters: clusters.iter().map(cluster).collect(), ..File::default() }
    }

    /// Changes what it says of a cluster.
    pub fn set(mut self, cluster: &str, key: &str, value: Value) -> Self {
        let found = self.clusters.iter_mut().find(|one| one["name"] == cluster);
        found.unwrap()[key] = value;
        self
    }

    /// As it is written.
    pub fn text(&self, ip: IpAddr, token: &str) -> String {
        let mut pool = json!({ "token_file": token });
        if let (Some(pool), Some(more)) = (pool.as_object_mut(), self.pool.as_object()) {
            pool.extend(more.clone());
        }
        json!({
            "pool": pool,
            "member": { "name": format!("member-{ip}"), "address": ip, "locality": "r1/z1" },
            "siblings": self.siblings,
            "clusters": self.clusters,
        })
        .to_string()
    }
}

/// An address that no other member of this run has.
pub fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    Ipv4Addr::new(127, 8, 0, NEXT.fetch_add(1, Ordering::SeqCst)).into()
}

impl Member {
    /// Starts one; `more` are further arguments.
    pub async fn start(ip: IpAddr, file: &File, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, POOL_TOKEN).unwrap();
        let path = dir.path().join("pool.yaml");
        std::fs::write(&path, file.text(ip, token.to_str().unwrap())).unwrap();
        let mut ports = String::new();
        for port in [15000, 15020, 15021, 15090] {
            write!(ports, "{port}={ip}:{port},").unwrap();
        }
        let mut args: Vec<String> = ["pool", "member", "--log-format", "json", "--workers", "1"]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--config".to_owned(), path.display().to_string()]);
        args.extend(more.iter().map(|&one| one.to_owned()));
        let mut variables =
            vec![("CAIRN_PORTS", ports.as_str()), ("CAIRN_LOOPBACK_ENDPOINTS", "on")];
        if let Some(limit) = &file.memory_limit {
            variables.push(("GOMEMLIMIT", limit));
        }
        let mut cairn = Cairn::start_in(&args, variables);
        eventually("the member has its pages", || {
            assert!(cairn.is_running(), "{:#?}", cairn.output());
            cairn.printed("prometheus pages") && cairn.printed("admin pages")
        })
        .await;
        Member { ip, cairn, dir }
    }

    /// With a short end.
    pub async fn quick(ip: IpAddr, file: &File) -> Self {
        let end = ["--drain-accept", "3s", "--drain-confirmed", "200ms", "--drain-spread", "0s"];
        Self::start(ip, file, &end).await
    }

    /// Puts another file in the place of its own.
    pub fn rewrite(&self, file: &File) {
        let path: PathBuf = self.dir.path().join("pool.yaml");
        let fresh = self.dir.path().join("pool.yaml.new");
        let token = self.dir.path().join("token");
        std::fs::write(&fresh, file.text(self.ip, token.to_str().unwrap())).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// A page of one of its ports.
    pub async fn page(&self, port: u16, path: &str) -> Response {
        self.ask(port, &format!("GET {path}"), &[]).await
    }

    /// A request to one of its ports.
    pub async fn ask(&self, port: u16, line: &str, headers: &[(&str, &str)]) -> Response {
        let tcp = TcpStream::connect((self.ip, port)).await.unwrap();
        Http1::new(tcp).ask(line, headers).await
    }

    /// A cluster's row of `/clusters`; null: there is none.
    pub async fn cluster(&self, name: &str) -> Value {
        let all = self.page(15000, "/clusters").await.json();
        let found = all.as_array().unwrap().iter().find(|row| row["name"] == name);
        found.cloned().unwrap_or_default()
    }

    /// Waits until a cluster's row is as `wanted` says, and returns it.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually_async(&format!("{name}: {what}"), async || {
            last = self.cluster(name).await;
            wanted(&last)
        })
        .await;
        last
    }

    /// Waits until it is registered in these clusters.
    pub async fn registered(&self, clusters: &[&str]) {
        for cluster in clusters {
            self.until(cluster, "registered", |row| row["registered"] == "yes").await;
        }
    }

    /// A client of a mesh at one of its ports.
    pub async fn client(&self, port: u16, mesh: &Mesh) -> Client {
        Client::connect_to(SocketAddr::new(self.ip, port), &mesh.cert("client"), ID).await
    }

    /// The sum of a metric.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.page(15020, "/stats/prometheus").await.text();
        metrics::sum(&metrics::parse(&page), name, labels)
    }

    /// SIGTERM, and waits until it has ended well.
    pub async fn end(&mut self) {
        self.cairn.terminate();
        let status = self.cairn.wait().await;
        assert!(status.success(), "{:#?}", self.cairn.output());
    }
}

/// The entry of a member, as a fake istiod names it.
pub fn entry(ip: IpAddr) -> String {
    format!("waypoint-pool/waypoint-pool-{ip}")
}
