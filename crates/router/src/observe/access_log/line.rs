//! A line of text or JSON.

use crate::error::Context;
use crate::format::{Facts, Format, Said};
use crate::spec;
use std::io::Write;

#[derive(Debug)]
pub(super) enum Line {
    Text { format: Format, omit_empty: bool },
    Json { fields: Vec<(Box<str>, Node)>, omit_empty: bool },
}

/// A value of a structured log.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(f64),
    Text(Format),
    List(Vec<Node>),
    Map(Vec<(Box<str>, Node)>),
}

impl Line {
    pub(super) fn compile(from: &spec::LogFormat, at: &mut Context) -> Line {
        let spec::LogFormat { line, omit_empty } = from;
        let omit_empty = *omit_empty;
        match line {
            spec::Line::Text(text) => Line::Text { format: format(text, at), omit_empty },
            spec::Line::Json(fields) => Line::Json { fields: map(fields, at), omit_empty },
        }
    }

    pub(super) fn render(&self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        match self {
            Line::Text { format, omit_empty } => format.line(facts, *omit_empty, out),
            Line::Json { fields, omit_empty } => {
                object(fields, facts, *omit_empty, out);
                out.push(b'\n');
            }
        }
    }
}

impl Node {
    pub(super) fn compile(from: &spec::LogValue, at: &mut Context) -> Node {
        match from {
            spec::LogValue::Null => Node::Null,
            spec::LogValue::Bool(value) => Node::Bool(*value),
            spec::LogValue::Number(number) => Node::Number(*number),
            spec::LogValue::Text(text) => Node::Text(format(text, at)),
            spec::LogValue::List(list) => {
                Node::List(list.iter().map(|node| Node::compile(node, at)).collect())
            }
            spec::LogValue::Map(fields) => Node::Map(map(fields, at)),
        }
    }

    fn render(&self, facts: &Facts<'_>, omit_empty: bool, out: &mut Vec<u8>) {
        match self {
            Node::Null => out.extend_from_slice(b"null"),
            Node::Bool(true) => out.extend_from_slice(b"true"),
            Node::Bool(false) => out.extend_from_slice(b"false"),
            Node::Number(value) => number(*value, out),
            Node::Text(format) => match format.said(facts, omit_empty) {
                None => out.extend_from_slice(b"null"),
                Some(Said::Text(text)) => quoted(&String::from_utf8_lossy(&text), out),
                Some(said) => said.write(out),
            },
            Node::List(list) => {
                out.push(b'[');
                for (place, node) in list.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    node.render(facts, omit_empty, out);
                }
                out.push(b']');
            }
            Node::Map(fields) => object(fields, facts, omit_empty, out),
        }
    }

    fn is_missing(&self, facts: &Facts<'_>) -> bool {
        matches!(self, Node::Text(format) if format.said(facts, true).is_none())
    }
}

/// What is not understood is a warning, and has no value.
pub(super) fn format(text: &str, at: &mut Context) -> Format {
    let (format, unknown) = Format::parse_for_log(text);
    for what in unknown {
        at.warn(format!("{what}; `-` is written"));
    }
    format
}

fn map<'a>(
    from: impl IntoIterator<Item = (&'a String, &'a spec::LogValue)>,
    at: &mut Context,
) -> Vec<(Box<str>, Node)> {
    let fields = from.into_iter();
    fields.map(|(name, value)| (name.as_str().into(), Node::compile(value, at))).collect()
}

fn object(fields: &[(Box<str>, Node)], facts: &Facts<'_>, omit_empty: bool, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut first = true;
    for (name, node) in fields {
        if omit_empty && node.is_missing(facts) {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        quoted(name, out);
        out.push(b':');
        node.render(facts, omit_empty, out);
    }
    out.push(b'}');
}

fn quoted(text: &str, out: &mut Vec<u8>) {
    // Texts are always JSON.
    let _never_fails = serde_json::to_writer(out, text);
}

/// As Envoy writes numbers: those with a fraction in quotes.
fn number(value: f64, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = if value.fract() == 0.0 && value.abs() < 9e15 {
        write!(out, "{}", value as i64)
    } else if value.is_finite() {
        write!(out, "\"{value}\"")
    } else {
        out.write_all(b"null")
    };
}
