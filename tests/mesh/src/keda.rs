//! KEDA's custom resource definitions, from its Go module.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MODULE: &str = "github.com/kedacore/keda/v2@v2.21.0";
/// Digest of the module, as go.sum has it.
const SUM: &str = "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=";

/// The definitions that a ScaledObject needs, copied beside the lab program once; the directory
/// they are in.
///
/// # Errors
/// When there is no Go, or the module cannot be had: the reason in one line.
pub fn definitions(target: &Path, say: impl Fn(&str)) -> Result<PathBuf, String> {
    let version = MODULE.rsplit_once('@').map_or("", |(_, version)| version);
    let dir = target.join("lab").join(format!("keda-{version}"));
    if dir.is_dir() {
        return Ok(dir);
    }
    say(&format!("fetching {MODULE} for its definitions"));
    let mut fetch = Command::new("go");
    fetch.args(["mod", "download", "-json", MODULE]).current_dir(std::env::temp_dir());
    let output = fetch.env("GOFLAGS", "-mod=mod").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("no Go toolchain is installed: {error}"))?;
    let told: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{MODULE}: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    if let Some(error) = told["Error"].as_str() {
        return Err(format!("{MODULE}: {error}"));
    }
    if told["Sum"] != SUM {
        return Err(format!("{MODULE} has the digest {}, not {SUM}", told["Sum"]));
    }
    let bases = Path::new(told["Dir"].as_str().unwrap_or_default()).join("config/crd/bases");
    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    for name in ["scaledobjects", "triggerauthentications"] {
        let name = format!("keda.sh_{name}.yaml");
        let text = fs::read(bases.join(&name)).map_err(|error| format!("{name}: {error}"))?;
        fs::write(part.join(&name), text).map_err(|error| format!("{name}: {error}"))?;
    }
    fs::rename(&part, &dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(dir)
}
