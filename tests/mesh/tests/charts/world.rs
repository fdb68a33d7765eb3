//! The control plane with all definitions, and what is rendered for it.

use cairn_mesh_tests::control::ControlPlane;
use cairn_mesh_tests::harness::Place;
use cairn_mesh_tests::kube::Kube;
use cairn_mesh_tests::objects;
use cairn_mesh_tests::tool::Tools;
use cairn_mesh_tests::yaml;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The charts.
pub const CHARTS: [&str; 2] = ["cairn", "cairn-join"];

pub struct World {
    /// Its istiod runs.
    pub plane: ControlPlane,
    /// Without a cluster.
    pub tools: Tools,
    /// With the cluster.
    pub clients: Tools,
    /// `cairn`.
    pub binary: PathBuf,
}

impl World {
    pub async fn start(place: &Place) -> Self {
        let plane = ControlPlane::start(&place.program, &place.dir, &place.logs).await;
        plane.kube.define(&place.keda()).await;
        plane.kube.define(&place.prometheus_operator()).await;
        let tools = Tools::new(&place.program, place.dir.join("tools"));
        let clients = tools.with_cluster(plane.kubeconfig());
        World { plane, tools, clients, binary: place.binary() }
    }

    pub fn kube(&self) -> &Kube {
        &self.plane.kube
    }

    pub async fn namespace(&self, name: &str) {
        self.kube().apply(&objects::namespace(name, &[])).await;
    }

    /// What `helm template` gives.
    pub async fn template(
        &self,
        chart: &str,
        release: &str,
        namespace: &str,
        args: &[&str],
    ) -> Rendered {
        let place = directory(&format!("helm/{chart}"));
        let place = place.to_str().unwrap();
        let mut line = vec!["template", release, place, "--namespace", namespace];
        line.extend(args);
        Rendered::of(&self.tools.helm(&line).await.done())
    }

    /// Server-side apply of all of it, in which an unknown field is an error.
    pub async fn take(&self, what: &str, rendered: &Rendered) {
        for object in &rendered.objects {
            let (status, answer) = self.kube().apply_strictly(object).await;
            let name = key(object);
            assert!(matches!(status, 200 | 201), "{what}: {name:?}: {status}: {answer}");
        }
    }
}

/// Objects, in the order of the text.
#[derive(Debug, Clone)]
pub struct Rendered {
    pub objects: Vec<Value>,
}

impl Rendered {
    pub fn of(text: &str) -> Self {
        let objects = yaml::documents(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        Rendered { objects }
    }

    /// All of a kind.
    pub fn all<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let kind = kind.to_owned();
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.all(kind).find(|object| object["metadata"]["name"] == name)
    }

    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    /// How many of each kind.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for object in &self.objects {
            *counts.entry(object["kind"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        counts
    }
}

/// Kind and name.
pub fn key(object: &Value) -> (&str, &str) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    (object["kind"].as_str().unwrap_or_default(), name)
}

/// Texts of a list.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

/// Arguments of the first container of an object's pods.
pub fn args(object: &Value) -> Vec<&str> {
    texts(&object["spec"]["template"]["spec"]["containers"][0]["args"])
}

/// The value of `--name=value`.
pub fn arg<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    args(object).into_iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='))
}

/// A directory or file of `deploy`.
pub fn directory(name: &str) -> PathBuf {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    deploy.canonicalize().unwrap().join(name)
}

pub fn read(name: &str) -> String {
    let file = directory(name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Names of what is in a directory, in order.
pub fn names(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The examples of a chart.
pub fn examples(chart: &str) -> Vec<String> {
    names(&directory(&format!("helm/{chart}/examples")))
}

/// The file of an example.
pub fn example(chart: &str, name: &str) -> String {
    let file = directory(&format!("helm/{chart}/examples/{name}"));
    file.to_str().unwrap().to_owned()
}
