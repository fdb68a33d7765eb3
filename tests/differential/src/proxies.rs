//! Both proxies, with one push.

use crate::bootstrap::{Credentials, encode};
use crate::push::Push;
use cairn_mesh_tests::hbone::PORT;
use cairn_mesh_tests::identity::spiffe;
use cairn_mesh_tests::part::Part;
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::{FakeIstiod, NAME, TOKEN};
use cairn_test_support::process::Cairn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long a proxy may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where probes are answered.
const STATUS_PORT: u16 = 15021;
/// Envoy's pages.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15900);

/// Two waypoints of one Gateway; they end when this is dropped.
pub struct Proxies {
    /// SPIFFE id of both.
    pub id: String,
    /// Where Envoy is.
    pub envoy: IpAddr,
    /// Where Cairn is.
    pub cairn: IpAddr,
    _envoy: Part,
    _cairn: Cairn,
}

impl Proxies {
    /// Starts both for the Gateway `waypoint` in this namespace and waits until they are ready. `n`
    /// makes their addresses differ from those of others.
    ///
    /// # Panics
    /// When one of them does not become ready.
    pub async fn start(
        push: &Push,
        istiod: &FakeIstiod,
        (namespace, n): (&str, u8),
        program: &Path,
        dir: &Path,
    ) -> Self {
        let id = spiffe(namespace, "waypoint");
        let envoy = IpAddr::from([10, 244, 0, 20 + 2 * n]);
        let cairn = IpAddr::from([10, 244, 0, 21 + 2 * n]);
        let _envoy = start_envoy(push, istiod, &id, envoy, (program, dir)).await;
        let _cairn = start_cairn(push, istiod, namespace, cairn, dir).await;
        Proxies { id, envoy, cairn, _envoy, _cairn }
    }
}

async fn start_envoy(
    push: &Push,
    istiod: &FakeIstiod,
    id: &str,
    ip: IpAddr,
    (program, dir): (&Path, &Path),
) -> Part {
    let (chain, key) = istiod.issue(id);
    let who = Credentials { chain, key, roots: istiod.roots_pem() };
    let config = dir.join("bootstrap.pb");
    std::fs::write(&config, encode(push, &who, ip, ADMIN)).unwrap();
    let mut command = Command::new(program);
    command.arg("--config-path").arg(&config);
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
    command.args(["--component-log-level", "misc:error"]);
    let mut part = Part::start("envoy", command, dir);
    ready("Envoy", ADMIN, "/ready", || part.must_run()).await;
    part
}

async fn start_cairn(
    push: &Push,
    istiod: &FakeIstiod,
    namespace: &str,
    ip: IpAddr,
    dir: &Path,
) -> Cairn {
    istiod.accept_token(TOKEN, &spiffe(namespace, "waypoint"));
    for (kind, resources) in push.resources() {
        istiod.set(kind, resources);
    }
    let root = dir.join("root");
    let write = |path: &str, content: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("etc/istio/pod/labels", "gateway.networking.k8s.io/gateway-name=\"waypoint\"\n");
    write("etc/istio/pod/annotations", "");
    write("var/run/secrets/tokens/istio-token", TOKEN);
    write("var/run/secrets/istio/root-cert.pem", &istiod.roots_pem());
    for directory in ["etc/istio/proxy", "var/lib/istio/data"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let args = ["proxy", "waypoint", "--log_as_json"].map(str::to_owned);
    let (address, root) = (ip.to_string(), root.display().to_string());
    let istiod_name = format!("{NAME}:15012");
    let resolve = format!("{istiod_name}={}", istiod.address());
    let ports = format!(
        "15008={ip}:{PORT},{STATUS_PORT}={ip}:{STATUS_PORT},\
         15000=127.0.0.1:0,15020=127.0.0.1:0,15090=127.0.0.1:0"
    );
    let variables = [
        ("CAIRN_ROOT", root.as_str()),
        ("CAIRN_RESOLVE", &resolve),
        ("CAIRN_PORTS", &ports),
        ("CA_ADDR", &istiod_name),
        ("POD_NAME", "waypoint-1"),
        ("POD_NAMESPACE", namespace),
        ("INSTANCE_IP", &address),
        ("SERVICE_ACCOUNT", "waypoint"),
        ("ISTIO_META_SERVICE_ACCOUNT", "waypoint"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("TRUST_DOMAIN", "cluster.local"),
        ("ISTIO_CPU_LIMIT", "1"),
    ];
    let mut cairn = Cairn::start_in(&args, variables);
    ready("Cairn", SocketAddr::new(ip, STATUS_PORT), "/healthz/ready", || {
        assert!(cairn.is_running(), "{:#?}", cairn.output());
    })
    .await;
    cairn
}

/// Asks until the answer is 200.
async fn ready(what: &str, at: SocketAddr, path: &str, mut check: impl FnMut()) {
    let start = Instant::now();
    let mut said = String::new();
    loop {
        check();
        assert!(start.elapsed() < PATIENCE, "{what} is not ready: {said}");
        if let Ok(stream) = TcpStream::connect(at).await
            && let Ok(answer) = Http1::new(stream).request("GET", path, &[], b"").await
        {
            if answer.status == 200 {
                return;
            }
            said = answer.text();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
