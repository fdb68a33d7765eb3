//! Programs of Debian's packages, unpacked into a directory without being installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program of that name on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Unpacks packages into a directory that is not there yet; what they depend on is not fetched.
///
/// # Errors
/// When it is not possible: the reason in one line.
pub fn unpack(packages: &[&str], dir: &Path) -> Result<(), String> {
    println!("fetching Debian's packages: {}", packages.join(", "));
    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    let download =
        || run(Command::new("apt-get").arg("download").args(packages).current_dir(&part));
    if download().is_err() {
        // The lists of packages may be missing, as in a new container.
        let _ = run(Command::new("apt-get").args(["update", "--quiet"]));
        download()?;
    }
    let archives: Vec<PathBuf> = fs::read_dir(&part)
        .map_err(|error| error.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if archives.len() != packages.len() {
        return Err(format!("apt-get has downloaded {} packages", archives.len()));
    }
    for archive in archives {
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
        fs::remove_file(&archive).map_err(|error| error.to_string())?;
    }
    fs::rename(&part, dir).map_err(|error| format!("{}: {error}", dir.display()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{name} does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let why = why.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("{name} failed: {why}"))
}
