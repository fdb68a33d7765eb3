//! The rights of the registrar: in each user's cluster, and in the cluster of the members. Nothing more is needed.

use crate::config::{Cluster, Pool};
use crate::objects;
use serde_json::{Value, json};

/// Name of the registrar's account, Role and RoleBinding.
pub const ACCOUNT: &str = "cairn-registrar";
/// ConfigMap in which istiod tells the root of its mesh.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";

/// Name of the Secret with the members' tokens.
pub fn tokens_secret(pool: &Pool) -> String {
    format!("{}-tokens", pool.name)
}

/// Name of the Lease by which one of several registrars is elected.
pub fn lease(pool: &Pool) -> String {
    format!("cairn-registrar-{}", pool.name)
}

/// What is to be applied to a user's cluster.
pub fn user_cluster(cluster: &Cluster, pool: &Pool) -> Vec<Value> {
    let account = cluster.service_account(pool);
    let rules = json!([
        rule("", &["services", "serviceaccounts"], &["get", "create", "patch"]),
        named("", "serviceaccounts/token", account, &["create"]),
        named("", "configmaps", ROOT_CONFIG_MAP, &["get"]),
        rule("gateway.networking.k8s.io", &["gateways"], &["get", "create", "patch"]),
        rule("gateway.networking.k8s.io", &["gateways/status"], &["patch"]),
        rule("networking.istio.io", &["workloadgroups"], &["get", "create", "patch"]),
        rule("networking.istio.io", &["workloadentries"], &["list", "patch", "delete"]),
    ]);
    bound(cluster.namespace(pool), rules)
}

/// What is to be applied to the cluster of the members, in their namespace.
pub fn pool_cluster(namespace: &str, pool: &Pool) -> Vec<Value> {
    let secret = tokens_secret(pool);
    let lease = lease(pool);
    let rules = json!([
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
        rule("", &["pods", "events"], &["list"]),
        // Who creates has no name yet: a rule with names would not allow it.
        rule("coordination.k8s.io", &["leases"], &["create"]),
        named("coordination.k8s.io", "leases", &lease, &["get", "update"]),
        rule("", &["secrets"], &["create"]),
        named("", "secrets", &secret, &["get", "patch"]),
    ]);
    bound(namespace, rules)
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

fn named(group: &str, resource: &str, name: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs })
}

/// An account with a Role of these rules.
fn bound(namespace: &str, rules: Value) -> Vec<Value> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let metadata =
        || json!({ "name": ACCOUNT, "namespace": namespace, "labels": objects::labels() });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata() }),
        json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "Role", "metadata": metadata(), "rules": rules,
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "RoleBinding", "metadata": metadata(),
            "roleRef": { "apiGroup": GROUP, "kind": "Role", "name": ACCOUNT },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PAGE: &str = include_str!("../../../docs/pool.md");

    /// A rule as the page has it.
    fn line(rule: &Value) -> String {
        let list = |name: &str| {
            let words = rule[name].as_array().unwrap().iter().map(|word| match word.as_str() {
                Some("") => "\"\"",
                word => word.unwrap(),
            });
            format!("{name}: [{}]", words.collect::<Vec<_>>().join(", "))
        };
        let fields = ["apiGroups", "resources", "resourceNames", "verbs"];
        let fields = fields.iter().filter(|name| rule[**name].is_array()).map(|name| list(name));
        format!("- {{{}}}", fields.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn the_page_has_these_rights_and_no_others() {
        let config = crate::PoolConfig::of(json!({ "clusters": [{
            "name": "a", "istiod": "i:15012", "root_file": "/r", "listen": "0.0.0.0:21001",
        }] }))
        .unwrap();
        let all =
            [user_cluster(&config.clusters[0], &config.pool), pool_cluster("m", &config.pool)];
        let rules = all.iter().flatten().filter_map(|object| object["rules"].as_array());
        let lines: Vec<String> = rules.flatten().map(line).collect();
        let on_page: Vec<&str> =
            PAGE.lines().filter(|line| line.starts_with("- {apiGroups:")).collect();
        assert_eq!(on_page, lines);
    }
}
