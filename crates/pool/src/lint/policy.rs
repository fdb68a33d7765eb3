//! Policies at the users' pods that would refuse the pool.
//!
//! A pod's ztunnel sees the pool's identity instead of the client's. Once one ALLOW policy is for a pod, whoever none of
//! them names is refused; so one has to name the pool.

use super::bound::Bound;
use super::{Finding, Objects, Severity, name_of, namespace_of, selects, title};
use crate::cluster::UserCluster;
use serde_json::Value;

/// Namespace whose policies hold everywhere, unless the mesh names another.
const ROOT: &str = "istio-system";

/// For every pod that ALLOW policies are for, one of them lets the pool in.
pub(super) fn principal(
    cluster: &UserCluster,
    trust_domain: &str,
    bound: &Bound<'_>,
    objects: &Objects<'_>,
    findings: &mut Vec<Finding>,
) {
    let pool = Pool {
        principal: format!(
            "{trust_domain}/ns/{}/sa/{}",
            cluster.namespace, cluster.service_account
        ),
        namespace: &cluster.namespace,
        account: format!("{}/{}", cluster.namespace, cluster.service_account),
    };
    let policies: Vec<&Value> =
        objects.of("AuthorizationPolicy").filter(|policy| is_at_pods(policy)).collect();
    for namespace in &bound.namespaces {
        let here = || policies.iter().copied().filter(|policy| holds_in(policy, namespace));
        let pods: Vec<&Value> =
            objects.of("Pod").filter(|pod| namespace_of(pod) == *namespace).collect();
        let mut told = Vec::new();
        if pods.is_empty() {
            let lets_in = here().any(|policy| pool.is_let_in(policy));
            told.extend(here().next().filter(|_| !lets_in));
        }
        for pod in pods {
            let labels = &pod["metadata"]["labels"];
            let for_pod = || {
                here().filter(|policy| selects(&policy["spec"]["selector"]["matchLabels"], labels))
            };
            if !for_pod().any(|policy| pool.is_let_in(policy)) {
                told.extend(for_pod().next());
            }
        }
        told.sort_by_key(|policy| (namespace_of(policy), name_of(policy)));
        told.dedup_by_key(|policy| (namespace_of(policy), name_of(policy)));
        for policy in told {
            let principal = &pool.principal;
            findings.push(Finding {
                rule: "policy-without-pool",
                severity: Severity::Error,
                object: title(policy),
                message: format!(
                    "allows others than the pool, which pods of {namespace} see as the client: their ztunnel refuses it"
                ),
                fix: format!(
                    "add a rule with from: [{{source: {{principals: [\"{principal}\"]}}}}], and write who may do what in a policy for the Service (targetRefs)"
                ),
            });
        }
    }
}

/// ALLOW, and not for a waypoint or a service.
fn is_at_pods(policy: &Value) -> bool {
    let spec = &policy["spec"];
    let targeted = spec.get("targetRef").is_some()
        || spec["targetRefs"].as_array().is_some_and(|targets| !targets.is_empty());
    !targeted && matches!(spec["action"].as_str(), None | Some("ALLOW"))
}

fn holds_in(policy: &Value, namespace: &str) -> bool {
    namespace_of(policy) == namespace || namespace_of(policy) == ROOT
}

/// The pool as policies name it.
struct Pool<'a> {
    principal: String,
    namespace: &'a str,
    account: String,
}

impl Pool<'_> {
    /// One of its rules is for the pool, whatever address and port.
    fn is_let_in(&self, policy: &Value) -> bool {
        let rules = policy["spec"]["rules"].as_array().into_iter().flatten();
        rules.into_iter().any(|rule| {
            // What ztunnel cannot see lets nobody in.
            let at_l4 = rule["to"].as_array().into_iter().flatten().all(|to| {
                let operation = &to["operation"];
                ["hosts", "methods", "paths"].iter().all(|name| operation.get(name).is_none())
            });
            let unconditional = rule["when"].as_array().is_none_or(Vec::is_empty);
            let from = rule["from"].as_array();
            at_l4
                && unconditional
                && from.is_none_or(|from| {
                    from.is_empty() || from.iter().any(|from| self.is_source(&from["source"]))
                })
        })
    }

    /// All that a source asks for, the pool has.
    fn is_source(&self, source: &Value) -> bool {
        let Some(asked) = source.as_object() else { return false };
        asked.iter().all(|(what, values)| {
            let values = || values.as_array().into_iter().flatten().filter_map(Value::as_str);
            match what.as_str() {
                "principals" => values().any(|pattern| like(pattern, &self.principal)),
                "namespaces" => values().any(|pattern| like(pattern, self.namespace)),
                "serviceAccounts" => values().any(|account| account == self.account),
                "notPrincipals" => !values().any(|pattern| like(pattern, &self.principal)),
                "notNamespaces" => !values().any(|pattern| like(pattern, self.namespace)),
                "notServiceAccounts" => !values().any(|account| account == self.account),
                // An address, which is not known here.
                _ => false,
            }
        })
    }
}

/// Istio: exact, `prefix*`, `*suffix`, or `*` for any.
fn like(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(suffix), _) => text.ends_with(suffix),
        (None, Some(prefix)) => text.starts_with(prefix),
        (None, None) => pattern == text,
    }
}
