//! One file's bytes → [`Document`].

use super::config::Config;
use super::document::Document;
use super::error::{FileError, Position, Problem};
use super::merge::{Part, merge};
use super::tree::{self, Tree, Value};
use super::{check, de, json, yaml};
use std::path::Path;
use std::sync::Arc;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2, one document.
    Yaml,
    /// JSON; about ten times as fast to read.
    Json,
}

impl Format {
    /// By the name's extension: `.yaml`, `.yml` or `.json`.
    pub fn of(file: &Path) -> Option<Format> {
        match file.extension()?.to_str()? {
            "yaml" | "yml" => Some(Format::Yaml),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// Parses and checks a whole configuration that is in memory. Never panics, whatever the bytes.
///
/// # Errors
/// Everything that is wrong, under the file name `<input>`. Of mistakes in syntax or type only the
/// first is found.
pub fn parse_bytes(format: Format, bytes: &[u8]) -> Result<Config, Vec<FileError>> {
    let file = Path::new("<input>");
    let name =
        |problems: Vec<Problem>| problems.into_iter().map(|p| p.in_file(file)).collect::<Vec<_>>();
    let document = document(format, bytes).map_err(name)?;
    let parts = vec![Part { file: file.to_owned(), document: Arc::new(document) }];
    merge(parts).map(|(config, _)| config).map_err(|conflicts| {
        let problems = conflicts.into_iter().map(|conflict| conflict.problem).collect();
        name(located(format, bytes, problems))
    })
}

/// Parses a file and checks what can be checked without the other files.
pub(super) fn document(format: Format, bytes: &[u8]) -> Result<Document, Vec<Problem>> {
    let text = text(bytes).map_err(|problem| vec![problem])?;
    let document = match format {
        Format::Yaml => yaml::tree(text).and_then(|tree| from_tree(&tree)),
        Format::Json => json::document(text).map_err(|said| explain_json(text, said)),
    }
    .map_err(|problem| vec![problem])?;
    let problems = check::problems(&document);
    if problems.is_empty() {
        return Ok(document);
    }
    Err(located(format, bytes, problems))
}

/// Gives every problem its position, by its field.
pub(super) fn located(format: Format, bytes: &[u8], mut problems: Vec<Problem>) -> Vec<Problem> {
    let locate = |tree: Tree<'_>| {
        for problem in &mut problems {
            problem.position.get_or_insert_with(|| tree.locate(&problem.field));
        }
    };
    if let Ok(text) = text(bytes) {
        match format {
            Format::Yaml => yaml::tree(text).ok().map(locate),
            Format::Json => json::tree(text).and_then(Result::ok).map(locate),
        };
    }
    problems
}

fn text(bytes: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let valid = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line_start = valid.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let position = Position {
            line: count(1 + valid.iter().filter(|b| **b == b'\n').count()),
            column: count(
                1 + String::from_utf8_lossy(valid.get(line_start..).unwrap_or_default())
                    .chars()
                    .count(),
            ),
        };
        Problem::at(position, "no valid UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn from_tree(tree: &Tree<'_>) -> Result<Document, Problem> {
    match &tree.node(tree.root()).value {
        // A file in which everything is commented out.
        Value::Plain(plain) if tree::is_null(plain) => Ok(Document::default()),
        _ => de::from_tree(tree),
    }
}

/// Finds the field and the exact place of what serde_json has complained about.
fn explain_json(text: &str, said: Problem) -> Problem {
    match json::tree(text) {
        Some(Ok(tree)) => de::from_tree::<Document>(&tree).err().unwrap_or(said),
        Some(Err(problem)) => problem,
        None => said,
    }
}
