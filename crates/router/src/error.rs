//! What is wrong with a configuration, and where.
//!
//! A [`Context`] walks along with the compiler: it knows the path of the field that is being
//! compiled and collects every error, so that one look at the list is enough to repair a file.

use crate::matching::patterns::Patterns;
use crate::observe::Known;
use std::fmt::{self, Write};

/// So many errors are kept; further ones only count.
pub const MAX_ERRORS: usize = 1000;

/// A field that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileError {
    /// Where, for example `destinations[3].http.routes.virtual_hosts[0].routes[2].match.path.regex`.
    pub path: String,
    /// What is wrong, and what is expected.
    pub message: String,
}

/// Path of the current field, and the errors and warnings so far.
#[derive(Debug, Default)]
pub struct Context {
    path: String,
    errors: Vec<CompileError>,
    warnings: Vec<CompileError>,
    dropped: usize,
    patterns: Patterns,
    observed: Known,
}

impl fmt::Display for CompileError {
    /// Path and message, or the message alone at the top.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for CompileError {}

impl Context {
    /// Starts at the top.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts at the top, with what is compiled already.
    pub(crate) fn knowing(patterns: &Patterns, observed: &Known) -> Self {
        Context { patterns: patterns.clone(), observed: observed.clone(), ..Self::default() }
    }

    pub(crate) fn observed(&self) -> &Known {
        &self.observed
    }

    pub(crate) fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Runs `compile` one field deeper.
    pub fn field<T>(&mut self, name: &str, compile: impl FnOnce(&mut Self) -> T) -> T {
        let mark = self.path.len();
        if mark > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        self.back_to(mark, compile)
    }

    /// Runs `compile` at one item of a list.
    pub fn index<T>(&mut self, index: usize, compile: impl FnOnce(&mut Self) -> T) -> T {
        let mark = self.path.len();
        // Writing to a String cannot fail.
        let _ = write!(self.path, "[{index}]");
        self.back_to(mark, compile)
    }

    /// Runs `compile` at one entry of a map.
    pub fn key<T>(&mut self, key: &str, compile: impl FnOnce(&mut Self) -> T) -> T {
        let mark = self.path.len();
        // Writing to a String cannot fail.
        let _ = write!(self.path, "[{key:?}]");
        self.back_to(mark, compile)
    }

    /// Compiles every item of the list `name`; `None` if one of them failed, after all were tried.
    pub fn each<'a, S, T>(
        &mut self,
        name: &str,
        items: &'a [S],
        mut compile: impl FnMut(&'a S, &mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.field(name, |at| {
            let mut compiled = Some(Vec::with_capacity(items.len()));
            for (index, item) in items.iter().enumerate() {
                match (at.index(index, |at| compile(item, at)), &mut compiled) {
                    (Some(item), Some(list)) => list.push(item),
                    _ => compiled = None,
                }
            }
            compiled
        })
    }

    /// Records an error at the current field.
    pub fn error(&mut self, message: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(CompileError { path: self.path.clone(), message: message.into() });
        } else {
            self.dropped += 1;
        }
    }

    /// Records what works, but hardly as it was meant. At most [`MAX_ERRORS`] are kept.
    pub fn warn(&mut self, message: impl Into<String>) {
        if self.warnings.len() < MAX_ERRORS {
            self.warnings.push(CompileError { path: self.path.clone(), message: message.into() });
        }
    }

    /// Takes the warnings so far, in the order in which they were found.
    pub fn take_warnings(&mut self) -> Vec<CompileError> {
        std::mem::take(&mut self.warnings)
    }

    /// What went wrong since there were `before` errors, in one line; `None`: nothing.
    pub(crate) fn reason_since(&self, before: usize) -> Option<String> {
        let more = self.error_count().checked_sub(before).filter(|more| *more > 0)?;
        let Some(first) = self.errors.get(before) else {
            return Some("cannot be compiled".to_owned());
        };
        Some(match more {
            1 => first.to_string(),
            more => format!("{first} (and {} more)", more - 1),
        })
    }

    /// Records an error and is `None`, for the ends of `compile` functions.
    pub fn reject<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.error(message);
        None
    }

    /// Path of the current field.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How many errors there were.
    pub fn error_count(&self) -> usize {
        self.errors.len() + self.dropped
    }

    /// All errors in the order in which they were found.
    pub fn into_errors(self) -> Vec<CompileError> {
        let mut errors = self.errors;
        if self.dropped > 0 {
            errors.push(CompileError {
                path: String::new(),
                message: format!("{} further errors are not listed", self.dropped),
            });
        }
        errors
    }

    fn back_to<T>(&mut self, mark: usize, compile: impl FnOnce(&mut Self) -> T) -> T {
        let result = compile(self);
        self.path.truncate(mark);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_path() {
        let mut at = Context::new();
        let compiled = at.field("http", |at| {
            at.each("routes", &[1, 2, 3], |n, at| {
                if n % 2 == 1 {
                    at.field("match", |at| at.reject(format!("{n} is odd")))
                } else {
                    Some(*n)
                }
            })
        });
        at.key("ns[a]", |at| at.error("third"));
        assert_eq!(compiled, None);
        assert_eq!(at.path(), "");
        let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "http.routes[0].match: 1 is odd",
                "http.routes[2].match: 3 is odd",
                "[\"ns[a]\"]: third"
            ]
        );
    }

    #[test]
    fn the_list_is_bounded() {
        let mut at = Context::new();
        for _ in 0..MAX_ERRORS + 5 {
            at.error("again");
        }
        assert_eq!(at.error_count(), MAX_ERRORS + 5);
        let errors = at.into_errors();
        assert_eq!(errors.len(), MAX_ERRORS + 1);
        assert_eq!(
            errors.last().map(|e| e.message.as_str()),
            Some("5 further errors are not listed")
        );
    }
}
