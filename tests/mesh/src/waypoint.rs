//! Cairn as a waypoint: started with what istiod has rendered, in a pod that we play kubelet for.

use crate::control::{ControlPlane, eventually, get};
use crate::identity::spiffe;
use crate::kube::Bound;
use crate::kubelet::Scheduled;
use crate::objects;
use crate::sandbox::{Sandbox, Start};
use cairn_test_support::http1::Response;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// kubelet asks this port whether the pod is ready.
const STATUS_PORT: u16 = 15021;

/// A pod that istiod's Deployment asks for.
pub struct Placed {
    /// As scheduled.
    pub pod: Scheduled,
    /// To what its tokens are bound.
    pub bound: Bound,
    gateway: String,
}

/// A running waypoint.
pub struct Waypoint {
    /// Who it must be.
    pub id: String,
    /// Its address.
    pub ip: IpAddr,
    pod: Scheduled,
    root: PathBuf,
    sandbox: Sandbox,
}

impl Placed {
    /// Waits until istiod has rendered the Deployment of that Gateway, and makes its pod and the
    /// endpoints of its service, as a cluster would.
    ///
    /// # Panics
    /// When istiod does not render it, or differently than expected.
    pub async fn place(
        plane: &ControlPlane,
        namespace: &str,
        gateway: &str,
        name: &str,
        ip: &str,
    ) -> Self {
        let kube = &plane.kube;
        let mut deployment = None;
        eventually("istiod renders the waypoint's Deployment and Service", async || {
            deployment = kube.get("apps/v1", "Deployment", namespace, gateway).await;
            let service = kube.get("v1", "Service", namespace, gateway).await;
            deployment.is_some() && service.is_some()
        })
        .await;
        let template = deployment.unwrap()["spec"]["template"].clone();
        let image = &template["spec"]["containers"][0]["image"];
        assert_eq!(image, "registry.example/cairn:1.0", "the annotation chooses the image");
        let pod = Scheduled {
            template,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ip: ip.to_owned(),
        };
        kube.apply(&pod.object()).await;
        kube.apply_status(&objects::pod_status(namespace, name, ip)).await;
        let ports = [("mesh", 15008), ("status-port", STATUS_PORT)];
        let slice = objects::endpoint_slice(namespace, gateway, &ports, &[(name, ip, true)]);
        kube.apply(&slice).await;
        let bound = token_holder(plane, namespace, "first-token").await;
        Placed { pod, bound, gateway: gateway.to_owned() }
    }

    /// Waits until istiod has bound services to the Gateway: its address is in the status.
    ///
    /// # Panics
    /// When it does not.
    pub async fn programmed(&self, plane: &ControlPlane) {
        let Placed { pod, gateway, .. } = self;
        let api = "gateway.networking.k8s.io/v1";
        eventually("istiod programs the Gateway", async || {
            let found = plane.kube.get(api, "Gateway", &pod.namespace, gateway).await;
            found.is_some_and(|gateway| {
                gateway["status"]["addresses"].as_array().is_some_and(|list| !list.is_empty())
            })
        })
        .await;
    }

    /// Starts the container: `binary` stands for the image's entry point.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run(
        &self,
        plane: &ControlPlane,
        binary: &Path,
        dir: &Path,
        logs: &Path,
    ) -> Waypoint {
        let Placed { pod, bound, .. } = self;
        pod.write_volumes(&plane.kube, bound, &root(pod, dir)).await;
        self.run_again(plane, binary, dir, logs).await
    }

    /// Starts the container again, in the pod that there is: with the same files.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run_again(
        &self,
        plane: &ControlPlane,
        binary: &Path,
        dir: &Path,
        logs: &Path,
    ) -> Waypoint {
        let Placed { pod, .. } = self;
        let root = root(pod, dir);
        let mut container = pod.container();
        container.env.insert("CAIRN_ROOT".to_owned(), root.display().to_string());
        let resolve = format!("istiod.istio-system.svc:15012={}", plane.address());
        container.env.insert("CAIRN_RESOLVE".to_owned(), resolve);
        let ip: IpAddr = pod.ip.parse().unwrap();
        let start =
            Start { program: binary, args: &container.args, env: &container.env, root: None };
        let state = dir.join(format!("{}-state", pod.name));
        let sandbox = Sandbox::start("cairn", ip, start, &state, logs).await;
        let id = spiffe(&pod.namespace, pod.account());
        Waypoint { id, ip, pod: pod.clone(), root, sandbox }
    }
}

/// What stands for the root of the pod's file system.
fn root(pod: &Scheduled, dir: &Path) -> PathBuf {
    dir.join(format!("{}-root", pod.name))
}

impl Waypoint {
    /// What the probe of its template asks, as status and body; `None` while nobody listens.
    pub async fn probe(&self) -> Option<Response> {
        get(SocketAddr::new(self.ip, STATUS_PORT), "/healthz/ready").await
    }

    /// Waits until the probe succeeds.
    ///
    /// # Panics
    /// When it ends, or does not become ready; with what the probe said last.
    pub async fn ready(&mut self) {
        let mut said = String::new();
        let start = std::time::Instant::now();
        loop {
            self.sandbox.part().must_run();
            match self.probe().await {
                Some(answer) if answer.status == 200 => return,
                Some(answer) => said = format!("{}: {}", answer.status, answer.text()),
                None => {}
            }
            let patience = crate::control::PATIENCE;
            assert!(start.elapsed() < patience, "not ready after {patience:?}: {said}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// A page of its loopback administration port.
    ///
    /// # Panics
    /// When there is none.
    pub async fn admin(&self, path: &str) -> Response {
        let page = get(self.sandbox.admin(), path).await;
        page.unwrap_or_else(|| panic!("127.0.0.1:15000 does not answer {path}"))
    }

    /// Writes the pod's volumes again, with a new token that is bound to `bound`, as kubelet does
    /// from time to time.
    pub async fn rotate_token(&self, plane: &ControlPlane, bound: &Bound) {
        let text = plane
            .kube
            .token(&self.pod.namespace, self.pod.account(), "istio-ca", Some(bound))
            .await;
        let dir = self.root.join("var/run/secrets/tokens");
        let files = BTreeMap::from([(PathBuf::from("istio-token"), text)]);
        crate::kubelet::write_atomically(&dir, &files);
    }

    /// What it has printed.
    pub fn output(&mut self) -> String {
        self.sandbox.part().output()
    }

    /// # Panics
    /// When it has ended.
    pub fn must_run(&mut self) {
        self.sandbox.part().must_run();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.sandbox.terminate();
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> ExitStatus {
        self.sandbox.wait().await
    }
}

/// Something for a token to be bound to, by whose deletion the token is made void. kubelet binds
/// tokens to the pod; a Secret can go while the pod stays.
pub async fn token_holder(plane: &ControlPlane, namespace: &str, name: &str) -> Bound {
    let stored = plane.kube.apply(&objects::secret(namespace, name)).await;
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    Bound { kind: "Secret", name: name.to_owned(), uid }
}
