//! The control plane: etcd, kube-apiserver with Istio's CRDs, and istiod.

use crate::api::{ApiServer, part};
use crate::grpc::Caller;
use crate::kube::Kube;
use crate::objects;
use crate::part::Part;
use crate::program::Program;
use crate::site::Site;
use cairn_test_support::http1::{Http1, Response};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long anything may take before it counts as hanging; far above what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// MeshConfig as the installation brings it.
const TRUST_DOMAIN: &str = "trustDomain: cluster.local";

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
    site: Site,
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
        Self::start_at(Site::default(), program, dir, logs).await
    }

    /// As [`ControlPlane::start`], where `site` says; each site has a `dir` of its own.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn start_at(site: Site, program: &Program, dir: &Path, logs: &Path) -> Self {
        let api = ApiServer::start_at(site.clone(), program, dir, logs).await;
        let kube = api.kube.clone();
        install(&kube, program, &site).await;
        let command = istiod(&site, program, dir, &api.kubeconfig);
        let istiod = Part::start(&site.part("istiod"), command, logs);
        let mut plane = ControlPlane {
            kube,
            site,
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
        let (istiod, debug) = (&mut self.istiod, self.site.debug());
        eventually("istiod is ready", async || {
            istiod.must_run();
            get(debug, "/ready").await.is_some_and(|answer| answer.status == 200)
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
        let command = istiod(&self.site, &self.program, &self.dir, &self.api.kubeconfig);
        self.istiod = Part::start(&self.site.part("istiod"), command, &self.logs);
        self.istiod_ready().await;
    }

    /// Starts istiod anew with another root of its own making and with this trust domain, as if the
    /// mesh had been installed again; waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn reinstall(&mut self, trust_domain: &str) {
        let before = self.root("istio-system").await;
        self.kill_istiod().await;
        self.kube.delete(&objects::secret("istio-system", "istio-ca-secret")).await;
        self.site.trust_domain = trust_domain.to_owned();
        let base = mesh_config(&self.program, &self.site);
        self.kube.apply_all(&base, |kind| kind == "ConfigMap").await;
        self.start_istiod().await;
        eventually("istiod has another root", async || self.root("istio-system").await != before)
            .await;
    }

    /// Where it is.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// SIGKILL for the API server; istiod runs on.
    pub async fn kill_api(&mut self) {
        self.api.kill().await;
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_api(&mut self) {
        self.api.start_again().await;
    }

    /// # Panics
    /// When a part has ended.
    pub fn must_run(&mut self) {
        self.api.must_run();
        self.istiod.must_run();
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.api.kubeconfig
    }

    /// The API server as `https://host:port`, and the file with its CA.
    pub fn api(&self) -> (String, String) {
        self.api.address()
    }

    /// A page of istiod for operators, such as `/debug/syncz`.
    ///
    /// # Panics
    /// When there is none.
    pub async fn debug(&self, path: &str) -> Value {
        get(self.site.debug(), path).await.unwrap_or_else(|| panic!("istiod has no {path}")).json()
    }

    /// istiod's metrics, as text.
    ///
    /// # Panics
    /// When there are none.
    pub async fn metrics(&self) -> String {
        get(self.site.metrics(), "/metrics").await.unwrap().text()
    }

    /// The secure port.
    pub fn address(&self) -> SocketAddr {
        self.site.istiod()
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
        Caller {
            address: self.site.istiod(),
            root: self.root(namespace).await,
            token,
            cluster_id: self.site.cluster_id.clone(),
            trust_domain: self.site.trust_domain.clone(),
        }
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
async fn install(kube: &Kube, program: &Program, site: &Site) {
    let [istio, gateway, _] = program.manifests().map(|file| fs::read_to_string(file).unwrap());
    let base = mesh_config(program, site);
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

/// What an installation brings, with the site's trust domain.
fn mesh_config(program: &Program, site: &Site) -> String {
    let [_, _, base] = program.manifests();
    let base = fs::read_to_string(base).unwrap();
    assert!(base.contains(TRUST_DOMAIN), "the manifests do not name a trust domain");
    base.replace(TRUST_DOMAIN, &format!("trustDomain: {}", site.trust_domain))
}

fn istiod(site: &Site, program: &Program, dir: &Path, kubeconfig: &Path) -> Command {
    let mut command = part(program, "istiod", dir);
    command.env("CLUSTER_ID", &site.cluster_id);
    command.env("KUBECONFIG", kubeconfig).envs([
        ("REVISION", "default"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("POD_NAME", "istiod-0"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "istiod"),
        ("PILOT_ENABLE_AMBIENT", "true"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
        ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
        ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
    ]);
    command.args([
        "discovery",
        &format!("--httpAddr={}", site.debug()),
        &format!("--monitoringAddr={}", site.metrics()),
        &format!("--secureGRPCAddr={}", site.istiod()),
        &format!("--grpcAddr={}", site.at(15010)),
        &format!("--httpsAddr={}", site.at(15017)),
        &format!("--ctrlz_address={}", site.loopback),
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
