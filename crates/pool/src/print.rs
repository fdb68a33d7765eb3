//! Objects as YAML, for people and for `kubectl apply -f -`.
//!
//! Every text is quoted as JSON does, which YAML reads alike: no value can become a key, a number or a document.

use serde_json::Value;
use std::fmt::Write;

/// One document for each object.
pub fn yaml(objects: &[Value]) -> String {
    let mut out = String::new();
    for (number, object) in objects.iter().enumerate() {
        if number > 0 {
            out.push_str("---\n");
        }
        write_in(&mut out, object, 0);
    }
    out
}

/// `value` on lines of its own, `depth` levels in.
fn write_in(out: &mut String, value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    // Writing to a String cannot fail.
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let _ = write!(out, "{pad}{}:", word(key));
                below(out, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                write_in(&mut inner, item, depth + 1);
                let _ = write!(out, "{pad}- {}", inner.trim_start());
            }
        }
        plain => {
            let _ = writeln!(out, "{pad}{}", scalar(plain));
        }
    }
}

/// What stands behind a key.
fn below(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            write_in(out, value, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_in(out, value, depth);
        }
        plain => {
            let _ = writeln!(out, " {}", scalar(plain));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// Words that cannot be taken for anything else stand as they are.
fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let meant = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if starts && text.bytes().all(plain) && !meant.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_lists_and_quotes() {
        let text = yaml(&[
            json!({"kind": "A", "spec": {"ports": [{"name": "hbone", "port": 1}, 2], "none": [], "empty": {}}}),
            json!({"k: v": "true", "b": "1", "c": "a\n- b", "d": true}),
        ]);
        assert_eq!(
            text,
            "kind: A\nspec:\n  empty: {}\n  none: []\n  ports:\n  - name: hbone\n    port: 1\n  - 2\n\
             ---\nb: \"1\"\nc: \"a\\n- b\"\nd: true\n\"k: v\": \"true\"\n"
        );
    }
}
