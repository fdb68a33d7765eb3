//! YAML as the value that JSON would give.
//!
//! PROXY_CONFIG and the annotation `proxy.istio.io/config` are JSON or YAML, which Istio turns into
//! JSON first (`sigs.k8s.io/yaml`). Plain scalars are null, booleans and numbers by YAML 1.2's core
//! schema; keys are strings. Aliases and tags have no place in a few settings and are refused.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Deepest nesting; more is refused.
const MAX_DEPTH: usize = 32;
/// Most values; more is refused.
const MAX_VALUES: usize = 10_000;

/// A container whose end has not come.
enum Open {
    List(Vec<Value>),
    /// With the key whose value is next.
    Map(Map<String, Value>, Option<String>),
}

/// Reads one document; no document is null.
///
/// # Errors
/// What is wrong, and in which line.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    let mut values = 0;
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let line = span.start.line();
        let wrong = |what: &str| Err(format!("line {line}: {what}"));
        let value = match event {
            Event::Scalar(text, style, _, tag) => {
                if tag.is_some() {
                    return wrong("tags have no place here");
                }
                // A key is what is written, whatever it would mean as a value.
                if let Some(Open::Map(map, key @ None)) = open.last_mut() {
                    if map.contains_key(text.as_ref()) {
                        return wrong(&format!("`{text}` is there twice"));
                    }
                    *key = Some(text.into_owned());
                    continue;
                }
                scalar(&text, style)
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() >= MAX_DEPTH {
                    return wrong("nested too deeply");
                }
                if let Some(Open::Map(_, None)) = open.last() {
                    return wrong("a key must be a string");
                }
                open.push(match event {
                    Event::SequenceStart(..) => Open::List(Vec::new()),
                    _ => Open::Map(Map::new(), None),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => return wrong("no valid YAML"),
            },
            Event::Alias(_) => return wrong("aliases have no place here"),
            Event::DocumentStart(_) if root.is_some() => return wrong("more than one document"),
            _ => continue,
        };
        values += 1;
        if values > MAX_VALUES {
            return wrong("too many values");
        }
        match open.last_mut() {
            None => root = Some(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key)) => {
                if let Some(key) = key.take() {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(root.unwrap_or(Value::Null))
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if !matches!(style, ScalarStyle::Plain) {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        if let Ok(number) = text.parse::<i64>() {
            return Value::Number(number.into());
        }
        if let Some(number) = text.parse::<f64>().ok().and_then(Number::from_f64) {
            return Value::Number(number);
        }
    }
    Value::String(text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_gives_what_json_would() {
        let text = "discoveryAddress: istiod.istio-system.svc:15012\nconcurrency: 2\n\
                    ratio: 0.5\nquoted: \"2\"\nnone: ~\nempty:\nyes: true\n\
                    list: [a, 1, {b: c}]\nmap:\n  1: x\n  version: 1.2.3\n";
        let expected = json!({
            "discoveryAddress": "istiod.istio-system.svc:15012", "concurrency": 2, "ratio": 0.5,
            "quoted": "2", "none": null, "empty": null, "yes": true,
            "list": ["a", 1, {"b": "c"}], "map": {"1": "x", "version": "1.2.3"},
        });
        assert_eq!(parse(text).unwrap(), expected);
        let json = r#"{"proxyMetadata":{"A":"true"},"n":[null,-1]}"#;
        assert_eq!(parse(json).unwrap(), serde_json::from_str::<Value>(json).unwrap());
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("\n").unwrap(), Value::Null);
    }

    #[test]
    fn what_has_no_place_is_refused_with_its_line() {
        for (text, words) in [
            ("a: 1\nb: *x\n", "line 2"),
            ("a: !t 1", "tags"),
            ("a: 1\na: 2", "twice"),
            ("a: 1\n---\nb: 2", "more than one"),
            ("{[a]: b}", "a string"),
            ("a: [", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100)).unwrap_err().contains("deeply"));
    }
}
