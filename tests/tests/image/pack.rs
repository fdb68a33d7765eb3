//! `deploy/image/build.sh`: the image, read as a registry's client reads it (OCI image layout).

use cairn_test_support::debian::{on_path, unpack};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's packages: the program, and the libraries that not every machine has.
const PACKAGES: [&str; 5] =
    ["buildah", "libassuan0", "libdevmapper1.02.1", "libgpgme11", "libseccomp2"];

/// Largest layer, bytes: what a node fetches.
const MAX_LAYER_BYTES: u64 = 20 * 1024 * 1024;

/// The program.
pub struct Buildah {
    variables: BTreeMap<&'static str, OsString>,
}

impl Buildah {
    /// Finds it, or fetches the packages into a directory of their own below `target`, once.
    ///
    /// # Errors
    /// When neither is possible: the reason in one line.
    pub fn install(target: &Path) -> Result<Self, String> {
        let mut variables = BTreeMap::new();
        let program = match on_path("buildah") {
            Some(program) => program,
            None => {
                let dir = target.join("buildah");
                if !dir.is_dir() {
                    unpack(&PACKAGES, &dir)?;
                }
                let libraries = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
                let libraries = [dir.join("usr").join(&libraries), dir.join(&libraries)];
                let bin = dir.join("usr/bin");
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path = [bin.clone()].into_iter().chain(std::env::split_paths(&path));
                let joined = |paths: Vec<PathBuf>| {
                    std::env::join_paths(paths).map_err(|error| error.to_string())
                };
                variables.insert("PATH", joined(path.collect())?);
                variables.insert("LD_LIBRARY_PATH", joined(libraries.into())?);
                bin.join("buildah")
            }
        };
        let version = Command::new(&program).arg("--version").envs(&variables).output();
        match version {
            Ok(output) if output.status.success() => Ok(Buildah { variables }),
            Ok(output) => {
                let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(format!("{}: {complaint}", program.display()))
            }
            Err(error) => Err(format!("{}: {error}", program.display())),
        }
    }

    /// Runs build.sh and unpacks what it writes.
    fn build(&self, image: &Path, dir: &Path) -> Layout {
        let archive = dir.join("cairn.oci.tar");
        let mut command = Command::new(crate::repository().join("deploy/image/build.sh"));
        command.arg("--rootfs").arg(image.canonicalize().unwrap()).arg("--out").arg(&archive);
        let output = command.envs(&self.variables).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let layout = dir.join("layout");
        fs::create_dir(&layout).unwrap();
        let mut tar = Command::new("tar");
        let status = tar.arg("-xf").arg(&archive).arg("-C").arg(&layout).status().unwrap();
        assert!(status.success());
        Layout(layout)
    }
}

/// An unpacked image.
struct Layout(PathBuf);

impl Layout {
    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.0.join("blobs").join(digest.replace(':', "/"))
    }

    fn json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.blob(descriptor)).unwrap()).unwrap()
    }

    fn manifest(&self) -> Value {
        let index: Value =
            serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap();
        let [manifest] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
        manifest.clone()
    }
}

/// Configuration and content.
pub fn is_as_written(image: &Path, buildah: &Buildah) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let layout = buildah.build(image, dirs[0].path());
    let manifest = layout.json(&layout.manifest());
    let image_config = layout.json(&manifest["config"]);
    assert_eq!(image_config["os"], "linux");
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    };
    assert_eq!(image_config["architecture"], arch);
    let config = &image_config["config"];
    assert_eq!(config["User"], "1337:1337");
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/cairn"]));
    assert_eq!(config["Cmd"], Value::Null);
    assert_eq!(config["Env"], json!(["PATH=/usr/local/bin"]));
    let ports = ["15008/tcp", "15020/tcp", "15021/tcp", "15090/tcp"].map(|port| (port, json!({})));
    assert_eq!(config["ExposedPorts"], json!(BTreeMap::from(ports)));
    let labels = &config["Labels"];
    assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    for text in [&image_config, config] {
        let here = crate::repository().canonicalize().unwrap();
        assert!(!text.to_string().contains(here.to_str().unwrap()), "{text}");
    }

    let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("{manifest}") };
    let bytes = layer["size"].as_u64().unwrap();
    println!("layer: {bytes} bytes compressed");
    assert!(bytes <= MAX_LAYER_BYTES, "{bytes}");
    let mut tar = Command::new("tar");
    let listed = tar.args(["--numeric-owner", "-tvf"]).arg(layout.blob(layer)).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.lines().count() > 20, "{listed}");
    for line in listed.lines() {
        assert_eq!(line.split_whitespace().nth(1), Some("0/0"), "{line}");
    }
    let program = listed.lines().find(|line| line.ends_with(" usr/local/bin/cairn")).unwrap();
    assert!(program.starts_with("-rwxr-xr-x "), "{program}");

    // The same again is the same to the bit.
    let again = buildah.build(image, dirs[1].path());
    assert_eq!(again.manifest()["digest"], layout.manifest()["digest"]);
}
