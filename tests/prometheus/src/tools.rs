//! The programs: those on the PATH, else those of Debian's package, unpacked without being installed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian's package that has both.
const PACKAGE: &str = "prometheus";

/// The programs.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Scrapes and answers queries.
    pub prometheus: PathBuf,
    /// Checks what is scraped.
    pub promtool: PathBuf,
}

/// What promtool says of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// It can be read.
    pub readable: bool,
    /// What it complains about, a line each.
    pub complaints: Vec<String>,
}

impl Tools {
    /// Finds them, or fetches the package into a directory of its own below `target`, once.
    ///
    /// # Errors
    /// When neither is possible: the reason in one line.
    pub fn install(target: &Path) -> Result<Tools, String> {
        if let (Some(prometheus), Some(promtool)) = (on_path("prometheus"), on_path("promtool")) {
            return Ok(Tools { prometheus, promtool });
        }
        let dir = target.join("prometheus");
        let tools = Tools {
            prometheus: dir.join("usr/bin/prometheus"),
            promtool: dir.join("usr/bin/promtool"),
        };
        if !dir.is_dir() {
            fetch(&dir)?;
        }
        for program in [&tools.prometheus, &tools.promtool] {
            if !program.is_file() {
                return Err(format!("{} is not there", program.display()));
            }
        }
        Ok(tools)
    }

    /// `promtool check metrics` on a page.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn check_metrics(&self, page: &str) -> Verdict {
        let mut check = Command::new(&self.promtool);
        check.args(["check", "metrics"]).stdin(Stdio::piped());
        let mut child = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let page = page.to_owned();
        let writer = std::thread::spawn(move || input.write_all(page.as_bytes()));
        let output = child.wait_with_output().unwrap();
        // It may have read enough.
        let _ = writer.join().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // 1: it cannot be read; 3: names could be better.
        let readable = matches!(output.status.code(), Some(0 | 3));
        Verdict { readable, complaints: text.lines().map(str::to_owned).collect() }
    }
}

impl Tools {
    /// `promtool` with these arguments.
    ///
    /// # Errors
    /// What it says when it is not content.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn promtool(&self, arguments: &[&str], file: &Path) -> Result<(), String> {
        let output = Command::new(&self.promtool).args(arguments).arg(file).output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn fetch(dir: &Path) -> Result<(), String> {
    println!("fetching Debian's package {PACKAGE}");
    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
    let download = || run(Command::new("apt-get").args(["download", PACKAGE]).current_dir(&part));
    if download().is_err() {
        // The lists of packages may be missing, as in a new container.
        let _ = run(Command::new("apt-get").args(["update", "--quiet"]));
        download()?;
    }
    let archive = fs::read_dir(&part)
        .map_err(|error| error.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or("apt-get has downloaded no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
    fs::remove_file(&archive).map_err(|error| error.to_string())?;
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
