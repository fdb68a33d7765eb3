//! Two clusters with their nodes, and what is to be seen after a block.

use cairn_mesh_tests::api::ApiServer;
use cairn_mesh_tests::control::{PATIENCE, eventually, get};
use cairn_mesh_tests::crowd::{Aim, Crowd, Speaks};
use cairn_mesh_tests::deployments::Deployments;
use cairn_mesh_tests::guide::{Block, Shell};
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::hbone::Client;
use cairn_mesh_tests::identity::spiffe;
use cairn_mesh_tests::lab::{Lab, Service};
use cairn_mesh_tests::namespace;
use cairn_mesh_tests::node::Node;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::site::Site;
use cairn_mesh_tests::ztunnel::Ztunnel;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(150);
/// Port of members for the cluster `east`.
const MEMBERS: u16 = 21001;
/// The heading of what happens under load.
const UPGRADE: &str = "5. Upgrade, and back";
/// The heading of manifests that come and go.
const NODES: &str = "Kinds of nodes";
/// The heading of the pool's end.
const AWAY: &str = "6. Away with it";

pub struct World {
    east: Lab,
    pool: ApiServer,
    east_nodes: Deployments,
    pool_nodes: Deployments,
    client: Client,
    web: Service,
    shell: Shell,
    /// Callers during an upgrade.
    crowd: Option<Crowd>,
}

impl World {
    pub async fn start(place: &Place) -> Self {
        namespace::join_pods();
        let Place { program, dir, logs } = place;
        let site = |name: &str, number: u8| (Site::reachable(name, number), dir.join(name));
        let (east_site, east_dir) = site("east", 11);
        let (pool_site, pool_dir) = site("pool", 12);
        std::fs::create_dir_all(&pool_dir).unwrap();
        let (mut east, pool) = tokio::join!(
            Lab::start_at(east_site.clone(), program, &east_dir, logs),
            ApiServer::start_at(pool_site, program, &pool_dir, logs)
        );
        pool.kube.define(&place.keda()).await;
        let (client, web) = shop(&mut east).await;
        let kubeconfig = dir.join("kubeconfig");
        let contexts = [("east", east.plane.kubeconfig()), ("pool", pool.kubeconfig.as_path())];
        std::fs::write(&kubeconfig, merged(&contexts).to_string()).unwrap();
        let east_node = Node::new(&east.plane, place);
        let mut pool_node = Node::of(&pool.kube, pool.address(), place);
        pool_node.name("istiod.east.example", east_site.istiod.into());
        let east_nodes = Deployments::new(&east.plane.kube, east_node, "10.244.9", 20);
        let pool_nodes = Deployments::new(&pool.kube, pool_node, "10.244.9", 120);
        let home = dir.join("home");
        let shell = Shell::new(program, &home, &kubeconfig);
        World { east, pool, east_nodes, pool_nodes, client, web, shell, crowd: None }
    }

    /// Runs a block while the nodes do their work, and looks whether it did what the page says.
    pub async fn follow(&mut self, block: &Block) {
        if block.heading == UPGRADE {
            self.gather().await;
        }
        let (shell, script) = (self.shell.clone(), block.script.clone());
        let told = tokio::spawn(async move { shell.run(&script).await });
        // Nothing is started while things are deleted: a pod would miss what it mounts.
        let deletes = [NODES, AWAY].contains(&block.heading.as_str());
        while !deletes && !told.is_finished() {
            rounds(&mut self.east_nodes, &mut self.pool_nodes).await;
        }
        if let Err(why) = told.await.unwrap() {
            let (line, pods) = (block.line, self.pods());
            panic!("line {line}: {}{why}\n{pods}", block.script);
        }
        match (block.heading.as_str(), block.number) {
            ("A. One Gateway", 0) | ("B. All waypoints of a mesh", 0) => {
                self.works("waypoint", "waypoint").await;
            }
            ("A. One Gateway", 2) | ("B. All waypoints of a mesh", 1) => {
                self.until("Envoy is back", |world| world.ours("waypoint").is_empty()).await;
            }
            ("C. A class of its own", 0) => self.own_class().await,
            ("C. A class of its own", 1) => {
                self.until("its pods are gone", |world| world.east_nodes.pods.len() == 1).await;
            }
            ("3. The pool", 0) => {
                self.until("two members", |world| world.members().len() >= 2).await;
            }
            ("4. A namespace uses it", 0) => self.through_members().await,
            (UPGRADE, 0) => {
                self.through_members().await;
                let outcome = self.crowd.take().unwrap().stop().await;
                assert!(outcome.failures.is_empty(), "{outcome:#?}");
                // Those before, those of the upgrade, those after it.
                assert!(outcome.good.len() >= 6, "{outcome:#?}");
            }
            (AWAY | NODES, 0) => {
                self.until("no pods are left", |world| world.pool_nodes.pods.is_empty()).await;
            }
            _ => {}
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let start = Instant::now();
        while !done(self) {
            rounds(&mut self.east_nodes, &mut self.pool_nodes).await;
            assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}\n{}", self.pods());
        }
    }

    /// What runs, and the last that it has printed.
    fn pods(&mut self) -> String {
        let World { east_nodes, pool_nodes, .. } = self;
        let mut text = String::new();
        for running in east_nodes.pods.iter_mut().chain(&mut pool_nodes.pods) {
            let output = running.output();
            let last = output.lines().rev().take(3).collect::<Vec<_>>();
            text.push_str(&format!("{} ready={}: {last:?}\n", running.pod.name, running.ready));
        }
        text
    }

    /// Addresses of pods with our image behind a Gateway of `shop`.
    fn ours(&self, gateway: &str) -> Vec<IpAddr> {
        self.east_nodes.ready("shop", gateway).iter().map(|running| running.ip()).collect()
    }

    fn members(&self) -> Vec<IpAddr> {
        let ready = self.pool_nodes.ready("cairn-system", "cairn-members");
        ready.iter().map(|running| running.ip()).collect()
    }

    /// A request through each pod of the Gateway reaches the application.
    async fn works(&mut self, gateway: &'static str, account: &str) {
        self.until("Cairn serves", |world| !world.ours(gateway).is_empty()).await;
        for ip in self.ours(gateway) {
            self.asks(SocketAddr::new(ip, 15008), &spiffe("shop", account)).await;
            is_scraped(&self.east_nodes, ip).await;
        }
    }

    /// Callers as ztunnel lets them through: to the members that istiod names, without a second try.
    async fn gather(&mut self) {
        let ztunnel = Arc::new(Ztunnel::start(&self.east.plane).await);
        let vip = self.web.authority().parse().unwrap();
        let start = Instant::now();
        while ztunnel.members(vip).len() < 2 {
            rounds(&mut self.east_nodes, &mut self.pool_nodes).await;
            assert!(start.elapsed() < PATIENCE, "ztunnel knows {:?}", ztunnel.members(vip));
        }
        let backends = ["web-1".to_owned()].into();
        let aim = Aim { vip, host: self.web.host(), backends, requests: 20 };
        let clients = std::slice::from_ref(&self.client);
        self.crowd = Some(Crowd::start(&ztunnel, clients, aim, &[Speaks::Http1, Speaks::Http2]));
    }

    /// A request through each member reaches the application; two there are at least.
    async fn through_members(&mut self) {
        self.until("two members", |world| world.members().len() >= 2).await;
        for ip in self.members() {
            self.asks(SocketAddr::new(ip, MEMBERS), &spiffe("waypoint-pool", "waypoint-pool"))
                .await;
            is_scraped(&self.pool_nodes, ip).await;
        }
    }

    async fn asks(&mut self, at: SocketAddr, id: &str) {
        let start = Instant::now();
        loop {
            let answer = async {
                let connection = self.client.connect_to(at, id).await?;
                let host = self.web.host();
                connection.get(&self.web.authority(), "/", &[("Host", &host)]).await
            };
            let answer = answer.await;
            if answer
                .as_ref()
                .is_ok_and(|answer| answer.status == 200 && answer.backend() == "web-1")
            {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{at} says {answer:?}\n{}", self.pods());
            rounds(&mut self.east_nodes, &mut self.pool_nodes).await;
        }
    }

    async fn own_class(&mut self) {
        self.works("cairn", "cairn").await;
        let deployment =
            self.east.plane.kube.get("apps/v1", "Deployment", "shop", "cairn").await.unwrap();
        let pod = &deployment["spec"]["template"];
        assert_eq!(
            pod["metadata"]["annotations"]["k8s.aliyun.com/eci-spot-strategy"],
            "SpotAsPriceGo"
        );
        let term = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
        let term = &pod.pointer(term).unwrap()["matchExpressions"][0];
        assert_eq!(
            *term,
            json!({ "key": "type", "operator": "In", "values": ["virtual-kubelet"] })
        );
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 150);
        let kube = &self.east.plane.kube;
        for (api, kind) in
            [("autoscaling/v2", "HorizontalPodAutoscaler"), ("policy/v1", "PodDisruptionBudget")]
        {
            assert!(kube.get(api, kind, "shop", "cairn").await.is_some(), "{kind}");
        }
        assert!(self.ours("waypoint").is_empty(), "other classes are left alone");
        self.east.plane.must_run();
        self.pool.must_run();
    }
}

async fn rounds(one: &mut Deployments, other: &mut Deployments) {
    one.round().await;
    other.round().await;
    tokio::time::sleep(PAUSE).await;
}

/// Prometheus finds a pod by what it is annotated with, and there the requests that it has answered.
async fn is_scraped(nodes: &Deployments, ip: IpAddr) {
    let running = nodes.pods.iter().find(|running| running.ip() == ip).unwrap();
    let said = &running.pod.template["metadata"]["annotations"];
    assert_eq!(said["prometheus.io/scrape"], "true", "{said}");
    let port = said["prometheus.io/port"].as_str().unwrap().parse().unwrap();
    let path = said["prometheus.io/path"].as_str().unwrap();
    eventually("requests are counted where Prometheus looks", async || {
        let page = get(SocketAddr::new(ip, port), path).await;
        page.is_some_and(|page| page.text().contains("istio_requests_total{"))
    })
    .await;
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap()
}

/// A namespace whose waypoint is Envoy's, with an application and who calls it.
async fn shop(east: &mut Lab) -> (Client, Service) {
    let labels = [("istio.io/dataplane-mode", "ambient"), ("istio.io/use-waypoint", "waypoint")];
    let kube = &east.plane.kube;
    kube.apply(&objects::namespace("shop", &labels)).await;
    let mut gateway = objects::waypoint("shop", "waypoint", "Same");
    gateway["metadata"].as_object_mut().unwrap().remove("annotations");
    kube.apply(&gateway).await;
    east.add_pod("shop", "web-1", "web", "10.244.1.11", &[("app", "web")]).await;
    let client = east.add_client("shop", "buyer", "10.244.1.31").await;
    let selector = vec![("app", "web")];
    let web = Service { namespace: "shop", name: "web", vip: "10.96.0.110", selector };
    east.serve(&web, &[("web-1", true)]).await;
    (client, web)
}

/// One file with a context for each cluster.
fn merged(contexts: &[(&str, &Path)]) -> Value {
    let mut merged = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "",
        "clusters": [], "users": [], "contexts": [],
    });
    for (name, file) in contexts {
        let one: Value =
            serde_json::from_str(&read(&PathBuf::from(file).display().to_string())).unwrap();
        for list in ["clusters", "users"] {
            let mut entry = one[list][0].clone();
            entry["name"] = (*name).into();
            merged[list].as_array_mut().unwrap().push(entry);
        }
        let context = json!({ "name": name, "context": { "cluster": name, "user": name } });
        merged["contexts"].as_array_mut().unwrap().push(context);
    }
    merged
}
