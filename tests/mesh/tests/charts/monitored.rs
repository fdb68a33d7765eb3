//! Monitors find the pods' and Services' ports; alerts and dashboard are the files.

use crate::selected::{container_port, matches, selected};
use crate::variants::Variant;
use crate::world::{Rendered, key, read};
use cairn_mesh_tests::yaml;
use serde_json::{Value, json};

pub fn all(all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all {
        monitors(variant.name, variant.is_pool(), rendered);
        if let Some(map) = rendered.find("ConfigMap", &Variant::name_of("dashboard")) {
            let text = map["data"]["cairn.json"].as_str().unwrap();
            let found: Value = serde_json::from_str(text).unwrap();
            let file: Value = serde_json::from_str(&read("grafana/cairn.json")).unwrap();
            assert_eq!(found, file, "{}", variant.name);
            assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        }
    }
    let sets = |name: &str| all.iter().any(|(_, rendered)| rendered.all(name).count() > 0);
    assert!(sets("PodMonitor") && sets("ServiceMonitor") && sets("PrometheusRule"));
}

/// What is true of every pool, whoever has rendered it.
pub fn monitors(what: &str, is_pool: bool, rendered: &Rendered) {
    for rule in rendered.all("PrometheusRule") {
        let file = yaml::document(&read("helm/cairn/files/alerts.yaml")).unwrap();
        assert_eq!(rule["spec"], file, "{what}");
    }
    for monitor in rendered.all("PodMonitor").filter(|_| is_pool) {
        let found = selected(rendered, &monitor["spec"]["selector"]);
        let mut members = rendered.all("Deployment").map(|one| key(one).1).collect::<Vec<_>>();
        members.retain(|name| name.contains("-members"));
        assert_eq!(found, members, "{what}");
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        for name in found {
            let port = container_port(rendered.get("Deployment", name), &endpoint["port"]);
            assert_eq!(port, Some(15020), "{what}: {name}");
        }
        assert_eq!(endpoint["path"], "/stats/prometheus", "{what}");
    }
    for monitor in rendered.all("PodMonitor").filter(|_| !is_pool) {
        let pods: Value = serde_json::from_str(RENDERED).unwrap();
        let template = &pods["spec"]["template"];
        assert!(matches(&monitor["spec"]["selector"], &template["metadata"]["labels"]), "{what}");
        let port = container_port(&pods, &monitor["spec"]["podMetricsEndpoints"][0]["port"]);
        assert_eq!(port, Some(15020), "{what}");
        assert_eq!(monitor["spec"]["namespaceSelector"], json!({ "any": true }), "{what}");
    }
    for monitor in rendered.all("ServiceMonitor") {
        let selector = &monitor["spec"]["selector"];
        let services: Vec<&Value> = rendered
            .all("Service")
            .filter(|service| matches(selector, &service["metadata"]["labels"]))
            .collect();
        let mut all = rendered.all("Service").map(|one| key(one).1).collect::<Vec<_>>();
        all.retain(|name| !name.contains("-members"));
        assert_eq!(services.iter().map(|one| key(one).1).collect::<Vec<_>>(), all, "{what}");
        for service in services {
            let mut ports = service["spec"]["ports"].as_array().unwrap().iter();
            let name = &monitor["spec"]["endpoints"][0]["port"];
            assert!(ports.any(|port| port["name"] == *name), "{what}: {}", key(service).1);
        }
    }
}

/// A waypoint that istiod deploys.
const RENDERED: &str = include_str!("../../../data/rendered/deploy.json");
