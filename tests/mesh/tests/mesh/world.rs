//! What is in the mesh, and the order of the steps.
//!
//! `shop` has the waypoint, which `bank` uses, too.

use crate::{operators, outage, routing, security, telemetry};
use cairn_mesh_tests::ads;
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::hbone::Client;
use cairn_mesh_tests::identity::PodIdentity;
use cairn_mesh_tests::lab::{Lab, Service, Talk};
use cairn_mesh_tests::objects;
use cairn_mesh_tests::steps::Steps;
use cairn_mesh_tests::waypoint::{Placed, Waypoint};

/// The waypoint's pod.
pub const POD: &str = "waypoint-6d5f8c9b7-x2x4z";
const POD_IP: &str = "10.244.9.10";

/// The mesh while the steps change it.
pub struct World {
    pub lab: Lab,
    pub placed: Placed,
    pub waypoint: Waypoint,
    pub client: Client,
    pub other: Client,
    pub teller: Client,
    pub web: Service,
    pub web_one: Service,
    pub web_two: Service,
    pub cart: Service,
    pub ledger: Service,
}

impl World {
    /// `client` and a service, through the waypoint.
    pub fn talk(&self, service: &Service) -> Talk<'_> {
        Talk::new(&self.client, &self.waypoint, service)
    }

    /// Another client and a service.
    pub fn talk_as<'a>(&self, client: &'a Client, service: &Service) -> Talk<'a> {
        Talk::new(client, &self.waypoint, service)
    }
}

fn service(
    namespace: &'static str,
    name: &'static str,
    vip: &'static str,
    selector: &[(&'static str, &'static str)],
) -> Service {
    Service { namespace, name, vip, selector: selector.to_vec() }
}

/// All steps.
pub async fn run(place: Place, mut steps: Steps) -> Steps {
    let binary = &place.binary();
    let Place { program, dir, logs } = &place;
    let mut lab =
        steps.run("etcd, kube-apiserver and istiod", Lab::start(program, dir, logs)).await;
    let (client, other, teller) = steps
        .run("pods of the mesh get certificates", async {
            namespaces(&lab).await;
            pods(&mut lab).await
        })
        .await;
    let web = service("shop", "web", "10.96.0.110", &[("app", "web")]);
    let web_one = service("shop", "web-one", "10.96.0.111", &[("app", "web"), ("version", "v1")]);
    let web_two = service("shop", "web-two", "10.96.0.112", &[("app", "web"), ("version", "v2")]);
    let cart = service("shop", "cart", "10.96.0.120", &[("app", "cart")]);
    let ledger = service("bank", "ledger", "10.96.0.210", &[("app", "ledger")]);
    lab.serve(&web, &[("web-v1", true), ("web-v2", true)]).await;
    lab.serve(&web_one, &[("web-v1", true)]).await;
    lab.serve(&web_two, &[("web-v2", true)]).await;
    lab.serve(&cart, &[("cart-v1", true), ("cart-v2", true)]).await;
    lab.serve(&ledger, &[("ledger-1", true)]).await;
    let placed =
        steps.run("istiod renders the waypoint and has its clusters", rendered(&lab)).await;
    let waypoint = steps
        .run("Cairn starts with the rendered args, env and files", async {
            let mut waypoint = placed.run(&lab.plane, binary, dir, logs).await;
            waypoint.ready().await;
            waypoint
        })
        .await;
    let mut world =
        World { lab, placed, waypoint, client, other, teller, web, web_one, web_two, cart, ledger };
    let world = &mut world;
    steps.run("requests reach both pods of a service", routing::plain(world)).await;
    steps.run("HTTPRoute added, changed, removed", routing::http_route(world)).await;
    steps.run("subsets by DestinationRule and VirtualService", routing::subsets(world)).await;
    steps.run("endpoint not ready, then ready", routing::readiness(world)).await;
    steps.run("service added, then deleted", routing::service(world)).await;
    steps.run("AuthorizationPolicy added, then removed", security::policy(world)).await;
    steps.run("two namespaces on one waypoint", security::two_namespaces(world)).await;
    steps.run("allowedRoutes withdrawn, then given", security::allowed_routes(world)).await;
    steps.run("Telemetry: log, metrics, traces", telemetry::telemetry(world)).await;
    steps.run("istiod killed and started under load", outage::istiod(world)).await;
    steps.run("token rotated, container restarted", outage::token(world, binary)).await;
    steps.run("istioctl reads our pages", operators::istioctl(world)).await;
    steps.run("no NACK, and an orderly end", operators::end(world)).await;
    steps
}

async fn namespaces(lab: &Lab) {
    let ambient = ("istio.io/dataplane-mode", "ambient");
    let waypoint = ("istio.io/use-waypoint", "waypoint");
    let shared = ("istio.io/use-waypoint-namespace", "shop");
    let kube = &lab.plane.kube;
    kube.apply(&objects::namespace("shop", &[ambient, waypoint])).await;
    kube.apply(&objects::namespace("bank", &[ambient, waypoint, shared])).await;
    kube.apply(&objects::waypoint("shop", "waypoint", "All")).await;
}

async fn pods(lab: &mut Lab) -> (Client, Client, Client) {
    let v1 = ("version", "v1");
    let v2 = ("version", "v2");
    for (app, version, name, ip) in [
        ("web", v1, "web-v1", "10.244.1.11"),
        ("web", v2, "web-v2", "10.244.1.12"),
        ("cart", v1, "cart-v1", "10.244.1.13"),
        ("cart", v2, "cart-v2", "10.244.1.14"),
    ] {
        lab.add_pod("shop", name, app, ip, &[("app", app), version]).await;
    }
    lab.add_pod("bank", "ledger-1", "ledger", "10.244.2.11", &[("app", "ledger")]).await;
    let client = lab.add_client("shop", "client", "10.244.1.31").await;
    let other = lab.add_client("shop", "other", "10.244.1.32").await;
    let teller = lab.add_client("bank", "teller", "10.244.2.31").await;
    (client, other, teller)
}

/// The control plane alone: what a waypoint would find.
async fn rendered(lab: &Lab) -> Placed {
    let placed = Placed::place(&lab.plane, "shop", "waypoint", POD, POD_IP).await;
    placed.programmed(&lab.plane).await;
    let caller = lab.plane.caller("shop", "waypoint").await;
    let identity = PodIdentity::issue(&caller, "shop", "waypoint").await;
    assert_eq!(
        identity.map(|identity| identity.id).as_deref(),
        Ok("spiffe://cluster.local/ns/shop/sa/waypoint")
    );
    let wanted = [
        "inbound-vip|80|http|web.shop.svc.cluster.local",
        "inbound-vip|80|http|ledger.bank.svc.cluster.local",
    ];
    let mut seen = Err("nothing was asked".to_owned());
    cairn_mesh_tests::control::eventually("istiod has the waypoint's clusters", async || {
        seen = ads::clusters(&caller, "shop", POD, POD_IP, "waypoint").await;
        seen.as_ref()
            .is_ok_and(|names| wanted.iter().all(|&wanted| names.iter().any(|name| name == wanted)))
    })
    .await;
    placed
}
