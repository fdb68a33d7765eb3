//! Who we are to istiod: the node of the discovery protocol.
//!
//! istiod tells by the id which generator to use, by the pod's name, the labels and the addresses which
//! services are ours, and by one label which policies are (Istio: `pilot/pkg/model/context.go`). What an
//! Envoy waypoint sends is sent: variables `ISTIO_META_<KEY>` and `ISTIO_METAJSON_<KEY>`, the pod's
//! labels and annotations, `PROXY_CONFIG`.

use super::environment::Environment;
use super::pod_info;
use super::proxy_config::{ProxyConfig, ProxyConfigError};
use cairn_proto::envoy::envoy::config::core::v3 as core;
use cairn_proto::envoy::google::protobuf as wkt;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// By this label istiod finds the policies of a Gateway. A node without it gets the policies of an
/// ordinary workload instead, without a word.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Where istiod is unless `ProxyConfig` says otherwise.
pub const DISCOVERY_ADDRESS: &str = "istiod.istio-system.svc:15012";
/// The release whose configuration is understood; decides which forms istiod uses.
pub const ISTIO_VERSION: &str = "1.32.0";

/// Prefix of variables whose value is a string.
const META: &str = "ISTIO_META_";
/// Prefix of variables whose value is a JSON object.
const META_JSON: &str = "ISTIO_METAJSON_";
/// Changes with each ReplicaSet, and means nothing to istiod.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// `region.zone.subzone` or `region/zone/subzone`.
const LOCALITY: &str = "istio-locality";
/// Keys that would make istiod generate something else than a waypoint's configuration, or name
/// certificates that this proxy does not use.
const KEPT_BACK: [&str; 9] = [
    "GENERATOR",
    "DISABLE_HBONE_SEND",
    "TLS_SERVER_CERT_CHAIN",
    "TLS_SERVER_KEY",
    "TLS_SERVER_ROOT_CERT",
    "TLS_CLIENT_CERT_CHAIN",
    "TLS_CLIENT_KEY",
    "TLS_CLIENT_ROOT_CERT",
    "CREDENTIAL",
];

/// The node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// `waypoint~<ip>~<pod>.<namespace>~<domain>`.
    pub id: String,
    /// Name of the cluster in Envoy's sense, such as `waypoint.shop`.
    pub cluster: String,
    /// Name of the pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
    /// Name of the Gateway.
    pub gateway: String,
    /// Name of the Kubernetes cluster at istiod; may be empty.
    pub cluster_id: String,
    /// Name of the network; may be empty.
    pub network: String,
    /// Region, zone and subzone, where the pod knows.
    pub locality: Option<[String; 3]>,
    /// `host:port` of istiod.
    pub discovery_address: String,
    /// What `PROXY_CONFIG` and the pod's annotation say.
    pub proxy_config: ProxyConfig,
    /// Everything that istiod is told besides.
    pub metadata: Map<String, Value>,
    /// What was left out, in words.
    pub warnings: Vec<String>,
}

/// Why there is no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// A variable is missing.
    #[error("the variable {0} is not set; a waypoint's pod gets it from istiod's template")]
    Missing(&'static str),
    /// No address can be used.
    #[error("INSTANCE_IP is `{0}`, which is no IP address; it must be the pod's")]
    Address(String),
    /// The pod does not say to which Gateway it belongs.
    #[error(
        "the pod has no label {GATEWAY_NAME} (in /etc/istio/pod/labels or ISTIO_METAJSON_LABELS); istiod would send the \
         policies of an ordinary workload and leave out all that name the Gateway: give the pod template the label \
         with the Gateway's name"
    )]
    NoGateway,
    /// A name has a character that would break the node's id.
    #[error("{variable} is `{value}`, which has a `~`; istiod takes the node's id apart there")]
    Tilde {
        /// The variable or argument.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A variable with JSON cannot be read.
    #[error("the variable {variable} cannot be used: {reason}; it must be a JSON object")]
    Json {
        /// The variable.
        variable: String,
        /// What is wrong.
        reason: String,
    },
    /// `PROXY_CONFIG` or the annotation cannot be read.
    #[error(transparent)]
    ProxyConfig(#[from] ProxyConfigError),
}

impl Node {
    /// Makes the node of what the pod says.
    ///
    /// # Errors
    /// [`NodeError`] when istiod would refuse the node, or take it for something else than this
    /// Gateway's waypoint.
    pub fn from(environment: &Environment) -> Result<Node, NodeError> {
        let mut warnings = Vec::new();
        let mut info = |file: &Option<String>, name: &str| {
            let (found, odd) = pod_info::parse(file.as_deref().unwrap_or_default());
            warnings
                .extend(odd.iter().map(|line| format!("{name}: the line `{line}` is left out")));
            found
        };
        let pod_labels = info(&environment.labels, "/etc/istio/pod/labels");
        let pod_annotations = info(&environment.annotations, "/etc/istio/pod/annotations");
        let annotation = pod_annotations.get("proxy.istio.io/config");
        let proxy_config = ProxyConfig::of(
            environment.var("PROXY_CONFIG").unwrap_or_default(),
            annotation.map_or("", String::as_str),
        )?;
        let variables = with_defaults(environment, &proxy_config);
        let var =
            |name: &'static str| variables.get(name).copied().filter(|value| !value.is_empty());
        let needed = |name| var(name).ok_or(NodeError::Missing(name));

        let pod = plain("POD_NAME", needed("POD_NAME")?)?;
        let namespace = plain("POD_NAMESPACE", needed("POD_NAMESPACE")?)?;
        let service_account = var("SERVICE_ACCOUNT").or_else(|| var("ISTIO_META_SERVICE_ACCOUNT"));
        let service_account =
            service_account.ok_or(NodeError::Missing("SERVICE_ACCOUNT"))?.to_owned();
        let addresses = addresses(var("INSTANCE_IPS"), needed("INSTANCE_IP"), environment)?;
        let args = &environment.args;
        let domain = match &args.domain {
            Some(domain) => plain("--domain", domain)?,
            None => format!("{namespace}.svc.cluster.local"),
        };
        let cluster = args.service_cluster.clone();

        let mut metadata = said(&variables, &mut warnings)?;
        let labels = labels(&mut metadata, pod_labels);
        let gateway =
            labels.get(GATEWAY_NAME).and_then(Value::as_str).unwrap_or_default().to_owned();
        if gateway.is_empty() {
            return Err(NodeError::NoGateway);
        }
        let locality = locality(&labels);
        metadata.insert("LABELS".to_owned(), Value::Object(labels));
        annotations(&mut metadata, pod_annotations);
        let discovery_address = discovery_address(&proxy_config, var("CA_ADDR"));
        let text = |value: &str| Value::String(value.to_owned());
        metadata.insert("NAME".to_owned(), text(&pod));
        metadata.insert("NAMESPACE".to_owned(), text(&namespace));
        metadata.insert("SERVICE_ACCOUNT".to_owned(), text(&service_account));
        let all: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        metadata.insert("INSTANCE_IPS".to_owned(), text(&all.join(",")));
        metadata.insert("METADATA_DISCOVERY".to_owned(), text("true"));
        metadata.insert("ENVOY_STATUS_PORT".to_owned(), json!(15021));
        metadata.insert("ENVOY_PROMETHEUS_PORT".to_owned(), json!(15090));
        metadata.entry("ISTIO_VERSION").or_insert_with(|| text(ISTIO_VERSION));
        if let Some((host, _)) = discovery_address.rsplit_once(':') {
            metadata.insert("PILOT_SAN".to_owned(), json!([host]));
        }
        let mut config = proxy_config.fields().clone();
        config.entry("discoveryAddress").or_insert_with(|| text(&discovery_address));
        metadata.insert("PROXY_CONFIG".to_owned(), Value::Object(config));

        let string =
            |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (cluster_id, network) = (string("CLUSTER_ID"), string("NETWORK"));
        // Not empty: checked where they were read.
        let first = addresses.first().map(IpAddr::to_string).unwrap_or_default();
        Ok(Node {
            id: format!("waypoint~{first}~{pod}.{namespace}~{domain}"),
            cluster: cluster.unwrap_or_else(|| format!("{gateway}.{namespace}")),
            pod,
            namespace,
            service_account,
            addresses,
            gateway,
            cluster_id,
            network,
            locality,
            discovery_address,
            proxy_config,
            metadata,
            warnings,
        })
    }

    /// As it is sent.
    pub fn to_proto(&self) -> core::Node {
        proto_node(self.id.clone(), self.cluster.clone(), &self.metadata, self.locality.as_ref())
    }
}

/// A node of ours as it is sent.
pub fn proto_node(
    id: String,
    cluster: String,
    metadata: &Map<String, Value>,
    locality: Option<&[String; 3]>,
) -> core::Node {
    core::Node {
        id,
        cluster,
        metadata: Some(structure(metadata)),
        locality: locality.map(|[region, zone, sub_zone]| core::Locality {
            region: region.clone(),
            zone: zone.clone(),
            sub_zone: sub_zone.clone(),
        }),
        user_agent_name: "cairn".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..core::Node::default()
    }
}

/// The variables, with those of `proxyMetadata` where they are not set.
fn with_defaults<'a>(
    environment: &'a Environment,
    proxy_config: &'a ProxyConfig,
) -> BTreeMap<&'a str, &'a str> {
    let mut all: BTreeMap<&str, &str> = proxy_config.variables().collect();
    all.extend(environment.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all
}

fn plain(variable: &'static str, value: &str) -> Result<String, NodeError> {
    if value.contains('~') {
        return Err(NodeError::Tilde { variable, value: value.to_owned() });
    }
    Ok(value.to_owned())
}

/// The list, or the one address and what else this machine has; without repetition.
fn addresses(
    list: Option<&str>,
    one: Result<&str, NodeError>,
    environment: &Environment,
) -> Result<Vec<IpAddr>, NodeError> {
    let read =
        |text: &str| text.trim().parse::<IpAddr>().map_err(|_| NodeError::Address(text.to_owned()));
    let mut all = match list {
        Some(list) => list.split(',').map(read).collect::<Result<Vec<_>, _>>()?,
        None => {
            let mut all = vec![read(one?)?];
            all.extend(&environment.other_addresses);
            all
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|address| seen.insert(*address));
    Ok(all)
}

/// What the variables `ISTIO_META_*` and `ISTIO_METAJSON_*` say.
fn said(
    variables: &BTreeMap<&str, &str>,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>, NodeError> {
    let mut metadata = Map::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(META).filter(|key| !key.is_empty()) else { continue };
        if KEPT_BACK.contains(&key.to_ascii_uppercase().as_str()) {
            warnings.push(format!("{name} is not sent to istiod: it has no place at a waypoint"));
            continue;
        }
        metadata.insert(key.to_owned(), Value::String((*value).to_owned()));
    }
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(META_JSON).filter(|key| !key.is_empty()) else {
            continue;
        };
        let json = |reason: String| NodeError::Json { variable: (*name).to_owned(), reason };
        let value: Value = serde_json::from_str(value).map_err(|error| json(error.to_string()))?;
        if !value.is_object() {
            return Err(json("it is no object".to_owned()));
        }
        metadata.insert(key.to_owned(), value);
    }
    Ok(metadata)
}

/// Those of the pod, over those that the variables name.
fn labels(metadata: &mut Map<String, Value>, pod: BTreeMap<String, String>) -> Map<String, Value> {
    let mut labels = Map::new();
    for key in ["STATIC_LABELS", "LABELS"] {
        if let Some(Value::Object(said)) = metadata.get(key) {
            labels.extend(said.clone());
        }
    }
    labels.extend(pod.into_iter().map(|(key, value)| (key, Value::String(value))));
    labels.remove(POD_TEMPLATE_HASH);
    labels
}

fn annotations(metadata: &mut Map<String, Value>, pod: BTreeMap<String, String>) {
    if pod.is_empty() {
        return;
    }
    let place = metadata.entry("ANNOTATIONS").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(annotations) = place {
        annotations.extend(pod.into_iter().map(|(key, value)| (key, Value::String(value))));
    }
}

/// From the labels of Istio, or of Kubernetes where nodes' labels are copied to pods.
fn locality(labels: &Map<String, Value>) -> Option<[String; 3]> {
    let label =
        |name: &str| labels.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
    if let Some(locality) = label(LOCALITY) {
        // Istio: a label cannot have slashes, so dots stand for them where there are none.
        let separator = if locality.contains('/') { '/' } else { '.' };
        let mut parts = locality.splitn(3, separator).map(str::to_owned);
        return Some(std::array::from_fn(|_| parts.next().unwrap_or_default()));
    }
    let region = label("topology.kubernetes.io/region")?;
    let or_empty = |name| label(name).unwrap_or_default().to_owned();
    Some([
        region.to_owned(),
        or_empty("topology.kubernetes.io/zone"),
        or_empty("topology.istio.io/subzone"),
    ])
}

/// What `ProxyConfig` says; else the CA's address where that is an istiod's, so that a revision's CA
/// and its discovery stay together; else the default.
fn discovery_address(proxy_config: &ProxyConfig, ca: Option<&str>) -> String {
    let istiod = |address: &&str| address.starts_with("istiod.") || address.starts_with("istiod-");
    proxy_config
        .discovery_address()
        .or_else(|| ca.filter(istiod))
        .unwrap_or(DISCOVERY_ADDRESS)
        .to_owned()
}

fn structure(fields: &Map<String, Value>) -> wkt::Struct {
    wkt::Struct {
        fields: fields.iter().map(|(key, value)| (key.clone(), proto_value(value))).collect(),
    }
}

fn proto_value(value: &Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => {
            Kind::ListValue(wkt::ListValue { values: list.iter().map(proto_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    wkt::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests;
