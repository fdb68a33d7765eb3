//! Everything together: the control plane, pods of a mesh, and what tests say to it.

use crate::control::{ControlPlane, eventually};
use crate::hbone::{Client, Failure, Pod};
use crate::identity::PodIdentity;
use crate::load::Target;
use crate::objects::{self, Endpoint, Labels};
use crate::program::Program;
use crate::site::Site;
use crate::waypoint::Waypoint;
use cairn_test_support::app::App;
use cairn_test_support::backend::Backend;
use cairn_test_support::http1::Response;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Port of every application.
pub const APP: u16 = 8080;

/// A mesh with what runs in it.
pub struct Lab {
    /// etcd, kube-apiserver, istiod.
    pub plane: ControlPlane,
    /// For files of this run.
    pub dir: PathBuf,
    /// For logs.
    pub logs: PathBuf,
    pods: BTreeMap<String, Running>,
}

/// A pod with its application.
struct Running {
    namespace: String,
    account: String,
    pod: Pod,
    backend: Backend,
}

/// A service of one port with the pods that it has.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its VIP.
    pub vip: &'static str,
    /// Label `app` that it selects, and perhaps one more.
    pub selector: Vec<(&'static str, &'static str)>,
}

impl Service {
    /// `host:port` of a CONNECT.
    pub fn authority(&self) -> String {
        format!("{}:80", self.vip)
    }

    /// Its DNS name.
    pub fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    /// The object.
    pub fn object(&self) -> serde_json::Value {
        let port = ("http", 80, APP);
        objects::service(self.namespace, self.name, self.vip, port, &self.selector)
    }
}

impl Lab {
    /// Starts the control plane.
    pub async fn start(program: &Program, dir: &Path, logs: &Path) -> Self {
        Self::start_at(Site::default(), program, dir, logs).await
    }

    /// Starts the control plane where `site` says; each site has a `dir` of its own.
    pub async fn start_at(site: Site, program: &Program, dir: &Path, logs: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let plane = ControlPlane::start_at(site, program, dir, logs).await;
        Lab { plane, dir: dir.to_owned(), logs: logs.to_owned(), pods: BTreeMap::new() }
    }

    /// A service account with a certificate.
    ///
    /// # Panics
    /// When the API server or istiod refuses.
    pub async fn account(&self, namespace: &str, account: &str) -> PodIdentity {
        self.plane.kube.apply(&objects::service_account(namespace, account)).await;
        let caller = self.plane.caller(namespace, account).await;
        PodIdentity::issue(&caller, namespace, account)
            .await
            .unwrap_or_else(|error| panic!("istiod does not sign for {account}: {error}"))
    }

    async fn pod_object(
        &self,
        namespace: &str,
        name: &str,
        account: &str,
        ip: &str,
        labels: Labels<'_>,
    ) {
        let kube = &self.plane.kube;
        kube.apply(&objects::pod(namespace, name, account, labels)).await;
        kube.apply_status(&objects::pod_status(namespace, name, ip)).await;
    }

    /// A pod with an HTTP application of its own name behind its ztunnel.
    ///
    /// # Panics
    /// When its address is taken or the API server refuses.
    pub async fn add_pod(
        &mut self,
        namespace: &str,
        name: &str,
        account: &str,
        ip: &str,
        labels: Labels<'_>,
    ) {
        let identity = self.account(namespace, account).await;
        let backend = Backend::new(name);
        let pod = run(ip.parse().unwrap(), identity, &backend).await;
        self.pod_object(namespace, name, account, ip, labels).await;
        let (namespace, account) = (namespace.to_owned(), account.to_owned());
        self.pods.insert(name.to_owned(), Running { namespace, account, pod, backend });
    }

    /// All pods with applications get other certificates, and end the connections that they have.
    ///
    /// # Panics
    /// When istiod refuses.
    pub async fn renew_pods(&mut self) {
        for (name, running) in std::mem::take(&mut self.pods) {
            let Running { namespace, account, pod, backend } = running;
            let identity = self.account(&namespace, &account).await;
            let ip = pod.ip();
            pod.end().await;
            let pod = run(ip, identity, &backend).await;
            self.pods.insert(name, Running { namespace, account, pod, backend });
        }
    }

    /// A pod that only calls.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn add_client(&mut self, namespace: &str, name: &str, ip: &str) -> Client {
        let identity = self.account(namespace, name).await;
        self.pod_object(namespace, name, name, ip, &[("app", name)]).await;
        Client::new(ip.parse().unwrap(), identity)
    }

    /// The ztunnel of a pod, and its application.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn pod(&self, name: &str) -> (&Pod, &Backend) {
        let running = self.pods.get(name).unwrap_or_else(|| panic!("no pod {name}"));
        (&running.pod, &running.backend)
    }

    /// Makes or changes a service; each of its endpoints is a pod and whether it is ready.
    pub async fn serve(&self, service: &Service, pods: &[(&str, bool)]) {
        self.plane.kube.apply(&service.object()).await;
        let ips: Vec<String> =
            pods.iter().map(|(pod, _)| self.pod(pod).0.ip().to_string()).collect();
        let endpoints: Vec<Endpoint<'_>> =
            pods.iter().zip(&ips).map(|((pod, ready), ip)| (*pod, ip.as_str(), *ready)).collect();
        let ports = [("http", APP)];
        let slice = objects::endpoint_slice(service.namespace, service.name, &ports, &endpoints);
        self.plane.kube.apply(&slice).await;
    }

    /// Deletes a service and its endpoints.
    pub async fn withdraw(&self, service: &Service) {
        let slice = objects::endpoint_slice(service.namespace, service.name, &[], &[]);
        self.plane.kube.delete(&slice).await;
        self.plane.kube.delete(&service.object()).await;
    }
}

/// Its ztunnel, and its application.
async fn run(ip: IpAddr, identity: PodIdentity, backend: &Backend) -> Pod {
    let apps = BTreeMap::from([(APP, App::from(backend))]);
    Pod::start(ip, identity, apps).await
}

/// A client, the waypoint that it uses, and a service behind it.
pub struct Talk<'a> {
    client: &'a Client,
    target: Target,
}

impl<'a> Talk<'a> {
    /// Of these three.
    pub fn new(client: &'a Client, waypoint: &Waypoint, service: &Service) -> Self {
        let target = Target {
            waypoint: waypoint.ip,
            id: waypoint.id.clone(),
            authority: service.authority(),
            host: service.host(),
        };
        Talk { client, target }
    }

    /// Of a client, and wherever its requests go.
    pub fn to(client: &'a Client, target: Target) -> Self {
        Talk { client, target }
    }

    /// Where its requests go.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// One `GET` on a new connection.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response, Failure> {
        let Target { waypoint, id, authority, host } = &self.target;
        let connection = self.client.connect(*waypoint, id).await?;
        let mut all = vec![("Host", host.as_str())];
        all.extend_from_slice(headers);
        connection.get(authority, path, &all).await
    }

    /// The status, or a text of the failure.
    pub async fn status(&self, path: &str) -> String {
        match self.get(path, &[]).await {
            Ok(answer) => answer.status.to_string(),
            Err(failure) => format!("{failure:?}"),
        }
    }

    /// Waits until such a request is answered as `wanted` says, several times in a row; returns
    /// how long that took.
    ///
    /// # Panics
    /// When it is not, with what came last.
    pub async fn until(
        &self,
        what: &str,
        path: &str,
        headers: &[(&str, &str)],
        wanted: impl Fn(&Result<Response, Failure>) -> bool,
    ) -> Duration {
        let start = std::time::Instant::now();
        let mut in_a_row = 0;
        loop {
            let answer = self.get(path, headers).await;
            in_a_row = if wanted(&answer) { in_a_row + 1 } else { 0 };
            if in_a_row >= 3 {
                return start.elapsed();
            }
            let patience = crate::control::PATIENCE;
            assert!(
                start.elapsed() < patience,
                "not in {patience:?}: {what}; the last answer to {path}: {answer:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Names of the backends that answer within so many requests.
    ///
    /// # Panics
    /// When a request is not answered with 200.
    pub async fn backends(&self, path: &str, count: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for _ in 0..count {
            let answer = self.get(path, &[]).await;
            let answer = answer.unwrap_or_else(|failure| panic!("{path}: {failure:?}"));
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            names.insert(answer.backend().to_owned());
        }
        names
    }

    /// Waits until exactly these backends answer.
    ///
    /// # Panics
    /// When they do not, or a request on the way there is not answered with 200.
    pub async fn until_backends(&self, path: &str, wanted: &[&str]) -> Duration {
        let wanted: BTreeSet<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let what = format!("{wanted:?} answer {path}");
        eventually(&what, async || self.backends(path, 12).await == wanted).await
    }
}
