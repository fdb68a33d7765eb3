//! How a command fails: what was wrong, what to do about it, and the exit code.

use crate::terminal::error_line;
use std::fmt::Display;
use std::process::ExitCode;

/// A command that could not do what was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Ends with exit code 1.
    pub fn new(message: impl Display) -> Self {
        Failure { code: 1, message: message.to_string(), hint: None }
    }

    /// Ends with another exit code.
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// What was wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints to standard error.
    pub fn report(&self) -> ExitCode {
        error_line(format_args!("cairn: {}", self.message));
        if let Some(hint) = &self.hint {
            for line in hint.lines() {
                error_line(format_args!("  {line}"));
            }
        }
        ExitCode::from(self.code)
    }
}
