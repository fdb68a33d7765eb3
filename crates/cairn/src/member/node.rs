//! Who a member is to a cluster's istiod: one node that asks for configuration, another that registers.
//!
//! The node that asks has an address that no WorkloadEntry has. istiod tells one arbitrary connection of an address when
//! an entry of that address changes, and does so before it has indexed the entry; a node whose services depend on its
//! labels alone is not concerned (seen on istiod: contract of the pool, section 3).

use super::settings::{Who, locality};
use crate::waypoint::node::{ISTIO_VERSION, proto_node};
use cairn_pool::config::{Cluster, Pool};
use cairn_proto::envoy::envoy::config::core::v3 as core;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses for documentation (RFC 5737, RFC 3849): nobody's.
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Address by which this cluster's ztunnels reach the member.
pub fn address(cluster: &Cluster, who: &Who) -> IpAddr {
    cluster.address.unwrap_or(who.address)
}

/// Region, zone and subzone as this cluster calls them.
pub fn place(cluster: &Cluster, who: &Who) -> Option<[String; 3]> {
    cluster.locality.as_deref().map(locality).or_else(|| who.locality.clone())
}

/// The node that asks for configuration.
pub fn asking(cluster: &Cluster, pool: &Pool, who: &Who) -> core::Node {
    let nobody = if address(cluster, who).is_ipv6() { NOBODY_V6 } else { NOBODY_V4 };
    node(cluster, pool, who, nobody, cluster.node_labels(pool), Map::new())
}

/// The node that registers: istiod makes a WorkloadEntry of its address and labels for as long as it is connected.
pub fn registering(cluster: &Cluster, pool: &Pool, who: &Who) -> core::Node {
    let mut more = Map::new();
    more.insert("AUTO_REGISTER_GROUP".to_owned(), json!(cluster.workload_group(pool)));
    let labels = cluster.registration_labels(pool);
    node(cluster, pool, who, address(cluster, who), labels, more)
}

fn node(
    cluster: &Cluster,
    pool: &Pool,
    who: &Who,
    ip: IpAddr,
    labels: BTreeMap<String, String>,
    more: Map<String, Value>,
) -> core::Node {
    let namespace = cluster.namespace(pool);
    let mut metadata = more;
    let mut put = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
    put("NAME", json!(who.name));
    put("NAMESPACE", json!(namespace));
    put("SERVICE_ACCOUNT", json!(cluster.service_account(pool)));
    put("INSTANCE_IPS", json!(ip.to_string()));
    put("ISTIO_VERSION", json!(ISTIO_VERSION));
    put("LABELS", json!(labels));
    put("METADATA_DISCOVERY", json!("true"));
    if let Some(id) = cluster.cluster_id.as_deref().filter(|id| !id.is_empty()) {
        put("CLUSTER_ID", json!(id));
    }
    if let Some(network) = cluster.network.as_deref().filter(|network| !network.is_empty()) {
        put("NETWORK", json!(network));
    }
    let id = format!("waypoint~{ip}~{}.{namespace}~{namespace}.svc.{}", who.name, cluster.domain);
    let group = format!("{}.{namespace}", cluster.gateway(pool));
    proto_node(id, group, &metadata, place(cluster, who).as_ref())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use cairn_pool::PoolConfig;
    use cairn_proto::envoy::google::protobuf::value::Kind;

    fn parts() -> (PoolConfig, Who) {
        let config = PoolConfig::of(json!({ "clusters": [{
            "name": "a", "istiod": "istiod:15012", "root_file": "/r", "listen": "0.0.0.0:21001",
            "shards": ["s00"], "cluster_id": "cluster-a",
        }] }));
        let who =
            Who { name: "m1".to_owned(), address: "10.8.3.17".parse().unwrap(), locality: None };
        (config.unwrap(), who)
    }

    fn text<'a>(node: &'a core::Node, key: &str) -> Option<&'a str> {
        match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }

    fn labels(node: &core::Node) -> Vec<String> {
        match node.metadata.as_ref().unwrap().fields["LABELS"].kind.as_ref().unwrap() {
            Kind::StructValue(labels) => labels.fields.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn who_asks_has_nobodys_address_and_who_registers_its_own() {
        let (config, who) = parts();
        let cluster = &config.clusters[0];
        let asking = asking(cluster, &config.pool, &who);
        assert_eq!(
            asking.id,
            "waypoint~192.0.2.1~m1.waypoint-pool~waypoint-pool.svc.cluster.local"
        );
        assert_eq!(text(&asking, "AUTO_REGISTER_GROUP"), None);
        assert_eq!(text(&asking, "CLUSTER_ID"), Some("cluster-a"));
        assert!(labels(&asking).contains(&"waypoint-pool/s00".to_owned()));
        let registering = registering(cluster, &config.pool, &who);
        assert_eq!(text(&registering, "INSTANCE_IPS"), Some("10.8.3.17"));
        assert_eq!(text(&registering, "AUTO_REGISTER_GROUP"), Some("waypoint-pool"));
        assert!(!labels(&registering).contains(&"waypoint-pool/s00".to_owned()));
        for node in [&asking, &registering] {
            let labels = labels(node);
            assert!(labels.contains(&"waypoint-pool/member".to_owned()), "{labels:?}");
            assert!(labels.contains(&cairn_pool::cluster::GATEWAY_NAME.to_owned()), "{labels:?}");
        }
        let v6 = Who { address: "fd00::1".parse().unwrap(), ..who };
        assert_eq!(
            text(&super::asking(cluster, &config.pool, &v6), "INSTANCE_IPS"),
            Some("2001:db8::1")
        );
    }
}
