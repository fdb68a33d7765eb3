//! Whoever scales has the scaler's bounds, and is what `deploy/keda` has.

use crate::variants::Variant;
use crate::world::{Rendered, arg, args, read, texts};
use cairn_mesh_tests::yaml;
use serde_json::{Value, json};

const DEFAULT_NAMES: &str = "waypoint-pool";

pub fn all(all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all.iter().filter(|(variant, _)| variant.is_pool()) {
        pool(variant, rendered);
    }
}

fn pool(variant: &Variant, rendered: &Rendered) {
    let what = variant.name;
    let target = Variant::name_of(if variant.spot.is_some() { "members-spot" } else { "members" });
    let replicas = |name: &str| &rendered.get("Deployment", name)["spec"]["replicas"];
    let is_scaled = !matches!(variant.scaled_by, "" | "none");
    assert_eq!(replicas(&target).is_null(), is_scaled, "{what}: who scales owns the replicas");
    let fixed = if variant.spot.is_some() {
        replicas(&Variant::name_of("members")).as_u64().unwrap()
    } else {
        0
    };
    if variant.scaled_by.is_empty() {
        return;
    }
    let scaler = rendered.get("Deployment", &Variant::name_of("scaler"));
    let namespace = variant.namespace();
    let members = Variant::name_of("members");
    assert_eq!(arg(scaler, "--service"), Some(format!("{namespace}/{members}").as_str()), "{what}");
    assert_eq!(arg(scaler, "--target"), Some(format!("deployments/{target}").as_str()), "{what}");
    let told = arg(scaler, "--fixed").map(|value| value.parse::<u64>().unwrap());
    assert_eq!(told, (fixed > 0).then_some(fixed), "{what}");
    assert_eq!(args(scaler).contains(&"--apply"), variant.scaled_by == "apply", "{what}");
    let bounds = ["min", "max"].map(|field| field_of_policy(scaler, field).saturating_sub(fixed));
    rights(variant, rendered, &target);

    let scaled = rendered.all("ScaledObject").next();
    let hpa = rendered.all("HorizontalPodAutoscaler").next();
    assert_eq!(scaled.is_some(), variant.scaled_by == "keda", "{what}");
    assert_eq!(hpa.is_some(), variant.scaled_by == "hpa", "{what}");
    if let Some(scaled) = scaled {
        let spec = &scaled["spec"];
        assert_eq!(spec["scaleTargetRef"]["name"], target, "{what}");
        assert_eq!(
            json!([spec["minReplicaCount"], spec["maxReplicaCount"]]),
            json!(bounds),
            "{what}"
        );
        let trigger = &spec["triggers"][0]["metadata"];
        let service = rendered.get("Service", &Variant::name_of("scaler"));
        let mut ports = service["spec"]["ports"].as_array().unwrap().iter();
        let port = &ports.find(|port| port["name"] == "grpc").unwrap()["port"];
        let address = format!("{}.{namespace}.svc:{port}", Variant::name_of("scaler"));
        assert_eq!(trigger["scalerAddress"], address, "{what}");
        assert_eq!(arg(scaler, "--pool"), trigger["pool"].as_str(), "{what}");
        let fallback = spec["fallback"]["replicas"].as_u64().unwrap();
        assert!(bounds[0] <= fallback && fallback <= bounds[1], "{what}: {fallback} of {bounds:?}");
        if variant.set.is_empty() && fixed == 0 {
            assert_eq!(renamed(spec), renamed(&from_keda("scaledobject.yaml")), "{what}");
        }
    }
    if let Some(hpa) = hpa {
        let spec = &hpa["spec"];
        assert_eq!(spec["scaleTargetRef"]["name"], target, "{what}");
        assert_eq!(json!([spec["minReplicas"], spec["maxReplicas"]]), json!(bounds), "{what}");
        assert_eq!(renamed(spec), renamed(&from_keda("hpa.yaml")), "{what}");
    }
}

/// The scaler writes only where it is to scale, and reads what it scales and nothing else.
fn rights(variant: &Variant, rendered: &Rendered, target: &str) {
    let Some(role) = rendered.find("Role", &Variant::name_of("scaler")) else { return };
    let rules = role["rules"].as_array().unwrap();
    let scale =
        rules.iter().find(|rule| rule["resources"] == json!(["deployments/scale"])).unwrap();
    assert_eq!(scale["resourceNames"], json!([target]), "{}", variant.name);
    let writes = variant.scaled_by == "apply";
    let mut verbs = rules.iter().flat_map(|rule| texts(&rule["verbs"]));
    let wrote = verbs.any(|verb| !["get", "list", "watch"].contains(&verb));
    assert_eq!(wrote, writes, "{}", variant.name);
}

fn field_of_policy(scaler: &Value, field: &str) -> u64 {
    let mut fields = arg(scaler, "--policy").unwrap().split(',');
    let value = fields.find_map(|one| one.strip_prefix(field)?.strip_prefix('='));
    value.unwrap().parse().unwrap()
}

fn from_keda(file: &str) -> Value {
    yaml::document(&read(&format!("keda/{file}"))).unwrap()["spec"].clone()
}

/// Without the names that differ.
fn renamed(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["scaleTargetRef"]["name"] = DEFAULT_NAMES.into();
    if let Some(trigger) = spec.pointer_mut("/triggers/0/metadata/scalerAddress") {
        *trigger = DEFAULT_NAMES.into();
    }
    spec
}
