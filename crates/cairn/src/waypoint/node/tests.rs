#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::waypoint::args::Args;

/// The Deployment that istiod renders for a Gateway.
const DEPLOYMENT: &str = include_str!("../../../../../tests/data/rendered/deploy.json");
/// What nodes that istiod accepted have sent.
const PLAIN: &str = include_str!("../../../../../tests/data/rendered/node-plain.json");
const MULTI_NETWORK: &str =
    include_str!("../../../../../tests/data/rendered/node-multi-network.json");
const PROXY_CONFIG: &str =
    include_str!("../../../../../tests/data/rendered/node-proxy-config.json");

/// The environment as kubelet makes it of the Deployment.
fn rendered() -> Environment {
    let deployment: Value = serde_json::from_str(DEPLOYMENT).unwrap();
    let template = &deployment["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let field = |entry: &Value| match entry["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some("metadata.name") => "waypoint-1",
        Some("metadata.namespace") => "plain",
        Some("spec.nodeName") => "node-a",
        Some("spec.serviceAccountName") => "waypoint",
        Some("status.podIP") => "10.244.1.10",
        Some("status.hostIP") => "192.168.0.1",
        Some(other) => panic!("{other}"),
        None => match entry["valueFrom"]["resourceFieldRef"]["resource"].as_str() {
            Some("limits.cpu") => "2",
            Some("limits.memory") => "1073741824",
            other => panic!("{other:?}"),
        },
    };
    let vars = container["env"].as_array().unwrap().iter().map(|entry| {
        let value = entry["value"].as_str().unwrap_or_else(|| field(entry));
        (entry["name"].as_str().unwrap().to_owned(), value.to_owned())
    });
    let lines = |map: &Value| {
        let map = map.as_object().unwrap();
        map.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>()
    };
    let words = container["args"].as_array().unwrap().iter().skip(2);
    let words = words.map(|word| word.as_str().unwrap().replace("$(POD_NAMESPACE)", "plain"));
    Environment {
        args: Args::parse(words),
        vars: vars.collect(),
        labels: Some(lines(&template["metadata"]["labels"]) + "pod-template-hash=\"5d9f\"\n"),
        annotations: Some(lines(&template["metadata"]["annotations"])),
        other_addresses: Vec::new(),
    }
}

fn with(vars: &[(&str, &str)]) -> Environment {
    let mut environment = rendered();
    for (name, value) in vars {
        environment.vars.insert((*name).to_owned(), (*value).to_owned());
    }
    environment
}

/// Everything that `expected` says is said.
fn assert_says(actual: &Value, expected: &Value, path: &str) {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            for (key, value) in expected {
                let found = actual.get(key).unwrap_or_else(|| panic!("no {path}/{key}"));
                assert_says(found, value, &format!("{path}/{key}"));
            }
        }
        _ => assert_eq!(actual, expected, "{path}"),
    }
}

#[test]
fn the_rendered_pod_says_what_istiod_was_seen_to_accept() {
    let cases: [(&str, &[(&str, &str)]); 3] = [
        (PLAIN, &[]),
        (MULTI_NETWORK, &[("ISTIO_META_NETWORK", "net1")]),
        (
            PROXY_CONFIG,
            &[
                ("ISTIO_META_IDLE_TIMEOUT", "33s"),
                (
                    "PROXY_CONFIG",
                    "proxyHeaders:\n  attemptCount: {disabled: true}\n  envoyDebugHeaders: {disabled: true}\n  \
                     forwardedClientCert: SANITIZE_SET\n  preserveHttp1HeaderCase: true\n  requestId: {disabled: true}\n  \
                     server: {disabled: true}\n  setCurrentClientCertDetails: {subject: true, uri: true}\n  \
                     xForwardedHost: {enabled: true}\n  xForwardedPort: {enabled: true}\n",
                ),
            ],
        ),
    ];
    for (expected, vars) in cases {
        let expected: Value = serde_json::from_str(expected).unwrap();
        let node = Node::from(&with(vars)).unwrap();
        assert_eq!(node.id, expected["id"]);
        assert_eq!(node.cluster, expected["cluster"]);
        let metadata = Value::Object(node.metadata.clone());
        assert_says(&metadata, &expected["metadata"], "metadata");
        assert_eq!(node.warnings, Vec::<String>::new());
    }
}

#[test]
fn what_an_envoy_waypoint_says_besides_is_said_too() {
    let node = Node::from(&rendered()).unwrap();
    let expected = json!({
        "METADATA_DISCOVERY": "true", "ENABLE_HBONE": "true", "INTERCEPTION_MODE": "REDIRECT",
        "OWNER": "kubernetes://apis/apps/v1/namespaces/plain/deployments/waypoint",
        "PILOT_SAN": ["istiod.istio-system.svc"],
        "ANNOTATIONS": {"istio.io/rev": "default", "prometheus.io/port": "15020"},
        "PROXY_CONFIG": {"proxyMetadata": {"ISTIO_META_ENABLE_HBONE": "true"}},
    });
    assert_says(&Value::Object(node.metadata.clone()), &expected, "metadata");
    assert_eq!(node.metadata["LABELS"].get(POD_TEMPLATE_HASH), None);
    assert_eq!(node.metadata.get("ENVOY_STATUS_PORT"), Some(&json!(15021)));
    assert_eq!((node.gateway.as_str(), node.cluster_id.as_str()), ("waypoint", "Kubernetes"));
    assert_eq!(node.service_account, "waypoint");

    let proto = node.to_proto();
    assert_eq!(proto.id, node.id);
    let sent = proto.metadata.unwrap();
    assert_eq!(sent.fields.len(), node.metadata.len());
    let kind = sent.fields["INSTANCE_IPS"].kind.clone();
    assert_eq!(kind, Some(wkt::value::Kind::StringValue("10.244.1.10".to_owned())));
}

#[test]
fn a_pod_without_its_gateway_is_refused() {
    for labels in [None, Some("app=\"x\"\n"), Some("gateway.networking.k8s.io/gateway-name=\"\"\n")]
    {
        let environment = Environment { labels: labels.map(str::to_owned), ..rendered() };
        let error = Node::from(&environment).unwrap_err();
        assert_eq!(error, NodeError::NoGateway);
        assert!(error.to_string().contains(GATEWAY_NAME));
    }
    let labels = "{\"gateway.networking.k8s.io/gateway-name\": \"edge\"}";
    let environment = Environment { labels: None, ..with(&[("ISTIO_METAJSON_LABELS", labels)]) };
    assert_eq!(Node::from(&environment).unwrap().gateway, "edge");
}

#[test]
fn what_is_missing_or_broken_is_named() {
    for name in ["POD_NAME", "POD_NAMESPACE", "INSTANCE_IP"] {
        assert_eq!(Node::from(&with(&[(name, "")])).unwrap_err(), NodeError::Missing(name));
    }
    let mut environment = with(&[("SERVICE_ACCOUNT", "")]);
    assert_eq!(Node::from(&environment).unwrap().service_account, "waypoint");
    environment.vars.remove("ISTIO_META_SERVICE_ACCOUNT");
    assert_eq!(Node::from(&environment).unwrap_err(), NodeError::Missing("SERVICE_ACCOUNT"));

    for (vars, words) in [
        (("INSTANCE_IP", "pod"), "`pod`"),
        (("POD_NAME", "a~b"), "`a~b`"),
        (("ISTIO_METAJSON_X", "{"), "ISTIO_METAJSON_X"),
        (("ISTIO_METAJSON_X", "1"), "no object"),
        (("PROXY_CONFIG", "- 1"), "PROXY_CONFIG"),
    ] {
        let error = Node::from(&with(&[vars])).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn addresses_of_both_families_are_told() {
    let v6 = Node::from(&with(&[("INSTANCE_IP", "fd00::17")])).unwrap();
    assert_eq!(v6.id, "waypoint~fd00::17~waypoint-1.plain~plain.svc.cluster.local");

    let listed = with(&[("INSTANCE_IPS", "10.0.0.1, fd00::1,10.0.0.1")]);
    let listed = Node::from(&listed).unwrap();
    assert_eq!(listed.metadata["INSTANCE_IPS"], "10.0.0.1,fd00::1");
    assert!(listed.id.starts_with("waypoint~10.0.0.1~"));

    let found = Environment { other_addresses: vec!["fd00::2".parse().unwrap()], ..rendered() };
    let found = Node::from(&found).unwrap();
    assert_eq!(found.metadata["INSTANCE_IPS"], "10.244.1.10,fd00::2");
}

#[test]
fn istiod_is_found_by_its_revision() {
    let address = |vars: &[(&str, &str)]| Node::from(&with(vars)).unwrap().discovery_address;
    assert_eq!(address(&[]), DISCOVERY_ADDRESS);
    let canary = "istiod-canary.istio-system.svc:15012";
    assert_eq!(address(&[("CA_ADDR", canary)]), canary);
    assert_eq!(
        address(&[("CA_ADDR", "cert-manager-istio-csr.cert-manager.svc:443")]),
        DISCOVERY_ADDRESS
    );
    let config = format!("discoveryAddress: {canary}");
    assert_eq!(address(&[("PROXY_CONFIG", &config)]), canary);

    let node = Node::from(&with(&[("PROXY_CONFIG", &config)])).unwrap();
    assert_eq!(node.metadata["PILOT_SAN"], json!(["istiod-canary.istio-system.svc"]));
}

#[test]
fn metadata_of_the_proxy_config_are_defaults_of_variables() {
    let config = r#"{"proxyMetadata": {"ISTIO_META_CLUSTER_ID": "other", "ISTIO_META_A": "b"}}"#;
    let node = Node::from(&with(&[("PROXY_CONFIG", config)])).unwrap();
    assert_eq!(node.cluster_id, "Kubernetes");
    assert_eq!(node.metadata["A"], "b");
}

#[test]
fn what_would_change_the_generator_is_kept_back() {
    let node = Node::from(&with(&[
        ("ISTIO_META_GENERATOR", "grpc"),
        ("ISTIO_META_DISABLE_HBONE_SEND", "true"),
        ("ISTIO_META_ISTIO_VERSION", "1.31.2"),
    ]))
    .unwrap();
    assert_eq!(node.metadata.get("GENERATOR"), None);
    assert_eq!(node.metadata.get("DISABLE_HBONE_SEND"), None);
    assert_eq!(node.warnings.len(), 2);
    assert_eq!(node.metadata["ISTIO_VERSION"], "1.31.2");
}

#[test]
fn locality_comes_from_labels() {
    let locality = |line: &str| {
        let labels = format!("{GATEWAY_NAME}=\"waypoint\"\n{line}\n");
        let node = Node::from(&Environment { labels: Some(labels), ..rendered() }).unwrap();
        node.locality.map(|parts| parts.join("|"))
    };
    assert_eq!(locality(""), None);
    assert_eq!(locality("istio-locality=\"eu.eu-a.rack1\"").as_deref(), Some("eu|eu-a|rack1"));
    assert_eq!(locality("istio-locality=\"eu/eu.a\"").as_deref(), Some("eu|eu.a|"));
    let kubernetes = "topology.kubernetes.io/region=\"eu\"\ntopology.kubernetes.io/zone=\"eu-a\"";
    assert_eq!(locality(kubernetes).as_deref(), Some("eu|eu-a|"));
}
