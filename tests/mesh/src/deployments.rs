//! Controllers, as much of them as a Deployment needs: pods that come and go as it changes, probed, and in the
//! EndpointSlices of their Services; and what belongs to a Gateway goes with it.
//!
//! Images that are not ours are not started; their pods count as ready.

use crate::kube::Kube;
use crate::kubelet::{Scheduled, texts};
use crate::manifest::path;
use crate::node::{Node, Pod};
use crate::objects::endpoint_slice;
use serde_json::{Value, json};
use std::net::IpAddr;

/// What is started: images of this name.
const OURS: &str = "registry.example/cairn:";

/// The Deployments of one cluster.
pub struct Deployments {
    kube: Kube,
    node: Node,
    net: &'static str,
    last: u8,
    /// Pods that there are.
    pub pods: Vec<Running>,
}

/// A pod.
pub struct Running {
    /// As scheduled.
    pub pod: Scheduled,
    /// Name of its Deployment.
    pub of: String,
    /// Whether its probe succeeded last.
    pub ready: bool,
    going: bool,
    process: Option<Pod>,
}

impl Running {
    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.pod.ip.parse().unwrap()
    }

    /// Everything it has printed; nothing if it is not ours.
    pub fn output(&mut self) -> String {
        self.process.as_mut().map(Pod::output).unwrap_or_default()
    }
}

impl Deployments {
    /// Those of a cluster, whose pods get addresses `<net>.<first>` and on.
    pub fn new(kube: &Kube, node: Node, net: &'static str, first: u8) -> Self {
        Deployments { kube: kube.clone(), node, net, last: first, pods: Vec::new() }
    }

    /// One look at everything.
    ///
    /// # Panics
    /// When the API server refuses what controllers do, or a process ends otherwise than it should.
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
        for number in 0..self.pods.len() {
            let Running { pod, of, going, .. } = &self.pods[number];
            let is_there = deployments.iter().any(|found| named(found) == (&pod.namespace, of));
            if !going && !is_there {
                self.end(number).await;
            }
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
        self.pods.iter().filter(of).filter(|pod| pod.ready && pod.process.is_some()).collect()
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
        let (namespace, _) = named(object);
        owner.is_object()
            && self
                .kube
                .get(text("apiVersion"), text("kind"), namespace, text("name"))
                .await
                .is_none()
    }

    /// Pods of a Deployment as it is now: new ones first, old ones go when these are ready.
    async fn follow(&mut self, deployment: &Value) {
        let (namespace, name) = named(deployment);
        let template = &deployment["spec"]["template"];
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap();
        let mine = |pod: &Running| pod.pod.namespace == namespace && pod.of == name && !pod.going;
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (number, pod) in self.pods.iter().enumerate().filter(|(_, pod)| mine(pod)) {
            if pod.pod.template == *template { new.push(number) } else { old.push(number) }
        }
        let ready = new.iter().filter(|&&number| self.pods[number].ready).count();
        for _ in new.len()..wanted {
            if !self.start(namespace, name, template).await {
                break;
            }
        }
        if ready >= wanted {
            for number in old {
                self.end(number).await;
            }
        }
        for number in new.into_iter().skip(wanted) {
            self.end(number).await;
        }
    }

    /// Whether all that it mounts is there.
    async fn mounts(&self, namespace: &str, template: &Value) -> bool {
        for volume in template["spec"]["volumes"].as_array().into_iter().flatten() {
            for (kind, pointer) in
                [("Secret", "/secret/secretName"), ("ConfigMap", "/configMap/name")]
            {
                if let Some(name) = volume.pointer(pointer).and_then(Value::as_str)
                    && self.kube.get("v1", kind, namespace, name).await.is_none()
                {
                    return false;
                }
            }
        }
        true
    }

    /// Whether it could be started.
    async fn start(&mut self, namespace: &str, of: &str, template: &Value) -> bool {
        if !self.mounts(namespace, template).await {
            return false;
        }
        let pod = Scheduled {
            template: template.clone(),
            name: format!("{of}-{}", self.last),
            namespace: namespace.to_owned(),
            ip: format!("{}.{}", self.net, self.last),
        };
        self.last += 1;
        let image = template["spec"]["containers"][0]["image"].as_str().unwrap();
        let is_ours = image.starts_with(OURS);
        // With admission: the namespace's pod security is part of it.
        let process = if is_ours {
            let started = self.node.try_start(template, (namespace, &pod.name), &pod.ip).await;
            let Some(process) = started else { return false };
            Some(process)
        } else if self.kube.apply_where_it_may(&pod.object()).await.is_none() {
            return false;
        } else {
            None
        };
        let ready = !is_ours;
        self.pods.push(Running { pod, of: of.to_owned(), ready, going: false, process });
        true
    }

    /// Its time to go: the pod has a deletion timestamp, and the process a signal.
    async fn end(&mut self, number: usize) {
        let running = &mut self.pods[number];
        (running.going, running.ready) = (true, false);
        let place = path("v1", "Pod", &running.pod.namespace, &running.pod.name);
        let (status, answer) = self.kube.call("DELETE", &place, "", b"").await;
        assert!(matches!(status, 200 | 202 | 404), "{place}: {status}: {answer}");
        if let Some(process) = &running.process {
            process.terminate();
        }
    }

    async fn probe(&mut self) {
        for running in self.pods.iter_mut().filter(|running| !running.going) {
            if let Some(process) = &mut running.process {
                process.must_run();
                running.ready = process.probe().await.is_some_and(|answer| answer.status == 200);
            }
        }
    }

    /// Takes away pods that have ended.
    async fn reap(&mut self) {
        let mut left = Vec::new();
        for mut running in std::mem::take(&mut self.pods) {
            let ended = match &mut running.process {
                None => running.going.then_some(true),
                Some(process) => process.ended().map(|status| status.success()),
            };
            let Some(well) = ended.filter(|_| running.going) else {
                left.push(running);
                continue;
            };
            let name = running.pod.name.clone();
            assert!(well, "{name} did not end well\n{}", running.output());
            let place = path("v1", "Pod", &running.pod.namespace, &name);
            self.kube.call("DELETE", &format!("{place}?gracePeriodSeconds=0"), "", b"").await;
        }
        self.pods = left;
    }

    /// EndpointSlices of Services with a selector, and the names by which pods find them.
    async fn publish(&mut self) {
        let mut names = Vec::new();
        for service in self.list("v1", "Service").await {
            let (namespace, name) = named(&service);
            let selector = texts(&service["spec"]["selector"]);
            let is_chosen = |running: &&Running| {
                let labels = running.pod.labels();
                running.pod.namespace == namespace
                    && !selector.is_empty()
                    && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            };
            let chosen: Vec<&Running> = self.pods.iter().filter(is_chosen).collect();
            let Some(first) = chosen.first() else { continue };
            let ports = service["spec"]["ports"].as_array().unwrap().iter();
            let ports: Vec<(&str, u16)> = ports
                .map(|port| {
                    let name = port["name"].as_str().unwrap_or_default();
                    (name, first.pod.port(&port["targetPort"]))
                })
                .collect();
            let endpoints: Vec<(&str, &str, bool)> = chosen
                .iter()
                .map(|one| (one.pod.name.as_str(), one.pod.ip.as_str(), one.ready))
                .collect();
            let slice = endpoint_slice(namespace, name, &ports, &endpoints);
            self.kube.apply_where_it_may(&slice).await;
            let ready = chosen.iter().filter(|one| one.ready);
            names.extend(ready.map(|one| (one.ip(), format!("{name}.{namespace}.svc"))));
        }
        for process in self.pods.iter().filter_map(|running| running.process.as_ref()) {
            self.node.rename(process, &names);
        }
    }

    /// What the Deployment's controller says.
    async fn report(&self, deployment: &Value) {
        let (namespace, name) = named(deployment);
        let of = |pod: &&Running| pod.pod.namespace == namespace && pod.of == name && !pod.going;
        let pods: Vec<&Running> = self.pods.iter().filter(of).collect();
        let ready = pods.iter().filter(|pod| pod.ready).count();
        let template = &deployment["spec"]["template"];
        let updated = pods.iter().filter(|pod| pod.pod.template == *template).count();
        let status = json!({
            "observedGeneration": deployment["metadata"]["generation"], "replicas": pods.len(),
            "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready,
        });
        let known = |field: &str| deployment["status"][field].as_u64().unwrap_or(0);
        let fields = status.as_object().unwrap().iter();
        if fields.into_iter().all(|(field, value)| value.as_u64() == Some(known(field))) {
            return;
        }
        let status = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "namespace": namespace, "name": name }, "status": status,
        });
        let place = path("apps/v1", "Deployment", namespace, name);
        let place = format!("{place}/status?fieldManager=lab&force=true");
        let kind = "application/apply-patch+yaml";
        let (code, answer) =
            self.kube.call("PATCH", &place, kind, status.to_string().as_bytes()).await;
        // It may be gone by now.
        assert!(matches!(code, 200 | 201 | 404 | 409), "{place}: {code}: {answer}");
    }
}

/// Namespace and name.
fn named(object: &Value) -> (&str, &str) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap();
    (text("namespace"), text("name"))
}
