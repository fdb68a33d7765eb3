//! The pool by its charts: `cairn` for members, scaler and registrar, `cairn-join` for the cluster that uses it. Each
//! component comes as its account and with nothing more.

use crate::played::Played;
use crate::world::{World, chart};
use cairn_mesh_tests::control::{PATIENCE, eventually, get};
use cairn_mesh_tests::hbone::Client;
use cairn_mesh_tests::lab::Service;
use cairn_mesh_tests::node::{ACCOUNT, Pod};
use cairn_mesh_tests::objects;
use cairn_mesh_tests::ztunnel::Ztunnel;
use cairn_test_support::metrics;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Namespace of members, scaler and registrar.
pub const SYSTEM: &str = "cairn-system";
/// Of the pool's objects in a cluster that uses it: namespace, names and account.
pub const POOL: &str = "waypoint-pool";
/// The only cluster's name.
const CLUSTER: &str = "east";
/// Where members serve it.
const PORT: u16 = 21001;
/// Of scaler, registrar and members.
pub const PAGES: u16 = 15020;
const MEMBERS: [(&str, &str); 2] = [("member-1", "10.244.9.31"), ("member-2", "10.244.9.32")];
/// One that is played.
const BUSY: (&str, &str) = ("member-0", "10.244.2.43");
pub const SCALER: &str = "10.244.9.20";
const REGISTRAR: &str = "10.244.9.21";
const ENTRY: &str = "networking.istio.io/v1";
const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

/// What runs.
pub struct Pool {
    ztunnel: Ztunnel,
    mall: (Service, Client),
    pub members: Vec<Pod>,
    pub registrar: Option<Pod>,
    pub scaler: Option<Pod>,
}

/// What the chart is given; `by`: what scales.
pub fn values(by: &str) -> String {
    json!({
        "image": { "repository": "registry.example/cairn", "tag": "1.0" },
        "pool": { "clusters": [{
            "name": CLUSTER,
            "istiod": "istiod.istio-system.svc:15012",
            "listen": format!("0.0.0.0:{PORT}"),
            "shards": ["s00"],
        }] },
        "members": { "extraArgs": ["--drain-accept=1s", "--drain-confirmed=0s", "--drain-spread=1s"] },
        "scaler": {
            "by": by,
            "policy": { "min": 2, "max": 4, "stable_window": "3s", "panic_window": "1s" },
            "extraArgs": ["--poll-interval=500ms", "--poll-timeout=400ms", "--lease-duration=5s"],
        },
        "registrar": { "extraArgs": ["--interval=1s", "--sweep-after=5s", "--lease-duration=5s"] },
    })
    .to_string()
}

/// Both charts, and the registrar's way into the user's cluster, as their pages say.
pub async fn install(world: &mut World) -> Pool {
    let [pool, join] = ["cairn", "cairn-join"].map(|name| chart(name).display().to_string());
    let file = world.file("values.json", &values("apply"));
    let args = ["install", "cairn", &pool, "-n", SYSTEM, "--create-namespace", "-f", &file];
    world.tools.helm(&args).await.done();
    let args =
        ["install", "join", &join, "-n", POOL, "--create-namespace", "--set", "shards={s00}"];
    world.tools.helm(&args).await.done();
    let token = ["create", "token", "cairn-registrar", "-n", POOL];
    let token = world.tools.kubectl(&token, "").await.done();
    let kubeconfig = world.kubeconfig(token.trim());
    let from = format!("--from-file={CLUSTER}={}", world.file("kubeconfig-east", &kubeconfig));
    let secret = ["create", "secret", "generic", "cairn-kubeconfigs", "-n", SYSTEM, &from];
    world.tools.kubectl(&secret, "").await.done();
    let address = |ip: &str| ip.parse::<IpAddr>().unwrap();
    world.node.name("cairn-scaler.cairn-system.svc", address(SCALER));
    for (_, ip) in MEMBERS {
        world.node.name("cairn-members.cairn-system.svc", address(ip));
    }
    let lab = &mut world.lab;
    let using = [
        ("istio.io/dataplane-mode", "ambient"),
        ("istio.io/use-waypoint", POOL),
        ("istio.io/use-waypoint-namespace", POOL),
    ];
    lab.plane.kube.apply(&objects::namespace("mall", &using)).await;
    lab.add_pod("mall", "till-1", "till", "10.244.2.41", &[("app", "till")]).await;
    let selector = vec![("app", "till")];
    let till = Service { namespace: "mall", name: "till", vip: "10.96.0.113", selector };
    lab.serve(&till, &[("till-1", true)]).await;
    let client = lab.add_client("mall", "buyer", "10.244.2.42").await;
    let ztunnel = Ztunnel::start(&lab.plane).await;
    Pool { ztunnel, mall: (till, client), members: Vec::new(), registrar: None, scaler: None }
}

impl Pool {
    /// As far as ztunnel knows them.
    fn known(&self) -> BTreeSet<SocketAddr> {
        let vip = self.mall.0.authority().parse().unwrap();
        self.ztunnel.members(vip).into_iter().map(|seen| seen.at).collect()
    }

    /// Waits until ztunnel knows these members and no others.
    async fn until_known(&self, members: &[(&str, &str)]) {
        let wanted: BTreeSet<SocketAddr> =
            members.iter().map(|(_, ip)| SocketAddr::new(ip.parse().unwrap(), PORT)).collect();
        let what = format!("ztunnel knows {wanted:?}");
        eventually(&what, async || self.known() == wanted).await;
    }

    /// A request of a client, through a member.
    async fn ask(&self, ip: &str, path: &str) -> Option<u16> {
        let (till, client) = &self.mall;
        let at = SocketAddr::new(ip.parse().unwrap(), PORT);
        let id = cairn_mesh_tests::identity::spiffe(POOL, POOL);
        let connection = client.connect_to(at, &id).await.ok()?;
        let host = till.host();
        let answer = connection.get(&till.authority(), path, &[("Host", &host)]).await;
        answer.ok().map(|answer| answer.status)
    }
}

/// The registrar alone: it leads, gives the Gateways their address, and makes the members' Secret.
pub async fn registrar(world: &World, pool: &mut Pool) {
    let kube = &world.lab.plane.kube;
    let mut registrar = start(world, "registrar", "registrar", REGISTRAR).await;
    registrar.ready().await;
    for name in [POOL, "waypoint-pool-s00"] {
        eventually(&format!("the Gateway {name} has its address"), async || {
            let found = kube.get(GATEWAYS, "Gateway", POOL, name).await.unwrap();
            found["status"]["addresses"].as_array().is_some_and(|all| !all.is_empty())
        })
        .await;
    }
    eventually("there is a token, and the root of the mesh", async || {
        let secret = kube.get("v1", "Secret", SYSTEM, "waypoint-pool-tokens").await;
        let data = secret.map(|secret| secret["data"].clone()).unwrap_or_default();
        data["east.token"].is_string() && data["east.root.pem"].is_string()
    })
    .await;
    let state = page(&registrar, "/state").await;
    assert_eq!(state["leader"], true, "{state}");
    assert_eq!(state["problem"], Value::Null, "{state}");
    assert_eq!(state["clusters"][CLUSTER]["problems"], json!({}), "its rights suffice: {state}");
    pool.registrar = Some(registrar);
}

/// Two members with the Secret's token and root: certificates, registrations, traffic; and no right of Kubernetes.
pub async fn members(world: &World, pool: &mut Pool) {
    for (name, ip) in MEMBERS {
        let member = start(world, "members", name, ip).await;
        pool.members.push(member);
    }
    endpoints(world, &MEMBERS).await;
    for member in &mut pool.members {
        member.ready().await;
    }
    pool.until_known(&MEMBERS).await;
    for (_, ip) in MEMBERS {
        eventually("requests pass", async || pool.ask(ip, "/").await == Some(200)).await;
    }
    for member in &pool.members {
        let inside = member.inside();
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(inside.contains(line), "{inside}");
        }
        assert!(!inside.contains(&format!("{ACCOUNT}/")), "{inside}");
    }
    let registrar = pool.registrar.as_ref().unwrap();
    assert!(registrar.inside().contains(&format!("{ACCOUNT}/token")));
    assert_eq!(rights(world, "cairn-members").await, Vec::<Value>::new());
}

/// What an account may in its namespace, beyond asking who it is and what it may.
async fn rights(world: &World, account: &str) -> Vec<Value> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": SYSTEM },
    });
    let place = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
    let groups = ["--as-group=system:serviceaccounts", "--as-group=system:authenticated"];
    let args = ["create", "--raw", place, "-f", "-", &user];
    let args = [&args[..], &groups[..]].concat();
    let answer = world.tools.kubectl(&args, &review.to_string()).await.done();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"]["incomplete"], false, "{answer}");
    let rules = answer["status"]["resourceRules"].as_array().unwrap();
    let about_itself = |rule: &&Value| {
        let groups = [json!(["authorization.k8s.io"]), json!(["authentication.k8s.io"])];
        groups.contains(&rule["apiGroups"])
    };
    rules.iter().filter(|rule| !about_itself(rule)).cloned().collect()
}

/// What the registrar does with entries: labels of shards; the entry of a member that is killed goes; one that comes
/// anew gets more than the busy one; and that of one that drains goes, too.
pub async fn entries(world: &World, pool: &mut Pool) {
    for (name, ip) in MEMBERS {
        eventually(&format!("{name} serves the shard"), async || {
            entry(world, ip).await["metadata"]["labels"]["waypoint-pool/s00"] == "true"
        })
        .await;
    }
    let [first, (name, ip)] = MEMBERS;
    let mut killed = pool.members.pop().unwrap();
    killed.kill().await;
    pool.until_known(&[first]).await;
    let registrar = pool.registrar.as_ref().unwrap();
    let deleted = count(registrar, "cairn_registrar_deletions_total", &[("reason", "unreachable")]);
    assert_eq!(deleted.await, 1.0, "istiod would know of it for 49 s");
    // Beside one that has been here for long and is busy.
    let (busy, at) = BUSY;
    let _busy = Played::start(at).await;
    let kube = &world.lab.plane.kube;
    kube.apply(&objects::pod(SYSTEM, busy, "default", &[])).await;
    kube.apply_status(&objects::pod_status(SYSTEM, busy, at)).await;
    endpoints(world, &[first, (name, ip), BUSY]).await;
    let mut anew = start(world, "members", name, ip).await;
    anew.ready().await;
    eventually("the new one gets more", async || entry(world, ip).await["spec"]["weight"] == 3)
        .await;
    endpoints(world, &MEMBERS).await;
    kube.delete(&objects::pod(SYSTEM, busy, "default", &[])).await;
    pool.until_known(&MEMBERS).await;
    anew.end().await;
    pool.until_known(&[first]).await;
    let mut last = start(world, "members", name, ip).await;
    last.ready().await;
    pool.members.push(last);
    pool.until_known(&MEMBERS).await;
}

async fn entry(world: &World, ip: &str) -> Value {
    let name = format!("{POOL}-{ip}");
    let found = world.lab.plane.kube.get(ENTRY, "WorkloadEntry", POOL, &name).await;
    found.unwrap_or_default()
}

/// A pod of that component's Deployment, as it is in the API server.
pub async fn start(world: &World, component: &str, name: &str, ip: &str) -> Pod {
    let deployment = deployment(world, component).await;
    world.node.start(&deployment["spec"]["template"], (SYSTEM, name), ip).await
}

pub async fn deployment(world: &World, component: &str) -> Value {
    let name = format!("cairn-{component}");
    world.lab.plane.kube.get("apps/v1", "Deployment", SYSTEM, &name).await.unwrap()
}

/// The endpoints of the members' Service.
async fn endpoints(world: &World, members: &[(&str, &str)]) {
    let endpoints: Vec<objects::Endpoint<'_>> =
        members.iter().map(|(name, ip)| (*name, *ip, true)).collect();
    let ports = [("http-stats", PAGES)];
    let slice = objects::endpoint_slice(SYSTEM, "cairn-members", &ports, &endpoints);
    world.lab.plane.kube.apply(&slice).await;
}

/// A page of scaler or registrar.
pub async fn page(pod: &Pod, path: &str) -> Value {
    let answer = pod.page(PAGES, path).await;
    answer.unwrap_or_else(|| panic!("{} does not answer {path}", pod.name)).json()
}

/// Waits until a page is as `wanted` says.
pub async fn until(pod: &Pod, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
    let start = Instant::now();
    loop {
        let last = page(pod, path).await;
        if wanted(&last) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}: {last:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count(pod: &Pod, name: &str, labels: &[(&str, &str)]) -> f64 {
    let page = get(SocketAddr::new(pod.ip, PAGES), "/stats/prometheus").await.unwrap();
    metrics::sum(&metrics::parse(&page.text()), name, labels)
}
