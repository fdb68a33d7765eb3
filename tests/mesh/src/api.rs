//! The API server and its database, without a mesh.

use crate::control::eventually;
use crate::keys::Keys;
use crate::kube::Kube;
use crate::part::Part;
use crate::program::Program;
use crate::site::Site;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A running etcd and kube-apiserver.
pub struct ApiServer {
    /// The administrator's client.
    pub kube: Kube,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    site: Site,
    program: Program,
    dir: PathBuf,
    logs: PathBuf,
    keys: Keys,
    etcd: Part,
    server: Part,
}

impl ApiServer {
    /// Starts both with a new database under `dir`.
    ///
    /// # Panics
    /// When one of them does not start.
    pub async fn start(program: &Program, dir: &Path, logs: &Path) -> Self {
        Self::start_at(Site::default(), program, dir, logs).await
    }

    /// As [`ApiServer::start`], where `site` says; each site has a `dir` of its own.
    ///
    /// # Panics
    /// When one of them does not start.
    pub async fn start_at(site: Site, program: &Program, dir: &Path, logs: &Path) -> Self {
        let keys = Keys::generate(dir, site.loopback);
        let kubeconfig = keys.kubeconfig(&format!("https://{}", site.api()));
        let kube = Kube::new(site.api(), keys.admin.clone());
        let etcd = Part::start(&site.part("etcd"), etcd(&site, program, dir), logs);
        let command = api_server(&site, program, dir, &keys);
        let server = Part::start(&site.part("kube-apiserver"), command, logs);
        let mut api = ApiServer {
            kube,
            kubeconfig,
            site,
            program: program.clone(),
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            keys,
            etcd,
            server,
        };
        api.ready().await;
        api
    }

    async fn ready(&mut self) {
        eventually("kube-apiserver is ready", async || {
            self.must_run();
            self.kube.call("GET", "/readyz", "", b"").await.0 == 200
        })
        .await;
    }

    /// SIGKILL for the API server; its database stays.
    pub async fn kill(&mut self) {
        self.server.kill().await;
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&mut self) {
        let command = api_server(&self.site, &self.program, &self.dir, &self.keys);
        self.server = Part::start(&self.site.part("kube-apiserver"), command, &self.logs);
        self.ready().await;
    }

    /// # Panics
    /// When one of them has ended.
    pub fn must_run(&mut self) {
        self.etcd.must_run();
        self.server.must_run();
    }

    /// `https://host:port`, and the file with its CA.
    pub fn address(&self) -> (String, String) {
        (format!("https://{}", self.site.api()), self.keys.path("ca"))
    }
}

/// A part of the lab, with nothing of our environment.
pub(crate) fn part(program: &Program, role: &str, dir: &Path) -> Command {
    let mut command = Command::new(program.binary());
    command.arg(role).current_dir(dir).env_clear().env("HOME", dir).env("TMPDIR", dir);
    command
}

fn etcd(site: &Site, program: &Program, dir: &Path) -> Command {
    let clients = format!("http://{}", site.at(2379));
    let peers = format!("http://{}", site.at(2380));
    let mut command = part(program, "etcd", dir);
    command.arg("--data-dir").arg(dir.join("etcd")).args([
        &format!("--listen-client-urls={clients}"),
        &format!("--advertise-client-urls={clients}"),
        &format!("--listen-peer-urls={peers}"),
        &format!("--initial-advertise-peer-urls={peers}"),
        &format!("--initial-cluster=default={peers}"),
        "--unsafe-no-fsync",
    ]);
    command
}

fn api_server(site: &Site, program: &Program, dir: &Path, keys: &Keys) -> Command {
    let Site { loopback, .. } = site;
    let mut command = part(program, "kube-apiserver", dir);
    command.args([
        &format!("--etcd-servers=http://{}", site.at(2379)),
        &format!("--bind-address={loopback}"),
        &format!("--advertise-address={loopback}"),
        &format!("--secure-port={}", site.api().port()),
        &format!("--tls-cert-file={}", keys.path("server")),
        &format!("--tls-private-key-file={}", keys.path("server-key")),
        &format!("--client-ca-file={}", keys.path("ca")),
        &format!("--service-account-key-file={}", keys.path("tokens-public")),
        &format!("--service-account-signing-key-file={}", keys.path("tokens-key")),
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    ]);
    command
}
