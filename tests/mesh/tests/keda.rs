//! `deploy/keda` on a real kube-apiserver that has KEDA's definitions: every object is taken with strict
//! validation and kept as it was written, what is wrong is refused, and the scaler's rights are
//! those that it needs.

#![allow(clippy::unwrap_used, clippy::panic)]

use cairn_mesh_tests::control::ControlPlane;
use cairn_mesh_tests::harness::{Need, Place, Target, run};
use cairn_mesh_tests::kube::Kube;
use cairn_mesh_tests::manifest::{Document, documents, path};
use cairn_mesh_tests::objects;
use cairn_mesh_tests::steps::Steps;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const POOL: &str = "waypoint-pool";
const KEDA: &str = "keda.sh/v1alpha1";

/// The files, in the order in which their README names them.
const FILES: [&str; 4] = ["scaler.yaml", "scaledobject.yaml", "apply.yaml", "hpa.yaml"];
/// Each file, and what is asked of all of them.
const COUNT: usize = FILES.len() + 4;

const TARGET: Target =
    Target { name: "keda", steps: COUNT, tmp: env!("CARGO_TARGET_TMPDIR"), needs: &[Need::Keda] };

fn main() -> ExitCode {
    run(TARGET, all)
}

async fn all(place: Place, mut steps: Steps) -> Steps {
    let plane = ControlPlane::start(&place.program, &place.dir, &place.logs).await;
    let kube = &plane.kube;
    steps.run("every file of deploy/keda is known here", async { all_files_are_named() }).await;
    define(kube, &place.keda()).await;
    for file in FILES {
        steps.run(&format!("{file} is taken"), taken(kube, file)).await;
    }
    let step = what_was_written_fits_together(kube);
    steps.run("the objects name each other rightly", step).await;
    steps.run("what is wrong is refused", what_is_wrong_is_refused(kube)).await;
    let step = the_scaler_may_what_it_needs(kube);
    steps.run("the scaler may what it needs, and no more", step).await;
    steps
}

async fn define(kube: &Kube, definitions: &Path) {
    kube.define(definitions).await;
    kube.apply(&objects::namespace(POOL, &[])).await;
}

async fn taken(kube: &Kube, file: &str) {
    if file == "apply.yaml" {
        assert!(!may(kube, "patch", "apps", "deployments", "scale").await, "not by itself");
    }
    for document in read(file) {
        let (status, answer) = apply(kube, &document, &document.text).await;
        assert!(matches!(status, 200 | 201), "{file}: {}: {answer}", document.kind);
        let Document { api_version, kind, namespace, name, .. } = &document;
        let stored = kube.get(api_version, kind, namespace, name).await;
        let stored = stored.unwrap_or_else(|| panic!("{file}: {kind} {name} is not there"));
        assert_eq!(stored["metadata"]["uid"], answer["metadata"]["uid"]);
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/keda")
}

fn read(file: &str) -> Vec<Document> {
    let found = documents(&std::fs::read_to_string(directory().join(file)).unwrap());
    assert!(!found.is_empty(), "{file} has no object");
    found
}

fn all_files_are_named() {
    let entries = std::fs::read_dir(directory()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    let mut known = FILES.to_vec();
    known.sort_unstable();
    assert_eq!(names, known);
}

/// Server-side apply, in which an unknown field is an error.
async fn apply(kube: &Kube, document: &Document, text: &str) -> (u16, Value) {
    let Document { api_version, kind, namespace, name, .. } = document;
    let place = path(api_version, kind, namespace, name);
    let query = format!("{place}?fieldManager=keda-test&force=true&fieldValidation=Strict");
    kube.call("PATCH", &query, "application/apply-patch+yaml", text.as_bytes()).await
}

async fn get(kube: &Kube, api_version: &str, kind: &str, name: &str) -> Value {
    let found = kube.get(api_version, kind, POOL, name).await;
    found.unwrap_or_else(|| panic!("{kind} {name} is not there"))
}

async fn what_was_written_fits_together(kube: &Kube) {
    let scaled = get(kube, KEDA, "ScaledObject", POOL).await;
    let service = get(kube, "v1", "Service", "waypoint-scaler").await;
    let deployment = get(kube, "apps/v1", "Deployment", "waypoint-scaler").await;
    let hpa = get(kube, "autoscaling/v2", "HorizontalPodAutoscaler", POOL).await;

    let trigger = &scaled["spec"]["triggers"][0];
    let port = &service["spec"]["ports"][0];
    assert_eq!(
        trigger["metadata"]["scalerAddress"],
        format!("waypoint-scaler.{POOL}.svc.cluster.local:{}", port["port"]),
        "{scaled}"
    );
    assert_eq!(trigger["type"], "external-push");
    assert_eq!(trigger["metricType"], "AverageValue");
    assert_eq!(scaled["spec"]["fallback"]["behavior"], "currentReplicasIfHigher");

    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"], service["spec"]["selector"]);
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["containerPort"], port["port"]);
    assert_eq!(container["ports"][0]["name"], port["targetPort"]);
    let args: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let target = &scaled["spec"]["scaleTargetRef"];
    let name = target["name"].as_str().unwrap();
    assert_eq!(target["kind"], "Deployment");
    assert!(args.contains(&format!("--target=deployments/{name}").as_str()), "{args:?}");
    let pool = trigger["metadata"]["pool"].as_str().unwrap();
    assert!(args.contains(&format!("--pool={pool}").as_str()), "{args:?}");
    let (min, max) = (&scaled["spec"]["minReplicaCount"], &scaled["spec"]["maxReplicaCount"]);
    assert!(args.contains(&format!("--policy=min={min},max={max}").as_str()), "{args:?}");

    assert_eq!((&hpa["spec"]["minReplicas"], &hpa["spec"]["maxReplicas"]), (min, max));
    assert_eq!(&hpa["spec"]["scaleTargetRef"], target);
    let behavior = &scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"];
    for direction in ["scaleUp", "scaleDown"] {
        for field in ["policies", "selectPolicy", "stabilizationWindowSeconds"] {
            let (one, other) =
                (&behavior[direction][field], &hpa["spec"]["behavior"][direction][field]);
            assert!(!one.is_null(), "{direction}.{field} is lost: {scaled}");
            assert_eq!(one, other, "{direction}.{field}");
        }
    }
}

/// Proves that the definitions are in force.
async fn what_is_wrong_is_refused(kube: &Kube) {
    let [document] = &read("scaledobject.yaml")[..] else { panic!("one object") };
    for (good, bad, named) in [
        ("pollingInterval:", "pollInterval:", "pollInterval"),
        ("currentReplicasIfHigher", "currentReplicasOrMore", "behavior"),
        ("minReplicaCount: 2", "minReplicaCount: two", "minReplicaCount"),
        ("metricType: AverageValue", "metricTypes: AverageValue", "metricTypes"),
        ("  scaleTargetRef:\n", "  scaleTarget:\n", "scaleTarget"),
    ] {
        let text = document.text.replacen(good, bad, 1);
        assert_ne!(text, document.text, "{good} is in it");
        let (status, answer) = apply(kube, document, &text).await;
        assert!(status >= 400, "{bad} is taken: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(named), "{bad}: {answer}");
    }
}

/// Whether the scaler's account may do this, by the API server's own authorizer.
async fn may(kube: &Kube, verb: &str, group: &str, resource: &str, sub: &str) -> bool {
    let name = match resource {
        "deployments" => POOL,
        "leases" if verb != "create" => "cairn-scaler-waypoint-pool",
        _ => "",
    };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{POOL}:waypoint-scaler"),
            "resourceAttributes": {
                "namespace": POOL, "verb": verb, "group": group,
                "resource": resource, "subresource": sub, "name": name,
            },
        },
    });
    let place = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let body = review.to_string();
    let (status, answer) = kube.call("POST", place, "application/json", body.as_bytes()).await;
    assert_eq!(status, 201, "{answer}");
    answer["status"]["allowed"].as_bool().unwrap()
}

async fn the_scaler_may_what_it_needs(kube: &Kube) {
    for (verb, group, resource, sub) in [
        ("list", "discovery.k8s.io", "endpointslices", ""),
        ("watch", "discovery.k8s.io", "endpointslices", ""),
        ("get", "apps", "deployments", "scale"),
        ("patch", "apps", "deployments", "scale"),
        ("create", "coordination.k8s.io", "leases", ""),
        ("get", "coordination.k8s.io", "leases", ""),
        ("update", "coordination.k8s.io", "leases", ""),
    ] {
        assert!(may(kube, verb, group, resource, sub).await, "{verb} {resource}");
    }
    for (verb, group, resource) in [
        ("patch", "apps", "deployments"),
        ("get", "", "secrets"),
        ("delete", "coordination.k8s.io", "leases"),
    ] {
        assert!(!may(kube, verb, group, resource, "").await, "{verb} {resource}");
    }
}
