//! A user's cluster behind its API server.

use crate::failure::Failure;
use cairn_kube::{Access, Client, Error, Kind, Selection};
use cairn_pool::config::Cluster;
use serde_json::Value;

/// A kind of the pool's objects, or of those that matter to it.
macro_rules! kind {
    ($name:ident, $group:literal, $version:literal, $kind:literal, $plural:literal, $namespaced:literal) => {
        #[doc = concat!("`", $kind, "`.")]
        pub const $name: Kind = Kind {
            group: $group,
            version: $version,
            kind: $kind,
            plural: $plural,
            namespaced: $namespaced,
        };
    };
}

kind!(NAMESPACE, "", "v1", "Namespace", "namespaces", false);
kind!(ACCOUNT, "", "v1", "ServiceAccount", "serviceaccounts", true);
kind!(SERVICE, "", "v1", "Service", "services", true);
kind!(POD, "", "v1", "Pod", "pods", true);
kind!(EVENT, "", "v1", "Event", "events", true);
kind!(SECRET, "", "v1", "Secret", "secrets", true);
kind!(CONFIG_MAP, "", "v1", "ConfigMap", "configmaps", true);
kind!(GATEWAY, "gateway.networking.k8s.io", "v1", "Gateway", "gateways", true);
kind!(GROUP, "networking.istio.io", "v1", "WorkloadGroup", "workloadgroups", true);
kind!(ENTRY, "networking.istio.io", "v1", "WorkloadEntry", "workloadentries", true);
kind!(SERVICE_ENTRY, "networking.istio.io", "v1", "ServiceEntry", "serviceentries", true);
kind!(POLICY, "security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies", true);

/// The kind of one of the pool's own objects.
pub fn kind_of(object: &Value) -> Option<&'static Kind> {
    let kinds = [&NAMESPACE, &ACCOUNT, &SERVICE, &GATEWAY, &GROUP];
    kinds.into_iter().find(|kind| object["kind"] == kind.kind)
}

/// `Kind namespace/name`.
pub fn title(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or("object");
    match text("namespace") {
        "" => format!("{kind} {}", text("name")),
        namespace => format!("{kind} {namespace}/{}", text("name")),
    }
}

/// Name and namespace.
pub fn place(object: &Value) -> (&str, &str) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

/// A client of the cluster.
pub async fn client(cluster: &Cluster) -> Result<Client, Failure> {
    let Some(file) = &cluster.kubeconfig else {
        return Err(Failure::new(format!("{}: its API server is not known", cluster.name))
            .hint("give it a `kubeconfig` in the file"));
    };
    Client::new(&Access::Kubeconfig(file.clone())).await.map_err(|error| of(cluster, &error))
}

/// What failed there.
pub fn of(cluster: &Cluster, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("{}: {error}", cluster.name))
}

/// Objects of these kinds, of the whole cluster.
pub async fn all(client: &Client, kinds: &[&Kind]) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    for kind in kinds {
        all.extend(client.list(kind, Selection::default()).await?);
    }
    Ok(all)
}
