//! JSON text → [`Document`] at once, or → [`Tree`] to say what is wrong with it and where.

use super::document::Document;
use super::error::{Position, Problem};
use super::tree::{MAX_DEPTH, NodeId, Tree, Value};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Parses a text that has nothing wrong with it; the error says at least where that is not so.
pub(super) fn document(text: &str) -> Result<Document, Problem> {
    let problem = |e: serde_json::Error| {
        let full = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        let message = full.strip_suffix(&place).unwrap_or(&full);
        let kind = if e.is_data() { "" } else { "no valid JSON: " };
        Problem::at(clamp(e.line(), e.column()), format!("{kind}{message}"))
    };
    serde_json::from_str::<UniqueKeys>(text).map_err(problem)?;
    serde_json::from_str(text).map_err(problem)
}

/// Parses a text into values with positions; `None` if it is no valid JSON or too deep.
/// Every level is scanned again for each level above it, so this is for texts that are known to
/// be wrong.
pub(super) fn tree(text: &str) -> Option<Result<Tree<'_>, Problem>> {
    let mut builder = Builder { text, passed: (0, Position::START), tree: Tree::new(true) };
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    let root = match builder.value(raw, 0)? {
        Ok(root) => root,
        Err(problem) => return Some(Err(problem)),
    };
    builder.tree.set_root(root);
    Some(Ok(builder.tree))
}

fn clamp(line: usize, column: usize) -> Position {
    Position {
        line: u32::try_from(line.max(1)).unwrap_or(u32::MAX),
        column: u32::try_from(column.max(1)).unwrap_or(u32::MAX),
    }
}

struct Builder<'t> {
    text: &'t str,
    /// Offset and position of the value that was met last; values are met in the order of the text.
    passed: (usize, Position),
    tree: Tree<'t>,
}

impl<'t> Builder<'t> {
    fn position(&mut self, raw: &'t RawValue) -> Position {
        let offset = raw.get().as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        let (from, mut position) = self.passed;
        for character in self.text.get(from..offset).unwrap_or_default().chars() {
            position = match character {
                '\n' => Position { line: position.line + 1, column: 1 },
                _ => Position { column: position.column + 1, ..position },
            };
        }
        self.passed = (offset, position);
        position
    }

    fn value(&mut self, raw: &'t RawValue, depth: u32) -> Option<Result<NodeId, Problem>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let at = self.position(raw);
        let text = raw.get();
        let value = match text.as_bytes().first()? {
            b'{' => {
                let Entries(raw_entries) = serde_json::from_str(text).ok()?;
                let mut entries = Vec::with_capacity(raw_entries.len());
                for (key, value) in raw_entries {
                    let (key, value) =
                        match (self.value(key, depth + 1)?, self.value(value, depth + 1)?) {
                            (Ok(key), Ok(value)) => (key, value),
                            (Err(problem), _) | (_, Err(problem)) => return Some(Err(problem)),
                        };
                    entries.push((key, value));
                }
                if let Some(key) = self.tree.duplicate_key(&entries) {
                    let name = self.tree.scalar(key).unwrap_or_default();
                    let message = format!("the key `{name}` is there twice in one object");
                    return Some(Err(Problem::at(self.tree.node(key).at, message)));
                }
                Value::Map(entries)
            }
            b'[' => {
                let raw_items: Vec<&'t RawValue> = serde_json::from_str(text).ok()?;
                let mut items = Vec::with_capacity(raw_items.len());
                for item in raw_items {
                    match self.value(item, depth + 1)? {
                        Ok(item) => items.push(item),
                        Err(problem) => return Some(Err(problem)),
                    }
                }
                Value::List(items)
            }
            b'"' => {
                let Borrowed(text) = serde_json::from_str(text).ok()?;
                Value::Text(text)
            }
            _ => Value::Plain(Cow::Borrowed(text)),
        };
        Some(Ok(self.tree.push(at, value)))
    }
}

/// A string that is copied only where it has escapes.
#[derive(serde::Deserialize)]
struct Borrowed<'t>(#[serde(borrow)] Cow<'t, str>);

/// The entries of an object as they stand in the text, duplicates included.
struct Entries<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'t> Deserialize<'t> for Entries<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'t> Visitor<'t> for EntriesVisitor {
            type Value = Entries<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Entries<'t>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Any value whose objects have no key twice. serde_json keeps the last of two equal keys of a
/// map; of two policies with one name, none may be lost silently.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeysVisitor)
    }
}

struct UniqueKeysVisitor;

impl<'de> Visitor<'de> for UniqueKeysVisitor {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_unit<E: Error>(self) -> Result<UniqueKeys, E> {
        Ok(UniqueKeys)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UniqueKeys, A::Error> {
        while list.next_element::<UniqueKeys>()?.is_some() {}
        Ok(UniqueKeys)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
        let mut keys: Vec<Cow<'de, str>> = Vec::new();
        while let Some(Borrowed(key)) = map.next_key()? {
            keys.push(key);
            map.next_value::<UniqueKeys>()?;
        }
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair.first() == pair.last()) {
            Some(pair) => Err(A::Error::custom(format_args!(
                "the key `{}` is there twice in one object",
                pair.first().map_or("", |key| key)
            ))),
            None => Ok(UniqueKeys),
        }
    }
}
