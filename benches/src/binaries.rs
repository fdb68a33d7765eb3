//! Where Cairn comes from, and what programs say of themselves.

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// The directory that everything of a run goes to, beside the build's.
pub fn bench_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    // target/<profile>/benches, unless somebody has moved it.
    let target = program.ancestors().nth(2).filter(|target| target.join("CACHEDIR.TAG").exists());
    Ok(target.map_or_else(|| env::temp_dir().join("cairn-bench"), |target| target.join("bench")))
}

/// Builds Cairn in a profile of the workspace.
pub async fn build_cairn(profile: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from(env!("CARGO")));
    let mut command = Command::new(cargo);
    command.args(["build", "-p", "cairn", "--message-format=json-render-diagnostics"]);
    command.args(["--profile", profile]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let output = command.output().await.context("cargo does not start")?;
    ensure!(output.status.success(), "cairn does not build");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if message["target"]["name"] == "cairn"
            && let Some(program) = message["executable"].as_str()
        {
            return Ok(program.into());
        }
    }
    bail!("cargo does not say where it has put cairn")
}

/// The first line of what a program prints of its version.
pub async fn version(program: &Path, argument: &str) -> String {
    match run(Command::new(program).arg(argument)).await {
        Ok(text) => text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or("unknown")
            .rsplit_once("version: ")
            .map_or_else(|| text.trim().to_owned(), |(_, version)| version.to_owned()),
        Err(_) => "unknown".to_owned(),
    }
}

/// The commit that this program was built from, as far as git knows.
pub async fn commit() -> String {
    let mut command = Command::new("git");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["describe", "--always", "--dirty", "--exclude=*"]);
    run(&mut command).await.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// What a program prints, if it ends well.
pub async fn run(command: &mut Command) -> Result<String> {
    let name = format!("{:?}", command.as_std().get_program());
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{name} does not start"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("{name} failed: {why}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
