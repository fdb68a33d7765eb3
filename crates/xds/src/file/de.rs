//! [`Tree`] → typed values, by serde. An error knows its position and its field.
//!
//! A choice (enum) is a map with one key, or the name alone where nothing belongs to it.

use super::error::{Position, Problem};
use super::tree::{self, NodeId, Tree, Value};
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use std::fmt;

/// Reads a `T` from the whole tree.
pub(super) fn from_tree<'n, T: Deserialize<'n>>(tree: &'n Tree<'_>) -> Result<T, Problem> {
    T::deserialize(Cursor { tree, id: tree.root() }).map_err(Problem::from)
}

/// What serde says, with the place where it said it. Boxed: it travels through every `Result`.
#[derive(Debug)]
struct TreeError(Box<Details>);

#[derive(Debug)]
struct Details {
    position: Option<Position>,
    /// Innermost first.
    path: Vec<Segment>,
    message: String,
}

#[derive(Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

impl TreeError {
    /// The innermost value that is asked keeps its position.
    fn at(mut self, position: Position) -> Self {
        self.0.position.get_or_insert(position);
        self
    }

    fn inside(mut self, segment: Segment) -> Self {
        self.0.path.push(segment);
        self
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for TreeError {}

impl serde::de::Error for TreeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        TreeError(Box::new(Details { position: None, path: Vec::new(), message }))
    }
}

impl From<TreeError> for Problem {
    fn from(TreeError(details): TreeError) -> Self {
        let Details { position, path, message } = *details;
        let mut field = String::new();
        for segment in path.into_iter().rev() {
            match segment {
                Segment::Key(key) => {
                    let text = tree::segment(&key);
                    if !field.is_empty() && !text.starts_with('[') {
                        field.push('.');
                    }
                    field.push_str(&text);
                }
                Segment::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        Problem { position, field, message }
    }
}

/// One value of a tree.
#[derive(Clone, Copy)]
struct Cursor<'n, 't> {
    tree: &'n Tree<'t>,
    id: NodeId,
}

impl<'n, 't> Cursor<'n, 't> {
    fn value(self) -> &'n Value<'t> {
        &self.tree.node(self.id).value
    }

    fn position(self) -> Position {
        self.tree.node(self.id).at
    }

    fn child(self, id: NodeId) -> Self {
        Cursor { tree: self.tree, id }
    }

    fn mismatch(self, expected: &dyn Expected) -> TreeError {
        let found = match self.value() {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Text(text) => format!("the string \"{text}\""),
            Value::Plain(plain) if plain.is_empty() => "nothing".to_owned(),
            Value::Plain(plain) => format!("`{plain}`"),
        };
        TreeError::custom(format_args!("found {found}, expected {expected}"))
    }

    /// The text of a scalar that can be taken as a string.
    fn string(self) -> Option<&'n str> {
        match self.value() {
            Value::Text(text) => Some(text),
            Value::Plain(plain) if !self.tree.typed_scalars && !tree::is_null(plain) => Some(plain),
            _ => None,
        }
    }

    fn integer(self, least: i128, most: i128) -> Result<i128, TreeError> {
        let value = match self.value() {
            Value::Plain(plain) => tree::integer(plain),
            _ => None,
        };
        value.filter(|value| (least..=most).contains(value)).ok_or_else(|| {
            self.mismatch(&format!("an integer from {least} to {most}").as_str())
                .at(self.position())
        })
    }

    fn list<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        let Value::List(items) = self.value() else {
            return Err(self.mismatch(&"a list"));
        };
        visitor.visit_seq(Items { list: self, items: items.iter(), next: 0 })
    }

    fn map<V: Visitor<'n>>(
        self,
        expected: &dyn Expected,
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let Value::Map(entries) = self.value() else {
            return Err(self.mismatch(expected));
        };
        visitor.visit_map(Entries { map: self, entries: entries.iter(), current: None })
    }
}

/// Names in backquotes.
fn alternatives(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
            let value = self.integer(i128::from(<$type>::MIN), i128::from(<$type>::MAX))?;
            let value = <$type>::try_from(value).expect("the range has been checked");
            visitor.$visit::<TreeError>(value).map_err(|e| e.at(self.position()))
        }
    )*};
}

impl<'n> Deserializer<'n> for Cursor<'n, '_> {
    type Error = TreeError;

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        let result = match self.value() {
            Value::List(_) => self.list(visitor),
            Value::Map(_) => self.map(&"a map", visitor),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::Plain(plain) => {
                if tree::is_null(plain) {
                    visitor.visit_unit()
                } else if let Some(value) = tree::boolean(plain) {
                    visitor.visit_bool(value)
                } else if let Some(value) = tree::integer(plain) {
                    match (u64::try_from(value), i64::try_from(value)) {
                        (Ok(value), _) => visitor.visit_u64(value),
                        (_, Ok(value)) => visitor.visit_i64(value),
                        _ => Err(self.mismatch(&"an integer of 64 bits")),
                    }
                } else if let Some(value) = tree::float(plain) {
                    visitor.visit_f64(value)
                } else {
                    visitor.visit_borrowed_str(plain)
                }
            }
        };
        result.map_err(|e| e.at(self.position()))
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        let value = match self.value() {
            Value::Plain(plain) => tree::boolean(plain),
            _ => None,
        };
        value
            .ok_or_else(|| self.mismatch(&"`true` or `false`"))
            .and_then(|value| visitor.visit_bool(value))
            .map_err(|e| e.at(self.position()))
    }

    fn deserialize_f32<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        let value = match self.value() {
            Value::Plain(plain) => tree::float(plain),
            _ => None,
        };
        value
            .ok_or_else(|| self.mismatch(&"a number"))
            .and_then(|value| visitor.visit_f64(value))
            .map_err(|e| e.at(self.position()))
    }

    fn deserialize_char<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.string()
            .ok_or_else(|| self.mismatch(&"a string"))
            .and_then(|text| visitor.visit_borrowed_str(text))
            .map_err(|e| e.at(self.position()))
    }

    fn deserialize_string<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.value() {
            Value::Plain(plain) if tree::is_null(plain) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.value() {
            Value::Plain(plain) if tree::is_null(plain) => visitor.visit_unit(),
            _ => Err(self.mismatch(&"nothing").at(self.position())),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.list(visitor).map_err(|e| e.at(self.position()))
    }

    fn deserialize_map<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.map(&"a map", visitor).map_err(|e| e.at(self.position()))
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let expected = format!("a map with fields of {}", alternatives(fields));
        self.map(&expected.as_str(), visitor).map_err(|e| e.at(self.position()))
    }

    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let wrong = || self.mismatch(&format!("one of {}", alternatives(variants)).as_str());
        let result = match self.value() {
            Value::Map(entries) => match entries.as_slice() {
                &[(key, value)] => visitor
                    .visit_enum(Choice { name: self.child(key), content: Some(self.child(value)) }),
                _ => Err(TreeError::custom(format_args!(
                    "found a map with {} keys, expected exactly one of {}",
                    entries.len(),
                    alternatives(variants)
                ))),
            },
            _ if self.string().is_some() => {
                visitor.visit_enum(Choice { name: self, content: None })
            }
            _ => Err(wrong()),
        };
        result.map_err(|e| e.at(self.position()))
    }

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { <W: Visitor<'n>> bytes byte_buf unit_struct tuple tuple_struct }
}

/// The rest of a list.
struct Items<'n, 't> {
    list: Cursor<'n, 't>,
    items: std::slice::Iter<'n, NodeId>,
    next: usize,
}

impl<'n> SeqAccess<'n> for Items<'n, '_> {
    type Error = TreeError;

    fn next_element_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, TreeError> {
        let Some(&id) = self.items.next() else {
            return Ok(None);
        };
        let index = self.next;
        self.next += 1;
        let item = self.list.child(id);
        seed.deserialize(item)
            .map(Some)
            .map_err(|e| e.at(item.position()).inside(Segment::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// The rest of a map.
struct Entries<'n, 't> {
    map: Cursor<'n, 't>,
    entries: std::slice::Iter<'n, (NodeId, NodeId)>,
    current: Option<(NodeId, NodeId)>,
}

impl Entries<'_, '_> {
    fn segment(&self, key: NodeId) -> Segment {
        Segment::Key(self.map.tree.scalar(key).unwrap_or("?").to_owned())
    }
}

impl<'n> MapAccess<'n> for Entries<'n, '_> {
    type Error = TreeError;

    fn next_key_seed<S: DeserializeSeed<'n>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, TreeError> {
        self.current = self.entries.next().copied();
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        let cursor = self.map.child(key);
        seed.deserialize(cursor)
            .map(Some)
            .map_err(|e| e.at(cursor.position()).inside(self.segment(key)))
    }

    fn next_value_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<S::Value, TreeError> {
        let Some((key, value)) = self.current else {
            return Err(TreeError::custom("a value was asked for before its key"));
        };
        let cursor = self.map.child(value);
        seed.deserialize(cursor).map_err(|e| e.at(cursor.position()).inside(self.segment(key)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A choice: its name, and what belongs to it.
struct Choice<'n, 't> {
    name: Cursor<'n, 't>,
    content: Option<Cursor<'n, 't>>,
}

impl<'n, 't> EnumAccess<'n> for Choice<'n, 't> {
    type Error = TreeError;
    type Variant = Content<'n, 't>;

    fn variant_seed<S: DeserializeSeed<'n>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content<'n, 't>), TreeError> {
        let Choice { name, content } = self;
        let text = name.string().ok_or_else(|| name.mismatch(&"a name").at(name.position()))?;
        let variant = seed
            .deserialize(BorrowedStrDeserializer::<TreeError>::new(text))
            .map_err(|e| e.at(name.position()))?;
        Ok((variant, Content { name: text, content }))
    }
}

/// What belongs to the choice `name`.
struct Content<'n, 't> {
    name: &'n str,
    content: Option<Cursor<'n, 't>>,
}

impl<'n, 't> Content<'n, 't> {
    fn given(&self) -> Result<Cursor<'n, 't>, TreeError> {
        self.content.ok_or_else(|| {
            TreeError::custom(format_args!("`{0}` needs a value: write `{{{0}: ...}}`", self.name))
        })
    }

    fn wrap<T>(&self, result: Result<T, TreeError>) -> Result<T, TreeError> {
        result.map_err(|e| {
            let e = match self.content {
                Some(content) => e.at(content.position()),
                None => e,
            };
            e.inside(Segment::Key(self.name.to_owned()))
        })
    }
}

impl<'n> VariantAccess<'n> for Content<'n, '_> {
    type Error = TreeError;

    fn unit_variant(self) -> Result<(), TreeError> {
        match self.content {
            None => Ok(()),
            Some(content) => {
                let result = <()>::deserialize(content);
                self.wrap(result)
            }
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<S::Value, TreeError> {
        let result = seed.deserialize(self.given()?);
        self.wrap(result)
    }

    fn tuple_variant<V: Visitor<'n>>(self, _len: usize, visitor: V) -> Result<V::Value, TreeError> {
        let result = self.given()?.deserialize_seq(visitor);
        self.wrap(result)
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let result = self.given()?.deserialize_struct("", fields, visitor);
        self.wrap(result)
    }
}
