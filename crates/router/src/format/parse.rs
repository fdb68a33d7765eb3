//! From text to segments.

use super::operator::Operator;
use super::{Format, Segment};

/// Most operators in one text.
const MAX_SEGMENTS: usize = 4096;

/// What stands behind a percent sign.
struct Found<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    max_len: usize,
    rest: &'a str,
}

/// The error says what is not understood.
pub(super) fn strictly(text: &str) -> Result<Format, String> {
    let mut parts = Parts::default();
    let mut rest = text;
    while let Some(after) = parts.literal_until_percent(&mut rest) {
        let found = find(after)
            .ok_or_else(|| format!("`%{after}` is no operator; a percent sign is written `%%`"))?;
        let operator = Operator::parse(found.name, found.arguments, false)?;
        parts.put(operator, found.max_len);
        rest = found.rest;
    }
    Ok(parts.finish(rest))
}

/// What is not understood is listed.
pub(super) fn leniently(text: &str) -> (Format, Vec<String>) {
    let mut parts = Parts::default();
    let mut rest = text;
    let mut unknown = Vec::new();
    while let Some(after) = parts.literal_until_percent(&mut rest) {
        let Some(found) = find(after) else {
            unknown.push("a percent sign that begins no operator".to_owned());
            parts.literal.push(b'%');
            rest = after;
            continue;
        };
        if parts.segments.len() >= MAX_SEGMENTS {
            unknown.push("a text with too many operators".to_owned());
            return (parts.finish(""), unknown);
        }
        match Operator::parse(found.name, found.arguments, true) {
            Ok(operator) => parts.put(operator, found.max_len),
            Err(error) => {
                unknown.push(error);
                parts.put(Operator::Never, found.max_len);
            }
        }
        rest = found.rest;
    }
    unknown.sort();
    unknown.dedup();
    (parts.finish(rest), unknown)
}

#[derive(Default)]
struct Parts {
    segments: Vec<Segment>,
    literal: Vec<u8>,
}

impl Parts {
    /// Takes what stands in front of the next operator; what stands behind its percent sign is returned.
    fn literal_until_percent<'a>(&mut self, rest: &mut &'a str) -> Option<&'a str> {
        while let Some((before, after)) = rest.split_once('%') {
            self.literal.extend_from_slice(before.as_bytes());
            let Some(after) = after.strip_prefix('%') else { return Some(after) };
            self.literal.push(b'%');
            *rest = after;
        }
        None
    }

    fn put(&mut self, operator: Operator, max_len: usize) {
        self.end_literal();
        self.segments.push(Segment::Operator { operator, max_len });
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            let literal = std::mem::take(&mut self.literal);
            self.segments.push(Segment::Literal(literal.into()));
        }
    }

    fn finish(mut self, rest: &str) -> Format {
        self.literal.extend_from_slice(rest.as_bytes());
        self.end_literal();
        Format { segments: self.segments }
    }
}

/// `None`: no operator. Arguments end at the first `)` that ends the operator (Envoy).
fn find(after: &str) -> Option<Found<'_>> {
    let name_len = after
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|len| *len > 0)?;
    let (name, rest) = after.split_at(name_len);
    let Some(inside) = rest.strip_prefix('(') else {
        let (max_len, rest) = end(rest)?;
        return Some(Found { name, arguments: None, max_len, rest });
    };
    inside.match_indices(')').find_map(|(at, _)| {
        let (arguments, rest) = inside.split_at(at);
        let (max_len, rest) = end(rest.strip_prefix(')')?)?;
        Some(Found { name, arguments: Some(arguments), max_len, rest })
    })
}

/// `%` or `:N%`
fn end(text: &str) -> Option<(usize, &str)> {
    let Some(number) = text.strip_prefix(':') else {
        return Some((usize::MAX, text.strip_prefix('%')?));
    };
    let (number, rest) = number.split_at(number.find(|c: char| !c.is_ascii_digit())?);
    Some((number.parse().ok()?, rest.strip_prefix('%')?))
}
