//! What nearly every test needs: a CA, a pod, a waypoint in front of it, and a client.

use crate::app::App;
use crate::backend::Backend;
use crate::config::{MeshSpec, hbone};
use crate::h2c::H2c;
use crate::hbone_backend::HboneBackend;
use crate::hbone_client::HboneClient;
use crate::http1::Http1;
use crate::pki::{Ca, Cert, CertDir, spiffe};
use crate::stream::H2Stream;
use crate::waypoint::{Limits, Process, Waypoint};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The service's address and port: what clients name.
pub const VIP: &str = "10.96.0.10:80";
/// Another one.
pub const VIP2: &str = "10.96.0.11:80";
/// A port of a TCP service.
pub const TCP_VIP: &str = "10.96.0.10:9000";
/// The pod's address and port: what the waypoint names.
pub const POD: &str = "10.1.0.1:8080";

/// The identity of pods.
pub fn app_id() -> String {
    spiffe("shop", "app")
}

/// The identity of the waypoint.
pub fn waypoint_id() -> String {
    spiffe("shop", "waypoint")
}

/// The identity of the client.
pub fn client_id() -> String {
    spiffe("web", "client")
}

/// A CA and one pod `app`.
pub struct Stage {
    /// Issues everything.
    pub ca: Ca,
    /// In the pod.
    pub app: Backend,
    /// The pod's ztunnel.
    pub pod: HboneBackend,
}

impl Stage {
    /// With a backend named `app`.
    pub async fn new() -> Self {
        let ca = Ca::new();
        let app = Backend::new("app");
        let pod = HboneBackend::start(&ca.workload("shop", "app"), &app).await;
        Stage { ca, app, pod }
    }

    /// A stage, and a waypoint with these routes for [`VIP`].
    pub async fn routed(routes: Value) -> (Self, Run) {
        let stage = Self::new().await;
        let run = stage.run(&stage.spec().http(VIP, routes)).await;
        (stage, run)
    }

    /// Another pod of the same identity.
    pub async fn pod(&self, app: impl Into<App>) -> HboneBackend {
        HboneBackend::start(&self.ca.workload("shop", "app"), app).await
    }

    /// Another pod with another backend.
    pub async fn backend(&self, name: &str) -> (Backend, HboneBackend) {
        let backend = Backend::new(name);
        let pod = self.pod(&backend).await;
        (backend, pod)
    }

    /// The endpoint of the pod `app`.
    pub fn endpoint(&self) -> Value {
        hbone(&self.pod, POD, &app_id())
    }

    /// A mesh with the cluster `app`, HTTP/1.1 to the pod.
    pub fn spec(&self) -> MeshSpec {
        MeshSpec::new().cluster("app", vec![self.endpoint()])
    }

    /// A mesh with the cluster `app`, h2 to the pod.
    pub fn spec_h2(&self) -> MeshSpec {
        let more = json!({ "protocol": "http2" });
        MeshSpec::new().cluster_with("app", more, vec![self.endpoint()])
    }

    /// Certificate of a client.
    pub fn client(&self) -> Cert {
        self.ca.workload("web", "client")
    }

    /// Writes `spec` and certificates to files for `cairn proxy`.
    pub fn files(&self, spec: &MeshSpec) -> Files {
        let certs = CertDir::kubernetes(&self.ca.workload("shop", "waypoint"));
        let files = Files { dir: tempfile::tempdir().unwrap(), certs };
        files.write(spec);
        files
    }

    /// Starts a waypoint with bounds that no configuration sets, and a client.
    pub async fn run_tuned(&self, spec: &MeshSpec, tune: impl FnOnce(&mut Limits)) -> Run {
        let certs = CertDir::plain(&self.ca.workload("shop", "waypoint"));
        let waypoint = Process::start(1).add_tuned(certs, spec, tune, |_| {}).await;
        let client = waypoint.connect(&self.client()).await;
        Run { waypoint, client }
    }

    /// Starts a waypoint and a client.
    pub async fn run(&self, spec: &MeshSpec) -> Run {
        let waypoint = Waypoint::start(&self.ca.workload("shop", "waypoint"), spec).await;
        let client = waypoint.connect(&self.client()).await;
        Run { waypoint, client }
    }
}

/// A configuration on disk.
pub struct Files {
    dir: tempfile::TempDir,
    /// Its identity.
    pub certs: CertDir,
}

impl Files {
    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("mesh.json")
    }

    /// Replaces the configuration.
    pub fn write(&self, spec: &MeshSpec) {
        let mesh = spec.mesh(json!({
            "listen": "127.0.0.1:0",
            "identity": { "files": {
                "cert": self.certs.cert(), "key": self.certs.key(), "roots": self.certs.roots(),
            } },
        }));
        self.write_text(&serde_json::to_string_pretty(&json!({ "meshes": [mesh] })).unwrap());
    }

    /// Replaces the configuration by any text.
    pub fn write_text(&self, text: &str) {
        let fresh = self.dir.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.config()).unwrap();
    }
}

/// A waypoint and one client's connection to it.
pub struct Run {
    /// Under test.
    pub waypoint: Waypoint,
    /// Connected as [`client_id`].
    pub client: HboneClient,
}

impl Run {
    /// A tunnel.
    pub async fn tunnel(&self, authority: &str) -> H2Stream {
        self.client.open(authority).await.unwrap()
    }

    /// HTTP/1.1 in a tunnel to [`VIP`].
    pub async fn http(&self) -> Http1<H2Stream> {
        self.http_to(VIP).await
    }

    /// HTTP/1.1 in a tunnel.
    pub async fn http_to(&self, authority: &str) -> Http1<H2Stream> {
        Http1::new(self.tunnel(authority).await)
    }

    /// h2c in a tunnel to [`VIP`].
    pub async fn h2c(&self) -> H2c {
        self.h2c_to(VIP).await
    }

    /// h2c in a tunnel.
    pub async fn h2c_to(&self, authority: &str) -> H2c {
        H2c::connect(self.tunnel(authority).await).await.unwrap()
    }
}
