//! A waypoint's pod as kubelet makes it of the Deployment that istiod renders: arguments, variables,
//! files. Its root is a directory in memory, as the volumes that hold keys are.

use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::process::Cairn;
use cairn_test_support::wait::{eventually, eventually_async};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// What istiod renders for the Gateway `waypoint` in the namespace `plain`.
const DEPLOYMENT: &str = include_str!("../../data/rendered/deploy.json");
/// Namespace of the Gateway.
pub const NAMESPACE: &str = "plain";
/// Where istiod is, as the rendered pod knows it.
pub const ISTIOD: &str = "istiod.istio-system.svc:15012";

/// The pod; its files go with it.
pub struct Pod {
    /// Arguments of the container.
    pub args: Vec<String>,
    /// Its variables.
    pub vars: BTreeMap<String, String>,
    root: TempDir,
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
        let mut pod = Pod { args: args.collect(), vars: variables.collect(), root };
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
        Waypoint { cairn: Cairn::start_in(&self.args, variables) }
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
}

impl Waypoint {
    /// Where it has opened these pages, once it has.
    pub async fn address(&self, what: &str) -> SocketAddr {
        eventually(&format!("{what} of {:#?}", self.cairn.output()), || self.cairn.printed(what)).await;
        self.cairn.address(what)
    }

    /// A page: `health`, `metrics`, `prometheus` or `admin`.
    pub async fn page(&self, door: &str, method: &str, path: &str) -> Response {
        let address = self.address(&format!("{door} pages")).await;
        let stream = TcpStream::connect(address).await.unwrap();
        Http1::new(stream).request(method, path, &[], b"").await.unwrap()
    }

    /// What the probe says.
    pub async fn probe(&self) -> Response {
        self.page("health", "GET", "/healthz/ready").await
    }

    /// The body of the probe contains this.
    pub async fn waits_for(&self, what: &str) {
        eventually_async(&format!("waits for {what}"), async || {
            let probe = self.probe().await;
            probe.status == 503 && probe.text().contains(what)
        })
        .await;
    }

    /// Waits until the probe succeeds.
    pub async fn ready(&mut self) {
        let mut last = String::new();
        let ready = tokio::time::timeout(cairn_test_support::wait::DEADLINE, async {
            loop {
                let probe = self.probe().await;
                if probe.status == 200 {
                    return;
                }
                last = probe.text();
                assert!(self.cairn.is_running(), "{:#?}", self.cairn.output());
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        });
        if ready.await.is_err() {
            panic!("never ready: {last}: {:#?}", self.cairn.output());
        }
    }
}
