//! Each container has arguments that `cairn` takes, and `pool.yaml` names files that are mounted and Services that are
//! there.

use crate::variants::Variant;
use crate::world::{Rendered, World, args, key, texts};
use cairn_mesh_tests::yaml;
use cairn_pool::{PoolConfig, rbac};
use serde_json::Value;
use std::path::Path;
use tokio::process::Command;

pub async fn all(world: &World, all: &[(&'static Variant, Rendered)]) {
    for (variant, rendered) in all.iter().filter(|(variant, _)| variant.is_pool()) {
        pool(variant.name, &world.binary, rendered).await;
        let config = config(rendered);
        let ports: Vec<u16> = config.clusters.iter().map(|one| one.listen.port()).collect();
        assert_eq!(ports, variant.ports, "{}", variant.name);
        assert_eq!(config.pool.scaler.is_some(), !variant.scaled_by.is_empty(), "{}", variant.name);
    }
}

/// What is true of every pool, whoever has rendered it.
pub async fn pool(what: &str, binary: &Path, rendered: &Rendered) {
    let config = config(rendered);
    services(what, rendered, &config);
    for deployment in rendered.all("Deployment") {
        let name = key(deployment).1;
        let what = format!("{what}: {name}");
        takes_arguments(&what, binary, deployment).await;
        files(&what, deployment, &config);
    }
    if let Some(registrar) = rendered.all("Role").find(|role| key(role).1.ends_with("registrar")) {
        let namespace = registrar["metadata"]["namespace"].as_str().unwrap();
        let needed = rbac::pool_cluster(namespace, &config.pool);
        let role = needed.iter().find(|object| object["kind"] == "Role").unwrap();
        assert_eq!(registrar["rules"], role["rules"], "{what}");
    }
}

fn config(rendered: &Rendered) -> PoolConfig {
    let mut maps = rendered.all("ConfigMap");
    let map = maps.find(|map| map["data"]["pool.yaml"].is_string()).unwrap();
    let text = map["data"]["pool.yaml"].as_str().unwrap();
    let document = yaml::document(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    PoolConfig::of(document).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Everything is read before anything is looked for: outside of a pod the first thing that is missing ends it.
async fn takes_arguments(what: &str, binary: &Path, deployment: &Value) {
    let args = args(deployment);
    let mut command = Command::new(binary);
    let output = command.args(&args).env_clear().kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let missing = if args.first() == Some(&"scaler") {
        "no access to the Kubernetes API"
    } else {
        "/etc/cairn/pool/pool.yaml: No such file"
    };
    assert!(said.contains(missing), "{what}: {args:?}: {said}");
}

fn services(what: &str, rendered: &Rendered, config: &PoolConfig) {
    let hosts = |object: &Value| {
        format!("{}.{}.svc", key(object).1, object["metadata"]["namespace"].as_str().unwrap())
    };
    let found: Vec<String> = rendered.all("Service").map(hosts).collect();
    for sibling in &config.siblings {
        assert!(found.contains(sibling), "{what}: {sibling}");
    }
    if let Some(scaler) = &config.pool.scaler {
        let (host, port) = scaler.strip_prefix("http://").unwrap().split_once(':').unwrap();
        let service = rendered.all("Service").find(|service| hosts(service) == host);
        let ports = service.unwrap_or_else(|| panic!("{what}: {scaler}"))["spec"]["ports"].clone();
        let mut ports = ports.as_array().unwrap().iter().map(|one| one["port"].to_string());
        assert!(ports.any(|one| one == port), "{what}: {scaler}");
    }
}

/// Who reads a file has the directory that it is in.
fn files(what: &str, deployment: &Value, config: &PoolConfig) {
    let pod = &deployment["spec"]["template"]["spec"];
    let is = |words: &[&str]| texts(&pod["containers"][0]["args"]).starts_with(words);
    let mut needed: Vec<&Path> = vec![Path::new("/etc/cairn/token/token")];
    assert_eq!(config.pool.token_file.as_deref(), needed.first().copied(), "{what}");
    if is(&["pool", "member"]) {
        needed.extend(config.clusters.iter().map(|one| one.root_file.as_path()));
        needed.extend(config.clusters.iter().filter_map(|one| one.token_file.as_deref()));
        // As the registrar calls them in its Secret.
        for cluster in &config.clusters {
            assert!(cluster.root_file.ends_with(format!("{}.root.pem", cluster.name)), "{what}");
            let token = cluster.token_file.as_ref().unwrap();
            assert!(token.ends_with(format!("{}.token", cluster.name)), "{what}");
        }
        let mut volumes = pod["volumes"].as_array().unwrap().iter();
        let secret = rbac::tokens_secret(&config.pool);
        assert!(volumes.any(|one| one["secret"]["secretName"] == secret), "{what}: {secret}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{what}: it asks nothing");
    }
    if is(&["pool", "registrar"]) {
        needed.extend(config.clusters.iter().map(|one| one.kubeconfig.as_deref().unwrap()));
    }
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    for file in needed {
        let of = |mount: &Value| file.starts_with(mount["mountPath"].as_str().unwrap());
        assert!(mounts.iter().any(of), "{what}: {} is not mounted", file.display());
        assert!(mounts.iter().all(|mount| mount["readOnly"] == true), "{what}");
    }
}
