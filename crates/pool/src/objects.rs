//! The objects that a user's cluster needs.
//!
//! A Gateway of class `istio-waypoint` with exactly one address, a host name: istiod deploys nothing for it, gives it
//! the routes and policies of whoever uses it, and waits for endpoints of the Service of that name. Those are the
//! WorkloadEntries that istiod makes when a member registers by the WorkloadGroup.

use crate::cluster::{
    AllowedNamespaces, GATEWAY_NAME, HBONE_PORT, MANAGED, MANAGED_BY, TUNNEL, UserCluster,
};
use serde_json::{Value, json};

/// All of them, in the order in which they are applied.
pub fn all(cluster: &UserCluster) -> Vec<Value> {
    vec![
        namespace(cluster),
        service_account(cluster),
        gateway(cluster),
        service(cluster),
        workload_group(cluster),
    ]
}

/// No pod of it belongs to the mesh: the pool's members run elsewhere.
fn namespace(cluster: &UserCluster) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": cluster.namespace,
            "labels": { "istio.io/dataplane-mode": "none" },
        },
    })
}

/// An identity and tokens, nothing that runs.
fn service_account(cluster: &UserCluster) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": cluster.service_account, "namespace": cluster.namespace },
        "automountServiceAccountToken": false,
    })
}

fn gateway(cluster: &UserCluster) -> Value {
    let namespaces = match &cluster.allowed {
        AllowedNamespaces::All => json!({ "from": "All" }),
        AllowedNamespaces::Labelled { key, value } => {
            json!({ "from": "Selector", "selector": { "matchLabels": { key: value } } })
        }
    };
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {
            "name": cluster.name, "namespace": cluster.namespace,
            "labels": { "istio.io/waypoint-for": "service" },
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "addresses": [{ "type": "Hostname", "value": cluster.host() }],
            "listeners": [{
                "name": "mesh", "port": HBONE_PORT, "protocol": "HBONE",
                "allowedRoutes": { "namespaces": namespaces },
            }],
        },
    })
}

fn service(cluster: &UserCluster) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": cluster.name, "namespace": cluster.namespace,
            "labels": { MANAGED: MANAGED_BY, GATEWAY_NAME: cluster.name },
        },
        "spec": {
            "type": "ClusterIP",
            "selector": { cluster.member_label(): "true" },
            "ports": [{
                "name": "hbone", "port": HBONE_PORT, "targetPort": HBONE_PORT,
                "protocol": "TCP", "appProtocol": "hbone",
            }],
        },
    });
    if cluster.prefer_close {
        service["metadata"]["annotations"] =
            json!({ "networking.istio.io/traffic-distribution": "PreferClose" });
    }
    service
}

/// Without `serviceAccount` any account of the namespace could register.
fn workload_group(cluster: &UserCluster) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": { "name": cluster.name, "namespace": cluster.namespace },
        "spec": {
            "metadata": { "labels": member_labels(cluster) },
            "template": {
                "serviceAccount": cluster.service_account,
                "ports": { "hbone": cluster.port },
            },
        },
    })
}

/// Labels of every member.
pub fn member_labels(cluster: &UserCluster) -> Value {
    json!({
        cluster.member_label(): "true",
        GATEWAY_NAME: cluster.name,
        MANAGED: MANAGED_BY,
        TUNNEL: "http",
        "service.istio.io/canonical-name": cluster.name,
    })
}

/// What is to be applied to the Gateway's `status` once, and only while it has no addresses: until then
/// whoever uses the pool has no waypoint at all, and is not policed.
pub fn gateway_status(cluster: &UserCluster) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": cluster.name, "namespace": cluster.namespace },
        "status": { "addresses": [{ "type": "Hostname", "value": cluster.host() }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_selects_and_what_is_selected_agree() {
        let cluster = UserCluster { name: "edge".to_owned(), ..UserCluster::new(21002) };
        let all = all(&cluster);
        let of = |kind: &str| all.iter().find(|object| object["kind"] == kind).cloned();
        let (Some(service), Some(group), Some(gateway)) =
            (of("Service"), of("WorkloadGroup"), of("Gateway"))
        else {
            unreachable!()
        };
        let labels = &group["spec"]["metadata"]["labels"];
        assert_eq!(service["spec"]["selector"]["edge/member"], labels["edge/member"]);
        assert_eq!(
            gateway["spec"]["addresses"][0]["value"],
            "edge.waypoint-pool.svc.cluster.local"
        );
        assert_eq!(group["spec"]["template"]["ports"]["hbone"], 21002);
        assert_eq!(service["metadata"].get("annotations"), None);
    }
}
