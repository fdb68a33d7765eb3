//! The control plane: etcd, kube-apiserver with Istio's CRDs, and istiod.

use crate::api::{ApiServer, part};
use crate::grpc::Caller;
use crate::kube::Kube;
use crate::namespace::ISTIOD;
use crate::objects;
use crate::part::Part;
use crate::program::Program;
use cairn_test_support::http1::{Http1, Response};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long anything may take before it counts as hanging; far above what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

const ISTIOD_SECURE: SocketAddr = SocketAddr::new(IpAddr::V4(ISTIOD), 15012);
const ISTIOD_DEBUG: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const ISTIOD_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);

/// Kinds of an Istio installation that matter where no kubelet is.
const BASE: [&str; 7] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
];

/// The running control plane.
pub struct ControlPlane {
    /// The API server's client.
    pub kube: Kube,
    program: Program,
    dir: PathBuf,
    logs: PathBuf,
    api: ApiServer,
    istiod: Part,
}

impl ControlPlane {
    /// Starts all of it with a new database under `dir`.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn start(program: &Program, dir: &Path, logs: &Path) -> Self {
        let api = ApiServer::start(program, dir, logs).await;
        let kube = api.kube.clone();
        install(&kube, program).await;
        let istiod = Part::start("istiod", istiod(program, dir, &api.kubeconfig), logs);
        let mut plane = ControlPlane {
            kube,
            program: program.clone(),
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            api,
            istiod,
        };
        plane.istiod_ready().await;
        plane
    }

    async fn istiod_ready(&mut self) {
        let istiod = &mut self.istiod;
        eventually("istiod is ready", async || {
            istiod.must_run();
            get(ISTIOD_DEBUG, "/ready").await.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// SIGKILL for istiod.
    pub async fn kill_istiod(&mut self) {
        self.istiod.kill().await;
    }

    /// Starts istiod again, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_istiod(&mut self) {
        let command = istiod(&self.program, &self.dir, &self.api.kubeconfig);
        self.istiod = Part::start("istiod", command, &self.logs);
        self.istiod_ready().await;
    }

    /// # Panics
    /// When a part has ended.
    pub fn must_run(&mut self) {
        self.api.must_run();
        self.istiod.must_run();
    }

    /// A page of istiod for operators, such as `/debug/syncz`.
    ///
    /// # Panics
    /// When there is none.
    pub async fn debug(&self, path: &str) -> Value {
        get(ISTIOD_DEBUG, path).await.unwrap_or_else(|| panic!("istiod has no {path}")).json()
    }

    /// istiod's metrics, as text.
    ///
    /// # Panics
    /// When there are none.
    pub async fn metrics(&self) -> String {
        get(ISTIOD_METRICS, "/metrics").await.unwrap().text()
    }

    /// The secure port.
    pub fn address(&self) -> SocketAddr {
        ISTIOD_SECURE
    }

    /// The root that istiod has published in this namespace; waits until it has.
    ///
    /// # Panics
    /// When it does not.
    pub async fn root(&self, namespace: &str) -> String {
        let mut root = None;
        eventually("istiod publishes its root", async || {
            let map = self.kube.get("v1", "ConfigMap", namespace, "istio-ca-root-cert").await;
            root = map.and_then(|map| map["data"]["root-cert.pem"].as_str().map(str::to_owned));
            root.is_some()
        })
        .await;
        root.unwrap()
    }

    /// A call to istiod in the name of a service account.
    ///
    /// # Panics
    /// When there is no such account.
    pub async fn caller(&self, namespace: &str, account: &str) -> Caller {
        let token = self.kube.token(namespace, account, "istio-ca", None).await;
        Caller { address: ISTIOD_SECURE, root: self.root(namespace).await, token }
    }

    /// What istioctl prints: success, standard output and error.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn istioctl(&self, args: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(self.program.binary());
        command.arg("istioctl").args(args).env("KUBECONFIG", &self.api.kubeconfig);
        let output = command.env("HOME", &self.dir).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }
}

/// CRDs, then what an installation brings.
async fn install(kube: &Kube, program: &Program) {
    let [istio, gateway, base] = program.manifests().map(|file| fs::read_to_string(file).unwrap());
    let crd = |kind: &str| kind == "CustomResourceDefinition";
    let mut count = kube.apply_all(&istio, crd).await;
    count += kube.apply_all(&gateway, crd).await;
    assert!(count > 20, "only {count} CRDs in the manifests");
    kube.apply(&objects::namespace("istio-system", &[])).await;
    kube.apply_all(&base, |kind| BASE.contains(&kind)).await;
    kube.apply(&objects::node("node-a", "z1")).await;
    let groups = ["networking.istio.io/v1", "security.istio.io/v1", "gateway.networking.k8s.io/v1"];
    eventually("the API server serves the new kinds", async || {
        for group in groups {
            let (_, answer) = kube.call("GET", &format!("/apis/{group}"), "", b"").await;
            if answer["resources"].as_array().is_none_or(|kinds| kinds.is_empty()) {
                return false;
            }
        }
        true
    })
    .await;
}

fn istiod(program: &Program, dir: &Path, kubeconfig: &Path) -> Command {
    let mut command = part(program, "istiod", dir);
    command.env("KUBECONFIG", kubeconfig).envs([
        ("REVISION", "default"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("POD_NAME", "istiod-0"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "istiod"),
        ("CLUSTER_ID", "Kubernetes"),
        ("PILOT_ENABLE_AMBIENT", "true"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
        ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
        ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
    ]);
    command.args([
        "discovery",
        &format!("--httpAddr={ISTIOD_DEBUG}"),
        &format!("--monitoringAddr={ISTIOD_METRICS}"),
        &format!("--secureGRPCAddr={ISTIOD_SECURE}"),
        "--grpcAddr=127.0.0.1:15010",
        "--httpsAddr=127.0.0.1:15017",
        "--ctrlz_port=9876",
        "--domain=cluster.local",
    ]);
    command
}

/// One page, if somebody answers.
pub async fn get(address: SocketAddr, path: &str) -> Option<Response> {
    let tcp = TcpStream::connect(address).await.ok()?;
    let host = address.to_string();
    let headers = [("Host", host.as_str()), ("Connection", "close")];
    Http1::new(tcp).request("GET", path, &headers, b"").await.ok()
}

/// Waits until `condition` holds; returns how long that took.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "did not happen in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}
