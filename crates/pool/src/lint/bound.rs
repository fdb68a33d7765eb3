//! Who uses the pool.

use super::{Finding, Objects, Severity, label, name_of, namespace_of, title};
use crate::cluster::UserCluster;
use serde_json::Value;
use std::collections::BTreeSet;

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";

/// Namespaces and services that name the pool's Gateway.
pub(super) struct Bound<'a> {
    /// What has the label, for messages.
    objects: Vec<&'a Value>,
    /// Namespaces of which at least one service uses the pool.
    pub(super) namespaces: BTreeSet<&'a str>,
}

impl<'a> Bound<'a> {
    /// Looks at namespaces, services and service entries.
    pub(super) fn find(cluster: &UserCluster, objects: &Objects<'a>) -> Self {
        let mut bound = Bound { objects: Vec::new(), namespaces: BTreeSet::new() };
        for namespace in objects.of("Namespace") {
            if names(cluster, namespace, name_of(namespace)) {
                bound.objects.push(namespace);
                bound.namespaces.insert(name_of(namespace));
            }
        }
        for kind in ["Service", "ServiceEntry"] {
            for object in objects.of(kind) {
                if names(cluster, object, namespace_of(object)) {
                    bound.objects.push(object);
                    bound.namespaces.insert(namespace_of(object));
                }
            }
        }
        bound
    }

    /// `Kind namespace/name` of each.
    pub(super) fn titles(&self) -> Vec<String> {
        self.objects.iter().map(|object| title(object)).collect()
    }

    /// The Gateway lets them in.
    pub(super) fn admitted(
        &self,
        cluster: &UserCluster,
        objects: &Objects<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let Some(gateway) = objects.named("Gateway", &cluster.namespace, &cluster.name) else {
            return;
        };
        for object in &self.objects {
            let namespace = match object["kind"].as_str() {
                Some("Namespace") => name_of(object),
                _ => namespace_of(object),
            };
            if !admits(gateway, namespace, objects) {
                findings.push(Finding {
                    rule: "not-allowed",
                    severity: Severity::Error,
                    object: title(object),
                    message: format!(
                        "uses the pool, whose Gateway does not allow the namespace {namespace}: it has no waypoint, and no L7 policy holds"
                    ),
                    fix: format!(
                        "let allowedRoutes of the listener of {} name it, or give the namespace the label that it asks for",
                        title(gateway)
                    ),
                });
            }
        }
    }
}

/// It asks for this pool, wholly or for a part of its traffic.
fn names(cluster: &UserCluster, object: &Value, own: &str) -> bool {
    [(USE, USE_NAMESPACE), (CANARY, CANARY_NAMESPACE)].into_iter().any(|(name, namespace)| {
        label(object, name) == Some(&cluster.name)
            && label(object, namespace).unwrap_or(own) == cluster.namespace
    })
}

/// Gateway API: without `allowedRoutes` only the Gateway's own namespace.
fn admits(gateway: &Value, namespace: &str, objects: &Objects<'_>) -> bool {
    let listeners = gateway["spec"]["listeners"].as_array().into_iter().flatten();
    listeners.filter(|listener| listener["protocol"] == "HBONE").any(|listener| {
        let allowed = &listener["allowedRoutes"]["namespaces"];
        match allowed["from"].as_str() {
            Some("All") => true,
            Some("Selector") => {
                let of = objects.of("Namespace").find(|object| name_of(object) == namespace);
                of.is_some_and(|object| {
                    matches(&allowed["selector"], &object["metadata"]["labels"])
                })
            }
            _ => namespace == namespace_of(gateway),
        }
    })
}

/// Kubernetes: `LabelSelector`.
fn matches(selector: &Value, labels: &Value) -> bool {
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    super::selects(&selector["matchLabels"], labels)
        && expressions.into_iter().all(|expression| {
            let value = expression["key"].as_str().and_then(|key| labels.get(key));
            let listed = || {
                let values = expression["values"].as_array();
                value.is_some_and(|value| values.is_some_and(|values| values.contains(value)))
            };
            match expression["operator"].as_str() {
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
}
