//! YAML text → [`Tree`].
//!
//! One document per file; anchors and aliases work, tags and merge keys do not. Enums are maps
//! with one key (`{exact: /x}`), which needs nothing here: [`super::de`] knows no other form.

use super::error::{Position, Problem};
use super::tree::{MAX_DEPTH, NodeId, Tree, Value};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use std::borrow::Cow;
use std::collections::HashMap;

/// Values that one YAML file may contain. More: write JSON, which needs no positions.
pub const MAX_YAML_VALUES: usize = 2_000_000;

/// Bytes that all aliases of one YAML file may stand for, so that a few lines of aliases to
/// aliases do not become gigabytes of configuration.
pub const MAX_ALIASED_BYTES: u64 = 8 << 20;

/// What a value counts besides the bytes of its text.
const VALUE_BYTES: u64 = 16;

/// Parses a whole text.
pub(super) fn tree(text: &str) -> Result<Tree<'_>, Problem> {
    let mut builder = Builder {
        tree: Tree::new(false),
        open: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        documents: 0,
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| {
            Problem::at(position(e.marker()), format!("no valid YAML: {}", e.info()))
        })?;
        builder.accept(event, span)?;
    }
    if builder.tree.len() == 0 {
        let root = builder.tree.push(Position::START, Value::Plain(Cow::Borrowed("")));
        builder.tree.set_root(root);
    }
    Ok(builder.tree)
}

fn position(marker: &Marker) -> Position {
    Position {
        line: u32::try_from(marker.line().max(1)).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
    }
}

struct Builder<'t> {
    tree: Tree<'t>,
    /// Containers whose end has not come.
    open: Vec<Open>,
    /// Values by the parser's anchor id; a container is in it once it has ended.
    anchors: HashMap<usize, (NodeId, Extent)>,
    aliased: u64,
    documents: usize,
}

/// How much a value is when all aliases in it are written out.
#[derive(Clone, Copy)]
struct Extent {
    bytes: u64,
    depth: u32,
}

/// A container whose end has not come.
struct Open {
    at: Position,
    anchor: usize,
    extent: Extent,
    children: Children,
}

enum Children {
    List(Vec<NodeId>),
    Map { entries: Vec<(NodeId, NodeId)>, key: Option<NodeId> },
}

impl<'t> Builder<'t> {
    fn accept(&mut self, event: Event<'t>, span: Span) -> Result<(), Problem> {
        let at = position(&span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Problem::at(at, "a second document: write one document per file"));
                }
                Ok(())
            }
            Event::Alias(anchor) => self.alias(at, anchor),
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(at, tag.as_deref())?;
                let extent = Extent { bytes: VALUE_BYTES + text.len() as u64, depth: 0 };
                let value = match style {
                    ScalarStyle::Plain => Value::Plain(text),
                    _ => Value::Text(text),
                };
                self.complete(at, value, anchor, extent)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(at, tag.as_deref())?;
                self.start(at, anchor, Children::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(at, tag.as_deref())?;
                self.start(at, anchor, Children::Map { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(at),
        }
    }

    fn alias(&mut self, at: Position, anchor: usize) -> Result<(), Problem> {
        let &(id, extent) = self.anchors.get(&anchor).ok_or_else(|| {
            Problem::at(at, "an alias cannot stand inside the value that it names")
        })?;
        self.aliased = self.aliased.saturating_add(extent.bytes);
        if self.aliased > MAX_ALIASED_BYTES {
            return Err(Problem::at(
                at,
                format!(
                    "the aliases of this file stand for more than {} MiB",
                    MAX_ALIASED_BYTES >> 20
                ),
            ));
        }
        self.attach(id, extent, at)
    }

    fn start(&mut self, at: Position, anchor: usize, children: Children) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH as usize {
            return Err(too_deep(at));
        }
        let extent = Extent { bytes: VALUE_BYTES, depth: 1 };
        self.open.push(Open { at, anchor, extent, children });
        Ok(())
    }

    fn end(&mut self, at: Position) -> Result<(), Problem> {
        let Some(Open { at: start, anchor, extent, children }) = self.open.pop() else {
            return Err(Problem::at(at, "no valid YAML: an end without a start"));
        };
        let value = match children {
            Children::List(items) => Value::List(items),
            Children::Map { entries, .. } => {
                if let Some(key) = self.tree.duplicate_key(&entries) {
                    let name = self.tree.scalar(key).unwrap_or_default();
                    let message = format!("the key `{name}` is there twice in one map");
                    return Err(Problem::at(self.tree.node(key).at, message));
                }
                Value::Map(entries)
            }
        };
        self.complete(start, value, anchor, extent)
    }

    fn complete(
        &mut self,
        at: Position,
        value: Value<'t>,
        anchor: usize,
        extent: Extent,
    ) -> Result<(), Problem> {
        if self.tree.len() >= MAX_YAML_VALUES {
            return Err(Problem::at(
                at,
                format!("more than {MAX_YAML_VALUES} values: split the file, or write JSON"),
            ));
        }
        let id = self.tree.push(at, value);
        if anchor != 0 {
            self.anchors.insert(anchor, (id, extent));
        }
        self.attach(id, extent, at)
    }

    /// Makes a value the child of the innermost open container, or the root.
    fn attach(&mut self, id: NodeId, extent: Extent, at: Position) -> Result<(), Problem> {
        let Some(parent) = self.open.last_mut() else {
            self.tree.set_root(id);
            return Ok(());
        };
        parent.extent.bytes = parent.extent.bytes.saturating_add(extent.bytes);
        parent.extent.depth = parent.extent.depth.max(extent.depth + 1);
        if parent.extent.depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        match &mut parent.children {
            Children::List(items) => items.push(id),
            Children::Map { entries, key } => match key.take() {
                Some(key) => entries.push((key, id)),
                None => *key = Some(id),
            },
        }
        Ok(())
    }
}

fn too_deep(at: Position) -> Problem {
    Problem::at(at, format!("more than {MAX_DEPTH} lists and maps inside each other"))
}

fn refuse_tag(at: Position, tag: Option<&saphyr_parser::Tag>) -> Result<(), Problem> {
    match tag {
        None => Ok(()),
        Some(tag) => Err(Problem::at(
            at,
            format!(
                "the tag `{tag}` is not understood; a choice is a map with one key, such as `{{exact: /x}}`"
            ),
        )),
    }
}
