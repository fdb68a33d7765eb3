//! `cairn scaler` on a real kube-apiserver: endpoints, the scale subresource, the Lease, and rights that
//! are missing. Pods are scripted members on their pods' addresses; no controller runs, so that nobody
//! but the scaler changes anything.

#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_mesh_tests::api::ApiServer;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::harness::{Need, Place, Target, run};
use cairn_mesh_tests::objects;
use cairn_mesh_tests::program::Program;
use cairn_mesh_tests::steps::Steps;
use cairn_test_support::member::{Member, Work};
use cairn_test_support::process::Cairn;
use cairn_test_support::scaler::Scaler;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NAMESPACE: &str = "pool";
const NAME: &str = "waypoint";
const PORT: u16 = 15020;
const LEASE: &str = "cairn-scaler-waypoint-pool";

const TARGET: Target =
    Target { name: "scaler", steps: 10, tmp: env!("CARGO_TARGET_TMPDIR"), needs: &[Need::Cairn] };

fn main() -> ExitCode {
    run(TARGET, all)
}

async fn all(place: Place, steps: Steps) -> Steps {
    let Place { program, dir, logs } = &place;
    World::start(program, dir, logs).await.run(steps).await
}

struct World {
    api: ApiServer,
    dir: PathBuf,
    /// Pods `waypoint-0`, … on 10.244.1.10, …
    members: Vec<Member>,
}

fn pod(number: usize) -> (String, String) {
    (format!("{NAME}-{number}"), format!("10.244.1.{}", 10 + number))
}

/// A rule of a Role.
fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs })
}

impl World {
    async fn start(program: &Program, dir: &Path, logs: &Path) -> Self {
        let api = ApiServer::start(program, dir, logs).await;
        let kube = &api.kube;
        kube.apply(&objects::namespace(NAMESPACE, &[])).await;
        let labels = json!({ "app": NAME });
        kube.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "namespace": NAMESPACE, "name": NAME },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "cairn", "image": "registry.example/cairn:1" }] },
                },
            },
        }))
        .await;
        let mut members = Vec::new();
        for number in 0..3 {
            let (name, ip) = pod(number);
            let address = (ip.parse::<std::net::IpAddr>().unwrap(), PORT).into();
            members.push(Member::start_at(address, &name, Work::default()).await);
        }
        let world = World { api, dir: dir.to_owned(), members };
        world.endpoints(&[(0, true), (1, true), (2, true)]).await;
        world
    }

    /// The Service's endpoints: numbers of pods, and whether they are ready.
    async fn endpoints(&self, pods: &[(usize, bool)]) {
        let pods: Vec<(String, String, bool)> = pods
            .iter()
            .map(|(number, ready)| {
                let (name, ip) = pod(*number);
                (name, ip, *ready)
            })
            .collect();
        let endpoints: Vec<objects::Endpoint<'_>> =
            pods.iter().map(|(name, ip, ready)| (name.as_str(), ip.as_str(), *ready)).collect();
        let slice = objects::endpoint_slice(NAMESPACE, NAME, &[("http", PORT)], &endpoints);
        self.api.kube.apply(&slice).await;
    }

    /// An account with these rights and a token; the flags with which a scaler comes as it.
    async fn account(&self, name: &str, rules: &[Value]) -> Vec<String> {
        let kube = &self.api.kube;
        kube.apply(&objects::service_account(NAMESPACE, name)).await;
        kube.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": { "namespace": NAMESPACE, "name": name }, "rules": rules,
        }))
        .await;
        kube.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "namespace": NAMESPACE, "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "namespace": NAMESPACE, "name": name }],
        }))
        .await;
        let token = kube.token(NAMESPACE, name, "https://kubernetes.default.svc", None).await;
        let file = self.dir.join(format!("{name}.token"));
        std::fs::write(&file, token).unwrap();
        let (url, ca) = self.api.address();
        vec![
            format!("--api-server={url}"),
            format!("--api-token={}", file.display()),
            format!("--api-ca={ca}"),
            format!("--service={NAMESPACE}/{NAME}"),
            format!("--target=deployments/{NAME}"),
        ]
    }

    /// The account with the rights that the documentation names.
    async fn scaler(&self, more: &[&str]) -> Scaler {
        let rules = [
            rule("discovery.k8s.io", "endpointslices", &["list", "watch"]),
            rule("apps", "deployments/scale", &["get", "patch"]),
            rule("coordination.k8s.io", "leases", &["get", "create", "update"]),
        ];
        let flags = self.account("scaler", &rules).await;
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(["--policy", "min=2,max=12", "--lease-duration", "5s"]);
        args.extend_from_slice(more);
        Scaler::start(&args).await
    }

    fn load(&self, in_flight: f64) {
        for member in &self.members {
            member.works(|work| work.in_flight = in_flight);
        }
    }

    async fn replicas(&self) -> u64 {
        let found = self.api.kube.get("apps/v1", "Deployment", NAMESPACE, NAME).await.unwrap();
        found["spec"]["replicas"].as_u64().unwrap()
    }

    async fn set_replicas(&self, replicas: u64) {
        let place = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}/scale");
        let body = json!({ "spec": { "replicas": replicas } }).to_string();
        let kind = "application/merge-patch+json";
        let (status, answer) = self.api.kube.call("PATCH", &place, kind, body.as_bytes()).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn until_replicas(&self, what: &str, wanted: impl Fn(u64) -> bool) {
        eventually(what, async || wanted(self.replicas().await)).await;
    }

    async fn holder(&self) -> String {
        let lease = self.api.kube.get("coordination.k8s.io/v1", "Lease", NAMESPACE, LEASE).await;
        let holder =
            lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
        holder.unwrap_or_default()
    }

    async fn run(mut self, mut steps: Steps) -> Steps {
        let step = self.finds_endpoints();
        steps.run("the endpoints of a Service are found and followed", step).await;
        steps.run("--dry-run prints and changes nothing", self.dry_run()).await;
        steps.run("--apply scales a Deployment up and down", self.applies()).await;
        let name = "--fixed: members beside the target are not asked of it";
        steps.run(name, self.beside()).await;
        steps.run("a restart does not scale in", self.restarts()).await;
        steps.run("a target that is set to 0 stays there", self.off()).await;
        let name = "of two scalers the holder of the Lease acts; when it is killed, the other does";
        let second = steps.run(name, self.two_scalers()).await;
        let name = "without an API server it decides and does not act";
        let second = steps.run(name, self.outage(second)).await;
        steps.run("who ends gives the Lease up", self.handover(second)).await;
        steps.run("a right that is missing is named", self.rights()).await;
        steps
    }

    async fn finds_endpoints(&self) {
        self.set_replicas(3).await;
        let scaler = self.scaler(&[]).await;
        let all = |count: usize| move |decision: &Value| decision["counts"]["answering"] == count;
        let decision = scaler.until("three members answer", all(3)).await;
        let names: Vec<&str> = decision["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["waypoint-0", "waypoint-1", "waypoint-2"]);
        assert_eq!(decision["members"][0]["zone"], "z1");
        assert_eq!(decision["members"][0]["address"], "10.244.1.10:15020");
        assert_eq!((&decision["current"], &decision["current_is"]), (&3.into(), &"target".into()));
        assert_eq!(decision["lease"], Value::Null);
        // A pod that starts is no silent one; one that is ready and silent is.
        self.endpoints(&[(0, true), (1, true), (7, false)]).await;
        let decision = scaler
            .until("one left, one starts", |decision| {
                decision["counts"]["answering"] == 2 && decision["counts"]["starting"] == 1
            })
            .await;
        assert_eq!(decision["members"][2]["state"], "starting");
        self.endpoints(&[(0, true), (1, true), (7, true)]).await;
        scaler.until("a silent one", |decision| decision["members"][2]["state"] == "silent").await;
        self.endpoints(&[(0, true), (1, true), (2, true)]).await;
        scaler.until("all again", all(3)).await;
        assert_eq!(self.replicas().await, 3, "it only reads");
        assert!(self.holder().await.is_empty());
    }

    async fn dry_run(&self) {
        self.load(90.0);
        let scaler = self.scaler(&["--apply", "--dry-run"]).await;
        let decision = scaler
            .until("it would", |decision| {
                decision["target"]["doing"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("would set"))
            })
            .await;
        assert!(decision["desired"].as_u64() > Some(3));
        assert!(
            scaler.process.printed("would set deployments/waypoint in namespace pool from 3 to")
        );
        scaler.decisions(3).await;
        assert_eq!(self.replicas().await, 3);
        assert!(self.holder().await.is_empty(), "no Lease is taken");
    }

    async fn applies(&self) {
        // 2.7 units are 4.5 members, and headroom is 0.6 of a unit: six.
        self.load(90.0);
        let scaler = self.scaler(&["--apply"]).await;
        self.until_replicas("six are asked for", |replicas| replicas == 6).await;
        let held =
            scaler.until("it holds the Lease", |decision| decision["lease"]["held"] == true).await;
        assert_eq!(held["lease"]["holder"], self.holder().await);
        assert_eq!(scaler.count("cairn_scaler_lease_held", &[]).await, 1.0);
        // Pods of the new size come up, so that the load is spread.
        self.load(5.0);
        let mut course = vec![6];
        eventually("one after another goes, down to the floor", async || {
            let replicas = self.replicas().await;
            if course.last() != Some(&replicas) {
                course.push(replicas);
            }
            replicas == 2
        })
        .await;
        assert_eq!(course, [6, 5, 4, 3, 2], "a step is one member");
        assert!(scaler.count("cairn_scaler_applied_total", &[]).await >= 5.0);
        assert_eq!(scaler.count("cairn_scaler_apply_failures_total", &[]).await, 0.0);
        scaler.process.terminate();
        eventually("the Lease is given up", async || self.holder().await.is_empty()).await;
    }

    async fn beside(&self) {
        // Two of the three are another Deployment's. 2.7 units are 4.5 members, and headroom makes it six.
        self.set_replicas(1).await;
        self.load(90.0);
        let scaler = self.scaler(&["--apply", "--fixed", "2"]).await;
        self.until_replicas("four more are asked for", |replicas| replicas == 4).await;
        let is_so = |decision: &Value| decision["current"] == 6;
        let decision = scaler.until("six are there", is_so).await;
        assert_eq!((&decision["desired"], &decision["desired_of_target"]), (&6.into(), &4.into()));
        assert_eq!(decision["target"]["wanted"], 4);
        scaler.decisions(2).await;
        assert_eq!(self.replicas().await, 4);
        self.load(0.0);
        self.until_replicas("the last one stays", |replicas| replicas == 1).await;
        scaler.decisions(3).await;
        assert_eq!(self.replicas().await, 1, "0 would turn it off");
        scaler.process.terminate();
        eventually("the Lease is given up", async || self.holder().await.is_empty()).await;
    }

    async fn restarts(&self) {
        // Eight are asked for; three of them have an address, and nothing to do.
        self.set_replicas(8).await;
        self.load(0.0);
        let windows = "stable_window=1m,panic_window=1s,down_delay=1m,down_period=1s";
        for _ in 0..2 {
            let scaler = self.scaler(&["--apply", "--policy", windows]).await;
            scaler.until("it could act", |decision| decision["lease"]["held"] == true).await;
            for _ in 0..4 {
                scaler.decisions(2).await;
                assert_eq!(scaler.decision().await["desired"], 8);
                assert_eq!(self.replicas().await, 8);
            }
            drop(scaler); // SIGKILL: the next one waits for the Lease
        }
        let scaler = self.scaler(&["--apply"]).await;
        self.until_replicas("and then it may", |replicas| replicas < 8).await;
        scaler.process.terminate();
        eventually("the Lease is given up", async || self.holder().await.is_empty()).await;
    }

    async fn off(&self) {
        self.set_replicas(0).await;
        self.load(90.0);
        let scaler = self.scaler(&["--apply"]).await;
        scaler.until("it could act", |decision| decision["lease"]["held"] == true).await;
        scaler
            .until("it says so", |decision| {
                decision["target"]["doing"].as_str().is_some_and(|text| text.contains("set to 0"))
            })
            .await;
        scaler.decisions(3).await;
        assert_eq!(self.replicas().await, 0);
        self.set_replicas(3).await;
        self.until_replicas("it is on again", |replicas| replicas > 3).await;
        scaler.process.terminate();
        eventually("the Lease is given up", async || self.holder().await.is_empty()).await;
    }

    async fn two_scalers(&self) -> Scaler {
        self.load(0.0);
        self.set_replicas(3).await;
        let first = self.scaler(&["--apply"]).await;
        first
            .until("the first holds the Lease", |decision| decision["lease"]["held"] == true)
            .await;
        let holder = self.holder().await;
        let second = self.scaler(&["--apply"]).await;
        let waits = second
            .until("the second sees who holds it", |decision| {
                decision["lease"]["holder"] == holder.as_str()
            })
            .await;
        assert_eq!(waits["lease"]["held"], false);
        self.load(90.0);
        second.until("both decide", |decision| decision["desired"].as_u64() > Some(3)).await;
        self.until_replicas("one acts", |replicas| replicas > 3).await;
        second.decisions(3).await;
        assert_eq!(second.count("cairn_scaler_applied_total", &[]).await, 0.0);
        assert!(first.count("cairn_scaler_applied_total", &[]).await >= 1.0);
        assert_eq!(second.count("cairn_scaler_lease_held", &[]).await, 0.0);

        drop(first); // SIGKILL
        self.load(150.0);
        second.until("the second takes over", |decision| decision["lease"]["held"] == true).await;
        assert_ne!(self.holder().await, holder);
        self.until_replicas("and acts", |replicas| replicas >= 9).await;
        assert!(second.count("cairn_scaler_applied_total", &[]).await >= 1.0);
        let lease =
            self.api.kube.get("coordination.k8s.io/v1", "Lease", NAMESPACE, LEASE).await.unwrap();
        assert!(lease["spec"]["leaseTransitions"].as_u64() >= Some(1), "{lease}");
        second
    }

    async fn outage(&mut self, scaler: Scaler) -> Scaler {
        self.api.kill().await;
        let decision = scaler
            .until("it says that it does not act", |decision| {
                decision["lease"]["held"] == false && decision["target"]["problem"].is_string()
            })
            .await;
        let problem = decision["target"]["problem"].as_str().unwrap();
        assert!(problem.contains("no answer of the API server"), "{problem}");
        scaler.decisions(4).await;
        let before = scaler.count("cairn_scaler_applied_total", &[]).await;
        self.load(10.0);
        scaler
            .until("it goes on deciding on the members that it knew", |decision| {
                decision["stale"] == false
                    && decision["counts"]["answering"] == 3
                    && decision["demand"]["units"].as_f64() < Some(0.5)
            })
            .await;
        assert_eq!(scaler.count("cairn_scaler_applied_total", &[]).await, before);
        self.api.start_again().await;
        scaler.until("it leads again", |decision| decision["lease"]["held"] == true).await;
        self.load(250.0);
        self.until_replicas("and acts again", |replicas| replicas == 12).await;
        scaler
    }

    async fn handover(&self, scaler: Scaler) {
        let next = self.scaler(&["--apply"]).await;
        next.until("it waits", |decision| {
            !decision["lease"]["holder"].as_str().unwrap_or("").is_empty()
        })
        .await;
        let mut scaler = scaler;
        scaler.process.terminate();
        assert!(scaler.process.wait().await.success());
        next.until("it leads", |decision| decision["lease"]["held"] == true).await;
    }

    async fn rights(&self) {
        let poor = self.account("poor", &[]).await;
        let args: Vec<&str> = poor.iter().map(String::as_str).collect();
        let scaler = Scaler::start(&args).await;
        let mut reason = String::new();
        eventually("it waits and says for what", async || {
            reason = scaler.page("/healthz/ready", &[]).await.text();
            reason.contains("endpointslices")
        })
        .await;
        for words in ["needs `list` on `endpointslices` in namespace pool", "discovery.k8s.io"] {
            assert!(reason.contains(words), "{reason}");
        }
        eventually("the log names the rule for the target", async || {
            scaler.process.printed("needs `get` on `deployments/scale` in namespace pool")
        })
        .await;
        drop(scaler);

        self.set_replicas(3).await;
        let rules = [
            rule("discovery.k8s.io", "endpointslices", &["list", "watch"]),
            rule("apps", "deployments/scale", &["get"]),
            rule("coordination.k8s.io", "leases", &["get", "create", "update"]),
        ];
        let reader = self.account("reader", &rules).await;
        let mut args: Vec<&str> = reader.iter().map(String::as_str).collect();
        args.extend(["--apply", "--lease", "another", "--lease-duration", "5s"]);
        let scaler = Scaler::start(&args).await;
        let decision = scaler
            .until("it is refused", |decision| decision["target"]["problem"].is_string())
            .await;
        let problem = decision["target"]["problem"].as_str().unwrap();
        assert!(
            problem.contains("needs `patch` on `deployments/scale` in namespace pool"),
            "{problem}"
        );
        assert!(decision["desired"].is_u64(), "and goes on deciding");
        assert!(scaler.count("cairn_scaler_apply_failures_total", &[]).await >= 1.0);

        let rules = &rules[..2];
        let lonely = self.account("lonely", rules).await;
        let mut args: Vec<&str> = lonely.iter().map(String::as_str).collect();
        args.push("--apply");
        let scaler = Scaler::start(&args).await;
        let decision =
            scaler.until("no Lease", |decision| decision["lease"]["problem"].is_string()).await;
        let problem = decision["lease"]["problem"].as_str().unwrap();
        assert!(problem.contains("needs `get` on `leases` in namespace pool"), "{problem}");

        // Who may list and not watch has a list, and says that it is not followed.
        let rules = [rule("discovery.k8s.io", "endpointslices", &["list"])];
        let blind = self.account("blind", &rules).await;
        let args: Vec<&str> =
            blind.iter().map(String::as_str).filter(|flag| !flag.starts_with("--target")).collect();
        let scaler = Scaler::start(&args).await;
        let decision = scaler
            .until("three are listed", |decision| {
                decision["counts"]["answering"] == 3 && decision["members_problem"].is_string()
            })
            .await;
        let problem = decision["members_problem"].as_str().unwrap();
        assert!(
            problem.contains("needs `watch` on `endpointslices` in namespace pool"),
            "{problem}"
        );
        assert_eq!(scaler.count("cairn_scaler_list_known", &[]).await, 0.0);
        self.endpoints(&[(0, true), (1, true)]).await;
        scaler.until("the list is read again", |decision| decision["counts"]["members"] == 2).await;
        self.endpoints(&[(0, true), (1, true), (2, true)]).await;

        let (url, ca) = self.api.address();
        let broken = self.dir.join("broken.token");
        std::fs::write(&broken, "no token").unwrap();
        let flags = [
            format!("--api-server={url}"),
            format!("--api-token={}", broken.display()),
            format!("--api-ca={ca}"),
            format!("--service={NAMESPACE}/{NAME}"),
        ];
        let args: Vec<&str> = flags.iter().map(String::as_str).collect();
        let scaler = Scaler::start(&args).await;
        eventually("a token that is not accepted", async || {
            scaler.page("/healthz/ready", &[]).await.text().contains("does not accept the token")
        })
        .await;
        // A kubeconfig does as well.
        let kubeconfig = format!("--kubeconfig={}", self.api.kubeconfig.display());
        let service = format!("--service={NAMESPACE}/{NAME}");
        let scaler = Scaler::start(&[&kubeconfig, &service]).await;
        scaler.until("as the administrator", |decision| decision["counts"]["answering"] == 3).await;
        let nobody = Cairn::start(&["scaler", &service, "--grpc=off", "--http=off"]);
        eventually("outside of a pod it says what to give", async || {
            nobody.printed("--kubeconfig")
        })
        .await;
    }
}
