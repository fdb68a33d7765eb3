//! A parsed text as values with positions.
//!
//! The values stand in one list and name each other by index, so that a YAML alias costs no
//! copy and dropping a deep tree needs no stack.

use super::error::Position;
use std::borrow::Cow;

/// Containers inside each other, at most. serde_json allows 128.
pub(super) const MAX_DEPTH: u32 = 100;

/// Index of a value in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

/// A whole document.
#[derive(Debug)]
pub(super) struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    root: NodeId,
    /// A number or `true` is no string (JSON); in YAML it is one where a string is wanted.
    pub typed_scalars: bool,
}

/// A value and where it starts.
#[derive(Debug)]
pub(super) struct Node<'t> {
    pub at: Position,
    pub value: Value<'t>,
}

/// A value.
#[derive(Debug)]
pub(super) enum Value<'t> {
    /// Quoted or block text: a string whatever it looks like.
    Text(Cow<'t, str>),
    /// Plain text: a string, number, boolean or null.
    Plain(Cow<'t, str>),
    /// A sequence.
    List(Vec<NodeId>),
    /// A mapping, in the order of the text.
    Map(Vec<(NodeId, NodeId)>),
}

impl<'t> Tree<'t> {
    /// An empty document, before values are added.
    pub fn new(typed_scalars: bool) -> Self {
        Tree { nodes: Vec::new(), root: NodeId(0), typed_scalars }
    }

    /// Adds a value that nothing refers to yet.
    pub fn push(&mut self, at: Position, value: Value<'t>) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("texts are bounded far below 4 GiB");
        self.nodes.push(Node { at, value });
        NodeId(id)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Names the outermost value.
    pub fn set_root(&mut self, root: NodeId) {
        self.root = root;
    }

    /// The outermost value.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// A value of this tree.
    pub fn node(&self, id: NodeId) -> &Node<'t> {
        self.nodes.get(id.0 as usize).expect("ids come from push of this tree")
    }

    /// The text of a scalar; `None` for containers.
    pub fn scalar(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).value {
            Value::Text(text) | Value::Plain(text) => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The second of two equal keys of a mapping. Keys that are no scalars are left out.
    pub fn duplicate_key(&self, entries: &[(NodeId, NodeId)]) -> Option<NodeId> {
        let mut keys: Vec<(&str, NodeId)> =
            entries.iter().filter_map(|&(key, _)| Some((self.scalar(key)?, key))).collect();
        keys.sort_by_key(|&(text, _)| text);
        keys.windows(2).find_map(|pair| match pair {
            [(first, _), (second, id)] if first == second => Some(*id),
            _ => None,
        })
    }

    /// Where the value at `path` starts, or the innermost value on the way that is there.
    ///
    /// A path is `name.name[2].map["any key"]`, as errors print it.
    pub fn locate(&self, path: &str) -> Position {
        let mut id = self.root;
        let mut rest = path;
        loop {
            let node = self.node(id);
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let next = match &node.value {
                _ if rest.is_empty() => None,
                Value::Text(_) | Value::Plain(_) => None,
                Value::List(items) => {
                    split_index(rest).and_then(|(index, tail)| Some((*items.get(index)?, tail)))
                }
                Value::Map(entries) => entries.iter().find_map(|&(key, value)| {
                    let tail = rest.strip_prefix(segment(self.scalar(key)?).as_str())?;
                    (tail.is_empty() || tail.starts_with(['.', '['])).then_some((value, tail))
                }),
            };
            match next {
                Some((child, tail)) => (id, rest) = (child, tail),
                None => return node.at,
            }
        }
    }
}

/// A key as it stands in a path: bare, or `["quoted"]` where it could be misread.
pub(super) fn segment(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if bare { key.to_owned() } else { format!("[{key:?}]") }
}

/// `[12].rest` → 12 and `.rest`.
pub(super) fn split_index(path: &str) -> Option<(usize, &str)> {
    let (digits, tail) = path.strip_prefix('[')?.split_once(']')?;
    Some((digits.parse().ok()?, tail))
}

/// Plain text that means "nothing" (YAML 1.2 core schema).
pub(super) fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

/// Plain text that is a boolean (YAML 1.2 core schema; `yes` and `on` are strings).
pub(super) fn boolean(plain: &str) -> Option<bool> {
    match plain {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Plain text that is an integer: decimal, `0x` or `0o`.
pub(super) fn integer(plain: &str) -> Option<i128> {
    let digits = |text: &str, radix| {
        let clean = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        clean.then(|| i128::from_str_radix(text, radix).ok()).flatten()
    };
    if let Some(hex) = plain.strip_prefix("0x") {
        return digits(hex, 16);
    }
    if let Some(octal) = plain.strip_prefix("0o") {
        return digits(octal, 8);
    }
    match plain.strip_prefix('-') {
        Some(text) => digits(text, 10).map(|value| -value),
        None => digits(plain.strip_prefix('+').unwrap_or(plain), 10),
    }
}

/// Plain text that is a finite number with a fraction or an exponent.
pub(super) fn float(plain: &str) -> Option<f64> {
    let numeric =
        plain.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    let value: f64 = numeric.then(|| plain.parse().ok()).flatten()?;
    value.is_finite().then_some(value)
}
