//! `deploy/manifests`: what is made from the charts is as they make it, and each kustomization is taken.

use crate::admitted::pods;
use crate::joined::{compare, installed};
use crate::monitored::monitors;
use crate::selected;
use crate::world::{Rendered, World, directory, key, names};
use cairn_mesh_tests::admission::Platform;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Says that a file is made.
const MADE: &str = "# Made by deploy/manifests/render.sh";

pub async fn made(world: &World) {
    let place = directory("manifests");
    let out = world.tools.directory("rendered");
    let path = std::env::var_os("PATH").unwrap();
    let mut paths = vec![world.tools.for_path()];
    paths.extend(std::env::split_paths(&path));
    let mut script = Command::new("bash");
    script.arg(place.join("render.sh")).arg(&out).env("PATH", std::env::join_paths(paths).unwrap());
    let output = script.kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = files(&out, &out);
    let mut said: Vec<PathBuf> = files(&place, &place);
    said.retain(|file| {
        let text = std::fs::read_to_string(place.join(file)).unwrap();
        text.starts_with(MADE)
    });
    assert_eq!(made, said, "those that say so are made");
    for file in made {
        let text = |place: &Path| std::fs::read_to_string(place.join(&file)).unwrap();
        assert!(text(&out) == text(&place), "{}: run render.sh", file.display());
    }
}

/// All files below, relative to `root`, in order.
fn files(root: &Path, place: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in names(place) {
        let path = place.join(name);
        if path.is_dir() {
            all.extend(files(root, &path));
        } else {
            all.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    all.sort();
    all
}

/// Every directory that has a kustomization which is no component.
fn kustomizations() -> Vec<PathBuf> {
    let place = directory("manifests");
    let mut all = files(&place, &place);
    all.retain(|file| file.ends_with("kustomization.yaml") && !file.starts_with("components"));
    all.iter().map(|file| file.parent().unwrap().to_owned()).collect()
}

pub async fn taken(world: &World) {
    world.namespace("shop").await;
    let all = kustomizations();
    for kind in ["overlays/plain", "join", "swap/all-waypoints"] {
        assert!(all.iter().any(|one| one.ends_with(kind)), "{kind}");
    }
    for place in all {
        let name = place.to_str().unwrap().to_owned();
        let path = directory("manifests").join(&place);
        let text = world.tools.kubectl(&["kustomize", path.to_str().unwrap()], "").await.done();
        let rendered = Rendered::of(&text);
        world.take(&name, &rendered).await;
        match (place.parent().unwrap().to_str().unwrap(), name.rsplit('/').next().unwrap()) {
            ("overlays", platform) => overlay(world, &name, platform, &rendered).await,
            ("", "join") => join(&name, &rendered),
            _ => {}
        }
        for object in rendered.objects.iter().filter(|object| object["kind"] != "Namespace") {
            world.kube().delete(object).await;
        }
    }
}

/// A patch adds at the end.
fn sort_arguments(object: &mut Value) {
    let args = object.pointer_mut("/spec/template/spec/containers/0/args");
    if let Some(args) = args.and_then(Value::as_array_mut) {
        args.sort_by_key(Value::to_string);
    }
}

/// Each component with the base: what the chart gives for the values that it stands for.
pub async fn components(world: &World) {
    let place = directory("manifests");
    let copy = world.tools.directory("manifests");
    for file in files(&place, &place) {
        std::fs::create_dir_all(copy.join(&file).parent().unwrap()).unwrap();
        std::fs::copy(place.join(&file), copy.join(&file)).unwrap();
    }
    for (component, set) in [
        ("apply", "scaler.by=apply"),
        ("keda", "scaler.by=keda"),
        (
            "monitoring",
            "monitoring.podMonitor=true,monitoring.serviceMonitor=true,monitoring.prometheusRule=true",
        ),
    ] {
        let overlay = copy.join("tried").join(component);
        std::fs::create_dir_all(&overlay).unwrap();
        let text = format!("resources: [../../base]\ncomponents: [../../components/{component}]\n");
        std::fs::write(overlay.join("kustomization.yaml"), text).unwrap();
        let text = world.tools.kubectl(&["kustomize", overlay.to_str().unwrap()], "").await.done();
        let mut rendered = Rendered::of(&text);
        world.take(component, &rendered).await;
        rendered.objects.retain(|object| object["kind"] != "Namespace");
        let values = place.join("values/pool.yaml");
        let args = ["--values", values.to_str().unwrap(), "--set", set];
        let mut chart = world.template("cairn", "cairn", "cairn-system", &args).await;
        for all in [&mut rendered, &mut chart] {
            all.objects.iter_mut().for_each(sort_arguments);
            // The base is rendered for KEDA, and its pool.yaml is written by hand.
            all.objects.retain(|object| component == "keda" || object["kind"] != "ScaledObject");
            all.objects.retain(|object| key(object) != ("ConfigMap", "cairn-pool"));
        }
        compare(component, &rendered, &chart.objects);
        for object in &rendered.objects {
            world.kube().delete(object).await;
        }
    }
    let known = names(&place.join("components"));
    assert_eq!(known, ["apply", "keda", "monitoring"]);
}

async fn overlay(world: &World, name: &str, platform: &str, rendered: &Rendered) {
    let platform = Platform::named(platform).unwrap_or_else(|| panic!("{name}: no such platform"));
    pods(name, rendered, &|pods| if pods == "cairn-members" { platform } else { Platform::Plain });
    selected::pool(name, rendered);
    monitors(name, true, rendered);
    crate::started::pool(name, &world.binary, rendered).await;
    assert_eq!(rendered.all("ScaledObject").count(), 1, "{name}");
    let image =
        |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let images: Vec<_> = rendered.all("Deployment").map(image).collect();
    assert_eq!(images, vec![json!("registry.example/cairn:1.0"); 3], "{name}");
}

fn join(name: &str, rendered: &Rendered) {
    let mut plain = rendered.clone();
    plain.objects.retain(|object| object["kind"] != "Namespace");
    let expected =
        installed("waypoint-pool", json!({}), json!({ "listen": "0.0.0.0:21001" }), true);
    compare(name, &plain, &expected);
}
