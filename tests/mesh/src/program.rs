//! The lab program: etcd, kube-apiserver, istiod, istioctl, kubectl and helm, built from `tests/lab`.
//!
//! Building takes some minutes the first time; the result is kept beside cargo's, under a name made
//! of the sources' digest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Version that kube-apiserver says it is; clients parse it.
const KUBERNETES: (&str, &str, &str) = ("v1.36.1", "1", "36");

/// The module whose charts and CRDs the control plane starts with.
const ISTIO: &str = "istio.io/istio";

/// The built program and what belongs to the same version of Istio.
#[derive(Debug, Clone)]
pub struct Program {
    /// Directory of all files below.
    pub dir: PathBuf,
}

impl Program {
    /// The binary; its first argument is the part to run.
    pub fn binary(&self) -> PathBuf {
        self.dir.join("lab")
    }

    /// Makes `kubectl` and `helm` in a directory, for PATH.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn put_tools(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for tool in ["kubectl", "helm"] {
            let file = dir.join(tool);
            let binary = self.binary();
            let script = format!("#!/bin/sh\nexec '{}' {tool} \"$@\"\n", binary.display());
            fs::write(&file, script).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Istio's CRDs, those of the Gateway API, and what an installation of the ambient profile
    /// brings: YAML with several documents each.
    pub fn manifests(&self) -> [PathBuf; 3] {
        ["istio-crds.yaml", "gateway-crds.yaml", "base.yaml"].map(|name| self.dir.join(name))
    }
}

/// The program of these sources, built if it is not there; `say` gets a line before anything that
/// takes long.
///
/// # Errors
/// When there is no Go, its modules cannot be had, or it does not build: the reason in one line.
pub fn build(target: &Path, say: impl Fn(&str)) -> Result<Program, String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("lab");
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for name in ["go.mod", "go.sum", "main.go"] {
        digest.update(&fs::read(sources.join(name)).map_err(|e| format!("tests/lab/{name}: {e}"))?);
    }
    let key: String =
        digest.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let home = target.join("lab");
    let program = Program { dir: home.join(&key) };
    if program.dir.is_dir() {
        return Ok(program);
    }
    let version = go(&sources).arg("version").output();
    match version {
        Ok(output) if output.status.success() => {}
        _ => return Err("no Go toolchain is installed, which tests/lab needs".to_owned()),
    }
    say(
        "building etcd, kube-apiserver, istiod, istioctl, kubectl and helm from tests/lab (some minutes, once)",
    );
    let part = home.join(format!("{key}.part"));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|e| format!("{}: {e}", part.display()))?;
    let (version, major, minor) = KUBERNETES;
    let flag = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    let flags = [
        "-s -w".to_owned(),
        flag("gitVersion", version),
        flag("gitMajor", major),
        flag("gitMinor", minor),
        flag("gitCommit", "lab"),
    ];
    let mut compile = go(&sources);
    compile.args(["build", "-trimpath", "-ldflags"]).arg(flags.join(" "));
    run(compile.arg("-o").arg(part.join("lab")).arg("."))?;
    let module = run(go(&sources).args(["list", "-m", "-f", "{{.Dir}}", ISTIO]))?;
    let module = PathBuf::from(module.trim());
    let copy = |from: &str, to: &str| {
        let from = module.join(from);
        let text = fs::read(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        fs::write(part.join(to), text).map_err(|e| format!("{to}: {e}"))
    };
    copy("manifests/charts/base/files/crd-all.gen.yaml", "istio-crds.yaml")?;
    copy("tests/integration/pilot/testdata/gateway-api-crd.yaml", "gateway-crds.yaml")?;
    let mut generate = Command::new(part.join("lab"));
    generate.args(["istioctl", "manifest", "generate", "--set", "profile=ambient", "--manifests"]);
    let base = run(generate.arg(module.join("manifests")))?;
    fs::write(part.join("base.yaml"), base).map_err(|e| format!("base.yaml: {e}"))?;
    forget_others(&home, &part);
    fs::rename(&part, &program.dir).map_err(|e| format!("{}: {e}", part.display()))?;
    Ok(program)
}

/// Binaries of former sources: 250 MB each.
fn forget_others(home: &Path, keep: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        if entry.path() != keep && entry.path().join("lab").is_file() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn go(sources: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(sources).env("CGO_ENABLED", "0").stdin(Stdio::null());
    command
}

/// What it prints; an error has the end of what it complained about.
fn run(command: &mut Command) -> Result<String, String> {
    let what = format!("{command:?}");
    let what = what.chars().take(120).collect::<String>();
    let output = command.output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = complaint.lines().collect();
    let end = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join(" | ");
    Err(format!("{what}: {}: {end}", output.status))
}
