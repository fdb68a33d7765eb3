//! A page of the documentation whose commands are run as a reader would run them.

use crate::program::Program;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// What begins a block of commands.
const FENCE: &str = "```sh";
/// What a fence says behind that when the block is not run.
const NOT_RUN: &str = "not run";

/// Commands that stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading above it.
    pub heading: String,
    /// Its number below that heading, from 0.
    pub number: usize,
    /// Line of the page, from 1.
    pub line: usize,
    /// The commands.
    pub script: String,
    /// Whether it is marked as not run.
    pub marked: bool,
    /// The last line of text above it.
    pub above: String,
}

/// All blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let (mut heading, mut above, mut open) = ("", "", None);
    for (number, line) in page.lines().enumerate() {
        if let Some(block) = &mut open {
            if line == "```" {
                found.extend(open.take());
            } else {
                let block: &mut Block = block;
                block.script.push_str(line);
                block.script.push('\n');
            }
        } else if let Some(rest) = line.strip_prefix(FENCE) {
            let before = found.iter().filter(|block| block.heading == heading).count();
            open = Some(Block {
                heading: heading.to_owned(),
                number: before,
                line: number + 1,
                script: String::new(),
                marked: rest.trim() == NOT_RUN,
                above: above.to_owned(),
            });
        } else if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim();
        } else if !line.trim().is_empty() {
            above = line;
        }
    }
    found
}

/// How many blocks of a page are run.
pub const fn count(page: &str) -> usize {
    let (page, fence) = (page.as_bytes(), b"\n```sh\n");
    let (mut at, mut found) = (0, 0);
    while at + fence.len() <= page.len() {
        let mut same = 0;
        while same < fence.len() && page[at + same] == fence[same] {
            same += 1;
        }
        if same == fence.len() {
            found += 1;
        }
        at += 1;
    }
    found
}

/// A shell in a directory that looks like the root of the repository.
#[derive(Debug, Clone)]
pub struct Shell {
    dir: PathBuf,
    path: std::ffi::OsString,
    kubeconfig: PathBuf,
}

impl Shell {
    /// `kubectl` and `helm` are those of the lab.
    ///
    /// # Panics
    /// When the directory cannot be made.
    pub fn new(program: &Program, dir: &Path, kubeconfig: &Path) -> Self {
        let bin = dir.join("bin");
        program.put_tools(&bin);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        symlink(root.join("deploy"), dir.join("deploy")).unwrap();
        let before = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(bin).chain(std::env::split_paths(&before));
        let path = std::env::join_paths(path).unwrap();
        Shell { dir: dir.to_owned(), path, kubeconfig: kubeconfig.to_owned() }
    }

    /// Runs commands until one fails; what they have printed, or that and how it ended.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn run(&self, script: &str) -> Result<String, String> {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&self.dir);
        command.env_clear().env("PATH", &self.path).env("HOME", &self.dir);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| error.to_string())?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.success() { Ok(text) } else { Err(format!("{}\n{text}", output.status)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A\n\ntext\n\n```sh\none\ntwo\n```\n\nNot run (why):\n\n```sh not run\nthree\n```\n\n## B\n\n\
                        ```yaml\nno: commands\n```\n\n```sh\nfour\n```\n";

    #[test]
    fn blocks_are_found_with_what_stands_above_them() {
        let found = blocks(PAGE);
        let short: Vec<_> = found
            .iter()
            .map(|b| (b.heading.as_str(), b.number, b.line, b.script.as_str(), b.marked))
            .collect();
        assert_eq!(
            short,
            [
                ("A", 0, 5, "one\ntwo\n", false),
                ("A", 1, 12, "three\n", true),
                ("B", 0, 22, "four\n", false)
            ]
        );
        assert_eq!(found[1].above, "Not run (why):");
        assert_eq!(count(PAGE), 2);
    }
}
