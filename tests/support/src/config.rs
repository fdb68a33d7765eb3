//! Configuration of a mesh, as the file source reads it.

use crate::hbone_backend::HboneBackend;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// One mesh: what its file says. Methods add to it.
#[derive(Debug, Clone)]
pub struct MeshSpec {
    /// Name.
    pub name: String,
    value: Value,
}

impl MeshSpec {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::named("test")
    }

    /// With nothing in it but its name.
    pub fn named(name: &str) -> Self {
        MeshSpec { name: name.to_owned(), value: json!({}) }
    }

    /// Sets any field of the mesh.
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.value[name] = value;
        self
    }

    fn push(mut self, list: &str, item: Value) -> Self {
        let object = self.value.as_object_mut().unwrap();
        let list = object.entry(list).or_insert_with(|| json!([]));
        list.as_array_mut().unwrap().push(item);
        self
    }

    /// A destination as it stands in the file.
    pub fn destination(self, destination: Value) -> Self {
        self.push("destinations", destination)
    }

    /// An HTTP service port `ip:port`, with these routes for every host.
    pub fn http(self, vip: &str, routes: Value) -> Self {
        self.http_with(vip, routes, json!({}))
    }

    /// As [`MeshSpec::http`], with more fields of the HTTP chain.
    pub fn http_with(self, vip: &str, routes: Value, more: Value) -> Self {
        let mut destination = address(vip);
        destination["http"] = chain(routes, more);
        self.destination(destination)
    }

    /// An opaque TCP service port.
    pub fn tcp(self, vip: &str, cluster: &str) -> Self {
        let mut destination = address(vip);
        destination["tcp"] = json!({ "clusters": [{ "name": cluster }] });
        self.destination(destination)
    }

    /// A port of unknown protocol.
    pub fn auto(self, vip: &str, routes: Value, cluster: &str) -> Self {
        let mut destination = address(vip);
        destination["http"] = chain(routes, json!({}));
        destination["tcp"] = json!({ "clusters": [{ "name": cluster }] });
        self.destination(destination)
    }

    /// A cluster that speaks HTTP/1.1, and its endpoints.
    pub fn cluster(self, name: &str, endpoints: Vec<Value>) -> Self {
        self.cluster_with(name, json!({}), endpoints)
    }

    /// As [`MeshSpec::cluster`], with more fields of the cluster.
    pub fn cluster_with(self, name: &str, more: Value, endpoints: Vec<Value>) -> Self {
        let mut cluster = json!({ "name": name });
        merge(&mut cluster, more);
        self.push("clusters", cluster)
            .push("endpoints", json!({ "cluster": name, "endpoints": endpoints }))
    }

    /// A workload as it stands in the file.
    pub fn workload(self, workload: Value) -> Self {
        self.push("workloads", workload)
    }

    /// The mesh's resources.
    pub fn resources(&self) -> Value {
        self.value.clone()
    }

    /// The mesh as an item of the file's `meshes`, with more fields.
    pub fn mesh(&self, more: Value) -> Value {
        let mut mesh = self.value.clone();
        mesh["name"] = json!(self.name);
        merge(&mut mesh, more);
        mesh
    }
}

impl Default for MeshSpec {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets the fields of `more`, an object, in `value`.
pub fn merge(value: &mut Value, more: Value) {
    if let Value::Object(more) = more {
        for (name, field) in more {
            value[name] = field;
        }
    }
}

fn address(vip: &str) -> Value {
    let vip: SocketAddr = vip.parse().unwrap();
    json!({ "name": format!("vip|{vip}"), "namespace": "shop", "addresses": [vip.ip().to_string()], "port": vip.port() })
}

fn chain(routes: Value, more: Value) -> Value {
    let mut chain = json!({
        "routes": {
            "name": "routes",
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        },
    });
    merge(&mut chain, more);
    chain
}

/// An endpoint behind HBONE: `address` is what CONNECT names, the backend is where it is sent.
pub fn hbone(backend: &HboneBackend, address: &str, identity: &str) -> Value {
    hbone_at(backend.addr, address, identity)
}

/// As [`hbone`], with any outer address.
pub fn hbone_at(outer: SocketAddr, address: &str, identity: &str) -> Value {
    json!({
        "address": address,
        "transport": "hbone",
        "tunnel_address": outer.to_string(),
        "identities": [identity],
    })
}

/// An endpoint that is reached by plain TCP.
pub fn plain(address: SocketAddr) -> Value {
    json!({ "address": address.to_string(), "transport": "plain" })
}

/// Routes that send everything to one cluster, without timeout or retries.
pub fn all_to(cluster: &str) -> Value {
    json!([to(cluster, json!({}))])
}

/// A route that sends everything to one cluster, with more fields of the action.
pub fn to(cluster: &str, more: Value) -> Value {
    at(json!({ "prefix": "/" }), cluster, more)
}

/// A route that sends some paths to one cluster, with more fields of the action.
pub fn at(path: Value, cluster: &str, more: Value) -> Value {
    let mut action = json!({ "cluster": cluster, "timeout": "0s" });
    merge(&mut action, more);
    json!({ "match": { "path": path }, "route": action })
}

/// A filter with one policy.
pub fn rbac(action: &str, permissions: Value, principals: Value) -> Value {
    json!({ "rbac": rbac_policy(action, permissions, principals) })
}

/// One policy, for connections.
pub fn rbac_policy(action: &str, permissions: Value, principals: Value) -> Value {
    json!({
        "action": action,
        "policies": { "policy": { "permissions": permissions, "principals": principals } },
    })
}
