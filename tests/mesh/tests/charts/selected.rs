//! Selectors select what is meant, names and ports exist, and network policies let in who has to come in.

use crate::variants::Variant;
use crate::world::{Rendered, key};
use cairn_mesh_tests::admission::Workload;
use serde_json::{Value, json};

pub fn all(all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all.iter().filter(|(variant, _)| variant.is_pool()) {
        pool(variant.name, rendered);
    }
}

/// What is true of every pool, whoever has rendered it.
pub fn pool(what: &str, rendered: &Rendered) {
    for object in &rendered.objects {
        let (kind, name) = key(object);
        let what = format!("{what}: {kind} {name}");
        match kind {
            "Deployment" => deployment(&what, rendered, object),
            "Service" => service(&what, rendered, object),
            "PodDisruptionBudget" => {
                let found = selected(rendered, &object["spec"]["selector"]);
                assert_eq!(found, meant(rendered, object), "{what}");
            }
            "NetworkPolicy" => network_policy(&what, rendered, object),
            "RoleBinding" => binding(&what, rendered, object),
            _ => {}
        }
    }
}

/// Names of the Deployments whose pods have a component.
fn of_component<'a>(rendered: &'a Rendered, component: &str) -> Vec<&'a str> {
    let deployments = rendered
        .all("Deployment")
        .filter(|object| object["metadata"]["labels"]["app.kubernetes.io/component"] == component);
    deployments.map(|object| key(object).1).collect()
}

/// Those of the component that the object itself is of.
fn meant<'a>(rendered: &'a Rendered, object: &Value) -> Vec<&'a str> {
    let component = object["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap();
    let found = of_component(rendered, component);
    assert!(!found.is_empty(), "nobody is {component}");
    found
}

/// Names of the Deployments whose pods a selector selects.
pub fn selected<'a>(rendered: &'a Rendered, selector: &Value) -> Vec<&'a str> {
    let deployments = rendered
        .all("Deployment")
        .filter(|object| matches(selector, &object["spec"]["template"]["metadata"]["labels"]));
    deployments.map(|object| key(object).1).collect()
}

/// Kubernetes' LabelSelector.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    equal.into_iter().all(|(name, value)| labels[name] == *value)
        && expressions.all(|one| {
            assert_eq!(one["operator"], "In", "no other is known here");
            let label = &labels[one["key"].as_str().unwrap()];
            one["values"].as_array().unwrap().contains(label)
        })
}

fn deployment(what: &str, rendered: &Rendered, object: &Value) {
    let name = key(object).1;
    assert_eq!(selected(rendered, &object["spec"]["selector"]), [name], "{what}");
    let pod = &object["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().unwrap();
    assert!(rendered.find("ServiceAccount", account).is_some(), "{what}: {account}");
    let container = &pod["containers"][0];
    let probe = &container["readinessProbe"]["httpGet"];
    assert_eq!(probe["path"], "/healthz/ready", "{what}");
    assert!(container_port(object, &probe["port"]).is_some(), "{what}: {probe}");
    let volumes = pod["volumes"].as_array().unwrap();
    let mounts = container["volumeMounts"].as_array().unwrap();
    let names =
        |list: &[Value]| -> Vec<Value> { list.iter().map(|one| one["name"].clone()).collect() };
    assert_eq!(names(volumes), names(mounts), "{what}: each volume is mounted once");
    for spread in pod["topologySpreadConstraints"].as_array().into_iter().flatten() {
        assert_eq!(
            selected(rendered, &spread["labelSelector"]),
            of_component(
                rendered,
                object["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap(),
            ),
            "{what}"
        );
    }
}

/// The number of a container's port, by name or number.
pub fn container_port(deployment: &Value, port: &Value) -> Option<u64> {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let mut ports = containers.iter().flat_map(|one| one["ports"].as_array().into_iter().flatten());
    let found = ports.find(|one| one["name"] == *port || one["containerPort"] == *port)?;
    found["containerPort"].as_u64()
}

fn service(what: &str, rendered: &Rendered, object: &Value) {
    let selector = json!({ "matchLabels": object["spec"]["selector"] });
    let found = selected(rendered, &selector);
    assert_eq!(found, meant(rendered, object), "{what}");
    for port in object["spec"]["ports"].as_array().unwrap() {
        for name in &found {
            let number = container_port(rendered.get("Deployment", name), &port["targetPort"]);
            // A headless Service has no proxy that could change the port.
            assert!(number.is_some(), "{what}: {name} has no {}", port["targetPort"]);
            assert_eq!(port["port"].as_u64(), number, "{what}");
        }
    }
}

fn network_policy(what: &str, rendered: &Rendered, object: &Value) {
    let found = selected(rendered, &object["spec"]["podSelector"]);
    assert_eq!(found, meant(rendered, object), "{what}");
    assert_eq!(object["spec"]["policyTypes"], json!(["Ingress"]), "{what}");
    for rule in object["spec"]["ingress"].as_array().unwrap() {
        let ports = rule["ports"].as_array().unwrap_or_else(|| panic!("{what}: all ports"));
        for port in ports.iter().filter(|port| port["endPort"].is_null()) {
            if found.iter().any(|name| name.contains("members")) && port["port"] == 15090 {
                continue; // Envoy's metrics port is not announced, 15020 has the same
            }
            for name in &found {
                let deployment = rendered.get("Deployment", name);
                let known = container_port(deployment, &port["port"]).is_some();
                assert!(known, "{what}: {name} has no {}", port["port"]);
            }
        }
        for peer in rule["from"].as_array().into_iter().flatten() {
            if peer["podSelector"].is_object() && peer["namespaceSelector"].is_null() {
                let found = selected(rendered, &peer["podSelector"]);
                let component = &peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"];
                assert_eq!(found, of_component(rendered, component.as_str().unwrap()), "{what}");
            }
        }
    }
}

fn binding(what: &str, rendered: &Rendered, object: &Value) {
    let role = object["roleRef"]["name"].as_str().unwrap();
    assert!(rendered.find("Role", role).is_some(), "{what}: {role}");
    for subject in object["subjects"].as_array().unwrap() {
        let account = rendered.get("ServiceAccount", subject["name"].as_str().unwrap());
        assert_eq!(subject["namespace"], account["metadata"]["namespace"], "{what}");
        let name = key(account).1;
        let mut pods = rendered.all("Deployment").filter_map(Workload::of);
        let used = pods.any(|pod| pod.template["spec"]["serviceAccountName"] == name);
        assert!(used, "{what}: {name} is nobody's");
    }
}

/// Who comes.
enum Peer<'a> {
    /// A pod of this release.
    Component(&'a str),
    /// A pod of a namespace of this name.
    Namespace(&'a str),
}

/// Who needs what: docs/security.md.
pub fn ports(all: &[(&'static Variant, Rendered)]) {
    use Peer::{Component, Namespace};
    let policed = |rendered: &Rendered| rendered.all("NetworkPolicy").count() > 0;
    for (variant, rendered) in all.iter().filter(|(_, rendered)| policed(rendered)) {
        let few = variant.set.iter().any(|set| set.contains("hboneFrom"));
        let keda = variant.scaled_by == "keda";
        let (anybody, monitoring) = (Namespace("shop"), Namespace("monitoring"));
        let [member, scaler, registrar] = ["member", "scaler", "registrar"].map(Component);
        let mut cases = vec![
            (&scaler, "member", 15020, true),
            (&registrar, "member", 15020, true),
            (&registrar, "member", 15021, true),
            (&monitoring, "member", 15020, true),
            (&monitoring, "member", 15090, true),
        ];
        for port in variant.ports {
            cases.push((&anybody, "member", u64::from(*port), !few));
            cases.push((&member, "member", u64::from(*port), true));
        }
        for port in [1, 15000, 15008, 15020, 15021, 15090, 21064] {
            cases.push((&anybody, "member", port, false));
        }
        let keda_namespace = Namespace("keda");
        if !variant.scaled_by.is_empty() {
            cases.extend([
                (&keda_namespace, "scaler", 9090, keda),
                (&member, "scaler", 15020, true),
                (&monitoring, "scaler", 15020, true),
                (&anybody, "scaler", 9090, false),
                (&anybody, "scaler", 15020, false),
            ]);
        }
        if variant.registrar {
            cases.extend([
                (&monitoring, "registrar", 15020, true),
                (&anybody, "registrar", 15020, false),
                (&member, "registrar", 15020, false),
            ]);
        }
        for (peer, target, port, reaches) in cases {
            let found = is_let_in(rendered, peer, target, port);
            let who = match peer {
                Component(name) | Namespace(name) => name,
            };
            assert_eq!(found, reaches, "{}: {who} to {target}:{port}", variant.name);
        }
        let everybody = [&member, &scaler, &registrar, &anybody, &monitoring, &keda_namespace];
        for peer in everybody {
            for target in ["member", "scaler", "registrar"] {
                let there = !of_component(rendered, target).is_empty();
                assert!(!there || !is_let_in(rendered, peer, target, 15000), "15000 of {target}");
            }
        }
    }
}

/// As Kubernetes has it: who is selected by a policy lets in what a rule allows, and nothing else.
fn is_let_in(rendered: &Rendered, peer: &Peer<'_>, target: &str, port: u64) -> bool {
    let labels_of = |component: &str| {
        let name = of_component(rendered, component)[..].first().copied();
        name.map(|name| {
            rendered.get("Deployment", name)["spec"]["template"]["metadata"]["labels"].clone()
        })
    };
    let target = labels_of(target).unwrap();
    let policies = rendered.all("NetworkPolicy");
    let policies: Vec<&Value> =
        policies.filter(|policy| matches(&policy["spec"]["podSelector"], &target)).collect();
    let admits = |from: &Value| match peer {
        Peer::Component(component) => {
            from["ipBlock"].is_null()
                && from["namespaceSelector"].is_null()
                && labels_of(component).is_some_and(|labels| matches(&from["podSelector"], &labels))
        }
        Peer::Namespace(name) => {
            let labels = json!({ "kubernetes.io/metadata.name": name });
            from["namespaceSelector"].is_object()
                && from["podSelector"].is_null()
                && matches(&from["namespaceSelector"], &labels)
        }
    };
    let is_of = |range: &Value| {
        let first = range["port"].as_u64().unwrap();
        (first..=range["endPort"].as_u64().unwrap_or(first)).contains(&port)
    };
    let mut rules = policies.iter().flat_map(|one| one["spec"]["ingress"].as_array().unwrap());
    let let_in = rules.any(|rule| {
        let from = rule["from"].as_array();
        rule["ports"].as_array().unwrap().iter().any(is_of)
            && from.is_none_or(|from| from.is_empty() || from.iter().any(admits))
    });
    // A peer that is not there reaches nothing that it needs, and needs nothing.
    let absent = matches!(peer, Peer::Component(name) if of_component(rendered, name).is_empty());
    policies.is_empty() || let_in || (absent && port != 15000)
}
