//! The pool's own objects.

use super::{Finding, Objects, Severity, label, name_of, namespace_of, selects, title};
use crate::cluster::{GATEWAY_NAME, HBONE_PORT, MANAGED, MANAGED_BY, TUNNEL, UserCluster};
use crate::objects;
use serde_json::Value;
use std::collections::BTreeMap;

const INSTALL: &str = "apply what `cairn pool install` prints";

fn missing(rule: &'static str, kind: &str, cluster: &UserCluster, what_for: &str) -> Finding {
    Finding {
        rule,
        severity: Severity::Error,
        object: format!("{kind} {}/{}", cluster.namespace, cluster.name),
        message: format!("is not there: {what_for}"),
        fix: INSTALL.to_owned(),
    }
}

fn wrong(
    rule: &'static str,
    object: &Value,
    message: impl Into<String>,
    fix: impl Into<String>,
) -> Finding {
    Finding {
        rule,
        severity: Severity::Error,
        object: title(object),
        message: message.into(),
        fix: fix.into(),
    }
}

/// Class, address, status and listener.
pub(super) fn gateway(cluster: &UserCluster, objects: &Objects<'_>, findings: &mut Vec<Finding>) {
    let Some(gateway) = objects.named("Gateway", &cluster.namespace, &cluster.name) else {
        findings.push(missing("no-gateway", "Gateway", cluster, "nothing can use the pool"));
        return;
    };
    let spec = &gateway["spec"];
    let class = spec["gatewayClassName"].as_str().unwrap_or_default();
    if class != "istio-waypoint" {
        findings.push(wrong(
            "gateway-class",
            gateway,
            format!("has the class `{class}`: HTTPRoutes of the pool's users would not come to it"),
            "set spec.gatewayClassName to istio-waypoint",
        ));
    }
    let host = cluster.host();
    let ours = matches!(
        spec["addresses"].as_array().map(Vec::as_slice),
        Some([only]) if only["type"] == "Hostname" && only["value"] == host.as_str()
    );
    if !ours {
        findings.push(wrong(
            "gateway-address",
            gateway,
            "needs exactly one address, the host name of the pool's Service: otherwise istiod deploys a waypoint of its own, \
             or programs nothing",
            format!("set spec.addresses to [{{type: Hostname, value: {host}}}]"),
        ));
    }
    if gateway["status"]["addresses"].as_array().is_none_or(Vec::is_empty) {
        let status = objects::gateway_status(cluster);
        findings.push(wrong(
            "gateway-without-address",
            gateway,
            "has no address in its status: whoever uses the pool has no waypoint, and no L7 policy holds",
            format!(
                "echo '{status}' | kubectl apply --server-side --subresource=status --field-manager cairn-pool -f -"
            ),
        ));
    }
    let listeners = spec["listeners"].as_array();
    let hbone = |listener: &&Value| {
        listener["protocol"] == "HBONE" && listener["port"] == u64::from(HBONE_PORT)
    };
    if listeners.is_none_or(|all| !all.iter().any(|listener| hbone(&listener))) {
        findings.push(wrong(
            "gateway-listener",
            gateway,
            "has no listener for HBONE on port 15008",
            INSTALL,
        ));
    }
}

/// Port, labels, and a selector of what the WorkloadGroup of that name gives, where there is to be one.
pub(super) fn service(
    cluster: &UserCluster,
    group: Option<&str>,
    objects: &Objects<'_>,
    findings: &mut Vec<Finding>,
) {
    let Some(service) = objects.named("Service", &cluster.namespace, &cluster.name) else {
        let what = "ztunnels know no address of the pool";
        findings.push(missing("no-service", "Service", cluster, what));
        return;
    };
    let port = service["spec"]["ports"].as_array().is_some_and(|ports| {
        ports.iter().any(|port| port["port"] == u64::from(HBONE_PORT) && port["name"] == "hbone")
    });
    if !port {
        findings.push(wrong(
            "service-port",
            service,
            "has no port 15008 of the name `hbone`: ztunnels find no way to the members' port",
            INSTALL,
        ));
    }
    if label(service, MANAGED) != Some(MANAGED_BY) {
        findings.push(wrong(
            "service-labels",
            service,
            format!("lacks the label {MANAGED}: in a namespace that uses a waypoint it would be bound to itself"),
            format!("kubectl -n {} label service {} {MANAGED}={MANAGED_BY}", cluster.namespace, cluster.name),
        ));
    }
    let selector = &service["spec"]["selector"];
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        findings.push(wrong(
            "service-selector",
            service,
            "has no selector: members that register are no endpoints of it",
            INSTALL,
        ));
        return;
    }
    if let Some(group) = group
        && let Some(group) = objects.named("WorkloadGroup", &cluster.namespace, group)
        && !selects(selector, &group["spec"]["metadata"]["labels"])
    {
        findings.push(wrong(
            "service-selector",
            service,
            "selects other labels than the WorkloadGroup gives: members that register are no endpoints of it",
            INSTALL,
        ));
    }
}

/// Labels, account and port.
pub(super) fn workload_group(
    cluster: &UserCluster,
    name: &str,
    objects: &Objects<'_>,
    findings: &mut Vec<Finding>,
) {
    let Some(group) = objects.named("WorkloadGroup", &cluster.namespace, name) else {
        let what = "no member can register";
        let mut finding = missing("no-workload-group", "WorkloadGroup", cluster, what);
        finding.object = format!("WorkloadGroup {}/{name}", cluster.namespace);
        findings.push(finding);
        return;
    };
    let template = &group["spec"]["template"];
    match template["serviceAccount"].as_str().unwrap_or_default() {
        "" => findings.push(wrong(
            "group-account",
            group,
            "has no service account: any account of the namespace may announce itself as a member",
            format!("set spec.template.serviceAccount to {}", cluster.service_account),
        )),
        other if other != cluster.service_account => findings.push(wrong(
            "group-account",
            group,
            format!(
                "has the service account `{other}`, members have `{}`",
                cluster.service_account
            ),
            format!("set spec.template.serviceAccount to {}", cluster.service_account),
        )),
        _ => {}
    }
    if template["ports"]["hbone"] != u64::from(cluster.port) {
        findings.push(wrong(
            "group-port",
            group,
            format!("does not lead to port {}, where members listen for this cluster", cluster.port),
            format!("set spec.template.ports.hbone to {}; entries that are there keep their port until their members register again", cluster.port),
        ));
    }
    let labels = &group["spec"]["metadata"]["labels"];
    for (name, value, what) in [
        (GATEWAY_NAME, cluster.name.as_str(), "members would get a waypoint themselves"),
        (TUNNEL, "http", "ztunnels would send members plain bytes instead of HBONE"),
    ] {
        if labels[name] != value {
            findings.push(wrong(
                "group-labels",
                group,
                format!("lacks the label {name}={value}: {what}"),
                format!("set it in spec.metadata.labels of the WorkloadGroup {}", name_of(group)),
            ));
        }
    }
}

/// Entries of members whose address is somebody else's, too.
pub(super) fn members(cluster: &UserCluster, objects: &Objects<'_>, findings: &mut Vec<Finding>) {
    let mut known: BTreeMap<&str, String> = objects
        .of("Pod")
        .filter(|pod| pod["spec"]["hostNetwork"] != true)
        .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
        .filter_map(|pod| Some((pod["status"]["podIP"].as_str()?, title(pod))))
        .collect();
    for service in objects.of("Service") {
        let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
        let addresses = addresses.chain([&service["spec"]["clusterIP"]]).filter_map(Value::as_str);
        known.extend(addresses.filter(|ip| *ip != "None").map(|ip| (ip, title(service))));
    }
    let entries = objects
        .of("WorkloadEntry")
        .filter(|entry| namespace_of(entry) == cluster.namespace)
        .filter(|entry| label_of_member(cluster, entry));
    for entry in entries {
        let Some(address) = entry["spec"]["address"].as_str() else { continue };
        match known.get(address) {
            Some(other) => findings.push(wrong(
                "address-overlap",
                entry,
                format!("has the address {address} of {other}: traffic for one reaches the other"),
                "give the pool's members addresses that no pod and no service of this cluster can have",
            )),
            None => {
                known.insert(address, title(entry));
            }
        }
        if label(entry, GATEWAY_NAME) != Some(&cluster.name) {
            findings.push(wrong(
                "member-labels",
                entry,
                format!(
                    "lacks the label {GATEWAY_NAME}={}: it would get a waypoint itself",
                    cluster.name
                ),
                "delete it; its member registers again with the WorkloadGroup's labels",
            ));
        }
    }
}

fn label_of_member(cluster: &UserCluster, entry: &Value) -> bool {
    label(entry, &cluster.member_label()) == Some("true")
}
