//! What kubelet makes of a pod: its command line, its environment and its files.

use crate::control::eventually;
use crate::kube::{Bound, Kube};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A pod that somebody has scheduled.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// The template it was made from: `spec.template` of a Deployment.
    pub template: Value,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `status.podIP`.
    pub ip: String,
}

/// How its only container is started.
#[derive(Debug, Clone)]
pub struct Container {
    /// For the entry point of the image.
    pub args: Vec<String>,
    /// Exactly these variables.
    pub env: BTreeMap<String, String>,
}

const NODE: &str = "node-a";
const HOST_IP: &str = "192.0.2.1";

impl Scheduled {
    /// The pod's `spec`.
    pub fn spec(&self) -> &Value {
        &self.template["spec"]
    }

    /// Its only container.
    pub fn container_spec(&self) -> &Value {
        &self.spec()["containers"][0]
    }

    /// The pod's labels and annotations.
    pub fn labels(&self) -> BTreeMap<String, String> {
        texts(&self.template["metadata"]["labels"])
    }

    /// A port by its number or its name.
    ///
    /// # Panics
    /// When the container has none of that name.
    pub fn port(&self, port: &Value) -> u16 {
        let number = port.as_u64().unwrap_or_else(|| {
            let ports = array(&self.container_spec()["ports"]);
            let named = ports.iter().find(|one| one["name"] == *port);
            let named = named.unwrap_or_else(|| panic!("{} has no port {port}", self.name));
            named["containerPort"].as_u64().unwrap()
        });
        u16::try_from(number).unwrap()
    }

    /// The service account.
    pub fn account(&self) -> &str {
        self.spec()["serviceAccountName"].as_str().unwrap()
    }

    /// The pod as an object.
    pub fn object(&self) -> Value {
        let mut spec = self.spec().clone();
        spec["nodeName"] = NODE.into();
        let mut metadata = self.template["metadata"].clone();
        metadata["name"] = self.name.as_str().into();
        metadata["namespace"] = self.namespace.as_str().into();
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
        })
    }

    /// Command line and environment, with the downward API filled in.
    ///
    /// # Panics
    /// At a source of a variable that is not known here.
    pub fn container(&self) -> Container {
        let mut env = BTreeMap::new();
        for variable in array(&self.container_spec()["env"]) {
            let name = variable["name"].as_str().unwrap().to_owned();
            let value = match variable.pointer("/valueFrom") {
                None => variable["value"].as_str().unwrap_or_default().to_owned(),
                Some(source) => self.source(source),
            };
            env.insert(name, value);
        }
        let args = array(&self.container_spec()["args"])
            .iter()
            .map(|arg| expand(arg.as_str().unwrap(), &env))
            .collect();
        Container { args, env }
    }

    fn source(&self, source: &Value) -> String {
        if let Some(field) = source.pointer("/fieldRef/fieldPath").and_then(Value::as_str) {
            return self.field(field).to_owned();
        }
        match source.pointer("/resourceFieldRef/resource").and_then(Value::as_str) {
            Some("limits.cpu") => cores(self.limit("cpu")).to_string(),
            Some("limits.memory") => bytes(self.limit("memory")).to_string(),
            _ => panic!("a variable from {source}"),
        }
    }

    fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => &self.name,
            "metadata.namespace" => &self.namespace,
            "spec.nodeName" => NODE,
            "spec.serviceAccountName" => self.account(),
            "status.podIP" => &self.ip,
            "status.hostIP" => HOST_IP,
            other => panic!("a variable from the field {other}"),
        }
    }

    fn limit(&self, resource: &str) -> &str {
        self.container_spec()["resources"]["limits"][resource].as_str().unwrap()
    }

    /// Writes the pod's volumes under `root`; tokens are bound to `bound`.
    ///
    /// # Panics
    /// At a kind of volume that is not known here.
    pub async fn write_volumes(&self, kube: &Kube, bound: &Bound, root: &Path) {
        for mount in array(&self.container_spec()["volumeMounts"]) {
            let path = mount["mountPath"].as_str().unwrap().trim_start_matches('/');
            let dir = root.join(path);
            fs::create_dir_all(&dir).unwrap();
            let volume = array(&self.spec()["volumes"])
                .into_iter()
                .find(|volume| volume["name"] == mount["name"])
                .unwrap_or_else(|| panic!("no volume for {mount}"));
            let files = self.files(kube, bound, &volume).await;
            if !files.is_empty() {
                write_atomically(&dir, &files);
            }
        }
    }

    async fn files(&self, kube: &Kube, bound: &Bound, volume: &Value) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        if volume["emptyDir"].is_object() {
            return files;
        }
        let mut sources = array(&volume["projected"]["sources"]);
        sources.push(volume.clone());
        for source in &sources {
            let token = &source["serviceAccountToken"];
            if let Some(path) = token["path"].as_str() {
                let audience = token["audience"].as_str().unwrap();
                let account = self.account();
                let text = kube.token(&self.namespace, account, audience, Some(bound)).await;
                files.insert(path.into(), text);
            }
            let secret = &source["secret"];
            if let Some(name) = secret["name"].as_str().or(secret["secretName"].as_str()) {
                files.extend(secret_of(kube, &self.namespace, name).await);
            }
            if let Some(name) = source["configMap"]["name"].as_str() {
                let map = kube.get("v1", "ConfigMap", &self.namespace, name).await;
                let map = map.unwrap_or_else(|| panic!("no ConfigMap {name}"));
                files.extend(texts(&map["data"]).into_iter().map(|(k, v)| (k.into(), v)));
            }
            if let Some(name) = source["secret"]["secretName"].as_str() {
                let secret = kube.get("v1", "Secret", &self.namespace, name).await;
                let secret = secret.unwrap_or_else(|| panic!("no Secret {name}"));
                let decode = |(key, value): (String, String)| {
                    (key.into(), String::from_utf8(STANDARD.decode(value).unwrap()).unwrap())
                };
                files.extend(texts(&secret["data"]).into_iter().map(decode));
            }
            for item in array(&source["downwardAPI"]["items"]) {
                let field = item["fieldRef"]["fieldPath"].as_str().unwrap();
                let section = field.strip_prefix("metadata.").unwrap();
                let pairs = texts(&self.template["metadata"][section]);
                let lines = pairs.iter().map(|(key, value)| format!("{key}={value:?}"));
                let text = lines.collect::<Vec<_>>().join("\n");
                files.insert(item["path"].as_str().unwrap().into(), text);
            }
        }
        assert!(!files.is_empty(), "a volume of an unknown kind: {volume}");
        files
    }
}

/// What a Secret has, as soon as there is one: until then kubelet holds the pod back, too.
async fn secret_of(kube: &Kube, namespace: &str, name: &str) -> BTreeMap<PathBuf, String> {
    let mut found = None;
    eventually(&format!("there is a Secret {name} in {namespace}"), async || {
        found = kube.get("v1", "Secret", namespace, name).await;
        found.is_some()
    })
    .await;
    let text = |coded: &str| String::from_utf8(STANDARD.decode(coded).unwrap()).unwrap();
    let data = texts(&found.unwrap()["data"]);
    data.into_iter().map(|(key, coded)| (key.into(), text(&coded))).collect()
}

/// Replaces a volume's files at once, as kubelet does: the names are links through `..data`, which
/// is a link to the directory of one version.
pub fn write_atomically(dir: &Path, files: &BTreeMap<PathBuf, String>) {
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    let version = (0..).map(|n| format!("..version_{n}")).find(|name| !dir.join(name).exists());
    let version = version.unwrap();
    fs::create_dir(dir.join(&version)).unwrap();
    for (name, text) in files {
        fs::write(dir.join(&version).join(name), text).unwrap();
    }
    let fresh = dir.join("..data_tmp");
    std::os::unix::fs::symlink(&version, &fresh).unwrap();
    fs::rename(&fresh, &data).unwrap();
    for name in files.keys() {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old)).unwrap();
    }
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A map of texts.
pub(crate) fn texts(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Kubernetes: `$(NAME)` is the variable of that name, if there is one.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut text = text.to_owned();
    for (name, value) in env {
        text = text.replace(&format!("$({name})"), value);
    }
    text
}

/// Whole cores, rounded up, of a quantity such as `2` or `1500m`.
fn cores(quantity: &str) -> u64 {
    match quantity.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<u64>().unwrap().div_ceil(1000),
        None => quantity.parse().unwrap(),
    }
}

/// Bytes of a quantity such as `1Gi`.
fn bytes(quantity: &str) -> u64 {
    for (suffix, unit) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if let Some(number) = quantity.strip_suffix(suffix) {
            return number.parse::<u64>().unwrap() * unit;
        }
    }
    quantity.parse().unwrap()
}
