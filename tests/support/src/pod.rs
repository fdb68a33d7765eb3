//! A waypoint's pod as kubelet makes it of the Deployment that istiod renders: arguments, variables,
//! files. Its root is a directory in memory, as the volumes that hold keys are.

use crate::http1::{Http1, Response};
use crate::istiod::FakeIstiod;
use crate::metrics;
use crate::process::Cairn;
use crate::wait::{DEADLINE, eventually_async};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// What istiod renders for the Gateway `waypoint` in the namespace `plain`.
const DEPLOYMENT: &str = include_str!("../../data/rendered/deploy.json");
/// Namespace of the Gateway.
pub const NAMESPACE: &str = "plain";
/// Where istiod is, as the rendered pod knows it.
pub const ISTIOD: &str = "istiod.istio-system.svc:15012";

/// The pod; its files go with it and its containers.
pub struct Pod {
    /// Arguments of the container.
    pub args: Vec<String>,
    /// Its variables.
    pub vars: BTreeMap<String, String>,
    root: Arc<TempDir>,
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

impl Pod {
    /// As rendered, with free ports on loopback instead of the fixed ones, and istiod at an address where
    /// nobody is.
    pub fn new() -> Self {
        let deployment: Value = serde_json::from_str(DEPLOYMENT).unwrap();
        let template = &deployment["spec"]["template"];
        let container = &template["spec"]["containers"][0];
        let words = container["args"].as_array().unwrap().iter();
        let args = words.map(|word| word.as_str().unwrap().replace("$(POD_NAMESPACE)", NAMESPACE));
        let variables = container["env"].as_array().unwrap().iter().map(|entry| {
            let name = entry["name"].as_str().unwrap().to_owned();
            (name, entry["value"].as_str().map_or_else(|| from_pod(entry), str::to_owned))
        });
        let in_memory = PathBuf::from("/dev/shm");
        let root = if in_memory.is_dir() {
            tempfile::tempdir_in(in_memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let mut pod = Pod { args: args.collect(), vars: variables.collect(), root: Arc::new(root) };
        pod.args.push("--log_as_json".to_owned());
        for directory in ["etc/istio/pod", "etc/istio/proxy", "var/lib/istio/data"] {
            std::fs::create_dir_all(pod.path(directory)).unwrap();
        }
        pod.write("etc/istio/pod/labels", &lines(&template["metadata"]["labels"]));
        pod.write("etc/istio/pod/annotations", &lines(&template["metadata"]["annotations"]));
        pod.set("CAIRN_ROOT", &pod.root.path().display().to_string());
        pod.listen_on("127.0.0.1");
        pod.resolve("127.0.0.1:9".parse().unwrap());
        pod
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.vars.insert(name.to_owned(), value.to_owned());
    }

    /// Free ports at this address.
    pub fn listen_on(&mut self, ip: &str) {
        let ports = [15008, 15020, 15021, 15090].map(|port| format!("{port}={ip}:0"));
        self.set("CAIRN_PORTS", &format!("{},15000=127.0.0.1:0", ports.join(",")));
    }

    /// Where istiod is found.
    pub fn resolve(&mut self, address: SocketAddr) {
        self.set("CAIRN_RESOLVE", &format!("{ISTIOD}={address}"));
    }

    /// Istiod's address, roots and token, which follow it when they change.
    pub fn join(&mut self, istiod: &FakeIstiod) {
        self.resolve(istiod.address());
        for (from, to) in [
            (istiod.token_file(), "var/run/secrets/tokens/istio-token"),
            (istiod.roots_file(), "var/run/secrets/istio/root-cert.pem"),
        ] {
            let to = self.path(to);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(from, to).unwrap();
        }
    }

    /// A file of the pod.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Writes a file of the pod.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Starts the container.
    pub fn start(&self) -> Waypoint {
        let variables = self.vars.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Waypoint { cairn: Cairn::start_in(&self.args, variables), _root: Arc::clone(&self.root) }
    }
}

/// What kubelet puts in by reference.
fn from_pod(entry: &Value) -> String {
    let field = entry["valueFrom"]["fieldRef"]["fieldPath"].as_str();
    let resource = entry["valueFrom"]["resourceFieldRef"]["resource"].as_str();
    let value = match (field, resource) {
        (Some("metadata.name"), _) => "waypoint-1",
        (Some("metadata.namespace"), _) => NAMESPACE,
        (Some("spec.nodeName"), _) => "node-a",
        (Some("spec.serviceAccountName"), _) => "waypoint",
        (Some("status.podIP"), _) => "10.244.1.10",
        (Some("status.hostIP"), _) => "192.0.2.1",
        (_, Some("limits.cpu")) => "2",
        (_, Some("limits.memory")) => "1073741824",
        other => panic!("{other:?}"),
    };
    value.to_owned()
}

/// As the downward API writes them.
fn lines(map: &Value) -> String {
    let map = map.as_object().unwrap().iter();
    map.map(|(key, value)| format!("{key}={value}\n")).collect()
}

/// A running container.
pub struct Waypoint {
    /// The process.
    pub cairn: Cairn,
    /// Its files stay as long as it does.
    _root: Arc<TempDir>,
}

impl Waypoint {
    /// Where it has opened these pages, once it has.
    pub async fn address(&self, what: &str) -> SocketAddr {
        self.says(what).await;
        self.cairn.address(what)
    }

    /// Waits until it has printed this.
    pub async fn says(&self, text: &str) {
        let printed = async {
            while !self.cairn.printed(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, printed).await.is_err() {
            panic!("`{text}` is not in {:#?}", self.cairn.output());
        }
    }

    /// A page: `health`, `metrics`, `prometheus` or `admin`.
    pub async fn page(&self, door: &str, method: &str, path: &str) -> Response {
        let address = self.address(&format!("{door} pages")).await;
        let stream = TcpStream::connect(address).await.unwrap();
        Http1::new(stream).request(method, path, &[], b"").await.unwrap()
    }

    /// A GET of an admin page that is there.
    pub async fn admin(&self, path: &str) -> Response {
        let page = self.page("admin", "GET", path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.text());
        page
    }

    /// The sum of all samples of a metric with these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.page("prometheus", "GET", "/stats/prometheus").await;
        metrics::sum(&metrics::parse(&page.text()), name, labels)
    }

    /// Where it accepts tunnels.
    pub async fn hbone(&self) -> SocketAddr {
        self.address("accepting HBONE").await
    }

    /// What the probe says.
    pub async fn probe(&self) -> Response {
        self.page("health", "GET", "/healthz/ready").await
    }

    /// The body of the probe contains this.
    pub async fn waits_for(&self, what: &str) {
        let mut last = String::new();
        let waits = async {
            loop {
                let probe = self.probe().await;
                last = probe.text();
                if probe.status == 503 && last.contains(what) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waits).await.is_err() {
            panic!("does not wait for `{what}`, but: {last}");
        }
    }

    /// The body of the probe contains this no longer.
    pub async fn waits_no_more_for(&self, what: &str) {
        eventually_async(&format!("has {what}"), async || {
            !self.probe().await.text().contains(what)
        })
        .await;
    }

    /// Waits until the probe succeeds.
    pub async fn ready(&mut self) {
        let mut last = String::new();
        let ready = tokio::time::timeout(DEADLINE, async {
            loop {
                let probe = self.probe().await;
                if probe.status == 200 {
                    return;
                }
                last = probe.text();
                assert!(self.cairn.is_running(), "{:#?}", self.cairn.output());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if ready.await.is_err() {
            panic!("never ready: {last}: {:#?}", self.cairn.output());
        }
    }
}
