//! Members of the pool as processes: `cairn pool member`, each on an address of its own.

use crate::control::{ControlPlane, eventually, get};
use crate::harness::Place;
use crate::part::Part;
use cairn_pool::UserCluster;
use cairn_test_support::http1::{Http1, Response};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::Command;

/// Ports that a member has once, whatever clusters it serves.
const METRICS: u16 = 15020;
const STATUS: u16 = 15021;
const ADMIN: u16 = 15000;
/// The pool's token.
pub const POOL_TOKEN: &str = "the-token-of-the-pool";

/// What a member has to know of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its name in `pool.yaml`.
    pub name: String,
    /// Names and port of the pool's objects there.
    pub user: UserCluster,
    istiod: SocketAddr,
    cluster_id: String,
    trust_domain: String,
    root: PathBuf,
    token: PathBuf,
}

impl Access {
    /// Writes root and token of that cluster below `dir`.
    ///
    /// # Panics
    /// When there is no such account.
    pub async fn give(plane: &ControlPlane, user: &UserCluster, dir: &Path) -> Self {
        let site = plane.site();
        let dir = dir.join(format!("access-{}", site.name));
        std::fs::create_dir_all(&dir).unwrap();
        let caller = plane.caller(&user.namespace, &user.service_account).await;
        let write = |name: &str, text: &str| {
            let (file, part) = (dir.join(name), dir.join(format!("{name}.part")));
            std::fs::write(&part, text).unwrap();
            std::fs::rename(&part, &file).unwrap();
            file
        };
        Access {
            name: site.cluster_id.clone(),
            user: user.clone(),
            istiod: site.istiod(),
            cluster_id: site.cluster_id.clone(),
            trust_domain: site.trust_domain.clone(),
            root: write("root-cert.pem", &caller.root),
            token: write("istio-token", &caller.token),
        }
    }

    /// The cluster in a `pool.yaml` of whoever listens at `ip`.
    pub fn config(&self, ip: IpAddr) -> Value {
        let Access { name, user, istiod, cluster_id, trust_domain, root, token } = self;
        json!({
            "name": name,
            "istiod": istiod.to_string(),
            "server_name": "istiod.istio-system.svc",
            "root_file": root,
            "token_file": token,
            "cluster_id": cluster_id,
            "trust_domain": trust_domain,
            "namespace": user.namespace,
            "service_account": user.service_account,
            "gateway": user.name,
            "listen": SocketAddr::new(ip, user.port).to_string(),
        })
    }
}

/// A running member; it is killed when this is dropped.
pub struct Member {
    /// Its number, of which name and address are made.
    pub number: u8,
    /// `wp-<number>`.
    pub name: String,
    /// `10.8.3.<number>`.
    pub ip: Ipv4Addr,
    file: PathBuf,
    siblings: Vec<u8>,
    part: Part,
}

/// Address of the member of that number.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 8, 3, number)
}

impl Member {
    /// Starts one that is to serve these clusters, and asks `siblings` for what they know.
    pub fn start(place: &Place, number: u8, siblings: &[u8], clusters: &[Access]) -> Self {
        let name = format!("wp-{number}");
        let dir = place.dir.join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("pool.yaml");
        let (ip, loopback) = (address(number), Ipv4Addr::new(127, 8, 3, number));
        let part = {
            let mut command = Command::new(place.binary());
            command.args(["pool", "member", "--config"]).arg(&file).current_dir(&dir);
            command.args(["--drain-spread", "5s"]); // for a test that does not last
            let port = |port: u16, ip: Ipv4Addr| format!("{port}={ip}:{port}");
            let mut ports = vec![port(ADMIN, loopback)];
            ports.extend([METRICS, STATUS, 15008, 15090].map(|number| port(number, ip)));
            command.env_clear().env("HOME", &dir).env("TMPDIR", &dir);
            command.env("CAIRN_PORTS", ports.join(","));
            command
        };
        write(&file, &config(number, siblings, clusters));
        let part = Part::start(&name, part, &place.logs);
        Member { number, name, ip, file, siblings: siblings.to_vec(), part }
    }

    /// Writes its file anew with these clusters; it is to take it while it runs.
    pub fn serve(&self, clusters: &[Access]) {
        write(&self.file, &config(self.number, &self.siblings, clusters));
    }

    /// Where it serves that cluster.
    pub fn at(&self, cluster: &UserCluster) -> SocketAddr {
        SocketAddr::new(self.ip.into(), cluster.port)
    }

    /// What kubelet would be told; `None` while nobody listens.
    pub async fn probe(&self) -> Option<Response> {
        get(SocketAddr::new(self.ip.into(), STATUS), "/healthz/ready").await
    }

    /// Waits until the probe succeeds.
    ///
    /// # Panics
    /// When it ends, or does not become ready; with what the probe said last.
    pub async fn ready(&mut self) {
        let (start, mut said) = (Instant::now(), String::new());
        loop {
            self.part.must_run();
            match self.probe().await {
                Some(answer) if answer.status == 200 => return,
                Some(answer) => said = format!("{}: {}", answer.status, answer.text()),
                None => {}
            }
            let (patience, name) = (crate::control::PATIENCE, &self.name);
            assert!(start.elapsed() < patience, "{name} is not ready in {patience:?}: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `/load`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn load(&self) -> Value {
        let page = get(SocketAddr::new(self.ip.into(), METRICS), "/load").await;
        page.unwrap_or_else(|| panic!("{} does not answer /load", self.name)).json()
    }

    /// A POST to its port for metrics, from an address that is not loopback; `token`: what is shown as the pool's.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn order(&self, path: &str, token: Option<&str>) -> Response {
        let tcp = TcpStream::connect((self.ip, METRICS)).await.unwrap();
        assert!(!tcp.local_addr().unwrap().ip().is_loopback(), "orders come from elsewhere");
        let shown = token.map(|token| format!("Bearer {token}")).unwrap_or_default();
        let headers: &[(&str, &str)] = match token {
            Some(_) => &[("Host", "member"), ("Authorization", &shown)],
            None => &[("Host", "member")],
        };
        Http1::new(tcp).request("POST", path, headers, b"").await.unwrap()
    }

    /// A page of its loopback administration port.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn admin(&self, path: &str) -> Response {
        let loopback = IpAddr::from([127, 8, 3, self.number]);
        let page = get(SocketAddr::new(loopback, ADMIN), path).await;
        page.unwrap_or_else(|| panic!("{} does not answer {path}", self.name))
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        self.part.output()
    }

    /// # Panics
    /// When it has ended.
    pub fn must_run(&mut self) {
        self.part.must_run();
    }

    /// SIGTERM.
    ///
    /// # Panics
    /// When it does not run.
    pub fn terminate(&self) {
        let pid = self.part.pid().to_string();
        let status = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(status.success());
    }

    /// SIGSTOP: as when its machine is gone.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        let pid = self.part.pid().to_string();
        let status = std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap();
        assert!(status.success());
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.part.kill().await;
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ended(&mut self) -> ExitStatus {
        let (name, mut status) = (self.name.clone(), None);
        eventually(&format!("{name} ends"), async || {
            status = self.part.ended();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

/// `pool.yaml`, as JSON, which is YAML.
fn config(number: u8, siblings: &[u8], clusters: &[Access]) -> Value {
    let ip = address(number);
    let siblings: Vec<String> =
        siblings.iter().map(|number| address(*number).to_string()).collect();
    let clusters: Vec<Value> = clusters.iter().map(|cluster| cluster.config(ip.into())).collect();
    json!({
        "pool": { "name": "waypoint-pool", "token_file": "pool-token" },
        "member": { "name": format!("wp-{number}"), "address": ip.to_string(), "locality": "r1/z1" },
        "siblings": siblings,
        "clusters": clusters,
    })
}

/// At once, so that no half of a file is read.
fn write(file: &Path, config: &Value) {
    let mut config = config.clone();
    let token = file.with_file_name("pool-token");
    std::fs::write(&token, format!("{POOL_TOKEN}\n")).unwrap();
    config["pool"]["token_file"] = json!(token);
    let part = file.with_extension("part");
    std::fs::write(&part, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    std::fs::rename(&part, file).unwrap();
}
