//! What virtual nodes and serverless pods take: the documented limits of each platform, and what we promise of
//! every pod of ours, as rules over a pod template.
//!
//! | platform | where it says so |
//! |---|---|
//! | ECI | Alibaba Cloud ECI: "Limits", "Pod annotations", "Configure a security context" |
//! | AKS | Azure: "Virtual nodes", known limitations; Azure/azure-workload-identity#381 for projected tokens |
//! | Fargate | AWS EKS: "AWS Fargate considerations"; aws/containers-roadmap#682 for added capabilities |
//! | CCI | Huawei Cloud CCI: "Constraints" |

use Platform::{Aks, Cci, Eci, Fargate, Plain};
use serde_json::Value;
use std::collections::BTreeSet;

/// Where a pod is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Platform {
    /// Nodes that are machines: only what we promise ourselves.
    Plain,
    /// Alibaba Cloud ECI by a virtual node.
    Eci,
    /// AKS virtual nodes of the first version (Azure Container Instances).
    Aks,
    /// EKS Fargate.
    Fargate,
    /// Huawei Cloud CCI.
    Cci,
}

/// All of them.
pub const PLATFORMS: [Platform; 5] = [Plain, Eci, Aks, Fargate, Cci];

impl Platform {
    /// As charts and directories call it.
    pub fn named(name: &str) -> Option<Platform> {
        Some(match name {
            "plain" => Plain,
            "eci" => Eci,
            "aks" => Aks,
            "fargate" => Fargate,
            "cci" => Cci,
            _ => return None,
        })
    }
}

/// What makes pods.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Of the object: `Deployment`.
    pub kind: &'a str,
    /// `spec.template`.
    pub template: &'a Value,
}

impl<'a> Workload<'a> {
    /// Of an object that makes pods.
    pub fn of(object: &'a Value) -> Option<Self> {
        let template = object.pointer("/spec/template")?;
        template.pointer("/spec/containers")?;
        Some(Workload { kind: object["kind"].as_str()?, template })
    }

    fn spec(&self) -> &'a Value {
        &self.template["spec"]
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        list(&self.spec()["containers"])
    }

    fn volumes(&self) -> impl Iterator<Item = &'a Value> {
        list(&self.spec()["volumes"])
    }

    fn ports(&self) -> impl Iterator<Item = &'a Value> {
        self.containers().flat_map(|container| list(&container["ports"]))
    }

    fn probes(&self) -> impl Iterator<Item = (&'static str, &'a Value)> {
        let names = ["startupProbe", "readinessProbe", "livenessProbe"];
        self.containers().flat_map(move |container| {
            names
                .into_iter()
                .map(move |name| (name, &container[name]))
                .filter(|(_, p)| !p.is_null())
        })
    }

    fn sources(&self) -> impl Iterator<Item = &'a Value> {
        self.volumes().flat_map(|volume| list(&volume["projected"]["sources"]))
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// One of the limits.
struct Rule {
    name: &'static str,
    /// Empty: everywhere, because we promise it.
    on: &'static [Platform],
    broken: fn(&Workload<'_>) -> bool,
}

const VIRTUAL: &[Platform] = &[Eci, Aks, Fargate, Cci];

const RULES: [Rule; 27] = [
    Rule { name: "no capability is added", on: &[], broken: adds_capability },
    Rule { name: "all capabilities are dropped", on: &[], broken: keeps_capabilities },
    Rule { name: "runs as somebody else than root", on: &[], broken: may_be_root },
    Rule { name: "gains no privileges", on: &[], broken: may_gain },
    Rule { name: "the root file system is read-only", on: &[], broken: root_is_writable },
    Rule { name: "writes no files", on: &[], broken: has_place_to_write },
    Rule { name: "no init containers", on: &[], broken: has_init_containers },
    Rule { name: "probes are HTTP", on: &[], broken: probes_otherwise },
    Rule { name: "not privileged", on: &[], broken: is_privileged },
    Rule { name: "no hostPath", on: &[], broken: |it| has_volume(it, &["hostPath"]) },
    Rule { name: "no namespace of the host", on: &[], broken: shares_namespace },
    Rule { name: "no hostPort", on: &[], broken: has_host_port },
    Rule { name: "each container has its limits", on: &[], broken: has_no_limits },
    Rule { name: "no DaemonSet", on: VIRTUAL, broken: |it| it.kind == "DaemonSet" },
    Rule { name: "no spread over nodes", on: VIRTUAL, broken: spreads },
    Rule { name: "ECI: ports 111, 10250, 10255 are taken", on: &[Eci], broken: takes_port },
    Rule {
        name: "ECI: at most 20 containers",
        on: &[Eci],
        broken: |it| it.containers().count() > 20,
    },
    Rule { name: "ECI: at most 20 volumes", on: &[Eci], broken: |it| it.volumes().count() > 20 },
    Rule { name: "ECI: securityContext of the container", on: &[Eci], broken: unknown_security },
    Rule { name: "ECI: securityContext of the pod", on: &[Eci], broken: unknown_pod_security },
    Rule {
        name: "AKS: no hostAliases",
        on: &[Aks],
        broken: |it| it.spec()["hostAliases"].is_array(),
    },
    Rule { name: "AKS: no hooks", on: &[Aks], broken: has_hooks },
    Rule {
        name: "AKS: no persistent volumes",
        on: &[Aks],
        broken: |it| has_volume(it, &["persistentVolumeClaim", "ephemeral", "csi"]),
    },
    Rule { name: "AKS: no projected tokens", on: &[Aks], broken: has_projected_token },
    Rule { name: "AKS: no downward API as files", on: &[Aks], broken: has_downward_files },
    Rule { name: "AKS: asks for linux", on: &[Aks], broken: may_be_windows },
    Rule { name: "Fargate: requests are limits", on: &[Fargate], broken: bursts },
];

/// The names of all rules that a workload breaks on a platform.
pub fn refusals(platform: Platform, workload: Workload<'_>) -> Vec<&'static str> {
    let rules = RULES.iter().filter(|rule| rule.on.is_empty() || rule.on.contains(&platform));
    rules.filter(|rule| (rule.broken)(&workload)).map(|rule| rule.name).collect()
}

/// Whether a Service has a port on each node, which virtual nodes do not open.
pub fn needs_node_port(service: &Value) -> bool {
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
    kind == "NodePort"
        || (kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != false)
}

/// A field of the container's securityContext, or of the pod's where the container has none.
fn security<'a>(workload: &Workload<'a>, container: &'a Value, field: &str) -> &'a Value {
    let own = &container["securityContext"][field];
    if own.is_null() { &workload.spec()["securityContext"][field] } else { own }
}

fn adds_capability(it: &Workload<'_>) -> bool {
    it.containers().any(|one| list(&one["securityContext"]["capabilities"]["add"]).count() > 0)
}

fn keeps_capabilities(it: &Workload<'_>) -> bool {
    it.containers()
        .any(|one| !list(&one["securityContext"]["capabilities"]["drop"]).any(|name| name == "ALL"))
}

fn may_be_root(it: &Workload<'_>) -> bool {
    it.containers().any(|one| {
        security(it, one, "runAsNonRoot") != true
            || security(it, one, "runAsUser").as_u64().is_none_or(|user| user == 0)
    })
}

fn may_gain(it: &Workload<'_>) -> bool {
    it.containers().any(|one| one["securityContext"]["allowPrivilegeEscalation"] != false)
}

fn root_is_writable(it: &Workload<'_>) -> bool {
    it.containers().any(|one| one["securityContext"]["readOnlyRootFilesystem"] != true)
}

fn has_place_to_write(it: &Workload<'_>) -> bool {
    has_volume(it, &["emptyDir", "persistentVolumeClaim", "ephemeral", "hostPath"])
}

fn has_init_containers(it: &Workload<'_>) -> bool {
    list(&it.spec()["initContainers"]).count() > 0
}

/// A TCP probe finds an open port of a process that is stuck; CCI has none at the start, ECI runs no exec in time.
fn probes_otherwise(it: &Workload<'_>) -> bool {
    it.probes().any(|(_, probe)| !probe["httpGet"].is_object())
}

fn is_privileged(it: &Workload<'_>) -> bool {
    it.containers().any(|one| one["securityContext"]["privileged"] == true)
}

fn has_volume(it: &Workload<'_>, kinds: &[&str]) -> bool {
    it.volumes().any(|volume| kinds.iter().any(|kind| !volume[*kind].is_null()))
}

fn shares_namespace(it: &Workload<'_>) -> bool {
    ["hostNetwork", "hostPID", "hostIPC"].iter().any(|field| it.spec()[*field] == true)
}

fn has_host_port(it: &Workload<'_>) -> bool {
    it.ports().any(|port| !port["hostPort"].is_null())
}

/// By its memory limit Cairn knows when to refuse; on serverless platforms requests are what is paid for.
fn has_no_limits(it: &Workload<'_>) -> bool {
    it.containers().any(|one| {
        let resources = &one["resources"];
        resources["limits"]["memory"].is_null()
            || resources["requests"]["cpu"].is_null()
            || resources["requests"]["memory"].is_null()
    })
}

/// All pods of a virtual node share one Node object: who must not share it would never be scheduled twice.
fn spreads(it: &Workload<'_>) -> bool {
    let constraints = list(&it.spec()["topologySpreadConstraints"]);
    constraints.count() > 0 || it.spec()["affinity"]["podAntiAffinity"].is_object()
}

fn takes_port(it: &Workload<'_>) -> bool {
    it.ports().any(|port| [111, 10250, 10255].iter().any(|taken| port["containerPort"] == *taken))
}

/// `runAs…`, `privileged` and `capabilities` are supported; `allowPrivilegeEscalation`, `readOnlyRootFilesystem` and
/// `seccompProfile` are taken, and nothing depends on their being in force. On others nothing can be built.
fn unknown_security(it: &Workload<'_>) -> bool {
    const TAKEN: [&str; 8] = [
        "allowPrivilegeEscalation",
        "capabilities",
        "privileged",
        "readOnlyRootFilesystem",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "seccompProfile",
    ];
    it.containers().any(|one| has_other_fields(&one["securityContext"], &TAKEN))
}

fn unknown_pod_security(it: &Workload<'_>) -> bool {
    let pod = &it.spec()["securityContext"];
    let good = |name: &str| {
        (name.starts_with("net.") && name != "net.ipv4.tcp_syncookies")
            || ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
                .iter()
                .any(|p| name.starts_with(p))
    };
    has_other_fields(pod, &["sysctls", "runAsUser"])
        || list(&pod["sysctls"]).any(|sysctl| !sysctl["name"].as_str().is_some_and(good))
}

fn has_other_fields(value: &Value, known: &[&str]) -> bool {
    let fields: BTreeSet<&str> =
        value.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
    fields.iter().any(|field| !known.contains(field))
}

fn has_hooks(it: &Workload<'_>) -> bool {
    it.containers().any(|one| one["lifecycle"].is_object())
}

/// The token that Kubernetes mounts by itself is a projected one, too.
fn has_projected_token(it: &Workload<'_>) -> bool {
    it.spec()["automountServiceAccountToken"] != false
        || it.sources().any(|source| !source["serviceAccountToken"].is_null())
}

fn has_downward_files(it: &Workload<'_>) -> bool {
    has_volume(it, &["downwardAPI"]) || it.sources().any(|source| !source["downwardAPI"].is_null())
}

fn may_be_windows(it: &Workload<'_>) -> bool {
    it.spec()["nodeSelector"]["kubernetes.io/os"] != "linux"
}

/// Fargate sizes a pod by its requests; what has more in its limits is killed at a size that nobody has written.
fn bursts(it: &Workload<'_>) -> bool {
    it.containers().any(|one| {
        let resources = &one["resources"];
        ["cpu", "memory"].iter().any(|name| {
            resources["requests"][*name].is_null()
                || resources["requests"][*name] != resources["limits"][*name]
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({ "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": { "kubernetes.io/os": "linux" },
            "securityContext": { "sysctls": [{ "name": "net.core.somaxconn", "value": "4096" }] },
            "containers": [{
                "name": "member",
                "ports": [{ "containerPort": 15020 }],
                "readinessProbe": { "httpGet": { "path": "/healthz/ready", "port": 15021 } },
                "resources": {
                    "requests": { "cpu": "2", "memory": "2Gi" }, "limits": { "cpu": "2", "memory": "2Gi" },
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
                    "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337,
                    "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
                },
            }],
            "volumes": [{ "name": "pool", "configMap": { "name": "pool" } }],
        }})
    }

    fn refused(platform: Platform, kind: &str, template: &Value) -> Vec<&'static str> {
        refusals(platform, Workload { kind, template })
    }

    /// A pod that is good but for one value breaks one rule, and on the rule's platforms only.
    #[test]
    fn each_rule_has_a_pod_that_breaks_it_alone() {
        let container = "/spec/containers/0";
        let with = |place: &str, value: Value| (place.to_owned(), value);
        let at = |place: &str, value: Value| (format!("{container}{place}"), value);
        let many = |count: usize, volume: Value| Value::Array(vec![volume; count]);
        let cases = [
            (
                "no capability is added",
                at("/securityContext/capabilities/add", json!(["NET_ADMIN"])),
            ),
            (
                "all capabilities are dropped",
                at("/securityContext/capabilities/drop", json!(["NET_RAW"])),
            ),
            ("runs as somebody else than root", at("/securityContext/runAsUser", json!(0))),
            ("runs as somebody else than root", at("/securityContext/runAsNonRoot", Value::Null)),
            ("gains no privileges", at("/securityContext/allowPrivilegeEscalation", Value::Null)),
            (
                "the root file system is read-only",
                at("/securityContext/readOnlyRootFilesystem", json!(false)),
            ),
            ("writes no files", with("/spec/volumes", json!([{ "name": "a", "emptyDir": {} }]))),
            ("no init containers", with("/spec/initContainers", json!([{ "name": "a" }]))),
            ("probes are HTTP", at("/startupProbe", json!({ "tcpSocket": { "port": 15021 } }))),
            ("probes are HTTP", at("/livenessProbe", json!({ "exec": { "command": ["true"] } }))),
            ("not privileged", at("/securityContext/privileged", json!(true))),
            ("no namespace of the host", with("/spec/hostNetwork", json!(true))),
            ("no namespace of the host", with("/spec/hostPID", json!(true))),
            ("no namespace of the host", with("/spec/hostIPC", json!(true))),
            ("no hostPort", at("/ports/0/hostPort", json!(15020))),
            (
                "no spread over nodes",
                with("/spec/topologySpreadConstraints", json!([{ "maxSkew": 1 }])),
            ),
            ("no spread over nodes", with("/spec/affinity", json!({ "podAntiAffinity": {} }))),
            ("ECI: ports 111, 10250, 10255 are taken", at("/ports/0/containerPort", json!(10250))),
            (
                "ECI: at most 20 volumes",
                with("/spec/volumes", many(21, json!({ "configMap": {} }))),
            ),
            (
                "ECI: securityContext of the container",
                at("/securityContext/procMount", json!("Unmasked")),
            ),
            ("ECI: securityContext of the pod", with("/spec/securityContext/fsGroup", json!(1337))),
            (
                "ECI: securityContext of the pod",
                with(
                    "/spec/securityContext/sysctls",
                    json!([{ "name": "net.ipv4.tcp_syncookies" }]),
                ),
            ),
            ("AKS: no hostAliases", with("/spec/hostAliases", json!([{ "ip": "10.0.0.1" }]))),
            (
                "AKS: no hooks",
                at("/lifecycle", json!({ "preStop": { "sleep": { "seconds": 5 } } })),
            ),
            (
                "AKS: no persistent volumes",
                with("/spec/volumes", json!([{ "name": "a", "csi": {} }])),
            ),
            ("AKS: no projected tokens", with("/spec/automountServiceAccountToken", json!(true))),
            (
                "AKS: no projected tokens",
                with(
                    "/spec/volumes",
                    json!([{ "projected": { "sources": [{ "serviceAccountToken": {} }] } }]),
                ),
            ),
            (
                "AKS: no downward API as files",
                with("/spec/volumes", json!([{ "downwardAPI": {} }])),
            ),
            ("AKS: asks for linux", with("/spec/nodeSelector", Value::Null)),
            ("Fargate: requests are limits", at("/resources/requests/cpu", json!("1"))),
            ("Fargate: requests are limits", at("/resources/limits/cpu", Value::Null)),
        ];
        let mut tried = BTreeSet::from([
            "no hostPath",
            "each container has its limits",
            "no DaemonSet",
            "ECI: at most 20 containers",
        ]);
        for (name, (place, value)) in cases {
            let template = put(good(), &place, value);
            let rule = RULES.iter().find(|rule| rule.name == name).unwrap();
            for platform in PLATFORMS {
                let holds = rule.on.is_empty() || rule.on.contains(&platform);
                let expected = if holds { vec![name] } else { Vec::new() };
                assert_eq!(
                    refused(platform, "Deployment", &template),
                    expected,
                    "{platform:?}: {place}"
                );
            }
            tried.insert(name);
        }
        assert_eq!(tried.len(), RULES.len(), "a rule without a pod that breaks it");
    }

    #[test]
    fn rules_that_cannot_be_broken_alone() {
        let host =
            put(good(), "/spec/volumes", json!([{ "name": "a", "hostPath": { "path": "/" } }]));
        assert_eq!(refused(Plain, "Deployment", &host), ["writes no files", "no hostPath"]);
        let limits = put(good(), "/spec/containers/0/resources/limits/memory", Value::Null);
        assert_eq!(refused(Eci, "Deployment", &limits), ["each container has its limits"]);
        let mut many = good();
        let one = many["spec"]["containers"][0].clone();
        many["spec"]["containers"] = Value::Array(vec![one; 21]);
        assert_eq!(refused(Eci, "Deployment", &many), ["ECI: at most 20 containers"]);
        assert_eq!(refused(Aks, "Deployment", &many), [""; 0]);
        assert_eq!(refused(Plain, "DaemonSet", &good()), [""; 0]);
        for platform in VIRTUAL {
            assert_eq!(refused(*platform, "DaemonSet", &good()), ["no DaemonSet"]);
        }
    }

    #[test]
    fn a_good_pod_is_taken_everywhere() {
        for platform in PLATFORMS {
            assert_eq!(refused(platform, "Deployment", &good()), [""; 0], "{platform:?}");
        }
    }

    #[test]
    fn services_with_ports_on_nodes() {
        for (spec, needs) in [
            (json!({}), false),
            (json!({ "clusterIP": "None" }), false),
            (json!({ "type": "NodePort" }), true),
            (json!({ "type": "LoadBalancer" }), true),
            (json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false }), false),
        ] {
            assert_eq!(needs_node_port(&json!({ "spec": spec })), needs, "{spec}");
        }
    }

    /// Sets what a pointer leads to, or removes it.
    fn put(mut object: Value, place: &str, value: Value) -> Value {
        let (parent, field) = place.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            parent.remove(field)
        } else {
            parent.insert(field.to_owned(), value)
        };
        object
    }
}
