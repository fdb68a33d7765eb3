//! YAML as the JSON that the API server makes of it.
//!
//! Plain scalars are null, booleans and numbers by YAML 1.2's core schema. Where Kubernetes' reader (YAML 1.1) would
//! take a word for a boolean and this one would not, it is refused: whoever wrote it should have quoted it.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Words that are booleans to some readers only.
const AMBIGUOUS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];

enum Open {
    List(Vec<Value>),
    /// With the key whose value is next.
    Map(Map<String, Value>, Option<String>),
}

/// All documents of a stream that are not empty.
///
/// # Errors
/// What is wrong, and in which line.
pub fn documents(stream: &str) -> Result<Vec<Value>, String> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut parser = Parser::new_from_str(stream);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let line = span.start.line();
        let value = match event {
            Event::Scalar(text, style, ..) => {
                if let Some(Open::Map(map, key @ None)) = open.last_mut() {
                    if map.contains_key(text.as_ref()) {
                        return Err(format!("line {line}: `{text}` is there twice"));
                    }
                    *key = Some(text.into_owned());
                    continue;
                }
                scalar(&text, style).map_err(|reason| format!("line {line}: {reason}"))?
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => return Err(format!("line {line}: nothing is open")),
            },
            Event::Alias(_) => return Err(format!("line {line}: an alias")),
            _ => continue,
        };
        match open.last_mut() {
            None => documents.push(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key)) => {
                let key = key.take().ok_or_else(|| format!("line {line}: a key is no text"))?;
                map.insert(key, value);
            }
        }
    }
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

/// The only document of a file.
///
/// # Errors
/// What is wrong, and in which line; or how many documents there are.
pub fn document(text: &str) -> Result<Value, String> {
    let mut all = documents(text)?;
    match (all.pop(), all.len()) {
        (Some(document), 0) => Ok(document),
        (_, more) => Err(format!("{more} documents more than one")),
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Result<Value, String> {
    if !matches!(style, ScalarStyle::Plain) {
        return Ok(Value::String(text.to_owned()));
    }
    if AMBIGUOUS.contains(&text.to_lowercase().as_str()) {
        return Err(format!("`{text}` must be quoted"));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    })
}

fn number(text: &str) -> Option<Number> {
    if !text.bytes().next().is_some_and(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte)) {
        return None;
    }
    match text.parse::<i64>() {
        Ok(number) => Some(number.into()),
        Err(_) => text.parse().ok().and_then(Number::from_f64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_what_json_would_be() {
        let text = "# nothing\n---\na: {b: [1, 2.5, \"3\", 0.0.0.0:1, ~], c: true}\n---\n---\nd: |\n  e\n  f\n\
                    g: 10%\nh: 1.0\ni: 250m\n";
        assert_eq!(
            documents(text).unwrap(),
            [
                json!({"a": {"b": [1, 2.5, "3", "0.0.0.0:1", null], "c": true}}),
                json!({"d": "e\nf\n", "g": "10%", "h": 1.0, "i": "250m"}),
            ]
        );
    }

    #[test]
    fn what_readers_take_differently_is_refused() {
        for text in ["a: yes", "a: Off", "a: 1\na: 2", "a: &x 1\nb: *x", "[]: 1"] {
            assert!(documents(text).is_err(), "{text}");
        }
        assert!(document("a: 1\n---\nb: 2").is_err());
        assert_eq!(document("a: \"yes\"").unwrap(), json!({"a": "yes"}));
    }
}
