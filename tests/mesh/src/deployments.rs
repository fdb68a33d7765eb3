//! Nodes and controllers, as much of them as a Deployment needs: pods that are made and taken away as it changes, started
//! from the image's root filesystem, probed, and in the EndpointSlices of their Services.
//!
//! Images that are not ours are not started; their pods count as ready.

use crate::container::{Container, Rootfs};
use crate::control::get;
use crate::kube::{Bound, Kube};
use crate::kubelet::Scheduled;
use crate::manifest::path;
use crate::objects::{endpoint_slice, pod_status};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What is started: images of this name.
const OURS: &str = "registry.example/cairn:";

/// The nodes of one cluster.
pub struct Node {
    /// Its API server.
    pub kube: Kube,
    /// Of the API server, for pods that ask it: address and CA.
    pub api: (SocketAddr, String),
    /// The image.
    pub image: Rootfs,
    /// First three bytes of pods' addresses, and the next last one.
    pub addresses: (&'static str, u8),
    /// Names that pods can resolve besides those of Services.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// For files and logs of pods.
    pub dir: PathBuf,
    /// For logs.
    pub logs: PathBuf,
    /// Pods that there are.
    pub pods: Vec<Running>,
}

/// A pod that runs.
pub struct Running {
    /// As scheduled.
    pub pod: Scheduled,
    /// Name of its Deployment.
    pub of: String,
    /// Whether its probe succeeded last.
    pub ready: bool,
    going: bool,
    container: Option<Container>,
}

impl Running {
    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.pod.ip.parse().unwrap()
    }

    /// Everything it has printed; nothing if it is not ours.
    pub fn output(&mut self) -> String {
        self.container.as_mut().map(Container::output).unwrap_or_default()
    }
}

impl Node {
    /// One look at everything.
    ///
    /// # Panics
    /// When the API server refuses what nodes and controllers do.
    pub async fn round(&mut self) {
        let mut deployments = self.list("apps/v1", "Deployment").await;
        for number in (0..deployments.len()).rev() {
            if self.is_orphan(&deployments[number]).await {
                self.kube.delete(&deployments.remove(number)).await;
            }
        }
        for deployment in &deployments {
            self.follow(deployment).await;
        }
        let is_there = |pod: &Running| {
            deployments.iter().any(|found| {
                found["metadata"]["name"] == pod.of
                    && found["metadata"]["namespace"] == pod.pod.namespace
            })
        };
        let orphans: Vec<usize> = (0..self.pods.len())
            .filter(|&number| !self.pods[number].going && !is_there(&self.pods[number]))
            .collect();
        for number in orphans {
            self.end(number).await;
        }
        self.probe().await;
        self.reap().await;
        self.publish().await;
        for deployment in &deployments {
            self.report(deployment).await;
        }
    }

    /// Ready pods of a Deployment that run our image.
    pub fn ready(&self, namespace: &str, deployment: &str) -> Vec<&Running> {
        let of = |pod: &&Running| pod.pod.namespace == namespace && pod.of == deployment;
        self.pods.iter().filter(of).filter(|pod| pod.ready && pod.container.is_some()).collect()
    }

    async fn list(&self, api: &str, kind: &str) -> Vec<Value> {
        let (status, answer) = self.kube.call("GET", &path(api, kind, "", ""), "", b"").await;
        assert_eq!(status, 200, "{answer}");
        let mut items = answer["items"].as_array().cloned().unwrap_or_default();
        for item in &mut items {
            item["apiVersion"] = api.into();
            item["kind"] = kind.into();
        }
        items
    }

    /// Whether the object that it belongs to is gone, as the garbage collector sees it.
    async fn is_orphan(&self, object: &Value) -> bool {
        let owner = &object["metadata"]["ownerReferences"][0];
        let text = |name: &str| owner[name].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        owner.is_object()
            && self
                .kube
                .get(text("apiVersion"), text("kind"), namespace, text("name"))
                .await
                .is_none()
    }

    /// Pods of a Deployment as it is now: new ones first, old ones go when these are ready.
    async fn follow(&mut self, deployment: &Value) {
        let text = |name: &str| deployment["metadata"][name].as_str().unwrap().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let template = &deployment["spec"]["template"];
        let wanted = usize::try_from(deployment["spec"]["replicas"].as_u64().unwrap_or(1)).unwrap();
        let mine = |pod: &Running| pod.pod.namespace == namespace && pod.of == name && !pod.going;
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (number, pod) in self.pods.iter().enumerate().filter(|(_, pod)| mine(pod)) {
            if pod.pod.template == *template { new.push(number) } else { old.push(number) }
        }
        let ready = new.iter().filter(|&&number| self.pods[number].ready).count();
        let surplus: Vec<usize> = new.iter().skip(wanted).copied().collect();
        for _ in new.len()..wanted {
            if !self.start(&namespace, &name, template).await {
                break;
            }
        }
        if ready >= wanted {
            for number in old {
                self.end(number).await;
            }
        }
        for number in surplus {
            self.end(number).await;
        }
    }

    /// Whether all that it mounts is there.
    async fn mounts(&self, namespace: &str, template: &Value) -> bool {
        for volume in template["spec"]["volumes"].as_array().into_iter().flatten() {
            let named = [("Secret", "/secret/secretName"), ("ConfigMap", "/configMap/name")];
            for (kind, pointer) in named {
                if let Some(name) = volume.pointer(pointer).and_then(Value::as_str)
                    && self.kube.get("v1", kind, namespace, name).await.is_none()
                {
                    return false;
                }
            }
        }
        true
    }

    async fn start(&mut self, namespace: &str, of: &str, template: &Value) -> bool {
        if !self.mounts(namespace, template).await {
            return false;
        }
        let (net, last) = self.addresses;
        self.addresses.1 += 1;
        let pod = Scheduled {
            template: template.clone(),
            name: format!("{of}-{last}"),
            namespace: namespace.to_owned(),
            ip: format!("{net}.{last}"),
        };
        // Server-side, with admission: the namespace's pod security among it.
        let Some(stored) = self.kube.apply_where_it_may(&pod.object()).await else { return false };
        let image = template["spec"]["containers"][0]["image"].as_str().unwrap();
        let mut running =
            Running { pod, of: of.to_owned(), ready: false, going: false, container: None };
        if image.starts_with(OURS) {
            let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
            let bound = Bound { kind: "Pod", name: running.pod.name.clone(), uid };
            let started = Container::start(self, &running.pod, &bound).await;
            running.container = Some(started);
        } else {
            running.ready = true;
        }
        self.tell(&running).await;
        self.pods.push(running);
        true
    }

    /// What kubelet says of a pod.
    async fn tell(&self, running: &Running) {
        let Scheduled { namespace, name, ip, .. } = &running.pod;
        let mut status = pod_status(namespace, name, ip);
        if !running.ready {
            for condition in
                status["status"]["conditions"].as_array_mut().unwrap().iter_mut().skip(1)
            {
                condition["status"] = "False".into();
            }
        }
        self.kube.apply_status(&status).await;
    }

    /// Its time to go: it has a deletion timestamp, and its process a signal.
    async fn end(&mut self, number: usize) {
        let running = &mut self.pods[number];
        running.going = true;
        running.ready = false;
        let place = path("v1", "Pod", &running.pod.namespace, &running.pod.name);
        let (status, answer) = self.kube.call("DELETE", &place, "", b"").await;
        assert!(matches!(status, 200 | 202 | 404), "{place}: {status}: {answer}");
        if let Some(container) = &running.container {
            container.terminate();
        }
    }

    async fn probe(&mut self) {
        let mut changed = Vec::new();
        for (number, running) in self.pods.iter_mut().enumerate() {
            let Some(container) = running.container.as_mut().filter(|_| !running.going) else {
                continue;
            };
            container.must_run();
            let probe = &running.pod.template["spec"]["containers"][0]["readinessProbe"]["httpGet"];
            let at =
                SocketAddr::new(running.pod.ip.parse().unwrap(), running.pod.port(&probe["port"]));
            let answer = get(at, probe["path"].as_str().unwrap()).await;
            let ready = answer.is_some_and(|answer| answer.status == 200);
            if ready != running.ready {
                running.ready = ready;
                changed.push(number);
            }
        }
        for number in changed {
            self.tell(&self.pods[number]).await;
        }
    }

    /// Takes away pods that have ended.
    async fn reap(&mut self) {
        let mut left = Vec::new();
        for mut running in std::mem::take(&mut self.pods) {
            let ended = match &mut running.container {
                None => running.going.then_some(true),
                Some(container) => container.ended().map(|status| status.success()),
            };
            match ended {
                Some(well) if running.going => {
                    let name = running.pod.name.clone();
                    assert!(well, "{name} did not end well\n{}", running.output());
                    let place = path("v1", "Pod", &running.pod.namespace, &running.pod.name);
                    let now = format!("{place}?gracePeriodSeconds=0");
                    self.kube.call("DELETE", &now, "", b"").await;
                }
                _ => left.push(running),
            }
        }
        self.pods = left;
    }

    /// EndpointSlices of Services with a selector, and the names by which pods find them.
    async fn publish(&mut self) {
        let mut names = self.names.clone();
        for service in self.list("v1", "Service").await {
            let text = |name: &str| service["metadata"][name].as_str().unwrap();
            let (namespace, name) = (text("namespace"), text("name"));
            let selector = crate::kubelet::texts(&service["spec"]["selector"]);
            let chosen: Vec<&Running> = self
                .pods
                .iter()
                .filter(|running| running.pod.namespace == namespace && !selector.is_empty())
                .filter(|running| {
                    let labels = running.pod.labels();
                    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
                })
                .collect();
            let Some(first) = chosen.first() else { continue };
            let ports: Vec<(String, u16)> = service["spec"]["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| {
                    let named = port["name"].as_str().unwrap_or_default().to_owned();
                    (named, first.pod.port(&port["targetPort"]))
                })
                .collect();
            let ports: Vec<(&str, u16)> =
                ports.iter().map(|(name, port)| (name.as_str(), *port)).collect();
            let endpoints: Vec<(&str, &str, bool)> = chosen
                .iter()
                .map(|one| (one.pod.name.as_str(), one.pod.ip.as_str(), one.ready))
                .collect();
            let slice = endpoint_slice(namespace, name, &ports, &endpoints);
            self.kube.apply_where_it_may(&slice).await;
            let ready = chosen.iter().filter(|one| one.ready).map(|one| one.ip()).collect();
            names.insert(format!("{name}.{namespace}.svc"), ready);
        }
        for running in &self.pods {
            if let Some(container) = &running.container {
                container.write_names(&names);
            }
        }
    }

    /// What the Deployment's controller says.
    async fn report(&self, deployment: &Value) {
        let metadata = &deployment["metadata"];
        let (namespace, name) =
            (metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        let of = |pod: &&Running| pod.pod.namespace == namespace && pod.of == name;
        let (mut all, mut updated, mut ready) = (0, 0, 0);
        for running in self.pods.iter().filter(of).filter(|running| !running.going) {
            all += 1;
            updated += u32::from(running.pod.template == deployment["spec"]["template"]);
            ready += u32::from(running.ready);
        }
        let status = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "namespace": namespace, "name": name },
            "status": {
                "observedGeneration": metadata["generation"], "replicas": all,
                "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready,
            },
        });
        let known = &deployment["status"];
        let same = |field: &str| {
            known[field].as_u64().unwrap_or(0) == status["status"][field].as_u64().unwrap_or(0)
        };
        let fields = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
        ];
        if !fields.into_iter().all(same) {
            let place = format!(
                "{}/status?fieldManager=lab&force=true",
                path("apps/v1", "Deployment", namespace, name)
            );
            // It may be gone by now.
            let body = status.to_string();
            let (code, answer) = self
                .kube
                .call("PATCH", &place, "application/apply-patch+yaml", body.as_bytes())
                .await;
            assert!(matches!(code, 200 | 201 | 404 | 409), "{place}: {code}: {answer}");
        }
    }
}
