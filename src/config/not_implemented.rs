//! Keys that are documented but not implemented yet.
//!
//! A key in this list is refused as "not built yet", never ignored. To implement
//! it, remove its line here and add a field to `file`.

use super::de::key_path::KeyPath;
use super::fault::{Code, Fault};
use super::yaml::{Entry, Kind};

/// The keys, each as the last steps of its path, `[]` for the elements of a list, and a
/// value if only that value is not implemented.
const NOT_IMPLEMENTED: &[(&[&str], Option<&str>)] = &[
    (&["listen", "[]", "http3"], None),
    (&["tls", "acme"], None),
    (&["admin", "ui"], None),
    (&["slo"], None),
    (&["tracing"], None),
];

/// Returns the fault of an entry of the mapping at `path`, if it is not implemented yet.
pub(super) fn fault_for(path: &KeyPath<'_>, entry: &Entry) -> Option<Fault> {
    let (_, value) = NOT_IMPLEMENTED.iter().find(|(steps, value)| {
        steps.split_last().is_some_and(|(key, above)| {
            *key == entry.key
                && ends_with(path, above)
                && value.is_none_or(|value| is(entry, value))
        })
    })?;
    Some(match value {
        None => Fault::new(Code::C106, entry.key_at, format!("`{}` is not built yet", entry.key))
            .help("take it out; the reference in docs/config.md says what works"),
        Some(value) => {
            let text = format!("`{}: {value}` is not built yet", entry.key);
            Fault::new(Code::C103, entry.value.at, text)
                .help("the reference in docs/config.md says what works")
        }
    })
}

fn ends_with(path: &KeyPath<'_>, steps: &[&str]) -> bool {
    let mut at = Some(path);
    for step in steps.iter().rev() {
        match at {
            Some(path) if path.step == *step => at = path.parent,
            _ => return false,
        }
    }
    true
}

fn is(entry: &Entry, value: &str) -> bool {
    matches!(&entry.value.kind, Kind::Scalar(scalar) if scalar.text == value)
}
