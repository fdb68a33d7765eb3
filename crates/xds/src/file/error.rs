//! What is wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Position {
    /// The first character.
    pub const START: Position = Position { line: 1, column: 1 };
}

/// One thing that is wrong with a configuration file.
///
/// Displayed as `file:line:column: field: message`; parts that are not known are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file, or the directory when no single file is to blame.
    pub file: PathBuf,
    /// Where in the file; absent when the file could not be read.
    pub position: Option<Position>,
    /// Path of the field, such as `meshes[0].destinations[2].port`; empty for the whole file.
    pub field: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl FileError {
    /// An error of the whole file: it cannot be read, or is too large.
    pub(super) fn whole(file: &Path, message: impl Into<String>) -> Self {
        FileError {
            file: file.to_owned(),
            position: None,
            field: String::new(),
            message: message.into(),
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for FileError {}

/// Something wrong in a document whose file is known to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Where; absent until it has been looked up by `field`.
    pub position: Option<Position>,
    /// Path of the field.
    pub field: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl Problem {
    /// A problem whose position follows from its field.
    pub fn of_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { position: None, field: field.into(), message: message.into() }
    }

    /// A problem at a place that no field describes: bad syntax.
    pub fn at(position: Position, message: impl Into<String>) -> Self {
        Problem { position: Some(position), field: String::new(), message: message.into() }
    }

    /// With the file's name.
    pub fn in_file(self, file: &Path) -> FileError {
        let Problem { position, field, message } = self;
        FileError { file: file.to_owned(), position, field, message }
    }
}
