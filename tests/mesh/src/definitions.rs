//! Custom resource definitions of others, from their Go modules.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A module that has definitions.
#[derive(Debug)]
pub struct Source {
    /// What the directory for them is called, before the version.
    name: &'static str,
    /// `path@version`.
    module: &'static str,
    /// Digest of the module, as go.sum has it.
    sum: &'static str,
    /// Where in the module the files are.
    dir: &'static str,
    files: &'static [&'static str],
}

/// What a ScaledObject needs.
pub const KEDA: Source = Source {
    name: "keda",
    module: "github.com/kedacore/keda/v2@v2.21.0",
    sum: "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
    dir: "config/crd/bases",
    files: &["keda.sh_scaledobjects.yaml", "keda.sh_triggerauthentications.yaml"],
};

/// What is scraped, and alert rules.
pub const PROMETHEUS_OPERATOR: Source = Source {
    name: "prometheus-operator",
    module: "github.com/prometheus-operator/prometheus-operator@v0.85.0",
    sum: "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
    dir: "example/prometheus-operator-crd",
    files: &[
        "monitoring.coreos.com_podmonitors.yaml",
        "monitoring.coreos.com_prometheusrules.yaml",
        "monitoring.coreos.com_servicemonitors.yaml",
    ],
};

impl Source {
    /// The files, copied beside the lab program once; the directory they are in.
    ///
    /// # Errors
    /// When there is no Go, or the module cannot be had: the reason in one line.
    pub fn fetch(&self, target: &Path, say: impl Fn(&str)) -> Result<PathBuf, String> {
        let Source { name, module, sum, dir, files } = *self;
        let version = module.rsplit_once('@').map_or("", |(_, version)| version);
        let home = target.join("lab").join(format!("{name}-{version}"));
        if home.is_dir() {
            return Ok(home);
        }
        say(&format!("fetching {module} for its definitions"));
        let bases = download(module, sum)?.join(dir);
        let part = home.with_extension("part");
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
        for name in files {
            let text = fs::read(bases.join(name)).map_err(|error| format!("{name}: {error}"))?;
            fs::write(part.join(name), text).map_err(|error| format!("{name}: {error}"))?;
        }
        fs::rename(&part, &home).map_err(|error| format!("{}: {error}", home.display()))?;
        Ok(home)
    }
}

/// Where the module is.
fn download(module: &str, sum: &str) -> Result<PathBuf, String> {
    let mut fetch = Command::new("go");
    fetch.args(["mod", "download", "-json", module]).current_dir(std::env::temp_dir());
    let output = fetch.env("GOFLAGS", "-mod=mod").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("no Go toolchain is installed: {error}"))?;
    let told: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{module}: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    if let Some(error) = told["Error"].as_str() {
        return Err(format!("{module}: {error}"));
    }
    if told["Sum"] != sum {
        return Err(format!("{module} has the digest {}, not {sum}", told["Sum"]));
    }
    Ok(told["Dir"].as_str().unwrap_or_default().into())
}
