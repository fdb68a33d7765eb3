#![allow(clippy::unwrap_used)]

use super::*;
use crate::objects;
use serde_json::json;

/// A healthy cluster: the pool's objects, its Gateway's status, a member, and a namespace that uses it.
fn healthy() -> Vec<Value> {
    let cluster = cluster();
    let mut all = objects::all(&cluster);
    let gateway = all.iter_mut().find(|object| object["kind"] == "Gateway").unwrap();
    gateway["status"] = objects::gateway_status(&cluster)["status"].clone();
    all.push(member("10.8.3.17", "one"));
    all.push(json!({
        "kind": "Namespace",
        "metadata": { "name": "shop", "labels": {
            "istio.io/use-waypoint": "waypoint-pool", "istio.io/use-waypoint-namespace": "waypoint-pool",
        } },
    }));
    all.push(pod("app-1", "app", "10.244.1.11"));
    all
}

fn cluster() -> UserCluster {
    UserCluster::new(21001)
}

fn member(address: &str, name: &str) -> Value {
    json!({
        "kind": "WorkloadEntry",
        "metadata": {
            "name": name, "namespace": "waypoint-pool", "labels": objects::member_labels(&cluster()),
        },
        "spec": { "address": address },
    })
}

fn pod(name: &str, app: &str, ip: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": app } },
        "spec": {}, "status": { "podIP": ip, "phase": "Running" },
    })
}

fn policy(namespace: &str, spec: Value) -> Value {
    json!({
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": namespace }, "spec": spec,
    })
}

fn rules(objects: &[Value]) -> Vec<&'static str> {
    let findings = lint(&cluster(), "cluster.local", objects);
    findings.iter().map(|finding| finding.rule).collect()
}

/// A healthy cluster in which one object of that kind was changed.
fn changed(kind: &str, change: impl Fn(&mut Value)) -> Vec<Value> {
    let mut all = healthy();
    change(all.iter_mut().find(|object| object["kind"] == kind).unwrap());
    all
}

#[test]
fn nothing_is_wrong_with_a_healthy_cluster() {
    assert_eq!(lint(&cluster(), "cluster.local", &healthy()), []);
    let list = json!({ "kind": "List", "items": healthy() });
    assert_eq!(lint(&cluster(), "cluster.local", &[list]), []);
}

#[test]
fn an_empty_cluster_lacks_everything() {
    assert_eq!(rules(&[]), ["no-gateway", "no-service", "no-workload-group"]);
}

#[test]
fn each_mistake_has_its_rule() {
    let cases: &[(&str, &str, &str, Value)] = &[
        ("gateway-class", "Gateway", "/spec/gatewayClassName", json!("istio-remote")),
        ("gateway-address", "Gateway", "/spec/addresses", json!([])),
        ("gateway-address", "Gateway", "/spec/addresses/0/type", json!("IPAddress")),
        ("gateway-address", "Gateway", "/spec/addresses/0/value", json!("waypoint-pool")),
        ("gateway-without-address", "Gateway", "/status/addresses", json!([])),
        ("gateway-without-address", "Gateway", "/status", Value::Null),
        ("service-port", "Service", "/spec/ports/0/port", json!(15009)),
        ("service-labels", "Service", "/metadata/labels", json!({})),
        ("service-selector", "Service", "/spec/selector", Value::Null),
        ("service-selector", "Service", "/spec/selector", json!({ "app": "other" })),
        ("group-account", "WorkloadGroup", "/spec/template/serviceAccount", json!("")),
        ("group-account", "WorkloadGroup", "/spec/template/serviceAccount", json!("other")),
        ("group-port", "WorkloadGroup", "/spec/template/ports/hbone", json!(21002)),
        (
            "member-labels",
            "WorkloadEntry",
            "/metadata/labels/gateway.networking.k8s.io~1gateway-name",
            json!("x"),
        ),
    ];
    for (rule, kind, place, value) in cases {
        let all = changed(kind, |object| *object.pointer_mut(place).unwrap() = value.clone());
        assert_eq!(rules(&all), [*rule], "{place} = {value}");
    }
    let all = changed("WorkloadGroup", |group| {
        group["spec"]["metadata"]["labels"]["networking.istio.io/tunnel"] = json!("none");
    });
    assert_eq!(rules(&all), ["group-labels"]);
}

#[test]
fn addresses_must_not_overlap() {
    let with = |object: Value| rules(&[healthy(), vec![object]].concat());
    assert_eq!(with(member("10.244.1.11", "two")), ["address-overlap"]);
    assert_eq!(with(member("10.8.3.17", "two")), ["address-overlap"]);
    assert_eq!(with(member("10.8.3.18", "two")), [""; 0]);
    let service = json!({
        "kind": "Service", "metadata": { "name": "s", "namespace": "shop" },
        "spec": { "clusterIP": "10.8.3.17", "clusterIPs": ["10.8.3.17"] },
    });
    assert_eq!(with(service), ["address-overlap"]);
    // A pod that is over has given its address back, and one in the host's network has none of its own.
    let mut done = pod("job", "job", "10.8.3.17");
    done["status"]["phase"] = json!("Succeeded");
    assert_eq!(with(done), [""; 0]);
    let mut host = pod("agent", "agent", "10.8.3.17");
    host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(with(host), [""; 0]);
}

#[test]
fn who_is_not_allowed_has_no_waypoint() {
    let allowed = |allowed: Value| {
        changed("Gateway", |gateway| {
            gateway["spec"]["listeners"][0]["allowedRoutes"] = allowed.clone();
        })
    };
    let selector = |selector: Value| {
        allowed(json!({ "namespaces": { "from": "Selector", "selector": selector } }))
    };
    assert_eq!(rules(&allowed(Value::Null)), ["not-allowed"]);
    assert_eq!(rules(&allowed(json!({ "namespaces": { "from": "Same" } }))), ["not-allowed"]);
    assert_eq!(rules(&selector(json!({ "matchLabels": { "a": "b" } }))), ["not-allowed"]);
    let bound = json!({ "istio.io/use-waypoint": "waypoint-pool" });
    assert_eq!(rules(&selector(json!({ "matchLabels": bound }))), [""; 0]);
    let exists = json!([{ "key": "istio.io/use-waypoint", "operator": "Exists" }]);
    assert_eq!(rules(&selector(json!({ "matchExpressions": exists }))), [""; 0]);
    let missing = json!([{ "key": "istio.io/use-waypoint", "operator": "DoesNotExist" }]);
    assert_eq!(rules(&selector(json!({ "matchExpressions": missing }))), ["not-allowed"]);
}

#[test]
fn a_policy_at_pods_must_let_the_pool_in() {
    let pool = "cluster.local/ns/waypoint-pool/sa/waypoint-pool";
    let from = |source: Value| json!({ "rules": [{ "from": [{ "source": source }] }] });
    let refuses = |spec: Value| {
        let rules = rules(&[healthy(), vec![policy("shop", spec)]].concat());
        assert!(rules.is_empty() || rules == ["policy-without-pool"], "{rules:?}");
        !rules.is_empty()
    };
    for (spec, expected) in [
        (from(json!({ "principals": ["cluster.local/ns/shop/sa/web"] })), true),
        (from(json!({ "principals": [pool] })), false),
        (from(json!({ "principals": ["other/ns/waypoint-pool/sa/waypoint-pool"] })), true),
        (from(json!({ "principals": ["*/sa/waypoint-pool"] })), false),
        (from(json!({ "principals": ["cluster.local/ns/*"] })), false),
        (from(json!({ "principals": ["*"] })), false),
        (from(json!({ "namespaces": ["waypoint-pool"] })), false),
        (from(json!({ "namespaces": ["shop"] })), true),
        (from(json!({ "serviceAccounts": ["waypoint-pool/waypoint-pool"] })), false),
        (from(json!({ "notNamespaces": ["shop"] })), false),
        (from(json!({ "notPrincipals": [pool] })), true),
        (from(json!({ "principals": [pool], "ipBlocks": ["10.0.0.0/8"] })), true),
        (json!({}), true),
        (json!({ "rules": [{}] }), false),
        (json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] }), true),
        (json!({ "rules": [{ "to": [{ "operation": { "ports": ["80"] } }] }] }), false),
        (json!({ "action": "DENY", "rules": [{}] }), false),
        (json!({ "targetRefs": [{ "kind": "Service", "name": "app" }], "rules": [] }), false),
        (json!({ "selector": { "matchLabels": { "app": "other" } }, "rules": [] }), false),
        (json!({ "selector": { "matchLabels": { "app": "app" } }, "rules": [] }), true),
    ] {
        assert_eq!(refuses(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn another_policy_may_let_the_pool_in() {
    let named = |name: &str, namespace: &str, spec: Value| {
        let mut policy = policy(namespace, spec);
        policy["metadata"]["name"] = json!(name);
        policy
    };
    let web = json!({ "rules": [{ "from": [{ "source": { "namespaces": ["shop"] } }] }] });
    let pool =
        json!({ "rules": [{ "from": [{ "source": { "namespaces": ["waypoint-pool"] } }] }] });
    let with = |more: &[Value]| rules(&[healthy(), more.to_vec()].concat());
    assert_eq!(with(&[named("web", "shop", web.clone())]), ["policy-without-pool"]);
    let both = [named("web", "shop", web.clone()), named("pool", "istio-system", pool)];
    assert_eq!(with(&both), [""; 0]);
    // Elsewhere nobody uses the pool.
    assert_eq!(with(&[named("web", "pay", web)]), [""; 0]);
}

#[test]
fn a_finding_says_what_to_do() {
    let all = changed("Gateway", |gateway| gateway["status"] = Value::Null);
    let findings = lint(&cluster(), "cluster.local", &all);
    let text = findings[0].to_string();
    assert!(
        text.starts_with("error [gateway-without-address] Gateway waypoint-pool/waypoint-pool: "),
        "{text}"
    );
    assert!(text.contains("--subresource=status"), "{text}");
}

#[test]
fn a_clusters_shards_are_looked_at_and_its_users_are_named() {
    let config = crate::PoolConfig::of(json!({ "clusters": [{
        "name": "a", "istiod": "i:15012", "root_file": "/r", "listen": "0.0.0.0:21001",
        "shards": ["s00"], "workload_group": "members",
    }] }))
    .unwrap();
    let (a, pool) = (&config.clusters[0], &config.pool);
    let mut all = objects::of(a, pool);
    let found = |all: &[Value]| -> Vec<(String, &str)> {
        of(a, pool, all).into_iter().map(|finding| (finding.object, finding.rule)).collect()
    };
    let name = |name: &str| format!("Gateway waypoint-pool/{name}");
    let lacks = "gateway-without-address";
    assert_eq!(found(&all), [(name("waypoint-pool"), lacks), (name("waypoint-pool-s00"), lacks)]);
    for (gateway, status) in
        all.iter_mut().filter(|one| one["kind"] == "Gateway").zip(objects::statuses(a, pool))
    {
        gateway["status"] = status["status"].clone();
    }
    assert_eq!(found(&all), []);
    all.push(json!({
        "kind": "Namespace",
        "metadata": { "name": "crm", "labels": {
            "istio.io/use-waypoint": "waypoint-pool-s00", "istio.io/use-waypoint-namespace": "waypoint-pool",
        } },
    }));
    assert_eq!(users(a, pool, &all), ["Namespace crm"]);
    all.retain(|one| one["kind"] != "WorkloadGroup");
    let missing = ("WorkloadGroup waypoint-pool/members".to_owned(), "no-workload-group");
    assert_eq!(found(&all), [missing]);
}
