//! Messages as JSON (proto3's mapping, with the field names of the `.proto` files, as Envoy prints).
//!
//! What is inside an `Any` is printed in its place. An `Any` whose type is not known, or whose bytes
//! are no such message, is printed as `{"@type": …, "value": base64}`: readers such as `istioctl`
//! pass over it. Secrets are printed as `[redacted]`, as Envoy does.
//!
//! Messages in an `Any` are decoded when their turn comes and dropped afterwards, so that a large
//! listener is never there as a whole but as bytes.

use super::types::{Types, is_sensitive};
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, SerializeOptions, Value,
};
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};

/// In the place of a secret.
const REDACTED: &str = "[redacted]";
/// Messages in messages are followed so deep; an `Any` that is deeper is printed as bytes. What is in the last one may
/// be as deep again, which is what protobuf's decoder admits: printing calls itself no deeper than the stack bears.
const MAX_DEPTH: u16 = 100;

/// A message to be printed.
#[derive(Clone, Copy)]
pub struct Printed<'a> {
    types: &'a Types,
    message: &'a DynamicMessage,
    how: How,
}

/// A message to be printed with its type, which must not be one with a form of its own in JSON.
#[derive(Clone, Copy)]
pub struct PrintedWithType<'a>(Printed<'a>);

/// An `Any` to be printed.
#[derive(Clone, Copy)]
pub struct PrintedAny<'a> {
    types: &'a Types,
    type_url: &'a str,
    value: &'a [u8],
    how: How,
}

#[derive(Clone, Copy)]
struct How {
    /// Texts and bytes are secret.
    redact: bool,
    depth: u16,
}

impl How {
    const TOP: How = How { redact: false, depth: 0 };
}

impl<'a> Printed<'a> {
    /// A message of `types`.
    pub fn new(types: &'a Types, message: &'a DynamicMessage) -> Self {
        Printed { types, message, how: How::TOP }
    }

    /// As if it stood in an `Any`, with its type.
    pub fn with_type(self) -> PrintedWithType<'a> {
        PrintedWithType(self)
    }

    fn fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        for (field, value) in self.message.fields() {
            let redact = self.how.redact || is_sensitive(field.full_name());
            let how = How { redact, depth: self.how.depth.saturating_add(1) };
            map.serialize_entry(
                field.name(),
                &PrintedField { types: self.types, field: &field, value, how },
            )?;
        }
        Ok(())
    }

    fn any(&self) -> Option<(String, Vec<u8>)> {
        let text = self.message.get_field_by_name("type_url")?.as_str()?.to_owned();
        let value = self.message.get_field_by_name("value")?.as_bytes()?.to_vec();
        Some((text, value))
    }
}

impl<'a> PrintedAny<'a> {
    /// The message that `value` is, in an `Any`.
    pub fn new(types: &'a Types, type_url: &'a str, value: &'a [u8]) -> Self {
        PrintedAny { types, type_url, value, how: How::TOP }
    }

    fn opaque<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("@type", self.type_url)?;
        let value = if self.how.redact { REDACTED.as_bytes() } else { self.value };
        map.serialize_entry("value", &Base64(value))?;
        map.end()
    }
}

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.message.descriptor();
        match descriptor.full_name() {
            "google.protobuf.Any" => {
                let (type_url, value) =
                    self.any().ok_or_else(|| S::Error::custom("an `Any` without its fields"))?;
                let (types, how) = (self.types, self.how);
                PrintedAny { types, type_url: &type_url, value: &value, how }.serialize(serializer)
            }
            "google.protobuf.StringValue" if self.how.redact => serializer.serialize_str(REDACTED),
            "google.protobuf.BytesValue" if self.how.redact => {
                Base64(REDACTED.as_bytes()).serialize(serializer)
            }
            name if is_well_known(name) => {
                let empty = DynamicMessage::new(descriptor.clone());
                well_known(if self.how.redact { &empty } else { self.message })
                    .serialize(serializer)
            }
            _ => {
                let mut map = serializer.serialize_map(None)?;
                self.fields(&mut map)?;
                map.end()
            }
        }
    }
}

impl Serialize for PrintedWithType<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.0.message.descriptor();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("@type", &format_args!("type.googleapis.com/{}", name.full_name()))?;
        self.0.fields(&mut map)?;
        map.end()
    }
}

impl Serialize for PrintedAny<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // An `Any` that nothing was ever put in.
        if self.type_url.is_empty() {
            return serializer.serialize_map(Some(0))?.end();
        }
        let Some(depth) = Some(self.how.depth + 1).filter(|depth| *depth <= MAX_DEPTH) else {
            return self.opaque(serializer);
        };
        let Ok(message) = self.types.decode(self.type_url, self.value) else {
            return self.opaque(serializer);
        };
        let how = How { depth, ..self.how };
        let inner = Printed { types: self.types, message: &message, how };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("@type", self.type_url)?;
        let descriptor = message.descriptor();
        if is_well_known(descriptor.full_name()) {
            map.serialize_entry("value", &inner)?;
        } else {
            inner.fields(&mut map)?;
        }
        map.end()
    }
}

/// Has a form of its own in JSON. None of them but `Any` has an `Any` inside.
fn is_well_known(full_name: &str) -> bool {
    matches!(
        full_name.strip_prefix("google.protobuf."),
        Some(
            "Any"
                | "Timestamp"
                | "Duration"
                | "Struct"
                | "Value"
                | "ListValue"
                | "FieldMask"
                | "Empty"
                | "BoolValue"
                | "BytesValue"
                | "DoubleValue"
                | "FloatValue"
                | "Int32Value"
                | "Int64Value"
                | "StringValue"
                | "UInt32Value"
                | "UInt64Value"
        )
    )
}

/// What cannot be said in JSON, such as a duration of 10,000 years, is `null`: as if it were not there.
fn well_known(message: &DynamicMessage) -> serde_json::Value {
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .unwrap_or_default()
}

struct PrintedField<'a> {
    types: &'a Types,
    field: &'a FieldDescriptor,
    value: &'a Value,
    how: How,
}

impl PrintedField<'_> {
    fn one<'b>(&'b self, kind: &'b Kind, value: &'b Value) -> PrintedValue<'b> {
        PrintedValue { types: self.types, kind, value, how: self.how }
    }
}

impl Serialize for PrintedField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = self.field.kind();
        match self.value {
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&self.one(&kind, value))?;
                }
                list.end()
            }
            Value::Map(values) => {
                let kind = match &kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    other => other.clone(),
                };
                // Equal messages are printed equally.
                let mut entries: Vec<(String, &Value)> =
                    values.iter().map(|(key, value)| (map_key(key), value)).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(&key, &self.one(&kind, value))?;
                }
                map.end()
            }
            value => self.one(&kind, value).serialize(serializer),
        }
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

struct PrintedValue<'a> {
    types: &'a Types,
    kind: &'a Kind,
    value: &'a Value,
    how: How,
}

impl Serialize for PrintedValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PrintedValue { types, kind, value, how } = *self;
        match value {
            Value::Message(message) => Printed { types, message, how }.serialize(serializer),
            Value::String(_) if how.redact => serializer.serialize_str(REDACTED),
            Value::Bytes(_) if how.redact => Base64(REDACTED.as_bytes()).serialize(serializer),
            Value::Bool(_) if how.redact => serializer.serialize_bool(false),
            Value::I32(_) | Value::U32(_) | Value::F32(_) | Value::F64(_) if how.redact => {
                serializer.serialize_u32(0)
            }
            Value::I64(_) | Value::U64(_) if how.redact => serializer.serialize_str("0"),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::I32(value) => serializer.serialize_i32(*value),
            Value::U32(value) => serializer.serialize_u32(*value),
            Value::I64(value) => serializer.collect_str(value),
            Value::U64(value) => serializer.collect_str(value),
            Value::F32(value) if value.is_finite() => serializer.serialize_f32(*value),
            Value::F32(value) => serializer.serialize_str(not_finite(f64::from(*value))),
            Value::F64(value) if value.is_finite() => serializer.serialize_f64(*value),
            Value::F64(value) => serializer.serialize_str(not_finite(*value)),
            Value::String(value) => serializer.serialize_str(value),
            Value::Bytes(value) => Base64(value).serialize(serializer),
            Value::EnumNumber(number) => {
                match kind.as_enum().and_then(|of| of.get_value(*number)) {
                    Some(value) => serializer.serialize_str(value.name()),
                    None => serializer.serialize_i32(*number),
                }
            }
            Value::List(_) | Value::Map(_) => {
                Err(S::Error::custom("a list in a list, which no message has"))
            }
        }
    }
}

fn not_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// Bytes in base64.
pub struct Base64<'a>(pub &'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &BASE64_STANDARD))
    }
}

#[cfg(test)]
mod tests;
