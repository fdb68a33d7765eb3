//! `pool.yaml`: the pool, and every cluster that uses it. Members and the registrar read the same file.
//!
//! A file is taken as a whole or not at all. Which cluster a name, a port or a certificate belongs to is decided here
//! and nowhere else, so two clusters that share one of them are refused.

use crate::cluster::{AllowedNamespaces, GATEWAY_NAME, MANAGED, MANAGED_BY, UserCluster};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Most clusters of a file.
pub const MAX_CLUSTERS: usize = 64;
/// Most siblings of a file.
pub const MAX_SIBLINGS: usize = 256;
/// Name that istiod's certificate has, wherever it is reached.
pub const ISTIOD_NAME: &str = "istiod.istio-system.svc";

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// What holds for all members.
    pub pool: Pool,
    /// What holds for this member.
    pub member: Member,
    /// Other members, by address or DNS name: a start asks them for what they know.
    pub siblings: Vec<String>,
    /// The clusters.
    pub clusters: Vec<Cluster>,
}

/// What holds for all members.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Name of the pool. Default `waypoint-pool`.
    pub name: String,
    /// File with the pool's token: who shows it may order a drain, and reads the fleet's mean. Without it nobody may.
    pub token_file: Option<PathBuf>,
    /// `http://host:port` of the scaler, for the fleet's mean. Without it nothing is rebalanced by load.
    pub scaler: Option<String>,
    /// A start asks siblings for what they know. Default `true`.
    pub warm_start: bool,
}

/// What holds for this member. What is not given is taken from the pod's variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Member {
    /// Its name; else `POD_NAME`, else the host's.
    pub name: Option<String>,
    /// Address by which every cluster's ztunnels reach it; else `POD_IP` or `INSTANCE_IP`.
    pub address: Option<IpAddr>,
    /// `region/zone/subzone`.
    pub locality: Option<String>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name in tenants, metrics and pages.
    pub name: String,
    /// `host:port` of its istiod.
    pub istiod: String,
    /// Name that istiod's certificate has. Default [`ISTIOD_NAME`].
    #[serde(default)]
    pub server_name: Option<String>,
    /// PEM file with the root of its mesh.
    pub root_file: PathBuf,
    /// Token of the service account, with the audience `istio-ca`: for the first certificate only.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// What its istiod calls it (`CLUSTER_ID`). May stay away; a wrong one gets no services.
    #[serde(default)]
    pub cluster_id: Option<String>,
    /// Default `cluster.local`.
    #[serde(default = "cluster_local")]
    pub trust_domain: String,
    /// Default `cluster.local`.
    #[serde(default = "cluster_local")]
    pub domain: String,
    /// Namespace of the pool's objects. Default: the pool's name.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Who members are. Default: the pool's name.
    #[serde(default)]
    pub service_account: Option<String>,
    /// The Gateway. Default: the pool's name.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The WorkloadGroup. Default: the Gateway's name.
    #[serde(default)]
    pub workload_group: Option<String>,
    /// Where HBONE is served for this cluster and no other, `address:port`.
    pub listen: SocketAddr,
    /// Port that its ztunnels are told, where it is another than that of `listen`.
    #[serde(default)]
    pub advertised_port: Option<u16>,
    /// Address by which its ztunnels reach this member, where it is another than `member.address`.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Network of this member as the cluster calls it. Members that are reached directly have none.
    #[serde(default)]
    pub network: Option<String>,
    /// Region, zone and subzone as this cluster calls them, where they are others than the member's.
    #[serde(default)]
    pub locality: Option<String>,
    /// Shards that there are, such as `s00`; any member may serve any of them.
    #[serde(default)]
    pub shards: Vec<String>,
    /// More labels of the node. An empty value takes one of the usual ones away.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Namespaces that may use the pool: `all`, or KEY=VALUE. For the registrar and `cairn pool install`.
    #[serde(default)]
    pub allow: Option<String>,
    /// Clients prefer members of their zone. For the registrar and `cairn pool install`.
    #[serde(default)]
    pub prefer_close: bool,
    /// How the API server is reached. For the registrar, `install`, `uninstall` and `status`; members have none.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// How long its configuration may be out of touch with istiod for a member that starts, such as `24h`.
    #[serde(default)]
    pub max_stale: Option<String>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    /// Where, such as `clusters[1] (east)`.
    pub place: String,
    /// What, and what to do.
    pub reason: String,
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

impl Default for Pool {
    fn default() -> Self {
        Pool { name: "waypoint-pool".to_owned(), token_file: None, scaler: None, warm_start: true }
    }
}

impl PoolConfig {
    /// Takes a document, and checks it.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn of(document: Value) -> Result<PoolConfig, ConfigError> {
        let Value::Object(mut document) = document else {
            return Err(wrong(
                "the file",
                "must be a mapping with `pool`, `member` and `clusters`",
            ));
        };
        let clusters = match document.remove("clusters") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(clusters)) => clusters,
            Some(_) => return Err(wrong("clusters", "must be a list")),
        };
        let mut config: PoolConfig = serde_json::from_value(Value::Object(document))
            .map_err(|error| wrong("the file", &error.to_string()))?;
        if clusters.len() > MAX_CLUSTERS {
            return Err(wrong("clusters", &format!("has more than {MAX_CLUSTERS} of them")));
        }
        for (place, cluster) in clusters.into_iter().enumerate() {
            let name = cluster["name"].as_str().unwrap_or("without a name").to_owned();
            let place = format!("clusters[{place}] ({name})");
            let cluster: Cluster = serde_json::from_value(cluster)
                .map_err(|error| wrong(&place, &error.to_string()))?;
            cluster.check(&place, &config)?;
            config.clusters.push(cluster);
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if let Some(scaler) = &self.pool.scaler
            && !scaler.starts_with("http://")
        {
            return Err(wrong("pool.scaler", "must be http://host:port"));
        }
        if self.pool.scaler.is_some() && self.pool.token_file.is_none() {
            let reason = "needs pool.token_file: the scaler tells the fleet's mean to those who show the token";
            return Err(wrong("pool.scaler", reason));
        }
        if self.siblings.len() > MAX_SIBLINGS {
            return Err(wrong("siblings", &format!("has more than {MAX_SIBLINGS} of them")));
        }
        let mut names = BTreeSet::new();
        let mut ports = BTreeMap::new();
        for cluster in &self.clusters {
            if !names.insert(&cluster.name) {
                return Err(wrong(&cluster.name, "is the name of two clusters"));
            }
            let port = cluster.listen.port();
            if port == 0 {
                continue;
            }
            if let Some(other) = ports.insert(port, &cluster.name) {
                let reason = format!(
                    "listens on port {port}, and so does {other}; by its port a member tells which cluster a client is of"
                );
                return Err(wrong(&cluster.name, &reason));
            }
        }
        Ok(())
    }

    /// The cluster of that name.
    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }
}

impl Cluster {
    fn check(&self, place: &str, config: &PoolConfig) -> Result<(), ConfigError> {
        let name = &self.name;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            return Err(wrong(
                place,
                "`name` must be 1 to 63 letters, digits, `-`, `_` or `.`: it is in metrics",
            ));
        }
        let is_address = self
            .istiod
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            return Err(wrong(place, "`istiod` must be host:port, such as istiod.example:15012"));
        }
        if self.listen.port() != 0 || self.advertised_port.is_some() {
            self.user_cluster(&config.pool)
                .check()
                .map_err(|error| wrong(place, &error.to_string()))?;
        }
        if let Some(allow) = &self.allow {
            allow
                .parse::<AllowedNamespaces>()
                .map_err(|error| wrong(place, &format!("`allow`: {error}")))?;
        }
        for shard in &self.shards {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if shard.is_empty() || shard.len() > 16 || !shard.bytes().all(good) {
                return Err(wrong(place, &format!("`{shard}` is no shard; write such as s00")));
            }
        }
        if self.max_stale.is_some() && self.max_stale().is_none() {
            return Err(wrong(place, "`max_stale` must be a number with s, m or h, such as 24h"));
        }
        let labels = self.node_labels(&config.pool);
        if labels.get(GATEWAY_NAME).is_none_or(String::is_empty) {
            let reason = format!(
                "the node has no label {GATEWAY_NAME}: istiod would leave out every policy of the tenants without a word; \
                 do not take it away in `labels`"
            );
            return Err(wrong(place, &reason));
        }
        if !labels.contains_key(&format!("{}/member", self.gateway(&config.pool))) {
            let reason = "the node has no label by which the pool's Service selects it, and would get no services; \
                          do not take it away in `labels`";
            return Err(wrong(place, reason));
        }
        Ok(())
    }

    /// Namespace of the pool's objects there.
    pub fn namespace<'a>(&'a self, pool: &'a Pool) -> &'a str {
        self.namespace.as_deref().unwrap_or(&pool.name)
    }

    /// Who members are there.
    pub fn service_account<'a>(&'a self, pool: &'a Pool) -> &'a str {
        self.service_account.as_deref().unwrap_or(&pool.name)
    }

    /// Name of Gateway and Service.
    pub fn gateway<'a>(&'a self, pool: &'a Pool) -> &'a str {
        self.gateway.as_deref().unwrap_or(&pool.name)
    }

    /// Name of the WorkloadGroup by which members register.
    pub fn workload_group<'a>(&'a self, pool: &'a Pool) -> &'a str {
        self.workload_group.as_deref().unwrap_or_else(|| self.gateway(pool))
    }

    /// Port that ztunnels are told.
    pub fn advertised_port(&self) -> u16 {
        self.advertised_port.unwrap_or(self.listen.port())
    }

    /// How old what a sibling tells may be. Default 24 h.
    pub fn max_stale(&self) -> Option<Duration> {
        let Some(text) = &self.max_stale else { return Some(Duration::from_secs(24 * 3600)) };
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        number.parse::<u32>().ok().map(|number| Duration::from_secs(u64::from(number) * seconds))
    }

    /// The objects' names and settings there.
    pub fn user_cluster(&self, pool: &Pool) -> UserCluster {
        UserCluster {
            namespace: self.namespace(pool).to_owned(),
            name: self.gateway(pool).to_owned(),
            service_account: self.service_account(pool).to_owned(),
            port: self.advertised_port(),
            domain: self.domain.clone(),
            allowed: self.allow.as_deref().and_then(|allow| allow.parse().ok()).unwrap_or_default(),
            prefer_close: self.prefer_close,
        }
    }

    /// Labels of the node that asks for configuration: by them istiod finds the tenants' services and policies. All
    /// shards are among them, so that a member has a shard's configuration before it gets its traffic.
    pub fn node_labels(&self, pool: &Pool) -> BTreeMap<String, String> {
        let gateway = self.gateway(pool);
        let shards =
            self.shards.iter().map(|shard| (format!("{gateway}/{shard}"), "true".to_owned()));
        let mut labels = self.registration_labels(pool);
        labels.extend(shards);
        labels
    }

    /// Labels of the node that registers; istiod gives them to the WorkloadEntry. Which shards a member serves is the
    /// registrar's to say.
    pub fn registration_labels(&self, pool: &Pool) -> BTreeMap<String, String> {
        let gateway = self.gateway(pool);
        let mut labels = BTreeMap::from([
            (format!("{gateway}/member"), "true".to_owned()),
            (GATEWAY_NAME.to_owned(), gateway.to_owned()),
            (MANAGED.to_owned(), MANAGED_BY.to_owned()),
        ]);
        labels.extend(self.labels.clone());
        labels.retain(|_, value| !value.is_empty());
        labels
    }
}

fn wrong(place: &str, reason: &str) -> ConfigError {
    ConfigError { place: place.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn cluster(name: &str, port: u16) -> Value {
        json!({
            "name": name, "istiod": "istiod.example:15012", "root_file": "/r.pem",
            "token_file": "/t", "listen": format!("0.0.0.0:{port}"),
        })
    }

    fn config(clusters: Vec<Value>) -> Result<PoolConfig, ConfigError> {
        PoolConfig::of(json!({ "clusters": clusters }))
    }

    #[test]
    fn names_follow_the_pools() {
        let read = config(vec![cluster("a", 21001), cluster("b", 21002)]).unwrap();
        let PoolConfig { pool, clusters, .. } = &read;
        let a = &clusters[0];
        assert_eq!((a.namespace(pool), a.workload_group(pool)), ("waypoint-pool", "waypoint-pool"));
        assert_eq!(a.user_cluster(pool), UserCluster::new(21001));
        assert_eq!(a.max_stale(), Some(Duration::from_secs(86_400)));
        let labels = a.node_labels(pool);
        assert_eq!(labels["waypoint-pool/member"], "true");
        assert_eq!(labels[GATEWAY_NAME], "waypoint-pool");
    }

    #[test]
    fn shards_are_labels_of_the_node() {
        let mut one = cluster("a", 21001);
        one["shards"] = json!(["s00", "s01"]);
        let read = config(vec![one.clone()]).unwrap();
        let labels = read.clusters[0].node_labels(&read.pool);
        assert_eq!(labels["waypoint-pool/s01"], "true");
        let registered = read.clusters[0].registration_labels(&read.pool);
        assert!(!registered.contains_key("waypoint-pool/s01"), "the registrar gives them");
        one["shards"] = json!(["S 0"]);
        assert!(config(vec![one]).unwrap_err().reason.contains("no shard"));
    }

    #[test]
    fn without_the_gateways_label_nothing_starts() {
        let mut one = cluster("a", 21001);
        one["labels"] = json!({ GATEWAY_NAME: "" });
        let error = config(vec![one]).unwrap_err().to_string();
        assert!(error.contains("clusters[0] (a)") && error.contains(GATEWAY_NAME), "{error}");
        let mut one = cluster("a", 21001);
        one["labels"] = json!({ "waypoint-pool/member": "" });
        assert!(config(vec![one]).unwrap_err().reason.contains("no services"));
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let same_port = config(vec![cluster("a", 21001), cluster("b", 21001)]).unwrap_err();
        assert!(same_port.reason.contains("21001"), "{same_port}");
        let same_name = config(vec![cluster("a", 21001), cluster("a", 21002)]).unwrap_err();
        assert!(same_name.reason.contains("two clusters"), "{same_name}");
    }

    #[test]
    fn mistakes_are_named() {
        let with = |key: &str, value: Value| {
            let mut one = cluster("a", 21001);
            one[key] = value;
            config(vec![one]).unwrap_err().to_string()
        };
        for (key, value, word) in [
            ("istoid", json!("x"), "istoid"),
            ("istiod", json!("x"), "host:port"),
            ("listen", json!("nowhere"), "socket address"),
            ("listen", json!("0.0.0.0:15008"), "15008"),
            ("name", json!("a b"), "metrics"),
            ("allow", json!("some"), "KEY=VALUE"),
            ("max_stale", json!("long"), "24h"),
            ("namespace", json!("A"), "lower-case"),
        ] {
            let error = with(key, value);
            assert!(error.contains(word), "{key}: {error}");
        }
        for (document, word) in [
            (json!([]), "mapping"),
            (json!({ "clusters": {} }), "list"),
            (json!({ "pool": { "token": "x" } }), "token"),
            (json!({ "pool": { "scaler": "http://x:1" } }), "token_file"),
            (json!({ "pool": { "scaler": "x:1", "token_file": "/t" } }), "http://"),
        ] {
            let error = PoolConfig::of(document).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
