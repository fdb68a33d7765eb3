//! A record for a collector of OpenTelemetry.

use super::line::Node;
use crate::error::Context;
use crate::extensions::Extensions;
use crate::format::Facts;
use crate::spec;
use std::sync::Arc;

/// Records for a collector.
#[derive(Debug)]
pub struct OtelLog {
    /// Where they go.
    pub target: spec::LogTarget,
    body: Option<Node>,
    attributes: Vec<(Arc<str>, Node)>,
    /// What others keep beside it: the queue.
    pub state: Extensions,
}

/// A value of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// A text: also what an operator says that is a number in JSON (Envoy).
    Text(String),
    /// A truth value of the configuration.
    Bool(bool),
    /// A number of the configuration.
    Number(f64),
    /// Values in order.
    List(Vec<Field>),
    /// Values by name.
    Map(Vec<(Arc<str>, Field)>),
}

impl OtelLog {
    pub(super) fn compile(from: &spec::OtelLog, at: &mut Context) -> OtelLog {
        let spec::OtelLog { target, body, attributes } = from;
        let attributes = attributes.iter();
        OtelLog {
            target: target.clone(),
            body: body.as_ref().map(|body| Node::compile(body, at)),
            attributes: attributes
                .map(|(name, value)| (name.as_str().into(), Node::compile(value, at)))
                .collect(),
            state: Extensions::default(),
        }
    }

    /// The body.
    pub fn body(&self, facts: &Facts<'_>) -> Option<Field> {
        self.body.as_ref().map(|body| field(body, facts))
    }

    /// The attributes, sorted by name.
    pub fn attributes(&self, facts: &Facts<'_>) -> Vec<(Arc<str>, Field)> {
        let attributes = self.attributes.iter();
        attributes.map(|(name, node)| (Arc::clone(name), field(node, facts))).collect()
    }
}

fn field(node: &Node, facts: &Facts<'_>) -> Field {
    match node {
        Node::Null => Field::Text(String::new()),
        Node::Bool(value) => Field::Bool(*value),
        Node::Number(value) => Field::Number(*value),
        Node::Text(format) => {
            let mut text = Vec::new();
            format.line(facts, false, &mut text);
            Field::Text(String::from_utf8_lossy(&text).into_owned())
        }
        Node::List(list) => Field::List(list.iter().map(|node| field(node, facts)).collect()),
        Node::Map(fields) => Field::Map(
            fields.iter().map(|(name, node)| ((**name).into(), field(node, facts))).collect(),
        ),
    }
}
