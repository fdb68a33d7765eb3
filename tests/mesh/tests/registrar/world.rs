//! One API server that is the members' cluster and a user's, members that are played, and entries as istiod makes them.

use crate::played::Played;
use cairn_mesh_tests::api::ApiServer;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::program::Program;
use cairn_test_support::http1::Http1;
use cairn_test_support::metrics;
use cairn_test_support::process::Cairn;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::net::TcpStream;

/// Namespace of the members.
pub const MEMBERS: &str = "pool";
/// Namespace and name of the pool in the user's cluster.
pub const POOL: &str = "waypoint-pool";
/// Service of the members.
pub const SERVICE: &str = "waypoint";
/// The pool's token.
pub const TOKEN: &str = "token-of-the-pool";

const ENTRY: (&str, &str) = ("networking.istio.io/v1", "WorkloadEntry");

/// All of it.
pub struct World {
    /// Both clusters.
    pub api: ApiServer,
    dir: PathBuf,
    /// Running members by number.
    pub members: BTreeMap<u8, Played>,
    /// Members that have an endpoint.
    listed: Vec<u8>,
}

/// Address of a member.
pub fn ip(number: u8) -> String {
    format!("10.244.1.{number}")
}

/// Name of its pod.
pub fn pod(number: u8) -> String {
    format!("{SERVICE}-{number}")
}

/// Name of its entry.
pub fn entry(number: u8) -> String {
    format!("{POOL}-{}", ip(number))
}

impl World {
    /// Starts the API server and gives it the definitions that matter.
    pub async fn start(program: &Program, dir: &Path, logs: &Path) -> Self {
        let api = ApiServer::start(program, dir, logs).await;
        let [istio, gateway, _] = program.manifests();
        for file in [istio, gateway] {
            let yaml = std::fs::read_to_string(file).unwrap();
            api.kube.apply_all(&yaml, |kind| kind == "CustomResourceDefinition").await;
        }
        for group in
            ["networking.istio.io/v1", "gateway.networking.k8s.io/v1", "security.istio.io/v1"]
        {
            eventually("the definitions are served", async || {
                let (_, answer) = api.kube.call("GET", &format!("/apis/{group}"), "", b"").await;
                answer["resources"].as_array().is_some_and(|kinds| kinds.len() >= 2)
            })
            .await;
        }
        api.kube.apply(&objects::namespace(MEMBERS, &[])).await;
        let world =
            World { api, dir: dir.to_owned(), members: BTreeMap::new(), listed: Vec::new() };
        std::fs::write(world.dir.join("pool.token"), format!("{TOKEN}\n")).unwrap();
        let admin = world.api.kubeconfig.display().to_string();
        world.config("admin.yaml", &admin);
        world
    }

    /// pool.yaml with the cluster `east` by this kubeconfig, and `west`, which is away.
    fn config(&self, file: &str, kubeconfig: &str) {
        let away = self.dir.join("away.kubeconfig");
        let (_, ca) = self.api.address();
        std::fs::write(&away, kubeconfig_of("https://127.0.0.1:1", &ca, "x")).unwrap();
        let token = self.dir.join("pool.token");
        let text = format!(
            "pool:\n  token_file: {}\nclusters:\n\
             - name: east\n  istiod: istiod.example:15012\n  root_file: /r.pem\n  listen: 0.0.0.0:21001\n  \
             kubeconfig: {kubeconfig}\n  shards: [s00, s01, s02]\n\
             - name: west\n  istiod: istiod.example:15012\n  root_file: /r.pem\n  listen: 0.0.0.0:21002\n  \
             kubeconfig: {}\n",
            token.display(),
            away.display()
        );
        std::fs::write(self.dir.join(file), text).unwrap();
    }

    /// Path of a file of this run.
    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    /// `cairn pool` to its end: its exit code, and all that it printed.
    pub async fn pool(&self, args: &[&str]) -> (i32, String) {
        let all: Vec<&str> = ["pool"].into_iter().chain(args.iter().copied()).collect();
        let mut process = Cairn::start(&all);
        let status = process.wait().await;
        (status.code().unwrap(), process.output().join("\n"))
    }

    /// As [`World::pool`], about `east`, as the administrator.
    pub async fn east(&self, command: &str, more: &[&str]) -> (i32, String) {
        let config = self.path("admin.yaml");
        let args: Vec<&str> = [command, "--config", &config, "--cluster", "east"]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        self.pool(&args).await
    }

    /// Gives the registrar exactly the rights that `install --rbac` prints, and makes `pool.yaml` for it.
    pub async fn rights(&self) {
        let (code, yaml) = self.east("install", &["--rbac", "--members-namespace", MEMBERS]).await;
        assert_eq!(code, 0, "{yaml}");
        self.api.kube.apply_all(&yaml, |_| true).await;
        let (url, ca) = self.api.address();
        for (namespace, file) in [(POOL, "east.kubeconfig"), (MEMBERS, "members.kubeconfig")] {
            let audience = "https://kubernetes.default.svc";
            let token = self.api.kube.token(namespace, "cairn-registrar", audience, None).await;
            std::fs::write(self.path(file), kubeconfig_of(&url, &ca, &token)).unwrap();
        }
        self.config("pool.yaml", &self.path("east.kubeconfig"));
    }

    /// A registrar with those rights, that looks once a second.
    pub async fn registrar(&self) -> Registrar {
        let (config, kubeconfig) = (self.path("pool.yaml"), self.path("members.kubeconfig"));
        let mut process = Cairn::start(&[
            "pool",
            "registrar",
            "--config",
            &config,
            "--kubeconfig",
            &kubeconfig,
            "--namespace",
            MEMBERS,
            "--service",
            SERVICE,
            "--http",
            "127.0.0.1:0",
            "--interval",
            "1s",
            "--sweep-after",
            "5s",
            "--lease-duration",
            "5s",
            "--log-format",
            "json",
        ]);
        eventually("the registrar listens", async || {
            assert!(process.is_running(), "{:#?}", process.output());
            process.printed("registrar pages")
        })
        .await;
        let pages = process.address("registrar pages");
        Registrar { process, pages }
    }

    /// A member with its pod and an endpoint, registered.
    pub async fn add(&mut self, number: u8) {
        self.members.insert(number, Played::start(&ip(number)).await);
        let kube = &self.api.kube;
        kube.apply(&objects::pod(MEMBERS, &pod(number), "default", &[("app", SERVICE)])).await;
        kube.apply_status(&objects::pod_status(MEMBERS, &pod(number), &ip(number))).await;
        self.listed.push(number);
        self.endpoints().await;
        self.register(number, "t1").await;
    }

    /// Takes a member, its pod and its endpoint away, as if it had never been.
    pub async fn forget(&mut self, number: u8) {
        self.members.remove(&number);
        self.unlist(number).await;
        if self.api.kube.get("v1", "Pod", MEMBERS, &pod(number)).await.is_some() {
            self.delete_pod(number).await;
        }
    }

    /// The pod is gone at once.
    pub async fn delete_pod(&self, number: u8) {
        let pod = objects::pod(MEMBERS, &pod(number), "default", &[]);
        self.api.kube.delete(&pod).await;
    }

    /// Its endpoint is gone.
    pub async fn unlist(&mut self, number: u8) {
        self.listed.retain(|listed| *listed != number);
        self.endpoints().await;
    }

    async fn endpoints(&self) {
        let pods: Vec<(String, String)> =
            self.listed.iter().map(|number| (pod(*number), ip(*number))).collect();
        let endpoints: Vec<objects::Endpoint<'_>> =
            pods.iter().map(|(name, ip)| (name.as_str(), ip.as_str(), true)).collect();
        let slice = objects::endpoint_slice(MEMBERS, SERVICE, &[("http", 15020)], &endpoints);
        self.api.kube.apply(&slice).await;
    }

    /// Makes its entry, as istiod does for a stream of that time.
    pub async fn register(&self, number: u8, connected_at: &str) {
        let labels = json!({
            "waypoint-pool/member": "true", "gateway.networking.k8s.io/gateway-name": POOL,
            "gateway.istio.io/managed": "istio.io-mesh-controller", "networking.istio.io/tunnel": "http",
        });
        let object = json!({
            "apiVersion": ENTRY.0, "kind": ENTRY.1,
            "metadata": {
                "name": entry(number), "namespace": POOL, "labels": labels,
                "annotations": {
                    "istio.io/autoRegistrationGroup": POOL,
                    "istio.io/connectedAt": format!("2026-11-22T20:00:41.{}Z", &connected_at[1..]),
                    "istio.io/workloadController": "istiod-1",
                },
            },
            "spec": {
                "address": ip(number), "serviceAccount": POOL, "ports": { "hbone": 21001 }, "labels": labels,
            },
        });
        self.api.kube.apply(&object).await;
    }

    /// The entry of a member.
    pub async fn entry(&self, number: u8) -> Option<Value> {
        self.api.kube.get(ENTRY.0, ENTRY.1, POOL, &entry(number)).await
    }

    /// Waits until a member's entry is gone.
    pub async fn until_gone(&self, number: u8) {
        let what = format!("the entry of {} is deleted", pod(number));
        eventually(&what, async || self.entry(number).await.is_none()).await;
    }

    /// Numbers of those members of these whose entries are there.
    pub async fn registered(&self, numbers: &[u8]) -> Vec<u8> {
        let mut there = Vec::new();
        for number in numbers {
            if self.entry(*number).await.is_some() {
                there.push(*number);
            }
        }
        there
    }
}

fn kubeconfig_of(url: &str, ca: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": url, "certificate-authority": ca } }],
        "users": [{ "name": "c", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }],
    })
    .to_string()
}

/// A running registrar; it is killed when this is dropped.
pub struct Registrar {
    /// The process.
    pub process: Cairn,
    pages: SocketAddr,
}

impl Registrar {
    async fn page(&self, path: &str) -> String {
        let tcp = TcpStream::connect(self.pages).await.unwrap();
        Http1::new(tcp).ask(&format!("GET {path}"), &[]).await.text()
    }

    /// `/state`.
    pub async fn state(&self) -> Value {
        serde_json::from_str(&self.page("/state").await).unwrap()
    }

    /// Waits until `/state` is as `wanted` says.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let last = self.state().await;
            if wanted(&last) {
                return last;
            }
            let late = start.elapsed() > cairn_mesh_tests::control::PATIENCE;
            assert!(!late, "{what}: {last:#}\n{:#?}", self.process.output());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits until it leads and so many members are ready.
    pub async fn until_ready(&self, members: usize) {
        self.until("members are ready", |state| {
            let ready = |member: &&Value| member["state"] == "ready";
            state["leader"] == true
                && state["members"]
                    .as_array()
                    .is_some_and(|all| all.iter().filter(ready).count() == members)
        })
        .await;
    }

    /// The sum of a metric.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metrics::sum(&metrics::parse(&self.page("/stats/prometheus").await), name, labels)
    }

    /// Times that all members were judged.
    pub async fn judged(&self) -> f64 {
        self.count("cairn_registrar_rounds_total", &[]).await
    }

    /// Waits until all members were judged so many times more.
    pub async fn rounds(&self, count: usize) {
        let goal = self.judged().await + count as f64;
        eventually("rounds go on", async || self.judged().await >= goal).await;
    }
}
