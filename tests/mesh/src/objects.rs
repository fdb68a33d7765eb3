//! Kubernetes objects that tests need, as JSON.

use serde_json::{Map, Value, json};

/// Labels, or any map of texts.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

fn map(pairs: Labels<'_>) -> Value {
    let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// A namespace.
pub fn namespace(name: &str, labels: Labels<'_>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": map(labels) },
    })
}

/// A node.
pub fn node(name: &str, zone: &str) -> Value {
    let labels = [
        ("kubernetes.io/hostname", name),
        ("topology.kubernetes.io/region", "r1"),
        ("topology.kubernetes.io/zone", zone),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": map(&labels) },
    })
}

/// A service account.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name },
    })
}

/// A Secret without anything in it.
pub fn secret(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "namespace": namespace, "name": name },
    })
}

/// A pod that ztunnel captures.
pub fn pod(namespace: &str, name: &str, account: &str, labels: Labels<'_>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": map(labels),
            "annotations": { "ambient.istio.io/redirection": "enabled" },
        },
        "spec": {
            "serviceAccountName": account,
            "nodeName": "node-a",
            "containers": [{ "name": "app", "image": "registry.example/app:1" }],
        },
    })
}

/// What kubelet says of a pod that runs.
pub fn pod_status(namespace: &str, name: &str, ip: &str) -> Value {
    let condition = |kind: &str| json!({ "type": kind, "status": "True" });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "hostIP": "192.0.2.1",
            "hostIPs": [{ "ip": "192.0.2.1" }],
            "conditions": [
                condition("Initialized"), condition("ContainersReady"), condition("Ready"),
            ],
        },
    })
}

/// A service with one port, `http` unless `port` names it otherwise.
pub fn service(
    namespace: &str,
    name: &str,
    vip: &str,
    (port_name, port, target): (&str, u16, u16),
    selector: Labels<'_>,
) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "clusterIP": vip,
            "selector": map(selector),
            "ports": [{ "name": port_name, "port": port, "targetPort": target, "protocol": "TCP" }],
        },
    })
}

/// An endpoint: pod, address, readiness.
pub type Endpoint<'a> = (&'a str, &'a str, bool);

/// The endpoints of a service, in one slice with these ports.
pub fn endpoint_slice(
    namespace: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[Endpoint<'_>],
) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port)| json!({ "name": name, "port": port, "protocol": "TCP" }))
        .collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, ip, ready)| {
            json!({
                "addresses": [ip],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": "node-a",
                "zone": "z1",
                "targetRef": { "kind": "Pod", "name": pod, "namespace": namespace },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A waypoint whose image is ours; services of namespaces `from` (`Same`, `All`) may use it.
pub fn waypoint(namespace: &str, name: &str, from: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": { "istio.io/waypoint-for": "service" },
            "annotations": { "sidecar.istio.io/proxyImage": "registry.example/cairn:1.0" },
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{
                "name": "mesh",
                "port": 15008,
                "protocol": "HBONE",
                "allowedRoutes": { "namespaces": { "from": from } },
            }],
        },
    })
}

/// A route of the Gateway API for one service of its own namespace.
pub fn http_route(namespace: &str, name: &str, service: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": service }],
            "rules": rules,
        },
    })
}

/// A policy for one service of its own namespace.
pub fn authorization_policy(
    namespace: &str,
    name: &str,
    service: &str,
    action: &str,
    rules: Value,
) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "targetRefs": [{ "group": "", "kind": "Service", "name": service }],
            "action": action,
            "rules": rules,
        },
    })
}
