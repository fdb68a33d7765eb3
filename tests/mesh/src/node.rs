//! A node: it runs pods as their templates say, in the image's root, as kubelet and a container runtime do.
//!
//! Names are in `/etc/hosts`, where a cluster has DNS. No controller runs: who calls makes the pod of a Deployment, and
//! the EndpointSlice of a Service.

use crate::control::{ControlPlane, PATIENCE, get};
use crate::harness::Place;
use crate::identity::spiffe;
use crate::image::{ENTRY_POINT, Mount, Root};
use crate::kube::{Bound, Kube};
use crate::kubelet::{Container, Scheduled};
use crate::objects;
use crate::sandbox::{Sandbox, Start};
use cairn_test_support::http1::Response;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Where clients of the API server look for what they are given.
pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Audience of the API server.
const AUDIENCE: &str = "https://kubernetes.default.svc";

/// In a pod's directory.
const HOSTS: &str = "hosts";

/// One that every pod fits on.
pub struct Node {
    kube: Kube,
    api: (SocketAddr, PathBuf),
    image: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
    names: Vec<(IpAddr, String)>,
}

/// A pod that runs; its container is killed when this is dropped.
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Who it is in the mesh.
    pub id: String,
    scheduled: Scheduled,
    sandbox: Sandbox,
    /// Where its log was when it started.
    from: usize,
    hosts: PathBuf,
}

impl Node {
    /// A node of that cluster, with the image; it knows istiod and the API server by name.
    pub fn new(plane: &ControlPlane, place: &Place) -> Self {
        let mut node = Self::of(&plane.kube, plane.api(), place);
        node.name("istiod.istio-system.svc", plane.address().ip());
        node
    }

    /// A node of the cluster with this API server, `https://host:port`, and the file with its CA.
    pub fn of(kube: &Kube, (url, ca): (String, String), place: &Place) -> Self {
        let api: SocketAddr = url.trim_start_matches("https://").parse().unwrap();
        let mut node = Node {
            kube: kube.clone(),
            api: (api, ca.into()),
            image: place.image(),
            dir: place.dir.clone(),
            logs: place.logs.clone(),
            names: Vec::new(),
        };
        node.name("kubernetes.default.svc", api.ip());
        node
    }

    /// From now on pods know this name.
    pub fn name(&mut self, name: &str, address: IpAddr) {
        self.names.push((address, name.to_owned()));
    }

    /// Makes a pod of that template, and starts its container.
    ///
    /// # Panics
    /// At anything in the template that is not known here, or when it cannot be started.
    pub async fn start(&self, template: &Value, (namespace, name): (&str, &str), ip: &str) -> Pod {
        let pod = self.try_start(template, (namespace, name), ip).await;
        pod.unwrap_or_else(|| panic!("{namespace} is being deleted"))
    }

    /// As [`Node::start`]; nothing where the namespace is being deleted.
    ///
    /// # Panics
    /// As [`Node::start`] does otherwise.
    pub async fn try_start(
        &self,
        template: &Value,
        (namespace, name): (&str, &str),
        ip: &str,
    ) -> Option<Pod> {
        let scheduled = Scheduled {
            template: template.clone(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ip: ip.to_owned(),
        };
        let stored = self.kube.apply_where_it_may(&scheduled.object()).await?;
        self.kube.apply_status(&objects::pod_status(namespace, name, ip)).await;
        let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
        let bound = Bound { kind: "Pod", name: name.to_owned(), uid };
        let dir = self.dir.join(format!("pod-{namespace}-{name}"));
        let _ = fs::remove_dir_all(&dir);
        let volumes = dir.join("volumes");
        scheduled.write_volumes(&self.kube, &bound, &volumes).await;
        let mut mounts = mounts(&scheduled, &volumes);
        mounts.extend(self.account(&scheduled, &bound, &dir).await);
        mounts.push(self.hosts(&scheduled, &dir));
        let root = root(&scheduled, self.image.clone(), mounts);
        let Container { args, mut env } = scheduled.container();
        let (api, _) = &self.api;
        for (key, value) in [("HOST", api.ip().to_string()), ("PORT", api.port().to_string())] {
            env.insert(format!("KUBERNETES_SERVICE_{key}"), value);
        }
        env.insert("HOSTNAME".to_owned(), name.to_owned());
        let start =
            Start { program: Path::new(ENTRY_POINT), args: &args, env: &env, root: Some(&root) };
        let log = self.logs.join(format!("{name}.log"));
        let from = log.metadata().map_or(0, |found| found.len() as usize);
        let ip: IpAddr = ip.parse().unwrap();
        let sandbox = Sandbox::start(name, ip, start, &dir.join("state"), &self.logs).await;
        let id = spiffe(namespace, scheduled.account());
        let hosts = dir.join(HOSTS);
        Some(Pod { name: name.to_owned(), ip, id, scheduled, sandbox, from, hosts })
    }

    /// The account's token and what belongs to it, unless pod or account do without.
    async fn account(&self, pod: &Scheduled, bound: &Bound, dir: &Path) -> Option<Mount> {
        let (namespace, name) = (pod.namespace.as_str(), pod.account());
        let account = self.kube.get("v1", "ServiceAccount", namespace, name).await.unwrap();
        let wanted = [pod.spec(), &account];
        let wanted = wanted.iter().find_map(|of| of["automountServiceAccountToken"].as_bool());
        if wanted == Some(false) {
            return None;
        }
        let token = self.kube.token(namespace, name, AUDIENCE, Some(bound)).await;
        let ca = fs::read_to_string(&self.api.1).unwrap();
        let files = [("token", token), ("ca.crt", ca), ("namespace", namespace.to_owned())];
        let files: BTreeMap<PathBuf, String> =
            files.into_iter().map(|(name, text)| (name.into(), text)).collect();
        let from = dir.join("account");
        fs::create_dir_all(&from).unwrap();
        crate::kubelet::write_atomically(&from, &files);
        Some(Mount { from: Some(from), to: ACCOUNT.to_owned(), writable: false })
    }

    fn names(&self, ip: &str, name: &str, more: &[(IpAddr, String)]) -> String {
        let mut text = format!("127.0.0.1\tlocalhost\n{ip}\t{name}\n");
        for (address, name) in self.names.iter().chain(more) {
            text.push_str(&format!("{address}\t{name}\n"));
        }
        text
    }

    /// A pod knows these names besides those of the node, and no others.
    ///
    /// # Panics
    /// When its file cannot be written.
    pub fn rename(&self, pod: &Pod, more: &[(IpAddr, String)]) {
        let text = self.names(&pod.ip.to_string(), &pod.name, more);
        // In place: the file is seen through a mount.
        if fs::read_to_string(&pod.hosts).ok().as_ref() != Some(&text) {
            fs::write(&pod.hosts, text).unwrap();
        }
    }

    fn hosts(&self, pod: &Scheduled, dir: &Path) -> Mount {
        let from = dir.join(HOSTS);
        fs::write(&from, self.names(&pod.ip, &pod.name, &[])).unwrap();
        Mount { from: Some(from), to: "/etc/hosts".to_owned(), writable: true }
    }
}

/// The pod's volumes at their paths.
fn mounts(pod: &Scheduled, volumes: &Path) -> Vec<Mount> {
    let all = pod.spec()["volumes"].as_array().cloned().unwrap_or_default();
    let mounts = pod.container_spec()["volumeMounts"].as_array().cloned().unwrap_or_default();
    let mount = |mount: &Value| {
        let to = mount["mountPath"].as_str().unwrap().to_owned();
        let volume = all.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let in_memory = volume["emptyDir"]["medium"] == "Memory";
        Mount {
            from: (!in_memory).then(|| volumes.join(to.trim_start_matches('/'))),
            to,
            // Kubernetes: any other kind is read-only, whatever the mount says.
            writable: volume["emptyDir"].is_object() && mount["readOnly"] != true,
        }
    };
    mounts.iter().map(mount).collect()
}

/// As the container's security context says.
fn root(pod: &Scheduled, image: PathBuf, mounts: Vec<Mount>) -> Root {
    let security = &pod.container_spec()["securityContext"];
    assert_eq!(security["runAsNonRoot"], true, "{security}");
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{security}");
    assert_eq!(security["allowPrivilegeEscalation"], false, "{security}");
    Root {
        image,
        user: security["runAsUser"].as_u64().unwrap(),
        group: security["runAsGroup"].as_u64().unwrap(),
        read_only: security["readOnlyRootFilesystem"] == true,
        mounts,
    }
}

impl Pod {
    /// A page; `None` while nobody listens.
    pub async fn page(&self, port: u16, path: &str) -> Option<Response> {
        get(SocketAddr::new(self.ip, port), path).await
    }

    /// What its readiness probe is told.
    pub async fn probe(&self) -> Option<Response> {
        let container = self.scheduled.container_spec();
        let probe = &container["readinessProbe"]["httpGet"];
        self.page(self.scheduled.port(&probe["port"]), probe["path"].as_str().unwrap()).await
    }

    /// Waits until the probe succeeds.
    ///
    /// # Panics
    /// When it ends, or does not become ready; with what the probe said last.
    pub async fn ready(&mut self) {
        let (start, mut said) = (Instant::now(), String::new());
        loop {
            self.must_run();
            match self.probe().await {
                Some(answer) if answer.status == 200 => return,
                Some(answer) => said = format!("{}: {}", answer.status, answer.text()),
                None => {}
            }
            let name = &self.name;
            assert!(start.elapsed() < PATIENCE, "{name} is not ready in {PATIENCE:?}: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.sandbox.part().ended()
    }

    /// Everything it has printed.
    pub fn output(&mut self) -> String {
        self.sandbox.part().output().split_off(self.from)
    }

    /// # Panics
    /// When it has ended.
    pub fn must_run(&mut self) {
        self.sandbox.part().must_run();
    }

    /// With which rights it runs, and what files it has: `/proc/PID/status`, and one path a line.
    ///
    /// # Panics
    /// When it does not run.
    pub fn inside(&self) -> String {
        let look = "mount -t proc proc /proc && cat /proc/$0/status && cd /proc/$0/root && \
                    find . -path ./proc -prune -o -path ./sys -prune -o -print";
        let pid = self.sandbox.pid().unwrap().to_string();
        let mut command = std::process::Command::new("unshare");
        let output = command.args(["--mount", "sh", "-c", look, &pid]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// SIGTERM.
    ///
    /// # Panics
    /// When it does not run.
    pub fn terminate(&self) {
        self.sandbox.terminate();
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.sandbox.signal("-KILL");
        self.wait().await;
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> ExitStatus {
        self.sandbox.wait().await
    }

    /// SIGTERM, and waits for an orderly end.
    ///
    /// # Panics
    /// When it is none.
    pub async fn end(&mut self) {
        self.terminate();
        let status = self.wait().await;
        assert!(status.success(), "{}: SIGTERM is an orderly end, not {status}", self.name);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Another pod of the name may run by now.
        if self.sandbox.part().ended().is_none() {
            self.sandbox.signal("-KILL");
        }
    }
}
