//! A container as kubelet starts it, from the image's root filesystem: read-only but for what is mounted as an emptyDir,
//! as the image's user, without a capability, in a network of its own.

use crate::kube::Bound;
use crate::kubelet::Scheduled;
use crate::node::Node;
use crate::sandbox::Sandbox;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Entry point of the image.
const PROGRAM: &str = "/usr/local/bin/cairn";
/// Where a pod finds its account.
const ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";
/// User and group of the image.
const USER: &str = "1337";

/// Mounts what a container has, and becomes the program: root, directories that may be written to, `--`, program.
const START: &str = r#"
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do mount -t tmpfs -o mode=0777 tmpfs "$root$1"; shift; done
shift
exec unshare --user --map-user=USER --map-group=USER --root="$root" "$@"
"#;

/// The image's root filesystem.
#[derive(Debug, Clone)]
pub struct Rootfs(pub PathBuf);

/// A running container.
pub struct Container {
    root: PathBuf,
    sandbox: Sandbox,
}

impl Container {
    /// Starts the only container of a pod.
    ///
    /// # Panics
    /// When what it mounts is not there, or it cannot be started.
    pub async fn start(node: &Node, pod: &Scheduled, bound: &Bound) -> Self {
        let home = node.dir.join(format!("{}-{}", pod.namespace, pod.name));
        let root = home.join("root");
        std::fs::create_dir_all(&home).unwrap();
        copy(&node.image.0, &root);
        for dir in ["proc", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        pod.write_volumes(&node.kube, bound, &root).await;
        let mut container = pod.container();
        if pod.has_token() {
            let (address, ca) = &node.api;
            container.env.insert("KUBERNETES_SERVICE_HOST".to_owned(), address.ip().to_string());
            container.env.insert("KUBERNETES_SERVICE_PORT".to_owned(), address.port().to_string());
            let audience = "https://kubernetes.default.svc";
            let token = node.kube.token(&pod.namespace, pod.account(), audience, Some(bound)).await;
            let dir = root.join(ACCOUNT);
            std::fs::create_dir_all(&dir).unwrap();
            for (name, text) in [("token", &token), ("ca.crt", ca), ("namespace", &pod.namespace)] {
                std::fs::write(dir.join(name), text).unwrap();
            }
        }
        let script = START.replace("USER", USER);
        let mut args = ["--mount", "sh", "-euc", &script, "sh"].map(str::to_owned).to_vec();
        args.push(root.display().to_string());
        args.extend(pod.writable());
        args.extend(["--".to_owned(), PROGRAM.to_owned()]);
        args.extend(container.args);
        let ip: IpAddr = pod.ip.parse().unwrap();
        write_names(&root, &node.names);
        let program = (Path::new("unshare"), args.as_slice(), &container.env);
        let sandbox = Sandbox::start(&pod.name, ip, program, &home.join("state"), &node.logs).await;
        Container { root, sandbox }
    }

    /// The file by which names are found, as a cluster's DNS would say them.
    pub fn write_names(&self, names: &BTreeMap<String, Vec<IpAddr>>) {
        write_names(&self.root, names);
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.sandbox.terminate();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.sandbox.part().ended()
    }

    /// # Panics
    /// When it has ended.
    pub fn must_run(&mut self) {
        self.sandbox.part().must_run();
    }

    /// Everything it has printed.
    pub fn output(&mut self) -> String {
        self.sandbox.part().output()
    }
}

/// In place: the file is seen through a mount.
fn write_names(root: &Path, names: &BTreeMap<String, Vec<IpAddr>>) {
    let mut text = String::from("127.0.0.1 localhost\n");
    for (name, addresses) in names {
        for address in addresses {
            let _ = writeln!(text, "{address} {name}");
        }
    }
    let file = root.join("etc/hosts");
    if std::fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        std::fs::write(file, text).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{} is not copied", from.display());
}

impl Scheduled {
    /// Whether it gets a token of its account.
    pub fn has_token(&self) -> bool {
        self.template["spec"]["automountServiceAccountToken"] != false
    }

    /// Paths that may be written to.
    pub fn writable(&self) -> Vec<String> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let spec = &self.template["spec"];
        let mut paths = Vec::new();
        for mount in list(&spec["containers"][0]["volumeMounts"]) {
            let is_mounted = |volume: &Value| volume["name"] == mount["name"];
            let volumes = list(&spec["volumes"]);
            if volumes.iter().any(|volume| is_mounted(volume) && volume["emptyDir"].is_object()) {
                paths.push(mount["mountPath"].as_str().unwrap().to_owned());
            }
        }
        paths
    }

    /// A port by its number or its name.
    ///
    /// # Panics
    /// When the container has none of that name.
    pub fn port(&self, port: &Value) -> u16 {
        if let Some(number) = port.as_u64() {
            return u16::try_from(number).unwrap();
        }
        let ports = self.template["spec"]["containers"][0]["ports"].as_array().unwrap();
        let named = ports.iter().find(|one| one["name"] == *port);
        let named = named.unwrap_or_else(|| panic!("{} has no port {port}", self.name));
        u16::try_from(named["containerPort"].as_u64().unwrap()).unwrap()
    }
}
