//! Without one of its rights a component says which one it needs: each verb on each resource of each rule that the charts
//! give is taken away in turn, and what needs it is started anew.
//!
//! istiod is away meanwhile, which would do some of the registrar's work before it.

use crate::pool::{PAGES, POOL, Pool, SYSTEM, start};
use crate::world::World;
use cairn_mesh_tests::control::eventually;
use cairn_mesh_tests::kube::Kube;
use cairn_mesh_tests::node::Pod;
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const MERGE: &str = "application/merge-patch+json";

/// A Role of the charts; its account has the same name and is in the same namespace.
struct Role {
    namespace: &'static str,
    name: &'static str,
    /// Whose it is, and where that runs.
    component: (&'static str, &'static str),
}

const SCALER: (&str, &str) = ("scaler", "10.244.9.20");
const REGISTRAR: (&str, &str) = ("registrar", "10.244.9.21");
const OF_SCALER: [Role; 1] = [Role { namespace: SYSTEM, name: "cairn-scaler", component: SCALER }];
const OF_REGISTRAR: [Role; 2] = [
    Role { namespace: SYSTEM, name: "cairn-registrar", component: REGISTRAR },
    Role { namespace: POOL, name: "cairn-registrar", component: REGISTRAR },
];

/// One right: a verb on a resource.
struct Right {
    /// Number of its rule.
    rule: usize,
    group: String,
    resource: String,
    verb: String,
    /// Of which object; empty: of all.
    object: String,
}

pub async fn each_is_named(world: &mut World, pool: &mut Pool) {
    for pod in [&mut pool.scaler, &mut pool.registrar] {
        pod.take().unwrap().end().await;
    }
    world.lab.plane.kill_istiod().await;
    let world = &*world;
    tokio::join!(of(world, &OF_SCALER), of(world, &OF_REGISTRAR));
}

async fn of(world: &World, roles: &[Role]) {
    for role in roles {
        let kube = &world.lab.plane.kube;
        let found = kube.get(RBAC, "Role", role.namespace, role.name).await.unwrap();
        let rules = found["rules"].as_array().unwrap();
        for right in rights(rules) {
            let held = needs(kube, role, &right).await;
            set(kube, role, &without(rules, &right)).await;
            until(kube, role, &right, false).await;
            let mut pod = start(world, role.component.0, role.component.0, role.component.1).await;
            is_named(&mut pod, role, &right).await;
            pod.end().await;
            set(kube, role, rules).await;
            until(kube, role, &right, true).await;
            if let Some(object) = held {
                kube.apply(&object).await;
            }
        }
    }
}

/// All of these rules.
fn rights(rules: &[Value]) -> Vec<Right> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let [group] = texts(&rule["apiGroups"]).try_into().unwrap();
        let object = rule["resourceNames"][0].as_str().unwrap_or_default().to_owned();
        for resource in texts(&rule["resources"]) {
            for verb in texts(&rule["verbs"]) {
                let (group, resource) = (group.clone(), resource.clone());
                rights.push(Right { rule: number, group, resource, verb, object: object.clone() });
            }
        }
    }
    assert!(rights.len() >= 6, "{rules:?}");
    rights
}

/// The rules with all rights but this one.
fn without(rules: &[Value], right: &Right) -> Vec<Value> {
    let mut left = rules.to_vec();
    let rule = left.remove(right.rule);
    for resource in rule["resources"].as_array().unwrap() {
        let mut part = rule.clone();
        part["resources"] = json!([resource]);
        if *resource == right.resource.as_str() {
            part["verbs"].as_array_mut().unwrap().retain(|verb| *verb != right.verb.as_str());
        }
        if part["verbs"] != json!([]) {
            left.push(part);
        }
    }
    left
}

async fn set(kube: &Kube, role: &Role, rules: &[Value]) {
    let metadata = json!({ "name": role.name, "namespace": role.namespace });
    kube.apply(
        &json!({ "apiVersion": RBAC, "kind": "Role", "metadata": metadata, "rules": rules }),
    )
    .await;
}

/// Waits until the API server judges by the Role as it is.
async fn until(kube: &Kube, role: &Role, right: &Right, allowed: bool) {
    let Role { namespace, name, .. } = role;
    let Right { group, resource, verb, object, .. } = right;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{namespace}:{name}"),
            "resourceAttributes": {
                "namespace": namespace, "group": group, "resource": resource, "subresource": subresource,
                "verb": verb, "name": object,
            },
        },
    })
    .to_string();
    let place = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    eventually(&format!("{verb} {resource} is allowed: {allowed}"), async || {
        let (_, answer) = kube.call("POST", place, "application/json", review.as_bytes()).await;
        answer["status"]["allowed"] == allowed
    })
    .await;
}

/// Makes it so that a component that starts needs the right; what is to be there again afterwards.
async fn needs(kube: &Kube, role: &Role, right: &Right) -> Option<Value> {
    let Right { resource, verb, .. } = right;
    let lease = format!("cairn-{}-{POOL}", role.component.0);
    match (resource.as_str(), verb.as_str()) {
        ("leases", "create") => {
            take(kube, ("coordination.k8s.io/v1", "Lease", SYSTEM, &lease)).await;
            None
        }
        ("secrets", "create") => {
            take(kube, ("v1", "Secret", SYSTEM, "waypoint-pool-tokens")).await;
            None
        }
        ("services", "create" | "patch") => Some(take(kube, ("v1", "Service", POOL, POOL)).await),
        ("serviceaccounts", "create" | "patch") => {
            Some(take(kube, ("v1", "ServiceAccount", POOL, POOL)).await)
        }
        ("gateways", "create" | "patch") => {
            Some(take(kube, ("gateway.networking.k8s.io/v1", "Gateway", POOL, POOL)).await)
        }
        ("gateways/status", _) => {
            // Made anew it has no address.
            let gateway = take(kube, ("gateway.networking.k8s.io/v1", "Gateway", POOL, POOL)).await;
            kube.apply(&gateway).await;
            None
        }
        ("workloadgroups", "create" | "patch") => {
            Some(take(kube, ("networking.istio.io/v1", "WorkloadGroup", POOL, POOL)).await)
        }
        ("workloadentries", "patch") => {
            let place = format!("{ENTRIES}/{POOL}-10.244.9.31");
            merge(
                kube,
                &place,
                &json!({ "metadata": { "labels": { "waypoint-pool/s00": null } } }),
            )
            .await;
            None
        }
        ("workloadentries", "delete") => {
            kube.apply(&leaked()).await;
            None
        }
        ("deployments/scale", "patch") => {
            let scale =
                format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments/cairn-members/scale");
            merge(kube, &scale, &json!({ "spec": { "replicas": 1 } })).await;
            None
        }
        _ => None,
    }
}

const ENTRIES: &str = "/apis/networking.istio.io/v1/namespaces/waypoint-pool/workloadentries";

/// An entry of the pool's group without a member.
fn leaked() -> Value {
    let labels = json!({
        "waypoint-pool/member": "true", "gateway.networking.k8s.io/gateway-name": POOL,
        "gateway.istio.io/managed": "istio.io-mesh-controller", "networking.istio.io/tunnel": "http",
    });
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {
            "name": "waypoint-pool-10.244.0.99", "namespace": POOL, "labels": labels,
            "annotations": {
                "istio.io/autoRegistrationGroup": POOL,
                "istio.io/connectedAt": "2026-11-22T20:00:41.1Z",
                "istio.io/workloadController": "istiod-1",
            },
        },
        "spec": {
            "address": "10.244.0.99", "serviceAccount": POOL, "ports": { "hbone": 21001 }, "labels": labels,
        },
    })
}

/// Deletes an object that may be there; as it was but for what the API server adds.
async fn take(kube: &Kube, (version, kind, namespace, name): (&str, &str, &str, &str)) -> Value {
    let Some(found) = kube.get(version, kind, namespace, name).await else { return Value::Null };
    kube.delete(&found).await;
    eventually(&format!("{kind} {name} is gone"), async || {
        kube.get(version, kind, namespace, name).await.is_none()
    })
    .await;
    let metadata = json!({
        "name": name, "namespace": namespace,
        "labels": found["metadata"]["labels"], "annotations": found["metadata"]["annotations"],
    });
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
    for field in ["spec", "automountServiceAccountToken"] {
        if !found[field].is_null() {
            object[field] = found[field].clone();
        }
    }
    object
}

async fn merge(kube: &Kube, place: &str, change: &Value) {
    let (status, answer) = kube.call("PATCH", place, MERGE, change.to_string().as_bytes()).await;
    assert_eq!(status, 200, "{place}: {answer}");
}

/// Waits until its log or one of its pages names the right.
async fn is_named(pod: &mut Pod, role: &Role, right: &Right) {
    let Right { resource, verb, .. } = right;
    let wanted = format!("needs `{verb}` on `{resource}` in namespace {}", role.namespace);
    eventually(&format!("the {} says: {wanted}", role.component.0), async || {
        pod.must_run();
        let mut said = pod.output();
        for path in ["/healthz/ready", "/state", "/decision"] {
            if let Some(page) = pod.page(PAGES, path).await {
                said.push_str(&page.text());
            }
        }
        said.contains(&wanted)
    })
    .await;
}
