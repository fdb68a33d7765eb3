//! The objects that a user's cluster needs.
//!
//! A Gateway of class `istio-waypoint` with exactly one address, a host name: istiod deploys nothing for it, gives it
//! the routes and policies of whoever uses it, and waits for endpoints of the Service of that name. Those are the
//! WorkloadEntries that istiod makes when a member registers by the WorkloadGroup.

use crate::cluster::{
    AllowedNamespaces, GATEWAY_NAME, HBONE_PORT, MANAGED, MANAGED_BY, TUNNEL, UserCluster,
};
use crate::config::{Cluster, Pool};
use serde_json::{Value, json};

/// Who manages the fields that are applied to a cluster.
pub const FIELD_MANAGER: &str = "cairn-pool";
/// The label of each object of the pool that says who keeps it: [`FIELD_MANAGER`], or `Helm`, which sets it on all
/// that a chart has.
pub const OWNER: &str = "app.kubernetes.io/managed-by";
/// The label, with [`FIELD_MANAGER`] as its value, of each object of the pool, whoever made it.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// Annotation with the name of the release, on all that Helm makes.
const RELEASE: &str = "meta.helm.sh/release-name";

/// All of them, in the order in which they are applied.
pub fn all(cluster: &UserCluster) -> Vec<Value> {
    let mut all = vec![
        namespace(cluster),
        service_account(cluster),
        gateway(cluster),
        service(cluster),
        workload_group(cluster),
    ];
    all.iter_mut().for_each(own);
    all
}

/// All that a cluster of `pool.yaml` needs: those of [`all`], and a Gateway and a Service for each shard.
pub fn of(cluster: &Cluster, pool: &Pool) -> Vec<Value> {
    let user = cluster.user_cluster(pool);
    let mut all = all(&user);
    for object in all.iter_mut().filter(|object| object["kind"] == "WorkloadGroup") {
        object["metadata"]["name"] = cluster.workload_group(pool).into();
    }
    for shard in &cluster.shards {
        let of_shard = shard_of(&user, shard);
        let mut service = service(&of_shard);
        service["spec"]["selector"] = json!({ shard_label(&user.name, shard): "true" });
        all.extend([gateway(&of_shard), service].map(|mut object| {
            own(&mut object);
            object
        }));
    }
    all
}

/// What is to be applied to the status of each Gateway of a cluster: see [`gateway_status`].
pub fn statuses(cluster: &Cluster, pool: &Pool) -> Vec<Value> {
    let user = cluster.user_cluster(pool);
    let shards = cluster.shards.iter().map(|shard| gateway_status(&shard_of(&user, shard)));
    std::iter::once(gateway_status(&user)).chain(shards).collect()
}

/// Whether the Gateway has no address yet, and so binds nobody.
pub fn lacks_address(gateway: &Value) -> bool {
    gateway["status"]["addresses"].as_array().is_none_or(Vec::is_empty)
}

/// Label of the members that serve this shard.
pub fn shard_label(gateway: &str, shard: &str) -> String {
    format!("{gateway}/{shard}")
}

/// Whether an object that is there is the pool's: it has one of our labels, or some of its fields are ours.
pub fn is_ours(object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let managers = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    labels[PART_OF] == FIELD_MANAGER
        || labels[OWNER] == FIELD_MANAGER
        || managers.into_iter().any(|fields| fields["manager"] == FIELD_MANAGER)
}

/// Who else keeps an object, by its label, and how to take it away there. Helm makes again what is removed behind it.
pub fn kept_elsewhere(object: &Value) -> Option<String> {
    let keeper = object["metadata"]["labels"][OWNER].as_str()?;
    match (keeper, object["metadata"]["annotations"][RELEASE].as_str()) {
        (FIELD_MANAGER, _) => None,
        ("Helm", Some(release)) => {
            Some(format!("Helm keeps it: `helm uninstall {release}` takes it away"))
        }
        ("Helm", None) => {
            Some("Helm keeps it: `helm uninstall` of its release takes it away".to_owned())
        }
        (other, _) => Some(format!("{other} keeps it, and may make it again")),
    }
}

/// Labels of each object of the pool.
pub fn labels() -> Value {
    json!({ OWNER: FIELD_MANAGER, PART_OF: FIELD_MANAGER })
}

fn own(object: &mut Value) {
    let labels = &mut object["metadata"]["labels"];
    labels[OWNER] = FIELD_MANAGER.into();
    labels[PART_OF] = FIELD_MANAGER.into();
}

fn shard_of(cluster: &UserCluster, shard: &str) -> UserCluster {
    UserCluster { name: format!("{}-{shard}", cluster.name), ..cluster.clone() }
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
    fn shards_have_a_gateway_and_a_service_each() {
        let config = crate::PoolConfig::of(json!({ "clusters": [{
            "name": "a", "istiod": "i:15012", "root_file": "/r", "listen": "0.0.0.0:21001",
            "shards": ["s00", "s01"], "workload_group": "members",
        }] }));
        let Ok(config) = config else { unreachable!() };
        let all = of(&config.clusters[0], &config.pool);
        let names: Vec<(&str, &str)> = all
            .iter()
            .filter_map(|one| Some((one["kind"].as_str()?, one["metadata"]["name"].as_str()?)))
            .collect();
        assert_eq!(names[4], ("WorkloadGroup", "members"));
        assert_eq!(
            names[5..7],
            [("Gateway", "waypoint-pool-s00"), ("Service", "waypoint-pool-s00")]
        );
        assert_eq!(all[8]["spec"]["selector"], json!({ "waypoint-pool/s01": "true" }));
        assert_eq!(
            all[7]["spec"]["addresses"][0]["value"],
            "waypoint-pool-s01.waypoint-pool.svc.cluster.local"
        );
        assert!(all.iter().all(is_ours));
        assert_eq!(statuses(&config.clusters[0], &config.pool).len(), 3);
    }

    #[test]
    fn ours_is_what_has_our_label_or_our_fields() {
        let cases = [
            (json!({ "metadata": {} }), false),
            (json!({ "metadata": { "labels": { OWNER: "Helm" } } }), false),
            (json!({ "metadata": { "labels": { OWNER: "Helm", PART_OF: "shop" } } }), false),
            (json!({ "metadata": { "labels": { OWNER: "cairn-pool" } } }), true),
            (json!({ "metadata": { "labels": { OWNER: "Helm", PART_OF: "cairn-pool" } } }), true),
            (json!({ "metadata": { "managedFields": [{ "manager": "kubectl" }] } }), false),
            (json!({ "metadata": { "managedFields": [{ "manager": "cairn-pool" }] } }), true),
        ];
        for (object, ours) in cases {
            assert_eq!(is_ours(&object), ours, "{object}");
        }
    }

    #[test]
    fn who_else_keeps_it_is_named() {
        let object = |keeper: &str, annotations: Value| json!({ "metadata": { "labels": { OWNER: keeper }, "annotations": annotations } });
        let cases = [
            (json!({ "metadata": {} }), None),
            (object("cairn-pool", json!({})), None),
            (object("Helm", json!({ RELEASE: "east" })), Some("`helm uninstall east`")),
            (object("Helm", Value::Null), Some("`helm uninstall` of its release")),
            (object("somebody", json!({})), Some("somebody keeps it")),
        ];
        for (object, words) in cases {
            let said = kept_elsewhere(&object);
            assert_eq!(said.is_some(), words.is_some(), "{object}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()), "{object}");
        }
    }

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
