//! Writes values as YAML.

use serde_json::{Value, json};

/// Writes one key and its value. Unset values are left out; an empty list or mapping is written, since it can differ from
/// the default.
pub(super) fn write_entry(text: &mut String, depth: usize, key: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(entries) if entries.is_empty() => {
            text.push_str(&format!("{indent}{}: {{}}\n", scalar(&json!(key))));
        }
        Value::Object(entries) => {
            text.push_str(&format!("{indent}{}:\n", scalar(&json!(key))));
            for (key, value) in entries.iter().filter(|(_, value)| !is_unset(value)) {
                write_entry(text, depth + 1, key, value);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            text.push_str(&format!("{indent}{key}:\n"));
            for item in items {
                let mut block = String::new();
                if let Value::Object(entries) = item {
                    // `id`, `url` and `address` first, since they identify the entry.
                    let first = |key: &str| !matches!(key, "id" | "url" | "address");
                    let mut entries: Vec<_> =
                        entries.iter().filter(|(_, value)| !is_unset(value)).collect();
                    entries.sort_by_key(|(key, _)| first(key));
                    for (key, value) in entries {
                        write_entry(&mut block, depth + 2, key, value);
                    }
                }
                let block = block.trim_start();
                text.push_str(&format!("{indent}  - {block}"));
            }
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(scalar).collect();
            text.push_str(&format!("{indent}{key}: [{}]\n", items.join(", ")));
        }
        value => text.push_str(&format!("{indent}{}: {}\n", scalar(&json!(key)), scalar(value))),
    }
}

/// Returns a value on one line, quoted unless it is a plain word.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let typed =
                matches!(text.as_str(), "true" | "false" | "null") || text.parse::<f64>().is_ok();
            let word =
                !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') && !typed;
            if word { text.clone() } else { escaped(text) }
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(scalar).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

/// Returns a text in double quotes, escaped so that no variable is expanded when it is read again.
fn escaped(text: &str) -> String {
    if !text.contains("${") {
        return json!(text).to_string();
    }
    json!(text.replace('}', "$}").replace("${", "$${")).to_string()
}

/// Whether a value is unset, or a mapping of unset values.
pub(super) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(entries) => !entries.is_empty() && entries.values().all(is_unset),
        _ => false,
    }
}

/// Returns a list or a mapping that is unset where it is empty.
pub(super) fn unless_empty(value: Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Object(entries) if entries.is_empty() => Value::Null,
        value => value,
    }
}
