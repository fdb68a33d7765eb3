//! What would keep the pool from working in a cluster, or traffic from being policed.
//!
//! Looks at objects as the API server has them. What is not among them counts as not there, but for pods: where none
//! of a namespace is given, a policy counts as one for all of them.

mod bound;
mod policy;
mod pool;

use crate::cluster::UserCluster;
use crate::config::{Cluster, Pool};
use bound::Bound;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Works, but not as was meant.
    Warning,
    /// Traffic fails, or is not policed.
    Error,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the rule, for scripts.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// `Kind namespace/name`.
    pub object: String,
    /// What is wrong, and what comes of it.
    pub message: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        writeln!(f, "{severity} [{}] {}: {}", self.rule, self.object, self.message)?;
        write!(f, "  fix: {}", self.fix)
    }
}

/// Looks at a cluster's objects; `trust_domain` is its mesh's. Worst first, else in the order of the objects.
pub fn lint(cluster: &UserCluster, trust_domain: &str, objects: &[Value]) -> Vec<Finding> {
    sorted(look(cluster, &cluster.name, trust_domain, &Objects::new(objects)))
}

/// Looks at the objects of a cluster of `pool.yaml`, its shards too.
pub fn of(cluster: &Cluster, pool: &Pool, objects: &[Value]) -> Vec<Finding> {
    let objects = Objects::new(objects);
    let user = cluster.user_cluster(pool);
    let mut findings = look(&user, cluster.workload_group(pool), &cluster.trust_domain, &objects);
    for shard in &cluster.shards {
        let shard = UserCluster { name: format!("{}-{shard}", user.name), ..user.clone() };
        let bound = Bound::find(&shard, &objects);
        pool::gateway(&shard, &objects, &mut findings);
        pool::service(&shard, None, &objects, &mut findings);
        bound.admitted(&shard, &objects, &mut findings);
        policy::principal(&shard, &cluster.trust_domain, &bound, &objects, &mut findings);
    }
    sorted(findings)
}

/// Who uses the pool or one of its shards: `Kind namespace/name` of each namespace and service that says so.
pub fn users(cluster: &Cluster, pool: &Pool, objects: &[Value]) -> Vec<String> {
    let objects = Objects::new(objects);
    let user = cluster.user_cluster(pool);
    let shards = cluster.shards.iter().map(|shard| format!("{}-{shard}", user.name));
    std::iter::once(user.name.clone())
        .chain(shards)
        .flat_map(|name| Bound::find(&UserCluster { name, ..user.clone() }, &objects).titles())
        .collect()
}

fn look(
    cluster: &UserCluster,
    group: &str,
    trust_domain: &str,
    objects: &Objects<'_>,
) -> Vec<Finding> {
    let bound = Bound::find(cluster, objects);
    let mut findings = Vec::new();
    pool::gateway(cluster, objects, &mut findings);
    pool::service(cluster, Some(group), objects, &mut findings);
    pool::workload_group(cluster, group, objects, &mut findings);
    pool::members(cluster, objects, &mut findings);
    bound.admitted(cluster, objects, &mut findings);
    policy::principal(cluster, trust_domain, &bound, objects, &mut findings);
    findings
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// Objects by kind.
struct Objects<'a>(BTreeMap<&'a str, Vec<&'a Value>>);

impl<'a> Objects<'a> {
    /// Lists are opened.
    fn new(objects: &'a [Value]) -> Self {
        let mut by_kind = Objects(BTreeMap::new());
        for object in objects {
            match object["items"].as_array() {
                Some(items) => items.iter().for_each(|object| by_kind.add(object)),
                None => by_kind.add(object),
            }
        }
        by_kind
    }

    fn add(&mut self, object: &'a Value) {
        if let Some(kind) = object["kind"].as_str() {
            self.0.entry(kind).or_default().push(object);
        }
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.0.get(kind).into_iter().flatten().copied()
    }

    fn named(&self, kind: &str, namespace: &str, name: &str) -> Option<&'a Value> {
        self.of(kind).find(|object| namespace_of(object) == namespace && name_of(object) == name)
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"][name].as_str()
}

/// `Kind namespace/name`.
fn title(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object");
    match namespace_of(object) {
        "" => format!("{kind} {}", name_of(object)),
        namespace => format!("{kind} {namespace}/{}", name_of(object)),
    }
}

/// Every pair is among the labels; an empty selector selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let pairs = selector.as_object().into_iter().flatten();
    pairs.into_iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests;
