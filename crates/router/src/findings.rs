//! What a compiler found wrong or odd, with places in the whole configuration.

use crate::error::{CompileError, MAX_ERRORS};

/// What is wrong, and what is odd.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub errors: Bounded,
    pub warnings: Bounded,
}

/// At most [`MAX_ERRORS`] are listed, the others are counted.
#[derive(Debug, Default)]
pub(crate) struct Bounded {
    list: Vec<CompileError>,
    dropped: usize,
}

impl Bounded {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn push(&mut self, finding: CompileError) {
        if self.list.len() < MAX_ERRORS {
            self.list.push(finding);
        } else {
            self.dropped += 1;
        }
    }

    /// One at `list[position].below`.
    pub(crate) fn add(&mut self, list: &str, position: usize, below: &str, message: &str) {
        let separator = if below.is_empty() || below.starts_with('[') { "" } else { "." };
        let path = format!("{list}[{position}]{separator}{below}");
        self.push(CompileError { path, message: message.to_owned() });
    }

    /// All of them, whose paths begin below `list[position]`.
    pub(crate) fn add_all(&mut self, list: &str, position: usize, findings: &[CompileError]) {
        for CompileError { path, message } in findings {
            self.add(list, position, path, message);
        }
    }

    pub(crate) fn into_list(mut self) -> Vec<CompileError> {
        if self.dropped > 0 {
            let message = format!("{} more are not listed", self.dropped);
            self.list.push(CompileError { path: "…".to_owned(), message });
        }
        self.list
    }
}
