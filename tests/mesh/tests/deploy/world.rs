//! What is in the cluster, and the order of the steps.
//!
//! `shop` and `bank` have a waypoint each, which nobody has made Cairn's yet.

use crate::{pool, rights, scaler, swap};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::hbone::Client;
use cairn_mesh_tests::lab::{Lab, Service};
use cairn_mesh_tests::namespace::{ISTIOD, join_pods};
use cairn_mesh_tests::node::Node;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::site::Site;
use cairn_mesh_tests::steps::Steps;
use cairn_mesh_tests::tool::Tools;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The image's name; what it stands for is the root filesystem that the node has.
pub const IMAGE: &str = "registry.example/cairn:1.0";
/// Of every waypoint.
pub const GATEWAY: &str = "waypoint";

/// A namespace with a waypoint of its own: a service of one pod, and two pods that call.
pub struct Tenant {
    pub namespace: &'static str,
    pub service: Service,
    pub client: Client,
    pub other: Client,
}

pub struct World {
    pub lab: Lab,
    pub node: Node,
    pub tools: Tools,
    pub shop: Tenant,
    pub bank: Tenant,
    dir: PathBuf,
}

/// All steps.
pub async fn run(place: Place, mut steps: Steps) -> Steps {
    join_pods();
    let lab = steps.run("etcd, kube-apiserver and istiod", start(&place)).await;
    let world = &mut steps.run("two namespaces with a waypoint each", World::of(lab, &place)).await;
    let envoy = image(&world.rendered("shop", |_| true).await).to_owned();
    assert!(envoy.contains("proxyv2"), "{envoy}");
    let step = swap::annotation(world);
    steps.run("the annotation of the Gateway brings the image, and it serves", step).await;
    let step = swap::without_annotation(world, &envoy);
    steps.run("without the annotation Envoy is back", step).await;
    let step = swap::all_waypoints(world, &envoy);
    steps.run("the chart brings it to all waypoints, and uninstalling back", step).await;
    let step = swap::own_class(world, &envoy);
    steps.run("a class of its own leaves all others to Envoy", step).await;
    let step = swap::overlay(world);
    steps.run("a Gateway's own overlay: ECI, HPA and PDB", step).await;
    let step = swap::uninstalled(world, &envoy);
    steps.run("the chart leaves nothing", step).await;
    let step = pool::install(world);
    let mut pool = steps.run("both charts of the pool, and a kubeconfig", step).await;
    let pool = &mut pool;
    let step = pool::registrar(world, pool);
    steps.run("the registrar leads: addresses, a token, the root", step).await;
    let step = pool::members(world, pool);
    steps.run("members register and serve, without any right", step).await;
    let step = pool::entries(world, pool);
    steps.run("entries get labels and weights, and go with their members", step).await;
    let step = scaler::applies(world, pool);
    steps.run("the scaler holds its Lease and scales", step).await;
    let step = rights::each_is_named(world, pool);
    steps.run("each right that is missing is named", step).await;
    let step = scaler::answers_keda(world);
    steps.run("with KEDA the scaler only answers", step).await;
    steps
}

/// Pods have to reach the API server, too.
async fn start(place: &Place) -> Lab {
    let site = Site { loopback: ISTIOD, ..Site::default() };
    Lab::start_at(site, &place.program, &place.dir, &place.logs).await
}

impl World {
    async fn of(mut lab: Lab, place: &Place) -> Self {
        let shop = Tenant::of(&mut lab, "shop", "web", 1).await;
        let bank = Tenant::of(&mut lab, "bank", "ledger", 2).await;
        let node = Node::new(&lab.plane, place);
        let home = place.dir.join("home");
        let tools = Tools::new(&place.program, home).with_cluster(lab.plane.kubeconfig());
        World { lab, node, tools, shop, bank, dir: place.dir.clone() }
    }

    /// Writes a file of this run; its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    /// A kubeconfig with this token, for whoever knows the API server by name.
    pub fn kubeconfig(&self, token: &str) -> String {
        let (url, ca) = self.lab.plane.api();
        let port = url.rsplit(':').next().unwrap();
        let ca = STANDARD.encode(std::fs::read(ca).unwrap());
        let server = format!("https://kubernetes.default.svc:{port}");
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "east",
            "clusters": [{
                "name": "east", "cluster": { "server": server, "certificate-authority-data": ca },
            }],
            "users": [{ "name": "registrar", "user": { "token": token } }],
            "contexts": [{ "name": "east", "context": { "cluster": "east", "user": "registrar" } }],
        })
        .to_string()
    }

    /// The Deployment that istiod renders for the namespace's waypoint, as soon as it is as `wanted` says.
    pub async fn rendered(&self, namespace: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let kube = &self.lab.plane.kube;
        let mut found = None;
        eventually("istiod renders the Deployment as it should", async || {
            found = kube.get("apps/v1", "Deployment", namespace, GATEWAY).await;
            found.as_ref().is_some_and(&wanted)
        })
        .await;
        found.unwrap()
    }

    /// As [`World::rendered`], with this image.
    pub async fn rendered_with(&self, namespace: &str, wanted: &str) -> Value {
        self.rendered(namespace, |deployment| image(deployment) == wanted).await
    }
}

impl Tenant {
    async fn of(lab: &mut Lab, namespace: &'static str, app: &'static str, number: u8) -> Self {
        let labels = [("istio.io/dataplane-mode", "ambient"), ("istio.io/use-waypoint", GATEWAY)];
        lab.plane.kube.apply(&objects::namespace(namespace, &labels)).await;
        lab.plane.kube.apply(&gateway(namespace, "istio-waypoint")).await;
        let ip = |last: u8| format!("10.244.{number}.{last}");
        let vip = if number == 1 { "10.96.0.111" } else { "10.96.0.112" };
        let service = Service { namespace, name: app, vip, selector: vec![("app", app)] };
        lab.add_pod(namespace, &format!("{app}-1"), app, &ip(11), &[("app", app)]).await;
        lab.serve(&service, &[(&format!("{app}-1"), true)]).await;
        let client = lab.add_client(namespace, "client", &ip(31)).await;
        let other = lab.add_client(namespace, "other", &ip(32)).await;
        Tenant { namespace, service, client, other }
    }
}

/// A waypoint of that class, without any annotation.
pub fn gateway(namespace: &str, class: &str) -> Value {
    let mut gateway = objects::waypoint(namespace, GATEWAY, "Same");
    gateway["metadata"].as_object_mut().unwrap().remove("annotations");
    gateway["spec"]["gatewayClassName"] = class.into();
    gateway
}

/// What a Deployment's only container is made of.
pub fn image(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap()
}

/// A chart of this repository.
pub fn chart(name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm");
    all.join(name).canonicalize().unwrap()
}
