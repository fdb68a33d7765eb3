//! From text to a program, for any text.
//!
//! The parser of the `cel` crate is run on a thread of its own: what is deeply nested costs stack, and a
//! panic ends with that thread. What comes out is shallow enough for everybody else's stack.

use super::rewrite::{self, Rewritten};
use std::time::Duration;

/// Most brackets that are opened in one expression.
const MAX_BRACKETS: usize = 200;
/// Most `?` in one expression.
const MAX_CONDITIONS: usize = 64;
/// Bytes of stack for the parser; only what is touched is used.
const STACK: usize = 64 << 20;

/// The attribute that the whole text names: `a.b`, `a['b']`, `a["b"].c`. `None`: it is something else.
pub(super) fn path(text: &str) -> Option<Vec<String>> {
    let (first, mut rest) = identifier(text.trim())?;
    let mut path = vec![first.to_owned()];
    while !rest.is_empty() {
        let segment;
        (segment, rest) = if let Some(rest) = rest.strip_prefix('.') {
            identifier(rest)?
        } else {
            let inside = rest.strip_prefix('[')?;
            let quote = inside.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
            let (name, rest) = inside.get(1..)?.split_once(quote)?;
            if name.contains(['\\', '\n']) {
                return None;
            }
            (name, rest.strip_prefix(']')?)
        };
        path.push(segment.to_owned());
    }
    (path.len() > 1).then_some(path)
}

fn identifier(text: &str) -> Option<(&str, &str)> {
    let len = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(len);
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    let word = !matches!(name, "true" | "false" | "null" | "in");
    (name.starts_with(begins) && word).then_some((name, rest))
}

/// Parses and rewrites a text.
pub(super) fn program(text: &str) -> Result<Rewritten, String> {
    let count = |wanted: &[char]| text.chars().filter(|c| wanted.contains(c)).count();
    if count(&['(', '[', '{']) > MAX_BRACKETS || count(&['?']) > MAX_CONDITIONS {
        return Err("is nested too deeply".to_owned());
    }
    let owned = text.to_owned();
    let parsing = std::thread::Builder::new()
        .name("cairn-cel".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let program = cel::Program::compile(&owned).map_err(|errors| first(&errors))?;
            rewrite::rewrite(program.expression())
        })
        .map_err(|error| format!("cannot be parsed now: {error}"))?;
    parsing.join().unwrap_or_else(|_| Err("cannot be parsed".to_owned()))
}

fn first(errors: &cel::ParseErrors) -> String {
    match errors.errors.first() {
        Some(error) => format!("is no CEL: {} (at character {})", error.msg, error.pos.1),
        None => "is no CEL".to_owned(),
    }
}

/// Reads `1h30m`, `250ms`, `-1.5s` (Go: `time.ParseDuration`) into nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        any = true;
        rest = tail;
    }
    // Out of range saturates.
    any.then_some((sign * total).round() as i64)
}

/// As a CEL number; what is longer than 292 years is cut.
pub(super) fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
